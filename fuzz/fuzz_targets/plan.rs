//! Plans: read, checked against a small model, run; what was checked is written and read back.
#![no_main]

use std::sync::LazyLock;

use endoscope_models::Model;
use endoscope_net::{Inputs, Network, Plan, Prepared};
use libfuzzer_sys::fuzz_target;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/endoscope-models/tests/goldens/gpt2-odd");
    Model::open(path).expect("a model")
});

fuzz_target!(|text: &str| {
    let Ok(plan) = serde_json::from_str::<Plan>(text) else { return };
    if Prepared::new(MODEL.sites(), &plan).is_err() {
        return;
    }
    let written = serde_json::to_string(&plan).expect("a checked plan can be written");
    let again: Plan = serde_json::from_str(&written).expect("a written plan can be read");
    assert_eq!(serde_json::to_string(&again).expect("again"), written);
    let _ = MODEL.decoder.run(&Inputs::tokens(vec![vec![3, 1, 2]]).expect("tokens"), &plan);
});
