//! Hostile files: whatever a model directory holds, opening it gives a model or an error that names the file; it never
//! panics, and memory follows the size of the files, not the numbers written in them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::alloc::System;
use std::path::Path;

use common::gguf::{Info, put_together, taken_apart};
use common::*;
use endoscope_models::gguf;
use endoscope_models::{Bos, Model};
use endoscope_net::{Inputs, Network, Plan};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};

/// Refuses to hold more than this at once, which ends the test: no file here is larger than a megabyte.
const MOST: usize = 1 << 29;

#[global_allocator]
static ALLOCATOR: cap::Cap<System> = cap::Cap::new(System, MOST);

/// Opens the directory, and runs what could be opened. An error must hold `named`.
fn open(directory: &Path, named: &str) {
    for opened in [Model::open_headers(directory), Model::open(directory)] {
        match opened {
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(named), "`{named}` is not named in: {text}");
                assert!(text.len() < 100_000, "the error has {} bytes", text.len());
            }
            Ok(model) => {
                let _ = model.decoder.run(&Inputs::tokens(vec![vec![1, 0]]).unwrap(), &Plan::default());
                if let Some(tokenizer) = &model.tokenizer {
                    for bos in [Bos::AsConfigured, Bos::Prepend, Bos::Omit] {
                        let _ = tokenizer.encode("Once upon a  time\u{301} \u{0}x", bos);
                    }
                    let _ = tokenizer.decode(&[0, 1, 2, 300, u32::MAX]);
                    let _ = (tokenizer.label(1), tokenizer.label(400), tokenizer.label(u32::MAX));
                }
            }
        }
    }
}

fn fuzz<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let ran = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    ran.unwrap_or_else(|error| panic!("{error}"));
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(usize, u8),
    Insert(usize, Vec<u8>),
    Delete(usize, usize),
    Overwrite(usize, Vec<u8>),
}

