//! What the tests of this crate share: golden files, the shared real model, tolerances.
#![allow(dead_code)]

pub mod gguf;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

/// Largest absolute difference allowed between our f32 and transformers' f32 at any site. Two independent
/// implementations (transformers, TransformerLens) differ by up to 3.1e-5 on scores and 9.5e-6 elsewhere.
pub const SITE_TOLERANCE: f32 = 3e-5;

pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// The folders of all tiny random models, in order.
pub fn golden_models() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(goldens())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").is_file())
        .collect();
    folders.sort();
    folders
}

/// The folder of a real model; `None` (with a line that says so) where it is not there, except in CI.
pub fn shared_model(name: &str) -> Option<PathBuf> {
    shared(&format!("models/{name}"))
}

/// The same for anything in the shared folder.
pub fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ENDOSCOPE_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = root.join(name);
    if path.is_dir() {
        return Some(path);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing; set ENDOSCOPE_SHARED", path.display());
    eprintln!("skipped: {} is not there (set ENDOSCOPE_SHARED to test on the real model)", path.display());
    None
}

pub fn load(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub fn tokens(golden: &HashMap<String, Tensor>) -> Vec<Vec<u32>> {
    golden["tokens"].to_dtype(DType::U32).unwrap().to_vec2().unwrap()
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

pub fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Copies a model directory so that a test may break it.
pub fn copy(from: &Path) -> tempfile::TempDir {
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
