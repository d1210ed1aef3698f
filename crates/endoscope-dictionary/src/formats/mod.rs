//! Dictionaries as files: those of SAELens, which are ours too, and those of others.

mod arrays;
mod sae_lens;
mod settings;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};

pub use sae_lens::{read_log_sparsity, write_log_sparsity};

/// A way to keep dictionaries in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Format {
    /// `cfg.json` and `sae_weights.safetensors`: [SAELens](https://github.com/decoderesearch/SAELens), and ours.
    SaeLens,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::SaeLens];

    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::SaeLens => "sae_lens",
        }
    }
}

/// What a path holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// As what it was read.
    pub format: Format,
    /// What was read.
    pub contents: Contents,
    /// What was changed in reading it: older keys, folded factors.
    pub notes: Vec<String>,
}

/// One dictionary or several.
#[derive(Debug, Clone, PartialEq)]
pub enum Contents {
    /// One.
    Dictionary(Box<Dictionary>),
    /// The paths of several, each to be opened by itself: together they may not fit in memory.
    Set(Vec<PathBuf>),
}

impl Opened {
    /// The one dictionary that it is; an error that names the others if there are several.
    pub fn dictionary(self) -> Result<Dictionary> {
        match self.contents {
            Contents::Dictionary(dictionary) => Ok(*dictionary),
            Contents::Set(paths) => {
                let first = paths.first().map(PathBuf::as_path).unwrap_or(Path::new("."));
                let reason = format!("there are {} dictionaries, of which one must be named", paths.len());
                Err(Error::file(first, reason))
            }
        }
    }
}

/// Reads the dictionary at `path`, of whichever format its files are.
pub fn open(path: impl AsRef<Path>) -> Result<Opened> {
    let path = path.as_ref();
    let format = detect(path)?;
    let (dictionary, notes) = match format {
        Format::SaeLens => sae_lens::open(path)?,
    };
    Ok(Opened { format, contents: Contents::Dictionary(Box::new(dictionary)), notes })
}

/// Writes `dictionary` to `directory` in a format that [`open`] reads again.
pub fn save(directory: impl AsRef<Path>, dictionary: &Dictionary, format: Format) -> Result<()> {
    match format {
        Format::SaeLens => sae_lens::save(directory.as_ref(), dictionary),
    }
}

fn detect(path: &Path) -> Result<Format> {
    let has = |name: &str| path.join(name).is_file();
    if has(sae_lens::CONFIG) && has(sae_lens::WEIGHTS) {
        return Ok(Format::SaeLens);
    }
    let reason = match path.exists() {
        false => "there is nothing here".to_string(),
        true => {
            format!("it holds no files of a format that is known (as {} and {})", sae_lens::CONFIG, sae_lens::WEIGHTS)
        }
    };
    Err(Error::file(path, reason))
}