/// Changes to the first `length` bytes.
fn mutations(length: usize) -> impl Strategy<Value = Vec<Mutation>> {
    // Pieces that mean something to a parser of JSON or of sizes.
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..8),
        proptest::sample::select(vec![
            "0",
            "-1",
            "9",
            "18446744073709551615",
            "1e999",
            "\"",
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "null",
            "\\u0000",
            "[[",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let mutation = prop_oneof![
        (0..length, 0u8..8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (0..length, piece.clone()).prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        (0..length, 1usize..40).prop_map(|(at, count)| Mutation::Delete(at, count)),
        (0..length, piece).prop_map(|(at, piece)| Mutation::Overwrite(at, piece)),
    ];
    proptest::collection::vec(mutation, 1..5)
}

fn mutated(bytes: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for mutation in mutations {
        let within = |at: usize| at.min(bytes.len());
        match mutation {
            Mutation::Flip(at, bit) => {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte ^= 1 << bit;
                }
            }
            Mutation::Insert(at, piece) => drop(bytes.splice(within(*at)..within(*at), piece.iter().copied())),
            Mutation::Delete(at, count) => drop(bytes.drain(within(*at)..within(at + count))),
            Mutation::Overwrite(at, piece) => {
                drop(bytes.splice(within(*at)..within(at + piece.len()), piece.iter().copied()))
            }
        }
    }
    bytes
}

/// Mutates the first `part` bytes (all, if none) of `file` in a copy of a small model.
fn mutate_file(model: &str, file: &str, prepare: impl FnOnce(&Path), part: Option<usize>, cases: u32) {
    let copy = copy(&goldens().join(model));
    prepare(copy.path());
    let path = copy.path().join(file);
    let bytes = std::fs::read(&path).unwrap();
    open(copy.path(), file);
    let named = copy.path().to_string_lossy().into_owned();
    fuzz(cases, mutations(part.unwrap_or(bytes.len())), |mutations| {
        std::fs::write(&path, mutated(&bytes, &mutations)).unwrap();
        open(copy.path(), &named);
    });
}

fn header_length(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn random_bytes_are_no_weights() {
    let copy = copy(&goldens().join("gpt2-odd"));
    fuzz(200, proptest::collection::vec(any::<u8>(), 0..400), |bytes| {
        std::fs::write(copy.path().join("model.safetensors"), bytes).unwrap();
        open(copy.path(), "model.safetensors");
    });
}

#[test]
fn mutated_headers_of_weights() {
    for model in ["gpt2-odd", "llama-grouped"] {
        let bytes = std::fs::read(goldens().join(model).join("model.safetensors")).unwrap();
        mutate_file(model, "model.safetensors", |_| (), Some(8 + header_length(&bytes)), 250);
        // The eight bytes of the length alone.
        mutate_file(model, "model.safetensors", |_| (), Some(8), 60);
    }
    mutate_file("llama-sharded", "model-00002-of-00003.safetensors", |_| (), Some(600), 100);
}

/// A weights file with this text as its header.
fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut padded = header.as_bytes().to_vec();
    padded.resize(padded.len().next_multiple_of(8), b' ');
    [&(padded.len() as u64).to_le_bytes(), padded.as_slice(), data].concat()
}

#[test]
fn headers_that_lie() {
    let copy = copy(&goldens().join("gpt2-odd"));
    let path = copy.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let data = bytes[8 + header_length(&bytes)..].to_vec();
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header_length(&bytes)]).unwrap();
    let write = |header: &str| {
        std::fs::write(&path, with_header(header, &data)).unwrap();
        open(copy.path(), "model.safetensors");
        let refused = Model::open(copy.path()).is_err();
        assert!(refused, "accepted: {}", &header[..header.len().min(300)]);
    };
    let names: Vec<&String> = header.keys().filter(|name| *name != "__metadata__").collect();
    let end = data.len() as u64;
    let hostile = [
        ("shape", json!([u64::MAX, 2])),
        ("shape", json!([1u64 << 63, 1u64 << 63])),
        ("shape", json!([0, 1u64 << 63, 1u64 << 63])),
        ("shape", json!([1u64 << 32, 1u64 << 32, 0])),
        ("shape", json!([-1])),
        ("shape", json!([1.5])),
        ("shape", json!([])),
        ("shape", json!(null)),
        ("dtype", json!("F128")),
        ("dtype", json!("I32")),
        ("dtype", json!("F4")),
        ("dtype", json!(7)),
        ("data_offsets", json!([0, end])),
        ("data_offsets", json!([0, 0])),
        ("data_offsets", json!([end, end + 80])),
        ("data_offsets", json!([u64::MAX - 3, u64::MAX])),
        ("data_offsets", json!([80, 0])),
        ("data_offsets", json!([0])),
        ("data_offsets", json!([-4, 0])),
    ];
    for name in [names[0], names[7], names[names.len() - 1]] {
        for (key, value) in &hostile {
            let mut lying = header.clone();
            assert_ne!(lying[name][*key], *value);
            lying[name][*key] = value.clone();
            write(&Value::Object(lying).to_string());
        }
    }
    // Two entries of one name, with other contents.
    let text = Value::Object(header.clone()).to_string();
    let twice = format!(
        "{},\"{}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}}}",
        &text[..text.len() - 1],
        names[0]
    );
    write(&twice);
    // Two tensors over the same bytes.
    let mut overlapping = header.clone();
    overlapping.insert("copy".into(), header[names[0]].clone());
    write(&Value::Object(overlapping).to_string());
    // A deep nest, and a header longer than the file, up to what no file could hold.
    write(&"[".repeat(100_000));
    write(&format!("{{\"__metadata__\":{}1{}}}", "{\"a\":".repeat(5000), "}".repeat(5000)));
    for length in [0, 1, bytes.len() as u64, 100_000_000, 100_000_001, 1 << 40, u64::MAX / 2, u64::MAX - 7, u64::MAX] {
        std::fs::write(&path, [&length.to_le_bytes(), &bytes[8..]].concat()).unwrap();
        open(copy.path(), "model.safetensors");
        assert!(Model::open(copy.path()).is_err(), "{length}");
    }
}

