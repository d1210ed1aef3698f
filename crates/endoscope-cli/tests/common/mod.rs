//! What the tests of the command share: the binary, small models, models broken on purpose, and what a refusal is.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Largest absolute difference allowed at any site; see the table beside `SITE_TOLERANCE` in endoscope-models.
pub const SITE_TOLERANCE: f32 = 3e-5;
/// Largest absolute difference allowed between our patching scores and TransformerLens's.
pub const SCORE_TOLERANCE: f64 = 1e-4;

pub fn endoscope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_endoscope"));
    command.env_remove("NO_COLOR").current_dir(tiny_models());
    command
}

/// The shipped organism.
pub fn organism() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction")
}

/// The folder of the small models; the command runs in it, so that `gpt2-odd` is a path.
pub fn tiny_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens")
}

pub fn sweep_goldens(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-causal/tests/goldens").join(name)
}

/// The folder of a real model; `None` (with a line that says so) where it is not there, except in CI.
pub fn shared_model(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ENDOSCOPE_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = root.join("models").join(name);
    if path.is_dir() {
        return Some(path.canonicalize().unwrap());
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing; set ENDOSCOPE_SHARED", path.display());
    eprintln!("skipped: {} is not there (set ENDOSCOPE_SHARED to test on the real model)", path.display());
    None
}

/// Copies a model directory so that a test may break it.
pub fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("seq") {
            continue;
        }
        // Copied as bytes: the mode of a read-only original must not follow.
        std::fs::write(to.path().join(entry.file_name()), std::fs::read(entry.path()).unwrap()).unwrap();
    }
    to
}

pub fn copy_tiny(name: &str) -> TempDir {
    copy(&tiny_models().join(name))
}

/// Gives a model a tokenizer of the words `<s> a b c d`, ids 0 to 4.
pub fn with_words(directory: &Path) {
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"<s>": 0, "a": 1, "b": 2, "c": 3, "d": 4}, "unk_token": "d"},
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// Rewrites config.json.
pub fn edit_config(directory: &Path, edit: impl FnOnce(&mut Value)) {
    let path = directory.join("config.json");
    let mut config = read_json(&path);
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

pub type Weights = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Rewrites a weights file.
pub fn edit_weights(file: &Path, edit: impl FnOnce(&mut Weights)) {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let entry =
        |(name, view): (String, TensorView)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    let mut weights: Weights = tensors.tensors().into_iter().map(entry).collect();
    edit(&mut weights);
    let view = |(name, (dtype, shape, data))| (name, TensorView::new(dtype, shape, data).unwrap());
    let views = weights.iter().map(|(name, (dtype, shape, data))| view((name, (*dtype, shape.clone(), data))));
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The one JSON document on standard output of a command that succeeds.
pub fn document(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Standard output of a command that succeeds.
pub fn text(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A refusal: exit code not 0, nothing on standard output, an error that holds all `parts` and is no panic.
pub fn refused(command: &mut Command, parts: &[&str]) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} succeeded");
    assert!(output.status.code().is_some(), "{command:?} was killed: {:?}", output.status);
    assert!(output.stdout.is_empty(), "{command:?} wrote {}", String::from_utf8_lossy(&output.stdout));
    assert!(!stderr.contains("panicked"), "{command:?}: {stderr}");
    assert!(stderr.contains("error: "), "{command:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{command:?}: `{part}` is not in\n{stderr}");
    }
    stderr
}

/// The names in a directory, hidden ones too, in order.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn load(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// The largest absolute difference; equal infinities differ by 0, anything else not finite by infinity.
pub fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    let differences = flat(a).into_iter().zip(flat(b)).map(|(a, b)| match a == b {
        true => 0.,
        false if (a - b).is_finite() => (a - b).abs(),
        false => f32::INFINITY,
    });
    differences.fold(0., f32::max)
}

/// All numbers of nested lists, in order.
pub fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap_or(f64::NAN)],
    }
}

/// `[1, 2]` as `1,2`.
pub fn comma_separated(ids: &Value) -> String {
    ids.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",")
}
