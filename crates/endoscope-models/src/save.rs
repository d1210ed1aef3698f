//! Writing a model as a Hugging Face directory.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Map, Value};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::families::Family;
use crate::spec::Spec;

/// Writes `config.json` and `model.safetensors` into `directory`, which must exist.
///
/// `config` is the config.json of `spec` in the family's keys ([`Family::config`], [`Family::completed`]). `tensors` have the
/// names and layout of the family's files (as a [`crate::WeightSource`] was asked for them).
pub fn save(
    directory: &Path,
    family: Family,
    spec: &Spec,
    config: &Map<String, Value>,
    tensors: &HashMap<String, Tensor>,
) -> Result<()> {
    for (name, contents) in files(directory, family, spec, config, tensors)? {
        let path = directory.join(name);
        // Not `serialize_to_file`, whose files only their owner can read.
        std::fs::write(&path, contents).map_err(|error| Error::write(&path, error))?;
    }
    Ok(())
}

/// `config.json` and `model.safetensors` as [`save`] writes them, by name.
pub fn model_files(
    family: Family,
    spec: &Spec,
    config: &Map<String, Value>,
    tensors: &HashMap<String, Tensor>,
) -> Result<[(&'static str, Vec<u8>); 2]> {
    files(Path::new(""), family, spec, config, tensors)
}

/// The same, for a directory that errors shall name.
fn files(
    directory: &Path,
    family: Family,
    spec: &Spec,
    config: &Map<String, Value>,
    tensors: &HashMap<String, Tensor>,
) -> Result<[(&'static str, Vec<u8>); 2]> {
    let path = directory.join("config.json");
    let text = serde_json::to_string_pretty(config).map_err(|error| Error::write(&path, error))?;
    // What cannot be read back as the same model must not be written.
    let config = Config::parse(&path, &text)?;
    let read_back = Family::of(&config)?;
    if read_back != family || read_back.spec(config)? != *spec {
        let reason = format!("the family {} cannot express this model: {spec:?}", family.model_type());
        return Err(Error::write(&path, reason));
    }
    let weights = weights_file(&directory.join("model.safetensors"), tensors)?;
    Ok([("config.json", (text + "\n").into_bytes()), ("model.safetensors", weights)])
}

/// The contents of a `model.safetensors`; `path` is what errors name.
pub fn weights_file(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<Vec<u8>> {
    // transformers asks for this entry before it opens a file.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let tensors = tensors.iter().map(|(name, tensor)| Ok((name.as_str(), tensor.contiguous()?)));
    let mut tensors = tensors.collect::<Result<Vec<_>>>()?;
    tensors.sort_by(|a, b| a.0.cmp(b.0));
    safetensors::serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)), Some(metadata))
        .map_err(|error| Error::write(path, error))
}
