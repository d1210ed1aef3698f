//! `endoscope train`: the series of checkpoints, and the battery over it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::path::Path;

use common::*;
use serde_json::{Value, json};

const RECIPE: &str = r#"
[model]
family = "llama"
context = 16
d_model = 16
layers = 2
heads = 2
d_mlp = 16

[task]
name = "repeated_sequences"
words = 8
shortest = 3
longest = 6

[training]
steps = 20
batch = 8
seed = 1
learning_rate = 0.005
checkpoints = { every = 10 }
"#;

/// A recipe, prompt pairs, labelled prompts, and a battery of every kind of measure.
fn write_inputs(directory: &Path) {
    let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
    write("recipe.toml", RECIPE.into());
    let pair = |(a, b): (&str, &str)| json!({"clean": format!("{a} {b} ga {a}"), "corrupt": format!("ja {b} ga {a}"), "answers": [b], "wrong_answers": ["ga"]});
    write("pairs.json", json!([("ba", "da"), ("fa", "ka")].map(pair)).to_string());
    let row = |at: usize| {
        let (label, last) = (["ba", "da"][at % 2], ["fa", "ga", "ja", "ka"][at % 4]);
        json!({"text": format!("{} {label} {last}", ["la", "fa", "ga"][at % 3]), "label": label}).to_string()
    };
    write("words.jsonl", (0..12).map(row).collect::<Vec<_>>().join("\n"));
    let battery = json!({
        "task": {"kind": "task", "rows": 8, "batches": 2},
        "heads": {"kind": "heads", "rows": 3, "period": 4, "looks": ["previous token", "induction"]},
        "patching": {
            "kind": "sweep", "prompts": "pairs.json", "cells": [[0, 1], [1, 4], [7, 0]],
            "sweep": {"site": "resid_pre", "over": ["layer", "position"], "metric": "logit_diff", "direction": "denoise"},
        },
        "words": {"kind": "probe", "data": "words.jsonl"},
        "norms": {"kind": "norms", "tensors": ["q_proj"]},
        "filled": {"kind": "dimension", "rows": 20, "positions": "2..", "neighbours": 8},
    });
    write("battery.json", battery.to_string());
}

fn train(directory: &Path, arguments: &[&str]) -> assert_cmd::Command {
    let mut command = endoscope();
    command.current_dir(directory).arg("train").args(arguments);
    command
}

/// A column of the table of everything, by step.
fn column(report: &Value, name: &str) -> Vec<Option<f64>> {
    let table = &report["tables"]["battery"];
    let names = table["axes"]["measure"].as_array().unwrap();
    let at = names.iter().position(|found| found == name).unwrap_or_else(|| panic!("no {name} in {names:?}"));
    table["values"].as_array().unwrap().iter().map(|row| row[at].as_f64()).collect()
}

fn close(found: Option<f64>, expected: f64) -> bool {
    found.is_some_and(|found| (found - expected).abs() <= 1e-9 * (1. + expected.abs()))
}

/// What the text says of how much was measured.
fn measured(text: &str) -> &str {
    text.lines().rev().find(|line| line.contains("measurements were made now")).unwrap()
}

/// Killed with SIGKILL again and again, wherever it is then; what comes out is what comes out at once.
#[test]
fn a_run_killed_anywhere_gives_the_same_series() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let recipe = RECIPE.replace("steps = 20", "steps = 120\ncheckpoint_every = 7").replace("every = 10", "every = 1");
    fs::write(path.join("recipe.toml"), recipe).unwrap();
    text(&mut train(path, &["recipe.toml", "--out", "whole"]));
    let index = path.join("killed.partial/series/index.jsonl");
    let lines = || fs::read_to_string(&index).map_or(0, |text| text.lines().count());
    for stop in [3, 20, 45, 80] {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_endoscope"))
            .args(["train", "recipe.toml", "--out", "killed"])
            .current_dir(path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while lines() < stop && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!path.join("killed").exists(), "it was killed before its end");
    }
    text(&mut train(path, &["recipe.toml", "--out", "killed"]));
    let same = |name: &str| {
        let read = |run: &str| fs::read(path.join(run).join(name)).unwrap();
        assert!(read("whole") == read("killed"), "{name}");
    };
    ["model.safetensors", "training.json", "series/index.jsonl"].into_iter().for_each(same);
    let tensors = names(&path.join("whole/series/tensors"));
    assert_eq!((tensors.len(), &tensors), (121, &names(&path.join("killed/series/tensors"))));
    tensors.iter().for_each(|name| same(&format!("series/tensors/{name}")));
}

