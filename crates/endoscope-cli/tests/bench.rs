//! `endoscope bench`. That it runs and says what it must; how fast is no test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use serde_json::Value;

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number.is_finite() && number > 0.)
}

#[test]
fn every_work_runs_and_its_figures_are_numbers() {
    let found = document(endoscope().arg("bench").arg(organism()).args(["--repeats", "1", "--json"]));
    for key in ["gemm_flop_per_s", "read_bytes_per_s", "copy_bytes_per_s"] {
        assert!(positive(&found["machine"][key]), "{key}: {}", found["machine"]);
    }
    assert!(positive(&found["threads"]));
    assert_eq!((&found["repeats"], &found["parameters"]), (&Value::from(1), &Value::from(66112)));
    assert!(found["plan_overhead"].as_f64().is_some_and(f64::is_finite));
    let works = found["works"].as_array().unwrap();
    let names: Vec<&str> = works.iter().map(|work| work["work"].as_str().unwrap()).collect();
    let expected = "gemm read copy forward forward capture sweep heads paths decode decode-plan train open";
    assert_eq!(names.join(" "), expected);
    for work in works {
        assert!(["median", "least", "most"].iter().all(|key| positive(&work["seconds"][key])), "{work}");
        assert_eq!(work["seconds"]["samples"].as_array().unwrap().len(), 1, "{work}");
        assert!(positive(&work["rate"]) && work["unit"].is_string(), "{work}");
        let bounded =
            ["forward", "capture", "decode", "decode-plan", "train"].contains(&work["work"].as_str().unwrap());
        assert_eq!((positive(&work["share"]), work["limit"].is_string()), (bounded, bounded), "{work}");
    }
    // The organism's context is 64: what is longer was cut.
    assert_eq!(works[3]["name"], "forward, 1x64");
    assert_eq!(works[4]["name"], "forward, 8x64");
}

#[test]
fn chosen_works_only() {
    let found = text(endoscope().arg("bench").arg(organism()).args(["--repeats", "2", "--only", "capture,decode"]));
    assert!(found.contains("capture, 1x64") && found.contains("decoding one token, 32 + 31 tokens"), "{found}");
    assert!(found.contains("medians of 2") && found.contains("% of read"), "{found}");
    assert!(!found.contains("forward") && !found.contains("training") && !found.contains("plan"), "{found}");
}

#[test]
fn a_worker_answers_each_line() {
    for (work, batch, length) in [
        ("forward", "2", "9"),
        ("capture", "1", "5"),
        ("sweep", "1", "4"),
        ("heads", "1", "4"),
        ("decode", "1", "8"),
        ("decode-plan", "1", "8"),
        ("open", "1", "8"),
    ] {
        let mut command = endoscope();
        command.args(["bench", "gpt2-odd", "--work", work, "--batch", batch, "--length", length]);
        let answers = text(command.write_stdin("go\ngo\n"));
        let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(answers.len(), 2, "{work}");
        for answer in answers {
            assert!(positive(&answer["seconds"]) && answer["work"] == work, "{answer}");
        }
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let bench = || {
        let mut command = endoscope();
        command.arg("bench").write_stdin("go\n");
        command
    };
    refused(bench().args(["no-such-model", "--only", "forward"]), &["no such directory"]);
    refused(bench().args(["--only", "fast"]), &["invalid value 'fast'", "forward"]);
    refused(bench().args(["--repeats", "0"]), &["--repeats"]);
    refused(bench().args(["--batch", "2"]), &["--work"]);
    refused(bench().args(["--work", "forward", "--repeats", "2"]), &["cannot be used with"]);
    refused(bench().args(["--work", "forward", "--only", "forward"]), &["cannot be used with"]);
    refused(bench().args(["--work", "open"]), &["only a model in a directory can be opened"]);
    refused(bench().args(["--only", "open"]), &["only a model in a directory can be opened"]);
    refused(bench().args(["gpt2-odd", "--work", "decode", "--length", "40"]), &["leaves no room to decode"]);
    refused(bench().args(["gpt2-odd", "--work", "forward", "--length", "41"]), &["the model's context is 40"]);
    refused(bench().args(["--work", "train", "--length", "129"]), &["the model's context is 128"]);
}
