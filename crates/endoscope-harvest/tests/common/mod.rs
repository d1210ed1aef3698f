//! What the tests of the crate share: a tiny network, random documents, harvests of them.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use endoscope_harvest::*;
use endoscope_models::Model;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

pub static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens");
    Model::open(goldens.join("gpt2-odd")).unwrap()
});

/// The residual stream that the tests read.
pub const STREAM: &str = "blocks.1.hook_resid_pre";

pub fn documents(count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let length = generator.random_range(0..12);
            (0..length).map(|_| generator.random_range(0..30)).collect()
        })
        .collect()
}

/// Two sites and all reductions that need no file, in small shards.
pub fn settings() -> Settings {
    let of = |site: &str, reduction| Output { site: site.into(), reduction };
    Settings {
        outputs: vec![
            of(STREAM, Reduction::Tokens),
            of("blocks.0.attn.hook_z", Reduction::Tokens),
            of(STREAM, Reduction::Mean),
            of(STREAM, Reduction::Last),
        ],
        packing: Packing { mode: SequenceMode::Blocks, context: 6, begin: Some(0), separator: Some(0) },
        exclude: [0].into(),
        dtype: Dtype::F32,
        shard_rows: Some(40),
        max_tokens: None,
        source: json!({"test": true}),
        batch_tokens: 20,
        non_finite: NonFinite::Refuse,
    }
}

pub fn harvest_to(directory: &Path, settings: &Settings, corpus: &[Vec<u32>]) -> Result<Harvested> {
    harvest_watched(directory, settings, corpus, &mut |_| Ok(()))
}

pub fn harvest_watched(
    directory: &Path,
    settings: &Settings,
    corpus: &[Vec<u32>],
    tell: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Harvested> {
    let documents =
        |from: u64| -> Result<Documents<'_>> { Ok(Box::new(corpus.iter().skip(from as usize).cloned().map(Ok))) };
    harvest(&MODEL.decoder, settings, &documents, directory, tell)
}

/// The names and bytes of a folder's files.
pub fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.collect();
    files.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), std::fs::read(path).unwrap())).collect()
}
