//! GPT-J (Wang and Komatsuzaki 2021). Particularities: attention and MLP side by side after one LayerNorm; rotary
//! positions of the first `rotary_dim` dimensions, neighbours paired; no biases in attention; an unembedding with one.

use super::names::{Matrices, MlpNames, Names, Qkv};
use super::{Translator, activation, gpt2};
use crate::config::Config;
use crate::rotary::{Pairs, Rotary};
use crate::spec::{Biases, Order, Positions, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "gptj",
    class: "GPTJForCausalLM",
    spec,
    names: |_| Names {
        qkv: Qkv::Apart(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
        attention_out: "attn.out_proj",
        mlp: MlpNames::Plain { up: "mlp.fc_in", down: "mlp.fc_out" },
        unembed_bias: true,
        matrices: Matrices::Linear,
        ..Names::GPT2
    },
    ignorable: &[".attn.bias", ".attn.masked_bias"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    config.inert(&["scale_attn_weights", "rotary"]);
    let sizes = gpt2::sizes(config);
    let dims = config.count_or("rotary_dim", 64);
    let rotary = Rotary { dims, pairs: Pairs::Neighbours, ..Rotary::plain(10_000., sizes.d_head) };
    Spec {
        order: Order::ParallelSharedNorm,
        positions: Positions::rotary(rotary),
        activation: activation(config, "activation_function", "gelu_new"),
        biases: Biases { qkv: false, attention_out: false, mlp: true },
        tied: config.switch_or("tie_word_embeddings", false),
        ..sizes
    }
}
