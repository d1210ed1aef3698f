//! SAELens's directories: every architecture gives the latents and outputs that SAELens gives.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use endoscope_dictionary::formats::{Format, open, save};
use endoscope_dictionary::{Dictionary, Matrix};
use safetensors::SafeTensors;
use serde_json::Value;

/// Two f32 programs that sum in another order; the largest outputs are about 30.
const TOLERANCE: f32 = 1e-5;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/saelens")
}

/// One golden file: its arrays, and for each case the directory's files.
struct Golden {
    tensors: HashMap<String, Tensor>,
    cases: serde_json::Map<String, Value>,
}

impl Golden {
    fn read(path: &Path) -> Self {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let bytes = fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let cases = &metadata.metadata().as_ref().unwrap()["cases"];
        Self { tensors, cases: serde_json::from_str(cases).unwrap() }
    }

    /// The directory of a case, written into `folder`.
    fn write(&self, case: &Value, folder: &Path) {
        for (name, text) in case["files"].as_object().unwrap() {
            fs::write(folder.join(name), text.to_string()).unwrap();
        }
        let weights = case["weights"].as_object().unwrap().iter();
        let weights = weights.map(|(name, kept)| (name.as_str(), self.tensors[kept.as_str().unwrap()].clone()));
        candle_core::safetensors::save(&weights.collect(), folder.join("sae_weights.safetensors")).unwrap();
    }

    fn matrix(&self, name: &str) -> Matrix {
        Matrix::from_tensor(&self.tensors[name].to_dtype(DType::F32).unwrap()).unwrap()
    }
}

fn each_case(mut check: impl FnMut(&str, &Golden, &Value, &str)) -> usize {
    let mut count = 0;
    let mut paths: Vec<_> = fs::read_dir(goldens()).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let golden = Golden::read(&path);
        let file = path.file_stem().unwrap().to_string_lossy().into_owned();
        for (name, case) in &golden.cases {
            check(&file, &golden, case, name);
            count += 1;
        }
    }
    count
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0., f32::max)
}

/// How far latents and outputs of a dictionary are from SAELens's.
fn differences(dictionary: &Dictionary, golden: &Golden, case: &str) -> [f32; 2] {
    let x = golden.matrix("x");
    let codes = dictionary.encode(&x).unwrap();
    let output = dictionary.reconstruct(&x).unwrap();
    let latents = golden.matrix(&format!("{case} latents"));
    let expected = golden.matrix(&format!("{case} output"));
    [distance(&codes.latents.dense(), latents.values()), distance(output.values(), expected.values())]
}

#[test]
fn every_architecture_computes_what_saelens_computes() {
    let count = each_case(|file, golden, case, name| {
        let folder = tempfile::tempdir().unwrap();
        golden.write(case, folder.path());
        let opened = open(folder.path()).unwrap_or_else(|error| panic!("{file}, {name}: {error}"));
        assert_eq!(opened.format, Format::SaeLens);
        let found = differences(&opened.dictionary(".").unwrap(), golden, name);
        assert!(found.iter().all(|&x| x <= TOLERANCE), "{file}, {name}: {found:?}");
    });
    assert_eq!(count, 45 + 16 + 8 + 11);
}

#[test]
fn what_is_written_is_read_as_the_same() {
    each_case(|file, golden, case, name| {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        golden.write(case, folders[0].path());
        let first = open(folders[0].path()).unwrap().dictionary(".").unwrap();
        save(folders[1].path(), &first, Format::SaeLens).unwrap();
        let second = open(folders[1].path()).unwrap();
        let old = second.notes.iter().find(|note| !note.contains("expected_average_only_in"));
        assert_eq!(old, None, "{file}, {name}");
        assert!(second.dictionary(".").unwrap() == first, "{file}, {name}");
    });
}

