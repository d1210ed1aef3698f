//! `endoscope attribute` and `endoscope circuit`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use serde_json::{Value, json};

const PAIRS: &str = r#"{"prompts": [
    {"clean": "ba da fa ga ba da", "corrupt": "ba da ka ga ba da", "answers": ["fa"], "wrong_answers": ["ka"]},
    {"clean": "la ma na pa la ma", "corrupt": "la ma ra pa la ma", "answers": ["na"], "wrong_answers": ["ra"]}]}"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::write(folder.at("pairs.json"), PAIRS).unwrap();
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, verb: &str, model: &Path, out: &str, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = endoscope();
        command.arg(verb).arg(model).arg("--prompts").arg(self.at("pairs.json")).args(arguments);
        command.arg("--out").arg(self.at(out));
        command
    }

    /// Runs a verb on the organism and gives its report.
    fn report(&self, verb: &str, out: &str, arguments: &[&str]) -> Value {
        let printed = document(self.command(verb, &organism(), out, arguments).arg("--json"));
        assert_eq!(printed, read_json(&self.at(out).join("report.json")), "standard output and report.json differ");
        printed
    }

    fn refused(&self, verb: &str, model: &Path, arguments: &[&str]) -> String {
        let output = self.command(verb, model, "refused", arguments).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(!self.at("refused").exists(), "something was left behind");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    flat(value)
}

#[test]
fn contributions_sum_to_the_logit_difference_of_the_run() {
    let folder = Folder::new();
    let direct = folder.report("attribute", "direct", &[]);
    let patched = folder.report("patch", "patched", &["--site", "z", "--over", "layer,head", "--direction", "noise"]);
    let total: f64 = ["heads", "parts"].iter().flat_map(|table| numbers(&direct["tables"][table]["values"])).sum();
    let summary = patched["summary"].as_str().unwrap();
    assert!(summary.contains(&format!("logit_diff is {total:.3}")[..19]), "{total} {summary}");
    let accumulated = numbers(&direct["tables"]["accumulated"]["values"]);
    assert!((accumulated.last().unwrap() - total).abs() < 1e-3);
}

#[test]
fn estimates_stand_beside_exact_scores_and_say_how_far_they_agree() {
    let folder = Folder::new();
    let estimated =
        folder.report("attribute", "estimated", &["--method", "integrated", "--steps", "32", "--over", "layer,head"]);
    let patched = folder.report("patch", "patched", &["--site", "z", "--over", "layer,head", "--direction", "noise"]);
    let exact = numbers(&patched["tables"]["scores"]["values"]);
    assert_eq!(numbers(&estimated["tables"]["exact_scores"]["values"]), exact);
    let text = estimated["sections"].as_array().unwrap().last().unwrap()["body"].as_str().unwrap();
    assert!(text.contains("Pearson"), "{text}");
    let alone = folder.report("attribute", "alone", &["--method", "integrated", "--no-exact"]);
    assert!(alone["tables"].get("exact_scores").is_none());
}

#[test]
fn every_edge_is_written_and_a_circuit_is_chosen_from_it() {
    let folder = Folder::new();
    let edges = folder.report("attribute", "edges", &["--method", "eap-ig", "--top", "3"]);
    assert_eq!(edges["tables"]["edges"]["axes"]["change"], json!(["effect", "low", "high", "exact"]));
    assert_eq!(edges["tables"]["edges"]["axes"]["edge"].as_array().unwrap().len(), 3);
    let file = folder.at("edges").join("edges.json");
    let all = read_json(&file)["edges"].as_object().unwrap().clone();
    assert_eq!(all.len(), 46);
    let arguments = ["--circuit", file.to_str().unwrap(), "--edges", "12"];
    let chosen = folder.report("circuit", "chosen", &arguments);
    let found = folder.report("circuit", "found", &["--method", "eap-ig", "--edges", "12"]);
    assert_eq!(chosen["tables"]["measures"], found["tables"]["measures"]);
    let kept = |name: &str| {
        let edges = read_json(&folder.at(name).join("circuit.json"))["edges"].as_object().unwrap().clone();
        edges.into_iter().filter(|(_, edge)| edge["in_graph"] == true).map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(kept("chosen"), kept("found"));
    let drawing = std::fs::read_to_string(folder.at("found").join("circuit.svg")).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.contains("logits") && drawing.matches("<path").count() >= 6);
    assert_eq!(read_json(&folder.at("found").join("provenance.json"))["seeds"], json!({"random circuits": 0}));
    let page = std::fs::read_to_string(folder.at("found").join("report.html")).unwrap();
    assert!(page.contains("<svg"));
}

#[test]
fn a_circuit_of_everything_is_faithful_and_random_ones_are_not() {
    let folder = Folder::new();
    let all = folder.report("circuit", "all", &["--edges", "1000"]);
    let measures = numbers(&all["tables"]["measures"]["values"]);
    assert!((measures[0] - 1.).abs() < 1e-3 && (measures[1] - 1.).abs() < 1e-3, "{measures:?}");
    let few = folder.report("circuit", "few", &["--edges", "14"]);
    let measures = numbers(&few["tables"]["measures"]["values"]);
    assert!(measures[0] > 2. * measures[2], "the random control is as good: {measures:?}");
    let text = String::from_utf8(
        folder
            .command("circuit", &organism(), "text", &["--method", "acdc", "--metric", "kl", "--threshold", "0.5"])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    assert!(text.contains("faithfulness") && text.contains("<- "), "{text}");
}

#[test]
fn what_cannot_be_done_is_said_and_leaves_nothing() {
    let folder = Folder::new();
    std::fs::write(folder.at("no.json"), r#"{"edges": {"input->m9": {"in_graph": true}}}"#).unwrap();
    let no = folder.at("no.json");
    for (verb, arguments, part) in [
        ("circuit", vec![], "--edges N or --threshold T"),
        ("circuit", vec!["--method", "acdc", "--edges", "3"], "--threshold T"),
        ("circuit", vec!["--circuit", no.to_str().unwrap()], "no edge `input->m9`"),
        ("circuit", vec!["--circuit", "nowhere.json"], "nowhere.json"),
        ("attribute", vec!["--metric", "kl"], "direct attribution is of the logit difference"),
        ("attribute", vec!["--method", "gradient", "--metric", "rank"], "no gradient"),
        ("attribute", vec!["--method", "gradient", "--site", "nope"], "unknown site"),
    ] {
        let error = folder.refused(verb, &organism(), &arguments);
        assert!(error.contains(part), "{verb} {arguments:?}: {error}");
    }
    let ids = r#"{"prompts": [{"clean": [1, 2, 3], "corrupt": [1, 4, 3], "answers": [5], "wrong_answers": [6]}]}"#;
    std::fs::write(folder.at("pairs.json"), ids).unwrap();
    let error = folder.refused("circuit", &tiny_models().join("gemma2-odd"), &["--edges", "5"]);
    assert!(error.contains("a norm lies between"), "{error}");
}
