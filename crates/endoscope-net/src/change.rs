//! Changes made ready: values as tensors of the right shape, and what each does to the chosen cells.

use std::collections::HashSet;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor, TensorId};

use crate::error::{Error, Result};
use crate::features::{FeatureEdit, Features};
use crate::frame::{Extent, Frame, entries};
use crate::plan::{Change, Edit};
use crate::selection::{Grid, Index, Selection};
use crate::site::{AxisName, Site, Size};
use crate::value::Value;

/// One checked edit of one site.
#[derive(Debug, Clone)]
pub(crate) struct PreparedEdit {
    pub select: Selection,
    pub operation: Operation,
}

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Set(Tensor),
    Add(Tensor, f64),
    Scale(f64),
    Fill(f64),
    Mean(Vec<usize>),
    Interpolate {
        source: Tensor,
        /// None takes the source as it is.
        mask: Option<Tensor>,
        /// Orthonormal rows `[direction, dim]`, in whose span alone the source is taken.
        along: Option<Tensor>,
    },
    /// Orthonormal rows `[direction, dim]`; whether the span is what stays.
    Project {
        basis: Tensor,
        onto: bool,
    },
    Features(Arc<dyn Features>, FeatureEdit),
}

impl PreparedEdit {
    pub fn new(site: &Site, edit: &Edit, finite: &mut Finite) -> Result<Self> {
        edit.select.check(site)?;
        for (what, value) in edit.change.values() {
            finite.check(site, what, value)?;
        }
        let operation = match &edit.change {
            Change::Set { value } => Operation::Set(fitting(site, edit, "value", value)?),
            Change::Add { value, scale } => Operation::Add(fitting(site, edit, "value", value)?, *scale),
            Change::Scale { factor } => Operation::Scale(*factor),
            Change::Zero => Operation::Fill(0.),
            Change::Mean { over } => {
                Operation::Mean(over.iter().map(|&axis| dimension(site, axis)).collect::<Result<_>>()?)
            }
            Change::Patch { source } => {
                Operation::Interpolate { source: whole(site, source)?, mask: None, along: None }
            }
            Change::Interpolate { source, mask, along } => {
                let along = along.as_ref().map(|along| orthonormal(site, edit, along)).transpose()?;
                let last = along.as_ref().map(|along| along.dim(0)).transpose()?;
                let mask = fitting_last(site, edit, ("mask", mask), last)?;
                Operation::Interpolate { source: whole(site, source)?, mask: Some(mask), along }
            }
            Change::ProjectOnto { directions } => {
                Operation::Project { basis: basis(site, edit, directions)?, onto: true }
            }
            Change::ProjectOut { directions } => {
                Operation::Project { basis: basis(site, edit, directions)?, onto: false }
            }
            Change::KnockOut => match site.name.rsplit_once("hook_").map(|(_, short)| short) {
                Some("attn_scores") => Operation::Fill(f64::NEG_INFINITY),
                Some("pattern") => Operation::Fill(0.),
                _ => return Err(not_possible(site, "edges are knocked out at hook_attn_scores or hook_pattern")),
            },
            Change::Features(features) => {
                let Some(dictionary) = &features.loaded else {
                    return Err(Error::NotLoaded(features.dictionary.clone()));
                };
                dictionary.check(features).map_err(|reason| not_possible(site, &reason))?;
                Operation::Features(dictionary.clone(), features.clone())
            }
        };
        if let Operation::Scale(factor) | Operation::Add(_, factor) = operation
            && !(factor as f32).is_finite()
        {
            return Err(Error::NotFinite { site: site.name.clone(), what: "factor" });
        }
        Ok(Self { select: edit.select.clone(), operation })
    }

    /// Whether a value of this edit is being trained, so that the graph must be kept.
    pub fn has_graph(&self) -> bool {
        match &self.operation {
            Operation::Set(value) | Operation::Add(value, _) => value.track_op(),
            Operation::Interpolate { source, mask, along } => {
                source.track_op() || [mask, along].into_iter().flatten().any(Tensor::track_op)
            }
            _ => false,
        }
    }

