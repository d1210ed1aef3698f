//! Sweeps: one patch moved over a grid of layer x position x head x neurons, each point scored by a metric.

use endoscope_net::{Axis, AxisName, Index, Selection, SiteId, Sites, Size};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::prompts::Pair;

/// An axis of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SweepAxis {
    /// Layers, first layer first.
    Layer,
    /// Positions of the prompt (query positions for attention matrices), BOS included.
    Position,
    /// Attention heads (key/value heads for k and v).
    Head,
    /// Blocks of neurons, or of dims of the residual stream.
    Neuron,
}

impl SweepAxis {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Layer, Self::Position, Self::Head, Self::Neuron];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Position => "position",
            Self::Head => "head",
            Self::Neuron => "neuron",
        }
    }
}

/// Which run is patched with which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Clean activations into the corrupt run: what suffices to restore the behaviour.
    Denoise,
    /// Corrupt activations into the clean run: what is necessary for the behaviour.
    Noise,
}

/// An activation-patching sweep, as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// A kind of site (`resid_pre`), a glob, or one site.
    pub site: String,
    /// The axes of the grid, in the order of the table.
    pub over: Vec<SweepAxis>,
    /// What is measured.
    pub metric: Metric,
    /// Which run is patched with which.
    pub direction: Direction,
    /// How many neurons one block has.
    pub neuron_block: usize,
}

/// One point of the grid: one patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Point {
    /// Its cell in the table, row-major.
    pub cell: usize,
    /// The sites patched together (one, unless the layer is not an axis).
    pub sites: Vec<SiteId>,
    /// The lowest layer patched.
    pub layer: usize,
    /// Which part of them.
    pub select: Selection,
}

/// The grid of a sweep over prompts of `length` tokens.
#[derive(Debug, Clone)]
pub(crate) struct Grid {
    pub axes: Vec<ScoreAxis>,
    pub points: Vec<Point>,
    /// Every site that is patched somewhere.
    pub sites: Vec<SiteId>,
}

/// An axis of a table of scores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreAxis {
    /// Its name.
    pub axis: SweepAxis,
    /// Layers, positions, heads, or the first neuron of each block.
    pub values: Vec<usize>,
    /// How many neurons a block has (1 on other axes; the last block may be shorter).
    pub width: usize,
}

impl Sweep {
    /// Checks the sweep against a network and lays out its grid.
    pub(crate) fn grid(&self, sites: &Sites, length: usize) -> Result<Grid> {
        let ids = sites.resolve(&self.site)?;
        let first = sites.get(ids[0]);
        if let Some(other) = ids.iter().map(|&id| sites.get(id)).find(|site| site.axes != first.axes) {
            return Err(Error::Sweep(format!(
                "`{}` stands for sites of different shapes ({} and {})",
                self.site, first.name, other.name
            )));
        }
        let mut layers = Vec::with_capacity(ids.len());
        for &id in &ids {
            let layer = sites.get(id).layer.ok_or_else(|| {
                Error::Sweep(format!("`{}` lies in no layer; sweeps patch sites of layers", sites.get(id).name))
            })?;
            if layers.contains(&layer) {
                return Err(Error::Sweep(format!(
                    "`{}` stands for several sites of layer {layer}; name one kind",
                    self.site
                )));
            }
            layers.push(layer);
        }
        if self.over.is_empty() {
            return Err(Error::Sweep("it has no axis: name at least one of layer, position, head, neuron".into()));
        }
        if let Some(twice) = self.over.iter().enumerate().find(|(at, axis)| self.over[..*at].contains(axis)) {
            return Err(Error::Sweep(format!("the axis {} is named twice", twice.1.name())));
        }
        let axes = self.over.iter().map(|&axis| self.axis(axis, first, &layers, length)).collect::<Result<Vec<_>>>()?;
        let points = self.points(&axes, &ids, &layers, first);
        Ok(Grid { axes, points, sites: ids })
    }

    fn axis(&self, axis: SweepAxis, site: &endoscope_net::Site, layers: &[usize], length: usize) -> Result<ScoreAxis> {
        let fixed = |name: AxisName| match site.axis(name).map(|dimension| site.axes[dimension]) {
            Some(Axis { size: Size::Fixed(size), .. }) => Ok(size),
            _ => Err(Error::Sweep(format!(
                "`{}` has no axis {}; its axes are {}",
                site.name,
                axis.name(),
                site.axes_text()
            ))),
        };
        let every = |count: usize| ScoreAxis { axis, values: (0..count).collect(), width: 1 };
        match axis {
            SweepAxis::Layer => Ok(ScoreAxis { axis, values: layers.to_vec(), width: 1 }),
            SweepAxis::Position => match site.position_axis() {
                Some(_) => Ok(every(length)),
                None => Err(Error::Sweep(format!("`{}` has no positions", site.name))),
            },
            SweepAxis::Head => Ok(every(fixed(AxisName::Head)?)),
            SweepAxis::Neuron => {
                let size = fixed(AxisName::Dim)?;
                if self.neuron_block == 0 {
                    return Err(Error::Sweep("a block must hold at least one neuron".into()));
                }
                Ok(ScoreAxis {
                    axis,
                    values: (0..size).step_by(self.neuron_block).collect(),
                    width: self.neuron_block.min(size),
                })
            }
        }
    }

