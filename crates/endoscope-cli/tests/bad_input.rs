//! Bad input: each is refused with an error that names what and where, and nothing is written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::Path;
use std::process::Stdio;

use assert_cmd::Command;
use common::*;
use safetensors::Dtype;
use serde_json::{Value, json};

const PROMPTS: &str = r#"[{"clean":[1,2],"corrupt":[1,3],"answers":[4],"wrong_answers":[5]}]"#;

/// One verb on `model` with arguments that are right, and an output below `directory`.
fn verb(verb: &str, model: &Path, directory: &Path) -> Command {
    let prompts = std::env::temp_dir().join(format!("endoscope-bad-input-{}.json", std::process::id()));
    let mut command = endoscope();
    command.arg(verb).arg(model);
    match verb {
        "capture" => command.args(["--tokens", "1,2", "--sites", "z", "--out"]).arg(directory.join("out")),
        "generate" => command.args(["--tokens", "1,2", "--max-tokens", "2"]),
        "patch" => {
            std::fs::write(&prompts, PROMPTS).unwrap();
            command.args(["--site", "z", "--prompts"]).arg(prompts).arg("--out").arg(directory.join("out"))
        }
        _ => &mut command,
    };
    command
}

const ALL: [&str; 4] = ["inspect", "capture", "generate", "patch"];
/// The verbs that read numbers.
const RUNNING: [&str; 3] = ["capture", "generate", "patch"];

/// Every verb refuses a copy of `model` after `break_it`.
fn broken(model: &str, verbs: &[&str], break_it: impl FnOnce(&Path), parts: &[&str]) {
    let copy = copy_tiny(model);
    break_it(copy.path());
    for name in verbs {
        let parent = tempfile::tempdir().unwrap();
        for json in [false, true] {
            let mut command = verb(name, copy.path(), parent.path());
            refused(if json { command.arg("--json") } else { &mut command }, parts);
        }
        assert!(names(parent.path()).is_empty(), "{name} left {:?}", names(parent.path()));
    }
}

fn broken_weights(model: &str, edit: impl FnOnce(&mut Weights), parts: &[&str]) {
    broken(model, &ALL, |path| edit_weights(&path.join("model.safetensors"), edit), parts);
}

fn broken_config(model: &str, edit: impl FnOnce(&mut Value), parts: &[&str]) {
    broken(model, &ALL, |path| edit_config(path, edit), &[&["config.json"], parts].concat());
}

fn set(key: &str, value: Value) -> impl FnOnce(&mut Value) {
    let key = key.to_string();
    move |config| config[key] = value
}

#[test]
fn what_is_no_model_directory() {
    let parent = tempfile::tempdir().unwrap();
    for name in ALL {
        refused(&mut verb(name, &parent.path().join("gone"), parent.path()), &["gone", "there is no such directory"]);
        refused(&mut verb(name, &tiny_models().join("generation.json"), parent.path()), &["it is a file"]);
        refused(&mut verb(name, parent.path(), parent.path()), &["it has no config.json"]);
    }
    assert!(names(parent.path()).is_empty());
}

#[test]
fn weights_that_do_not_fit() {
    let weights = |path: &Path| path.join("model.safetensors");
    broken("gpt2-odd", &ALL, |path| std::fs::remove_file(weights(path)).unwrap(), &["neither model.safetensors nor"]);
    for length in [0, 4, 100, 5000] {
        let truncate = |path: &Path| {
            let bytes = std::fs::read(weights(path)).unwrap();
            std::fs::write(weights(path), &bytes[..length]).unwrap();
        };
        let size = format!("it has {length} bytes");
        broken("gpt2-odd", &ALL, truncate, &["model.safetensors: it is not a whole safetensors file", &size]);
    }
    let missing = "`transformer.h.1.ln_2.bias` (shape [20]) is missing";
    broken_weights("gpt2-odd", |all| drop(all.remove("transformer.h.1.ln_2.bias")), &["model.safetensors", missing]);
    let turn = |all: &mut Weights| all.get_mut("transformer.h.0.attn.c_attn.weight").unwrap().1 = vec![60, 20];
    broken_weights(
        "gpt2-odd",
        turn,
        &["`transformer.h.0.attn.c_attn.weight` has shape [60, 20], but [20, 60] is needed"],
    );
    let extra = |all: &mut Weights| drop(all.insert("mystery".into(), (Dtype::F32, vec![1], vec![0; 4])));
    broken_weights("gpt2-odd", extra, &["`mystery` is in the file, but the model that config.json describes has no"]);
    for (dtype, size) in [(Dtype::I32, 4), (Dtype::U8, 1), (Dtype::I64, 8), (Dtype::BOOL, 1), (Dtype::F8_E4M3, 1)] {
        let retype = |all: &mut Weights| {
            drop(all.insert("transformer.ln_f.bias".into(), (dtype, vec![20], vec![0; 20 * size])));
        };
        broken_weights("gpt2-odd", retype, &[&format!("`transformer.ln_f.bias` has dtype {dtype:?}; supported are")]);
    }
    // Every problem is named, not the first.
    let two = |all: &mut Weights| {
        all.remove("model.norm.weight");
        all.remove("lm_head.weight");
    };
    broken_weights("llama-grouped", two, &["`model.norm.weight`", "`lm_head.weight`"]);
}

