//! A series of checkpoints: the weights of many steps, each tensor kept once.
//!
//! `series/` in a run's directory holds `index.jsonl`, one line ([`SeriesEntry`]) a step in the order of training;
//! `tensors/step-000010.safetensors`, the tensors that were new at that step, each under its SHA-256; and everything else of
//! the model (`config.json`, tokenizer) with `recipe.toml`. A tensor lies in the file of the first step that names its
//! hash, so that one which did not change since any earlier step costs nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use endoscope_models::{Model, weights_file};
use safetensors::View;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::publish;
use crate::error::{Error, Result};
use crate::run_directory::{RECIPE, partial_directory};

/// The folder of the series, in the unfinished run and in the result.
pub const SERIES: &str = "series";
pub(crate) const INDEX: &str = "index.jsonl";
pub(crate) const TENSORS: &str = "tensors";

/// One step of a series: a line of `index.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesEntry {
    /// Updates made.
    pub step: u64,
    /// The loss of the last of them, in nats a token; none before the first.
    pub loss: Option<f32>,
    /// SHA-256 of the names and hashes of its tensors: equal for equal weights.
    pub hash: String,
    /// Name of each tensor -> SHA-256 of its type, shape and numbers.
    pub tensors: BTreeMap<String, String>,
}

impl SeriesEntry {
    pub(crate) fn new(step: u64, loss: Option<f32>, tensors: &HashMap<String, Tensor>) -> Self {
        let tensors: BTreeMap<String, String> =
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor_hash(tensor))).collect();
        let mut all = Sha256::new();
        for (name, hash) in &tensors {
            all.update(format!("{name} {hash}\n"));
        }
        Self { step, loss, hash: hexadecimal(all), tensors }
    }
}

/// SHA-256 of a tensor's type, shape and numbers (little-endian, row-major).
pub(crate) fn tensor_hash(tensor: &Tensor) -> String {
    let mut hash = Sha256::new_with_prefix(format!("{:?} {:?}\n", tensor.dtype(), tensor.dims()));
    hash.update(View::data(&tensor));
    hexadecimal(hash)
}

pub(crate) fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The name of the file of the tensors that were new at a step.
pub(crate) fn tensors_file(step: u64) -> String {
    format!("step-{step:06}.safetensors")
}

/// A series on disk, to be read.
#[derive(Debug, Clone)]
pub struct Series {
    /// The folder `series`.
    pub directory: PathBuf,
    /// The steps, the first first.
    pub entries: Vec<SeriesEntry>,
}