    fn points(&self, axes: &[ScoreAxis], ids: &[SiteId], layers: &[usize], site: &endoscope_net::Site) -> Vec<Point> {
        let count = axes.iter().map(|axis| axis.values.len()).product();
        let dim = site.axes.last().map_or(0, |axis| match axis.size {
            Size::Fixed(size) => size,
            Size::Input => 0,
        });
        let point = |cell: usize| {
            let (mut rest, mut select, mut patched) = (cell, Selection::default(), None);
            for axis in axes.iter().rev() {
                let value = axis.values[rest % axis.values.len()];
                let at = rest % axis.values.len();
                rest /= axis.values.len();
                let index = Index::At(value as i64);
                match axis.axis {
                    SweepAxis::Layer => patched = Some(at),
                    SweepAxis::Position => {
                        if let Some(name) = site.position_axis() {
                            select = select.with(name, index);
                        }
                    }
                    SweepAxis::Head => select = select.with(AxisName::Head, index),
                    SweepAxis::Neuron => {
                        let end = Some((value + axis.width).min(dim) as i64);
                        select = select.with(AxisName::Dim, Index::Range { start: value as i64, end });
                    }
                }
            }
            let (sites, layer) = match patched {
                Some(at) => (vec![ids[at]], layers[at]),
                None => (ids.to_vec(), layers.iter().copied().min().unwrap_or(0)),
            };
            Point { cell, sites, layer, select }
        };
        (0..count).map(point).collect()
    }
}

/// The scores of a sweep, averaged over prompt pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The sweep.
    pub sweep: Sweep,
    /// The axes in the order of `values`.
    pub axes: Vec<ScoreAxis>,
    /// Mean of the metric over pairs, row-major.
    pub values: Vec<f64>,
    /// `(value - corrupt) / (clean - corrupt)`: 0 = as corrupt, 1 = as clean. None where clean and corrupt do not differ.
    pub normalised: Vec<Option<f64>>,
    /// Standard deviation of the metric over pairs (of the sample); none for a single pair.
    pub spread: Vec<Option<f64>>,
    /// The metric of the clean run, averaged.
    pub clean: f64,
    /// The metric of the corrupt run, averaged.
    pub corrupt: f64,
    /// The values of each pair: clean, corrupt, and every cell.
    pub pairs: Vec<PairScores>,
}

/// What one pair gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairScores {
    /// The metric of its clean run.
    pub clean: f64,
    /// The metric of its corrupt run.
    pub corrupt: f64,
    /// The metric at every cell, row-major.
    pub values: Vec<f64>,
}

impl Scores {
    /// Averages the pairs.
    pub(crate) fn new(sweep: Sweep, axes: Vec<ScoreAxis>, pairs: Vec<PairScores>) -> Self {
        let count = pairs.len() as f64;
        let mean = |of: &dyn Fn(&PairScores) -> f64| pairs.iter().map(of).sum::<f64>() / count;
        let (clean, corrupt) = (mean(&|pair| pair.clean), mean(&|pair| pair.corrupt));
        let cells = pairs.first().map_or(0, |pair| pair.values.len());
        let values: Vec<f64> = (0..cells).map(|cell| mean(&|pair| pair.values[cell])).collect();
        let spread = |cell: usize| {
            let squares = mean(&|pair| (pair.values[cell] - values[cell]).powi(2));
            (pairs.len() > 1).then(|| (squares * count / (count - 1.)).sqrt())
        };
        let spread = (0..cells).map(spread).collect();
        // Relative to the size of the numbers: a difference of rounding errors is no scale.
        let range = clean - corrupt;
        let usable = range.abs() > 1e-6 * clean.abs().max(corrupt.abs()).max(1e-6);
        let normalised = values.iter().map(|value| usable.then(|| (value - corrupt) / range)).collect();
        Self { sweep, axes, values, normalised, spread, clean, corrupt, pairs }
    }
}

/// Checks that one grid fits all pairs.
pub(crate) fn common_length(sweep: &Sweep, pairs: &[Pair]) -> Result<usize> {
    let Some(first) = pairs.first() else { return Err(Error::Sweep("there are no prompt pairs".into())) };
    for (number, pair) in pairs.iter().enumerate() {
        if pair.clean.is_empty() {
            return Err(Error::Pair { pair: number, reason: "a prompt has no tokens at all".into() });
        }
        if pair.clean.len() != pair.corrupt.len() {
            let text = |ids: &[u32]| ids.iter().map(u32::to_string).collect();
            return Err(Error::UnequalLength { pair: number, clean: text(&pair.clean), corrupt: text(&pair.corrupt) });
        }
        if sweep.over.contains(&SweepAxis::Position) && pair.clean.len() != first.clean.len() {
            return Err(Error::Pair {
                pair: number,
                reason: format!(
                    "it has {} tokens and pair 0 has {}; a sweep over positions needs pairs of one length",
                    pair.clean.len(),
                    first.clean.len()
                ),
            });
        }
    }
    Ok(first.clean.len())
}
