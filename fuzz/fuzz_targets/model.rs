//! A model directory: a fuzzed config.json beside real weights, real config beside fuzzed weights, or both fuzzed.
#![no_main]

use std::sync::LazyLock;

use endoscope_models::Model;
use endoscope_net::{Inputs, Network, Plan};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const CONFIG: &[u8] = include_bytes!("../../crates/endoscope-models/tests/goldens/gpt2-odd/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../crates/endoscope-models/tests/goldens/gpt2-odd/model.safetensors");
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    let (config, weights) = match kind % 4 {
        0 => (bytes, WEIGHTS.to_vec()),
        // A fuzzed header before real numbers, its length put right: random lengths are seldom right.
        1 => {
            let length = u64::from_le_bytes(WEIGHTS[..8].try_into().expect("eight bytes")) as usize;
            (CONFIG, [&(bytes.len() as u64).to_le_bytes(), bytes, &WEIGHTS[8 + length..]].concat())
        }
        2 => (CONFIG, bytes.to_vec()),
        _ => {
            let (config, weights) = bytes.split_at(bytes.len() / 2);
            (config, weights.to_vec())
        }
    };
    let path = DIRECTORY.path();
    std::fs::write(path.join("config.json"), config).expect("a full disk");
    std::fs::write(path.join("model.safetensors"), weights).expect("a full disk");
    match Model::open(path) {
        Ok(model) => {
            let _ = Model::open_headers(path).expect("headers open where numbers do");
            let _ = model.decoder.run(&Inputs::tokens(vec![vec![1, 0]]).expect("tokens"), &Plan::default());
        }
        Err(error) => assert!(error.to_string().contains(&path.display().to_string()), "{error}"),
    }
});
