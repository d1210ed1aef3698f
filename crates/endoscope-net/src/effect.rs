//! What the edits of a plan change, found by making them on a run that is already known.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::frame::Frame;
use crate::prepared::Prepared;
use crate::site::{AxisName, SiteId};
use crate::tap::Tap;

/// What the edits of one site do.
#[derive(Debug)]
pub enum Effect {
    /// Nothing: not one bit of the site changes.
    None,
    /// The positions before this one keep their bits; the site becomes `value`, where that is known.
    From {
        /// The first position that changes (the first query, for attention matrices).
        position: usize,
        /// The site after its edits.
        value: Option<Tensor>,
    },
}

impl Prepared<'_> {
    /// The edited sites, in the order of the mathematics.
    pub fn edited_sites(&self) -> Vec<SiteId> {
        self.sites_where(|id| self.edits(id))
    }

    /// The captured sites, in the order of the mathematics.
    pub fn captured_sites(&self) -> Vec<SiteId> {
        self.sites_where(|id| self.actions.get(&id).is_some_and(|actions| actions.capture.is_some()))
    }

    fn sites_where(&self, holds: impl Fn(SiteId) -> bool) -> Vec<SiteId> {
        let mut sites: Vec<SiteId> = self.actions.keys().copied().filter(|&id| holds(id)).collect();
        sites.sort_unstable_by_key(|id| id.0);
        sites
    }

    /// Whether a gradient is asked for, or an edit's value is being trained.
    pub fn needs_graph(&self) -> bool {
        self.actions.values().any(|actions| {
            actions.capture.as_ref().is_some_and(|capture| capture.gradient)
                || actions.edits.iter().any(|edit| edit.has_graph())
        })
    }

    /// Whether an edit reads cells at other positions than the one that it changes.
    pub fn mixes_positions(&self) -> bool {
        self.actions.iter().any(|(&id, actions)| {
            let site = self.sites.get(id);
            actions.edits.iter().any(|edit| edit.averages_over_positions(site))
        })
    }

    /// What the edits of `id` do to a whole run in which nothing before it has changed, and its activation is `value`
    /// (if that is known).
    pub fn effect(&self, id: SiteId, value: Option<&Tensor>, frame: Frame) -> Result<Effect> {
        let Some(actions) = self.actions.get(&id) else { return Ok(Effect::None) };
        // What is being trained is a change whatever its value is now, or its graph would be lost.
        let trained = actions.edits.iter().any(|edit| edit.has_graph());
        let Some(value) = value.filter(|_| !trained) else { return self.effect_unseen(id, frame) };
        let site = self.sites.get(id);
        let edited = Tap::new(self, frame)?.edited(site, actions, value.clone())?;
        let axis = site.position_axis().and_then(|name| site.axis(name));
        match first_difference(value, &edited, axis)? {
            None => Ok(Effect::None),
            Some(position) => Ok(Effect::From { position, value: Some(edited) }),
        }
    }

    /// The same from the selections alone.
    fn effect_unseen(&self, id: SiteId, frame: Frame) -> Result<Effect> {
        let site = self.sites.get(id);
        let Some(actions) = self.actions.get(&id) else { return Ok(Effect::None) };
        let Some(name) = site.position_axis() else { return Ok(Effect::From { position: 0, value: None }) };
        let dims: Vec<usize> = site
            .axes
            .iter()
            .map(|axis| match (axis.size, axis.name) {
                (crate::Size::Fixed(size), _) => size,
                (_, AxisName::Batch) => frame.rows,
                _ => frame.length,
            })
            .collect();
        let mut first: Option<usize> = None;
        for edit in &actions.edits {
            let grid = edit.select.grid(site, &frame, &dims)?;
            if grid.is_empty() {
                continue;
            }
            let chosen = site.axis(name).and_then(|dimension| grid.axes[dimension].as_ref());
            let position = chosen.map_or(0, |list| list.iter().copied().min().unwrap_or(0));
            first = Some(first.map_or(position, |first| first.min(position)));
        }
        Ok(first.map_or(Effect::None, |position| Effect::From { position, value: None }))
    }
}

/// The first index along `axis` at which two tensors of one shape differ in a bit.
fn first_difference(a: &Tensor, b: &Tensor, axis: Option<usize>) -> Result<Option<usize>> {
    let bits = |x: &Tensor| -> Result<Vec<f32>> { Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
    let (length, inner) = match axis {
        Some(axis) => (a.dim(axis)?, a.dims()[axis + 1..].iter().product::<usize>()),
        None => (1, a.elem_count()),
    };
    let (a, b) = (bits(a)?, bits(b)?);
    let mut first: Option<usize> = None;
    for block in 0..a.len() / (length * inner).max(1) {
        for at in 0..first.unwrap_or(length) {
            let range = (block * length + at) * inner..(block * length + at + 1) * inner;
            if a[range.clone()].iter().zip(&b[range]).any(|(a, b)| a.to_bits() != b.to_bits()) {
                first = Some(at);
                break;
            }
        }
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;
    use candle_core::Device;

    fn effect(edit: Edit, known: bool) -> Option<usize> {
        let axes = vec![Axis::batch(), Axis::position(), Axis::dim(4)];
        let sites = Sites::new(vec![Site::new("blocks.0.hook_x", Some(0), Role::Residual, axes)], 1).unwrap();
        let value = Tensor::arange(0f32, 12., &Device::Cpu).unwrap().reshape((1, 3, 4)).unwrap();
        let plan = Plan::default().edit(edit);
        let prepared = Prepared::new(&sites, &plan).unwrap();
        match prepared.effect(SiteId(0), known.then_some(&value), Frame::whole(1, 3)).unwrap() {
            Effect::None => None,
            Effect::From { position, value } => {
                assert_eq!(value.is_some(), known);
                Some(position)
            }
        }
    }

    #[test]
    fn an_effect_starts_at_the_first_changed_position() {
        let source = |at: usize| {
            let numbers: Vec<f32> = (0..12).map(|i| i as f32 + if i / 4 >= at { 1. } else { 0. }).collect();
            Change::Patch { source: Tensor::from_vec(numbers, (1, 3, 4), &Device::Cpu).unwrap().into() }
        };
        for (edit, known, unseen) in [
            (Edit::new("x", source(3)), None, Some(0)),
            (Edit::new("x", source(1)), Some(1), Some(0)),
            (Edit::new("x", source(1)).at(AxisName::Position, Index::At(0)), None, Some(0)),
            (Edit::new("x", source(0)).at(AxisName::Position, Index::At(-1)), Some(2), Some(2)),
            (Edit::new("x", Change::Scale { factor: 1. }), None, Some(0)),
            (Edit::new("x", Change::Zero).at(AxisName::Position, Index::List(vec![])), None, None),
            // The first cell is zero already: the first position changes in its other cells.
            (Edit::new("x", Change::Zero), Some(0), Some(0)),
            (Edit::new("x", Change::Zero).at(AxisName::Dim, Index::At(0)), Some(1), Some(0)),
        ] {
            assert_eq!((effect(edit.clone(), true), effect(edit.clone(), false)), (known, unseen), "{edit:?}");
        }
    }
}
