//! `harvest.json`: what a harvest is, and how far it has come.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::sequence::{Cursor, Packing};

/// The file's name within the harvest's folder.
pub const MANIFEST: &str = "harvest.json";

/// The version of the layout that this program writes and reads.
pub const VERSION: u32 = 1;

/// What a harvest is. It holds nothing that differs between two runs of the same work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Of the layout.
    pub version: u32,
    /// Where the rows come from: the model and the corpus, each with the SHA-256 of its files.
    pub source: Value,
    /// How documents became sequences.
    pub packing: Packing,
    /// The token ids whose rows are left out.
    pub exclude: BTreeSet<u32>,
    /// What activations are written as.
    pub dtype: Dtype,
    /// What is kept, in order.
    pub outputs: Vec<OutputRecord>,
    /// A shard ends with the first sequence by which it has so many rows of tokens.
    pub shard_rows: u64,
    /// The harvest ends with the first sequence by which so many tokens were run.
    pub max_tokens: Option<u64>,
    /// The shards that are done, in order.
    pub shards: Vec<ShardRecord>,
    /// Whether the corpus, or as much of it as was asked for, is done.
    pub complete: bool,
}

/// One tensor of every shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputRecord {
    /// The tensor's name.
    pub name: String,
    /// The site that it is of.
    pub site: String,
    /// What is kept of the site: `tokens`, `mean`, `last` or `probe`.
    pub reduction: String,
    /// What it has a row for.
    pub per: Per,
    /// How many numbers a row has.
    pub width: usize,
    /// Of the probe's directions and biases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// What an output has a row for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// Each token that is kept.
    Token,
    /// Each sequence of which a token is kept.
    Sequence,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRecord {
    /// The file's name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// How many rows outputs of each token have in it.
    pub rows: u64,
    /// How many rows outputs of each sequence have in it.
    pub sequences: u64,
    /// How many tokens were run for it.
    pub tokens: u64,
    /// Where it begins in the corpus.
    pub begins: Cursor,
    /// Where the next one begins.
    pub ends: Cursor,
}

/// The name of the shard of a number, from 0.
pub(crate) fn shard_file(number: usize) -> String {
    format!("shard-{number:06}.safetensors")
}

/// Names of outputs that would be those of index tensors are refused.
pub(crate) const INDEX: [&str; 4] = ["document", "sequence", "position", "token"];
/// The same of each sequence.
pub(crate) const SEQUENCE_INDEX: [&str; 3] = ["sequences.document", "sequences.number", "sequences.tokens"];

impl Manifest {
    /// Reads and checks `harvest.json` of a folder; `None` if there is none.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(MANIFEST);
        match std::fs::read(&path) {
            Ok(text) => Self::parse(&text, &path).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Checks the text of the file `path`.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self> {
        let wrong = |reason: String| Error::Manifest { path: path.to_path_buf(), reason };
        // The version first: another one has other fields.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        if versioned.version != VERSION {
            let version = versioned.version;
            return Err(wrong(format!("its version is {version}; this program reads version {VERSION}")));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        manifest.check().map_err(wrong)?;
        Ok(manifest)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.outputs.is_empty() {
            return Err("it has no outputs".into());
        }
        let mut names = BTreeSet::from_iter(INDEX.into_iter().chain(SEQUENCE_INDEX));
        for output in &self.outputs {
            if !names.insert(&output.name) {
                return Err(format!("it has two tensors `{}`", output.name));
            }
            if output.width == 0 {
                return Err(format!("the rows of `{}` have no numbers", output.name));
            }
        }
        let mut cursor = Cursor::default();
        for (number, shard) in self.shards.iter().enumerate() {
            if shard.file != shard_file(number) {
                return Err(format!("shard {number} is called {:?}, not {}", shard.file, shard_file(number)));
            }
            if shard.begins != cursor {
                return Err(format!("{} does not begin where the one before it ends", shard.file));
            }
            cursor = shard.ends;
            let widest = self.outputs.iter().map(|output| output.width as u64).max().unwrap_or(0);
            let bytes = shard.rows.max(shard.sequences).checked_mul(widest).and_then(|numbers| numbers.checked_mul(8));
            if bytes.is_none_or(|bytes| bytes > i64::MAX as u64) || shard.tokens > i64::MAX as u64 {
                return Err(format!("{} has more rows than can be", shard.file));
            }
        }
        let total = |count: fn(&ShardRecord) -> u64| {
            self.shards.iter().try_fold(0u64, |sum, shard| sum.checked_add(count(shard)))
        };
        let sums = [total(|s| s.rows), total(|s| s.sequences), total(|s| s.tokens), total(|s| s.bytes)];
        if sums.iter().any(Option::is_none) {
            return Err("its shards have more rows than can be".into());
        }
        Ok(())
    }

    /// Writes it to a folder, whole or not at all.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(MANIFEST);
        let text = self.text().map_err(|reason| Error::Manifest { path: path.clone(), reason })?;
        Ok(endoscope_report::write_atomically(path, |file| file.write_all(&text))?)
    }

