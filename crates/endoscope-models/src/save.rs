//! Writing a model as a Hugging Face directory.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::families::Family;
use crate::spec::Spec;

/// Writes `config.json` and `model.safetensors` into `directory`, which must exist.
///
/// `tensors` have the names and layout of the family's files (as a [`crate::WeightSource`] was asked for them).
pub fn save(directory: &Path, family: Family, spec: &Spec, tensors: &HashMap<String, Tensor>) -> Result<()> {
    let config_path = directory.join("config.json");
    let config = family.config(spec).ok_or_else(|| {
        Error::write(&config_path, format!("models of the family {} are only read", family.model_type()))
    })?;
    let text = serde_json::to_string_pretty(&config).map_err(|error| Error::write(&config_path, error))?;
    // What cannot be read back as the same model must not be written.
    let read_back = family.spec(Config::parse(&config_path, &text)?)?;
    if read_back != *spec {
        let reason = format!("the family {} cannot express this model: {spec:?}", family.model_type());
        return Err(Error::write(&config_path, reason));
    }
    std::fs::write(&config_path, text + "\n").map_err(|error| Error::write(&config_path, error))?;
    let path = directory.join("model.safetensors");
    // transformers asks for this entry before it opens a file.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let tensors = tensors.iter().map(|(name, tensor)| Ok((name.as_str(), tensor.contiguous()?)));
    let mut tensors = tensors.collect::<Result<Vec<_>>>()?;
    tensors.sort_by(|a, b| a.0.cmp(b.0));
    // Not `serialize_to_file`, whose files only their owner can read.
    let bytes = safetensors::serialize(tensors.iter().map(|(name, tensor)| (*name, tensor)), Some(metadata))
        .map_err(|error| Error::write(&path, error))?;
    std::fs::write(&path, bytes).map_err(|error| Error::write(&path, error))
}
