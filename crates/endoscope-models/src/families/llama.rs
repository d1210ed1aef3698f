//! Llama (Touvron et al. 2023, arXiv 2302.13971) and models with the same arithmetic. Particularities: RMSNorm; rotary
//! positions in the half-split order; grouped key/value heads; gated MLP; `head_dim` may differ from hidden / heads;
//! `rope_theta` stands at the top (transformers 4) or in `rope_parameters` (transformers 5). Rope scaling is refused.

use serde_json::{Value, json};

use super::{activation, activation_name, embeddings, linear, rms_norm};
use crate::config::Config;
use crate::decoder::{LayerWeights, Weights};
use crate::error::Result;
use crate::spec::{AttentionScale, Biases, Mlp, Norm, Positions, Spec};
use crate::weights::WeightSource;

/// Translates a config.
pub fn spec(config: &mut Config) -> Spec {
    config.inert(&["attention_dropout", "pretraining_tp"]);
    let d_model = config.count("hidden_size");
    let heads = config.count("num_attention_heads");
    let kv_heads = config.count_or("num_key_value_heads", heads);
    if config.peek("head_dim").is_none() && heads > 0 && !d_model.is_multiple_of(heads) {
        config.problem(format!("`hidden_size` = {d_model} cannot be split into `num_attention_heads` = {heads} heads"));
    }
    let attention_bias = config.switch_or("attention_bias", false);
    let mlp_bias = config.switch_or("mlp_bias", false);
    Spec {
        vocabulary: config.count("vocab_size"),
        context: config.count_or("max_position_embeddings", 2048),
        d_model,
        layers: config.count("num_hidden_layers"),
        heads,
        kv_heads,
        d_head: config.count_or("head_dim", d_model / heads.max(1)),
        d_mlp: config.count("intermediate_size"),
        norm: Norm::RmsNorm,
        epsilon: config.number_or("rms_norm_eps", 1e-6),
        positions: Positions::Rotary { base: rotary_base(config) },
        attention_scale: AttentionScale::InverseSqrtHead,
        mlp: Mlp::Gated,
        activation: activation(config, "hidden_act", "silu"),
        biases: Biases { qkv: attention_bias, attention_out: attention_bias, mlp: mlp_bias },
        tied: config.switch_or("tie_word_embeddings", false),
    }
}

fn rotary_base(config: &mut Config) -> f64 {
    let mut base = config.number_or("rope_theta", 10000.);
    for key in ["rope_parameters", "rope_scaling"] {
        for (name, value) in config.object(key).into_iter().flatten() {
            match (name.as_str(), value.as_f64(), value.as_str()) {
                ("rope_theta", Some(theta), _) => base = theta,
                ("rope_type" | "type", _, Some("default")) => {}
                _ => config.problem(format!("`{key}.{name}` = {value}: rope scaling is not supported yet")),
            }
        }
    }
    base
}

/// Takes all weights.
pub fn weights(spec: &Spec, source: &mut dyn WeightSource) -> Result<Weights> {
    let &Spec { d_model, d_mlp, biases, .. } = spec;
    let (queries, keys) = (spec.heads * spec.d_head, spec.kv_heads * spec.d_head);
    let prefix = if source.has("embed_tokens.weight") { "" } else { "model." };
    let (embed, unembed) = embeddings(source, spec, &format!("{prefix}embed_tokens.weight"))?;
    let layers = (0..spec.layers)
        .map(|layer| {
            let block = format!("{prefix}layers.{layer}");
            let mut linear =
                |name: &str, inputs, outputs, bias| linear(source, &format!("{block}.{name}"), inputs, outputs, bias);
            let q = linear("self_attn.q_proj", d_model, queries, biases.qkv)?;
            let k = linear("self_attn.k_proj", d_model, keys, biases.qkv)?;
            let v = linear("self_attn.v_proj", d_model, keys, biases.qkv)?;
            let o = linear("self_attn.o_proj", queries, d_model, biases.attention_out)?;
            let gate = linear("mlp.gate_proj", d_model, d_mlp, biases.mlp)?;
            let up = Some(linear("mlp.up_proj", d_model, d_mlp, biases.mlp)?);
            let down = linear("mlp.down_proj", d_mlp, d_model, biases.mlp)?;
            let ln1 = rms_norm(source, &format!("{block}.input_layernorm"), d_model)?;
            let ln2 = rms_norm(source, &format!("{block}.post_attention_layernorm"), d_model)?;
            Ok(LayerWeights { ln1, q, k, v, o, ln2, gate, up, down })
        })
        .collect::<Result<_>>()?;
    let ln_final = rms_norm(source, &format!("{prefix}norm"), d_model)?;
    Ok(Weights { embed, pos_embed: None, layers, ln_final, unembed })
}

/// The config.json of `spec`.
pub fn config(spec: &Spec) -> Value {
    let base = match spec.positions {
        Positions::Rotary { base } => base,
        Positions::Learned => 0.,
    };
    json!({
        "architectures": ["LlamaForCausalLM"],
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
