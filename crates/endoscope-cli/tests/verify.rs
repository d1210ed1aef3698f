//! `endoscope verify`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use serde_json::{Value, json};

/// The certificate in a run directory.
fn certificate(directory: &std::path::Path) -> Value {
    read_json(&directory.join("certificate.json"))
}

fn check<'a>(certificate: &'a Value, name: &str) -> &'a Value {
    certificate["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

/// A certificate that fails: exit code 1, the table or document on standard output, the checks that failed on standard error.
fn fails(command: &mut assert_cmd::Command, failed: &str) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{command:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains(failed), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_organism_is_certified() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = endoscope();
    command.current_dir(folder.path()).arg("verify").arg(organism());
    let table = text(&mut command);
    assert!(table.contains("28 checks passed, 0 failed, 4 do not apply"), "{table}");
    assert!(table.contains("written to runs/verify/certificate.json"), "{table}");
    let found = certificate(&folder.path().join("runs/verify"));
    assert_eq!(
        (&found["verdict"], &found["family"], &found["weights"]),
        (&json!("passed"), &json!("llama"), &json!("f32"))
    );
    let files = found["provenance"]["files"].as_array().unwrap();
    let hashes = files.iter().map(|file| (file["role"].as_str().unwrap(), file["sha256"].as_str().unwrap().len()));
    assert_eq!(hashes.collect::<Vec<_>>(), [("config", 64), ("weights", 64), ("tokenizer", 64), ("tokenizer", 64)]);
    for part in ["endoscope_version", "started", "machine", "libraries", "command"] {
        assert!(!found["provenance"][part].is_null(), "{part}");
    }
    // Again, beside it; and the same figures.
    let again = document(command.arg("--json"));
    assert!(folder.path().join("runs/verify-2").is_dir());
    assert_eq!(again["checks"], found["checks"]);
    assert_eq!(check(&found, "weights")["notes"], json!(["21 tensors of 1 files read"]));
    assert_eq!(check(&found, "reference")["verdict"], "not_applicable");
}

#[test]
fn the_real_model_is_certified_in_every_precision() {
    let Some(model) = shared_model("stories260k") else { return };
    let folder = tempfile::tempdir().unwrap();
    for weights in ["f32", "bf16", "int8"] {
        let out = folder.path().join(weights);
        let found =
            document(endoscope().arg("verify").arg(&model).args(["--json", "--weights", weights, "--out"]).arg(&out));
        assert_eq!((&found["verdict"], &found["weights"]), (&json!("passed"), &json!(weights)));
        assert_eq!(found, certificate(&out));
        assert_eq!(check(&found, "round_trip")["comparisons"], 11);
    }
    let golden = tiny_models().join("stories260k/seq12.safetensors");
    let out = folder.path().join("reference");
    let mut command = endoscope();
    command.arg("verify").arg(&model).args(["--json", "--against"]).arg(&golden).arg("--out").arg(&out);
    let found = document(&mut command);
    assert_eq!(check(&found, "reference")["verdict"], "passed");
    assert_eq!(found["reference"]["file"]["sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn prompts_are_those_that_are_given() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = endoscope();
    command.arg("verify").arg(organism()).args(["--prompt", "ba da", "--tokens", "3,4,5", "--tokens", "7", "--json"]);
    let found = document(command.arg("--out").arg(folder.path().join("run")));
    let prompts = found["prompts"].as_array().unwrap();
    assert_eq!((prompts.len(), &prompts[1], &prompts[2]), (3, &json!([3, 4, 5]), &json!([7])));
    assert_eq!(prompts[0][0], 0, "the beginning-of-sequence token");
    assert_eq!(check(&found, "padding")["comparisons"], 6);
}

#[test]
fn another_model_is_found_out_by_a_reference() {
    let folder = tempfile::tempdir().unwrap();
    let model = copy_tiny("llama-grouped");
    edit_config(model.path(), |config| config["rms_norm_eps"] = json!(1e-4));
    let golden = tiny_models().join("llama-grouped/seq37.safetensors");
    let out = folder.path().join("run");
    let mut command = endoscope();
    command.arg("verify").arg(model.path()).arg("--against").arg(&golden).arg("--out").arg(&out);
    let table = fails(&mut command, "error: a check has failed: reference");
    assert!(table.contains("FAILED   reference"), "{table}");
    let found = certificate(&out);
    assert_eq!(found["verdict"], "failed");
    assert_eq!(check(&found, "reference")["verdict"], "failed");
    assert!(found["checks"].as_array().unwrap().iter().filter(|check| check["verdict"] == "failed").count() == 1);
}

#[test]
fn a_comparison_that_cannot_be_made_is_a_failure_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut command = endoscope();
    command.args(["verify", "gpt2-odd", "--against", "transformers", "--python", "no-such-python", "--out"]).arg(&out);
    let table = fails(&mut command, "error: a check has failed: reference");
    for part in ["not compared: there is no `no-such-python`", "pip install torch transformers safetensors"] {
        assert!(table.contains(part), "{table}");
    }
    assert!(certificate(&out)["reference"]["missing"].as_str().unwrap().contains("no-such-python"));
}

/// Plays a Python that has transformers: it gives the golden activations of the model, whatever the prompts are.
#[cfg(unix)]
fn python(folder: &std::path::Path, script: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join("python");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(unix)]
#[test]
fn transformers_is_asked_through_the_scripts_that_the_binary_carries() {
    let folder = tempfile::tempdir().unwrap();
    let golden = tiny_models().join("gpt2-odd/seq37.safetensors");
    let script = format!(
        "set -eu\ntest \"$HF_HUB_OFFLINE\" = 1\ntest \"$2\" = gpt2-odd\ntest \"$3 $4 $5\" = '--tokens [[1,2,3]] --out'\n\
         here=$(dirname \"$1\")\ntest -f \"$here/families.py\"\ntest -f \"$here/watching.py\"\n\
         cp '{}' \"$6\"\necho warnings\necho '{{\"torch\": \"2\", \"transformers\": \"5\"}}'",
        golden.display()
    );
    let python_path = python(folder.path(), &script);
    let (kept, out) = (folder.path().join("kept.safetensors"), folder.path().join("run"));
    let mut command = endoscope();
    command.args(["verify", "gpt2-odd", "--tokens", "1,2,3", "--json", "--against", "transformers", "--python"]);
    let found = document(command.arg(&python_path).arg("--keep").arg(&kept).arg("--out").arg(&out));
    assert_eq!(found["reference"], json!({"transformers": {"torch": "2", "transformers": "5"}}));
    assert_eq!(check(&found, "reference")["verdict"], "passed");
    assert_eq!(std::fs::read(&kept).unwrap(), std::fs::read(&golden).unwrap());
    for (script, part) in [
        ("echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1", "pip install torch"),
        ("echo 'transformers 4.1 is too old: 5 is needed' >&2; exit 2", "is too old"),
        ("exit 3", "exit status: 3"),
        ("true", "which versions it has"),
    ] {
        python(folder.path(), script);
        let out = tempfile::tempdir().unwrap();
        let mut command = endoscope();
        command.args(["verify", "gpt2-odd", "--against", "transformers", "--python"]).arg(&python_path);
        let table = fails(command.arg("--out").arg(out.path().join("run")), "reference");
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let verify = |arguments: &[&str], parts: &[&str]| {
        refused(endoscope().args(["verify", "gpt2-odd"]).args(arguments).arg("--out").arg(&out), parts);
        assert!(!out.exists());
    };
    verify(&["--against", "nowhere.safetensors"], &["nowhere.safetensors", "there is no such file", "transformers"]);
    verify(&["--against", "gpt2-odd/config.json"], &["config.json"]);
    verify(&["--against", "transformers", "--weights", "bf16"], &["--weights f32"]);
    verify(&["--against", "gpt2-odd/seq1.safetensors", "--python", "python3"], &["--against transformers"]);
    verify(&["--tokens", "1,two"], &["`two`"]);
    verify(&["--tokens", "41"], &["token id 41", "0 to 40"]);
    verify(&["--prompt", "text"], &["tokenizer.json"]);
    std::fs::create_dir(&out).unwrap();
    refused(endoscope().args(["verify", "gpt2-odd", "--out"]).arg(&out), &["exists"]);
    refused(endoscope().args(["verify", "no-such-model"]), &["there is no such directory"]);
}
