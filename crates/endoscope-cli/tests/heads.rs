//! `endoscope heads`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::Path;

use common::*;
use serde_json::{Value, json};

fn heads(model: &Path, out: &Path, arguments: &[&str]) -> Value {
    let mut command = endoscope();
    command.arg("heads").arg(model).args(arguments).arg("--out").arg(out);
    let printed = document(command.arg("--json"));
    assert_eq!(printed, read_json(&out.join("report.json")));
    printed
}

#[test]
fn the_organisms_heads_are_known_by_where_they_look() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let report = heads(&organism(), &out, &[]);
    let places = json!(["previous token", "duplicate token", "induction", "first token", "own token", "positional"]);
    for table in ["pattern", "weighted"] {
        let table = &report["tables"][table];
        assert_eq!(table["axes"], json!({"looks at": places, "layer": [0, 1], "head": [0, 1]}));
        assert!(flat(&table["values"]).iter().all(|share| (0. ..=1. + 1e-9).contains(share)));
    }
    let pattern = &report["tables"]["pattern"]["values"];
    let best = |place: usize, layer: usize| flat(&pattern[place][layer]).into_iter().fold(0., f64::max);
    assert!(best(0, 0) > 0.5 && best(2, 1) > 0.9, "{pattern}");
    // A head that looks one back is explained by the distance; one that follows tokens is not.
    assert!(best(5, 0) > 0.6 && best(5, 1) < 0.2);
    let uniform = flat(&report["tables"]["uniform"]["values"]);
    assert!(uniform[0] < 0.2 && uniform[2] < 0.1);
    assert!(report["summary"].as_str().unwrap().contains("previous token: 0."));
    assert_eq!(read_json(&out.join("plan.json"))["rows"].as_array().unwrap().len(), 16);
    assert_eq!(read_json(&out.join("provenance.json"))["seeds"]["random tokens"], 0);
    let other = heads(&organism(), &directory.path().join("other"), &["--seed", "1", "--period", "8", "--rows", "3"]);
    assert_ne!(other["tables"], report["tables"]);
    assert_eq!(names(&out), ["plan.json", "provenance.json", "report.html", "report.json", "tables"]);
}

#[test]
fn prompts_may_be_given() {
    let directory = tempfile::tempdir().unwrap();
    let text = heads(&organism(), &directory.path().join("text"), &["--text", "ba da fa ba da"]);
    let ids = read_json(&directory.path().join("text/plan.json"))["rows"].clone();
    let tokens = heads(&organism(), &directory.path().join("tokens"), &["--tokens", &comma_separated(&ids[0])]);
    assert_eq!(text["tables"], tokens["tables"]);
    let prompts = directory.path().join("prompts.json");
    std::fs::write(&prompts, json!([{"clean": ids[0]}, {"clean": [1, 2, 3]}]).to_string()).unwrap();
    let both = heads(&organism(), &directory.path().join("both"), &["--prompts", prompts.to_str().unwrap()]);
    assert_ne!(both["tables"], text["tables"]);
    // Nothing comes twice: such places are missing, and said to be.
    let once = heads(&organism(), &directory.path().join("once"), &["--tokens", "2,3,4"]);
    assert_eq!(once["tables"]["uniform"]["values"][2], Value::Null);
}

#[test]
fn what_cannot_be_looked_at_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refuse = |arguments: &[&str], part: &str| {
        let mut command = endoscope();
        command.args(["heads", "gpt2-odd"]).args(arguments).arg("--out").arg(directory.path().join("out"));
        refused(&mut command, &[part]);
        assert!(names(directory.path()).is_empty());
    };
    refuse(&["--tokens", "1,2"], "at least 3 tokens");
    refuse(&["--tokens", "1,2,3", "--rows", "2"], "--rows, --period and --seed");
    refuse(&["--period", "1"], "at least 2");
    refuse(&["--period", "4000"], "not possible");
    refuse(&["--rows", "0"], "leaves nothing");
    refuse(&["--bos"], "no beginning-of-sequence token");
    refuse(&["--period", "30"], "context is 40");
}
