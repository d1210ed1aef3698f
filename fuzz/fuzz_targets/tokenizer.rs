//! A fuzzed tokenizer.json and tokenizer_config.json: what opens encodes and decodes, or says why not.
#![no_main]

use std::sync::LazyLock;

use endoscope_models::{Bos, Tokenizer};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

fuzz_target!(|input: (&[u8], &[u8], &str)| {
    let (tokenizer, config, text) = input;
    let path = DIRECTORY.path();
    std::fs::write(path.join("tokenizer.json"), tokenizer).expect("a full disk");
    std::fs::write(path.join("tokenizer_config.json"), config).expect("a full disk");
    let Ok(Some(tokenizer)) = Tokenizer::open(path, None) else { return };
    if let Ok(encoded) = tokenizer.encode(text, Bos::AsConfigured) {
        let _ = tokenizer.decode(&encoded.ids);
    }
});