#[test]
fn a_battery_gives_at_each_step_what_each_verb_gives_on_that_step() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write_inputs(path);
    let arguments = ["recipe.toml", "--out", "small", "--battery", "battery.json", "--json"];
    let report = document(&mut train(path, &arguments));
    assert_eq!(report, read_json(&path.join("small/battery/report.json")));
    let tables = names(&path.join("small/battery/tables"));
    for table in
        ["battery", "training", "task-accuracy", "task-loss", "heads-induction", "patching-score", "norms-norm"]
    {
        assert!(tables.contains(&format!("{table}.parquet")), "{table}: {tables:?}");
    }
    assert_eq!(report["tables"]["battery"]["axes"]["step"], json!([0, 10, 20]));
    let loss = column(&report, "task loss");
    assert!((loss[0].unwrap() - 10f64.ln()).abs() < 0.1 && loss[2] < loss[0], "{loss:?}");
    assert!(
        column(&report, "task accuracy").iter().all(|share| share.is_some_and(|share| (0. ..=1.).contains(&share)))
    );
    assert_eq!(column(&report, "training loss")[0], None);

    // The same of the exported model of step 10, by the verbs.
    document(&mut train(path, &["--series", "small", "--export", "10", "--out", "ten", "--json"]));
    let verb = |arguments: &[&str]| document(endoscope().current_dir(path).args(arguments).arg("--json"));
    let heads = verb(&["heads", "ten", "--rows", "3", "--period", "4", "--out", "heads"]);
    for (place, name) in [(0, "previous token"), (2, "induction")] {
        for (layer, head) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let found = column(&report, &format!("heads {name}, layer {layer} head {head}"))[1];
            let expected = heads["tables"]["pattern"]["values"][place][layer][head].as_f64().unwrap();
            assert!(close(found, expected), "{name} {layer} {head}: {found:?}, not {expected}");
        }
    }
    let patched = verb(&["patch", "ten", "--prompts", "pairs.json", "--site", "resid_pre", "--out", "patched"]);
    let scores = patched["tables"].as_object().unwrap().values().map(|table| &table["values"]);
    let scores: Vec<&Value> = scores.collect();
    for (layer, position) in [(0, 1), (1, 4)] {
        let found = column(&report, &format!("patching score, layer {layer} position {position}"))[1];
        let there =
            scores.iter().any(|values| values[layer][position].as_f64().is_some_and(|value| close(found, value)));
        assert!(there, "{found:?} at {layer}, {position} is not in {scores:?}");
    }
    let probed = verb(&["probe", "ten", "words.jsonl", "--out", "probed"]);
    let accuracies: Vec<f64> = flat(&probed["tables"]["probes"]["values"]);
    for layer in 0..2 {
        let found = column(&report, &format!("words accuracy, layer {layer}"))[1];
        let columns = accuracies.len() / 2;
        assert!(close(found, accuracies[layer * columns]), "{found:?} {accuracies:?}");
    }
    let name = "model.layers.1.self_attn.q_proj.weight";
    let weight = &load(&path.join("ten/model.safetensors"))[name];
    let squares: f64 =
        weight.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|&x| f64::from(x).powi(2)).sum();
    assert!(close(column(&report, &format!("norms norm, {name}"))[1], squares.sqrt()));

    // The rows of the task, as `organisms` draws them; control and estimate are of the verb.
    let keys = toml::from_str("words = 8\nshortest = 3\nlongest = 6").unwrap();
    let task = endoscope_organisms::task("repeated_sequences", &keys).unwrap();
    let rows: Vec<Vec<u32>> = (0..20).map(|row| task.row("train", 1, row).unwrap().tokens).collect();
    fs::write(path.join("rows.json"), json!(rows).to_string()).unwrap();
    let rows = ["--token-rows", "rows.json", "--positions", "2..", "--neighbours", "8", "--seed", "1"];
    verb(&[&["dimension", "ten", "--out", "filled"], &rows[..]].concat());
    let filled = read_json(&path.join("filled/dimensions.json"));
    for layer in 0..2 {
        for (figure, pointer) in [
            ("dimension", "/found/linear/estimate"),
            ("local dimension", "/found/local/mean/estimate"),
            ("local dimension of Gaussian points", "/control/local/mean/estimate"),
        ] {
            let found = column(&report, &format!("filled {figure}, layer {layer}"))[1];
            assert!(close(found, filled[layer].pointer(pointer).unwrap().as_f64().unwrap()), "{figure}: {found:?}");
        }
    }

    // A cell that there is not is missing, and it is said why.
    assert_eq!(column(&report, "patching score, layer 7 position 0"), [None, None, None]);
    let story = report["sections"].to_string();
    assert!(story.contains("layer 7 position 0, at 3 of 3 steps (0, 10, 20): the sweep has no such cell"), "{story}");
}