    /// Whether a cell becomes an average over positions.
    pub fn averages_over_positions(&self, site: &Site) -> bool {
        self.averages_over(site, |axis| matches!(axis, AxisName::Position | AxisName::Query | AxisName::Key))
    }

    fn averages_over(&self, site: &Site, axis: impl Fn(AxisName) -> bool) -> bool {
        let Operation::Mean(over) = &self.operation else { return false };
        over.iter().any(|&dimension| axis(site.axes[dimension].name))
    }

    /// An average over positions would change as text grows.
    pub fn check_frame(&self, site: &Site, frame: &Frame) -> Result<()> {
        if frame.grows && self.averages_over_positions(site) {
            return Err(not_possible(site, "a mean over positions has no fixed meaning while the text grows"));
        }
        if frame.is_part() && self.averages_over(site, |axis| axis == AxisName::Batch) {
            return Err(not_possible(site, "a mean over the batch needs rows of equal length"));
        }
        Ok(())
    }

    /// The new value of the chosen `cells`.
    pub fn apply(&self, site: &Site, cells: &Tensor, grid: &Grid, frame: &Frame) -> Result<Tensor> {
        let broadcast_to = |tensor: &Tensor, what: &'static str, shape: &[usize]| {
            let tensor = self.of_part(site, tensor, grid, frame)?;
            tensor.to_dtype(cells.dtype())?.broadcast_as(shape).map_err(|_| Error::ValueShape {
                site: site.name.clone(),
                what,
                found: tensor.dims().to_vec(),
                expected: shape.to_vec(),
            })
        };
        let broadcast = |tensor: &Tensor, what: &'static str| broadcast_to(tensor, what, cells.dims());
        Ok(match &self.operation {
            Operation::Set(value) => broadcast(value, "value")?,
            Operation::Add(value, scale) => (cells + (broadcast(value, "value")? * *scale)?)?,
            Operation::Scale(factor) => (cells * *factor)?,
            Operation::Fill(number) => {
                Tensor::full(*number as f32, cells.shape(), cells.device())?.to_dtype(cells.dtype())?
            }
            Operation::Mean(over) => cells.mean_keepdim(over.as_slice())?.broadcast_as(cells.shape())?,
            Operation::Interpolate { source, mask, along } => {
                let source = broadcast(&source_cells(site, source, grid, frame)?, "source")?;
                match (mask, along) {
                    (None, _) => source,
                    // In this form a mask of 0 keeps the bits of the cells, and a mask of 1 takes those of the source.
                    (Some(mask), None) => {
                        let mask = broadcast(mask, "mask")?;
                        ((cells * (1. - &mask)?)? + (mask * source)?)?
                    }
                    (Some(mask), Some(along)) => {
                        let along = along.to_dtype(cells.dtype())?;
                        let difference = rows(&(source - cells)?)?;
                        let inside = [&cells.dims()[..cells.rank() - 1], &along.dims()[..1]].concat();
                        let coordinates = difference.matmul(&along.t()?)?.reshape(inside.as_slice())?;
                        let taken = (broadcast_to(mask, "mask", &inside)? * coordinates)?;
                        (cells + rows(&taken)?.matmul(&along)?.reshape(cells.shape())?)?
                    }
                }
            }
            Operation::Project { basis, onto } => {
                let basis = basis.to_dtype(cells.dtype())?;
                let inside = rows(cells)?.matmul(&basis.t()?)?.matmul(&basis)?.reshape(cells.shape())?;
                if *onto { inside } else { (cells - inside)? }
            }
            Operation::Features(dictionary, edit) => {
                if cells.track_op() {
                    return Err(not_possible(site, "no gradient passes through a dictionary"));
                }
                let vectors = vectors_of(site, cells, dictionary.width())?;
                let edited = dictionary.edited(&vectors.to_dtype(DType::F32)?, edit)?;
                edited.to_dtype(cells.dtype())?.reshape(cells.shape())?
            }
        })
    }
}

