//! Where this process's run comes from, and where it goes.

use std::path::{Path, PathBuf};

use anyhow::Result;
use endoscope_models::Model;
use endoscope_report::{HashedFile, Provenance, Started};

/// The run directory of a verb that is told none: `runs/VERB`, or the first of `runs/VERB-2` … that is not there.
pub fn next_free(verb: &str) -> PathBuf {
    let name = |number: usize| match number {
        1 => PathBuf::from(format!("runs/{verb}")),
        number => PathBuf::from(format!("runs/{verb}-{number}")),
    };
    (1..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(1))
}

/// Where a result of this run comes from: the model's files, and `others` by their role.
pub fn provenance(started: &Started, model: &Model, others: &[(&str, &Path)]) -> Result<Provenance> {
    let mut provenance = own_provenance(started);
    let model_files = model.files.iter().map(|(role, path)| (*role, path.as_path()));
    for (role, path) in model_files.chain(others.iter().copied()) {
        provenance.files.push(HashedFile::read(role, path)?);
    }
    if let Some(revision) = &model.revision {
        provenance.revisions.insert(revision.repository.clone(), revision.commit.clone());
    }
    let processed = &model.decoder.processed;
    if !processed.is_empty() {
        let names: Vec<&str> = processed.iter().map(|process| process.name()).collect();
        provenance.notes.push(format!("weights processed after reading: {}", names.join(", ")));
    }
    Ok(provenance)
}

/// The same without files.
pub fn own_provenance(started: &Started) -> Provenance {
    let mut provenance = Provenance::new(
        env!("CARGO_PKG_VERSION"),
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
        started,
    );
    // The versions that Cargo.lock pins; a test keeps them true.
    provenance.libraries.insert("candle-core".into(), CANDLE.into());
    provenance.libraries.insert("tokenizers".into(), TOKENIZERS.into());
    provenance
}

const CANDLE: &str = "0.11.1";
const TOKENIZERS: &str = "0.23.2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_versions_are_those_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        for (name, version) in [("candle-core", CANDLE), ("tokenizers", TOKENIZERS)] {
            assert!(lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"")), "{name} is not {version}");
        }
    }
}
