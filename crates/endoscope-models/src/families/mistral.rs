//! Mistral (Jiang et al. 2023, arXiv 2310.06825). Particularities: Llama's arithmetic without biases; a window of
//! `sliding_window` keys in every layer, if the file has one.

use super::names::Names;
use super::{Translator, llama, rope, set_rotary, sliding_window};
use crate::config::Config;
use crate::spec::Spec;

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "mistral",
    class: "MistralForCausalLM",
    spec,
    names: |_| Names::LLAMA,
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    let mut spec = llama::base(config, 1e-6);
    set_rotary(config, &mut spec, rope::Defaults::default());
    if let Some(window) = sliding_window(config) {
        spec.windows = vec![Some(window); spec.layers.min(1 << 12)];
    }
    spec
}
