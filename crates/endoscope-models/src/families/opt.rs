//! OPT (Zhang et al. 2022, arXiv 2205.01068). Particularities: learned positions whose table begins with two rows that
//! are not used; ReLU; biases and the norms' weights can be switched off (Galactica). The 350m model, which normalises
//! after the sum and projects its embedding, is refused.

use super::names::{MlpNames, Names, NormTensors, Qkv};
use super::{Translator, activation, even_head};
use crate::config::Config;
use crate::spec::{Biases, Norm, Positions, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "opt",
    class: "OPTForCausalLM",
    spec,
    names: |_| Names {
        prefix: "model.decoder.",
        positions: ("embed_positions", 2),
        ln1: "self_attn_layer_norm",
        ln2: "final_layer_norm",
        ln_final: "final_layer_norm",
        norms: NormTensors::WeightAndBias,
        qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        attention_out: "self_attn.out_proj",
        mlp: MlpNames::Plain { up: "fc1", down: "fc2" },
        ..Names::LLAMA
    },
    ignorable: &[],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["dropout", "attention_dropout", "activation_dropout", "layerdrop", "init_std"]);
    let d_model = config.count("hidden_size");
    let heads = config.count("num_attention_heads");
    if !config.switch_or("do_layer_norm_before", true) {
        config.problem("`do_layer_norm_before` is false: a norm after the residual sum (OPT-350m) is not supported");
    }
    if config.switch_or("_remove_final_layer_norm", false) {
        config.problem("`_remove_final_layer_norm` is true: a model without a final norm is not supported");
    }
    if config.count_or("word_embed_proj_dim", d_model) != d_model {
        config.problem("`word_embed_proj_dim` differs from `hidden_size`: a projected embedding is not supported");
    }
    let bias = config.switch_or("enable_bias", true);
    let weights = config.switch_or("layer_norm_elementwise_affine", true);
    Spec {
        norm: if weights { Norm::LayerNorm } else { Norm::PlainLayerNorm },
        vocabulary: config.count("vocab_size"),
        context: config.count_or("max_position_embeddings", 2048),
        d_model,
        layers: config.count("num_hidden_layers"),
        heads,
        kv_heads: heads,
        d_head: even_head(config, d_model, heads),
        d_mlp: config.count("ffn_dim"),
        positions: Positions::Learned,
        activation: activation(config, "activation_function", "relu"),
        biases: Biases { qkv: bias, attention_out: bias, mlp: bias },
        tied: config.switch_or("tie_word_embeddings", true),
        ..Spec::default()
    }
}
