//! GPT-BigCode: SantaCoder and StarCoder (Li et al. 2023, arXiv 2305.06161). Particularities: GPT-2 with one key/value
//! head for all (`multi_query`; else q, k and v head by head) and matrices stored `[out, in]`.

use super::names::{Matrices, Names, Qkv};
use super::{Translator, activation, gpt2};
use crate::config::Config;
use crate::spec::{AttentionScale, Biases, Positions, Spec};

pub(super) const TRANSLATOR: Translator = Translator {
    model_type: "gpt_bigcode",
    class: "GPTBigCodeForCausalLM",
    spec,
    names: |spec| Names {
        qkv: match spec.kv_heads == spec.heads {
            true => Qkv::Groups("attn.c_attn"),
            false => Qkv::Blocks("attn.c_attn"),
        },
        matrices: Matrices::Linear,
        ..Names::GPT2
    },
    ignorable: &[".attn.bias", ".attn.masked_bias"],
    config: None,
};

fn spec(config: &mut Config) -> Spec {
    // These only change the precision of 16-bit runs, or how the reference runs.
    config.inert(&[
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
        "inference_runner",
        "max_batch_size",
        "max_sequence_length",
        "pad_key_length",
        "pre_allocate_kv_cache",
        "validate_runner_input",
    ]);
    let sizes = gpt2::sizes(config);
    let multi_query = config.switch_or("multi_query", true);
    let kv_heads = if multi_query { 1 } else { sizes.heads };
    if config.count_or("num_key_value_heads", kv_heads) != kv_heads {
        config.problem("`num_key_value_heads` contradicts `multi_query`");
    }
    Spec {
        kv_heads,
        positions: Positions::Learned,
        attention_scale: match config.switch_or("scale_attn_weights", true) {
            true => AttentionScale::InverseSqrtHead,
            false => AttentionScale::One,
        },
        activation: activation(config, "activation_function", "gelu_pytorch_tanh"),
        biases: Biases { qkv: true, attention_out: true, mlp: true },
        tied: config.switch_or("tie_word_embeddings", true),
        ..sizes
    }
}
