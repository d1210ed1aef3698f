//! StarCoder 2 (Lozhkov et al. 2024, arXiv 2402.19173). Particularities: LayerNorm, plain tanh GELU MLP, biases (`use_bias`),
//! rotary positions, grouped heads, a window in every layer.

use super::names::{MlpNames, Names, NormTensors};
use super::{Translator, activation, rope, set_rotary, sizes, sliding_window};
use crate::config::Config;
use crate::spec::{Biases, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "starcoder2",
    class: "Starcoder2ForCausalLM",
    spec,
    names: |_| Names {
        norms: NormTensors::WeightAndBias,
        mlp: MlpNames::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
        ..Names::LLAMA
    },
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["attention_dropout", "residual_dropout", "embedding_dropout", "norm_type", "mlp_type"]);
    let bias = config.switch_or("use_bias", true);
    let mut spec = Spec {
        epsilon: config.number_or("norm_epsilon", 1e-5),
        activation: activation(config, "hidden_act", "gelu_pytorch_tanh"),
        biases: Biases { qkv: bias, attention_out: bias, mlp: bias },
        tied: config.switch_or("tie_word_embeddings", true),
        ..sizes(config)
    };
    set_rotary(config, &mut spec, rope::Defaults::default());
    if let Some(window) = sliding_window(config) {
        spec.windows = vec![Some(window); spec.layers.min(1 << 12)];
    }
    spec
}
