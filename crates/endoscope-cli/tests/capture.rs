//! `endoscope capture`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{DType, Tensor};
use common::*;
use serde_json::{Value, json};

/// A prompt file whose clean prompts are the golden's tokens.
fn prompts(golden: &Tensor, directory: &Path) -> std::path::PathBuf {
    let rows = golden.to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    let prompts: Vec<Value> = rows.into_iter().map(|ids| json!({"clean": ids})).collect();
    let path = directory.join("prompts.json");
    std::fs::write(&path, json!({"prompts": prompts}).to_string()).unwrap();
    path
}

#[test]
fn every_site_equals_the_goldens_through_the_file() {
    let directory = tempfile::tempdir().unwrap();
    for (model, golden) in [("gpt2-odd", "seq37"), ("llama-grouped", "seq2"), ("llama-sharded", "seq1")] {
        let golden = load(&tiny_models().join(model).join(golden).with_extension("safetensors"));
        let out = directory.path().join(format!("{model}.safetensors"));
        let prompts = prompts(&golden["tokens"], directory.path());
        let mut command = endoscope();
        command.args(["capture", model, "--json", "--sites", "*", "--prompts"]).arg(prompts).arg("--out").arg(&out);
        let said = document(&mut command);
        let found = load(&out);
        // Names are full site names, plus the tokens.
        let inspected = document(endoscope().args(["inspect", model, "--json"]));
        let sites = inspected["sites"].as_array().unwrap().iter().map(|site| site["name"].as_str().unwrap());
        let wanted: BTreeSet<&str> = sites.chain(["tokens"]).collect();
        assert_eq!(found.keys().map(String::as_str).collect::<BTreeSet<_>>(), wanted);
        assert_eq!(said["tensors"].as_object().unwrap().len(), wanted.len());
        assert_eq!(found["tokens"].dtype(), DType::I64);
        for (name, expected) in &golden {
            let difference = difference(&found[name], expected);
            assert!(difference <= SITE_TOLERANCE, "{model} {name}: differs by {difference:e}");
            assert_eq!(said["tensors"][name], json!(expected.dims()));
        }
    }
}

#[test]
fn a_text_is_tokenized_as_the_golden_was() {
    let Some(model) = shared_model("stories260k") else { return };
    let golden = read_json(&sweep_goldens("stories260k_patch.json"));
    let pairs = read_json(&sweep_goldens("stories260k_pairs.json"));
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, arguments: &[&str]| {
        let out = directory.path().join(name);
        let mut command = endoscope();
        command.arg("capture").arg(&model).args(["--json", "--sites", "resid_post.-1", "--out"]).arg(&out);
        let said = document(command.args(arguments));
        (said["tokens"].clone(), load(&out))
    };
    let clean = pairs["prompts"][0]["clean"].as_str().unwrap();
    let ids = &golden["prompts"][0]["clean"];
    let (tokens, by_text) = run("text", &["--text", clean]);
    assert_eq!(tokens, json!([ids]));
    let (_, by_ids) = run("ids", &["--tokens", &comma_separated(ids)]);
    assert_eq!(difference(&by_text["blocks.4.hook_resid_post"], &by_ids["blocks.4.hook_resid_post"]), 0.);
    // An empty text is the beginning-of-sequence token alone; the text without it is one token shorter.
    assert_eq!(run("empty", &["--text", "", "--bos"]).0, json!([[1]]));
    assert_eq!(run("without", &["--text", clean, "--no-bos"]).0[0].as_array().unwrap().len(), 13);
}

#[test]
fn a_plan_is_applied_and_its_captures_are_added() {
    let directory = tempfile::tempdir().unwrap();
    let (plan, out) = (directory.path().join("plan.json"), directory.path().join("out.safetensors"));
    let edit = json!({"site": "resid_pre.1", "select": {"position": 1}, "change": "zero"});
    let capture = json!({"site": "pattern.0", "select": {"head": [4, 0]}});
    std::fs::write(&plan, json!({"edits": [edit], "captures": [capture]}).to_string()).unwrap();
    let mut command = endoscope();
    command.args(["capture", "gpt2-odd", "--tokens", "5, 6,7", "--sites", "resid_pre.{0,1}", "--plan"]).arg(&plan);
    let said = text(command.arg("--out").arg(&out));
    assert!(said.contains("blocks.1.hook_resid_pre") && said.contains("[1, 3, 20]"), "{said}");
    let found = load(&out);
    assert_eq!(found["blocks.0.attn.hook_pattern"].dims(), [1, 2, 3, 3]);
    let sizes = found["blocks.1.hook_resid_pre"].abs().unwrap().sum(2).unwrap().to_vec2::<f32>().unwrap();
    assert!(sizes[0][0] > 0. && sizes[0][1] == 0. && sizes[0][2] > 0.);
    // An old file is replaced.
    let before = std::fs::read(&out).unwrap();
    text(endoscope().args(["capture", "gpt2-odd", "--tokens", "5", "--sites", "z", "--out"]).arg(&out));
    assert_ne!(std::fs::read(&out).unwrap(), before);
    assert_eq!(names(directory.path()), ["out.safetensors", "plan.json"]);
}

#[test]
fn rows_of_unequal_length_are_filled_at_the_side_that_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let rows = [vec![1, 5, 3], vec![7], vec![2, 9, 9, 4]];
    let write = |rows: &[Vec<u32>]| {
        let path = directory.path().join("rows.json");
        let prompts: Vec<Value> = rows.iter().map(|ids| json!({"clean": ids})).collect();
        std::fs::write(&path, json!({"prompts": prompts}).to_string()).unwrap();
        path
    };
    let capture = |rows: &[Vec<u32>], extra: &[&str]| {
        let out = directory.path().join("out.safetensors");
        let mut command = endoscope();
        command.args(["capture", "gemma2-odd", "--json", "--sites", "resid_post.1,pattern.0", "--prompts"]);
        let said = document(command.arg(write(rows)).arg("--out").arg(&out).args(extra));
        (said, load(&out))
    };
    for (side, extra) in [("right", &[][..]), ("left", &["--padding", "left"])] {
        let (said, padded) = capture(&rows, extra);
        assert_eq!((&said["padding"], &said["tokens"]), (&json!(side), &json!(rows)));
        let mask = padded["attention_mask"].to_vec2::<i64>().unwrap();
        assert_eq!(mask[1], if side == "left" { [0, 0, 0, 1] } else { [1, 0, 0, 0] });
        for (number, row) in rows.iter().enumerate() {
            let (_, alone) = capture(std::slice::from_ref(row), &[]);
            assert!(!alone.contains_key("attention_mask"));
            let start = if side == "left" { 4 - row.len() } else { 0 };
            let cut = |tensor: &Tensor, axis: usize| tensor.narrow(axis, start, row.len()).unwrap();
            let stream = "blocks.1.hook_resid_post";
            let mine = cut(&padded[stream].narrow(0, number, 1).unwrap(), 1);
            assert_eq!(difference(&mine, &alone[stream]), 0.);
            let pattern = "blocks.0.attn.hook_pattern";
            let mine = cut(&cut(&padded[pattern].narrow(0, number, 1).unwrap(), 2), 3);
            assert_eq!(difference(&mine, &alone[pattern]), 0.);
        }
    }
}
