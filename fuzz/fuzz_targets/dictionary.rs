//! One file of a dictionary is fuzzed, what lies beside it is real: configurations, arrays of numpy, programs of pickles.
#![no_main]

use std::io::Write;
use std::path::Path;

use endoscope_dictionary::formats::{Contents, Format, open, save};
use endoscope_dictionary::Matrix;
use libfuzzer_sys::fuzz_target;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const LEARNED: &str = r#"{"trainer": {"dict_class": "AutoEncoder", "layer": 3}}"#;
const WEIGHTS: &[u8] =
    include_bytes!("../../crates/endoscope-dictionary/tests/goldens/formats/sparsify/layers.4.mlp/sae.safetensors");
const LAYER: &[u8] = include_bytes!("../../crates/endoscope-dictionary/tests/goldens/formats/circuit-tracer/layer_0.safetensors");

/// A zip file of members that are not compressed.
fn zipped(path: &Path, members: &[(&str, &[u8])]) {
    let mut zip = ZipWriter::new(std::fs::File::create(path).expect("a full disk"));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in members {
        zip.start_file(*name, options).expect("a name");
        zip.write_all(bytes).expect("a full disk");
    }
    zip.finish().expect("a full disk");
}

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let write = |name: &str, bytes: &[u8]| std::fs::write(at(name), bytes).expect("a full disk");
    match kind % 8 {
        0 => {
            write("cfg.json", bytes);
            write("sae.safetensors", WEIGHTS);
        }
        1 => {
            write("cfg.json", bytes);
            write("sae_weights.safetensors", WEIGHTS);
        }
        2 => {
            write("cfg.json", br#"{"d_in": 8, "k": 4}"#);
            write("sae.safetensors", bytes);
        }
        3 => {
            write("config.yaml", bytes);
            write("layer_0.safetensors", LAYER);
        }
        4 => {
            let arrays = ["W_enc.npy", "W_dec.npy", "b_enc.npy", "b_dec.npy", "threshold.npy"];
            zipped(&at("params.npz"), &arrays.map(|name| (name, bytes)));
        }
        5 => write("params.npz", bytes),
        6 => {
            write("config.json", LEARNED.as_bytes());
            let numbers = [0u8; 256];
            zipped(&at("ae.pt"), &[("ae/data.pkl", bytes), ("ae/data/0", &numbers), ("ae/data/1", &numbers)]);
        }
        _ => {
            write("config.json", LEARNED.as_bytes());
            write("ae.pt", bytes);
        }
    }
    let opened = match open(directory.path()) {
        Err(error) => return assert!(!error.to_string().is_empty()),
        Ok(opened) => opened,
    };
    match opened.contents {
        Contents::Dictionary(dictionary) => {
            if dictionary.latents() * dictionary.d_in() < 1 << 16 {
                let _ = dictionary.reconstruct(&Matrix::zeros(1, dictionary.d_in()));
                let to = at("saved");
                save(&to, &dictionary, Format::SaeLens).expect("our format holds every dictionary");
                let again = open(&to).expect("what we write").dictionary(&to).expect("one dictionary");
                assert!(again == *dictionary);
            }
        }
        Contents::Set(paths) => paths.iter().take(4).for_each(|path| drop(open(path))),
        Contents::CrossLayer(_) => {}
    }
});
