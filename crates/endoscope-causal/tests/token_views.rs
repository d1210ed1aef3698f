//! What single tokens say in networks of one layer, against numpy.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use endoscope_causal::lens::token_views;
use endoscope_models::Model;
use serde_json::Value;

/// Of logits of a few units, in f32.
const TOLERANCE: f64 = 2e-5;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/token_views")
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn they_are_those_of_numpy() {
    let golden: Value = serde_json::from_slice(&std::fs::read(goldens().join("views.json")).unwrap()).unwrap();
    let tokens: Vec<u32> = serde_json::from_value(golden["tokens"].clone()).unwrap();
    for name in ["gpt2", "llama"] {
        let model = Model::open(goldens().join(name)).unwrap();
        let views = token_views(&model.decoder, &tokens).unwrap();
        for (found, expected) in [(views.at_hand, "at_hand"), (views.looked_at, "looked_at")] {
            let expected = matrix(&golden[name][expected]);
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() < TOLERANCE, "{name}: {found}, not {expected}");
            }
            assert_eq!(found.len(), tokens.len());
        }
    }
}

#[test]
fn networks_without_such_views_are_refused() {
    let open = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens");
        Model::open(folder.join(name)).unwrap()
    };
    let error = token_views(&open("gpt2-odd").decoder, &[1, 2]).unwrap_err().to_string();
    assert!(error.contains("one layer") && error.contains("layers"), "{error}");
    let one = Model::open(goldens().join("gpt2")).unwrap();
    assert!(token_views(&one.decoder, &[11]).is_err(), "a token that the model lacks");
    assert!(token_views(&one.decoder, &[]).is_err());
}
