//! Training whole dictionaries, several from one stream, with checkpoints.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::checkpoint::{self, Checkpoint};
use super::settings::Settings;
use super::trainer::{Examples, Progress, Trainer};
use crate::config::Config;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::matrix::Matrix;

/// Where batches come from.
pub trait Stream {
    /// Batch `number`: the same for the same number, so that a training goes on where it was stopped.
    fn batch(&mut self, number: u64, rows: usize) -> Result<Examples>;
}

/// A dictionary to be trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its name; that of its directory.
    pub name: String,
    /// How.
    pub settings: Settings,
    /// Which sites it reads and writes.
    pub template: Config,
}

/// A dictionary that was trained.
#[derive(Debug)]
pub struct Trained {
    /// The job's name.
    pub name: String,
    /// The dictionary, for vectors as they are.
    pub dictionary: Dictionary,
    /// What was reported: every [`REPORT_EVERY`] updates, and at the last.
    pub history: Vec<Progress>,
}

/// How many updates lie between two reports.
pub const REPORT_EVERY: u64 = 10;

/// Trains `jobs` together: each batch of the stream is seen by all, so their batches are of one size. Checkpoints lie in
/// `directory`, one folder for each; a training that was stopped goes on from them with the same bits.
///
/// `watch` hears of each update of each job and may end the training, after a checkpoint.
pub fn train(
    jobs: &[Job],
    stream: &mut dyn Stream,
    directory: &Path,
    checkpoint_every: u64,
    mut watch: impl FnMut(&Job, &Progress) -> ControlFlow<()>,
) -> Result<Option<Vec<Trained>>> {
    let Some(first) = jobs.first() else { return Ok(Some(Vec::new())) };
    let rows = first.settings.batch;
    if let Some(other) = jobs.iter().find(|job| job.settings.batch != rows) {
        let reason = format!("{} has batches of {}, {} of {rows}", other.name, other.settings.batch, first.name);
        return Err(Error::Training(format!("dictionaries of one stream see the same batches: {reason}")));
    }
    let sample = sample(stream, rows)?;
    let beginning: Vec<f32> = sample.input.values().iter().take(sample.input.columns()).copied().collect();
    let mut running = Vec::new();
    for job in jobs {
        let path = directory.join(&job.name).join("checkpoint");
        let checkpoint = match checkpoint::load(&path)? {
            Some(checkpoint) => {
                let Checkpoint { trainer, beginning: before, .. } = &checkpoint;
                if trainer.settings != job.settings || trainer.template != job.template {
                    let reason = "it is of other settings; use them, or another directory";
                    return Err(Error::file(&path, reason));
                }
                if !before.is_empty() && !alike(before, &beginning) {
                    let reason = "it was trained on other vectors, or in another order (model, rows, seed); use those, or \
                                  another directory";
                    return Err(Error::file(&path, reason));
                }
                checkpoint
            }
            None => {
                let trainer = Trainer::new(job.settings.clone(), job.template.clone(), &sample)?;
                Checkpoint { trainer, history: Vec::new(), beginning: beginning.clone() }
            }
        };
        running.push(Running { job, checkpoint, path });
    }
    drop(sample);
    let ended = |running: &[Running<'_>]| running.iter().all(|running| running.checkpoint.trainer.is_finished());
    while !ended(&running) {
        // Those whose checkpoint is of a later batch wait for the others.
        let trainers = running.iter().map(|each| &each.checkpoint.trainer);
        let number = trainers.filter(|trainer| !trainer.is_finished()).map(Trainer::steps).min().unwrap_or(0);
        let examples = stream.batch(number, rows)?;
        let mut stopped = false;
        for each in &mut running {
            let Checkpoint { trainer, history, .. } = &mut each.checkpoint;
            if trainer.steps() != number || trainer.is_finished() {
                continue;
            }
            let progress = trainer.update(&examples)?;
            let finished = trainer.is_finished();
            if progress.step % REPORT_EVERY == 0 || finished {
                history.push(progress);
            }
            stopped |= watch(each.job, &progress).is_break();
            if progress.step % checkpoint_every.max(1) == 0 || finished {
                each.save()?;
            }
        }
        if stopped && !ended(&running) {
            running.iter().try_for_each(Running::save)?;
            return Ok(None);
        }
    }
    let trained = |each: Running<'_>| {
        let Checkpoint { trainer, history, .. } = each.checkpoint;
        Ok(Trained { name: each.job.name.clone(), dictionary: trainer.dictionary()?, history })
    };
    running.into_iter().map(trained).collect::<Result<_>>().map(Some)
}

/// Whether two vectors are the same but for what another machine rounds otherwise.
fn alike(a: &[f32], b: &[f32]) -> bool {
    let largest = a.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-3 * largest)
}

