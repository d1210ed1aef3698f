//! `endoscope align`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::*;
use serde_json::{Value, json};

const WORDS: [&str; 20] = [
    "ba", "da", "fa", "ga", "ja", "ka", "la", "ma", "na", "pa", "ra", "sa", "ta", "va", "wa", "za", "be", "de", "fe",
    "ge",
];

/// Six words and the first two again; the source has another third word, which is wanted.
fn triple(number: usize) -> (String, String, &'static str, &'static str) {
    let word = |at: usize| WORDS[(number * 7 + at * 3) % WORDS.len()];
    let (old, new) = (word(2), word(6));
    let text = |third: &str| {
        let words = [word(0), word(1), third, word(3), word(4), word(5), word(0), word(1)];
        words.join(" ")
    };
    (text(old), text(new), old, new)
}

fn triples(directory: &Path) -> PathBuf {
    let line = |number: usize| {
        let (base, source, old, new) = triple(number);
        json!({"base": base, "source": source, "answers": [new], "wrong_answers": [old]}).to_string()
    };
    let lines: Vec<String> = (0..20).map(line).collect();
    let path = directory.join("triples.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// Runs it on the organism and gives its report.json.
fn aligned(triples: &Path, out: &Path, arguments: &[&str]) -> Value {
    let mut command = endoscope();
    command.arg("align").arg(organism()).arg("--triples").arg(triples).args(arguments).arg("--out").arg(out);
    let printed = document(command.arg("--json"));
    assert_eq!(printed, read_json(&out.join("report.json")), "standard output and report.json differ");
    printed
}

/// The accuracies of an intervention: trained on, held out.
fn accuracy(report: &Value, intervention: &str) -> Vec<f64> {
    let table = &report["tables"]["accuracy"];
    let rows = table["axes"]["put_in"].as_array().unwrap();
    let row = rows.iter().position(|name| name == intervention).unwrap();
    flat(&table["values"][row])
}

fn generated(prompt: &str, plan: Option<&Path>) -> String {
    let mut command = endoscope();
    command.arg("generate").arg(organism()).args(["--prompt", prompt, "--max-tokens", "1"]);
    if let Some(plan) = plan {
        command.arg("--plan").arg(plan);
    }
    text(&mut command).trim().to_string()
}

/// Captures the source and runs the base under the plan that was written.
fn replayed(out: &Path, site: &str, number: usize) -> (String, String, String) {
    let (base, source, _, _) = triple(number);
    let mut capture = endoscope();
    capture.arg("capture").arg(organism()).args(["--text", &source, "--sites", site]);
    text(capture.arg("--out").arg(out.join("source.safetensors")));
    let plan = out.join("intervention.json");
    (generated(&base, None), generated(&base, Some(&plan)), generated(&source, None))
}

#[test]
fn the_heads_that_write_a_word_are_found_and_the_plan_moves_it() {
    let directory = tempfile::tempdir().unwrap();
    let triples = triples(directory.path());
    let out = directory.path().join("heads");
    let arguments = ["--site", "z", "--positions", "-1", "--find", "heads", "--steps", "80"];
    let report = aligned(&triples, &out, &arguments);
    let mask = &report["tables"]["mask"];
    assert_eq!(mask["axes"], json!({"site": ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"], "head": [0, 1]}));
    assert_eq!(flat(&mask["values"]), [0., 0., 1., 1.]);
    assert_eq!(report["tables"]["accuracy"]["axes"]["triples"], json!(["trained on (15)", "held out (5)"]));
    assert_eq!(accuracy(&report, "found"), [1., 1.]);
    for control in ["nothing", "shuffled sources"] {
        assert!(accuracy(&report, control).iter().all(|&share| share < 0.3), "{control}: {report}");
    }
    // Of four heads, two others may well hold one that suffices for most prompts; then the claim says so.
    let others: Vec<f64> =
        (1..=5).flat_map(|number| accuracy(&report, &format!("random {number}"))[1..].to_vec()).collect();
    let best = others.iter().copied().fold(0., f64::max);
    let verdict = if best < 0.56 {
        "shown"
    } else if best < 1. {
        "partly"
    } else {
        "not_shown"
    };
    assert_eq!(report["claims"][0]["verdict"], verdict, "{others:?}");
    let alone = aligned(&triples, &directory.path().join("alone"), &[&arguments[..], &["--controls", "0"]].concat());
    assert_eq!(alone["claims"][0]["verdict"], "shown", "{alone}");
    assert_eq!(report["tables"]["objective"]["values"].as_array().unwrap().len(), 80);
    assert_eq!(
        names(&out),
        [
            "found.safetensors",
            "intervention.json",
            "plan.json",
            "provenance.json",
            "report.html",
            "report.json",
            "tables"
        ]
    );
    // A prompt that was in no triple.
    let (base, under_plan, source) = replayed(&out, "z.*", 23);
    let (_, _, old, new) = triple(23);
    assert_eq!((base.as_str(), under_plan.as_str(), source.as_str()), (old, new, new));
    let plan = read_json(&out.join("plan.json"));
    assert_eq!(plan["triples"].as_array().unwrap().len(), 20);
    assert_eq!(plan["held_out"].as_array().unwrap().len(), 5);
    assert_eq!(plan["alignment"]["select"], json!({"position": -1}));
    // The same once more, to the bit.
    let again = directory.path().join("again");
    assert_eq!(aligned(&triples, &again, &arguments), report);
    let bytes = |out: &Path| std::fs::read(out.join("found.safetensors")).unwrap();
    assert_eq!(bytes(&out), bytes(&again));
}

#[test]
fn a_subspace_is_found_and_the_plan_uses_it() {
    let directory = tempfile::tempdir().unwrap();
    let triples = triples(directory.path());
    let last = ["--site", "resid_post.1", "--positions", "-1", "--steps", "60"];
    for (name, arguments) in
        [("subspace", &["--find", "subspace", "--dims", "24"][..]), ("boundless", &["--find", "boundless"])]
    {
        let out = directory.path().join(name);
        let report = aligned(&triples, &out, &[&last, arguments].concat());
        let found = load(&out.join("found.safetensors"));
        let along = &found["blocks.1.hook_resid_post.along"];
        let (rows, dim) = along.dims2().unwrap();
        assert_eq!((dim, rows == 24 || name == "boundless"), (64, true));
        assert_eq!(found["blocks.1.hook_resid_post.mask"].dims(), [rows]);
        let products = along.matmul(&along.t().unwrap()).unwrap();
        assert!(difference(&products, &Tensor::eye(rows, DType::F32, &Device::Cpu).unwrap()) < 1e-5);
        assert!(accuracy(&report, "found")[0] > 0.8, "{name}: {report}");
        assert_eq!(report["tables"].get("mask").is_some(), name == "boundless");
        // The plan does what was measured: a triple that was trained on.
        let held_out = read_json(&out.join("plan.json"))["held_out"].clone();
        let trained = (0..20).filter(|number| !held_out.as_array().unwrap().contains(&json!(number)));
        let right = trained.take(5).filter(|&number| replayed(&out, "resid_post.1", number).1 == triple(number).3);
        assert!(right.count() >= 4, "{name}");
    }
    // Masks over the directions that were found, in a head of a key/value site, and by every gate.
    let rows =
        format!("{}:blocks.1.hook_resid_post.along", directory.path().join("subspace/found.safetensors").display());
    for gate in ["clamp", "sigmoid", "hard_concrete"] {
        let out = directory.path().join(gate);
        let arguments = ["--find", "directions", "--directions", &rows, "--gate", gate, "--objective", "logit_diff"];
        let report = aligned(&triples, &out, &[&last[..4], &arguments, &["--steps", "20"]].concat());
        assert_eq!(report["tables"]["mask"]["axes"]["direction"].as_array().unwrap().len(), 24);
    }
    let out = directory.path().join("keys");
    let keys = ["--site", "k.1", "--heads", "1", "--positions", "2..4", "--find", "subspace", "--steps", "3"];
    aligned(&triples, &out, &keys);
    let plan = read_json(&out.join("intervention.json"));
    assert_eq!(plan["edits"][0]["select"], json!({"position": "2..4", "head": 1}));
    assert_eq!(load(&out.join("found.safetensors"))["blocks.1.attn.hook_k.along"].dims(), [1, 32]);
}

#[test]
fn what_is_worth_nothing_leaves_an_empty_plan() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let arguments =
        ["--site", "mlp_post", "--find", "neurons", "--penalty", "100", "--steps", "60", "--objective", "logit"];
    let report = aligned(&triples(directory.path()), &out, &arguments);
    assert_eq!(read_json(&out.join("intervention.json")), json!({"edits": []}));
    assert!(report["summary"].as_str().unwrap().contains("Found: nothing"), "{report}");
    assert_eq!(report["claims"][0]["verdict"], "not_shown");
}

#[test]
fn desiderata_are_reported_by_name_and_token_ids_need_no_tokenizer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("triples.json");
    let triple = |at: u32, name: &str| json!({"base": [1, at, 3], "source": [1, at + 1, 3], "answers": [at], "desideratum": name});
    let list: Vec<Value> = (2..10).flat_map(|at| [triple(at, "one"), triple(at + 11, "two")]).collect();
    std::fs::write(&path, json!({"triples": list}).to_string()).unwrap();
    let out = directory.path().join("out");
    let mut command = endoscope();
    command.args(["align", "gpt2-odd", "--site", "z", "--find", "heads", "--steps", "5", "--json", "--triples"]);
    let report = document(command.arg(&path).arg("--out").arg(&out));
    let columns = &report["tables"]["accuracy"]["axes"]["triples"];
    let expected = ["one, trained on (6)", "two, trained on (6)", "one, held out (2)", "two, held out (2)"];
    assert_eq!(*columns, json!(expected));
    assert!(report["tables"].get("logit_diff").is_none());
}

#[test]
fn what_cannot_be_sought_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let good = triples(directory.path());
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let unequal = file("unequal", r#"{"base": "ba da", "source": "ba da fa", "answers": ["ba"]}"#);
    let typo = file("typo", r#"{"base": "ba da", "source": "ba fa", "answer": ["ba"]}"#);
    let no_wrong = file("no_wrong", r#"{"base": "ba da", "source": "ba fa", "answers": ["ba"]}"#);
    let empty = file("empty", "");
    let heads = ["--site", "z", "--find", "heads"];
    let with = |more: &[&'static str]| [&heads, more].concat();
    for (triples, arguments, part) in [
        (&unequal, with(&[]), "base has 3 tokens and source has 4"),
        (&typo, with(&[]), "unknown field `answer`"),
        (&empty, with(&[]), "no triples"),
        (&no_wrong, with(&["--objective", "logit_diff"]), "`wrong_answers` is missing"),
        (&good, vec!["--site", "zz", "--find", "heads"], "unknown site"),
        (&good, vec!["--site", "resid_post", "--find", "heads"], "no heads"),
        (&good, vec!["--site", "resid_post.0", "--find", "subspace", "--dims", "65"], "65 dims does not fit"),
        (&good, with(&["--dims", "2"]), "--dims is for"),
        (&good, vec!["--site", "z", "--find", "directions"], "--directions FILE"),
        (&good, with(&["--positions", "50"]), "out of range"),
        (&good, with(&["--heads", "2"]), "out of range"),
        (&good, with(&["--steps", "0"]), "one step"),
        (&good, with(&["--held-out", "1"]), "below 1"),
        (&good, with(&["--penalty", "nan"]), "penalty"),
    ] {
        let out = directory.path().join("out");
        let mut command = endoscope();
        command.arg("align").arg(organism()).arg("--triples").arg(triples).args(&arguments);
        refused(command.arg("--out").arg(&out), &[part]);
        assert!(!out.exists(), "{part}");
    }
}
