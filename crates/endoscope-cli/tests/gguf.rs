//! GGUF files as the model of a command.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use serde_json::json;

#[test]
fn a_file_is_inspected() {
    let found = document(endoscope().args(["inspect", "gguf/qwen3.gguf", "--json", "--sites", "q.1"]));
    assert_eq!((&found["model"], &found["family"]), (&json!("gguf/qwen3.gguf"), &json!("qwen3")));
    assert_eq!(found["files"], json!([{"role": "weights", "path": "gguf/qwen3.gguf"}]));
    assert_eq!(found["sites"][0]["name"], "blocks.1.attn.hook_q");
    let said = text(endoscope().args(["inspect", "gguf/qwen3.gguf"]));
    assert!(said.starts_with("gguf/qwen3.gguf\n"), "{said}");
    assert!(said.contains("tokenizer   none (its metadata hold none): give token ids"), "{said}");
}

#[test]
fn sites_of_a_file_equal_the_goldens() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["llama-k", "gemma2"] {
        let model = format!("gguf/{name}.gguf");
        let golden = load(&tiny_models().join("gguf").join(name).with_extension("safetensors"));
        let ids = golden["tokens"].to_vec2::<i64>().unwrap()[0].iter().map(i64::to_string).collect::<Vec<_>>();
        let out = directory.path().join(format!("{name}.safetensors"));
        let mut command = endoscope();
        command.args(["capture", &model, "--sites", "*", "--tokens", &ids.join(","), "--out"]).arg(&out);
        text(&mut command);
        let found = load(&out);
        for (site, expected) in golden.iter().filter(|(site, _)| *site != "tokens") {
            let difference = difference(&found[site], expected);
            assert!(difference <= SITE_TOLERANCE, "{name} {site}: differs by {difference:e}");
        }
    }
}

#[test]
fn a_file_generates_the_likeliest_tokens() {
    let golden = load(&tiny_models().join("gguf/llama.safetensors"));
    let ids = golden["tokens"].to_vec2::<i64>().unwrap()[0].iter().map(i64::to_string).collect::<Vec<_>>();
    let last = golden["hook_logits"].get(0).unwrap().get(ids.len() - 1).unwrap();
    let best = last.argmax(0).unwrap().to_scalar::<u32>().unwrap();
    let mut command = endoscope();
    command.args(["generate", "gguf/llama.gguf", "--tokens", &ids.join(","), "--temperature", "0"]);
    let said = document(command.args(["--max-tokens", "4", "--ignore-end-token", "--json"]));
    let generated = said["tokens"].as_array().unwrap();
    assert_eq!((generated.len(), &generated[0]), (4, &json!(best)), "{said}");
    refused(endoscope().args(["generate", "gguf/llama.gguf", "--prompt", "a"]), &["gguf/llama.gguf", "--tokens"]);
}
