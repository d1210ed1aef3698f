//! Site patterns against the sites of a small model.
#![no_main]

use std::sync::LazyLock;

use endoscope_models::Model;
use libfuzzer_sys::fuzz_target;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/endoscope-models/tests/goldens/llama-grouped");
    Model::open_headers(path).expect("a model")
});

fuzz_target!(|pattern: &str| {
    match MODEL.sites().resolve(pattern) {
        Ok(ids) => assert!(!ids.is_empty() && ids.is_sorted()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
