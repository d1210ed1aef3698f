//! Llama (Touvron et al. 2023, arXiv 2302.13971; Llama 3: arXiv 2407.21783) and models with the same arithmetic, SmolLM
//! among them. Particularities: RMSNorm; rotary positions, halves paired, perhaps scaled; grouped key/value heads; gated
//! MLP; `head_dim` may differ from hidden / heads.

use serde_json::{Value, json};

use super::names::Names;
use super::{Translator, activation, activation_name, rope, set_rotary, sizes};
use crate::config::Config;
use crate::spec::{Biases, Mlp, Norm, Positions, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "llama",
    class: "LlamaForCausalLM",
    spec,
    names: |_| Names::LLAMA,
    ignorable: &[".rotary_emb.inv_freq"],
    config: Some(config),
};

/// What Llama's descendants share: all but the rotary positions and windows.
pub(super) fn base(config: &mut Config, epsilon: f64) -> Spec {
    config.inert(&["attention_dropout", "pretraining_tp"]);
    Spec {
        norm: Norm::RmsNorm,
        epsilon: config.number_or("rms_norm_eps", epsilon),
        mlp: Mlp::Gated,
        activation: activation(config, "hidden_act", "silu"),
        tied: config.switch_or("tie_word_embeddings", false),
        ..sizes(config)
    }
}

fn spec(config: &mut Config) -> Spec {
    // Switches of other models' code that files converted to Llama's carry.
    config.inert(&["is_llama_config", "rope_interleaved"]);
    let attention_bias = config.switch_or("attention_bias", false);
    let mlp = config.switch_or("mlp_bias", false);
    let biases = Biases { qkv: attention_bias, attention_out: attention_bias, mlp };
    let mut spec = Spec { biases, ..base(config, 1e-6) };
    set_rotary(config, &mut spec, rope::Defaults::default());
    spec
}

/// The config.json of `spec`.
pub(super) fn config(spec: &Spec) -> Value {
    let base = match &spec.positions {
        Positions::Rotary { kinds, .. } => kinds.first().map_or(0., |kind| kind.base),
        _ => 0.,
    };
    json!({
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.context,
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_mlp,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.d_head,
        "hidden_act": activation_name(spec.activation),
        "rms_norm_eps": spec.epsilon,
        "rope_theta": base,
        "attention_bias": spec.biases.qkv,
        "mlp_bias": spec.biases.mlp,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": null,
        "eos_token_id": null,
    })
}