#[test]
fn what_was_measured_is_not_measured_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write_inputs(path);
    text(&mut train(path, &["recipe.toml", "--out", "small"]));
    let again = |battery: &str, out: &str| {
        let printed = text(&mut train(path, &["--series", "small", "--battery", battery, "--out", out]));
        (measured(&printed).to_string(), read_json(&path.join(out).join("report.json")))
    };
    let (first, report) = again("battery.json", "one");
    assert!(first.starts_with("18 of 18 "), "{first}");
    let (second, same) = again("battery.json", "two");
    assert!(second.starts_with("0 of 18 ") && same == report, "{second}");
    // A kill in the middle of a line: that line alone is measured again.
    let folder = path.join("small/series/measured");
    let files = names(&folder);
    assert_eq!(files.len(), 6);
    let bytes = fs::read(folder.join(&files[0])).unwrap();
    fs::write(folder.join(&files[0]), &bytes[..bytes.len() - 9]).unwrap();
    let (third, same) = again("battery.json", "three");
    assert!(third.starts_with("1 of 18 ") && same == report, "{third}");
    assert!(again("battery.json", "four").0.starts_with("0 of 18 "));
    // Another measure is made; those before are kept, whatever their names.
    let mut battery = read_json(&path.join("battery.json"));
    let norms = battery.as_object_mut().unwrap().remove("norms").unwrap();
    battery["lengths"] = norms;
    battery["all"] = json!({"kind": "norms"});
    fs::write(path.join("more.json"), battery.to_string()).unwrap();
    assert!(again("more.json", "five").0.starts_with("3 of 21 "));
    // Other prompts are another measure.
    let pairs = fs::read_to_string(path.join("pairs.json")).unwrap();
    fs::write(path.join("pairs.json"), pairs.replace("ja", "la")).unwrap();
    assert!(again("battery.json", "six").0.starts_with("3 of 18 "));
}

#[test]
fn a_measure_that_fails_is_missing_and_never_zero() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write_inputs(path);
    text(&mut train(path, &["recipe.toml", "--out", "small"]));
    let battery = json!({
        "task": {"kind": "task"},
        "long": {"kind": "heads", "rows": 2, "period": 7},
        "where": {"kind": "heads", "period": 4, "looks": ["everywhere"]},
    });
    fs::write(path.join("battery.json"), battery.to_string()).unwrap();
    let arguments = ["--series", "small", "--battery", "battery.json", "--out", "out", "--json"];
    let report = document(&mut train(path, &arguments));
    assert!(column(&report, "task loss").iter().all(Option::is_some));
    for name in ["long", "where"] {
        assert_eq!(column(&report, name), [None, None, None]);
    }
    let story = report["sections"].to_string();
    assert!(story.contains("where, at 3 of 3 steps") && story.contains("no head looks at `everywhere`"), "{story}");
    fs::write(path.join("battery.json"), json!({"where": battery["where"]}).to_string()).unwrap();
    let arguments = ["--series", "small", "--battery", "battery.json", "--out", "nothing"];
    refused(&mut train(path, &arguments), &["nothing could be measured", "no head looks at `everywhere`"]);
    assert!(!path.join("nothing").exists());
}

