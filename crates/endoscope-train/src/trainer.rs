//! The training loop.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use endoscope_models::Decoder;
use serde::Serialize;

use crate::adamw::{AdamW, gradient_norm};
use crate::batches::Batches;
use crate::checkpoint::{self, Layout, State};
use crate::ema::Ema;
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::recipe::Recipe;
use crate::run_directory::RunDirectory;
use crate::schedule::learning_rate;
use crate::series_writer::SeriesWriter;
use crate::slope::{Slope, slope};

/// How far a run is, after each update.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Updates made, those before a resume included.
    pub step: u64,
    /// Updates in all.
    pub steps: u64,
    /// The loss before this update, in nats a token.
    pub loss: f32,
    /// The learning rate of this update.
    pub learning_rate: f64,
    /// The length of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens trained on a second, since the start or resume.
    pub tokens_per_second: f64,
    /// At that speed.
    pub seconds_left: f64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The model is there.
    Finished {
        /// Its directory.
        directory: PathBuf,
        /// The loss of each update, from the first.
        losses: Vec<f32>,
    },
    /// The observer stopped it; the same call continues.
    Stopped {
        /// The directory of the unfinished run.
        directory: PathBuf,
        /// Updates made, all kept in a checkpoint.
        step: u64,
    },
}

/// Trains the model of `recipe` on `data` into the directory `out`, which must not exist.
///
/// `companions` are files (name, contents) that every checkpoint and the result get besides config and weights: the
/// tokenizer. If an unfinished run of the same `out` and recipe is there, it is continued; the result is bit for bit
/// that of an uninterrupted run on the same machine, its series included. The observer may stop the run after any update.
pub fn train(
    recipe: &Recipe,
    data: &dyn Batches,
    companions: &[(String, Vec<u8>)],
    out: &Path,
    observer: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Outcome> {
    let problems = recipe.problems();
    if !problems.is_empty() {
        return Err(Error::Recipe { path: "recipe.toml".into(), problems });
    }
    let training = &recipe.training;
    let family = recipe.model.family;
    let (mut decoder, mut parameters) = initial_model(recipe, data.vocabulary())?;
    let config = recipe.model.config(data.vocabulary())?;
    let layout = Layout { family, spec: &decoder.spec, config, companions };
    let variables = &parameters.variables.clone();
    // Before anything is written, so that a wrong start leaves nothing.
    if let Some(start) = &training.start {
        start.load(&layout, variables)?;
    }
    let run = RunDirectory::open(out, recipe)?;
    let save = |optimizer: &AdamW, ema: &Option<Ema>, state: &State| {
        checkpoint::write(&run.checkpoints(), &layout, variables, optimizer, ema.as_ref(), state)
    };
    let last = checkpoint::last(&run.checkpoints())?;
    let (mut optimizer, mut ema, mut state) = match &last {
        Some(last) => checkpoint::read(last, variables, training.ema)?,
        None => {
            let ema = training.ema.map(|decay| Ema::new(decay, variables)).transpose()?;
            (AdamW::new(variables), ema, State::default())
        }
    };
    let mut series = SeriesWriter::open(run.series(), &layout, recipe, state.step)?;
    if let Some(series) = series.as_mut().filter(|series| series.wants(state.step)) {
        series.append(state.step, state.losses.last().copied(), &parameters.tensors()?)?;
    }
    if last.is_none() {
        save(&optimizer, &ema, &state)?;
    }
    let (began, begin) = (Instant::now(), state.step);
    for step in state.step..training.steps {
        if training.early_stop.is_some_and(|stop| stop.is_reached(&state.accuracies)) {
            break;
        }
        let batch = data.batch(training.seed, step, training.batch);
        if let Some(reason) = batch.problem(decoder.spec.vocabulary, decoder.spec.context) {
            return Err(Error::Batch { step, reason });
        }
        // Some are computed from the variables, which have moved: norms that are stored less 1, parts put together.
        decoder.weights = family.weights(&decoder.spec, &mut parameters)?;
        let Slope { loss, answered, gradients } = slope(&decoder, variables, &batch, training)?;
        let norm = gradient_norm(variables, &gradients)?;
        for (what, value) in [("loss", f64::from(loss)), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(Error::NotFinite { step: step + 1, what, value, kept: run.path.clone() });
            }
        }
        let rate = learning_rate(training, step);
        optimizer.update(variables, &gradients, (training.gradient_clip / norm).min(1.), rate, training)?;
        if let Some(ema) = &mut ema {
            ema.update(variables)?;
        }
        state.losses.push(loss);
        state.accuracies.extend(answered.map(|answered| answered.share() as f32));
        state.step = step + 1;
        // Before the checkpoint of the same step: a series never lacks a step that training does not make again.
        if let Some(series) = series.as_mut().filter(|series| series.wants(state.step)) {
            series.append(state.step, Some(loss), &parameters.tensors()?)?;
        }
        let due = state.step.is_multiple_of(training.checkpoint_every) && state.step < training.steps;
        if due {
            save(&optimizer, &ema, &state)?;
        }
        let (seconds, made) = (began.elapsed().as_secs_f64().max(1e-9), state.step - begin);
        let flow = observer(&Progress {
            step: state.step,
            steps: training.steps,
            loss,
            learning_rate: rate,
            gradient_norm: norm,
            tokens_per_second: (made * (training.batch * data.length()) as u64) as f64 / seconds,
            seconds_left: seconds / made as f64 * (training.steps - state.step) as f64,
        });
        if flow.is_break() && state.step < training.steps {
            if !due {
                save(&optimizer, &ema, &state)?;
            }
            return Ok(Outcome::Stopped { directory: run.path, step: state.step });
        }
    }
    // The last step of a run that ended early was not known to be the last.
    if let Some(series) = series.as_mut().filter(|series| !series.ends_at(state.step)) {
        series.append(state.step, state.losses.last().copied(), &parameters.tensors()?)?;
    }
    layout.write_model(&run.path, &parameters.tensors()?)?;
    if let Some(ema) = &ema {
        layout.write_ema(&run.path, &ema.tensors(variables)?)?;
    }
    write_summary(&run.path.join("training.json"), recipe, &state.losses)?;
    Ok(Outcome::Finished { directory: run.finish()?, losses: state.losses })
}

