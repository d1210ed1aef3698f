//! Sweeps: one change moved over a grid of layer x position x head x …, each point scored by a metric.

use std::path::Path;
use std::str::FromStr;

use endoscope_net::{Axis, AxisName, Change, Edit, Index, Plan, Selection, Site, SiteId, Sites, Size, Value};
use serde::{Deserialize, Serialize};

use crate::change::{Directions, SweepChange};
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::prompts::Pair;
use crate::scores::ScoreAxis;

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
    /// Key positions of attention matrices: with `position`, single edges.
    Key,
    /// Rows of the sweep's directions.
    Direction,
    /// Prompt pairs, which are averaged over otherwise.
    Pair,
}

impl SweepAxis {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Layer, Self::Position, Self::Head, Self::Neuron, Self::Key, Self::Direction, Self::Pair];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "layer",
            Self::Position => "position",
            Self::Head => "head",
            Self::Neuron => "neuron",
            Self::Key => "key",
            Self::Direction => "direction",
            Self::Pair => "pair",
        }
    }
}

impl FromStr for SweepAxis {
    type Err = Error;

    /// Its name; blanks around it do not matter.
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|axis| axis.name() == text.trim());
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::Sweep(format!("there is no axis `{}`; the axes are {names}", text.trim()))
        })
    }
}

/// Which run is patched with which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The corrupt run is changed; what is patched in is clean: what suffices to restore the behaviour.
    Denoise,
    /// The clean run is changed; what is patched in is corrupt: what is necessary for the behaviour.
    Noise,
}

impl Direction {
    /// The prompt that is changed and the prompt that gives.
    pub(crate) fn recipient_and_donor(self, pair: &Pair) -> (&[u32], &[u32]) {
        match self {
            Self::Denoise => (&pair.corrupt, &pair.clean),
            Self::Noise => (&pair.clean, &pair.corrupt),
        }
    }
}

/// How prompts that differ in length lie over each other in a sweep over positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Align {
    /// They do not: prompts of one length are needed.
    #[default]
    Equal,
    /// First position over first position: the table has positions 0, 1, 2 …
    First,
    /// Last position over last position: the table has positions … -3, -2, -1.
    Last,
}

impl Align {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The positions of a table for prompts of at most `length` tokens.
    fn positions(self, length: usize) -> std::ops::Range<i64> {
        match self {
            Self::Equal | Self::First => 0..length as i64,
            Self::Last => -(length as i64)..0,
        }
    }
}

/// A sweep, as data.
///
/// The changed run is the recipient, the other one of the pair the donor. The edits `with` are made in the recipient run
/// and at every point, before the change itself; the donor run is left as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// A kind of site (`resid_pre`), a glob, or one site.
    pub site: String,
    /// The axes of the grid, in the order of the table.
    pub over: Vec<SweepAxis>,
    /// What is done at each point.
    #[serde(default)]
    pub change: SweepChange,
    /// What is measured.
    pub metric: Metric,
    /// Which run is patched with which.
    pub direction: Direction,
    /// How many neurons one block has.
    #[serde(default = "one")]
    pub neuron_block: usize,
    /// `[direction, dim]`: what the axis `direction` goes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directions: Option<Value>,
    /// How prompts that differ in length lie over each other. A point is averaged over the pairs that have its position.
    #[serde(default, skip_serializing_if = "Align::is_default")]
    pub align: Align,
    /// Edits made in the recipient run and at every point as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<Edit>,
}

fn one() -> usize {
    1
}

/// One point of the grid: one change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Point {
    /// Its cell in the table, row-major.
    pub cell: usize,
    /// The first cell whose point is the same.
    pub same: usize,
    /// The sites changed together (one, unless the layer is not an axis).
    pub sites: Vec<SiteId>,
    /// The lowest layer changed, and the position: points near each other run together.
    pub order: (usize, usize),
    /// Which part of them.
    pub select: Selection,
    /// Which direction.
    pub direction: Option<usize>,
}

/// The grid of a sweep over prompts of one length.
#[derive(Debug, Clone)]
pub(crate) struct Grid {
    /// Without the pairs.
    pub axes: Vec<ScoreAxis>,
    pub points: Vec<Point>,
    /// Every site that is changed somewhere.
    pub sites: Vec<SiteId>,
    pub directions: Option<Directions>,
}

impl Sweep {
    /// Patching `site` over some axes: logit difference, clean into corrupt.
    pub fn new(site: impl Into<String>, over: impl Into<Vec<SweepAxis>>) -> Self {
        Self {
            site: site.into(),
            over: over.into(),
            change: SweepChange::Patch,
            metric: Metric::LogitDiff,
            direction: Direction::Denoise,
            neuron_block: 1,
            directions: None,
            align: Align::default(),
            with: Vec::new(),
        }
    }

