//! SmolLM 3 (Hugging Face 2025). Particularities: Llama's arithmetic, but every fourth layer has no positions
//! (`no_rope_layers`: 1 = rotary); windows in those without, if `use_sliding_window`.

use serde_json::Value;

use super::names::Names;
use super::{Translator, llama, rope, set_rotary, set_windows, sliding_window};
use crate::config::Config;
use crate::spec::{Biases, Positions, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    spec,
    names: |_| Names::LLAMA,
    ignorable: &[".rotary_emb.inv_freq"],
    config: Some(config),
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["max_window_layers"]);
    let attention_bias = config.switch_or("attention_bias", false);
    let mlp = config.switch_or("mlp_bias", false);
    let tied = config.switch_or("tie_word_embeddings", true);
    let biases = Biases { qkv: attention_bias, attention_out: attention_bias, mlp };
    let mut spec = Spec { biases, tied, ..llama::base(config, 1e-6) };
    set_rotary(config, &mut spec, rope::Defaults { base: 2e6, ..Default::default() });
    let interval = config.count_or("no_rope_layer_interval", 4).max(1);
    let layers = 0..spec.layers.min(1 << 12);
    let turned = config.counts("no_rope_layers");
    let turned =
        turned.unwrap_or_else(|| layers.map(|layer| usize::from(!(layer + 1).is_multiple_of(interval))).collect());
    if turned.len() != spec.layers {
        config.problem(format!("`no_rope_layers` names {} layers, but there are {}", turned.len(), spec.layers));
    }
    let windowed = config.switch_or("use_sliding_window", false);
    let window = sliding_window(config).filter(|_| windowed);
    set_windows(config, &mut spec, window, |layer| window.is_some() && turned.get(layer) == Some(&0));
    if let Positions::Rotary { layers, .. } = &mut spec.positions {
        *layers = turned.iter().map(|&turned| (turned != 0).then_some(0)).collect();
    }
    spec
}

fn config(spec: &Spec) -> Value {
    let turned = |layer| match &spec.positions {
        Positions::Rotary { layers, .. } => layers.get(layer).is_none_or(Option::is_some),
        _ => false,
    };
    let mut config = llama::config(spec);
    if let Value::Object(keys) = &mut config {
        keys.insert("no_rope_layers".into(), (0..spec.layers).map(|layer| usize::from(turned(layer))).collect());
        keys.insert("use_sliding_window".into(), false.into());
        // transformers' own default is the token 128004, which a small vocabulary does not have.
        keys.insert("pad_token_id".into(), Value::Null);
    }
    config
}