/// The model of `recipe` before any update, its weights drawn (not those of [`crate::Start`]), and the variables that it is made of.
pub fn initial_model(recipe: &Recipe, vocabulary: usize) -> Result<(Decoder, Parameters)> {
    let (family, spec) = (recipe.model.family, recipe.model.spec(vocabulary)?);
    let mut parameters = Parameters::new(family, &spec, recipe.training.seed, recipe.training.init_std);
    let weights = family.weights(&spec, &mut parameters)?;
    Ok((Decoder::new(spec, weights)?, parameters))
}

/// `training.json`: the recipe and at most a few hundred points of the loss curve.
#[derive(Serialize)]
struct Summary<'a> {
    recipe: &'a Recipe,
    losses: Vec<Point>,
}

#[derive(Serialize)]
struct Point {
    step: usize,
    loss: f32,
}

fn write_summary(path: &Path, recipe: &Recipe, losses: &[f32]) -> Result<()> {
    let every = losses.len().div_ceil(200).max(1);
    let kept = |step: usize| step == 1 || step == losses.len() || step.is_multiple_of(every);
    let points = losses.iter().enumerate().map(|(at, &loss)| Point { step: at + 1, loss });
    let summary = Summary { recipe, losses: points.filter(|point| kept(point.step)).collect() };
    let text = serde_json::to_string_pretty(&summary).map_err(|error| Error::write(path, error))?;
    std::fs::write(path, text + "\n").map_err(|error| Error::write(path, error))
}
