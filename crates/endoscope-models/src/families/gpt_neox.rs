//! GPT-NeoX (Black et al. 2022, arXiv 2204.06745) and Pythia. Particularities: attention and MLP side by side
//! (`use_parallel_residual`), each with its LayerNorm; rotary positions of a quarter of each head; q, k and v in one
//! matrix, head by head; unembedding `embed_out`.

use super::names::{MlpNames, Names, NormTensors, Qkv};
use super::{Translator, activation, rope, set_rotary, sizes};
use crate::config::Config;
use crate::spec::{Biases, Order, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "gpt_neox",
    class: "GPTNeoXForCausalLM",
    spec,
    names: |_| Names {
        prefix: "gpt_neox.",
        embed: "embed_in",
        ln_final: "final_layer_norm",
        norms: NormTensors::WeightAndBias,
        qkv: Qkv::Groups("attention.query_key_value"),
        attention_out: "attention.dense",
        mlp: MlpNames::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
        unembed: "embed_out",
        ..Names::LLAMA
    },
    ignorable: &[".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["attention_dropout", "hidden_dropout", "classifier_dropout"]);
    let attention_bias = config.switch_or("attention_bias", true);
    let parallel = config.switch_or("use_parallel_residual", true);
    let mut spec = Spec {
        epsilon: config.number_or("layer_norm_eps", 1e-5),
        order: if parallel { Order::Parallel } else { Order::Sequential },
        activation: activation(config, "hidden_act", "gelu"),
        biases: Biases { qkv: attention_bias, attention_out: attention_bias, mlp: true },
        tied: config.switch_or("tie_word_embeddings", false),
        ..sizes(config)
    };
    let keys = ("rotary_emb_base", "rotary_pct");
    // Some files have both names, of one value.
    config.inert(&["rope_theta"]);
    set_rotary(config, &mut spec, rope::Defaults { partial: 0.25, keys, ..Default::default() });
    spec
}