/// How many vectors scales, covariances and biases are estimated from, at least.
const SAMPLE: usize = 8192;

fn sample(stream: &mut dyn Stream, rows: usize) -> Result<Examples> {
    let batches = SAMPLE.div_ceil(rows.max(1)) as u64;
    let batches = (0..batches).map(|number| stream.batch(number, rows)).collect::<Result<Vec<_>>>()?;
    let joined = |part: &dyn Fn(&Examples) -> Option<&Matrix>| -> Result<Option<Matrix>> {
        let parts: Vec<&Matrix> = batches.iter().filter_map(part).collect();
        let Some(first) = parts.first() else { return Ok(None) };
        let values: Vec<f32> = parts.iter().flat_map(|part| part.values().iter().copied()).collect();
        Matrix::new(parts.iter().map(|part| part.rows()).sum(), first.columns(), values).map(Some)
    };
    match joined(&|examples| Some(&examples.input))? {
        Some(input) => Ok(Examples { input, target: joined(&|examples| examples.target.as_ref())? }),
        None => Err(Error::Training("batches are of no rows".into())),
    }
}

struct Running<'a> {
    job: &'a Job,
    checkpoint: Checkpoint,
    path: PathBuf,
}

impl Running<'_> {
    fn save(&self) -> Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Error::write(parent, error))?;
        }
        checkpoint::save(&self.checkpoint, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::Objective;

    struct Numbers;

    impl Stream for Numbers {
        fn batch(&mut self, number: u64, rows: usize) -> Result<Examples> {
            let value = |at: u64| ((at * 7919 + number * 104_729) % 1013) as f32 / 500. - 1.;
            let input = Matrix::new(rows, 4, (0..4 * rows as u64).map(value).collect())?;
            Ok(Examples { input, target: None })
        }
    }

    fn jobs() -> Vec<Job> {
        let settings = |objective, steps| Settings { objective, latents: 12, steps, batch: 16, ..Settings::default() };
        let job = |name: &str, settings| Job { name: name.into(), settings, template: Config::default() };
        vec![
            job("few", settings(Objective::TopK { k: 2, dead: 1., by_decoder_norm: true }, 9)),
            job("gated", settings(Objective::Gated { l1: 0.1 }, 13)),
            job("jump", {
                let text = r#"{"objective": {"jumprelu": {"l0": 0.1}}, "latents": 12, "steps": 13, "batch": 16}"#;
                serde_json::from_str(text).unwrap()
            }),
        ]
    }

    #[test]
    fn a_training_that_was_stopped_goes_on_with_the_same_bits() {
        let whole = tempfile::tempdir().unwrap();
        let unbroken =
            train(&jobs(), &mut Numbers, whole.path(), 4, |_, _| ControlFlow::Continue(())).unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        // Ended after each of the first updates, once in the midst of the jobs.
        for last in 1..5 {
            let mut seen = 0;
            let ended = train(&jobs(), &mut Numbers, folder.path(), 100, |_, _| {
                seen += 1;
                if seen >= last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(ended.unwrap().is_none());
        }
        let broken = train(&jobs(), &mut Numbers, folder.path(), 4, |_, _| ControlFlow::Continue(())).unwrap().unwrap();
        for (unbroken, broken) in unbroken.iter().zip(&broken) {
            assert_eq!(unbroken.dictionary, broken.dictionary, "{}", unbroken.name);
            assert_eq!(unbroken.history, broken.history);
        }
        assert_eq!(unbroken[0].history.last().unwrap().step, 9);
    }

    #[test]
    fn other_settings_and_broken_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let go = |jobs: &[Job]| train(jobs, &mut Numbers, folder.path(), 4, |_, _| ControlFlow::Continue(()));
        go(&jobs()).unwrap();
        let mut other = jobs();
        other[1].settings.learning_rate = 0.5;
        assert!(go(&other).unwrap_err().to_string().contains("other settings"));
        let arrays = folder.path().join("jump/checkpoint/trainer.safetensors");
        let bytes = std::fs::read(&arrays).unwrap();
        std::fs::write(&arrays, &bytes[..bytes.len() - 5]).unwrap();
        assert!(go(&jobs()).unwrap_err().to_string().contains("trainer.safetensors"));
        struct Others;
        impl Stream for Others {
            fn batch(&mut self, number: u64, rows: usize) -> Result<Examples> {
                Numbers.batch(number + 1, rows)
            }
        }
        let others = train(&jobs()[..2], &mut Others, folder.path(), 4, |_, _| ControlFlow::Continue(()));
        assert!(others.unwrap_err().to_string().contains("other vectors"));
        let mut batches = jobs();
        batches[0].settings.batch = 8;
        assert!(go(&batches).unwrap_err().to_string().contains("same batches"));
    }
}
