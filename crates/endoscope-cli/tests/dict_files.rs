//! `endoscope dict show`, `dict convert`, and `verify` of a dictionary.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use common::*;
use serde_json::json;

/// The dictionaries of other tools.
fn foreign(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-dictionary/tests/goldens/formats").join(name)
}

fn convert(from: &Path, to: &Path, format: &str) -> Command {
    let mut command = endoscope();
    command.args(["dict", "convert"]).arg(from).arg(to).args(["--format", format]);
    command
}

fn show(path: &Path) -> serde_json::Value {
    document(endoscope().args(["dict", "show", "--json"]).arg(path))
}

/// What a command that fails says.
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{command:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_format_is_shown_and_becomes_ours() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("gemma-scope/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_5", "gemma_scope", "jumprelu"),
        ("sparsify-skip/layers.4.mlp", "sparsify", "topk"),
        ("dictionary-learning-gated", "dictionary_learning", "gated"),
        ("llama-scope", "llama_scope", "jumprelu"),
        ("circuit-tracer/layer_1.safetensors", "circuit_tracer", "jumprelu"),
    ];
    for (number, (name, format, architecture)) in cases.into_iter().enumerate() {
        let found = show(&foreign(name));
        let about = &found["dictionary"];
        assert_eq!((&found["format"], &about["architecture"]), (&json!(format), &json!(architecture)), "{name}");
        assert_eq!((&about["latents"], &about["d_in"]), (&json!(24), &json!(8)), "{name}");
        let to = folder.path().join(number.to_string());
        let converted = document(convert(&foreign(name), &to, "sae_lens").arg("--json"));
        assert_eq!((&converted["to"], &converted["lost"]), (&json!("sae_lens"), &json!([])), "{name}");
        let again = show(&to);
        assert_eq!(again["dictionary"], *about, "{name}");
        assert!(refusal(&mut convert(&foreign(name), &to, "sae_lens")).contains("exists already"));
    }
    let shown = text(endoscope().args(["dict", "show"]).arg(foreign("sparsify-skip/layers.4.mlp")));
    for line in [
        "architecture              topk",
        "sites                     blocks.4.hook_mlp_in",
        "skip                      true",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
}

#[test]
fn sets_are_listed_and_converted_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let set = foreign("circuit-tracer");
    assert_eq!(show(&set)["set"].as_array().unwrap().len(), 3);
    let ours = folder.path().join("ours");
    let written = document(convert(&set, &ours, "sae_lens").arg("--json"));
    assert_eq!(written["written"].as_array().unwrap().len(), 3);
    assert_eq!(show(&ours.join("layer_2"))["dictionary"]["sites"], json!(["blocks.2.hook_mlp_in"]));
    // And back, into one directory.
    let back = folder.path().join("back");
    document(convert(&ours, &back, "circuit_tracer").arg("--json"));
    for layer in 0..3 {
        let file = format!("layer_{layer}.safetensors");
        assert_eq!(read(&back.join(&file)), read(&set.join(&file)), "{file}");
    }
    let error = refusal(convert(&set, &folder.path().join("x"), "sae_lens").args(["--site", "resid_post.0"]));
    assert!(error.contains("--site and --output-site are for one dictionary"), "{error}");
    let clt = show(&foreign("cross-layer"));
    assert_eq!(clt["layers"].as_array().unwrap().len(), 3);
    let error = refusal(&mut convert(&foreign("cross-layer"), &folder.path().join("y"), "sae_lens"));
    assert!(error.contains("only circuit_tracer holds a cross-layer transcoder"), "{error}");
    document(convert(&foreign("cross-layer"), &folder.path().join("z"), "circuit_tracer").arg("--json"));
    assert_eq!(show(&folder.path().join("z"))["layers"], clt["layers"]);
}

/// The arrays of a safetensors file.
fn read(path: &Path) -> Vec<(String, Vec<f32>)> {
    let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    let mut all: Vec<_> = tensors
        .into_iter()
        .map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn what_a_format_cannot_hold_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("npz");
    let error = refusal(&mut convert(&foreign("sparsify/layers.4.mlp"), &to, "gemma_scope"));
    assert!(error.contains("gemma_scope holds jumprelu, and this is topk"), "{error}");
    assert!(!to.exists());
    let error =
        refusal(convert(&foreign("sparsify/layers.4.mlp"), &to, "sae_lens").args(["--output-site", "mlp_out.1"]));
    assert!(error.contains("--output-site is for transcoders"), "{error}");
    let found = document(convert(&foreign("sparsify/layers.4.mlp"), &to, "sae_lens").args([
        "--site",
        "blocks.4.hook_mlp_out_raw",
        "--json",
    ]));
    assert_eq!(found["notes"], json!([]));
    assert_eq!(show(&to)["dictionary"]["sites"], json!(["blocks.4.hook_mlp_out_raw"]));
}

#[test]
fn a_dictionary_is_verified_on_its_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut train = endoscope();
    train.current_dir(folder.path()).args(["dict", "train"]).arg(organism()).args([
        "--site",
        "resid_post.0",
        "--random",
        "64",
    ]);
    for setting in ["latents=128", "steps=300", "batch=256", "learning_rate=0.003", "objective.topk.k=8"] {
        train.args(["--set", setting]);
    }
    text(train.args(["--out", "sae"]));
    let verify = |extra: &[&str]| {
        let mut command = endoscope();
        command.current_dir(folder.path()).args(["verify", "sae", "--model"]).arg(organism());
        command.args(["--random", "32", "--length", "32"]).args(extra);
        command
    };
    let found = document(verify(&[]).arg("--json"));
    assert_eq!((&found["verdict"], &found["format"]), (&json!("passed"), &json!("sae_lens")));
    let fit = &found["certificate"]["fit"];
    assert!(fit["fvu"].as_f64().unwrap() < 0.5 && fit["l0"].as_f64().unwrap() <= 8., "{fit}");
    assert_eq!(fit["rows"], json!(32 * 31));
    let roles: Vec<&str> =
        found["provenance"]["files"].as_array().unwrap().iter().map(|f| f["role"].as_str().unwrap()).collect();
    assert!(roles.contains(&"dictionary") && roles.contains(&"weights"), "{roles:?}");
    let table = text(&mut verify(&["--from-position", "1"]));
    assert!(table.contains("  passed") && table.contains("vectors                960"), "{table}");

    let wrong = refusal(&mut verify(&["--site", "blocks.1.hook_mlp_out"]));
    assert!(
        wrong.contains("the dictionary fails: it leaves") && wrong.contains("it belongs to another site"),
        "{wrong}"
    );
    assert!(refusal(&mut verify(&["--max-fvu", "0.00001"])).contains("0.00001 is allowed"));
    assert!(refusal(&mut verify(&["--l0", "20,30"])).contains("20 to 30 are allowed"));
    assert!(refusal(&mut verify(&["--prompt", "a"])).contains("are for models"));
    let mut alone = endoscope();
    alone.current_dir(folder.path()).arg("verify").arg(organism()).args(["--random", "3"]);
    assert!(refusal(&mut alone).contains("name the model that it belongs to with --model"));
}
