//! GPT-Neo (Black et al. 2021). Particularities: GPT-2's shape with separate q, k and v without biases, scores that are
//! not scaled, and layers that alternate between whole and local attention (`attention_types`, `window_size`).

use serde_json::Value;

use super::names::{Matrices, Names, Qkv};
use super::{Translator, activation, even_head, gpt2};
use crate::config::Config;
use crate::spec::{AttentionScale, Biases, Positions, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "gpt_neo",
    class: "GPTNeoForCausalLM",
    spec,
    names: |_| Names {
        qkv: Qkv::Apart(["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"]),
        attention_out: "attn.attention.out_proj",
        matrices: Matrices::Linear,
        ..Names::GPT2
    },
    ignorable: &[".attn.attention.bias", ".attn.attention.masked_bias"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(gpt2::INERT);
    config.inert(&["resid_dropout", "embed_dropout", "attention_dropout", "classifier_dropout"]);
    let d_model = config.count("hidden_size");
    let heads = config.count("num_heads");
    let layers = config.count("num_layers");
    let window = config.count_or("window_size", 256);
    Spec {
        vocabulary: config.count("vocab_size"),
        context: config.count_or("max_position_embeddings", 2048),
        d_model,
        layers,
        heads,
        kv_heads: heads,
        d_head: even_head(config, d_model, heads),
        d_mlp: config.count_or("intermediate_size", d_model.saturating_mul(4)),
        epsilon: config.number_or("layer_norm_epsilon", 1e-5),
        positions: Positions::Learned,
        attention_scale: AttentionScale::One,
        windows: windows(config, layers, window),
        activation: activation(config, "activation_function", "gelu_new"),
        biases: Biases { qkv: false, attention_out: true, mlp: true },
        tied: config.switch_or("tie_word_embeddings", true),
        ..Spec::default()
    }
}

/// `attention_layers`, a word a layer, or `attention_types`: `[[["global", "local"], 12]]`.
fn windows(config: &mut Config, layers: usize, window: usize) -> Vec<Option<usize>> {
    let types = config.value("attention_types");
    let words = config.words("attention_layers").or_else(|| expanded(&types?, layers));
    let words = words.unwrap_or_else(|| ["global", "local"].map(String::from).into_iter().cycle().take(24).collect());
    if words.len() != layers {
        let named = words.len();
        config.problem(format!("`attention_types` names {named} layers (24 if it is absent), but there are {layers}"));
    }
    if let Some(other) = words.iter().find(|word| !["global", "local"].contains(&word.as_str())) {
        config.problem(format!("`attention_types` holds \"{other}\"; known are global and local"));
    }
    words.iter().map(|word| (word == "local").then_some(window)).collect()
}

fn expanded(types: &Value, layers: usize) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for item in types.as_array()? {
        let [kinds, times] = item.as_array()?.as_slice() else { return None };
        let kinds = kinds.as_array()?.iter().map(|kind| kind.as_str().map(String::from));
        let kinds = kinds.collect::<Option<Vec<_>>>()?;
        for _ in 0..times.as_u64()?.min(layers as u64 + 1) {
            // Too many are a problem that is reported; they need not be kept.
            if words.len() > layers {
                return Some(words);
            }
            words.extend(kinds.iter().cloned());
        }
    }
    Some(words)
}
