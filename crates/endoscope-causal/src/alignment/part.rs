//! What is trained at one site.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use endoscope_net::{Array, AxisName, Captured, Change, Edit, Index, Selection, Site, Size, Value};
use rand_chacha::ChaCha8Rng;

use super::adam::Adam;
use super::found::FoundSite;
use super::gate::{Gate, sigmoid};
use super::{Alignment, Find, rotation};
use crate::error::{Error, Result};

/// The numbers that are trained at one site.
pub(crate) struct Part {
    site: String,
    select: Selection,
    /// Which heads the mask has entries for, if it has an axis of heads; and which dims or directions.
    heads: Vec<usize>,
    entries: Vec<usize>,
    sought: Sought,
}

enum Sought {
    Mask { numbers: Trained, gate: Gate, along: Option<Tensor> },
    Subspace { rotation: Trained },
    Boundless { rotation: Trained, boundary: Trained },
}

/// A variable and the state of its optimiser.
struct Trained {
    variable: Var,
    adam: Adam,
    rate: f64,
}

impl Trained {
    fn new(start: &Tensor, rate: f64) -> Result<Self> {
        let variable = Var::from_tensor(start)?;
        Ok(Self { adam: Adam::new(&variable)?, variable, rate })
    }

    fn tensor(&self) -> &Tensor {
        self.variable.as_tensor()
    }

    /// Steps down its gradient, if the loss depends on it; `tangent` is what becomes of the gradient, `back` of where it led.
    fn step(
        &mut self,
        gradients: &GradStore,
        left: f64,
        tangent: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
        back: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let Some(gradient) = gradients.get(&self.variable) else { return Ok(()) };
        let gradient = tangent(&gradient.detach(), &self.tensor().detach())?;
        let next = self.adam.step(&self.variable, &gradient, self.rate * left)?;
        Ok(self.variable.set(&back(&next)?)?)
    }
}

impl Part {
    /// What `alignment` seeks at `site`, before the first step.
    pub fn new(alignment: &Alignment, site: &Site, random: &mut ChaCha8Rng) -> Result<Self> {
        let fail = |reason: String| Err(Error::Alignment(format!("`{}`: {reason}", site.name)));
        let rate = alignment.learning_rate;
        let select = alignment.select_at(site);
        let chosen = |name: AxisName| chosen(site, name, select.on(name));
        let vector = match site.axes.last() {
            Some(axis) if axis.name == AxisName::Dim => chosen(AxisName::Dim)?,
            _ => None,
        };
        let (dim, all_heads) = (vector.as_ref().map(Vec::len), chosen(AxisName::Head)?);
        let (heads, entries, along) = match &alignment.find {
            Find::Heads { .. } => match all_heads {
                Some(heads) => (Some(heads), None, None),
                None => return fail(format!("there are no heads; its axes are {}", site.axes_text())),
            },
            Find::Neurons { .. } => match vector {
                Some(entries) => (all_heads, Some(entries), None),
                None => return fail(format!("it holds no vectors; its axes are {}", site.axes_text())),
            },
            Find::Directions { directions, .. } => {
                let Value::Array(Array(directions)) = directions else {
                    return fail("directions must be an array [direction, dim]".into());
                };
                let rows = match directions.rank() {
                    2 => directions.to_dtype(DType::F32)?,
                    _ => return fail(format!("directions must be [direction, dim], not {:?}", directions.dims())),
                };
                (all_heads, Some((0..rows.dim(0)?).collect()), Some(rows))
            }
            Find::Subspace { .. } | Find::Boundless => (None, None, None),
        };
        let sought = match &alignment.find {
            Find::Heads { gate } | Find::Neurons { gate } | Find::Directions { gate, .. } => {
                let size = |axis: &endoscope_net::Axis| match axis.name {
                    AxisName::Head => heads.as_ref().map_or(1, Vec::len),
                    AxisName::Dim => entries.as_ref().map_or(1, Vec::len),
                    _ => 1,
                };
                // From the first axis that has entries on: the others are broadcast.
                let shape: Vec<usize> = site.axes.iter().map(size).skip_while(|&size| size == 1).collect();
                let shape = if shape.is_empty() { vec![1] } else { shape };
                let start = Tensor::full(gate.half_open(), shape, &Device::Cpu)?;
                Sought::Mask { numbers: Trained::new(&start, rate)?, gate: *gate, along }
            }
            Find::Subspace { .. } | Find::Boundless => {
                let Some(dim) = dim else {
                    return fail(format!("it holds no vectors; its axes are {}", site.axes_text()));
                };
                let count = match alignment.find {
                    Find::Subspace { dims } => dims,
                    _ => dim,
                };
                if count > dim {
                    return fail(format!("a subspace of {count} dims does not fit into vectors of {dim}"));
                }
                // A row of length 1 turns by about the learning rate, however many numbers it has.
                let of_entry = rate / (dim as f64).sqrt();
                let rotation = Trained::new(&rotation::random(count, dim, random)?, of_entry)?;
                match alignment.find {
                    Find::Subspace { .. } => Sought::Subspace { rotation },
                    _ => {
                        let half = Tensor::new(&[0.5f32], &Device::Cpu)?;
                        Sought::Boundless { rotation, boundary: Trained::new(&half, rate / 10.)? }
                    }
                }
            }
        };
        Ok(Self {
            site: site.name.clone(),
            select,
            heads: heads.unwrap_or_default(),
            entries: entries.unwrap_or_default(),
            sought,
        })
    }

