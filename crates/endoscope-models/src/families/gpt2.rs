//! GPT-2 (Radford et al. 2019). Particularities: learned positions; LayerNorm; q, k and v in one matrix; weights stored
//! `[in, out]` (transformers' Conv1D); names with or without the prefix `transformer.`; optional scaling of attention by
//! layer (`scale_attn_by_inverse_layer_idx`). `reorder_and_upcast_attn` only changes the precision of 16-bit runs.

use serde_json::{Value, json};

use super::names::Names;
use super::{Translator, activation, activation_name, even_head};
use crate::config::Config;
use crate::spec::{AttentionScale, Biases, Positions, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    spec,
    names: |_| Names::GPT2,
    ignorable: &[".attn.bias", ".attn.masked_bias"],
    config: Some(config),
};

/// Keys of GPT-2's descendants that do not change the logits.
pub(super) const INERT: &[&str] = &[
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
];

/// The sizes, under GPT-2's keys.
pub(super) fn sizes(config: &mut Config) -> Spec {
    config.inert(INERT);
    let d_model = config.count("n_embd");
    let heads = config.count("n_head");
    let context = config.count("n_positions");
    if config.count_or("n_ctx", context) != context {
        config.problem("`n_ctx` differs from `n_positions`");
    }
    Spec {
        vocabulary: config.count("vocab_size"),
        context,
        d_model,
        layers: config.count("n_layer"),
        heads,
        kv_heads: heads,
        d_head: even_head(config, d_model, heads),
        d_mlp: config.count_or("n_inner", d_model.saturating_mul(4)),
        epsilon: config.number_or("layer_norm_epsilon", 1e-5),
        ..Spec::default()
    }
}

fn spec(config: &mut Config) -> Spec {
    config.inert(&["reorder_and_upcast_attn"]);
    let scaled = config.switch_or("scale_attn_weights", true);
    let by_layer = config.switch_or("scale_attn_by_inverse_layer_idx", false);
    Spec {
        positions: Positions::Learned,
        attention_scale: match (scaled, by_layer) {
            (true, false) => AttentionScale::InverseSqrtHead,
            (true, true) => AttentionScale::InverseSqrtHeadByLayer,
            (false, false) => AttentionScale::One,
            (false, true) => AttentionScale::ByLayer,
        },
        activation: activation(config, "activation_function", "gelu_new"),
        biases: Biases { qkv: true, attention_out: true, mlp: true },
        tied: config.switch_or("tie_word_embeddings", true),
        ..sizes(config)
    }
}

/// The config.json of `spec`.
fn config(spec: &Spec) -> Value {
    json!({
        "vocab_size": spec.vocabulary,
        "n_positions": spec.context,
        "n_embd": spec.d_model,
        "n_layer": spec.layers,
        "n_head": spec.heads,
        "n_inner": spec.d_mlp,
        "layer_norm_epsilon": spec.epsilon,
        "activation_function": activation_name(spec.activation),
        "scale_attn_weights": matches!(spec.attention_scale, AttentionScale::InverseSqrtHead | AttentionScale::InverseSqrtHeadByLayer),
        "scale_attn_by_inverse_layer_idx": matches!(spec.attention_scale, AttentionScale::ByLayer | AttentionScale::InverseSqrtHeadByLayer),
        "tie_word_embeddings": spec.tied,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": null,
        "eos_token_id": null,
    })
}
