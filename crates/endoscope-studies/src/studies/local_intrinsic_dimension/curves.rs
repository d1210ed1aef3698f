//! Curves: a training, measured at every step of its series, and what is read from a curve.

use endoscope_models::Decoder;
use endoscope_organisms::{TRAIN, Task};
use endoscope_train::{Recipe, Series, SeriesEntry, initial_model};
use serde::{Deserialize, Serialize};

use super::Config;
use super::tokens::{Mirrors, Tokens, dimension};
use crate::error::Result;
use crate::lab::LabModel;

/// The split that is not trained on, of both tasks.
const TEST: &str = "test";
/// Of `[f64; 2]`: the trained split, and the other.
pub(super) const TRAINED: usize = 0;
pub(super) const HELD_OUT: usize = 1;
/// The accuracy past which a split counts as known.
const HALF: f64 = 0.5;

/// A model at a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Moment {
    pub step: u64,
    /// Of the trained split and of the other.
    pub loss: [f64; 2],
    pub accuracy: [f64; 2],
    pub dimension: [f64; 2],
}

/// A training, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Curve {
    pub moments: Vec<Moment>,
}

/// For each step of a training, two things of the same size that were not trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Controls {
    /// The dimension of isotropic noise with the norms of the held-out points.
    pub noise: Vec<f64>,
    /// The dimension of the held-out points in a model with random weights, other ones for each step.
    pub untrained: Vec<f64>,
}

/// Measures every step of the series of a model that was trained by a recipe.
pub(super) fn curve(
    trained: &LabModel<'_>,
    recipe: &Recipe,
    config: &Config,
    mirrors: Mirrors,
    seed: u64,
) -> Result<Curve> {
    let task = endoscope_organisms::task(&recipe.task.name, &recipe.task.parameters)?;
    let [train, held_out] =
        [tokens(&*task, TRAIN, config, mirrors, seed)?, tokens(&*task, TEST, config, mirrors, seed)?];
    let series = Series::open(&trained.directory)?;
    let moment = |entry: &SeriesEntry| -> Result<Moment> {
        let model = series.model(entry.step)?;
        let [(loss, accuracy, points), (test_loss, test_accuracy, test_points)] =
            [train.scored(&model.decoder)?, held_out.scored(&model.decoder)?];
        Ok(Moment {
            step: entry.step,
            loss: [loss, test_loss],
            accuracy: [accuracy, test_accuracy],
            dimension: [dimension(&points, config)?, dimension(&test_points, config)?],
        })
    };
    Ok(Curve { moments: series.entries.iter().map(moment).collect::<Result<_>>()? })
}

impl Controls {
    /// Of a training as [`curve`] measures it.
    pub fn of(trained: &LabModel<'_>, recipe: &Recipe, config: &Config, seed: u64) -> Result<Self> {
        let task = endoscope_organisms::task(&recipe.task.name, &recipe.task.parameters)?;
        let held_out = tokens(&*task, TEST, config, Mirrors::Apart, seed)?;
        let series = Series::open(&trained.directory)?;
        let mut controls = Self { noise: Vec::new(), untrained: Vec::new() };
        for entry in &series.entries {
            let own = seed.wrapping_add(entry.step << 32);
            let (_, _, points) = held_out.scored(&series.model(entry.step)?.decoder)?;
            controls.noise.push(dimension(&points.isotropic(own)?, config)?);
            let (_, _, points) = held_out.scored(&untrained(recipe, task.vocabulary(), own)?)?;
            controls.untrained.push(dimension(&points, config)?);
        }
        Ok(controls)
    }
}

/// Rows of a split.
pub(super) fn tokens(task: &dyn Task, split: &str, config: &Config, mirrors: Mirrors, seed: u64) -> Result<Tokens> {
    let rows = (0..config.rows).map(|number| Ok(task.row(split, seed, number)?));
    Tokens::new(rows.collect::<Result<_>>()?, mirrors, config, seed)
}

fn untrained(recipe: &Recipe, vocabulary: usize, seed: u64) -> Result<Decoder> {
    Ok(initial_model(&recipe.with_seed(seed), vocabulary)?.0)
}

impl Curve {
    /// A number of each moment.
    pub fn of(&self, number: fn(&Moment) -> f64) -> Vec<f64> {
        self.moments.iter().map(number).collect()
    }

    /// From which checkpoint on half of a split is answered rightly; how many there are if that never happens.
    pub fn known(&self, split: usize) -> usize {
        self.moments.iter().position(|moment| moment.accuracy[split] >= HALF).unwrap_or(self.moments.len())
    }

    /// The step of a checkpoint; of one after the last, the last.
    pub fn step(&self, at: usize) -> f64 {
        self.moments.get(at).or(self.moments.last()).map_or(0., |moment| moment.step as f64)
    }

    /// The dimension of the held-out points, smoothed, from the checkpoint on where half of the trained rows are known (before it
    /// the weights are those of the start and little is seen but them), and up to another, which with all after it is not seen.
    fn memorised(&self, before: usize, config: &Config) -> Vec<f64> {
        let own = self.of(|moment| moment.dimension[HELD_OUT]);
        let own = &own[..before.min(own.len())];
        smoothed(own, config.window).split_off(self.known(TRAINED).min(own.len()))
    }

    /// The largest fall of that up to a checkpoint, as a share of its peak.
    pub fn fall_before(&self, checkpoint: usize, config: &Config) -> f64 {
        fall(&self.memorised(checkpoint, config))
    }

    /// By how many steps its largest drop comes before half of the held-out rows are known; below 0 if after.
    pub fn lead(&self, config: &Config) -> f64 {
        let drop = self.known(TRAINED) + largest_drop(&self.memorised(self.moments.len(), config));
        self.step(self.known(HELD_OUT)) - self.step(drop)
    }

    /// How much further the dimensions of the two splits are apart, as a share of the trained one's, at the end than where the
    /// held-out loss is lowest.
    pub fn widening(&self, config: &Config) -> f64 {
        let gap = |moment: &Moment| moment.dimension[HELD_OUT] / moment.dimension[TRAINED] - 1.;
        let gaps = smoothed(&self.of(gap), config.window);
        let end = gaps.last().copied().unwrap_or(0.);
        end.abs() - gaps.get(self.best()).copied().unwrap_or(0.).abs()
    }

    /// The checkpoint with the lowest held-out loss.
    pub fn best(&self) -> usize {
        let losses = self.moments.iter().map(|moment| moment.loss[HELD_OUT]).enumerate();
        losses.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(at, _)| at)
    }
}

/// The mean of each value and those around it, `window` in all; fewer at the ends.
pub(super) fn smoothed(values: &[f64], window: usize) -> Vec<f64> {
    let half = window / 2;
    let around = |at: usize| &values[at.saturating_sub(half)..(at + half + 1).min(values.len())];
    (0..values.len()).map(|at| around(at).iter().sum::<f64>() / around(at).len() as f64).collect()
}

/// Where a value is furthest below the one before it.
pub(super) fn largest_drop(values: &[f64]) -> usize {
    let drops = values.windows(2).map(|pair| pair[0] - pair[1]).enumerate();
    drops.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(at, _)| at + 1)
}

/// The largest fall from any value to a later one, as a share of the former; 0 if none is lower.
pub(super) fn fall(values: &[f64]) -> f64 {
    let (mut peak, mut largest) = (f64::MIN_POSITIVE, 0f64);
    for &value in values {
        peak = peak.max(value);
        largest = largest.max(1. - value / peak);
    }
    largest
}
