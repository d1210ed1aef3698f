//! Falcon (Almazrouei et al. 2023, arXiv 2311.16867). Particularities: three layouts. 7b: one key/value head, attention and
//! MLP side by side after one LayerNorm. 40b and 180b (`new_decoder_architecture`): grouped heads stored group by group,
//! with one or two LayerNorms. rw: ALiBi, biases, sequential, q, k and v head by head. GELU by the error function.

use super::names::{MlpNames, Names, NormTensors, Qkv};
use super::{Translator, activation, even_head, rope, set_rotary};
use crate::config::Config;
use crate::spec::{Biases, Order, Positions, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "falcon",
    class: "FalconForCausalLM",
    spec,
    names: |spec| {
        let two_norms = spec.order == Order::Parallel;
        Names {
            prefix: "transformer.",
            embed: "word_embeddings",
            layers: "h",
            ln1: if two_norms { "ln_attn" } else { "input_layernorm" },
            ln2: if two_norms { "ln_mlp" } else { "post_attention_layernorm" },
            ln_final: "ln_f",
            norms: NormTensors::WeightAndBias,
            qkv: Qkv::Groups("self_attention.query_key_value"),
            attention_out: "self_attention.dense",
            mlp: MlpNames::Plain { up: "mlp.dense_h_to_4h", down: "mlp.dense_4h_to_h" },
            ..Names::LLAMA
        }
    },
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["attention_dropout", "hidden_dropout", "auto_map", "n_layer", "n_head"]);
    let d_model = config.count("hidden_size");
    let heads = config.count("num_attention_heads");
    let new = config.switch_or("new_decoder_architecture", false);
    let multi_query = config.switch_or("multi_query", true);
    let given = config.count_or("num_kv_heads", heads);
    let kv_heads = if new || !multi_query { given } else { 1 };
    if !new && !multi_query && given != heads {
        config.problem("`num_kv_heads` needs `new_decoder_architecture` or `multi_query`");
    }
    let parallel = config.switch_or("parallel_attn", true);
    let norms = config.count_or("num_ln_in_parallel_attn", if new { 2 } else { 1 });
    let order = match (new, parallel, norms) {
        (true, true, 2) => Order::Parallel,
        (_, true, 1) => Order::ParallelSharedNorm,
        (false, false, _) => Order::Sequential,
        _ => {
            config.problem(
                "`new_decoder_architecture`, `parallel_attn` and `num_ln_in_parallel_attn` do not fit together",
            );
            Order::Sequential
        }
    };
    let bias = config.switch_or("bias", false);
    let alibi = config.switch_or("alibi", false);
    let mut spec = Spec {
        vocabulary: config.count("vocab_size"),
        context: config.count_or("max_position_embeddings", 2048),
        d_model,
        layers: config.count("num_hidden_layers"),
        heads,
        kv_heads,
        d_head: even_head(config, d_model, heads),
        d_mlp: config.count_or("ffn_hidden_size", d_model.saturating_mul(4)),
        epsilon: config.number_or("layer_norm_epsilon", 1e-5),
        order,
        activation: activation(config, "activation", "gelu"),
        biases: Biases { qkv: bias, attention_out: bias, mlp: bias },
        tied: config.switch_or("tie_word_embeddings", true),
        ..Spec::default()
    };
    let context = spec.context;
    set_rotary(config, &mut spec, rope::Defaults::default());
    if alibi {
        (spec.positions, spec.context) = (Positions::Alibi, context);
    }
    spec
}
