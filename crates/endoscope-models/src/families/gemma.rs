//! Gemma (arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the language model of Gemma 3 (arXiv 2503.19786).
//! Particularities of all: embeddings times sqrt(hidden); norms whose files hold the weight less 1; tanh GELU in a gated
//! MLP. Gemma 2: norms before and after attention and MLP, soft-caps of scores and logits, a window in every other layer,
//! `query_pre_attn_scalar`. Gemma 3: the same without soft-caps, an RMSNorm of queries and keys, five windowed layers to
//! one, and two rotary bases.

use super::names::{Names, NormTensors};
use super::{Translator, activation, rope, set_rotary, set_windows, sizes, sliding_window};
use crate::config::Config;
use crate::spec::{AttentionScale, Biases, Mlp, Norm, Placement, Positions, QkNorm, QkNormOver, Spec};

pub(super) const GEMMA: Translator = Translator {
    model_type: "gemma",
    class: "GemmaForCausalLM",
    spec: gemma,
    names: |_| Names { norms: NormTensors::WeightLessOne, ..Names::LLAMA },
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

pub(super) const GEMMA2: Translator = Translator {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    spec: gemma2,
    names: |_| Names {
        ln1_post: "post_attention_layernorm",
        ln2: "pre_feedforward_layernorm",
        ln2_post: "post_feedforward_layernorm",
        norms: NormTensors::WeightLessOne,
        ..Names::LLAMA
    },
    ..GEMMA
};

pub(super) const GEMMA3: Translator =
    Translator { model_type: "gemma3_text", class: "Gemma3ForCausalLM", spec: gemma3, ..GEMMA2 };

fn base(config: &mut Config, activation_key: &str) -> Spec {
    config.inert(&["attention_dropout"]);
    if config.switch_or("use_bidirectional_attention", false) {
        config.problem("`use_bidirectional_attention` is true: only causal attention is supported");
    }
    let bias = config.switch_or("attention_bias", false);
    let sizes = sizes(config);
    Spec {
        norm: Norm::RmsNorm,
        epsilon: config.number_or("rms_norm_eps", 1e-6),
        mlp: Mlp::Gated,
        activation: activation(config, activation_key, "gelu_pytorch_tanh"),
        biases: Biases { qkv: bias, attention_out: bias, mlp: false },
        embedding_scale: (sizes.d_model as f64).sqrt(),
        tied: config.switch_or("tie_word_embeddings", true),
        ..sizes
    }
}

fn gemma(config: &mut Config) -> Spec {
    // The first files say `gelu` and mean its tanh form; later ones say so in `hidden_activation`, which wins.
    let key = if config.peek("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let erf = config.peek(key).is_some_and(|name| name == "gelu");
    let mut spec = base(config, key);
    config.inert(&["hidden_act", "hidden_activation"]);
    if erf {
        spec.activation = crate::spec::Activation::GeluTanh;
    }
    set_rotary(config, &mut spec, rope::Defaults::default());
    spec
}

/// What Gemma 2 and 3 share.
fn later(config: &mut Config) -> Spec {
    config.inert(&["cache_implementation", "hidden_act"]);
    Spec {
        placement: Placement::Sandwich,
        attention_scale: AttentionScale::Value(1. / (config.count_or("query_pre_attn_scalar", 256) as f64).sqrt()),
        ..base(config, "hidden_activation")
    }
}

fn gemma2(config: &mut Config) -> Spec {
    let mut spec = later(config);
    spec.attention_softcap = soft_cap(config, "attn_logit_softcapping", 50.);
    spec.logit_softcap = soft_cap(config, "final_logit_softcapping", 30.);
    set_rotary(config, &mut spec, rope::Defaults::default());
    let window = config.count_or("sliding_window", 4096);
    set_windows(config, &mut spec, Some(window), |layer| layer.is_multiple_of(2));
    spec
}

fn gemma3(config: &mut Config) -> Spec {
    let mut spec = later(config);
    spec.attention_softcap = config.number("attn_logit_softcapping");
    spec.logit_softcap = config.number("final_logit_softcapping");
    spec.qk_norm = Some(QkNorm { norm: Norm::RmsNorm, over: QkNormOver::Head });
    let pattern = config.count_or("sliding_window_pattern", 6).max(1);
    let pattern = config.count_or("_sliding_window_pattern", pattern).max(1);
    let window = sliding_window(config).or(Some(4096));
    set_windows(config, &mut spec, window, |layer| !(layer + 1).is_multiple_of(pattern));
    let kinds = rope::two_rotaries(config, spec.d_head, spec.context, [1e6, 1e4]);
    let layers = (0..spec.layers.min(1 << 12)).map(|layer| Some(usize::from(spec.window(layer).is_some())));
    spec.positions = Positions::Rotary { kinds: kinds.into(), layers: layers.collect() };
    spec
}

/// A soft-cap that a file can switch off by null.
fn soft_cap(config: &mut Config, key: &str, default: f64) -> Option<f64> {
    match config.is_null(key) {
        true => config.number(key),
        false => Some(config.number_or(key, default)),
    }
}
