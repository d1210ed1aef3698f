//! `endoscope dimension`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::Path;

use common::*;
use serde_json::{Value, json};

fn dimension(model: &Path, out: &Path, arguments: &[&str]) -> Value {
    let mut command = endoscope();
    command.arg("dimension").arg(model).args(arguments).arg("--out").arg(out);
    let printed = document(command.arg("--json"));
    assert_eq!(printed, read_json(&out.join("report.json")), "standard output and report.json differ");
    printed
}

/// A column of the table of all figures, layer by layer.
fn column(report: &Value, measure: &str) -> Vec<f64> {
    let table = &report["tables"]["dimensions"];
    let measures = table["axes"]["measure"].as_array().unwrap();
    let at = measures.iter().position(|name| name == measure).unwrap();
    flat(&table["values"]).into_iter().skip(at).step_by(measures.len()).collect()
}

#[test]
fn layers_have_dimensions_with_intervals_and_a_control() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let asked = ["--random", "24", "--length", "25", "--positions", "1..", "--neighbours", "24"];
    let report = dimension(&organism(), &out, &asked);
    assert_eq!(report["tables"]["curves"]["axes"]["layer"], json!([0, 1]));
    assert_eq!(report["tables"]["curves"]["axes"]["series"].as_array().unwrap().len(), 4);
    // 24 rows of 12 tokens that come twice; some rows begin alike.
    let points = column(&report, "points");
    assert!(points[0] == points[1] && points[0] > 550. && points[0] <= 576., "{points:?}");
    for kind in ["linear", "likelihood", "local", "Gaussian linear", "Gaussian local"] {
        let (found, low, high) =
            (column(&report, kind), column(&report, &format!("{kind} low")), column(&report, &format!("{kind} high")));
        for layer in 0..2 {
            assert!(found[layer] > 1. && found[layer] < 64., "{kind}: {found:?}");
            assert!(low[layer] < found[layer] && found[layer] < high[layer], "{kind}");
        }
    }
    // Words are clusters of which the last layer knows more than a Gaussian cloud does.
    assert!(column(&report, "local")[1] < column(&report, "Gaussian local")[1]);
    assert_eq!(
        names(&out),
        ["dimensions.json", "plan.json", "provenance.json", "report.html", "report.json", "tables"]
    );
    let each = read_json(&out.join("dimensions.json"));
    assert_eq!(each[1]["found"]["local"]["of"].as_array().unwrap().len(), points[1] as usize);
    assert_eq!(each[1]["places"][0], json!([0, 1]));
    let plan = read_json(&out.join("plan.json"));
    assert_eq!(plan["dimension"]["two_nn"], json!({"fit": "linear", "discarded": 0.1}));
    let again = dimension(&organism(), &directory.path().join("again"), &asked);
    assert_eq!(again["tables"], report["tables"]);
}

#[test]
fn rows_come_from_prompts_texts_and_files() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let written = |name: &str, text: &str| {
        std::fs::write(at(name), text).unwrap();
        at(name).to_string_lossy().into_owned()
    };
    let rows = written("rows.json", "[[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4], [1, 2, 9]]");
    let report = dimension(Path::new("gpt2-odd"), &at("rows"), &["--token-rows", &rows, "--fit", "likelihood"]);
    // `1, 2` stands in two rows and is read once.
    assert_eq!(column(&report, "points"), [15.; 3]);
    let few = ["--token-rows", &rows, "--points", "10", "--site", "mlp_out.1"];
    assert_eq!(column(&dimension(Path::new("gpt2-odd"), &at("few"), &few), "points"), [10.]);
    let prompts: Vec<Value> = (1..20)
        .map(|at| json!({"clean": [at, at + 1, 40 - at], "corrupt": [at], "answers": [1], "wrong_answers": [2]}))
        .collect();
    let prompts = written("prompts.json", &json!(prompts).to_string());
    let report = dimension(Path::new("gpt2-odd"), &at("prompts"), &["--prompts", &prompts, "--positions", "last"]);
    assert_eq!(column(&report, "points"), [19.; 3]);
    let text = written("text", &"ba da fa ga ja ka la ma na pa ra sa ".repeat(9));
    let report = dimension(&organism(), &at("text"), &["--text", &text, "--length", "18", "--site", "hook_embed"]);
    // Every embedding once, and that of the first token.
    assert_eq!(column(&report, "points"), [13.]);
    assert_eq!(report["tables"]["dimensions"]["axes"]["layer"], json!(["hook_embed"]));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let rows = directory.path().join("rows.json");
    std::fs::write(&rows, "[[1, 2, 3, 4, 5], [2, 3, 4, 5]]").unwrap();
    let rows = rows.to_str().unwrap();
    for (arguments, parts) in [
        (&[][..], &["--prompts FILE", "--token-rows FILE.json"][..]),
        (&["--token-rows", "absent"], &["cannot read the rows absent"]),
        (&["--token-rows", rows, "--prompts", rows], &["cannot be used with"]),
        (&["--token-rows", rows, "--site", "resid_pots"], &["resid_pots"]),
        (&["--token-rows", rows, "--site", "pattern"], &["no vector"]),
        (&["--token-rows", rows, "--over", "head"], &["layer"]),
        (&["--token-rows", rows, "--neighbours", "9"], &["9 neighbours of 9 points"]),
        (&["--token-rows", rows, "--points", "2"], &["it needs three"]),
        (&["--token-rows", rows, "--discard", "1"], &["below 1"]),
        (&["--token-rows", rows, "--positions", "9"], &["position 9"]),
    ] {
        let mut command = endoscope();
        command.args(["dimension", "gpt2-odd"]).args(arguments).arg("--out").arg(directory.path().join("out"));
        refused(&mut command, parts);
        assert_eq!(names(directory.path()), ["rows.json"]);
    }
}
