//! `endoscope probe`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use serde_json::{Value, json};

const WORDS: [&str; 12] = ["fa", "ga", "ka", "la", "ma", "na", "pa", "ra", "sa", "ta", "va", "za"];

/// Prompts of three words of which the middle one is the label.
fn words(directory: &Path) -> PathBuf {
    let row = |(at, last): (usize, &&str)| {
        ["ba", "da"].map(|word| {
            let first = WORDS[(at * 5 + 1 + word.len()) % WORDS.len()];
            json!({"text": format!("{first} {word} {last}"), "label": word}).to_string()
        })
    };
    write(directory, "words.jsonl", &WORDS.iter().enumerate().flat_map(row).collect::<Vec<_>>())
}

fn write(directory: &Path, name: &str, lines: &[String]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    path
}

fn probe(model: &Path, data: &Path, out: &Path, arguments: &[&str]) -> Value {
    let mut command = endoscope();
    command.arg("probe").arg(model).arg(data).args(arguments).arg("--out").arg(out);
    let printed = document(command.arg("--json"));
    let report = read_json(&out.join("report.json"));
    assert_eq!(printed, report, "standard output and report.json differ");
    report
}

/// A column of the table of all scores, layer by layer.
fn column(report: &Value, measure: &str) -> Vec<f64> {
    let table = &report["tables"]["probes"];
    let measures = table["axes"]["measure"].as_array().unwrap();
    let at = measures.iter().position(|name| name == measure).unwrap();
    flat(&table["values"]).into_iter().skip(at).step_by(measures.len()).collect()
}

#[test]
fn the_word_before_is_read_after_the_layer_that_looks_there() {
    let directory = tempfile::tempdir().unwrap();
    let data = words(directory.path());
    let out = directory.path().join("out");
    let report = probe(&organism(), &data, &out, &["--site", "resid_pre"]);
    let accuracy = column(&report, "accuracy");
    assert_eq!(report["tables"]["probes"]["axes"]["layer"], json!([0, 1]));
    // Before layer 0 the last position knows nothing of the word before; after it, everything.
    assert!(accuracy[0] <= 0.7 && accuracy[1] >= 0.9, "{accuracy:?}");
    assert!(column(&report, "accuracy low")[1] <= accuracy[1] && accuracy[1] <= column(&report, "accuracy high")[1]);
    let (shuffled, selectivity) = (column(&report, "shuffled labels"), column(&report, "selectivity"));
    assert!((selectivity[1] - (accuracy[1] - shuffled[1])).abs() < 1e-12);
    assert!(shuffled[1] < 0.8 && column(&report, "random features")[1] < 0.8);
    assert_eq!(report["claims"][0]["verdict"], "shown");
    assert_eq!(
        names(&out),
        ["directions.safetensors", "plan.json", "provenance.json", "report.html", "report.json", "tables"]
    );
    let plan = read_json(&out.join("plan.json"));
    assert_eq!(plan["labels"]["classes"]["names"], json!(["ba", "da"]));
    assert_eq!(plan["probe"]["probe"]["kind"], json!({"logistic": {"l2": 1.0}}));
    assert_eq!(read_json(&out.join("provenance.json"))["files"].as_array().unwrap().last().unwrap()["role"], "data");
    // The same seed gives the same, another another.
    let again = probe(&organism(), &data, &directory.path().join("again"), &["--site", "resid_pre"]);
    assert_eq!(again["tables"], report["tables"]);
    let seed = probe(&organism(), &data, &directory.path().join("seed"), &["--site", "resid_pre", "--seed", "9"]);
    assert_ne!(seed["tables"], report["tables"]);
}

