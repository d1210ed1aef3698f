//! The organisms inside the binary.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// A shipped model.
#[derive(Debug, Clone, Copy)]
pub struct Organism {
    /// Its name, which is that of its directory.
    pub name: &'static str,
    /// What it is known to do.
    pub about: &'static str,
    /// Its files: name, contents.
    pub files: &'static [(&'static str, &'static [u8])],
}

macro_rules! shipped {
    ($directory:literal: $($file:literal),+ $(,)?) => {
        &[$(($file, include_bytes!(concat!("../../../organisms/", $directory, "/", $file)))),+]
    };
}

const INDUCTION: Organism = Organism {
    name: "induction",
    about: "two layers that repeat a sequence: a previous-token head in layer 0, an induction head in layer 1",
    files: shipped!("induction": "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "recipe.toml", "training.json", "MODEL.md"),
};

/// All shipped organisms.
pub fn organisms() -> &'static [Organism] {
    &[INDUCTION]
}

/// The files of the organism `induction`.
pub fn induction_model_files() -> &'static [(&'static str, &'static [u8])] {
    INDUCTION.files
}

/// Writes the organism `name` as a Hugging Face directory `directory`, which must not exist.
pub fn write_organism(name: &str, directory: &Path) -> Result<()> {
    let known = || organisms().iter().map(|organism| organism.name).collect::<Vec<_>>().join(", ");
    let organism = organisms().iter().find(|organism| organism.name == name);
    let organism = organism.ok_or_else(|| Error::UnknownOrganism { name: name.to_string(), known: known() })?;
    if directory.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: directory.to_path_buf() });
    }
    let fail = |error: std::io::Error| Error::Write { path: directory.to_path_buf(), reason: error.to_string() };
    let mut partial = directory.file_name().unwrap_or_default().to_os_string();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = directory.with_file_name(partial);
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&partial)?;
        for (file, contents) in organism.files {
            fs::write(partial.join(file), contents)?;
        }
        fs::rename(&partial, directory)
    };
    write().map_err(|error| {
        // What is left over would only be in the way; the first error is the one that matters.
        let _ = fs::remove_dir_all(&partial);
        fail(error)
    })
}
