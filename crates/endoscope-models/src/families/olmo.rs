//! OLMo (Groeneveld et al. 2024, arXiv 2402.00838) and OLMo 2 (arXiv 2501.00656). Particularities: Llama's arithmetic, but
//! OLMo's LayerNorm has neither weight nor bias (epsilon 1e-5) and q, k and v may be clamped (`clip_qkv`); OLMo 2 has its
//! RMSNorms only on what attention and MLP write, and one of all heads' queries and keys together.

use super::names::Names;
use super::{Translator, llama, rope, set_rotary};
use crate::config::Config;
use crate::spec::{Biases, Norm, Placement, QkNorm, QkNormOver, Spec};

pub(super) const OLMO: Translator = Translator {
    model_type: "olmo",
    class: "OlmoForCausalLM",
    spec: olmo,
    names: |_| Names::LLAMA,
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

pub(super) const OLMO2: Translator = Translator {
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    spec: olmo2,
    names: |_| Names { ln1_post: "post_attention_layernorm", ln2_post: "post_feedforward_layernorm", ..Names::LLAMA },
    ..OLMO
};

fn base(config: &mut Config) -> Spec {
    let bias = config.switch_or("attention_bias", false);
    let biases = Biases { qkv: bias, attention_out: bias, mlp: false };
    let mut spec = Spec { biases, ..llama::base(config, 1e-5) };
    set_rotary(config, &mut spec, rope::Defaults::default());
    spec
}

fn olmo(config: &mut Config) -> Spec {
    Spec { norm: Norm::PlainLayerNorm, epsilon: 1e-5, clip_qkv: config.number("clip_qkv"), ..base(config) }
}

fn olmo2(config: &mut Config) -> Spec {
    let qk_norm = Some(QkNorm { norm: Norm::RmsNorm, over: QkNormOver::AllHeads });
    Spec { placement: Placement::Post, qk_norm, ..base(config) }
}