#[test]
fn directions_serve_sweeps_and_plans() {
    let directory = tempfile::tempdir().unwrap();
    let data = words(directory.path());
    let out = directory.path().join("out");
    probe(&organism(), &data, &out, &["--site", "resid_post", "--kind", "mass-mean"]);
    let file = out.join("directions.safetensors");
    let tensors = load(&file);
    let mut found: Vec<&str> = tensors.keys().map(String::as_str).collect();
    found.sort_unstable();
    let sites = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"];
    assert_eq!(found, [sites[0], "blocks.0.hook_resid_post.bias", sites[1], "blocks.1.hook_resid_post.bias"]);
    let prompts = directory.path().join("pairs.json");
    let pair =
        json!([{"clean": "ma ba fa ma ba", "corrupt": "ma da fa ma da", "answers": ["fa"], "wrong_answers": ["ma"]}]);
    std::fs::write(&prompts, pair.to_string()).unwrap();
    let mut sweep = endoscope();
    sweep.arg("patch").arg(organism()).arg("--prompts").arg(&prompts);
    sweep.args(["--site", "resid_post.0", "--over", "direction", "--change", "project_out", "--direction", "noise"]);
    sweep.arg("--directions").arg(format!("{}:{}", file.display(), sites[0]));
    let report = document(sweep.arg("--out").arg(directory.path().join("sweep")).arg("--json"));
    assert_eq!(report["tables"]["scores"]["axes"]["direction"], json!([0]));
    // A plan that names no tensor takes the one named like its site.
    let plan = json!({"edits": [{"site": sites[0], "change": {"project_out": {"directions": {"file": "directions.safetensors"}}}}]});
    std::fs::write(out.join("without.json"), plan.to_string()).unwrap();
    let captured = directory.path().join("captured.safetensors");
    let mut capture = endoscope();
    capture.arg("capture").arg(organism()).args(["--text", "ma ba fa", "--sites", sites[0]]);
    text(capture.arg("--plan").arg(out.join("without.json")).arg("--out").arg(&captured));
    let activation = &load(&captured)[sites[0]];
    let direction = tensors[sites[0]].get(0).unwrap();
    let along = activation.squeeze(0).unwrap().matmul(&direction.unsqueeze(1).unwrap()).unwrap();
    assert!(difference(&along, &along.zeros_like().unwrap()) < 1e-3);
}

#[test]
fn heads_numbers_and_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let data = words(directory.path());
    let heads = probe(&organism(), &data, &at("heads"), &["--site", "z", "--over", "layer,head", "--test", "0.3"]);
    let axes = heads["tables"]["probe"]["axes"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(axes, ["layer", "head"]);
    assert!(flat(&heads["tables"]["probe"]["values"]).into_iter().fold(0., f64::max) >= 0.8);
    assert!(load(&at("heads").join("directions.safetensors")).contains_key("blocks.0.attn.hook_z.1"));
    // A number that is linear in the embedding of one of a few tokens.
    let lines: Vec<String> = (0..20)
        .map(|row| {
            json!({"tokens": [row % 5 + 1, row % 4 + 7, 3], "label": (row % 4) as f64 / 2., "group": row}).to_string()
        })
        .collect();
    let numbers = write(directory.path(), "numbers.jsonl", &lines);
    let ridge = ["--kind", "ridge", "--l2", "0.01", "--positions", "1", "--site", "hook_embed"];
    let report = probe(Path::new("gpt2-odd"), &numbers, &at("ridge"), &ridge);
    assert!(column(&report, "r2")[0] > 0.99);
    // Four tokens, each seen many times: the control task of tokens is learned by heart, that of rows is not.
    let tokens =
        probe(Path::new("gpt2-odd"), &numbers, &at("tokens"), &[&ridge[..], &["--control", "tokens"]].concat());
    assert!(column(&tokens, "shuffled labels")[0] > 0.99 && column(&report, "shuffled labels")[0] < 0.5);
}

#[test]
fn what_cannot_be_probed_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refuse = |lines: &[&str], arguments: &[&str], parts: &[&str]| {
        let data = write(directory.path(), "data.jsonl", &lines.iter().map(ToString::to_string).collect::<Vec<_>>());
        let mut command = endoscope();
        command.args(["probe", "gpt2-odd"]).arg(data).args(arguments).arg("--out").arg(directory.path().join("out"));
        refused(&mut command, parts);
        assert_eq!(names(directory.path()), ["data.jsonl"]);
    };
    let (a, b) = (r#"{"tokens": [1, 2], "label": "a"}"#, r#"{"tokens": [1, 3], "label": "b"}"#);
    refuse(&[], &[], &["holds no rows"]);
    refuse(&[a, "{"], &[], &["line 2"]);
    refuse(&[a, r#"{"tokens": [1], "label": "b", "labels": 3}"#], &[], &["line 2", "labels"]);
    refuse(&[a, r#"{"label": "b"}"#], &[], &["line 2", "either `text` or `tokens`"]);
    refuse(&[a, a], &[], &["two kinds"]);
    refuse(&[a, b], &["--kind", "ridge"], &["is no number"]);
    refuse(&[a, b], &[], &["5 folds of 2 groups"]);
    refuse(&[a, b], &["--folds", "2"], &["one label"]);
    refuse(&[a, b], &["--site", "resid_pots"], &["resid_pots"]);
    refuse(&[a, b], &["--over", "head"], &["`layer,head`"]);
    refuse(&[a, b], &["--positions", "5"], &["position 5"]);
    refuse(&[a, b], &["--kind", "mass-mean", "--l2", "2"], &["difference of two means"]);
    refuse(&[a, b], &["--l2", "0", "--folds", "2"], &["positive number"]);
}
