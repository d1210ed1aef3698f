//! Scores: what a sweep gives.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::planner::SweepCost;
use crate::statistics::{Interval, Resampling};
use crate::sweep::{Sweep, SweepAxis};

/// An axis of a table of scores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreAxis {
    /// Its name.
    pub axis: SweepAxis,
    /// Layers, positions (negative ones count from the end), heads, keys, directions, pairs, or the first neuron of each
    /// block.
    pub values: Vec<i64>,
    /// How many neurons a block has (1 on other axes; the last block may be shorter).
    pub width: usize,
}

impl ScoreAxis {
    /// An axis of the entries 0 to `count`.
    pub(crate) fn every(axis: SweepAxis, count: usize) -> Self {
        Self { axis, values: (0..count as i64).collect(), width: 1 }
    }
}

/// The scores of a sweep, averaged over prompt pairs unless they are an axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The sweep.
    pub sweep: Sweep,
    /// The axes in the order of `values`.
    pub axes: Vec<ScoreAxis>,
    /// The metric, row-major, of the pairs that have the positions. NaN where the change is not possible: a query's only key
    /// cannot be knocked out.
    pub values: Vec<f64>,
    /// `(value - corrupt) / (clean - corrupt)`: 0 = as corrupt, 1 = as clean. None where clean and corrupt do not differ.
    pub normalised: Vec<Option<f64>>,
    /// Standard deviation of the metric over pairs (of the sample); none where only one pair was averaged.
    pub spread: Vec<Option<f64>>,
    /// The metric of the clean run, averaged.
    pub clean: f64,
    /// The metric of the corrupt run, averaged.
    pub corrupt: f64,
    /// The values of each pair: clean, corrupt, and every cell.
    pub pairs: Vec<PairScores>,
    /// What it took.
    pub cost: SweepCost,
}

/// What one pair gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairScores {
    /// The metric of its clean run.
    pub clean: f64,
    /// The metric of its corrupt run.
    pub corrupt: f64,
    /// The metric at every cell, row-major, without the axis of pairs; NaN at positions that the pair has not.
    pub values: Vec<f64>,
}

/// Means over pairs.
pub(crate) struct Means {
    pub clean: f64,
    pub corrupt: f64,
    pub values: Vec<f64>,
    pub normalised: Vec<Option<f64>>,
    pub spread: Vec<Option<f64>>,
}

impl Means {
    /// Each cell is averaged, and put on a scale, over the pairs that have it.
    pub fn of(pairs: &[PairScores], has: impl Fn(usize, usize) -> bool) -> Self {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let clean: Vec<f64> = pairs.iter().map(|pair| pair.clean).collect();
        let corrupt: Vec<f64> = pairs.iter().map(|pair| pair.corrupt).collect();
        let cells = pairs.first().map_or(0, |pair| pair.values.len());
        let (mut values, mut normalised, mut spread) = (Vec::new(), Vec::new(), Vec::new());
        for cell in 0..cells {
            let those: Vec<usize> = (0..pairs.len()).filter(|&pair| has(pair, cell)).collect();
            let of = |values: &dyn Fn(usize) -> f64| those.iter().map(|&pair| values(pair)).collect::<Vec<f64>>();
            let found = of(&|pair| pairs[pair].values[cell]);
            let value = mean(&found);
            let squares: f64 = found.iter().map(|found| (found - value).powi(2)).sum();
            values.push(value);
            normalised.push(normalise(value, mean(&of(&|pair| clean[pair])), mean(&of(&|pair| corrupt[pair]))));
            let several = those.len() > 1 && squares.is_finite();
            spread.push(several.then(|| (squares / (those.len() - 1) as f64).sqrt()));
        }
        Self { clean: mean(&clean), corrupt: mean(&corrupt), values, normalised, spread }
    }
}

/// The interval of each cell's mean, by drawing the pairs that have it again; none where the cell has no spread.
pub(crate) fn intervals(
    pairs: &[PairScores],
    spread: &[Option<f64>],
    resampling: &Resampling,
) -> Result<Vec<Option<Interval>>> {
    // A cell that has a spread is finite in the pairs that have it, and NaN in the others.
    let values = |cell: usize| pairs.iter().map(|pair| pair.values[cell]).filter(|value| value.is_finite()).collect();
    let column = |(cell, spread): (usize, &Option<f64>)| spread.map_or_else(Vec::new, |_| values(cell));
    resampling.means(&spread.iter().enumerate().map(column).collect::<Vec<_>>())
}

fn normalise(value: f64, clean: f64, corrupt: f64) -> Option<f64> {
    // Relative to the size of the numbers: a difference of rounding errors is no scale.
    let range = clean - corrupt;
    let usable = range.abs() > 1e-6 * clean.abs().max(corrupt.abs()).max(1e-6);
    (usable && value.is_finite()).then(|| (value - corrupt) / range)
}

impl Scores {
    /// Averages the pairs, or lays them out where they are an axis; `axes` are the others.
    pub(crate) fn new(
        sweep: Sweep,
        mut axes: Vec<ScoreAxis>,
        pairs: Vec<PairScores>,
        means: Means,
        cost: SweepCost,
    ) -> Self {
        let Means { clean, corrupt, mut values, mut normalised, mut spread } = means;
        if let Some(at) = sweep.over.iter().position(|&axis| axis == SweepAxis::Pair) {
            let inner: usize = axes[at..].iter().map(|axis| axis.values.len()).product();
            axes.insert(at, ScoreAxis::every(SweepAxis::Pair, pairs.len()));
            let cells = values.len() * pairs.len();
            let of_cell = |cell: usize| {
                let (outer, pair) = (cell / inner / pairs.len(), cell / inner % pairs.len());
                (&pairs[pair], outer * inner + cell % inner)
            };
            values = (0..cells).map(of_cell).map(|(pair, cell)| pair.values[cell]).collect();
            let own = |(pair, cell): (&PairScores, usize)| normalise(pair.values[cell], pair.clean, pair.corrupt);
            normalised = (0..cells).map(of_cell).map(own).collect();
            spread = vec![None; cells];
        }
        Self { sweep, axes, values, normalised, spread, clean, corrupt, pairs, cost }
    }

    /// The interval of each value, by drawing the pairs again; none where only one pair was averaged.
    pub fn intervals(&self, resampling: &Resampling) -> Result<Vec<Option<Interval>>> {
        intervals(&self.pairs, &self.spread, resampling)
    }
}
