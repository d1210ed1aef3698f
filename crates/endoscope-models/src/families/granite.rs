//! Granite (IBM 2024). Particularities: Llama's arithmetic with four factors: of the embedding, of what attention and MLP
//! write, of the scores (in the place of 1 / sqrt(head)), and a divisor of the logits.

use super::names::Names;
use super::{Translator, llama, rope, set_rotary};
use crate::config::Config;
use crate::spec::{AttentionScale, Biases, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "granite",
    class: "GraniteForCausalLM",
    spec,
    names: |_| Names::LLAMA,
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    let attention_bias = config.switch_or("attention_bias", false);
    let mlp = config.switch_or("mlp_bias", false);
    let mut spec = Spec {
        attention_scale: AttentionScale::Value(config.number_or("attention_multiplier", 1.)),
        biases: Biases { qkv: attention_bias, attention_out: attention_bias, mlp },
        embedding_scale: config.number_or("embedding_multiplier", 1.),
        residual_scale: config.number_or("residual_multiplier", 1.),
        logit_scale: 1. / config.number_or("logits_scaling", 1.),
        ..llama::base(config, 1e-6)
    };
    set_rotary(config, &mut spec, rope::Defaults::default());
    spec
}
