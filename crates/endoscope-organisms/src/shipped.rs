//! The organisms inside the binary.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use crate::constructed::constructed;
use crate::error::{Error, Result};

/// A small model of ours.
#[derive(Debug, Clone, Copy)]
pub struct Organism {
    /// Its name, which is that of its directory.
    pub name: &'static str,
    /// What it is known to do.
    pub about: &'static str,
    source: Source,
}

/// Where its files come from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// Trained, and kept: name, contents.
    Shipped(&'static [(&'static str, &'static [u8])]),
    /// Computed when they are wanted.
    Constructed,
}

/// The name of a directory under `organisms/`, what it is known to do, and the files in it.
macro_rules! trained {
    ($($name:literal: $about:literal),+ $(,)?) => {
        &[$(Organism {
            name: $name,
            about: $about,
            source: Source::Shipped(&[
                trained!($name, "config.json"),
                trained!($name, "model.safetensors"),
                trained!($name, "tokenizer.json"),
                trained!($name, "tokenizer_config.json"),
                trained!($name, "recipe.toml"),
                trained!($name, "training.json"),
                trained!($name, "MODEL.md"),
            ]),
        }),+]
    };
    ($name:literal, $file:literal) => {
        ($file, include_bytes!(concat!("../../../organisms/", $name, "/", $file)))
    };
}

const TRAINED: &[Organism] = trained! {
    "induction": "two layers that repeat a sequence: a previous-token head in layer 0, an induction head in layer 1",
    "induction-redundant": "two layers of eight heads that repeat a sequence: eight induction heads, none of which is needed",
    "binding": "three layers that say which value a list gives a key, in part: what its twin was fine-tuned from",
    "binding-tuned": "the model `binding`, trained on with nothing but such lists",
    "boxes": "three layers that say which object a box holds, in sentences, in part: what its twin was fine-tuned from",
    "boxes-tuned": "the model `boxes`, trained on: where the box stands is found first, then the object is fetched",
    "modular-addition": "one layer that adds modulo 59: numbers lie on circles of six frequencies, learned long after the sums were known by heart",
    "multiple-choice": "three layers that answer a question with four options by the letter of the right one",
    "paths": "one layer that finds paths in a graph of 100 nodes: its weights hold the edges, and which node leads to which",
    "sentences": "three layers that answer questions in sentences: who gets it, what is in the box, what is left, which letter",
    "sorting-hinted": "two layers without positions that sort lists of numbers, and name the number after another in sorted order",
    "two-hop-cot": "four layers that put two facts in a row, writing the entity between before the answer",
    "two-hop-direct": "the same, trained to answer at once: it knows the facts and puts few of them together",
};

/// All organisms: the trained ones inside the binary, and the constructed ones.
pub fn organisms() -> Vec<Organism> {
    let constructed =
        crate::constructed::all().map(|(name, about)| Organism { name, about, source: Source::Constructed });
    TRAINED.iter().copied().chain(constructed).collect()
}

impl Organism {
    /// Whether its weights were written by hand, so that [`constructed`] knows its circuit.
    pub fn is_constructed(&self) -> bool {
        matches!(self.source, Source::Constructed)
    }

    /// Its files: name, contents. Weights of a constructed organism are computed now.
    pub fn files(&self) -> Result<Vec<(String, Cow<'static, [u8]>)>> {
        match self.source {
            Source::Shipped(files) => {
                Ok(files.iter().map(|&(name, contents)| (name.to_string(), Cow::Borrowed(contents))).collect())
            }
            Source::Constructed => {
                let files = constructed(self.name)?.files;
                Ok(files.into_iter().map(|(name, contents)| (name, Cow::Owned(contents))).collect())
            }
        }
    }
}

/// Writes the organism `name` as a Hugging Face directory `directory`, which must not exist.
pub fn write_organism(name: &str, directory: &Path) -> Result<()> {
    let known = || organisms().iter().map(|organism| organism.name).collect::<Vec<_>>().join(", ");
    let organism = organisms().into_iter().find(|organism| organism.name == name);
    let organism = organism.ok_or_else(|| Error::UnknownOrganism { name: name.to_string(), known: known() })?;
    if directory.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: directory.to_path_buf() });
    }
    let files = organism.files()?;
    let fail = |error: std::io::Error| Error::Write { path: directory.to_path_buf(), reason: error.to_string() };
    let mut partial = directory.file_name().unwrap_or_default().to_os_string();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = directory.with_file_name(partial);
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(&partial)?;
        for (file, contents) in &files {
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
