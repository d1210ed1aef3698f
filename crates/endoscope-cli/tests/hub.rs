//! Hub ids on the command line, with a server on this machine that plays the hub.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod common;
#[path = "../../endoscope-models/tests/common/hub.rs"]
mod hub;

use std::path::Path;

use assert_cmd::Command;
use common::{document, endoscope, names, read_json, refused, text, tiny_models};
use hub::{Behaviour, COMMIT, Hub, ID};
use tempfile::TempDir;

/// Every variable that could lead elsewhere is replaced or removed.
fn command(hub: &Hub, home: &TempDir) -> Command {
    let mut command = endoscope();
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        command.env_remove(name);
    }
    for name in ["HF_HUB_DISABLE_IMPLICIT_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", home.path());
    command
}

fn of(name: &str) -> (Hub, TempDir) {
    (Hub::start(Behaviour::of(&tiny_models().join(name))), tempfile::tempdir().unwrap())
}

fn cached(home: &TempDir) -> std::path::PathBuf {
    home.path().join("hub/models--some-org--tiny.model/snapshots").join(COMMIT)
}

#[test]
fn inspect_asks_for_headers_only_and_names_the_commit() {
    let (hub, home) = of("llama-sharded");
    let inspected = document(command(&hub, &home).args(["inspect", ID, "--json"]).env("HF_TOKEN", "hf_secret"));
    let directory = document(endoscope().args(["inspect", "llama-sharded", "--json"]));
    for key in ["family", "parameters", "spec", "sites", "end_tokens"] {
        assert_eq!(inspected[key], directory[key], "{key}");
    }
    assert_eq!(inspected["revision"]["commit"], COMMIT);
    assert_eq!(inspected["revision"]["repository"], ID);
    assert!(directory["revision"].is_null());
    let weights = inspected["files"].as_array().unwrap().iter().filter(|file| file["role"] == "weights");
    assert!(weights.clone().any(|file| file["path"].as_str().unwrap().starts_with(&hub.endpoint)), "{inspected}");
    assert!(!names(&cached(&home)).iter().any(|name| name.ends_with(".safetensors")));
    let requests = hub.requests();
    assert!(requests.iter().filter(|request| request.at_hub).all(|r| r.headers["authorization"] == "Bearer hf_secret"));
    let shown = text(command(&hub, &home).args(["inspect", &format!("{ID}@main")]));
    assert!(shown.starts_with(&format!("{ID} at commit {COMMIT}\n")), "{shown}");
}

#[test]
fn a_model_is_downloaded_once_and_then_opens_offline() {
    let (hub, home) = of("gpt2-odd");
    let arguments = ["generate", ID, "--tokens", "1,2,3", "--max-tokens", "5", "--json"];
    let online = document(command(&hub, &home).args(arguments));
    let local = document(endoscope().args(["generate", "gpt2-odd"]).args(&arguments[2..]));
    assert_eq!(online["tokens"], local["tokens"]);
    hub.requests();
    let offline = document(command(&hub, &home).env("HF_HUB_OFFLINE", "1").args(arguments));
    assert_eq!(offline["tokens"], local["tokens"]);
    assert_eq!(hub.requests(), []);
}

#[test]
fn a_run_directory_names_the_commit() {
    let (hub, home) = of("gpt2-odd");
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.json");
    let pairs = r#"{"prompts": [{"clean": [1, 2, 3], "corrupt": [1, 4, 3], "answers": [5], "wrong_answers": [6]}]}"#;
    std::fs::write(&prompts, pairs).unwrap();
    let run = |model: &str, out: &Path| {
        let arguments = ["--site", "resid_pre", "--over", "layer"];
        let mut command = command(&hub, &home);
        command.args(["patch", model, "--prompts"]).arg(&prompts).args(arguments).arg("--out").arg(out);
        text(&mut command);
        read_json(&out.join("provenance.json"))
    };
    let fetched = run(ID, &folder.path().join("fetched"));
    assert_eq!(fetched["revisions"], serde_json::json!({ID: COMMIT}));
    let local = run("gpt2-odd", &folder.path().join("local"));
    assert!(local.get("revisions").is_none());
    let hashes = |document: &serde_json::Value| {
        let files = document["files"].as_array().unwrap().iter().filter(|file| file["role"] == "weights");
        files.map(|file| file["sha256"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(hashes(&fetched), hashes(&local));
}

#[test]
fn nothing_is_asked_of_anybody_unless_a_hub_id_is_named() {
    let (hub, home) = of("gpt2-odd");
    text(command(&hub, &home).args(["inspect", "gpt2-odd"]));
    for model in ["gone", "./some/where", "a/b/c"] {
        refused(command(&hub, &home).args(["inspect", model]), &["there is no such directory", "org/name@revision"]);
    }
    refused(command(&hub, &home).args(["inspect", "a--b/c"]), &["is no hub id"]);
    refused(command(&hub, &home).env("HF_HUB_OFFLINE", "1").args(["inspect", ID]), &["HF_HUB_OFFLINE is set"]);
    assert_eq!(hub.requests(), []);
    assert_eq!(names(home.path()), Vec::<String>::new());
}

#[test]
fn refusals_of_the_hub_are_errors_in_words() {
    let (hub, home) = of("gpt2-odd");
    refused(command(&hub, &home).args(["inspect", "some-org/other"]), &["shows no repository some-org/other"]);
    hub.change(|now| now.refusal = Some(("403 Forbidden", "X-Error-Code: GatedRepo\r\n")));
    refused(command(&hub, &home).args(["inspect", ID]), &["is gated: accept its licence", "HF_TOKEN"]);
    let adapter = r#"{"base_model_name_or_path": "org/base"}"#;
    hub.change(|now| now.refusal = None);
    hub.change(|now| *now = now.clone().with("adapter_config.json", adapter));
    refused(command(&hub, &home).args(["generate", ID, "--tokens", "1"]), &["is an adapter", "org/base"]);
}