#[test]
fn weights_that_are_not_finite() {
    for (number, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let poison = |path: &Path| {
            edit_weights(&path.join("model.safetensors"), |all| {
                all.get_mut("transformer.wte.weight").unwrap().2[12..16].copy_from_slice(&number.to_le_bytes());
            });
        };
        broken("gpt2-odd", &RUNNING, poison, &[&format!("`transformer.wte.weight` holds {shown} at flat index 3")]);
    }
}

#[test]
fn configs_that_cannot_be_translated_with_certainty() {
    let write = |text: &'static str| move |path: &Path| std::fs::write(path.join("config.json"), text).unwrap();
    broken("gpt2-odd", &ALL, write("{"), &["cannot read", "config.json", "EOF"]);
    broken("gpt2-odd", &ALL, write("[]"), &["config.json: it is not a JSON object"]);
    broken(
        "gpt2-odd",
        &ALL,
        write("{}"),
        &["config.json: model_type `(none)` is not supported; supported are: gpt2, gpt_neo"],
    );
    broken_config(
        "gpt2-odd",
        set("model_type", json!("mamba")),
        &["`mamba` is not supported; supported are: gpt2, gpt_neo"],
    );
    let only = json!({"model_type": "gpt2"});
    let keys = ["n_embd", "n_head", "n_positions", "vocab_size", "n_layer"].map(|key| format!("`{key}` is missing"));
    broken_config("gpt2-odd", |config| *config = only, &keys.each_ref().map(String::as_str));
    broken_config("gpt2-odd", set("attn_soft_cap", json!(50.0)), &["the key `attn_soft_cap` (= 50.0) is not known"]);
    broken_config(
        "gpt2-odd",
        set("quantization_config", json!({"bits": 4})),
        &["`quantization_config` is {\"bits\":4}"],
    );
    let scaling = json!({"rope_type": "dynamic", "factor": 8.0});
    let parts = ["the rope_type of `rope_scaling` depends on the length of the sequence"];
    broken_config("llama-grouped", set("rope_scaling", scaling), &parts);
    broken_config("gpt2-odd", set("activation_function", json!("mish")), &["`activation_function` is \"mish\""]);
    broken_config("gpt2-odd", set("layer_norm_epsilon", json!(-1)), &["epsilon is -1"]);
    broken_config("llama-grouped", set("rms_norm_eps", json!(0)), &["epsilon is 0"]);
    broken_config("llama-grouped", set("rope_parameters", json!({"rope_theta": -1.0})), &["rotary base is -1"]);
    broken_config(
        "gpt2-odd",
        set("tie_word_embeddings", json!("yes")),
        &["`tie_word_embeddings` is \"yes\"; true or false"],
    );
}

#[test]
fn absurd_sizes() {
    for key in ["n_embd", "n_head", "n_positions", "vocab_size", "n_layer", "n_inner"] {
        broken_config("gpt2-odd", set(key, json!(0)), &["is 0; it must be between 1 and"]);
        broken_config("gpt2-odd", set(key, json!(1u64 << 40)), &["1099511627776"]);
        broken_config("gpt2-odd", set(key, json!(u64::MAX)), &["18446744073709551615"]);
        broken_config("gpt2-odd", set(key, json!(-1)), &[&format!("`{key}` is -1; a count is needed")]);
        broken_config("gpt2-odd", set(key, json!(2.5)), &[&format!("`{key}` is 2.5; a count is needed")]);
    }
    // Within the bounds, but not in the file: memory must not follow the config.
    broken_config("gpt2-odd", set("n_layer", json!(1 << 28)), &["layers is 268435456; at most 4096"]);
    broken("gpt2-odd", &ALL, |path| edit_config(path, set("n_layer", json!(4096))), &["is missing", "more"]);
    broken(
        "gpt2-odd",
        &ALL,
        |path| edit_config(path, set("vocab_size", json!(1 << 28))),
        &["[268435456, 20] is needed"],
    );
    broken_config("gpt2-odd", set("n_head", json!(3)), &["a width of 20 cannot be split into 3 heads"]);
    broken_config("llama-grouped", set("num_key_value_heads", json!(4)), &["6 heads cannot share 4 key/value heads"]);
    broken_config("llama-grouped", set("head_dim", json!(7)), &["7 rotary dimensions of 7 make no pairs"]);
}

#[test]
fn a_context_that_no_table_could_hold_costs_nothing() {
    let copy = copy_tiny("llama-grouped");
    edit_config(copy.path(), set("max_position_embeddings", json!(1 << 28)));
    let ids = |model: &Path| document(verb("generate", model, model).arg("--json"))["tokens"].clone();
    assert_eq!(ids(copy.path()), ids(&tiny_models().join("llama-grouped")));
}

