//! What opening a model takes: memory of at most 1.15 of its file, and of a model that is only described next to nothing.
//!
//! The files are holes: names and shapes, and zeros that no disk holds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::alloc::System;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use endoscope_models::{Depth, Model, hub::Reference};
use serde_json::{Map, Value, json};

#[global_allocator]
static ALLOCATOR: cap::Cap<System> = cap::Cap::new(System, usize::MAX);

/// Whatever asks for more than `most` bytes beyond what is held now ends the test.
fn within<T>(most: usize, f: impl FnOnce() -> T) -> T {
    ALLOCATOR.set_limit(ALLOCATOR.allocated() + most).unwrap();
    let made = f();
    ALLOCATOR.set_limit(usize::MAX).unwrap();
    made
}

/// Writes a model directory; returns the length of its weights' file.
fn write(directory: &Path, config: &Value, dtype: &str, tensors: &[(String, Vec<usize>)]) -> u64 {
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let width = if dtype == "F32" { 4 } else { 2 };
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * width;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(directory.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let length = (8 + header.len() + end) as u64;
    file.set_len(length).unwrap();
    length
}

/// A Llama with an unembedding of its own.
fn llama(vocabulary: usize, d_model: usize, d_mlp: usize, layers: usize) -> (Value, Vec<(String, Vec<usize>)>) {
    let config = json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": d_model, "intermediate_size": d_mlp,
        "num_hidden_layers": layers, "num_attention_heads": d_model / 128, "num_key_value_heads": d_model / 128,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "tie_word_embeddings": false,
    });
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![vocabulary, d_model]),
        ("lm_head.weight".to_string(), vec![vocabulary, d_model]),
        ("model.norm.weight".to_string(), vec![d_model]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        for name in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{name}_proj"), &[d_model, d_model]);
        }
        add("mlp.gate_proj", &[d_mlp, d_model]);
        add("mlp.up_proj", &[d_mlp, d_model]);
        add("mlp.down_proj", &[d_model, d_mlp]);
        add("input_layernorm", &[d_model]);
        add("post_attention_layernorm", &[d_model]);
    }
    (config, tensors)
}

/// A GPT-2 of one layer, whose matrices are written `[in, out]`.
fn gpt2(vocabulary: usize, d_model: usize, d_mlp: usize) -> (Value, Vec<(String, Vec<usize>)>) {
    let config = json!({
        "model_type": "gpt2", "vocab_size": vocabulary, "n_embd": d_model, "n_inner": d_mlp, "n_layer": 1,
        "n_head": d_model / 64, "n_positions": 64, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    });
    let mut tensors =
        vec![("wte.weight".to_string(), vec![vocabulary, d_model]), ("wpe.weight".to_string(), vec![64, d_model])];
    let mut linear = |name: &str, inputs: usize, outputs: usize| {
        tensors.push((format!("h.0.{name}.weight"), vec![inputs, outputs]));
        tensors.push((format!("h.0.{name}.bias"), vec![outputs]));
    };
    linear("attn.c_attn", d_model, 3 * d_model);
    linear("attn.c_proj", d_model, d_model);
    linear("mlp.c_fc", d_model, d_mlp);
    linear("mlp.c_proj", d_mlp, d_model);
    for norm in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
        tensors.extend(["weight", "bias"].map(|part| (format!("{norm}.{part}"), vec![d_model])));
    }
    (config, tensors)
}

fn open(directory: &Path, depth: Depth) -> Model {
    Model::open_reference(&Reference::parse(directory).unwrap(), depth, &mut |_| {}).unwrap()
}

/// Opening at most takes `1.15 * file`, and what is kept is no less than `least` of it: nothing was left out.
fn opening_takes_little_more_than_the_file() {
    // The largest matrix is a third to a half of the file.
    for (what, (config, tensors)) in
        [("llama", llama(24 << 10, 1024, 2816, 1)), ("gpt2, tied", gpt2(24 << 10, 1024, 8192))]
    {
        for dtype in ["F32", "F16", "BF16"] {
            let directory = tempfile::tempdir().unwrap();
            let length = write(directory.path(), &config, dtype, &tensors) as usize;
            let before = ALLOCATOR.allocated();
            let model = within(length * 115 / 100, || open(directory.path(), Depth::Stored));
            let held = ALLOCATOR.allocated() - before;
            println!("{what} {dtype}: {held} bytes are held of a file of {length}");
            assert!(
                held as f64 > 0.98 * length as f64 && held as f64 <= 1.05 * length as f64,
                "{what} {dtype}: {held}"
            );
            drop(model);
        }
    }
}

/// A model of 7 billion weights is described from its header: no byte of its tensors is read.
fn inspecting_reads_headers_only() {
    let (config, tensors) = llama(32_000, 4096, 11_008, 32);
    let directory = tempfile::tempdir().unwrap();
    let length = write(directory.path(), &config, "BF16", &tensors);
    assert!(length > 13_000_000_000, "{length}");
    let read = read_so_far();
    let model = within(8 << 20, || open(directory.path(), Depth::Headers));
    assert_eq!(model.parameters, 6_738_415_616);
    if let (Some(before), Some(after)) = (read, read_so_far()) {
        println!("{} bytes were read", after - before);
        assert!(after - before < 1 << 17, "{} bytes were read", after - before);
    }
}

/// How many bytes this process has read, where the system tells.
fn read_so_far() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/self/io").ok()?;
    counts.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
}

/// One after the other: the allocator counts for the whole process.
#[test]
fn memory_of_opening() {
    inspecting_reads_headers_only();
    opening_takes_little_more_than_the_file();
}
