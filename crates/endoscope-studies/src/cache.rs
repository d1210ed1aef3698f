//! Finished steps, kept in a folder under the hash of everything that they were computed from.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use endoscope_report::write_atomically;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Where finished steps are kept, if anywhere.
#[derive(Debug, Clone)]
pub(crate) struct Cache(Option<PathBuf>);

/// A file of the cache. The inputs are in it, so that two of one hash are not mistaken for each other.
#[derive(Serialize, Deserialize)]
struct Kept {
    inputs: Value,
    result: Value,
}

impl Cache {
    /// Keeps nothing.
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// Keeps steps in `directory`.
    pub fn at(directory: PathBuf) -> Self {
        Self(Some(directory))
    }

    /// Where something that is no JSON is kept, under the hash of `inputs`; the folder around it is there.
    pub fn place(&self, inputs: &impl Serialize) -> Result<Option<PathBuf>> {
        let Some(directory) = &self.0 else { return Ok(None) };
        let fail = |source| Error::Keep { step: "place".into(), source };
        let inputs = serde_json::to_value((inputs, program())).map_err(fail)?;
        make(directory)?;
        Ok(Some(directory.join(hash(&inputs.to_string()))))
    }

    /// The result of `step` for `inputs`: as kept, or computed now and kept.
    pub fn step<T: Serialize + DeserializeOwned>(
        &self,
        step: &str,
        inputs: &impl Serialize,
        compute: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(directory) = &self.0 else { return compute() };
        let fail = |source| Error::Keep { step: step.to_string(), source };
        let inputs = serde_json::to_value((step, inputs, program())).map_err(fail)?;
        let path = directory.join(format!("{}.json", hash(&inputs.to_string())));
        if let Some(result) = read(&path, &inputs) {
            return Ok(result);
        }
        let result = compute()?;
        make(directory)?;
        let kept = Kept { inputs, result: serde_json::to_value(&result).map_err(fail)? };
        let text = serde_json::to_vec(&kept).map_err(fail)?;
        write_atomically(&path, |file| file.write_all(&text))?;
        Ok(result)
    }
}

fn make(directory: &Path) -> Result<()> {
    let io = |source| Error::Io { doing: "make the folder", path: directory.display().to_string(), source };
    fs::create_dir_all(directory).map_err(io)
}

/// What is kept at `path` for these inputs. What cannot be read, for whatever reason, counts as not there and is computed again.
fn read<T: DeserializeOwned>(path: &Path, inputs: &Value) -> Option<T> {
    let kept: Kept = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    if kept.inputs == *inputs { serde_json::from_value(kept.result).ok() } else { None }
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What computes: a result of yesterday's program is not one of today's, even where both are of one version.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = std::env::current_exe().and_then(fs::metadata).ok().and_then(|file| {
            let time = file.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            Some(format!(" {} {}", file.len(), time.as_nanos()))
        });
        format!("{}{}", env!("CARGO_PKG_VERSION"), built.unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_computed_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("deep/cache"));
        let mut computed = 0;
        let ask = |count: &mut u32| {
            cache.step("step", &("input", 0.1), || {
                *count += 1;
                Ok(vec![0.1, 1. / 3.])
            })
        };
        assert_eq!(ask(&mut computed).unwrap(), [0.1, 1. / 3.]);
        assert_eq!((ask(&mut computed).unwrap(), computed), (vec![0.1, 1. / 3.], 1));
        let file = fs::read_dir(folder.path().join("deep/cache")).unwrap().next().unwrap().unwrap().path();
        for damage in ["", "{", "{\"inputs\":[],\"result\":[9.0]}"] {
            fs::write(&file, damage).unwrap();
            assert_eq!(ask(&mut computed).unwrap(), [0.1, 1. / 3.], "{damage}");
        }
        assert_eq!(computed, 4);
    }

    #[test]
    fn an_error_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_path_buf());
        assert!(cache.step::<f64>("step", &1, || Err(Error::Stopped)).is_err());
        assert_eq!(cache.step("step", &1, || Ok(2.)).unwrap(), 2.);
    }
}