#[test]
fn a_number_that_is_not_finite_is_named_by_its_place() {
    for (model, tensor, at) in [
        // `[out, in]` in 16 bits, and in a table; `[in, out]`, cut into three.
        ("llama-bf16", "model.layers.0.mlp.down_proj.weight", 50),
        ("llama-f16", "model.embed_tokens.weight", 7),
        ("gpt2-odd", "transformer.h.1.attn.c_attn.weight", 333),
        ("gpt2-odd", "transformer.ln_f.bias", 3),
    ] {
        let copy = copy(&goldens().join(model));
        let path = copy.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let data = 8 + header_length(&bytes);
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..data]).unwrap();
        let start = data + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        let width = if header[tensor]["dtype"] == "F32" { 4 } else { 2 };
        // All ones is no number in every dtype. A second one comes later.
        for at in [at, at + 1] {
            bytes[start + width * at..][..width].fill(0xff);
        }
        std::fs::write(&path, bytes).unwrap();
        let error = Model::open(copy.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{tensor}` holds NaN at flat index {at};")), "{error}");
        assert!(Model::open_headers(copy.path()).is_ok());
    }
}

/// Sizes that fit, nearly fit, and break what is computed from them.
const SIZES: [i64; 20] = [
    0,
    1,
    2,
    3,
    5,
    7,
    20,
    32,
    40,
    64,
    4096,
    4097,
    1 << 28,
    (1 << 28) + 1,
    1 << 31,
    1 << 32,
    1 << 40,
    -1,
    i64::MIN,
    i64::MAX,
];

/// Any JSON value, with the numbers that break sizes.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        proptest::sample::select(&SIZES[..]).prop_map(Value::from),
        Just(json!(u64::MAX)),
        any::<f64>().prop_map(|number| json!(number)),
        proptest::sample::select(vec![1e-300, 1e300, 0.5, -0.0, 1e-5]).prop_map(|number| json!(number)),
        ".{0,12}".prop_map(Value::from),
        proptest::sample::select(vec!["gpt2", "llama", "silu", "gelu", "default", "<s>", "float16"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec(
                (proptest::sample::select(vec!["rope_theta", "rope_type", "content", "factor", "x"]), inner),
                0..4
            )
            .prop_map(|entries| Value::Object(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())),
        ]
    })
}

/// Sets random keys of a JSON file to random values.
fn random_values(model: &str, file: &str, prepare: impl FnOnce(&Path), more: &[&str], cases: u32) {
    let copy = copy(&goldens().join(model));
    prepare(copy.path());
    let path = copy.path().join(file);
    let original: Map<String, Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let keys: Vec<String> = original.keys().cloned().chain(more.iter().map(|key| key.to_string())).collect();
    let edits = proptest::collection::vec((proptest::sample::select(keys), any_json()), 1..4);
    let named = copy.path().to_string_lossy().into_owned();
    fuzz(cases, edits, |edits| {
        let mut json = original.clone();
        json.extend(edits);
        std::fs::write(&path, Value::Object(json).to_string()).unwrap();
        open(copy.path(), &named);
    });
}

#[test]
fn configs_of_random_values() {
    let more = ["n_ctx", "rope_theta", "rope_scaling", "head_dim", "sliding_window", "is_encoder_decoder"];
    for model in ["gpt2-odd", "llama-grouped", "llama-sharded"] {
        random_values(model, "config.json", |_| (), &more, 400);
    }
    mutate_file("gpt2-odd", "config.json", |_| (), None, 200);
    mutate_file("llama-grouped", "config.json", |_| (), None, 200);
}

/// Each size of each config, alone, at its extremes.
#[test]
fn configs_of_extreme_sizes() {
    for model in ["gpt2-odd", "llama-grouped"] {
        let copy = copy(&goldens().join(model));
        let path = copy.path().join("config.json");
        let original: Map<String, Value> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for (key, _) in original.iter().filter(|(_, value)| value.is_number()) {
            for size in
                [0, 1, 2, 3, 4095, 4096, 4097, 1 << 16, (1 << 28) - 1, 1 << 28, (1 << 28) + 1, 1 << 32, u64::MAX]
            {
                let mut config = original.clone();
                config.insert(key.clone(), json!(size));
                std::fs::write(&path, Value::Object(config).to_string()).unwrap();
                open(copy.path(), &copy.path().to_string_lossy());
            }
        }
    }
}

#[test]
fn indices_of_shards() {
    let index = "model.safetensors.index.json";
    mutate_file("llama-sharded", index, |_| (), None, 300);
    random_values("llama-sharded", index, |_| (), &[], 100);
    let copy = copy(&goldens().join("llama-sharded"));
    let path = copy.path().join(index);
    let original: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let names: Vec<String> = original["weight_map"].as_object().unwrap().keys().cloned().collect();
    let shards = proptest::sample::select(vec![
        json!("../model.safetensors"),
        json!("/dev/zero"),
        json!("/dev/stdin"),
        json!("."),
        json!(".."),
        json!(""),
        json!("config.json"),
        json!(index),
        json!("model-00001-of-00003.safetensors"),
        json!("gone"),
        json!(7),
        json!("a\u{0}b"),
    ]);
    fuzz(150, (proptest::sample::select(names), shards), |(name, shard)| {
        let mut lying = original.clone();
        lying["weight_map"][name] = shard;
        std::fs::write(&path, lying.to_string()).unwrap();
        open(copy.path(), &copy.path().to_string_lossy());
    });
}

/// Tokenizers of the kinds that open models have.
fn tokenizers() -> Vec<Value> {
    let special = json!([{
        "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
    }]);
    let bpe = json!({
        "type": "BPE", "dropout": null, "unk_token": "<s>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": {"<s>": 0, "O": 1, "n": 2, "c": 3, "e": 4, "On": 5, "ce": 6, "Once": 7, "<0x20>": 8, "\u{2581}": 9},
        "merges": ["O n", "c e", "On ce"],
    });
    let unigram = json!({
        "type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<s>", 0.0], ["O", -1.0], ["n", -2.5], ["\u{2581}time", -3.0], ["\u{2581}", -2.0]],
    });
    let word_piece = json!({
        "type": "WordPiece", "unk_token": "<s>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"<s>": 0, "o": 1, "##n": 2, "##ce": 3, "time": 4},
    });
    let whole = |normalizer: Value, pre: Value, post: Value, decoder: Value, model: Value| {
        json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
            "added_tokens": special, "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post,
            "decoder": decoder, "model": model,
        })
    };
    let prepend = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}
    ]});
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true},
        {"type": "Digits", "individual_digits": true}
    ]});
    let llama = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ]});
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
    vec![
        whole(prepend, Value::Null, template, llama, bpe.clone()),
        whole(json!({"type": "NFC"}), byte_level.clone(), byte_level.clone(), byte_level, bpe),
        whole(
            Value::Null,
            split,
            Value::Null,
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"}),
            unigram,
        ),
        whole(
            bert,
            json!({"type": "BertPreTokenizer"}),
            Value::Null,
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            word_piece,
        ),
    ]
}

/// Every place in a document where a value stands, as JSON pointers.
fn places(value: &Value, at: String, found: &mut Vec<String>) {
    found.push(at.clone());
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(entries) => {
            entries.iter().for_each(|(key, inner)| places(inner, format!("{at}/{}", escape(key)), found))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(key, inner)| places(inner, format!("{at}/{key}"), found))
        }
        _ => {}
    }
}

#[test]
fn tokenizers_of_random_values_and_mutated_bytes() {
    for tokenizer in tokenizers() {
        let write = |path: &Path| std::fs::write(path.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let copy = copy(&goldens().join("gpt2-odd"));
        write(copy.path());
        assert!(Model::open(copy.path()).unwrap().tokenizer.is_some());
        mutate_file("gpt2-odd", "tokenizer.json", write, None, 400);
        let mut all = Vec::new();
        places(&tokenizer, String::new(), &mut all);
        let edits = proptest::collection::vec((proptest::sample::select(all), any_json()), 1..3);
        let named = copy.path().to_string_lossy().into_owned();
        fuzz(400, edits, |edits| {
            let mut json = tokenizer.clone();
            for (place, value) in edits {
                if let Some(target) = json.pointer_mut(&place) {
                    *target = value;
                }
            }
            std::fs::write(copy.path().join("tokenizer.json"), json.to_string()).unwrap();
            open(copy.path(), &named);
        });
    }
}

#[test]
fn tokenizer_and_generation_configs() {
    let prepare = |path: &Path| {
        std::fs::write(path.join("tokenizer.json"), tokenizers()[0].to_string()).unwrap();
        std::fs::write(
            path.join("tokenizer_config.json"),
            r#"{"add_bos_token": true, "bos_token": {"content": "<s>"}}"#,
        )
        .unwrap();
    };
    random_values("llama-grouped", "tokenizer_config.json", prepare, &[], 150);
    mutate_file("llama-grouped", "tokenizer_config.json", prepare, None, 150);
    random_values("llama-grouped", "generation_config.json", |_| (), &["eos_token_id"], 100);
    mutate_file("llama-grouped", "generation_config.json", |_| (), None, 100);
}

/// A folder for one GGUF file.
fn gguf_folder() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.gguf");
    (folder, path)
}

#[test]
fn random_bytes_are_no_gguf() {
    let (folder, path) = gguf_folder();
    let start = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0";
    fuzz(300, (0..=start.len(), proptest::collection::vec(any::<u8>(), 0..200)), |(length, bytes)| {
        std::fs::write(&path, [&start[..length], &bytes].concat()).unwrap();
        open(folder.path(), "hostile.gguf");
    });
}

#[test]
fn mutated_headers_of_gguf() {
    for model in ["llama", "gpt2", "llama-k", "falcon-grouped"] {
        let (folder, path) = gguf_folder();
        let bytes = std::fs::read(goldens().join(format!("gguf/{model}.gguf"))).unwrap();
        let header = bytes.len() - taken_apart(model).2.len();
        fuzz(300, mutations(header), |mutations| {
            std::fs::write(&path, mutated(&bytes, &mutations)).unwrap();
            open(folder.path(), "hostile.gguf");
        });
        // Counts and the first lengths alone.
        fuzz(100, mutations(40), |mutations| {
            std::fs::write(&path, mutated(&bytes, &mutations)).unwrap();
            open(folder.path(), "hostile.gguf");
        });
    }
}

/// Any metadata value, with the numbers that break sizes.
fn any_gguf_value() -> impl Strategy<Value = gguf::Value> {
    let integer = proptest::sample::select(&SIZES[..]);
    let float = prop_oneof![any::<f64>(), proptest::sample::select(vec![0., -1., 1e-300, 1e300, 0.5, f64::NAN])];
    let text = proptest::sample::select(vec![
        "",
        "llama",
        "gpt2",
        "qwen2",
        "gemma3",
        "linear",
        "yarn",
        "none",
        "llama-bpe",
        "\u{2581}",
        "<0x0A>",
        "a b",
        "a",
    ]);
    prop_oneof![
        integer.clone().prop_map(gguf::Value::Integer),
        float.clone().prop_map(gguf::Value::Float),
        any::<bool>().prop_map(gguf::Value::Switch),
        text.clone().prop_map(|text| gguf::Value::Text(text.into())),
        proptest::collection::vec(integer, 0..45).prop_map(gguf::Value::Integers),
        proptest::collection::vec(float, 0..45).prop_map(gguf::Value::Floats),
        proptest::collection::vec(text.prop_map(String::from), 0..8).prop_map(gguf::Value::Texts),
    ]
}

#[test]
fn metadata_of_random_values() {
    let more = [
        "general.alignment",
        "general.type",
        "split.count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "attention.key_length",
        "attention.value_length",
        "expert_count",
        "expert_used_count",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.chat_template",
    ];
    for model in ["llama", "llama3", "gpt2", "falcon-grouped"] {
        let (folder, path) = gguf_folder();
        let (metadata, infos, data) = taken_apart(model);
        let gguf::Value::Text(architecture) = &metadata["general.architecture"] else { panic!("{metadata:?}") };
        let keys = metadata.keys().cloned().chain(more.iter().map(|key| match key.split_once('.') {
            Some(("general" | "split" | "tokenizer", _)) => key.to_string(),
            _ => format!("{architecture}.{key}"),
        }));
        let edit = (proptest::sample::select(keys.collect::<Vec<_>>()), any_gguf_value());
        fuzz(400, proptest::collection::vec(edit, 1..5), |edits| {
            let mut metadata = metadata.clone();
            metadata.extend(edits);
            std::fs::write(&path, put_together(&metadata, &infos, &data)).unwrap();
            open(folder.path(), "hostile.gguf");
        });
    }
}

#[test]
fn gguf_headers_that_lie() {
    let (folder, path) = gguf_folder();
    let (metadata, infos, data) = taken_apart("llama");
    let end = data.len() as u64;
    type Lie = Box<dyn Fn(&mut Info)>;
    let lies: Vec<(&str, Lie)> = vec![
        ("no dimensions", Box::new(|info| info.dimensions = vec![])),
        ("five dimensions", Box::new(|info| info.dimensions = vec![1; 5])),
        ("a billion dimensions", Box::new(|info| info.dimensions = vec![1; 1 << 16])),
        ("the largest size", Box::new(|info| info.dimensions = vec![u64::MAX])),
        ("sizes that overflow", Box::new(|info| info.dimensions = vec![1 << 32, 1 << 32])),
        ("sizes that overflow to nothing", Box::new(|info| info.dimensions = vec![1 << 32, 1 << 32, 1 << 32])),
        ("nothing of everything", Box::new(|info| info.dimensions = vec![0, u64::MAX])),
        ("bytes that overflow", Box::new(|info| (info.dimensions, info.encoding) = (vec![1 << 62], 28))),
        ("a type that ggml has given up", Box::new(|info| info.encoding = 4)),
        ("a type of no file", Box::new(|info| info.encoding = u32::MAX)),
        ("a type that is larger", Box::new(|info| info.encoding = 28)),
        ("an odd offset", Box::new(|info| info.offset += 1)),
        ("the bytes of another tensor", Box::new(|info| info.offset += 32)),
        ("the last byte", Box::new(move |info| info.offset = end)),
        ("the largest offset", Box::new(|info| info.offset = u64::MAX)),
        ("the largest aligned offset", Box::new(|info| info.offset = u64::MAX - 31)),
        ("another's name", Box::new(|info| info.name = "output_norm.weight".into())),
        ("no name", Box::new(|info| info.name = String::new())),
    ];
    for (lie, change) in &lies {
        for at in [0, infos.len() / 2, infos.iter().position(|info| info.name == "output.weight").unwrap()] {
            let mut infos = infos.clone();
            change(&mut infos[at]);
            std::fs::write(&path, put_together(&metadata, &infos, &data)).unwrap();
            open(folder.path(), "hostile.gguf");
            assert!(Model::open(&path).is_err(), "accepted: {lie} at {at}");
        }
    }
    // Counts and lengths that no file could hold, at each place where one stands.
    let bytes = put_together(&metadata, &infos, &data);
    for at in [8, 16, 24, 24 + 8 + metadata.keys().next().unwrap().len() + 4] {
        for count in [1u64 << 20, 1 << 31, 1 << 32, 1 << 60, u64::MAX / 24 + 1, u64::MAX] {
            let lying = [&bytes[..at], &count.to_le_bytes(), &bytes[at + 8..]].concat();
            std::fs::write(&path, lying).unwrap();
            open(folder.path(), "hostile.gguf");
            assert!(Model::open(&path).is_err(), "accepted: {count} at {at}");
        }
    }
}
