//! The parity test can fail: a model that is wrong in one small way does not reproduce the goldens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;
use common::*;
use endoscope_models::Model;
use endoscope_models::decoder::capture_everything;
use endoscope_net::{Inputs, Network};
use serde_json::{Value, json};

type Weights = HashMap<String, Tensor>;

/// The largest difference at any site between the goldens and the model in `directory`.
fn parity(directory: &Path, golden: &Path) -> f32 {
    let golden = load(golden);
    let model = Model::open(directory).unwrap();
    let inputs = Inputs::tokens(tokens(&golden)).unwrap();
    let run = model.decoder.run(&inputs, &capture_everything()).unwrap();
    // A wrong head count changes shapes too; only the logits are comparable then.
    let comparable = golden.iter().filter(|(name, _)| *name != "tokens").filter_map(|(name, expected)| {
        let found = run.captured.get(name).unwrap();
        (found.dims() == expected.dims()).then(|| difference(found, expected))
    });
    comparable.fold(0., f32::max)
}

fn check(name: &str, what: &str, mutate: impl FnOnce(&mut Weights, &mut Value)) {
    let copy = copy(&goldens().join(name));
    let golden = goldens().join(name).join("seq37.safetensors");
    let honest = parity(copy.path(), &golden);
    assert!(honest <= SITE_TOLERANCE, "{name}: differs by {honest:e} before the mutation");
    let (weights_path, config_path) = (copy.path().join("model.safetensors"), copy.path().join("config.json"));
    let mut weights = load(&weights_path);
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&config_path).unwrap()).unwrap();
    mutate(&mut weights, &mut config);
    candle_core::safetensors::save(&weights, &weights_path).unwrap();
    std::fs::write(&config_path, config.to_string()).unwrap();
    let mutated = parity(copy.path(), &golden);
    // Well above the tolerance: the mutation is found by its size, not by luck.
    assert!(mutated > 3. * SITE_TOLERANCE, "{name}, {what}: the parity test does not notice ({mutated:e})");
}

fn swap(a: &'static str, b: &'static str) -> impl FnOnce(&mut Weights, &mut Value) {
    move |weights, _| {
        let (first, second) = (weights[a].clone(), weights[b].clone());
        assert_eq!(first.dims(), second.dims());
        weights.insert(a.into(), second);
        weights.insert(b.into(), first);
    }
}

fn edit(
    name: &'static str,
    edit: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
) -> impl FnOnce(&mut Weights, &mut Value) {
    move |weights, _| {
        let edited = edit(&weights[name]).unwrap().contiguous().unwrap();
        assert_eq!(edited.dims(), weights[name].dims());
        weights.insert(name.into(), edited);
    }
}

fn set(key: &'static str, value: Value) -> impl FnOnce(&mut Weights, &mut Value) {
    move |_, config| {
        assert_ne!(config[key], value);
        config[key] = value;
    }
}

/// The columns of q, k and v in another order.
fn thirds(order: [usize; 3]) -> impl FnOnce(&Tensor) -> candle_core::Result<Tensor> {
    move |qkv| {
        let size = qkv.dim(1)? / 3;
        let third = |&at: &usize| qkv.narrow(1, at * size, size);
        Tensor::cat(&order.iter().map(third).collect::<candle_core::Result<Vec<_>>>()?, 1)
    }
}

#[test]
fn wrong_weights_of_gpt2_are_noticed() {
    let name = "gpt2-odd";
    check(name, "q and k swapped", edit("transformer.h.1.attn.c_attn.weight", thirds([1, 0, 2])));
    check(name, "k and v swapped", edit("transformer.h.0.attn.c_attn.weight", thirds([0, 2, 1])));
    check(name, "square matrix transposed", edit("transformer.h.0.attn.c_proj.weight", |w| w.t()));
    check(
        name,
        "attention norm and MLP norm swapped",
        swap("transformer.h.1.ln_1.weight", "transformer.h.1.ln_2.weight"),
    );
    check(name, "layers swapped", swap("transformer.h.0.mlp.c_fc.weight", "transformer.h.2.mlp.c_fc.weight"));
    for bias in ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2"] {
        let bias: &'static str = format!("transformer.h.2.{bias}.bias").leak();
        check(name, &format!("{bias} dropped"), edit(bias, Tensor::zeros_like));
    }
    check(name, "the last norm's bias dropped", edit("transformer.ln_f.bias", Tensor::zeros_like));
    let shifted = |w: &Tensor| Tensor::cat(&[w.narrow(0, 1, w.dim(0)? - 1)?, w.narrow(0, 0, 1)?], 0);
    check(name, "positions counted from 1", edit("transformer.wpe.weight", shifted));
    check(
        name,
        "a matrix rounded to bf16",
        edit("transformer.h.1.mlp.c_proj.weight", |w| {
            w.to_dtype(candle_core::DType::BF16)?.to_dtype(candle_core::DType::F32)
        }),
    );
}

#[test]
fn wrong_switches_of_gpt2_are_noticed() {
    let name = "gpt2-odd";
    check(name, "epsilon", set("layer_norm_epsilon", json!(1e-4)));
    check(name, "head count", set("n_head", json!(4)));
    check(name, "exact GELU", set("activation_function", json!("gelu")));
    check(name, "unscaled attention", set("scale_attn_weights", json!(false)));
    check(name, "attention scaled by layer", set("scale_attn_by_inverse_layer_idx", json!(true)));
}

#[test]
fn wrong_weights_of_llama_are_noticed() {
    let name = "llama-grouped";
    check(
        name,
        "k and v swapped",
        swap("model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.weight"),
    );
    check(
        name,
        "gate and up swapped",
        swap("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"),
    );
    let norms = ("model.layers.2.input_layernorm.weight", "model.layers.2.post_attention_layernorm.weight");
    check(name, "norms swapped", swap(norms.0, norms.1));
    check(name, "embedding and unembedding swapped", swap("model.embed_tokens.weight", "lm_head.weight"));
    for bias in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"] {
        let bias: &'static str = format!("model.layers.0.{bias}.bias").leak();
        check(name, &format!("{bias} dropped"), edit(bias, Tensor::zeros_like));
    }
    // Rotary pairs neighbours (as Llama's original files do) instead of halves.
    check(
        name,
        "interleaved rotary order",
        edit("model.layers.0.self_attn.q_proj.weight", |w| {
            let (rows, d_model) = w.dims2()?;
            w.reshape((rows / 8, 4, 2, d_model))?.transpose(1, 2)?.contiguous()?.reshape((rows, d_model))
        }),
    );
}

#[test]
fn wrong_switches_of_llama_are_noticed() {
    let name = "llama-grouped";
    check(name, "epsilon", set("rms_norm_eps", json!(1e-5)));
    check(name, "rotary base", set("rope_parameters", json!({"rope_theta": 10100.0, "rope_type": "default"})));
    check(name, "activation", set("hidden_act", json!("gelu")));
    check(name, "tied unembedding", set("tie_word_embeddings", json!(true)));
    check(name, "heads of another width", |_, config| {
        config["head_dim"] = json!(16);
        config["num_attention_heads"] = json!(3);
        config["num_key_value_heads"] = json!(1);
    });
}
