//! A training as files: there whole or not at all, so that a training that was killed goes on with the same bits.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use super::parameter::Parameter;
use super::preparation::Preparation;
use super::settings::Settings;
use super::trainer::{Progress, Trainer};
use crate::config::Config;
use crate::error::{Error, Result};

const ARRAYS: &str = "trainer.safetensors";
const STATE: &str = "trainer.json";

/// Everything but the arrays.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    settings: Settings,
    template: Config,
    d_in: usize,
    d_out: usize,
    step: u64,
    preparation: Preparation,
    idle: Vec<u64>,
    /// The bits, so that they come back as they were.
    running_threshold: u64,
    history: Vec<Progress>,
    /// Absent in files of older versions.
    #[serde(default)]
    beginning: Vec<f32>,
}

/// A training as it stands.
pub(crate) struct Checkpoint {
    pub trainer: Trainer,
    /// What it reported.
    pub history: Vec<Progress>,
    /// The first vector of its stream, by which another stream is noticed.
    pub beginning: Vec<f32>,
}

/// Writes a training into `directory`, in the place of what was there.
pub(crate) fn save(Checkpoint { trainer, history, beginning }: &Checkpoint, directory: &Path) -> Result<()> {
    let beside = |end: &str| {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        directory.with_file_name(format!(".{name}.{end}"))
    };
    let (temporary, old) = (beside("partial"), beside("old"));
    let fail = |error: std::io::Error| Error::write(directory, error);
    remove(&temporary).map_err(fail)?;
    fs::create_dir_all(&temporary).map_err(fail)?;
    let arrays = arrays(trainer);
    let views = arrays.iter().map(|(name, values)| {
        let view = TensorView::new(Dtype::F32, vec![values.len()], bytes(values));
        view.map(|view| (name.as_str(), view)).map_err(|error| Error::write(directory, error))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let path = temporary.join(ARRAYS);
    safetensors::serialize_to_file(views, None, &path).map_err(|error| Error::write(&path, error))?;
    let state = State {
        settings: trainer.settings.clone(),
        template: trainer.template.clone(),
        d_in: trainer.d_in,
        d_out: trainer.d_out,
        step: trainer.step,
        preparation: trainer.preparation.clone(),
        idle: trainer.idle.clone(),
        running_threshold: trainer.running_threshold.to_bits(),
        history: history.clone(),
        beginning: beginning.clone(),
    };
    let text = serde_json::to_string(&state).map_err(|error| Error::write(directory, error))?;
    fs::write(temporary.join(STATE), text + "\n").map_err(fail)?;
    for name in [ARRAYS, STATE] {
        fs::File::open(temporary.join(name)).and_then(|file| file.sync_all()).map_err(fail)?;
    }
    // Between these two a kill leaves no checkpoint of that name, but the old one, which is then read.
    remove(&old).map_err(fail)?;
    if directory.exists() {
        fs::rename(directory, &old).map_err(fail)?;
    }
    fs::rename(&temporary, directory).map_err(fail)?;
    remove(&old).map_err(fail)
}

/// The training of a directory, if there is one.
pub(crate) fn load(directory: &Path) -> Result<Option<Checkpoint>> {
    let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let old = directory.with_file_name(format!(".{name}.old"));
    let directory = match (directory.is_dir(), old.is_dir()) {
        (true, _) => directory,
        (false, true) => &old,
        (false, false) => return Ok(None),
    };
    let path = directory.join(STATE);
    let text = fs::read_to_string(&path).map_err(|error| Error::file(&path, error))?;
    let state: State = serde_json::from_str(&text).map_err(|error| Error::file(&path, error))?;
    let path = directory.join(ARRAYS);
    let contents = fs::read(&path).map_err(|error| Error::file(&path, error))?;
    let tensors = safetensors::SafeTensors::deserialize(&contents).map_err(|error| Error::file(&path, error))?;
    let read = |name: &str, length: usize| {
        let view = tensors.tensor(name).map_err(|error| Error::file(&path, error))?;
        if view.dtype() != Dtype::F32 || view.shape() != [length] {
            let reason = format!("{name} has shape {:?} of {:?}, not [{length}] of F32", view.shape(), view.dtype());
            return Err(Error::file(&path, reason));
        }
        let chunks = view.data().as_chunks::<4>().0;
        Ok(chunks.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect::<Vec<f32>>())
    };
    let parameter = |name: &str, length: usize| {
        Ok::<_, Error>(Parameter {
            values: read(name, length)?,
            first: read(&format!("{name}.first"), length)?,
            second: read(&format!("{name}.second"), length)?,
        })
    };
    let State { settings, template, d_in, d_out, step, preparation, idle, running_threshold, history, beginning } =
        state;
    let latents = settings.latents;
    let reason = || Error::file(&path, format!("{latents} latents of {d_in} to {d_out} dimensions are not possible"));
    let (reads, writes) =
        (latents.checked_mul(d_in).ok_or_else(reason)?, latents.checked_mul(d_out).ok_or_else(reason)?);
    let has = |name: &str| tensors.tensor(name).is_ok();
    if idle.len() != latents {
        return Err(Error::file(&path, format!("{} counts are not those of {latents} latents", idle.len())));
    }
    let trainer = Trainer {
        encoder: parameter("encoder", reads)?,
        encoder_bias: parameter("encoder_bias", latents)?,
        decoder: parameter("decoder", writes)?,
        decoder_bias: parameter("decoder_bias", d_out)?,
        threshold: has("threshold").then(|| parameter("threshold", latents)).transpose()?,
        magnitude: match has("magnitude_rescale") {
            true => Some((parameter("magnitude_rescale", latents)?, parameter("magnitude_bias", latents)?)),
            false => None,
        },
        skip: match has("skip") {
            true => Some(parameter("skip", d_in.checked_mul(d_out).ok_or_else(reason)?)?),
            false => None,
        },
        settings,
        template,
        d_in,
        d_out,
        step,
        preparation,
        idle,
        running_threshold: f64::from_bits(running_threshold),
    };
    Ok(Some(Checkpoint { trainer, history, beginning }))
}

fn remove(directory: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn arrays(trainer: &Trainer) -> BTreeMap<String, &[f32]> {
    let rescale = trainer.magnitude.as_ref().map(|(rescale, _)| rescale);
    let bias = trainer.magnitude.as_ref().map(|(_, bias)| bias);
    let parameters = [
        ("encoder", Some(&trainer.encoder)),
        ("encoder_bias", Some(&trainer.encoder_bias)),
        ("decoder", Some(&trainer.decoder)),
        ("decoder_bias", Some(&trainer.decoder_bias)),
        ("threshold", trainer.threshold.as_ref()),
        ("magnitude_rescale", rescale),
        ("magnitude_bias", bias),
        ("skip", trainer.skip.as_ref()),
    ];
    let mut arrays = BTreeMap::new();
    for (name, parameter) in parameters {
        let Some(Parameter { values, first, second }) = parameter else { continue };
        arrays.insert(name.to_string(), values.as_slice());
        arrays.insert(format!("{name}.first"), first.as_slice());
        arrays.insert(format!("{name}.second"), second.as_slice());
    }
    arrays
}

/// The values as they lie in files.
fn bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}
