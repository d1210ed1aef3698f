//! GGUF files: sites against transformers on the values that gguf-py reads, tokenizers against published ids, and files
//! that lie. The goldens and the scripts that made them: tools/goldens/gguf_models.py and gguf_blocks.py.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::gguf::{Info, Metadata, put_together, taken_apart, with_metadata};
use common::*;
use endoscope_models::gguf::{GgufFile, Value};
use endoscope_models::{Bos, Chat, Clock, GenerationPrompt, Message, Model, Precision};
use endoscope_net::{Capture, Inputs, Network, Plan};

fn folder() -> PathBuf {
    goldens().join("gguf")
}

/// Every golden site of a file against ours; the largest difference, or what is wrong.
fn check(path: &Path, golden: &Path) -> Result<f32, String> {
    let golden = load(golden);
    let sites = golden.keys().filter(|name| *name != "tokens");
    let plan = sites.clone().fold(Plan::default(), |plan, site| plan.capture(Capture::new(site.as_str())));
    let model = Model::open(path).map_err(|error| error.to_string())?;
    let run = model.decoder.run(&Inputs::tokens(tokens(&golden)).unwrap(), &plan).map_err(|error| error.to_string())?;
    let mut worst = 0f32;
    for site in sites {
        let (found, expected) = (run.captured.get(site).map_err(|error| error.to_string())?, &golden[site]);
        if found.dims() != expected.dims() {
            return Err(format!("{site} is {:?}, not {:?}", found.dims(), expected.dims()));
        }
        let difference = difference(found, expected);
        if difference > SITE_TOLERANCE {
            return Err(format!("{site} differs by {difference:e}"));
        }
        worst = worst.max(difference);
    }
    Ok(worst)
}

