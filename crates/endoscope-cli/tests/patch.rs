//! `endoscope patch`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Runs a sweep and gives its report.json.
fn sweep(model: &Path, prompts: &Path, out: &Path, arguments: &[&str]) -> Value {
    let mut command = endoscope();
    command.arg("patch").arg(model).arg("--prompts").arg(prompts).args(arguments).arg("--out").arg(out);
    let printed = document(command.arg("--json"));
    let report = read_json(&out.join("report.json"));
    assert_eq!(printed, report, "standard output and report.json differ");
    report
}

fn close(found: &Value, expected: &[f64]) {
    let found = flat(found);
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
    assert!(worst <= SCORE_TOLERANCE, "differs by {worst:e}");
}

fn write(path: PathBuf, value: &Value) -> PathBuf {
    std::fs::write(&path, value.to_string()).unwrap();
    path
}

#[test]
fn scores_equal_transformer_lens_for_texts_and_for_token_ids() {
    let Some(model) = shared_model("stories260k") else { return };
    let golden = read_json(&sweep_goldens("stories260k_patch.json"));
    let texts = read_json(&sweep_goldens("stories260k_pairs.json"));
    let directory = tempfile::tempdir().unwrap();
    let at = |name: String| directory.path().join(name);
    for number in 0..3 {
        let ids = write(at(format!("ids{number}")), &json!({"prompts": [golden["prompts"][number]]}));
        let text = write(at(format!("texts{number}")), &json!({"prompts": [texts["prompts"][number]]}));
        let length = golden["prompts"][number]["clean"].as_array().unwrap().len();
        for (kind, prompts) in [("ids", &ids), ("text", &text)] {
            let out = at(format!("{kind}-{number}"));
            let report = sweep(&model, prompts, &out, &["--site", "resid_pre"]);
            let table = &report["tables"]["scores"];
            assert_eq!(table["axes"]["layer"], json!([0, 1, 2, 3, 4]));
            let positions = table["axes"]["position"].as_array().unwrap();
            assert_eq!((positions.len(), &positions[0]), (length, &json!("<s>")));
            assert_eq!(table["axes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["layer", "position"]);
            close(&table["values"], &flat(&golden["tables"]["resid_pre"][number]));
            // The text was tokenized to the golden's tokens.
            assert_eq!(read_json(&out.join("plan.json"))["pairs"], json!([golden["prompts"][number]]));
        }
    }
}

#[test]
fn heads_are_scored_in_every_order_of_axes() {
    let Some(model) = shared_model("stories260k") else { return };
    let golden = read_json(&sweep_goldens("stories260k_patch.json"));
    let directory = tempfile::tempdir().unwrap();
    let prompts = write(directory.path().join("prompts"), &json!([golden["prompts"][1]]));
    let out = |name: &str| directory.path().join(name);
    let scores =
        |name: &str, arguments: &[&str]| sweep(&model, &prompts, &out(name), arguments)["tables"]["scores"].clone();
    for (site, table) in [("z", "z_all_positions"), ("v", "v_all_positions"), ("pattern", "pattern_all_positions")] {
        let found = scores(site, &["--site", site, "--over", "layer,head"]);
        close(&found["values"], &flat(&golden["tables"][table][1]));
    }
    // The golden's order is layer, position, head.
    let expected = &golden["tables"]["z"][1];
    let found = scores("lph", &["--site", "z", "--over", "layer,position,head"]);
    close(&found["values"], &flat(expected));
    let found = scores("lhp", &["--site", "z", "--over", "layer,head,position"]);
    let (heads, positions) = (8, expected[0].as_array().unwrap().len());
    let mut turned = Vec::new();
    for layer in expected.as_array().unwrap() {
        for head in 0..heads {
            turned.extend((0..positions).map(|position| layer[position][head].as_f64().unwrap()));
        }
    }
    close(&found["values"], &turned);
    assert_eq!(found["axes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["layer", "head", "position"]);
}

#[test]
fn noise_is_the_other_direction() {
    let Some(model) = shared_model("stories260k") else { return };
    let golden = read_json(&sweep_goldens("stories260k_patch.json"));
    let directory = tempfile::tempdir().unwrap();
    let pair = &golden["prompts"][0];
    let mut swapped = pair.clone();
    (swapped["clean"], swapped["corrupt"]) = (pair["corrupt"].clone(), pair["clean"].clone());
    let prompts = write(directory.path().join("prompts"), &json!([pair]));
    let swapped = write(directory.path().join("swapped"), &json!([swapped]));
    let out = |name: &str| directory.path().join(name);
    let noise = ["--site", "resid_pre", "--direction", "noise"];
    let found = sweep(&model, &prompts, &out("noise"), &noise);
    // Corrupt into clean is clean into corrupt with the prompts exchanged.
    let same = sweep(&model, &swapped, &out("swapped-denoise"), &["--site", "resid_pre", "--direction", "denoise"]);
    close(&found["tables"]["scores"]["values"], &flat(&same["tables"]["scores"]["values"]));
    // A whole layer of corrupt activations is the corrupt run.
    let whole = sweep(&model, &prompts, &out("whole"), &[&noise[..], &["--over", "layer"]].concat());
    close(&whole["tables"]["scores"]["values"], &[golden["corrupt"][0].as_f64().unwrap(); 5]);
    close(&whole["tables"]["normalised"]["values"], &[0.; 5]);
}

fn tiny_prompts(directory: &Path) -> PathBuf {
    // The SHA-256 below belongs to exactly these bytes.
    let text = "[{\"clean\":[1,7,3],\"corrupt\":[1,8,3],\"answers\":[5],\"wrong_answers\":[6]},\n\
                {\"clean\":[2,7,4],\"corrupt\":[2,9,4],\"answers\":[5],\"wrong_answers\":[6]}]\n";
    let path = directory.join("prompts.json");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn neurons_come_in_blocks_and_the_planner_agrees_with_the_naive_sweep() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    for model in ["gpt2-odd", "llama-grouped"] {
        let run = |name: &str, extra: &[&str]| {
            let arguments = ["--site", "mlp_post", "--over", "layer,neuron", "--block", "20", "--metric", "kl"];
            let out = directory.path().join(format!("{model}-{name}"));
            sweep(Path::new(model), &prompts, &out, &[&arguments, extra].concat())["tables"].clone()
        };
        let (planned, naive) = (run("planned", &[]), run("naive", &["--planner", "naive"]));
        let blocks =
            if model == "gpt2-odd" { json!(["0..20", "20..40", "40..60"]) } else { json!(["0..20", "20..40"]) };
        assert_eq!(planned["scores"]["axes"], json!({"layer": [0, 1, 2], "neuron": blocks}));
        for table in ["scores", "spread"] {
            close(&planned[table]["values"], &flat(&naive[table]["values"]));
        }
    }
}

#[test]
fn the_run_directory_is_whole_and_true() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let out = directory.path().join("runs/first");
    let arguments = ["--site", "z", "--over", "layer,head", "--metric", "probability"];
    let report = sweep(Path::new("llama-sharded"), &prompts, &out, &arguments);
    assert_eq!(names(&out), ["plan.json", "provenance.json", "report.html", "report.json", "tables"]);
    assert_eq!(names(&out.join("tables")), ["normalised.parquet", "scores.parquet", "spread.parquet"]);
    assert_eq!(names(&directory.path().join("runs")), ["first"]);

    let plan = read_json(&out.join("plan.json"));
    assert_eq!((&plan["verb"], &plan["model"]), (&json!("patch"), &json!("llama-sharded")));
    assert_eq!(plan["sweep"]["over"], json!(["layer", "head"]));
    assert_eq!(plan["pairs"][1]["corrupt"], json!([2, 9, 4]));

    let provenance = read_json(&out.join("provenance.json"));
    let files = provenance["files"].as_array().unwrap();
    let roles: Vec<&str> = files.iter().map(|file| file["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["config", "config", "weights", "weights", "weights", "weights", "prompts"]);
    // Computed with coreutils' sha256sum.
    assert_eq!(files[6]["sha256"], PROMPTS_SHA256);
    for file in &files[..6] {
        let bytes = std::fs::read(tiny_models().join(file["path"].as_str().unwrap())).unwrap();
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((&file["sha256"], &file["bytes"]), (&json!(hash), &json!(bytes.len())));
    }
    let command: Vec<&str> =
        provenance["command"].as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
    assert_eq!(command[1..3], ["patch", "llama-sharded"]);

    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for fetch in ["src=\"http", "href=\"http", "url(http", "@import", "<link", "fetch(", "<iframe"] {
        assert!(!page.contains(fetch), "report.html holds {fetch}");
    }
    let value = report["tables"]["scores"]["values"][2][1].as_f64().unwrap();
    assert!(page.contains("<html") && page.contains("llama-sharded"));

    let file = std::fs::File::open(out.join("tables/scores.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), flat(&report["tables"]["scores"]["values"]).len());
    let row = rows.iter().find(|row| row.get_long(0).unwrap() == 2 && row.get_long(1).unwrap() == 1).unwrap();
    assert_eq!(row.get_double(2).unwrap(), value);
}

const PROMPTS_SHA256: &str = "892139c053754316b020c7827ccae3d6c0ef5da201975fb14513a8975eb22b35";

#[cfg(unix)]
#[test]
fn prompts_from_a_pipe_are_hashed_as_they_were_read() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let out = directory.path().join("out");
    let mut command = endoscope();
    command.args(["patch", "gpt2-odd", "--site", "resid_pre", "--prompts", "/dev/stdin", "--out"]).arg(&out);
    command.write_stdin(std::fs::read(prompts).unwrap()).assert().success();
    let provenance = read_json(&out.join("provenance.json"));
    assert_eq!(provenance["files"].as_array().unwrap().last().unwrap()["sha256"], PROMPTS_SHA256);
}

#[test]
fn in_text_mode_the_map_is_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let mut command = endoscope();
    command.args(["patch", "gpt2-odd", "--site", "resid_pre", "--prompts"]).arg(&prompts);
    let said = text(command.arg("--out").arg(directory.path().join("out")));
    for part in ["Patching resid_pre over layer x position", "over 2 prompt pairs", "open report.html"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "colours where nobody looks");
}
