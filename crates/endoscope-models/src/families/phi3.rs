//! Phi 3 (arXiv 2404.14219) and 4. Particularities: Llama's arithmetic with q, k and v in one matrix and gate and up in
//! another; a window in every layer; LongRoPE in the long-context models, of which the original context is supported.

use super::names::{MlpNames, Names, Qkv};
use super::{Translator, llama, rope, set_rotary, sliding_window};
use crate::config::Config;
use crate::spec::Spec;

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    spec,
    names: |_| Names {
        qkv: Qkv::Blocks("self_attn.qkv_proj"),
        mlp: MlpNames::Fused { gate_up: "mlp.gate_up_proj", down: "mlp.down_proj" },
        ..Names::LLAMA
    },
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["embd_pdrop", "resid_pdrop", "auto_map"]);
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        if config.switch_or(key, false) {
            config.problem(format!("`{key}` is true: Phi 3 with biases is not known"));
        }
    }
    let mut spec = llama::base(config, 1e-5);
    set_rotary(config, &mut spec, rope::Defaults::default());
    if let Some(window) = sliding_window(config) {
        spec.windows = vec![Some(window); spec.layers.min(1 << 12)];
    }
    spec
}