    /// What stands in the file.
    pub(crate) fn text(&self) -> std::result::Result<Vec<u8>, String> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        text.push(b'\n');
        Ok(text)
    }

    /// Where the next shard begins.
    pub fn cursor(&self) -> Cursor {
        self.shards.last().map_or_else(Cursor::default, |shard| shard.ends)
    }

    /// How many rows outputs of this kind have so far.
    pub fn rows(&self, per: Per) -> u64 {
        self.shards.iter().map(|shard| shard.rows_of(per)).sum()
    }

    /// How many tokens were run so far.
    pub fn tokens(&self) -> u64 {
        self.shards.iter().map(|shard| shard.tokens).sum()
    }

    /// What differs between this harvest and `other`, progress aside: its name and both values.
    pub(crate) fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let settled = |manifest: &Self| {
            let settled = Self { shards: Vec::new(), complete: false, ..manifest.clone() };
            serde_json::to_value(settled).unwrap_or_default()
        };
        differs("", &settled(self), &settled(other))
    }
}

impl ShardRecord {
    /// How many rows outputs of this kind have in it.
    pub fn rows_of(&self, per: Per) -> u64 {
        match per {
            Per::Token => self.rows,
            Per::Sequence => self.sequences,
        }
    }
}

/// The first place at which two values differ.
fn differs(place: &str, then: &Value, now: &Value) -> Option<(String, String, String)> {
    let inside = |key: &str| if place.is_empty() { key.to_string() } else { format!("{place}.{key}") };
    match (then, now) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = BTreeMap::from_iter(a.keys().chain(b.keys()).map(|key| (key, ())));
            keys.into_keys().find_map(|key| {
                let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                differs(&inside(key), a, b)
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(at, (a, b))| differs(&inside(&at.to_string()), a, b))
        }
        (then, now) if then == now => None,
        (then, now) => Some((place.to_string(), then.to_string(), now.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_difference_has_a_name() {
        let (a, b) = (json!({"x": [1, {"y": 2}], "z": 3}), json!({"x": [1, {"y": 5}], "z": 4}));
        assert_eq!(differs("", &a, &b), Some(("x.1.y".into(), "2".into(), "5".into())));
        assert_eq!(differs("", &a, &a), None);
        assert_eq!(differs("", &json!({}), &json!({"k": 1})), Some(("k".into(), "null".into(), "1".into())));
    }

    #[test]
    fn what_could_not_have_been_written_is_refused() {
        let cursor = json!({"document": 0, "token": 0, "sequence": 0});
        let good = json!({
            "version": 1, "source": {}, "exclude": [], "dtype": "f32", "shard_rows": 8, "max_tokens": null,
            "packing": {"mode": "blocks", "context": 4, "begin": null, "separator": null},
            "outputs": [{"name": "a", "site": "a", "reduction": "tokens", "per": "token", "width": 2}],
            "shards": [{"file": "shard-000000.safetensors", "bytes": 1, "sha256": "", "rows": 1, "sequences": 1,
                        "tokens": 1, "begins": cursor, "ends": cursor}],
            "complete": true,
        });
        let parse = |value: &Value| Manifest::parse(value.to_string().as_bytes(), Path::new("harvest.json"));
        assert!(parse(&good).is_ok());
        for (pointer, value, part) in [
            ("/version", json!(2), "version is 2"),
            ("/outputs", json!([]), "no outputs"),
            ("/outputs/0/name", json!("token"), "two tensors `token`"),
            ("/outputs/0/width", json!(0), "no numbers"),
            ("/outputs/0/per", json!("head"), "unknown variant"),
            ("/shards/0/file", json!("../shard-000000.safetensors"), "is called"),
            ("/shards/0/rows", json!(u64::MAX), "more rows"),
            ("/shards/0/begins/document", json!(1), "does not begin"),
            ("/dtype", json!("f64"), "unknown variant"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let error = parse(&bad).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("harvest.json"), "{pointer}: {error}");
        }
    }
}