    /// The edit that a step is trained with, and the size of its mask; `gone` is the share of the training that is over.
    pub fn edit(&self, sources: &Captured, gone: f64, random: &mut ChaCha8Rng) -> Result<(Edit, Option<Tensor>)> {
        let (mask, along, size): (Value, Option<Value>, _) = match &self.sought {
            Sought::Mask { numbers, gate, along } => {
                let mask = gate.sample(numbers.tensor(), random)?;
                (mask.into(), along.clone().map(Value::from), Some(gate.size(numbers.tensor())?))
            }
            Sought::Subspace { rotation } => (1.0.into(), Some(rotation.tensor().clone().into()), None),
            Sought::Boundless { rotation, boundary } => {
                let mask = inside(boundary.tensor(), rotation.tensor().dim(1)?, gone)?;
                let size = mask.sum_all()?;
                (mask.into(), Some(rotation.tensor().clone().into()), Some(size))
            }
        };
        let source = sources.get(&self.site)?.clone().into();
        let change = Change::Interpolate { source, mask, along };
        Ok((Edit { site: self.site.clone(), select: self.select.clone(), change }, size))
    }

    /// One step down; `left` is the share of the training that is still to come, with which the learning rate falls.
    pub fn step(&mut self, gradients: &GradStore, left: f64) -> Result<()> {
        let free = |gradient: &Tensor, _: &Tensor| Ok(gradient.clone());
        match &mut self.sought {
            Sought::Mask { numbers, gate, .. } => numbers.step(gradients, left, free, |next| gate.project(next)),
            Sought::Subspace { rotation } => rotation.step(gradients, left, rotation::tangent, rotation::retract),
            Sought::Boundless { rotation, boundary } => {
                rotation.step(gradients, left, rotation::tangent, rotation::retract)?;
                boundary.step(gradients, left, free, |next| Ok(next.clamp(0f32, 1f32)?))
            }
        }
    }

    /// What was found: masks rounded, the boundary too.
    pub fn found(&self) -> Result<FoundSite> {
        let found = |soft: Tensor, mask: Tensor, along: Option<Tensor>| FoundSite {
            site: self.site.clone(),
            select: self.select.clone(),
            heads: self.heads.clone(),
            entries: self.entries.clone(),
            soft,
            mask,
            along,
        };
        let rounded = |soft: &Tensor| soft.gt(0.5f32)?.to_dtype(DType::F32);
        Ok(match &self.sought {
            Sought::Mask { numbers, gate, along } => {
                let soft = gate.mask(&numbers.tensor().detach())?;
                found(soft.clone(), rounded(&soft)?, along.clone())
            }
            Sought::Subspace { rotation } => {
                let rows = rotation.tensor().detach().copy()?;
                let ones = Tensor::ones(rows.dim(0)?, DType::F32, &Device::Cpu)?;
                found(ones.clone(), ones, Some(rows))
            }
            Sought::Boundless { rotation, boundary } => {
                let rows = rotation.tensor().detach().copy()?;
                let soft = inside(&boundary.tensor().detach(), rows.dim(1)?, 1.)?;
                let mask = rounded(&soft)?;
                // Those outside are of no use to anybody; one row stays where nothing is inside.
                let kept = (mask.sum_all()?.to_scalar::<f32>()? as usize).max(1);
                found(soft, mask.narrow(0, 0, kept)?.copy()?, Some(rows.narrow(0, 0, kept)?.copy()?))
            }
        })
    }
}

/// The mask of a boundary `b` over `dim` directions, `sigmoid((b dim - i - 1/2) / T)`, where the temperature T falls from a
/// tenth of `dim` to a tenth (Wu et al. 2023, section 3, with the lower boundary at 0). `[1] -> [dim]`
fn inside(boundary: &Tensor, dim: usize, gone: f64) -> Result<Tensor> {
    let temperature = {
        let (first, last) = ((dim as f64 / 10.).max(1.), 0.1);
        first + (last - first) * gone
    };
    let places: Vec<f32> = (0..dim).map(|at| at as f32 + 0.5).collect();
    let places = Tensor::from_vec(places, dim, boundary.device())?;
    sigmoid(&((boundary * dim as f64)?.broadcast_sub(&places)? / temperature)?)
}

/// The entries of an axis that a selection chooses; none where the site has no such axis, or it depends on the inputs.
fn chosen(site: &Site, name: AxisName, index: &Index) -> Result<Option<Vec<usize>>> {
    let Some(dimension) = site.axis(name) else { return Ok(None) };
    let Size::Fixed(size) = site.axes[dimension].size else { return Ok(None) };
    let absolute = |at: i64| {
        let from_start = if at < 0 { at.saturating_add(size as i64) } else { at };
        usize::try_from(from_start).ok().filter(|&at| at <= size).ok_or_else(|| {
            Error::Alignment(format!("{at} is out of range for the axis {name} of `{}`, which has {size}", site.name))
        })
    };
    Ok(Some(match index {
        Index::All => (0..size).collect(),
        Index::At(at) => vec![absolute(*at)?],
        Index::List(list) => list.iter().map(|&at| absolute(at)).collect::<Result<_>>()?,
        Index::Range { start, end } => (absolute(*start)?..end.map_or(Ok(size), absolute)?).collect(),
        Index::Generated => Vec::new(),
    }))
}