    /// Replaces every file that the sweep names by its tensor. Paths are relative to `base`.
    pub fn load(mut self, base: &Path) -> Result<Self> {
        let load = |name: &str, change: Change| -> Result<Change> {
            let mut plan = Plan::default().edit(Edit::new(name, change)).load(base)?;
            plan.edits.pop().map(|edit| edit.change).ok_or_else(|| Error::Sweep("it names no file".into()))
        };
        let value = |name: &str, value: Value| match load(name, Change::Set { value })? {
            Change::Set { value } => Ok(value),
            other => Err(Error::Sweep(format!("{other:?} is no value"))),
        };
        self.with = Plan { edits: self.with, ..Plan::default() }.load(base)?.edits;
        self.directions = self.directions.take().map(|directions| value("directions", directions)).transpose()?;
        self.change = match self.change {
            SweepChange::Interpolate { mask, along } => {
                let along = along.map(|along| value("along", along)).transpose()?;
                SweepChange::Interpolate { mask: value("mask", mask)?, along }
            }
            SweepChange::Change(change) => SweepChange::Change(load(&self.site, change)?),
            other => other,
        };
        Ok(self)
    }

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
        let layers: Vec<Option<usize>> = ids.iter().map(|&id| sites.get(id).layer).collect();
        for (at, layer) in layers.iter().enumerate() {
            if layers[..at].contains(layer) {
                let place = layer.map_or("outside the layers".into(), |layer| format!("of layer {layer}"));
                return Err(Error::Sweep(format!("`{}` stands for several sites {place}; name one kind", self.site)));
            }
        }
        if self.over.is_empty() {
            let names = SweepAxis::ALL.map(SweepAxis::name).join(", ");
            return Err(Error::Sweep(format!("it has no axis: name at least one of {names}")));
        }
        if let Some(twice) = self.over.iter().enumerate().find(|(at, axis)| self.over[..*at].contains(axis)) {
            return Err(Error::Sweep(format!("the axis {} is named twice", twice.1.name())));
        }
        let directions = self.checked_directions(first)?;
        let layout = Layout { sweep: self, ids: &ids, layers: &layers, site: first, directions: directions.as_ref() };
        let own = self.over.iter().filter(|&&axis| axis != SweepAxis::Pair);
        let axes = own.map(|&axis| layout.axis(axis, length)).collect::<Result<Vec<_>>>()?;
        let points = layout.points(&axes);
        Ok(Grid { axes, points, sites: ids, directions })
    }

    fn checked_directions(&self, site: &Site) -> Result<Option<Directions>> {
        let along = self.over.contains(&SweepAxis::Direction);
        let Some(value) = &self.directions else {
            return match along {
                false => Ok(None),
                true => Err(Error::Sweep("the axis direction needs directions, a matrix [direction, dim]".into())),
            };
        };
        if !along {
            return Err(Error::Sweep("directions are given, but direction is not among the axes".into()));
        }
        if self.over.contains(&SweepAxis::Neuron) {
            return Err(Error::Sweep(
                "a direction is a whole vector, so neuron and direction exclude each other".into(),
            ));
        }
        let directions = Directions::new(value)?;
        match site.axes.last() {
            Some(Axis { name: AxisName::Dim, size: Size::Fixed(size) }) if *size == directions.dim() => {
                Ok(Some(directions))
            }
            _ => Err(Error::Sweep(format!(
                "directions of {} numbers do not fit `{}`, whose axes are {}",
                directions.dim(),
                site.name,
                site.axes_text()
            ))),
        }
    }
}

/// What a grid is laid out from.
struct Layout<'a> {
    sweep: &'a Sweep,
    ids: &'a [SiteId],
    layers: &'a [Option<usize>],
    /// One of the sites; all have its axes.
    site: &'a Site,
    directions: Option<&'a Directions>,
}

