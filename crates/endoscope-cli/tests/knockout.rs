//! `endoscope knockout`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use serde_json::{Value, json};

/// a b c d a b: what followed b stands at position 3 after the BOS.
fn prompts(directory: &Path) -> PathBuf {
    let words = ["ba", "da", "fa", "ga", "ka", "la", "ma", "na", "pa", "ra", "sa", "ta"];
    let row = |at: usize| {
        let word = |number: usize| words[(at * 5 + number) % words.len()];
        let (a, b, c, d) = (word(0), word(1), word(2), word(3));
        json!({"clean": format!("{a} {b} {c} {d} {a} {b}"), "answers": [c], "wrong_answers": [d]})
    };
    let path = directory.join("prompts.json");
    std::fs::write(&path, json!({"prompts": (0..8).map(row).collect::<Vec<_>>()}).to_string()).unwrap();
    path
}

fn knockout(prompts: &Path, out: &Path, arguments: &[&str]) -> Value {
    let mut command = endoscope();
    command.arg("knockout").arg(organism()).arg("--prompts").arg(prompts).args(arguments).arg("--out").arg(out);
    let printed = document(command.arg("--json"));
    assert_eq!(printed, read_json(&out.join("report.json")));
    printed
}

fn measure(report: &Value, name: &str) -> Vec<f64> {
    let table = &report["tables"]["measures"];
    let measures = table["axes"]["measure"].as_array().unwrap();
    let at = measures.iter().position(|measure| measure == name).unwrap();
    flat(&table["values"]).into_iter().skip(at).step_by(measures.len()).collect()
}

#[test]
fn the_edge_that_carries_the_word_is_needed_in_the_layer_that_looks_it_up() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = prompts(directory.path());
    let out = directory.path().join("out");
    let report = knockout(&prompts, &out, &["--from", "3"]);
    let change = measure(&report, "change");
    assert!(change[0].abs() < 0.05 && change[1] < -0.5, "{change:?}");
    let (low, high) = (measure(&report, "low"), measure(&report, "high"));
    assert!((0..2).all(|layer| low[layer] <= change[layer] && change[layer] <= high[layer]));
    assert!(measure(&report, "control low")[1] > high[1]);
    // Two layers, eight prompts whose signs all agree: twice 2 / 2^8.
    assert!((measure(&report, "p")[1] - 2. * 2. / 256.).abs() < 1e-12);
    assert!((measure(&report, "relative")[1] - change[1]).abs() < 0.2);
    assert_eq!(report["claims"][0]["verdict"], "shown");
    assert_eq!(report["tables"]["curves"]["axes"], json!({"series": ["cut", "control"], "layer": [0, 1]}));
    assert_eq!(names(&out), ["plan.json", "provenance.json", "report.html", "report.json", "tables"]);
    let plan = read_json(&out.join("plan.json"));
    assert_eq!((&plan["prompts"][0]["from"], &plan["prompts"][0]["to"]), (&json!(3), &json!(-1)));
    // A window of both layers around either of them cuts the same edges.
    let both =
        measure(&knockout(&prompts, &directory.path().join("both"), &["--from", "3", "--window", "3"]), "change");
    assert!((both[0] - both[1]).abs() < 1e-6 && both[0] < -0.5);
}

#[test]
fn heads_names_and_other_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = prompts(directory.path());
    let heads =
        knockout(&prompts, &directory.path().join("heads"), &["--from", "3", "--each-head", "--metric", "logit-diff"]);
    let axes = json!({"layer": [0, 1], "head": [0, 1]});
    assert_eq!((&heads["tables"]["change"]["axes"], &heads["tables"]["control"]["axes"]), (&axes, &axes));
    assert!(flat(&heads["tables"]["change"]["values"])[2..].iter().any(|change| *change < -0.5));
    let one = directory.path().join("one.json");
    let pair = json!([{"clean": "ba da fa ga ba da", "answers": ["fa"]}]);
    std::fs::write(&one, pair.to_string()).unwrap();
    let named = knockout(&one, &directory.path().join("named"), &["--from", "token[0]:\"fa\""]);
    let numbered = knockout(&one, &directory.path().join("numbered"), &["--from", "3"]);
    assert_eq!(named["tables"], numbered["tables"]);
    // One prompt has no interval, and nothing is claimed from it.
    assert!(measure(&named, "low")[0].is_nan() && named["claims"].as_array().unwrap().is_empty());
    let seed = ["--from", "3", "--seed", "5"];
    let other = knockout(&one, &directory.path().join("other"), &seed);
    assert_eq!(measure(&other, "cut"), measure(&numbered, "cut"));
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = prompts(directory.path());
    let refuse = |arguments: &[&str], parts: &[&str]| {
        let mut command = endoscope();
        command.arg("knockout").arg(organism()).arg("--prompts").arg(&prompts).args(arguments);
        refused(command.arg("--out").arg(directory.path().join("out")), parts);
        assert_eq!(names(directory.path()), ["prompts.json"]);
    };
    refuse(&["--from", "9"], &["prompt pair 0", "position 9"]);
    refuse(&["--from", "token:\"xx\""], &["--from, prompt 0", "no token is"]);
    refuse(&["--from", "0", "--to", "0"], &["sees nothing but what is cut"]);
    refuse(&["--from", "3", "--window", "0"], &["at least one layer"]);
    refuse(&["--from", "3", "--window", "2", "--each-head"], &["the window is 1"]);
    refuse(&["--from", "3", "--memory", "1KiB"], &["bytes of memory are too little"]);
    refuse(&["--from", "3", "--metric", "loss2"], &["possible values: logit_diff"]);
}
