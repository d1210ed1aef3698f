//! Checkpoints: a Hugging Face directory with the optimiser's state beside the weights, there whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use endoscope_models::{Family, Spec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::adamw::{AdamW, Moments};
use crate::ema::{EMA, Ema};
use crate::error::{Error, Result};

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
pub(crate) const WEIGHTS: &str = "model.safetensors";
const EMA_WEIGHTS: &str = "ema/model.safetensors";

/// What a checkpoint knows of the run so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Updates made.
    pub step: u64,
    /// The loss of each of them.
    pub losses: Vec<f32>,
    /// The share of certain tokens that each predicted, if the recipe asks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accuracies: Vec<f32>,
}

/// What every model directory of a run has in common.
#[derive(Debug)]
pub(crate) struct Layout<'a> {
    pub family: Family,
    pub spec: &'a Spec,
    /// The config.json of `spec`.
    pub config: Map<String, Value>,
    /// Other files of the model (its tokenizer), by name.
    pub companions: &'a [(String, Vec<u8>)],
}

impl Layout<'_> {
    /// Writes config, weights and companions into `directory`, which must exist.
    pub fn write_model(&self, directory: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
        endoscope_models::save(directory, self.family, self.spec, &self.config, tensors)?;
        for (name, contents) in self.companions {
            let path = directory.join(name);
            fs::write(&path, contents).map_err(|error| Error::write(&path, error))?;
        }
        Ok(())
    }

    /// Writes the model of the running mean into the folder [`EMA`] of `directory`.
    pub fn write_ema(&self, directory: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let path = directory.join(EMA);
        fs::create_dir_all(&path).map_err(|error| Error::write(&path, error))?;
        self.write_model(&path, tensors)?;
        sync_files(&path).map_err(|error| Error::write(&path, error))
    }
}

/// Writes `step-NNNNNN` into `checkpoints` under a temporary name, then renames it.
pub(crate) fn write(
    checkpoints: &Path,
    layout: &Layout,
    variables: &BTreeMap<String, Var>,
    optimizer: &AdamW,
    ema: Option<&Ema>,
    state: &State,
) -> Result<()> {
    let name = format!("step-{:06}", state.step);
    let temporary = checkpoints.join(format!(".{name}.partial"));
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(|error| Error::write(&temporary, error))?;
    }
    fs::create_dir_all(&temporary).map_err(|error| Error::write(&temporary, error))?;
    let weights = variables.iter().map(|(name, variable)| (name.clone(), variable.as_detached_tensor())).collect();
    layout.write_model(&temporary, &weights)?;
    if let Some(ema) = ema {
        layout.write_ema(&temporary, &ema.tensors(variables)?)?;
    }
    write_optimizer(&temporary.join(OPTIMIZER), optimizer)?;
    let path = temporary.join(STATE);
    let text = serde_json::to_string(state).map_err(|error| Error::write(&path, error))?;
    fs::write(&path, text + "\n").map_err(|error| Error::write(&path, error))?;
    publish(&temporary, &checkpoints.join(name))
}

/// Makes every file of `temporary` reach the disk, then gives the directory its name.
pub(crate) fn publish(temporary: &Path, path: &Path) -> Result<()> {
    sync_files(temporary).and_then(|()| fs::rename(temporary, path)).map_err(|error| Error::write(path, error))
}

fn sync_files(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let file = entry?.path();
        if file.is_file() {
            File::open(&file)?.sync_all()?;
        }
    }
    Ok(())
}

/// The last checkpoint, if there is one. What a kill left half-written has a temporary name and is removed.
pub(crate) fn last(checkpoints: &Path) -> Result<Option<PathBuf>> {
    if !checkpoints.is_dir() {
        return Ok(None);
    }
    let fail = |error: std::io::Error| Error::read(checkpoints, error);
    let mut found: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(checkpoints).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(".step-") && name.ends_with(".partial") {
            fs::remove_dir_all(&path).map_err(|error| Error::write(&path, error))?;
        } else if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok())
            && found.as_ref().is_none_or(|(last, _)| *last < step)
        {
            found = Some((step, path));
        }
    }
    Ok(found.map(|(_, path)| path))
}

/// Puts the weights of a checkpoint into `variables`, and returns the optimiser, the running mean of the weights (with
/// `decay`, if there shall be one) and what is known of the run.
pub(crate) fn read(
    directory: &Path,
    variables: &BTreeMap<String, Var>,
    decay: Option<f64>,
) -> Result<(AdamW, Option<Ema>, State)> {
    let path = directory.join(STATE);
    let text = fs::read_to_string(&path).map_err(|error| Error::checkpoint(directory, error))?;
    let state: State = serde_json::from_str(&text).map_err(|error| Error::checkpoint(directory, error))?;
    if state.losses.len() as u64 != state.step {
        let reason = format!("{STATE} holds {} losses of {} steps", state.losses.len(), state.step);
        return Err(Error::checkpoint(directory, reason));
    }
    let weights = Stored::read(directory, WEIGHTS)?;
    let moments = Stored::read(directory, OPTIMIZER)?;
    let mut optimizer = AdamW { step: state.step, moments: BTreeMap::new() };
    for (name, variable) in variables {
        let flat = |name: &str| -> Result<Vec<f32>> { Ok(moments.get(name, &[variable.elem_count()])?.to_vec1()?) };
        let moments = Moments { first: flat(&format!("first.{name}"))?, second: flat(&format!("second.{name}"))? };
        optimizer.moments.insert(name.clone(), moments);
    }
    let ema = match decay {
        None => None,
        Some(decay) => {
            let stored = Stored::read(directory, EMA_WEIGHTS)?;
            let mut means = BTreeMap::new();
            for (name, variable) in variables {
                means.insert(name.clone(), stored.get(name, variable.dims())?.flatten_all()?.to_vec1()?);
            }
            Some(Ema { decay, means })
        }
    };
    for (name, variable) in variables {
        variable.set(weights.get(name, variable.dims())?)?;
    }
    Ok((optimizer, ema, state))
}

fn write_optimizer(path: &Path, optimizer: &AdamW) -> Result<()> {
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = optimizer
        .moments
        .iter()
        .flat_map(|(name, moments)| {
            [("first", &moments.first), ("second", &moments.second)]
                .map(|(which, numbers)| (format!("{which}.{name}"), vec![numbers.len()], bytes(numbers)))
        })
        .collect();
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            view.map(|view| (name.as_str(), view)).map_err(|error| Error::write(path, error))
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, path).map_err(|error| Error::write(path, error))
}

/// The tensors of one file of a checkpoint.
pub(crate) struct Stored<'a> {
    directory: &'a Path,
    file: &'static str,
    tensors: HashMap<String, Tensor>,
}

impl<'a> Stored<'a> {
    pub fn read(directory: &'a Path, file: &'static str) -> Result<Self> {
        let tensors = candle_core::safetensors::load(directory.join(file), &Device::Cpu)
            .map_err(|error| Error::checkpoint(directory, format!("{file}: {error}")))?;
        Ok(Self { directory, file, tensors })
    }

    /// A tensor of f32 numbers of this shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&Tensor> {
        let fail = |reason: String| Error::checkpoint(self.directory, format!("{}: {reason}", self.file));
        let tensor = self.tensors.get(name).ok_or_else(|| fail(format!("`{name}` is missing")))?;
        if tensor.dims() != shape || tensor.dtype() != DType::F32 {
            let (found, dtype) = (tensor.dims(), tensor.dtype());
            return Err(fail(format!("`{name}` has shape {found:?} of {dtype:?}; {shape:?} of F32 is needed")));
        }
        Ok(tensor)
    }
}
