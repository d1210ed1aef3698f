//! Mixtral (Jiang et al. 2024, arXiv 2401.04088). Particularities: Mistral with experts in the place of each MLP, of which
//! `num_experts_per_tok` read a position, their probabilities divided by their sum.

use super::names::{MlpNames, Names};
use super::{Translator, llama, rope, set_rotary, sliding_window};
use crate::config::Config;
use crate::spec::{ExpertWeights, Experts, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    spec,
    names: |_| Names {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        expert: MlpNames::Gated { gate: "w1", up: "w3", down: "w2" },
        ..Names::LLAMA
    },
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    // The noise is of training.
    config.inert(&["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"]);
    let mut spec = llama::base(config, 1e-5);
    set_rotary(config, &mut spec, rope::Defaults { base: 1e6, ..Default::default() });
    if let Some(window) = sliding_window(config) {
        spec.windows = vec![Some(window); spec.layers.min(1 << 12)];
    }
    spec.experts = Some(Experts {
        count: config.count_or("num_local_experts", 8),
        active: config.count_or("num_experts_per_tok", 2),
        d_mlp: spec.d_mlp,
        weights: ExpertWeights::Renormalised,
        dense_layers: Vec::new(),
    });
    spec
}