#[test]
fn sites_are_those_of_the_model_that_was_converted() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    // That one is no model.
    files.retain(|path| path.file_stem().is_some_and(|name| name != "control_vector"));
    files.sort();
    let mut wrong = Vec::new();
    for path in &files {
        match check(path, &path.with_extension("safetensors")) {
            Ok(worst) => println!("{}: largest difference {worst:e}", path.display()),
            Err(problem) => wrong.push(format!("{}: {problem}", path.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(files.len(), 24);
}

/// What the goldens must notice: a setting or a tensor that is another.
#[test]
fn wrong_settings_and_tensors_are_noticed() {
    let noticed = |name: &str, what: &str, change: &dyn Fn(&mut Metadata, &mut Vec<Info>)| {
        let (mut metadata, mut infos, data) = taken_apart(name);
        change(&mut metadata, &mut infos);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wrong.gguf");
        std::fs::write(&path, put_together(&metadata, &infos, &data)).unwrap();
        let found = check(&path, &folder().join(format!("{name}.safetensors")));
        assert!(found.is_err_and(|problem| problem.contains("differs by")), "{name}: {what} was not noticed");
    };
    let setting = |name: &str, key: &'static str, value: Value| {
        noticed(name, key, &|metadata, _| {
            assert_ne!(metadata.insert(key.into(), value.clone()).unwrap(), value);
        });
    };
    let swapped = |name: &str, one: &'static str, other: &'static str| {
        noticed(name, one, &|_, infos| {
            let at = |name: &str| infos.iter().position(|info| info.name == name).unwrap();
            let (one, other) = (at(one), at(other));
            let names = (infos[one].name.clone(), infos[other].name.clone());
            (infos[other].name, infos[one].name) = names;
        });
    };
    setting("llama", "llama.rope.freq_base", Value::Float(510.));
    setting("llama", "llama.attention.layer_norm_rms_epsilon", Value::Float(1e-4));
    setting("gpt2", "gpt2.attention.layer_norm_epsilon", Value::Float(1e-4));
    swapped("llama", "blk.0.attn_q.weight", "blk.1.attn_q.weight");
    swapped("llama", "blk.0.attn_q.weight", "blk.0.attn_output.weight");
    swapped("llama", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight");
    swapped("llama", "blk.1.attn_norm.weight", "blk.1.ffn_norm.weight");
    swapped("gpt2", "blk.0.attn_norm.bias", "blk.0.ffn_norm.bias");
    setting("olmo", "olmo.attention.clamp_kqv", Value::Float(2.));
    swapped("falcon-grouped", "blk.0.attn_norm.weight", "blk.0.attn_norm_2.weight");
    swapped("falcon-grouped", "blk.0.attn_qkv.weight", "blk.1.attn_qkv.weight");
    swapped("stablelm-norms", "blk.0.attn_q_norm.weight", "blk.1.attn_q_norm.weight");
    swapped("smollm3", "blk.3.attn_q.weight", "blk.0.attn_q.weight");
}

#[test]
fn headers_say_what_numbers_say() {
    let path = folder().join("llama-k.gguf");
    let (headers, model) = (Model::open_headers(&path).unwrap(), Model::open(&path).unwrap());
    assert_eq!((headers.spec(), headers.parameters), (model.spec(), model.parameters));
    assert_eq!(model.files, [("weights", path.clone())]);
    assert_eq!((model.directory.as_path(), model.end_tokens.as_slice()), (path.as_path(), &[2][..]));
}

#[test]
fn a_directory_of_one_file_is_that_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(folder().join("llama.gguf"), directory.path().join("model.GGUF")).unwrap();
    let model = Model::open(directory.path()).unwrap();
    assert_eq!(model.files[0].1, directory.path().join("model.GGUF"));
    std::fs::copy(folder().join("gpt2.gguf"), directory.path().join("a.gguf")).unwrap();
    let error = Model::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("2 GGUF files") && error.contains("a.gguf"), "{error}");
}

/// A file of Q8_0 packed as int8 keeps the file's values to rounding: the same blocks, whose scale is found again.
#[test]
fn eight_bits_stay_eight_bits() {
    let path = folder().join("llama.gguf");
    let golden = load(&path.with_extension("safetensors"));
    let inputs = Inputs::tokens(tokens(&golden)).unwrap();
    let logits = |precision| {
        let model = Model::open_as(&path, precision).unwrap();
        model.decoder.run(&inputs, &Plan::default()).unwrap().outputs
    };
    let (full, packed) = (logits(Precision::F32), logits(Precision::Int8));
    println!("int8 differs from f32 by {:e}", difference(&full, &packed));
    assert!(difference(&full, &packed) < 0.05);
}

fn edited(name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(folder().join(format!("{name}.gguf"))).unwrap();
    edit(&mut bytes);
    let path = directory.path().join("edited.gguf");
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

/// Puts other bytes of the same length in the place of some that occur once.
fn replace(bytes: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

fn refused(name: &str, edit: impl FnOnce(&mut Vec<u8>), named: &[&str]) {
    let (_directory, path) = edited(name, edit);
    for opened in [Model::open(&path), Model::open_headers(&path)] {
        let error = opened.expect_err(&named.join(" ")).to_string();
        assert!(named.iter().all(|part| error.contains(part)), "{named:?} is not named in: {error}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    refused(
        "llama",
        |bytes| replace(bytes, "blk.1.ffn_up", "blk.1.ffn_us"),
        &["blk.1.ffn_up", "missing", "blk.1.ffn_us"],
    );
    refused(
        "llama",
        |bytes| replace(bytes, "llama.rope.freq_base", "llama.rope.freq_bass"),
        &["llama.rope.freq_bass", "not known"],
    );
    refused("llama", |bytes| bytes[4] = 1, &["version is 1", "2 and 3"]);
    refused("llama", |bytes| bytes[4..8].copy_from_slice(&3u32.to_be_bytes()), &["big endian"]);
    refused("llama", |bytes| bytes[0] = b'g', &["GGUF"]);
    refused("llama", |bytes| bytes.truncate(bytes.len() - 64), &["should end at byte"]);
    refused("llama", |bytes| bytes.extend([0; 64]), &["its tensors end at byte"]);
    refused("llama", |bytes| bytes[8..16].fill(0xff), &["tensors", "cannot fit"]);
    refused("llama", |bytes| bytes[16..24].fill(0xff), &["keys", "cannot fit"]);
}

#[test]
fn settings_that_are_not_supported_are_refused() {
    let refused = |name: &str, key: &str, value: Value, named: &[&str]| {
        let (_directory, path) = with_metadata(name, set(key, value));
        let error = Model::open(&path).expect_err(key).to_string();
        assert!(named.iter().all(|part| error.contains(part)), "{key}: {named:?} is not named in: {error}");
    };
    let text = |text: &str| Value::Text(text.into());
    refused("gpt2", "general.architecture", text("gpt3"), &["`gpt3`", "llama, qwen2"]);
    refused("gpt2", "general.type", text("adapter"), &["no whole language model"]);
    refused("gpt2", "split.count", Value::Integer(2), &["one of 2 pieces", "--merge"]);
    refused("gpt2", "general.alignment", Value::Integer(0), &["power of two"]);
    refused("gpt2", "general.alignment", Value::Integer(24), &["power of two"]);
    refused("llama", "llama.vocab_size", Value::Integer(41), &["41", "40 rows"]);
    refused("llama", "llama.rope.scaling.type", text("longrope"), &["longrope", "linear and yarn"]);
    refused("llama", "llama.rope.dimension_count", Value::Integer(4), &["4 of 8 dimensions"]);
    refused("llama", "llama.attention.value_length", Value::Integer(4), &["keys are 8 wide and values 4"]);
    refused("llama", "llama.attention.head_count_kv", Value::Integers(vec![2, 1]), &["the same for every layer"]);
    refused("llama", "llama.attention.clamp_kqv", Value::Float(8.), &["clamp_kqv", "not known"]);
    refused("llama", "llama.expert_used_count", Value::Integer(2), &["there are none"]);
    refused("olmo", "olmo.attention.layer_norm_epsilon", Value::Float(1e-6), &["only 1e-5"]);
    refused("falcon", "falcon.tensor_data_layout", text("meta"), &["\"meta\"", "jploski"]);
    refused("starcoder", "starcoder.attention.head_count_kv", Value::Integer(4), &["only one for all heads"]);
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let file = GgufFile::open(&folder().join("gpt2.gguf")).unwrap();
    let at = file.tensors["output_norm.weight"].bytes.start as usize;
    let (_directory, path) = edited("gpt2", |bytes| bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes()));
    let error = Model::open(&path).unwrap_err().to_string();
    assert!(error.contains("output_norm.weight") && error.contains("NaN at flat index 0"), "{error}");
}

fn set(key: &str, value: Value) -> impl FnOnce(&mut Metadata) {
    move |metadata| drop(metadata.insert(key.into(), value))
}

/// The metadata that llama.cpp's converter makes of a SentencePiece model: a protobuf message whose field 1 repeats
/// `{1: piece, 2: score, 3: type}`.
fn sentence_piece(model: &[u8]) -> Metadata {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let length = match tag & 7 {
                0 => {
                    fields.push((tag >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                5 => 4,
                _ => varint(&mut bytes) as usize,
            };
            let (field, rest) = bytes.split_at(length);
            fields.push((tag >> 3, field.to_vec()));
            bytes = rest;
        }
        fields
    }
    let (mut tokens, mut scores, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    for (_, piece) in fields(model).into_iter().filter(|(number, _)| *number == 1) {
        let (mut score, mut kind) = (0., 1);
        for (number, field) in fields(&piece) {
            match number {
                1 => tokens.push(String::from_utf8(field).unwrap()),
                2 => score = f64::from(f32::from_le_bytes(field.try_into().unwrap())),
                3 => kind = i64::from(field[0]),
                _ => {}
            }
        }
        scores.push(score);
        kinds.push(kind);
    }
    BTreeMap::from([
        ("tokenizer.ggml.model".to_string(), Value::Text("llama".into())),
        ("tokenizer.ggml.tokens".to_string(), Value::Texts(tokens)),
        ("tokenizer.ggml.scores".to_string(), Value::Floats(scores)),
        ("tokenizer.ggml.token_type".to_string(), Value::Integers(kinds)),
        ("tokenizer.ggml.bos_token_id".to_string(), Value::Integer(1)),
        ("tokenizer.ggml.add_bos_token".to_string(), Value::Switch(true)),
    ])
}

#[test]
fn sentence_piece_gives_the_published_ids_of_llama_2() {
    let Some(folder) = shared("tokenizers/llama2") else { return };
    let model = std::fs::read(folder.join("tokenizer.model")).unwrap();
    let (_directory, path) = with_metadata("llama", |metadata| metadata.extend(sentence_piece(&model)));
    let opened = Model::open(path).unwrap();
    let tokenizer = opened.tokenizer().unwrap();
    let expected: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    let cases = expected.as_array().unwrap();
    assert!(cases.len() >= 5);
    for case in cases {
        let (text, ids) = (case["text"].as_str().unwrap(), case["ids"].as_array().unwrap());
        let ids: Vec<u32> = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(text, Bos::AsConfigured).unwrap().ids, ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    // Bytes that are no token.
    let odd = "\u{1F9EC}\u{0}";
    assert_eq!(tokenizer.decode(&tokenizer.encode(odd, Bos::Omit).unwrap().ids).unwrap(), odd);
}

const TEXTS: &[&str] = &[
    "Hello world",
    " leading and  double blanks\n\n\tand 12345 digits, it's they'll",
    "Gr\u{fc}\u{df}e \u{4f60}\u{597d} \u{1F9EC} e\u{301}",
    "<|endoftext|>after",
];

#[test]
fn byte_level_bpe_is_that_of_its_tokenizer_json() {
    let Some(folder) = shared("tokenizers/gpt2") else { return };
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(u64, String)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), token.clone()))
        .collect();
    tokens.sort();
    let kinds: Vec<i64> = tokens.iter().map(|(_, token)| if token == "<|endoftext|>" { 3 } else { 1 }).collect();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        serde_json::Value::Array(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        merge => merge.as_str().unwrap().to_string(),
    });
    let described = Metadata::from([
        ("tokenizer.ggml.model".to_string(), Value::Text("gpt2".into())),
        ("tokenizer.ggml.tokens".to_string(), Value::Texts(tokens.into_iter().map(|(_, token)| token).collect())),
        ("tokenizer.ggml.merges".to_string(), Value::Texts(merges.collect())),
    ]);
    let ids = |path: &PathBuf, text: &str| {
        let model = Model::open(path).unwrap();
        model.tokenizer().unwrap().encode(text, Bos::AsConfigured).unwrap().ids
    };
    let described_by = |pre: &str| {
        let pre = Value::Text(pre.into());
        with_metadata("gpt2", |metadata| {
            metadata.extend(described.clone());
            metadata.insert("tokenizer.ggml.pre".into(), pre);
        })
    };
    // Beside a file, a tokenizer.json wins: here they must agree.
    let (directory, path) = described_by("gpt-2");
    let ours: Vec<_> = TEXTS.iter().map(|text| ids(&path, text)).collect();
    assert_eq!(ours[0], [15496, 995]);
    std::fs::copy(folder.join("tokenizer.json"), directory.path().join("tokenizer.json")).unwrap();
    assert_eq!(Model::open(&path).unwrap().files.len(), 2);
    for (text, ours) in TEXTS.iter().zip(&ours) {
        assert_eq!(*ours, ids(&path, text), "{text:?}");
    }
    // A control token is found whole, which this tokenizer.json does not say of its own.
    let (_directory, path) = with_metadata("gpt2", |metadata| {
        metadata.extend(described.clone());
        metadata.insert("tokenizer.ggml.token_type".into(), Value::Integers(kinds));
    });
    assert_eq!(ids(&path, "<|endoftext|>after"), [50256, 8499]);
    // Each splitting shows where digits are cut.
    let digits = |pre: &str| {
        let (_directory, path) = described_by(pre);
        let model = Model::open(path).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let ids = tokenizer.encode("a 20045", Bos::Omit).unwrap().ids;
        ids.into_iter().map(|id| tokenizer.label(id)).collect::<Vec<_>>().join("|")
    };
    assert_eq!(digits("gpt-2"), "a| 200|45");
    assert_eq!(digits("smollm"), "a| |2|0|0|4|5");
    assert_eq!(digits("qwen2"), "a| |2|0|0|4|5");
    assert_eq!(digits("llama-bpe"), "a| |200|45");
    // What is not known is refused, and token ids work all the same.
    let (_directory, path) = described_by("tekken");
    let model = Model::open(path).unwrap();
    let error = model.tokenizer().unwrap_err().to_string();
    assert!(error.contains("tekken") && error.contains("llama-bpe, "), "{error}");
    assert!(model.decoder.run(&Inputs::tokens(vec![vec![1, 2]]).unwrap(), &Plan::default()).is_ok());
}

#[test]
fn tokenizers_that_cannot_be_are_refused() {
    let refused = |change: &dyn Fn(&mut Metadata), named: &str| {
        let (_directory, path) = with_metadata("llama", |metadata| {
            metadata.extend([
                ("tokenizer.ggml.model".to_string(), Value::Text("llama".into())),
                ("tokenizer.ggml.scores".to_string(), Value::Floats(vec![0.; 40])),
            ]);
            change(metadata);
        });
        let error = Model::open(path).unwrap().tokenizer().unwrap_err().to_string();
        assert!(error.contains(named), "{named} is not named in: {error}");
    };
    refused(&|metadata| drop(metadata.insert("tokenizer.ggml.model".into(), Value::Text("rwkv".into()))), "rwkv");
    refused(&|metadata| drop(metadata.remove("tokenizer.ggml.scores")), "scores");
    refused(&|metadata| drop(metadata.remove("tokenizer.ggml.tokens")), "tokens");
    let longer = |metadata: &mut Metadata| set("tokenizer.ggml.token_type", Value::Integers(vec![1; 41]))(metadata);
    refused(&longer, "40 tokens, but 41 types");
    let twice = |metadata: &mut Metadata| {
        set("tokenizer.ggml.tokens", Value::Texts(vec!["a".into(); 40]))(metadata);
    };
    refused(&twice, "same text");
    let long = |metadata: &mut Metadata| {
        set("tokenizer.ggml.tokens", Value::Texts(vec!["a".repeat(2000)]))(metadata);
        set("tokenizer.ggml.scores", Value::Floats(vec![0.]))(metadata);
    };
    refused(&long, "2000 bytes");
}

#[test]
fn chat_templates_are_those_of_the_metadata_unless_files_have_others() {
    let text = |text: &str| Value::Text(text.into());
    let (directory, path) = with_metadata("llama", |metadata| {
        let mut tokens: Vec<String> = (0..40).map(|id| format!("<{id}>")).collect();
        tokens[..3].clone_from_slice(&["<unk>".into(), "<s>".into(), "</s>".into()]);
        metadata.extend([
            ("tokenizer.ggml.model".to_string(), text("llama")),
            ("tokenizer.ggml.tokens".to_string(), Value::Texts(tokens)),
            ("tokenizer.ggml.scores".to_string(), Value::Floats(vec![0.; 40])),
            ("tokenizer.ggml.token_type".to_string(), Value::Integers(vec![3; 40])),
            ("tokenizer.chat_template".to_string(), text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")),
            ("tokenizer.chat_template.tool_use".to_string(), text("tools")),
        ]);
    });
    let model = Model::open(&path).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.templates.names(), ["default", "tool_use"]);
    let chat = Chat::new(vec![Message::new("user", "<7>")]);
    let encoded = tokenizer.encode_chat(&chat, None, GenerationPrompt::Omit, Clock::System).unwrap();
    assert_eq!((encoded.text.as_str(), encoded.ids.as_slice()), ("<s><7></s>", &[1, 7, 2][..]));
    assert_eq!(encoded.messages[0].tokens, Some(1..2));
    // One that cannot be compiled is a problem of chats, not of the model; one beside the tokenizer wins.
    let (_directory, broken) = with_metadata("llama", |metadata| {
        metadata.clone_from(&GgufFile::open(&path).unwrap().metadata);
        metadata.insert("tokenizer.chat_template".into(), text("{% if %}"));
    });
    let model = Model::open(&broken).unwrap();
    let failed = model.tokenizer().unwrap().encode_chat(&chat, None, GenerationPrompt::Omit, Clock::System);
    assert!(failed.unwrap_err().to_string().contains("written.gguf"));
    let words = r#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"<7>": 7}, "unk_token": "<7>"}}"#;
    std::fs::write(directory.path().join("tokenizer.json"), words).unwrap();
    let names = |path: &PathBuf| {
        let model = Model::open(path).unwrap();
        model.tokenizer().unwrap().templates.names().into_iter().map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(names(&path), ["default", "tool_use"]);
    std::fs::write(directory.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    assert_eq!(names(&path), ["default"]);
}

#[test]
fn a_file_without_a_tokenizer_says_so() {
    let (_directory, path) = with_metadata("llama", |metadata| drop(metadata.remove("tokenizer.ggml.model")));
    let error = Model::open(&path).unwrap().tokenizer().unwrap_err().to_string();
    assert!(error.contains("written.gguf") && error.contains("--tokens"), "{error}");
}
