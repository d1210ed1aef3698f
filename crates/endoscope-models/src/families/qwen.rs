//! Qwen 2 and 2.5 (Yang et al. 2024, arXiv 2407.10671 and 2412.15115): Llama's arithmetic with biases of q, k and v, and
//! windows in the layers from `max_window_layers` on (`use_sliding_window`). Qwen 3 (arXiv 2505.09388): no biases by
//! default, an RMSNorm of each head's queries and keys, and, in `qwen3_moe`, experts but in `mlp_only_layers`.

use super::names::Names;
use super::{Translator, llama, rope, set_rotary, set_windows, sliding_window};
use crate::config::Config;
use crate::spec::{Biases, ExpertWeights, Experts, Norm, QkNorm, QkNormOver, Spec};

pub(super) const QWEN2: Translator = Translator {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    spec: qwen2,
    names: |_| Names::LLAMA,
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

pub(super) const QWEN3: Translator =
    Translator { model_type: "qwen3", class: "Qwen3ForCausalLM", spec: qwen3, ..QWEN2 };

pub(super) const QWEN3_MOE: Translator =
    Translator { model_type: "qwen3_moe", class: "Qwen3MoeForCausalLM", spec: qwen3_moe, ..QWEN2 };

fn qwen2(config: &mut Config) -> Spec {
    let mut spec = base(config);
    spec.biases.qkv = true;
    windows_from(config, &mut spec);
    spec
}

fn qwen3(config: &mut Config) -> Spec {
    let mut spec = normalised(config);
    windows_from(config, &mut spec);
    spec
}

fn qwen3_moe(config: &mut Config) -> Spec {
    config.inert(&["output_router_logits", "router_aux_loss_coef", "max_window_layers"]);
    let mut spec = normalised(config);
    let windowed = config.switch_or("use_sliding_window", false);
    if let Some(window) = sliding_window(config).filter(|_| windowed) {
        spec.windows = vec![Some(window); spec.layers.min(1 << 12)];
    }
    let step = config.count_or("decoder_sparse_step", 1);
    let dense = config.counts("mlp_only_layers").unwrap_or_default();
    let is_dense = |layer: &usize| dense.contains(layer) || step == 0 || !(layer + 1).is_multiple_of(step);
    // Two names of one number.
    let named = config.optional_count("num_local_experts").filter(|_| config.peek("num_experts").is_none());
    let count = named.unwrap_or_else(|| config.count_or("num_experts", 128));
    let weights = match config.switch_or("norm_topk_prob", false) {
        true => ExpertWeights::Renormalised,
        false => ExpertWeights::Probabilities,
    };
    spec.experts = Some(Experts {
        count,
        active: config.count_or("num_experts_per_tok", 8),
        d_mlp: config.count_or("moe_intermediate_size", 768),
        weights,
        dense_layers: (0..spec.layers.min(1 << 12)).filter(is_dense).collect(),
    });
    spec
}

fn base(config: &mut Config) -> Spec {
    let mut spec = llama::base(config, 1e-6);
    set_rotary(config, &mut spec, rope::Defaults::default());
    spec
}

fn normalised(config: &mut Config) -> Spec {
    let bias = config.switch_or("attention_bias", false);
    Spec {
        biases: Biases { qkv: bias, attention_out: bias, mlp: false },
        qk_norm: Some(QkNorm { norm: Norm::RmsNorm, over: QkNormOver::Head }),
        ..base(config)
    }
}

fn windows_from(config: &mut Config, spec: &mut Spec) {
    let windowed = config.switch_or("use_sliding_window", false);
    let window = sliding_window(config).filter(|_| windowed);
    let from = config.count_or("max_window_layers", 28);
    set_windows(config, spec, window, |layer| window.is_some() && layer >= from);
}