impl Series {
    /// Opens the series of a run: `path` is its result, the name that its result will have, or the folder `series` itself.
    /// That of a run which is training is read as far as it is.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let places = [path.to_path_buf(), path.join(SERIES), partial_directory(path).join(SERIES)];
        let Some(directory) = places.into_iter().find(|place| place.join(INDEX).is_file()) else {
            let reason =
                "there is no index.jsonl in it; a recipe with training.checkpoints = { every = 10 } makes a series";
            return Err(Error::series(path, reason));
        };
        let entries = read_index(&directory)?.entries;
        if entries.is_empty() {
            return Err(Error::series(&directory, "its index is empty"));
        }
        Ok(Self { directory, entries })
    }

    /// The recipe that made it.
    pub fn recipe(&self) -> PathBuf {
        self.directory.join(RECIPE)
    }

    /// The entry of a step.
    pub fn at(&self, step: u64) -> Result<&SeriesEntry> {
        let found = self.entries.iter().find(|entry| entry.step == step);
        found.ok_or_else(|| {
            let steps = || self.entries.iter().map(|entry| entry.step);
            let shown = |step: Option<u64>| step.map_or_else(|| "none".to_string(), |step| step.to_string());
            let (first, last) = (shown(steps().min()), shown(steps().max()));
            let nearest = shown(steps().min_by_key(|other| other.abs_diff(step)));
            let count = self.entries.len();
            let reason = format!("it has no step {step}, but {count} from {first} to {last}; the nearest is {nearest}");
            Error::series(&self.directory, reason)
        })
    }

    /// The weights of a step, each checked against its hash.
    pub fn tensors(&self, step: u64) -> Result<HashMap<String, Tensor>> {
        let entry = self.at(step)?;
        // In which file a hash is: that of the first step that names it.
        let mut files: BTreeMap<u64, Vec<(&String, &String)>> = BTreeMap::new();
        for (name, hash) in &entry.tensors {
            let first = self.entries.iter().find(|entry| entry.tensors.values().any(|other| other == hash));
            files.entry(first.map_or(step, |entry| entry.step)).or_default().push((name, hash));
        }
        let mut tensors = HashMap::new();
        for (step, wanted) in files {
            let path = self.directory.join(TENSORS).join(tensors_file(step));
            let fail = |reason: String| Error::series(&path, reason);
            let stored =
                candle_core::safetensors::load(&path, &Device::Cpu).map_err(|error| fail(error.to_string()))?;
            for (name, hash) in wanted {
                let tensor = stored.get(hash).ok_or_else(|| fail(format!("`{name}` ({hash}) is missing")))?;
                if tensor_hash(tensor) != *hash {
                    return Err(fail(format!("`{name}` is damaged: its numbers do not have the hash {hash}")));
                }
                tensors.insert(name.clone(), tensor.clone());
            }
        }
        Ok(tensors)
    }

    /// The model of a step, opened.
    pub fn model(&self, step: u64) -> Result<Model> {
        let fail = |error: std::io::Error| Error::write(&std::env::temp_dir(), error);
        let folder = tempfile::tempdir().map_err(fail)?;
        let path = folder.path().join("model");
        self.export(step, &path)?;
        Ok(Model::open(&path)?)
    }

    /// Writes the model of a step as a Hugging Face directory `out`, which must not exist.
    pub fn export(&self, step: u64, out: &Path) -> Result<()> {
        if out.symlink_metadata().is_ok() {
            return Err(Error::OutputExists { path: out.to_path_buf() });
        }
        let tensors = self.tensors(step)?;
        let mut temporary = partial_directory(out).into_os_string();
        temporary.push(format!("-{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let write = || {
            fs::create_dir_all(&temporary).map_err(|error| Error::write(&temporary, error))?;
            for entry in fs::read_dir(&self.directory).map_err(|error| Error::read(&self.directory, error))? {
                let from = entry.map_err(|error| Error::read(&self.directory, error))?.path();
                let name = from.file_name().unwrap_or_default().to_os_string();
                if from.is_file() && name != INDEX && name != RECIPE && !name.to_string_lossy().starts_with('.') {
                    let bytes = fs::read(&from).map_err(|error| Error::read(&from, error))?;
                    let to = temporary.join(name);
                    fs::write(&to, bytes).map_err(|error| Error::write(&to, error))?;
                }
            }
            let path = temporary.join("model.safetensors");
            let weights = weights_file(&path, &tensors)?;
            fs::write(&path, weights).map_err(|error| Error::write(&path, error))?;
            publish(&temporary, out)
        };
        write().inspect_err(|_| {
            // What is left over would only be in the way; the first error is the one that matters.
            let _ = fs::remove_dir_all(&temporary);
        })
    }
}

/// An index, and what a kill may have left of it.
pub(crate) struct Index {
    pub entries: Vec<SeriesEntry>,
    /// Whether the file ends in a line that was cut off.
    pub torn: bool,
}

/// Reads `index.jsonl`. Only its last line may be incomplete.
pub(crate) fn read_index(directory: &Path) -> Result<Index> {
    let path = directory.join(INDEX);
    let text = fs::read_to_string(&path).map_err(|error| Error::read(&path, error))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let mut entries: Vec<SeriesEntry> = Vec::new();
    for (number, line) in whole.lines().enumerate() {
        let fail = |reason: String| Error::series(&path, format!("line {}: {reason}", number + 1));
        let entry: SeriesEntry = serde_json::from_str(line).map_err(|error| fail(error.to_string()))?;
        if entries.last().is_some_and(|last| last.step >= entry.step) {
            return Err(fail(format!("step {} does not come after the one before", entry.step)));
        }
        entries.push(entry);
    }
    Ok(Index { entries, torn: whole.len() < text.len() })
}
