//! A fuzzed model.safetensors.index.json beside real shards and config.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use endoscope_models::Model;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/endoscope-models/tests/goldens/llama-sharded");
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(Path::new(MODEL)).expect("the golden") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        if name == "config.json" || name.to_string_lossy().starts_with("model-") {
            std::fs::copy(&path, directory.path().join(name)).expect("a full disk");
        }
    }
    directory
});

fuzz_target!(|index: &[u8]| {
    let path = DIRECTORY.path();
    std::fs::write(path.join("model.safetensors.index.json"), index).expect("a full disk");
    match Model::open(path) {
        Ok(_) => drop(Model::open_headers(path).expect("headers open where numbers do")),
        Err(error) => assert!(error.to_string().contains(&path.display().to_string()), "{error}"),
    }
});
