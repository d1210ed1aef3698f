//! Some features of a dictionary as a harvest keeps them.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use endoscope_dictionary::{Dictionary, Matrix};
use endoscope_harvest::Scores;
use endoscope_report::HashedFile;

use super::source::{files, open_one};

/// A dictionary, and which of its features are wanted.
#[derive(Debug)]
pub struct Chosen {
    dictionary: Dictionary,
    features: Vec<usize>,
    sha256: String,
}

impl Chosen {
    /// Those features of the dictionary at `path`; all of them if none are named.
    pub fn open(path: &Path, features: &[usize]) -> Result<Arc<Self>> {
        let dictionary = open_one(path)?;
        features.iter().try_for_each(|&feature| dictionary.check_feature(feature))?;
        let features = match features.is_empty() {
            true => (0..dictionary.latents()).collect(),
            false => features.to_vec(),
        };
        let mut parts = vec![format!("{features:?}")];
        for file in files(path)? {
            parts.push(HashedFile::read("dictionary", &file)?.sha256);
        }
        let sha256 = HashedFile::of("features", path, parts.join("\n").as_bytes()).sha256;
        Ok(Arc::new(Self { dictionary, features, sha256 }))
    }
}

impl Scores for Chosen {
    fn reads(&self) -> usize {
        self.dictionary.d_in()
    }

    fn width(&self) -> usize {
        self.features.len()
    }

    fn sha256(&self) -> String {
        self.sha256.clone()
    }

    fn of(&self, rows: &[f32]) -> Vec<f32> {
        let count = rows.len() / self.reads().max(1);
        let codes = Matrix::new(count, self.reads(), rows.to_vec()).and_then(|rows| self.dictionary.encode(&rows));
        // What is not finite has no features; the harvest then says which rows these are.
        let Ok(codes) = codes else { return vec![f32::NAN; count * self.width()] };
        let mut scores = Vec::with_capacity(count * self.width());
        for row in 0..count {
            let (columns, values) = codes.latents.row(row);
            let found = |&feature: &usize| columns.binary_search(&(feature as u32)).map_or(0., |at| values[at]);
            scores.extend(self.features.iter().map(found));
        }
        scores
    }
}