#[test]
fn shards_that_do_not_fit() {
    let index = |edit: fn(&mut Value)| {
        move |path: &Path| {
            let path = path.join("model.safetensors.index.json");
            let mut index = read_json(&path);
            edit(&mut index["weight_map"]);
            std::fs::write(path, index.to_string()).unwrap();
        }
    };
    let norm = "model.norm.weight";
    let remove = |path: &Path| std::fs::remove_file(path.join("model-00002-of-00003.safetensors")).unwrap();
    broken("llama-sharded", &ALL, remove, &["cannot read", "model-00002-of-00003.safetensors"]);
    for outside in ["../model.safetensors", "/etc/passwd", "..", "", "sub/model.safetensors"] {
        let edit = move |path: &Path| {
            let file = path.join("model.safetensors.index.json");
            let mut index = read_json(&file);
            index["weight_map"][norm] = json!(outside);
            std::fs::write(file, index.to_string()).unwrap();
        };
        let part = format!("the shard name `{outside}` is not a plain file name");
        broken("llama-sharded", &ALL, edit, &["model.safetensors.index.json", &part]);
    }
    let wrong = index(|map| map["model.norm.weight"] = json!("model-00001-of-00003.safetensors"));
    let part = "the index says that `model.norm.weight` is in model-00001-of-00003.safetensors, but it is in";
    broken("llama-sharded", &ALL, wrong, &[part]);
    let nowhere = index(|map| map["ghost"] = json!("model-00001-of-00003.safetensors"));
    broken("llama-sharded", &ALL, nowhere, &["`ghost` is in model-00001-of-00003.safetensors, but it is not there"]);
    broken("llama-sharded", &ALL, index(|map| *map = json!([])), &["model.safetensors.index.json", "invalid type"]);
    broken("llama-sharded", &ALL, index(|map| *map = json!({})), &["model.safetensors.index.json", "is missing"]);
    let twice = |path: &Path| {
        let tensor = ("model.norm.weight".to_string(), (Dtype::F32, vec![1], vec![0; 4]));
        edit_weights(&path.join("model-00001-of-00003.safetensors"), |all| all.extend([tensor]));
    };
    broken("llama-sharded", &ALL, twice, &["`model.norm.weight` is in more than one shard"]);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_shard() {
    let pipe = |path: &Path| {
        let shard = path.join("model-00002-of-00003.safetensors");
        std::fs::remove_file(&shard).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(shard).status().unwrap().success());
    };
    broken("llama-sharded", &ALL, pipe, &["model-00002-of-00003.safetensors: it is not a regular file"]);
}

#[test]
fn a_pickle_is_never_read_and_the_error_says_how_to_convert_it() {
    let pickle = |path: &Path| {
        std::fs::rename(path.join("model.safetensors"), path.join("pytorch_model.bin")).unwrap();
    };
    broken("gpt2-odd", &ALL, pickle, &["pickle (pytorch_model.bin), which is never executed", "save_pretrained"]);
}

/// `generate` and `capture` refuse arguments; nothing is written.
fn bad_prompt(model: &Path, arguments: &[&str], parts: &[&str]) {
    let parent = tempfile::tempdir().unwrap();
    let renamed: Vec<&str> = arguments.iter().map(|&part| if part == "--prompt" { "--text" } else { part }).collect();
    refused(endoscope().arg("generate").arg(model).args(arguments), parts);
    let mut capture = endoscope();
    capture.arg("capture").arg(model).args(["--sites", "z", "--out"]).arg(parent.path().join("out"));
    refused(capture.args(renamed), parts);
    assert!(names(parent.path()).is_empty());
}

#[test]
fn texts_and_tokens_that_cannot_be_run() {
    let odd = Path::new("gpt2-odd");
    bad_prompt(odd, &["--prompt", "hello"], &["tokenizer.json is missing", "--tokens 1,2,3"]);
    bad_prompt(odd, &["--tokens", "1,41"], &["token id 41 (row 0, position 1) is out of range", "(0 to 40)"]);
    bad_prompt(odd, &["--tokens", "4294967296"], &["`4294967296` in --tokens is not a token id"]);
    bad_prompt(odd, &["--tokens=-1"], &["`-1` in --tokens is not a token id"]);
    bad_prompt(odd, &["--tokens", "1,x"], &["`x` in --tokens is not a token id"]);
    bad_prompt(odd, &["--tokens", ""], &["--tokens holds no token ids"]);
    bad_prompt(odd, &["--tokens", ","], &["--tokens holds no token ids"]);
    bad_prompt(odd, &[], &["required"]);
    bad_prompt(odd, &["--tokens", "1", "--prompt", "x"], &["cannot be used with"]);
    let long = vec!["1"; 41].join(",");
    bad_prompt(odd, &["--tokens", &long], &["the sequence has 41 tokens, but the model's context is 40"]);

    let words = copy_tiny("gpt2-odd");
    with_words(words.path());
    bad_prompt(words.path(), &["--prompt", ""], &["tokenizer.json", "the text \"\" has no tokens at all"]);
    bad_prompt(words.path(), &["--prompt", "", "--no-bos"], &["no tokens at all"]);
    bad_prompt(words.path(), &["--prompt", "a", "--bos"], &["no beginning-of-sequence token is known; use --no-bos"]);
    bad_prompt(words.path(), &["--prompt", "a", "--bos", "--no-bos"], &["cannot be used with"]);
    bad_prompt(words.path(), &["--prompt", &"a ".repeat(41)], &["41 tokens", "context is 40"]);

    // With a known token, an empty text is that token alone.
    let with_bos = copy_tiny("llama-grouped");
    with_words(with_bos.path());
    let prompt = |arguments: &[&str]| {
        let mut command = endoscope();
        command.arg("generate").arg(with_bos.path()).args(["--max-tokens", "1", "--json"]).args(arguments);
        document(&mut command)["prompt_tokens"].clone()
    };
    assert_eq!(prompt(&["--prompt", "", "--bos"]), json!([1]));
    assert_eq!(prompt(&["--prompt", "b c", "--bos"]), json!([1, 2, 3]));
    assert_eq!(prompt(&["--prompt", "b c"]), json!([2, 3]));
    bad_prompt(with_bos.path(), &["--prompt", "", "--no-bos"], &["no tokens at all"]);
}