impl Layout<'_> {
    fn axis(&self, axis: SweepAxis, length: usize) -> Result<ScoreAxis> {
        let site = self.site;
        let missing =
            || Error::Sweep(format!("`{}` has no axis {}; its axes are {}", site.name, axis.name(), site.axes_text()));
        let fixed = |name: AxisName| match site.axis(name).map(|dimension| site.axes[dimension].size) {
            Some(Size::Fixed(size)) => Ok(size),
            _ => Err(missing()),
        };
        match axis {
            SweepAxis::Layer => {
                let outside = || {
                    let reason = "lies in no layer, so layer cannot be an axis";
                    Error::Sweep(format!("`{}` {reason}", site.name))
                };
                let layers = self.layers.iter().map(|layer| layer.map(|layer| layer as i64).ok_or_else(outside));
                let values = layers.collect::<Result<_>>()?;
                Ok(ScoreAxis { axis, values, width: 1 })
            }
            SweepAxis::Position => match site.position_axis() {
                Some(_) => Ok(self.positions(axis, length)),
                None => Err(Error::Sweep(format!("`{}` has no positions", site.name))),
            },
            SweepAxis::Head => Ok(ScoreAxis::every(axis, fixed(AxisName::Head)?)),
            SweepAxis::Key => match site.axis(AxisName::Key) {
                Some(_) => Ok(self.positions(axis, length)),
                None => Err(missing()),
            },
            SweepAxis::Neuron => {
                let (size, block) = (fixed(AxisName::Dim)?, self.sweep.neuron_block);
                if block == 0 {
                    return Err(Error::Sweep("a block must hold at least one neuron".into()));
                }
                Ok(ScoreAxis { axis, values: (0..size as i64).step_by(block).collect(), width: block.min(size) })
            }
            SweepAxis::Direction => Ok(ScoreAxis::every(axis, self.directions.map_or(0, Directions::len))),
            SweepAxis::Pair => Ok(ScoreAxis::every(axis, 1)),
        }
    }

    fn positions(&self, axis: SweepAxis, length: usize) -> ScoreAxis {
        ScoreAxis { axis, values: self.sweep.align.positions(length).collect(), width: 1 }
    }

    fn points(&self, axes: &[ScoreAxis]) -> Vec<Point> {
        let count = axes.iter().map(|axis| axis.values.len()).product();
        (0..count).map(|cell| self.point(axes, cell)).collect()
    }

    fn point(&self, axes: &[ScoreAxis], cell: usize) -> Point {
        let dim = self.site.axes.last().map_or(0, |axis| match axis.size {
            Size::Fixed(size) => size,
            Size::Input => 0,
        });
        let (mut step, mut same) = (1, cell);
        let (mut select, mut changed, mut position, mut direction) = (Selection::default(), None, 0, None);
        for axis in axes.iter().rev() {
            let at = cell / step % axis.values.len();
            let value = axis.values[at];
            let index = Index::At(value);
            match axis.axis {
                SweepAxis::Layer => changed = Some(at),
                SweepAxis::Position => {
                    position = at;
                    if let Some(name) = self.site.position_axis() {
                        select = select.with(name, index);
                    }
                }
                SweepAxis::Head => select = select.with(AxisName::Head, index),
                SweepAxis::Key => select = select.with(AxisName::Key, index),
                SweepAxis::Neuron => {
                    let end = Some((value + axis.width as i64).min(dim as i64));
                    select = select.with(AxisName::Dim, Index::Range { start: value, end });
                }
                SweepAxis::Direction => {
                    let first = self.directions.map_or(at, |directions| directions.first_equal(at));
                    same -= (at - first) * step;
                    direction = Some(at);
                }
                SweepAxis::Pair => {}
            }
            step *= axis.values.len();
        }
        let (sites, layer) = match changed {
            Some(at) => (vec![self.ids[at]], self.layers[at]),
            None => (self.ids.to_vec(), self.layers.iter().copied().min().flatten()),
        };
        Point { cell, same, sites, order: (layer.unwrap_or(0), position), select, direction }
    }
}

/// Checks that the pairs can be patched, and that one grid fits them all where a sweep goes over their positions; the number
/// of tokens of the longest.
pub(crate) fn longest(over: &[SweepAxis], align: Align, pairs: &[Pair]) -> Result<usize> {
    let Some(first) = pairs.first() else { return Err(Error::Sweep("there are no prompt pairs".into())) };
    let by_position = over.iter().any(|axis| matches!(axis, SweepAxis::Position | SweepAxis::Key));
    for (number, pair) in pairs.iter().enumerate() {
        if pair.clean.is_empty() {
            return Err(Error::Pair { pair: number, reason: "a prompt has no tokens at all".into() });
        }
        if pair.clean.len() != pair.corrupt.len() {
            let text = |ids: &[u32]| ids.iter().map(u32::to_string).collect();
            return Err(Error::UnequalLength { pair: number, clean: text(&pair.clean), corrupt: text(&pair.corrupt) });
        }
        if by_position && align == Align::Equal && pair.clean.len() != first.clean.len() {
            return Err(Error::Pair {
                pair: number,
                reason: format!(
                    "it has {} tokens and pair 0 has {}; a sweep over positions needs pairs of one length, or --align first \
                     or last",
                    pair.clean.len(),
                    first.clean.len()
                ),
            });
        }
    }
    Ok(pairs.iter().map(|pair| pair.clean.len()).max().unwrap_or(0))
}

impl Point {
    /// Whether a prompt of `length` tokens has the positions that the point changes.
    pub fn exists(&self, length: usize) -> bool {
        [AxisName::Position, AxisName::Query, AxisName::Key].into_iter().all(|axis| match self.select.on(axis) {
            Index::At(at) => (-(length as i64)..length as i64).contains(at),
            _ => true,
        })
    }
}
