//! A GGUF file: a fuzzed header before real data, or fuzzed from its first byte.
#![no_main]

use std::sync::LazyLock;

use endoscope_models::gguf::GgufFile;
use endoscope_models::{Bos, Model};
use endoscope_net::{Inputs, Network, Plan};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const FILE: &[u8] = include_bytes!("../../crates/endoscope-models/tests/goldens/gguf/llama.gguf");
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));
/// Where the real file's data begin.
static DATA: LazyLock<usize> = LazyLock::new(|| {
    let path = DIRECTORY.path().join("whole.bin");
    std::fs::write(&path, FILE).expect("a full disk");
    let file = GgufFile::open(&path).expect("a whole file");
    file.tensors.values().map(|info| info.bytes.start).min().expect("tensors") as usize
});

fuzz_target!(|input: (bool, &[u8])| {
    let (whole, bytes) = input;
    let mut file = bytes.to_vec();
    if whole {
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&FILE[*DATA..]);
    }
    let path = DIRECTORY.path().join("fuzzed.gguf");
    std::fs::write(&path, file).expect("a full disk");
    match Model::open(&path) {
        Ok(model) => {
            let _ = Model::open_headers(&path).expect("headers open where numbers do");
            let _ = model.decoder.run(&Inputs::tokens(vec![vec![1, 0]]).expect("tokens"), &Plan::default());
            if let Ok(tokenizer) = model.tokenizer() {
                let _ = tokenizer.encode("Once upon a  time\u{301} \u{0}x", Bos::AsConfigured);
                let _ = tokenizer.decode(&[0, 1, 2, 300, u32::MAX]);
            }
        }
        Err(error) => assert!(error.to_string().contains(&path.display().to_string()), "{error}"),
    }
});