#[test]
fn tokenizers_that_cannot_be_read() {
    for text in ["{", "[]", "{}", r#"{"model": {"type": "WordLevel"}}"#] {
        let write = |path: &Path| std::fs::write(path.join("tokenizer.json"), text).unwrap();
        broken("gpt2-odd", &ALL, write, &["tokenizer", "tokenizer.json: "]);
    }
    let write = |path: &Path| {
        with_words(path);
        std::fs::write(path.join("tokenizer_config.json"), "{").unwrap();
    };
    broken("gpt2-odd", &ALL, write, &["tokenizer_config.json"]);
    let write = |path: &Path| std::fs::write(path.join("generation_config.json"), "[]").unwrap();
    broken("gpt2-odd", &ALL, write, &["generation_config.json: it is not a JSON object"]);
}

#[test]
fn settings_of_generation_that_make_no_sense() {
    for (arguments, part) in [
        (["--temperature=-1"].as_slice(), "the temperature must be 0 or more"),
        (&["--temperature", "nan"], "the temperature must be 0 or more"),
        (&["--temperature", "inf"], "the temperature must be 0 or more"),
        (&["--top-k", "0"], "top-k must keep at least one token"),
        (&["--top-p", "0"], "top-p must lie above 0"),
        (&["--top-p", "1.5"], "top-p must lie above 0"),
        (&["--stop", ""], "an empty stop text"),
        (&["--stop", "x"], "tokenizer.json is missing"),
        (&["--max-tokens=-1"], "invalid value"),
        (&["--seed=-1"], "invalid value"),
    ] {
        refused(endoscope().args(["generate", "gpt2-odd", "--tokens", "1"]).args(arguments), &[part]);
    }
}

#[test]
fn sites_that_do_not_exist() {
    for (site, parts) in [
        ("resid_pots.1", ["unknown site `resid_pots.1`", "resid_post.1"]),
        ("resid_post.3", ["names layer 3", "has 3 layers (0 to 2)"]),
        ("resid_post.-4", ["names layer -4", "has 3 layers"]),
        ("blocks.99.hook_resid_pre", ["names layer 99", "has 3 layers"]),
        ("blocks.[", ["`blocks.[` is not a valid site pattern", ""]),
    ] {
        refused(endoscope().args(["inspect", "gpt2-odd", "--sites", site]), &parts);
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("new/out");
        let mut capture = endoscope();
        capture.args(["capture", "gpt2-odd", "--tokens", "1", "--sites", site]);
        refused(capture.arg("--out").arg(parent.path().join("out")), &parts);
        let prompts = parent.path().join("prompts");
        std::fs::write(&prompts, PROMPTS).unwrap();
        let mut patch = endoscope();
        patch.args(["patch", "gpt2-odd", "--site", site, "--prompts"]).arg(&prompts).arg("--out").arg(&out);
        refused(&mut patch, &parts);
        // Not even the directory that would have held it.
        assert_eq!(names(parent.path()), ["prompts"]);
    }
    for nothing in ["", " , "] {
        let parent = tempfile::tempdir().unwrap();
        let mut capture = endoscope();
        capture
            .args(["capture", "gpt2-odd", "--tokens", "1", "--sites", nothing, "--out"])
            .arg(parent.path().join("out"));
        refused(&mut capture, &["names no site"]);
        assert!(names(parent.path()).is_empty());
    }
}

/// `generate` and `capture` refuse a plan.
fn bad_plan(plan: &str, parts: &[&str]) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("plan.json");
    std::fs::write(&path, plan).unwrap();
    let mut generate = endoscope();
    refused(generate.args(["generate", "gpt2-odd", "--tokens", "1,2"]).arg("--plan").arg(&path), parts);
    let mut capture = endoscope();
    capture.args(["capture", "gpt2-odd", "--tokens", "1,2", "--sites", "resid_post.2", "--plan"]).arg(&path);
    refused(capture.arg("--out").arg(parent.path().join("out")), parts);
    assert_eq!(names(parent.path()), ["plan.json"]);
}

fn bad_edit(edit: Value, parts: &[&str]) {
    bad_plan(&json!({"edits": [edit]}).to_string(), parts);
}

