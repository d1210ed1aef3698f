//! `endoscope generate`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use serde_json::{Value, json};

/// How many tokens the published story has.
const STORY: usize = 200;

fn story() -> Option<(std::path::PathBuf, String)> {
    let model = shared_model("stories260k")?;
    let golden = read_json(&model.join("golden.json"));
    // The first id is the beginning-of-sequence token.
    assert_eq!(golden["greedy_ids"].as_array().unwrap().len(), 1 + STORY);
    Some((model, golden["greedy_text"].as_str().unwrap().to_string()))
}

#[test]
fn greedy_tokens_equal_those_of_transformers_with_and_without_the_cache() {
    let golden = read_json(&tiny_models().join("generation.json"));
    for (model, case) in golden["models"].as_object().unwrap() {
        let count = case["generated"].as_array().unwrap().len().to_string();
        let prompt = comma_separated(&case["prompt"]);
        let arguments = ["generate", model, "--tokens", &prompt, "--max-tokens", &count, "--ignore-end-token"];
        for extra in [["--json"].as_slice(), &["--json", "--no-cache"]] {
            let found = document(endoscope().args(arguments).args(extra));
            assert_eq!(found["tokens"], case["generated"], "{model} {extra:?}");
            assert_eq!(found["prompt_tokens"], case["prompt"]);
            assert_eq!((&found["finish"], &found["text"]), (&json!("length"), &Value::Null));
        }
        // As text, a model without a tokenizer writes its ids.
        let ids = text(endoscope().args(arguments));
        assert_eq!(ids, format!("{} \n", comma_separated(&case["generated"]).replace(',', " ")));
    }
}

#[test]
fn the_published_story_stands_on_standard_output_exactly() {
    let Some((model, story)) = story() else { return };
    let tell = |extra: &[&str]| {
        let mut command = endoscope();
        command.arg("generate").arg(&model).args(["--prompt", "", "--temperature", "0"]).args(extra);
        text(&mut command)
    };
    assert_eq!(tell(&["--max-tokens", "200"]), format!("{story}\n"));
    // One token less, one word less.
    assert_eq!(tell(&["--max-tokens", "199"]), format!("{}\n", story.strip_suffix(" she").unwrap()));
    assert_eq!(tell(&["--max-tokens", "40", "--no-cache"]), tell(&["--max-tokens", "40"]));
    assert_eq!(tell(&["--stop", "girl named"]), "Once upon a time, there was a little \n");
    let mut command = endoscope();
    command.arg("generate").arg(&model).args(["--prompt", "", "--max-tokens", "200", "--json"]);
    let found = document(&mut command);
    assert_eq!(found["text"], json!(story));
    assert_eq!((&found["prompt_tokens"], &found["prepended"]), (&json!([1]), &json!("<s>")));
}

#[test]
fn the_same_seed_tells_the_same_story_and_another_another() {
    let tell = |seed: &str, cache: &[&str]| {
        let mut command = endoscope();
        command.args(["generate", "llama-grouped", "--tokens", "1,2", "--max-tokens", "30", "--json"]);
        command.args(["--temperature", "1", "--top-k", "20", "--top-p", "0.95", "--ignore-end-token"]).args(cache);
        document(command.args(["--seed", seed]))
    };
    let (a, b, other) = (tell("7", &[]), tell("7", &[]), tell("8", &[]));
    assert_eq!(a, b);
    assert_ne!(a["tokens"], other["tokens"]);
    assert_eq!(a["seed"], 7);
    assert_eq!(tell("7", &["--no-cache"])["tokens"], a["tokens"]);
}