#[test]
fn what_is_known_of_it_is_kept() {
    let golden = Golden::read(&goldens().join("before-six.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    golden.write(&golden.cases["heads"], folder.path());
    let opened = open(folder.path()).unwrap();
    assert_eq!(opened.notes, ["its keys are those of SAELens before 6.0 and were brought up to date"]);
    let dictionary = opened.dictionary(".").unwrap();
    let config = dictionary.config();
    assert!(config.heads_flattened && config.apply_b_dec_to_input);
    assert_eq!(config.sites, ["blocks.0.attn.hook_z"]);
    assert_eq!((&config.metadata["model_name"], &config.metadata["hook_point_layer"]), (&"tiny".into(), &1.into()));
    assert!(!config.metadata.contains_key("dtype") && !config.metadata.contains_key("hook_point"));
}

/// A directory of the standard architecture whose cfg.json is changed.
fn changed(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let golden = Golden::read(&goldens().join("standard.safetensors"));
    let mut case = golden.cases["none plain"].clone();
    change(&mut case["files"]["cfg.json"]);
    let folder = tempfile::tempdir().unwrap();
    golden.write(&case, folder.path());
    folder
}

#[test]
fn what_is_not_computed_here_is_named() {
    let cases: [(&str, Value, &str); 9] = [
        ("architecture", "temporal".into(), "the architecture `temporal`, which is not supported"),
        ("architecture", "matching_pursuit".into(), "`matching_pursuit`, which is not supported"),
        ("architecture", "abstopk".into(), "`abstopk`, which is not supported"),
        ("normalize_activations", "covariance_whitening".into(), "covariance_whitening\"`, which is not supported"),
        ("reshape_activations", "sideways".into(), "`reshape_activations: sideways`, which is not supported"),
        ("architecture", "jumprelu".into(), "it has no array `threshold`; of those not yet read it has none"),
        ("architecture", "topk".into(), "it has no `k`"),
        ("d_sae", 41.into(), "W_enc has shape [12, 40], not [12, 41]"),
        ("d_in", "12".into(), "`d_in` is \"12\" and should be a whole number"),
    ];
    for (key, value, expected) in cases {
        let folder = changed(|cfg| cfg[key] = value.clone());
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {value}: {error}");
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    }
}

#[test]
fn factors_of_finetuning_are_folded() {
    let golden = Golden::read(&goldens().join("before-six.safetensors"));
    for finetuned in [true, false] {
        let mut case = golden.cases["ones"].clone();
        case["files"]["cfg.json"]["finetuning_scaling_factor"] = finetuned.into();
        let folder = tempfile::tempdir().unwrap();
        golden.write(&case, folder.path());
        let path = folder.path().join("sae_weights.safetensors");
        let mut weights = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let factors: Vec<f32> = (0..40).map(|at| 1. + at as f32 / 10.).collect();
        weights.insert("scaling_factor".into(), Tensor::new(factors.as_slice(), &Device::Cpu).unwrap());
        candle_core::safetensors::save(&weights, &path).unwrap();
        match (open(folder.path()), finetuned) {
            (Ok(opened), true) => {
                let plain = &golden.tensors["W_dec torch.float32"].to_vec2::<f32>().unwrap();
                let dictionary = opened.dictionary(".").unwrap();
                assert_eq!(dictionary.weights().decoder.row(3)[2], plain[3][2] * 1.3);
            }
            (found, _) => {
                let error = found.unwrap_err().to_string();
                assert!(!finetuned && error.contains("`finetuning_scaling_factor: false`"), "{error}");
            }
        }
    }
}

#[test]
fn files_that_are_not_whole_are_refused() {
    let folder = changed(|_| {});
    let path = folder.path().join("sae_weights.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).filter(|length| length % 41 < 2) {
        fs::write(&path, &whole[..length]).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("not whole") || error.contains("not a whole"), "{length}: {error}");
    }
    let mut wrong = whole.clone();
    wrong[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &wrong).unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("its header should have"));
    fs::write(&path, &whole).unwrap();
    fs::write(folder.path().join("cfg.json"), "[1, 2]").unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("it is not a JSON object"));
    fs::write(folder.path().join("cfg.json"), "[".repeat(100_000)).unwrap();
    assert!(open(folder.path()).unwrap_err().to_string().contains("it is not JSON"));
}

#[test]
fn numbers_of_eight_bits_are_refused() {
    let folder = changed(|_| {});
    let path = folder.path().join("sae_weights.safetensors");
    let weights = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let bytes = vec![0u8; 40];
    let eight = safetensors::tensor::TensorView::new(safetensors::Dtype::F8_E4M3, vec![40], &bytes).unwrap();
    let mut kept: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in weights.iter().filter(|(name, _)| *name != "b_enc") {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        kept.push((name.clone(), tensor.dims().to_vec(), values.iter().flat_map(|x| x.to_le_bytes()).collect()));
    }
    let views = kept.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let file = safetensors::serialize(views.chain([("b_enc", eight)]), None).unwrap();
    fs::write(&path, file).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("`b_enc` is stored as F8_E4M3; convert it to F32, F16 or BF16 first"), "{error}");
}

#[test]
fn sparsity_is_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(endoscope_dictionary::formats::read_log_sparsity(folder.path()).unwrap(), None);
    endoscope_dictionary::formats::write_log_sparsity(folder.path(), &[-1., -2.5]).unwrap();
    let found = endoscope_dictionary::formats::read_log_sparsity(folder.path()).unwrap();
    assert_eq!(found, Some(vec![-1., -2.5]));
}
