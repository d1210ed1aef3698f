//! GGUF, llama.cpp's format: one file with metadata, weights (often quantised) and a tokenizer.
//!
//! A file is opened as the model that it was converted from: its metadata become a config.json ([`architecture`]), which
//! the families translate as any other; its tensors come under the names and in the order of a Hugging Face checkpoint
//! ([`names`]), dequantised as llama.cpp defines ([`blocks`]). So a site means the same in both.

mod architecture;
mod blocks;
mod control_vector;
mod file;
mod keys;
mod names;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};
use crate::weights::Depth;
use architecture::Architecture;
use weights::Heads;

pub use blocks::Encoding;
pub use control_vector::ControlVector;
pub use file::{GgufFile, TensorInfo, Value};
pub use tokenizer::Described;
pub use weights::GgufWeights;

/// A file, taken apart.
#[derive(Debug)]
pub struct Gguf {
    /// What its config.json would be.
    pub config: Map<String, Json>,
    /// Its weights, under their Hugging Face names.
    pub weights: GgufWeights,
    /// Its tokenizer; or why there is none that can be built.
    pub tokenizer: std::result::Result<Option<Described>, String>,
    /// Tokens that end a text or a turn.
    pub end_tokens: Vec<u32>,
    /// What its tokenizer_config.json would say of special tokens and chat templates.
    pub tokenizer_config: Json,
}

impl Gguf {
    /// Opens a file.
    pub fn open(path: &Path, depth: Depth) -> Result<Self> {
        let file = GgufFile::open(path)?;
        if let Some(&Value::Integer(count)) = file.metadata.get("split.count")
            && count > 1
        {
            let reason = format!("it is one of {count} pieces; join them with `llama-gguf-split --merge FIRST OUT`");
            return Err(Error::read(path, reason));
        }
        let architecture = Architecture::of(&file)?;
        let config = architecture.config(&file)?;
        let tokenizer = tokenizer::described(&file.metadata);
        let id = |name: &str| match file.metadata.get(&format!("tokenizer.ggml.{name}_token_id")) {
            Some(&Value::Integer(id)) => u32::try_from(id).ok(),
            _ => None,
        };
        let mut end_tokens: Vec<u32> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
        end_tokens.dedup();
        let tokenizer_config = tokenizer::configuration(&file.metadata);
        let count = |names: &[&str]| {
            let count = names.iter().find_map(|name| config.get(*name)?.as_u64()).unwrap_or(1);
            usize::try_from(count).unwrap_or(1).max(1)
        };
        let queries = count(&["num_attention_heads", "n_head"]);
        let keys = count(&["num_key_value_heads", "num_kv_heads", "num_attention_heads"]);
        let weights = GgufWeights::new(file, architecture.names, Heads { queries, keys }, depth);
        Ok(Self { config, weights, tokenizer, end_tokens, tokenizer_config })
    }
}

/// The GGUF file that `path` stands for: itself, or the only one in a directory without another kind of weights.
pub fn file_of(path: &Path) -> Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if path.is_file() {
        return Ok(is_gguf(path).then(|| path.to_path_buf()));
    }
    let taken = ["config.json", "model.safetensors", "model.safetensors.index.json"];
    if !path.is_dir() || taken.iter().any(|name| path.join(name).is_file()) {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(|error| Error::read(path, error))?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_gguf(path)).collect();
    files.sort();
    match files.len() {
        0 | 1 => Ok(files.pop()),
        count => {
            let reason = format!("it holds {count} GGUF files; name one of them, such as {}", files[0].display());
            Err(Error::NotAModel { path: path.to_path_buf(), reason })
        }
    }
}
