//! Mistral (Jiang et al. 2023, arXiv 2310.06825). Particularities: Llama's arithmetic without biases; a window of
//! `sliding_window` keys in every layer (4096 if the file is silent), none if that is null.

use super::names::Names;
use super::{Translator, llama, rope, set_rotary};
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
    let window = config.count_or("sliding_window", 4096);
    if !config.is_null("sliding_window") {
        spec.windows = vec![Some(window); spec.layers.min(1 << 12)];
    }
    spec
}