impl PreparedEdit {
    /// What of an array for the whole batch and all positions is for the rows of `frame` and the positions that are computed.
    fn of_part(&self, site: &Site, array: &Tensor, grid: &Grid, frame: &Frame) -> Result<Tensor> {
        let mut part = array.clone();
        if !frame.is_part() && frame.offset == 0 && frame.length == frame.batch.longest {
            return Ok(part);
        }
        let (shape, lacks) = (grid.shape(), site.axes.len().saturating_sub(array.rank()));
        for (dimension, axis) in site.axes.iter().enumerate().skip(lacks) {
            let (at, select) = (dimension - lacks, self.select.on(axis.name));
            let size = part.dim(at)?;
            match axis.name {
                AxisName::Batch if size > 1 && frame.is_part() => {
                    let rows = frame.batch.rows;
                    let all = entries(site, axis.name, select, Extent::fixed(rows))?;
                    let mine = frame.batch.first..frame.batch.first + frame.rows;
                    let here = (0..all.len()).filter(|&number| mine.contains(&all[number]));
                    let here: Vec<u32> = here.filter(|&number| number < size).map(|number| number as u32).collect();
                    part = part.contiguous()?.index_select(&Tensor::new(here, part.device())?, at)?;
                }
                AxisName::Position | AxisName::Query | AxisName::Key
                    if *select == Index::All && size == frame.batch.longest && size > shape[dimension] =>
                {
                    let before = if axis.name == AxisName::Key { 0 } else { frame.offset };
                    let start = frame.start_in(size) + before;
                    // Positions after those of the array have no value; the caller says so.
                    if start + shape[dimension] <= size {
                        part = part.narrow(at, start, shape[dimension])?;
                    }
                }
                _ => {}
            }
        }
        Ok(part)
    }
}

/// The cells of another run at the same absolute positions.
fn source_cells(site: &Site, source: &Tensor, grid: &Grid, frame: &Frame) -> Result<Tensor> {
    let mut axes = Vec::with_capacity(grid.axes.len());
    for (dimension, axis) in site.axes.iter().enumerate() {
        let (chosen, size) = (&grid.axes[dimension], source.dim(dimension)?);
        // A source of one row is one sequence for all; of several, it is laid out as the batch is.
        let batched = site.axis(AxisName::Batch).is_some_and(|batch| source.dims()[batch] > 1);
        let start = if batched { frame.start_in(size) } else { 0 };
        let shift = match axis.name {
            AxisName::Position | AxisName::Query => frame.offset + start,
            AxisName::Key => start,
            AxisName::Batch if size == 1 => {
                axes.push(None);
                continue;
            }
            AxisName::Batch => frame.batch.first,
            _ => 0,
        };
        let entries: Vec<usize> = match chosen {
            Some(list) => list.iter().map(|at| at + shift).collect(),
            None => (shift..shift + grid.dims[dimension]).collect(),
        };
        if let Some(&index) = entries.iter().find(|&&at| at >= size) {
            return Err(Error::ValueShape {
                site: site.name.clone(),
                what: "source",
                found: source.dims().to_vec(),
                expected: grid
                    .dims
                    .iter()
                    .enumerate()
                    .map(|(i, &dim)| if i == dimension { index + 1 } else { dim })
                    .collect(),
            });
        }
        let whole = entries.len() == size && entries.iter().enumerate().all(|(i, &at)| i == at);
        axes.push((!whole).then_some(entries));
    }
    crate::canvas::gather(source, &Grid { axes, dims: source.dims().to_vec() })
}

/// The vectors of a tensor, `[.., dim] -> [row, dim]`.
fn rows(tensor: &Tensor) -> Result<Tensor> {
    let dim = tensor.dim(D::Minus1)?;
    Ok(tensor.contiguous()?.reshape((tensor.elem_count() / dim.max(1), dim))?)
}