#[test]
fn plans_that_cannot_be_read() {
    bad_plan("", &["plan.json is not a plan"]);
    bad_plan("{\"edits\": [", &["plan.json is not a plan", "EOF"]);
    bad_plan("[1]", &["plan.json is not a plan"]);
    bad_plan(r#"{"edit": []}"#, &["plan.json is not a plan", "unknown field `edit`"]);
    bad_plan(r#"{"captures": [{"sites": "z"}]}"#, &["unknown field `sites`"]);
    bad_edit(json!({"site": "z.0", "change": "zeroed"}), &["unknown variant `zeroed`"]);
    bad_edit(json!({"site": "z.0", "select": {"heads": 1}, "change": "zero"}), &["unknown variant `heads`"]);
    bad_edit(json!({"site": "z.0", "select": {"head": 1.5}, "change": "zero"}), &["an index is a whole number"]);
    bad_edit(json!({"site": "z.0", "select": {"head": "first"}, "change": "zero"}), &["`first` is not an index"]);
    let add = |value: Value| json!({"site": "resid_pre.0", "change": {"add": {"value": value}}});
    bad_edit(add(json!("much")), &["a number, {\"shape\": […], \"data\": […]} or {\"file\": …"]);
    bad_edit(add(json!({"shape": [3], "data": [1.0]})), &["an array of shape [3] cannot hold 1 numbers"]);
    bad_edit(add(json!({"shape": [0, 1u64 << 63, 1u64 << 63], "data": []})), &["cannot hold 0 numbers"]);
    bad_edit(add(json!({"shape": [1], "data": [null]})), &["invalid type: null"]);
    bad_edit(add(json!({"shape": [1]})), &["a value is a number"]);
    bad_edit(add(json!({"file": "x", "shape": [1]})), &["a value is a number"]);
    bad_edit(add(json!({"file": "x", "name": "y"})), &["unknown field `name`"]);
    bad_plan(r#"{"edits": [{"site": "z.0", "change": {"scale": {"factor": NaN}}}]}"#, &["plan.json is not a plan"]);
    refused(
        endoscope().args(["generate", "gpt2-odd", "--tokens", "1", "--plan", "gone.json"]),
        &["cannot read the plan gone.json"],
    );
}

#[test]
fn plans_that_do_not_fit_the_model() {
    let zero = |site: &str, axis: &str, index: Value| json!({"site": site, "select": {axis: index}, "change": "zero"});
    bad_edit(zero("z.7", "head", json!(0)), &["names layer 7", "3 layers"]);
    bad_edit(zero("zz.0", "head", json!(0)), &["unknown site `zz.0`", "nearest"]);
    bad_edit(
        zero("z.0", "head", json!(5)),
        &["index 5 is out of range for axis `head` of `blocks.0.attn.hook_z`, which has 5"],
    );
    bad_edit(zero("z.0", "head", json!(-6)), &["index -6 is out of range"]);
    bad_edit(zero("z.0", "head", json!([0, 0])), &["index 0 is listed twice"]);
    bad_edit(zero("z.0", "dim", json!("2..9")), &["out of range for axis `dim`"]);
    bad_edit(zero("resid_pre.0", "head", json!(0)), &["no axis `head`", "batch, position, dim=20"]);
    bad_edit(zero("z.0", "batch", json!(3)), &["index 3 is out of range for axis `batch`"]);
    bad_edit(zero("z.0", "position", json!(-3)), &["index -3 is out of range for axis `position`"]);
    let set = |value: Value| json!({"site": "resid_pre.0", "change": {"set": {"value": value}}});
    bad_edit(
        set(json!({"shape": [2], "data": [1.0, 2.0]})),
        &["`blocks.0.hook_resid_pre` has shape [2], which does not fit"],
    );
    bad_edit(set(json!(1e300)), &["holds a NaN or an infinity"]);
    bad_edit(set(json!({"shape": [1], "data": [1e39]})), &["number out of range"]);
    bad_edit(json!({"site": "z.0", "change": {"scale": {"factor": 1e300}}}), &["factor", "holds a NaN or an infinity"]);
    bad_edit(json!({"site": "z.0", "change": "knock_out"}), &["edges are knocked out at"]);
    let project = json!({"shape": [20], "data": vec![0.0; 20]});
    bad_edit(
        json!({"site": "resid_pre.0", "change": {"project_out": {"directions": project}}}),
        &["all directions are zero"],
    );
    bad_edit(
        json!({"site": "attn_scores.0", "change": "knock_out"}),
        &["it leaves query 0 of head 0 no key to attend to"],
    );
    bad_edit(json!({"site": "resid_pre.0", "change": {"mean": {"over": ["head"]}}}), &["no axis `head`"]);
    // A position past the prompt is an error where nothing grows.
    let parent = tempfile::tempdir().unwrap();
    let plan = parent.path().join("plan.json");
    std::fs::write(&plan, json!({"edits": [zero("z.0", "position", json!(2))]}).to_string()).unwrap();
    let mut capture = endoscope();
    capture.args(["capture", "gpt2-odd", "--tokens", "1,2", "--sites", "z", "--plan"]).arg(&plan);
    refused(capture.arg("--out").arg(parent.path().join("out")), &["index 2 is out of range for axis `position`"]);
    // What a plan captures must have a place.
    std::fs::write(&plan, r#"{"captures": [{"site": "z"}]}"#).unwrap();
    let mut generate = endoscope();
    refused(generate.args(["generate", "gpt2-odd", "--tokens", "1", "--plan"]).arg(&plan), &["--out FILE.safetensors"]);
    // Twice with different selections.
    std::fs::write(&plan, r#"{"captures": [{"site": "z.0", "select": {"head": 1}}]}"#).unwrap();
    let mut capture = endoscope();
    capture.args(["capture", "gpt2-odd", "--tokens", "1,2", "--sites", "z.0", "--plan"]).arg(&plan);
    refused(capture.arg("--out").arg(parent.path().join("out")), &["`blocks.0.attn.hook_z` is captured twice"]);
    assert_eq!(names(parent.path()), ["plan.json"]);
}

#[test]
fn files_named_by_a_plan() {
    let files = tempfile::tempdir().unwrap();
    let edit = |file: &Path, tensor: &str| json!({"site": "resid_pre.0", "change": {"set": {"value": {"file": file, "tensor": tensor}}}});
    let at = |name: &str| files.path().join(name);
    let save = |name: &str, dtype: Dtype, shape: Vec<usize>, data: &[u8]| {
        let view = safetensors::tensor::TensorView::new(dtype, shape, data).unwrap();
        std::fs::write(at(name), safetensors::serialize([("v", view)], None).unwrap()).unwrap();
        at(name)
    };
    bad_edit(edit(&at("gone"), "v"), &["cannot read", "gone named by the plan"]);
    bad_edit(edit(files.path(), "v"), &["it is not a regular file"]);
    std::fs::write(at("text"), "hello").unwrap();
    bad_edit(edit(&at("text"), "v"), &["text named by the plan"]);
    let two = save("two", Dtype::F32, vec![2], &[0; 8]);
    bad_edit(edit(&two, "w"), &["it has no tensor `w` (it has v)"]);
    bad_edit(edit(&two, "v"), &["has shape [2], which does not fit"]);
    let nan = save("nan", Dtype::F32, vec![1], &f32::NAN.to_le_bytes());
    bad_edit(edit(&nan, "v"), &["holds a NaN or an infinity"]);
    let bits = save("bits", Dtype::BOOL, vec![1], &[1]);
    bad_edit(edit(&bits, "v"), &["bits named by the plan", "`v`"]);
    let source = json!({"file": two, "tensor": "v"});
    bad_edit(json!({"site": "resid_pre.0", "change": {"patch": {"source": source}}}), &["the source of the edit"]);
    #[cfg(unix)]
    bad_edit(edit(Path::new("/dev/zero"), "v"), &["/dev/zero", "it is not a regular file"]);
}

/// `patch` refuses prompts.
fn bad_prompts(model: &Path, prompts: &str, parts: &[&str]) -> String {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("prompts.json");
    std::fs::write(&path, prompts).unwrap();
    let mut patch = endoscope();
    patch.arg("patch").arg(model).args(["--site", "resid_pre", "--prompts"]).arg(&path);
    let said = refused(patch.arg("--out").arg(parent.path().join("new/out")), parts);
    assert_eq!(names(parent.path()), ["prompts.json"]);
    said
}

#[test]
fn prompt_files_that_cannot_be_used() {
    let odd = Path::new("gpt2-odd");
    bad_prompts(odd, "", &["prompts.json", "the file is empty"]);
    bad_prompts(odd, "[]", &["prompts.json", "holds no prompts"]);
    bad_prompts(odd, r#"{"prompts": []}"#, &["holds no prompts"]);
    bad_prompts(odd, r#"{"prompts": 1}"#, &["`prompts` is not a list"]);
    bad_prompts(odd, "hello", &["neither JSON nor a CSV"]);
    bad_prompts(odd, "{\"prompts\": [", &["EOF"]);
    bad_prompts(odd, &format!("{PROMPTS} x"), &["something follows"]);
    bad_prompts(odd, r#"{"pairs": []}"#, &["prompt 0: missing field `clean`"]);
    let good = r#"{"clean":[1],"corrupt":[2],"answers":[1],"wrong_answers":[2]}"#;
    let second = |bad: &str| format!("[{good},{bad}]");
    bad_prompts(
        odd,
        &second(r#"{"clean":[1],"corrupted":[2],"answers":[1],"wrong_answers":[2]}"#),
        &["pair 1: `corrupt` is missing"],
    );
    bad_prompts(odd, &second(r#"{"clean":[-1],"corrupt":[2]}"#), &["prompt 1: ", "a list of token ids"]);
    bad_prompts(odd, &second(r#"{"clean":[1],"corrupt":[2]}"#), &["pair 1: `answers` is missing or empty"]);
    bad_prompts(odd, &second(r#"{"clean":[1],"corrupt":[2],"answers":[1]}"#), &["pair 1: `wrong_answers` is missing"]);
    bad_prompts(
        odd,
        &second(r#"{"clean":[],"corrupt":[],"answers":[1],"wrong_answers":[2]}"#),
        &["pair 1: a prompt has no tokens"],
    );
    bad_prompts(
        odd,
        r#"[{"clean":[1],"corrupt":[2],"answers":[41],"wrong_answers":[2]}]"#,
        &["pair 0", "token id 41 is out of range", "41 logits"],
    );
    bad_prompts(
        odd,
        r#"[{"clean":[1],"corrupt":[2],"answers":[4294967295],"wrong_answers":[2]}]"#,
        &["4294967295 is out of range"],
    );
    bad_prompts(
        odd,
        r#"[{"clean":[1],"corrupt":[2],"answers":[-1],"wrong_answers":[2]}]"#,
        &["prompt 0: ", "a token id"],
    );
    bad_prompts(
        odd,
        r#"[{"clean":[99],"corrupt":[2],"answers":[1],"wrong_answers":[2]}]"#,
        &["token id 99", "out of range"],
    );
    bad_prompts(
        odd,
        r#"[{"clean":"a","corrupt":"b","answers":[1],"wrong_answers":[2]}]"#,
        &["pair 0", "tokenizer.json is missing"],
    );
    bad_prompts(
        odd,
        &second(r#"{"clean":[1,2],"corrupt":[2,2],"answers":[1],"wrong_answers":[2]}"#),
        &["pair 1", "pairs of one length"],
    );
    let long = json!([{"clean": vec![1; 41], "corrupt": vec![2; 41], "answers": [1], "wrong_answers": [2]}]);
    bad_prompts(odd, &long.to_string(), &["41 tokens", "context is 40"]);
    bad_prompts(odd, "clean,corrupted,correct_idx\na,b,1\n", &["`incorrect_idx` is missing"]);
    bad_prompts(odd, "clean,corrupted,correct_idx,incorrect_idx\na,b,x,1\n", &["pair 0: `x` is not a token id"]);
    // capture reads the same files.
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("prompts.json");
    std::fs::write(&path, r#"[{"clean":[1]},{"clean":[]}]"#).unwrap();
    let mut capture = endoscope();
    capture.args(["capture", "gpt2-odd", "--sites", "z", "--prompts"]).arg(&path);
    refused(capture.arg("--out").arg(parent.path().join("out")), &["prompt 1 has no tokens at all"]);
    assert_eq!(names(parent.path()), ["prompts.json"]);
}

#[test]
fn unequal_lengths_show_both_token_lists() {
    let words = copy_tiny("gpt2-odd");
    with_words(words.path());
    let pair = r#"[{"clean":"a b c","corrupt":"a d","answers":["a"],"wrong_answers":["b"]}]"#;
    insta::assert_snapshot!(bad_prompts(words.path(), pair, &[]), @r"
    error: prompt pair 0: clean has 3 tokens and corrupt has 2; patching needs equal length
      clean:   a | b | c
      corrupt: a | d
    ");
}

#[test]
fn sweeps_that_make_no_sense() {
    let sweep = |arguments: &[&str], part: &str| {
        let parent = tempfile::tempdir().unwrap();
        let prompts = parent.path().join("prompts");
        std::fs::write(&prompts, PROMPTS).unwrap();
        let mut patch = endoscope();
        patch.args(["patch", "gpt2-odd", "--prompts"]).arg(&prompts).args(arguments);
        refused(patch.arg("--out").arg(parent.path().join("out")), &[part]);
        assert_eq!(names(parent.path()), ["prompts"]);
    };
    sweep(&["--site", "resid_pre", "--over", "layer,head"], "has no axis head");
    sweep(&["--site", "resid_pre", "--over", "layer,layer"], "named twice");
    sweep(
        &["--site", "resid_pre", "--over", "depth"],
        "the axes are layer, position, head, neuron, key, direction, pair",
    );
    sweep(&["--site", "hook_embed"], "lies in no layer");
    sweep(&["--site", "resid_*"], "several sites of layer 0");
    sweep(&["--site", "mlp_post", "--over", "layer,neuron", "--block", "0"], "at least one neuron");
    sweep(&["--site", "z", "--metric", "cleverness"], "possible values");
}

#[test]
fn places_that_cannot_be_written() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    let out_of = |verb: &str, out: &Path, parts: &[&str]| {
        let mut command = endoscope();
        match verb {
            "capture" => command.args(["capture", "gpt2-odd", "--tokens", "1", "--sites", "z", "--out"]).arg(out),
            "generate" => {
                let arguments = ["generate", "gpt2-odd", "--tokens", "1", "--max-tokens", "2", "--plan"];
                command.args(arguments).arg(at("plan")).arg("--out").arg(out)
            }
            _ => {
                command.args(["patch", "gpt2-odd", "--site", "z", "--prompts"]).arg(at("prompts")).arg("--out").arg(out)
            }
        };
        refused(&mut command, parts)
    };
    std::fs::write(at("prompts"), PROMPTS).unwrap();
    std::fs::write(at("plan"), r#"{"captures": [{"site": "z"}]}"#).unwrap();
    std::fs::write(at("file"), "mine").unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    std::fs::write(at("directory/inside"), "mine").unwrap();
    let before = names(parent.path());
    // A run directory never replaces anything.
    for taken in ["file", "directory"] {
        out_of("patch", &at(taken), &[taken, "exists already; choose another --out or remove it"]);
    }
    out_of("patch", &at("file/below"), &["file"]);
    out_of("patch", Path::new(""), &["a value is required for '--out"]);
    // A file needs its directory, and replaces nothing but a file.
    for verb in ["capture", "generate"] {
        out_of(verb, &at("gone/out"), &["cannot create a file beside", "gone/out", "No such file or directory"]);
        out_of(verb, &at("file/out"), &["file/out"]);
        out_of(verb, &at("directory"), &["directory` is a directory"]);
        out_of(verb, Path::new(".."), &["is a directory"]);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let fifo = at("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        symlink("/dev/full", at("full")).unwrap();
        symlink("nowhere", at("lost")).unwrap();
        for verb in ["capture", "generate"] {
            out_of(verb, &fifo, &["fifo` is a special file"]);
            out_of(verb, &at("full"), &["full` is a special file"]);
            out_of(verb, &at("lost"), &["lost` is a link to nothing"]);
        }
        for taken in ["fifo", "full", "lost"] {
            out_of("patch", &at(taken), &["exists already"]);
        }
        assert!(std::fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
        assert!(std::fs::symlink_metadata(at("full")).unwrap().is_symlink());
        assert!(std::fs::metadata("/dev/full").unwrap().file_type().is_char_device());
        for made in ["fifo", "full", "lost"] {
            std::fs::remove_file(at(made)).unwrap();
        }
    }
    assert_eq!(names(parent.path()), before);
    assert_eq!(std::fs::read_to_string(at("file")).unwrap(), "mine");
    assert_eq!(names(&at("directory")), ["inside"]);
}

#[test]
fn a_failed_capture_leaves_the_old_file() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    std::fs::write(&out, "old").unwrap();
    let mut command = endoscope();
    refused(
        command.args(["capture", "gpt2-odd", "--tokens", "99", "--sites", "z", "--out"]).arg(&out),
        &["token id 99"],
    );
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "old");
    assert_eq!(names(parent.path()), ["out"]);
}

/// A disk that takes no file over one block: writing fails in the middle.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let prompts = parent.path().join("prompts");
    std::fs::write(&prompts, PROMPTS).unwrap();
    let limited = |arguments: &str| {
        let mut command = Command::new("bash");
        let script = format!("trap '' XFSZ; ulimit -f 1; exec \"$0\" {arguments}");
        command
            .current_dir(tiny_models())
            .arg("-c")
            .arg(script)
            .arg(env!("CARGO_BIN_EXE_endoscope"))
            .arg(parent.path());
        refused(&mut command, &["cannot write", "File too large"]);
        assert_eq!(names(parent.path()), ["prompts"], "{arguments}");
    };
    limited("capture gpt2-odd --tokens 1,2,3 --sites '*' --out \"$1/out\"");
    limited("patch gpt2-odd --site z --prompts \"$1/prompts\" --out \"$1/out\"");
    limited("patch gpt2-odd --site z --prompts \"$1/prompts\" --out \"$1/new/parent/out\" --json");
}

/// A reader that leaves in the middle ends the generation.
#[test]
fn a_reader_that_leaves_ends_the_generation() {
    use std::io::Read;
    let Some(model) = shared_model("stories260k") else { return };
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_endoscope"));
    command.arg("generate").arg(model).args(["--prompt", "", "--max-tokens", "511", "--ignore-end-token"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 9];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"Once upon");
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !stderr.contains("panicked") && stderr.contains("closed"), "{stderr}");
}

#[test]
fn a_run_that_is_killed_leaves_nothing_under_its_name() {
    let parent = tempfile::tempdir().unwrap();
    let [prompts, out] = ["prompts", "out"].map(|name| parent.path().join(name));
    // Some 17,000 whole forward passes: the end is far away when the first file appears.
    let row = |first: u32| (0..60).map(|at| (first + at) % 43).collect::<Vec<u32>>();
    let pair = json!({"clean": row(1), "corrupt": row(2), "answers": [4], "wrong_answers": [5]});
    std::fs::write(&prompts, json!([pair, pair, pair, pair]).to_string()).unwrap();
    let arguments = ["patch", "llama-grouped", "--site", "resid_pre", "--planner", "naive"];
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_endoscope"));
    command.current_dir(tiny_models()).args(arguments).args(["--over", "layer,position,neuron", "--block", "1"]);
    let mut child =
        command.arg("--prompts").arg(&prompts).arg("--out").arg(&out).stderr(Stdio::null()).spawn().unwrap();
    while names(parent.path()) == ["prompts"] {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!out.exists());
    // What it left does not stand in the way of the same command.
    let mut again = endoscope();
    again.args(&arguments[..4]).arg("--prompts").arg(&prompts).arg("--out").arg(&out).assert().success();
    assert!(out.join("report.html").is_file());
}
