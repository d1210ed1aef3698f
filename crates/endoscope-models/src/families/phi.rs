//! Phi 1, 1.5 (Li et al. 2023, arXiv 2309.05463) and 2. Particularities: attention and MLP side by side after one LayerNorm;
//! rotary positions of a part of each head; biases everywhere, the unembedding's included; `qk_layernorm`.

use super::names::{MlpNames, Names, NormTensors};
use super::{Translator, activation, rope, set_rotary, sizes};
use crate::config::Config;
use crate::spec::{Biases, Norm, Order, QkNorm, QkNormOver, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "phi",
    class: "PhiForCausalLM",
    spec,
    names: |_| Names {
        ln_final: "final_layernorm",
        norms: NormTensors::WeightAndBias,
        q_norm: "self_attn.q_layernorm",
        k_norm: "self_attn.k_layernorm",
        attention_out: "self_attn.dense",
        mlp: MlpNames::Plain { up: "mlp.fc1", down: "mlp.fc2" },
        unembed_bias: true,
        ..Names::LLAMA
    },
    ignorable: &[".rotary_emb.inv_freq"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["attention_dropout", "embd_pdrop", "resid_pdrop"]);
    let normalised = config.switch_or("qk_layernorm", false);
    let mut spec = Spec {
        epsilon: config.number_or("layer_norm_eps", 1e-5),
        order: Order::ParallelSharedNorm,
        qk_norm: normalised.then_some(QkNorm { norm: Norm::LayerNorm, over: QkNormOver::Head }),
        activation: activation(config, "hidden_act", "gelu_new"),
        biases: Biases { qkv: true, attention_out: true, mlp: true },
        tied: config.switch_or("tie_word_embeddings", false),
        ..sizes(config)
    };
    set_rotary(config, &mut spec, rope::Defaults { partial: 0.5, ..Default::default() });
    spec
}