/// The last axes of a tensor as vectors of `width`: `[row, width]`. The heads of a site may be one vector together.
fn vectors_of(site: &Site, cells: &Tensor, width: usize) -> Result<Tensor> {
    let mut inside = 1;
    for &size in cells.dims().iter().rev() {
        inside *= size;
        if inside >= width {
            break;
        }
    }
    if inside != width || width == 0 {
        let reason = format!("its dictionary reads {width} dimensions, the chosen cells are {:?}", cells.dims());
        return Err(not_possible(site, &reason));
    }
    Ok(cells.contiguous()?.reshape((cells.elem_count() / width, width))?)
}

fn not_possible(site: &Site, reason: &str) -> Error {
    Error::EditNotPossible { site: site.name.clone(), reason: reason.to_string() }
}

fn dimension(site: &Site, axis: AxisName) -> Result<usize> {
    site.axis(axis).ok_or_else(|| Error::NoSuchAxis { site: site.name.clone(), axis, axes: site.axes_text() })
}

fn tensor(value: &Value) -> Result<Tensor> {
    match value {
        Value::Number(number) => Ok(Tensor::new(*number as f32, &Device::Cpu)?),
        Value::Array(array) => Ok(array.0.clone()),
        Value::File(file) => Err(Error::NotLoaded(file.file.clone())),
    }
}

/// Values already found free of NaN: the edits of a sweep share theirs, and each is read once.
#[derive(Default)]
pub(crate) struct Finite(HashSet<TensorId>);

impl Finite {
    /// A NaN would spread silently; minus infinity is a masked attention score, which a source may hold.
    fn check(&mut self, site: &Site, what: &'static str, value: &Value) -> Result<()> {
        let tensor = tensor(value)?;
        if !self.0.insert(tensor.id()) {
            return Ok(());
        }
        let numbers = once(tensor)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let is_source = what == "source";
        match numbers.iter().all(|&x| x.is_finite() || (is_source && x == f32::NEG_INFINITY)) {
            true => Ok(()),
            false => Err(Error::NotFinite { site: site.name.clone(), what }),
        }
    }
}

/// A tensor without the repetitions of its numbers that broadcasting makes.
fn once(mut tensor: Tensor) -> Result<Tensor> {
    for dimension in 0..tensor.rank() {
        if tensor.stride()[dimension] == 0 && tensor.dim(dimension)? > 1 {
            tensor = tensor.narrow(dimension, 0, 1)?;
        }
    }
    Ok(tensor)
}

/// A value that broadcasts to the selection, as far as that is known before a run.
fn fitting(site: &Site, edit: &Edit, what: &'static str, value: &Value) -> Result<Tensor> {
    fitting_last(site, edit, (what, value), None)
}