#[test]
fn each_part_of_a_mixture_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write_inputs(path);
    let (model, rest) = RECIPE.split_once("name = \"repeated_sequences\"").unwrap();
    let (_, training) = rest.split_once("[training]").unwrap();
    let task = r#"name = "mixture"
        parts = [{ name = "repeated_sequences", words = 8, shortest = 3, longest = 6 }, { name = "count_modulo_three" }]
        stages = [{ from = 0, weights = [1, 0] }, { from = 10, weights = [0, 1] }]
        [training]"#;
    let recipe = format!("{model}{task}{training}").replace("context = 16", "context = 24");
    fs::write(path.join("recipe.toml"), recipe).unwrap();
    fs::write(path.join("battery.json"), json!({"task": {"kind": "task", "rows": 16}}).to_string()).unwrap();
    let arguments = ["recipe.toml", "--out", "small", "--battery", "battery.json", "--json"];
    let report = document(&mut train(path, &arguments));
    let loss = |part: &str| column(&report, &format!("task loss, {part}")).into_iter().flatten().collect::<Vec<f64>>();
    let (first, second) = (loss("repeated_sequences"), loss("count_modulo_three"));
    // Each falls while it is what is trained on.
    assert!(first[1] < first[0] - 0.05 && second[2] < second[1] - 0.05, "{first:?} {second:?}");
    assert!(second[1] > second[0] - 0.05, "{second:?}");
}

#[test]
fn a_series_is_listed_and_what_makes_no_sense_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write_inputs(path);
    text(&mut train(path, &["recipe.toml", "--out", "small", "--stop-after", "15", "--battery", "battery.json"]));
    assert!(!path.join("small").exists(), "stopped: there is nothing to measure yet");
    let steps = |arguments: &[&str]| {
        let listed = document(&mut train(path, arguments));
        listed["entries"].as_array().unwrap().iter().map(|entry| entry["step"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(steps(&["--series", "small", "--json"]), [0, 10], "that of an unfinished run");
    text(&mut train(path, &["recipe.toml", "--out", "small"]));
    assert_eq!(steps(&["--series", "small", "--json"]), [0, 10, 20]);
    assert!(text(&mut train(path, &["--series", "small"])).contains("step     10  loss 2."));
    let early = RECIPE.replace("checkpoints", "early_stop = { accuracy = 0, updates = 4 }\ncheckpoints");
    fs::write(path.join("early.toml"), early).unwrap();
    assert!(text(&mut train(path, &["early.toml", "--out", "early"])).contains("for 4 steps of 20: accurate enough"));
    assert_eq!(steps(&["--series", "early", "--json"]), [0, 4]);
    fs::write(path.join("plain.toml"), RECIPE.replace("checkpoints = { every = 10 }", "")).unwrap();
    for (arguments, parts) in [
        (&["--series", "small", "--export", "11", "--out", "m"][..], &["no step 11", "nearest is 10"][..]),
        (&["--series", "small", "--export", "10", "--out", "small"], &["exists"]),
        (&["--series", "small", "--export", "10"], &["--out"]),
        (&["--series", "small", "--out", "m"], &["--export STEP or --battery"]),
        (&["--series", "missing"], &["missing", "index.jsonl"]),
        (&["recipe.toml", "--series", "small"], &["cannot be used with"]),
        (&["recipe.toml"], &["--out"]),
        (&["plain.toml", "--out", "m", "--battery", "battery.json"], &["keeps none", "checkpoints = { every = 10 }"]),
        (&["--series", "small", "--battery", "recipe.toml"], &["is no battery"]),
    ] {
        refused(&mut train(path, arguments), parts);
        assert!(!path.join("m").exists() && !path.join("m.partial").exists());
    }
}
