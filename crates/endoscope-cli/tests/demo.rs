//! The demo tells the truth about the organism: detectors, patching and ablation find the same heads, and every control
//! fails as it must.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use assert_cmd::Command;
use serde_json::Value;

#[test]
fn detectors_patching_and_ablation_agree() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let output = Command::cargo_bin("endoscope").unwrap().args(["demo", "--json", "--out"]).arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts: Vec<_> = report["claims"].as_array().unwrap().iter().map(|claim| &claim["verdict"]).collect();
    assert_eq!(verdicts, ["shown"; 4]);
    let number = |table: &str, row: usize, column: usize| {
        report["tables"][table]["values"][row][column].as_f64().unwrap_or_else(|| panic!("{table} {row} {column}"))
    };
    // Detectors; columns are heads 0.0, 0.1, 1.0, 1.1.
    assert!(number("heads", 0, 1) > 0.6 && number("heads", 0, 0) < 0.1, "the previous-token head is 0.1");
    assert!((0..4).all(|head| number("heads", 1, head) < 0.1), "no head attends to the duplicate");
    assert!(number("heads", 2, 2) > 0.9 && number("heads", 2, 3) > 0.9, "the induction heads are 1.0 and 1.1");
    // Patching; rows are layers.
    assert!(number("heads_normalised", 0, 1) > 0.9 && number("heads_normalised", 0, 0).abs() < 0.1);
    assert!(number("heads_normalised", 1, 0) > 0.3 && number("heads_normalised", 1, 1) > 0.3);
    assert!(number("stream_normalised", 0, 4) > 0.9 && number("stream_normalised", 1, 9) > 0.9);
    // Ablation: nothing, each head, both induction heads.
    assert!(number("ablation", 0, 0) > 0.99 && number("ablation", 0, 2) < 0.2 && number("ablation", 0, 5) < 0.2);
    assert!(out.join("report.html").is_file());
}
