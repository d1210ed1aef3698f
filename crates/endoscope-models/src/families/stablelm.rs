//! StableLM (Bellagente et al. 2024, arXiv 2402.17834). Particularities: Llama's shape with LayerNorm; rotary positions of a
//! quarter of each head; biases of q, k and v (`use_qkv_bias`); attention and MLP side by side after one norm
//! (`use_parallel_residual`); a LayerNorm of each head of its own (`qk_layernorm`).

use super::names::{Names, NormTensors};
use super::{Translator, activation, rope, set_rotary, sizes};
use crate::config::Config;
use crate::spec::{Biases, Mlp, Norm, Order, QkNorm, QkNormOver, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "stablelm",
    class: "StableLmForCausalLM",
    spec,
    names: |_| Names {
        norms: NormTensors::WeightAndBias,
        q_norm: "self_attn.q_layernorm",
        k_norm: "self_attn.k_layernorm",
        ..Names::LLAMA
    },
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["attention_dropout", "hidden_dropout"]);
    let parallel = config.switch_or("use_parallel_residual", false);
    let normalised = config.switch_or("qk_layernorm", false);
    let mut spec = Spec {
        epsilon: config.number_or("layer_norm_eps", 1e-5),
        order: if parallel { Order::ParallelSharedNorm } else { Order::Sequential },
        qk_norm: normalised.then_some(QkNorm { norm: Norm::LayerNorm, over: QkNormOver::OwnHead }),
        mlp: Mlp::Gated,
        activation: activation(config, "hidden_act", "silu"),
        biases: Biases { qkv: config.switch_or("use_qkv_bias", false), ..Biases::default() },
        tied: config.switch_or("tie_word_embeddings", false),
        ..sizes(config)
    };
    set_rotary(config, &mut spec, rope::Defaults { partial: 0.25, ..Default::default() });
    spec
}
