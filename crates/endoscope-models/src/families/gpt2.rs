//! GPT-2 (Radford et al. 2019). Particularities: learned positions; LayerNorm; q, k and v in one matrix; weights stored
//! `[in, out]` (transformers' Conv1D); names with or without the prefix `transformer.`; optional scaling of attention by
//! layer (`scale_attn_by_inverse_layer_idx`). `reorder_and_upcast_attn` only changes the precision of 16-bit runs.

use candle_core::Tensor;
use serde_json::{Value, json};

use super::{activation, activation_name, embeddings, layer_norm};
use crate::config::Config;
use crate::decoder::{LayerWeights, Weights};
use crate::error::Result;
use crate::ops::Linear;
use crate::spec::{AttentionScale, Biases, Mlp, Norm, Positions, Spec};
use crate::weights::WeightSource;

/// Translates a config.
pub fn spec(config: &mut Config) -> Spec {
    config.inert(&[
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ]);
    let d_model = config.count("n_embd");
    let heads = config.count("n_head");
    let context = config.count("n_positions");
    if config.count_or("n_ctx", context) != context {
        config.problem("`n_ctx` differs from `n_positions`");
    }
    if heads > 0 && !d_model.is_multiple_of(heads) {
        config.problem(format!("`n_embd` = {d_model} cannot be split into `n_head` = {heads} heads"));
    }
    let scaled = config.switch_or("scale_attn_weights", true);
    let by_layer = config.switch_or("scale_attn_by_inverse_layer_idx", false);
    Spec {
        vocabulary: config.count("vocab_size"),
        context,
        d_model,
        layers: config.count("n_layer"),
        heads,
        kv_heads: heads,
        d_head: d_model / heads.max(1),
        d_mlp: config.count_or("n_inner", d_model.saturating_mul(4)),
        norm: Norm::LayerNorm,
        epsilon: config.number_or("layer_norm_epsilon", 1e-5),
        positions: Positions::Learned,
        attention_scale: match (scaled, by_layer) {
            (true, false) => AttentionScale::InverseSqrtHead,
            (true, true) => AttentionScale::InverseSqrtHeadByLayer,
            (false, false) => AttentionScale::One,
            (false, true) => AttentionScale::ByLayer,
        },
        mlp: Mlp::Plain,
        activation: activation(config, "activation_function", "gelu_new"),
        biases: Biases { qkv: true, attention_out: true, mlp: true },
        tied: config.switch_or("tie_word_embeddings", true),
    }
}

/// Takes all weights.
pub fn weights(spec: &Spec, source: &mut dyn WeightSource) -> Result<Weights> {
    let &Spec { d_model, d_mlp, context, .. } = spec;
    let prefix = if source.has("wte.weight") { "" } else { "transformer." };
    let (embed, unembed) = embeddings(source, spec, &format!("{prefix}wte.weight"))?;
    let pos_embed = source.get(&format!("{prefix}wpe.weight"), &[context, d_model])?;
    let layers = (0..spec.layers)
        .map(|layer| {
            let block = format!("{prefix}h.{layer}");
            let (qkv, qkv_bias) = conv1d(source, &format!("{block}.attn.c_attn"), d_model, 3 * d_model)?;
            let precision = source.precision();
            let third = |at: usize| -> Result<Linear> {
                let bias = qkv_bias.narrow(0, at * d_model, d_model)?;
                Ok(Linear::new(qkv.narrow(1, at * d_model, d_model)?, Some(bias), precision)?)
            };
            let (q, k, v) = (third(0)?, third(1)?, third(2)?);
            drop((qkv, qkv_bias));
            Ok(LayerWeights {
                ln1: layer_norm(source, &format!("{block}.ln_1"), d_model)?,
                q,
                k,
                v,
                o: conv1d_linear(source, &format!("{block}.attn.c_proj"), d_model, d_model)?,
                ln2: layer_norm(source, &format!("{block}.ln_2"), d_model)?,
                gate: conv1d_linear(source, &format!("{block}.mlp.c_fc"), d_model, d_mlp)?,
                up: None,
                down: conv1d_linear(source, &format!("{block}.mlp.c_proj"), d_mlp, d_model)?,
            })
        })
        .collect::<Result<_>>()?;
    let ln_final = layer_norm(source, &format!("{prefix}ln_f"), d_model)?;
    Ok(Weights { embed, pos_embed: Some(pos_embed), layers, ln_final, unembed })
}

/// A linear map stored as `[in, out]` with a bias.
fn conv1d(source: &mut dyn WeightSource, name: &str, inputs: usize, outputs: usize) -> Result<(Tensor, Tensor)> {
    Ok((source.get(&format!("{name}.weight"), &[inputs, outputs])?, source.get(&format!("{name}.bias"), &[outputs])?))
}

fn conv1d_linear(source: &mut dyn WeightSource, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
    let (weight, bias) = conv1d(source, name, inputs, outputs)?;
    Ok(Linear::new(weight, Some(bias), source.precision())?)
}

/// The config.json of `spec`.
pub fn config(spec: &Spec) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
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