#[test]
fn a_plan_changes_the_text_and_an_empty_one_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let [empty, zero, out] = ["empty.json", "zero.json", "out.safetensors"].map(|name| directory.path().join(name));
    std::fs::write(&empty, "{}").unwrap();
    let capture = json!({"site": "resid_pre.1"});
    let edit = json!({"site": "resid_post.*", "select": {"position": "1.."}, "change": "zero"});
    std::fs::write(&zero, json!({"captures": [capture], "edits": [edit]}).to_string()).unwrap();
    let tell = || {
        let mut command = endoscope();
        command.args(["generate", "llama-grouped", "--tokens", "28,15,13", "--max-tokens", "12", "--ignore-end-token"]);
        command
    };
    let plain = text(&mut tell());
    assert_eq!(text(tell().arg("--plan").arg(&empty)), plain);
    assert_ne!(text(tell().arg("--plan").arg(&zero).arg("--out").arg(&out)), plain);
    // The prompt's 3 positions and the 11 of the 12 generated tokens that were read; layer 0's zeros arrive at layer 1.
    let found = load(&out).remove("blocks.1.hook_resid_pre").unwrap();
    assert_eq!(found.dims(), [1, 14, 24]);
    let sizes = found.abs().unwrap().sum(2).unwrap().to_vec2::<f32>().unwrap();
    assert!(sizes[0][0] > 0. && sizes[0][1..].iter().all(|&size| size == 0.), "{sizes:?}");
}

#[test]
fn the_largest_counts_end_at_the_context() {
    let most = u64::MAX.to_string();
    let arguments = ["generate", "gpt2-odd", "--tokens", "1,2,3", "--json", "--ignore-end-token", "--max-tokens"];
    let found = document(endoscope().args(arguments).arg(&most));
    assert_eq!(found["finish"], "context");
    assert_eq!(found["tokens"].as_array().unwrap().len(), 37);
    let greedy = document(endoscope().args(arguments).args(["5", "--top-k", &most, "--temperature", "1e-300"]));
    assert_eq!(greedy["tokens"].as_array().unwrap()[..], found["tokens"].as_array().unwrap()[..5]);
}

#[test]
fn neither_threads_nor_their_number_change_the_text_and_fewer_bits_are_taken() {
    let text = |arguments: &[&str]| {
        let mut command = endoscope();
        command.arg("generate").arg(organism());
        command.args(["--prompt", "ba da fa ga ba da", "--max-tokens", "3", "--json"]);
        document(command.args(arguments))["tokens"].clone()
    };
    let plain = text(&[]);
    for arguments in [&["--threads", "1"][..], &["--threads", "3"], &["--weights", "bf16"], &["--weights", "int8"]] {
        assert_eq!(text(arguments), plain, "{arguments:?}");
    }
    for (option, value) in [("--threads", "0"), ("--weights", "f8")] {
        endoscope().arg("generate").arg(organism()).args(["--tokens", "1", option, value]).assert().failure();
    }
}

#[test]
fn many_prompts_are_continued_as_each_would_be_alone() {
    let directory = tempfile::tempdir().unwrap();
    let rows = [vec![1, 5, 3], vec![7], vec![2, 9, 9, 4]];
    let path = directory.path().join("rows.json");
    let prompts: Vec<Value> = rows.iter().map(|ids| json!({"clean": ids})).collect();
    std::fs::write(&path, json!({"prompts": prompts}).to_string()).unwrap();
    let plan = directory.path().join("plan.json");
    std::fs::write(&plan, r#"{"captures": [{"site": "resid_post.0"}]}"#).unwrap();
    let common = ["generate", "qwen3-odd", "--max-tokens", "6", "--temperature", "1"];
    let out = directory.path().join("captured.safetensors");
    let mut together = endoscope();
    together.args(common).args(["--json", "--seed", "5", "--prompts"]).arg(&path);
    let together = document(together.arg("--plan").arg(&plan).arg("--out").arg(&out));
    let captured = load(&out);
    assert_eq!(captured.len(), 3);
    for (number, row) in rows.iter().enumerate() {
        let seed = (5 + number).to_string();
        let mut alone = endoscope();
        let tokens = comma_separated(&json!(row));
        let alone = document(alone.args(common).args(["--json", "--seed", &seed, "--tokens", &tokens]));
        let found = &together["rows"][number];
        for key in ["tokens", "finish", "prompt_tokens", "seed"] {
            assert_eq!(found[key], alone[key], "{number} {key}");
        }
        let length = row.len() + found["tokens"].as_array().unwrap().len() - 1;
        assert_eq!(captured[&format!("{number}/blocks.0.hook_resid_post")].dims()[..2], [1, length]);
    }
    let mut command = endoscope();
    let shown = text(command.args(common).arg("--prompts").arg(&path));
    assert_eq!(shown.lines().map(|line| line.split_once(": ").unwrap().0).collect::<Vec<_>>(), ["0", "1", "2"]);
}