/// The same, whose last axis has `last` entries where that is given.
fn fitting_last(
    site: &Site,
    edit: &Edit,
    (what, value): (&'static str, &Value),
    last: Option<usize>,
) -> Result<Tensor> {
    let tensor = tensor(value)?;
    let mut expected: Vec<Option<usize>> = site
        .axes
        .iter()
        .map(|axis| match (axis.size, edit.select.on(axis.name)) {
            (Size::Fixed(size), crate::Index::All) => Some(size),
            (Size::Fixed(_), crate::Index::At(_)) => Some(1),
            (Size::Fixed(_), crate::Index::List(list)) => Some(list.len()),
            _ => None,
        })
        .collect();
    if let (Some(last), Some(expected)) = (last, expected.last_mut()) {
        *expected = Some(last);
    }
    let fits = tensor.rank() <= expected.len()
        && tensor
            .dims()
            .iter()
            .rev()
            .zip(expected.iter().rev())
            .all(|(&found, &wanted)| found == 1 || wanted.is_none_or(|wanted| wanted == found));
    match fits {
        true => Ok(tensor),
        false => Err(Error::ValueShape {
            site: site.name.clone(),
            what,
            found: tensor.dims().to_vec(),
            expected: expected.into_iter().map(|size| size.unwrap_or(1)).collect(),
        }),
    }
}

/// A source of the shape of the whole site.
fn whole(site: &Site, value: &Value) -> Result<Tensor> {
    let source = tensor(value)?;
    let sizes: Vec<Option<usize>> = site
        .axes
        .iter()
        .map(|axis| match axis.size {
            Size::Fixed(size) => Some(size),
            Size::Input => None,
        })
        .collect();
    let fits = source.rank() == sizes.len()
        && source.dims().iter().zip(&sizes).all(|(&found, &wanted)| wanted.is_none_or(|wanted| wanted == found));
    match fits {
        true => Ok(source),
        false => Err(Error::ValueShape {
            site: site.name.clone(),
            what: "source",
            found: source.dims().to_vec(),
            expected: sizes.into_iter().map(|size| size.unwrap_or(1)).collect(),
        }),
    }
}

/// Directions `[direction, dim]` (or one, `[dim]`) in the space of a site's vectors.
fn directions(site: &Site, edit: &Edit, what: &'static str, value: &Value) -> Result<Tensor> {
    let last = site.axes.last().map(|axis| (axis.name, axis.size));
    let Some((AxisName::Dim, Size::Fixed(dim))) = last else {
        return Err(not_possible(site, "a projection needs a site whose last axis is a vector"));
    };
    if *edit.select.on(AxisName::Dim) != crate::Index::All {
        return Err(not_possible(site, "a projection needs the whole vector, so the selection must not name dims"));
    }
    let tensor = tensor(value)?;
    match tensor.dims() {
        [size] if *size == dim => Ok(tensor.unsqueeze(0)?),
        [count, size] if *size == dim && *count > 0 => Ok(tensor),
        _ => Err(Error::ValueShape {
            site: site.name.clone(),
            what,
            found: tensor.dims().to_vec(),
            expected: vec![1, dim],
        }),
    }
}

/// Directions that are orthonormal as they are: a mask speaks of each, so they must not be mixed.
fn orthonormal(site: &Site, edit: &Edit, value: &Value) -> Result<Tensor> {
    let rows = directions(site, edit, "along", value)?;
    let detached = rows.detach().to_dtype(DType::F32)?;
    let products = detached.matmul(&detached.t()?)?;
    let identity = Tensor::eye(rows.dim(0)?, DType::F32, rows.device())?;
    let off = (products - identity)?.abs()?.max_all()?.to_scalar::<f32>()?;
    match off <= 1e-3 {
        true => Ok(rows),
        false => Err(Error::EditNotPossible {
            site: site.name.clone(),
            reason: format!(
                "the rows of `along` must be orthonormal, and their products differ from that by {off:.3}; \
                 orthonormalise them first"
            ),
        }),
    }
}

/// An orthonormal basis of the span of `directions`, by modified Gram-Schmidt in f64.
fn basis(site: &Site, edit: &Edit, value: &Value) -> Result<Tensor> {
    let rows = directions(site, edit, "directions", value)?;
    let dim = rows.dim(1)?;
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for row in rows.to_dtype(DType::F64)?.to_vec2::<f64>()? {
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let length = norm(&row);
        let mut rest = row;
        for known in &basis {
            let along: f64 = known.iter().zip(&rest).map(|(a, b)| a * b).sum();
            rest.iter_mut().zip(known).for_each(|(x, k)| *x -= along * k);
        }
        let left = norm(&rest);
        // A direction that adds nothing to the span (zero, or a combination of the others) is left out.
        if left > 1e-9 * length && left > 0. {
            basis.push(rest.into_iter().map(|x| x / left).collect());
        }
    }
    if basis.is_empty() {
        return Err(not_possible(site, "all directions are zero"));
    }
    let count = basis.len();
    Ok(Tensor::from_vec(basis.concat(), (count, dim), &Device::Cpu)?.to_dtype(DType::F32)?)
}
