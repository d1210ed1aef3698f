//! The planner: from the points of a sweep to the runs that compute them.
//!
//! What is used so far: a point starts from the residual stream of its lowest patched layer (no lower layer is
//! recomputed); points that start at the same layer are stacked into one batch up to a memory budget; only the last
//! position is unembedded. [`Planner::Naive`] runs one whole forward pass per point: the reference.

use endoscope_net::{Axis, Sites, Size};
use serde::{Deserialize, Serialize};

use crate::sweep::Point;

/// How a sweep is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Planner {
    /// The least work known.
    Planned {
        /// How many bytes of activations one batch may take, about.
        memory: u64,
    },
    /// One whole forward pass per point.
    Naive,
}

impl Default for Planner {
    fn default() -> Self {
        Self::Planned { memory: 1 << 30 }
    }
}

/// Points that run together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The layer that they start from.
    pub from: usize,
    /// The points; each is one row.
    pub points: Vec<Point>,
}

/// Stacks points that start at the same layer.
pub(crate) fn batches(points: &[Point], rows_at_once: usize) -> Vec<Batch> {
    let mut sorted: Vec<&Point> = points.iter().collect();
    sorted.sort_by_key(|point| (point.layer, point.cell));
    let mut batches: Vec<Batch> = Vec::new();
    for point in sorted {
        match batches.last_mut() {
            Some(batch) if batch.from == point.layer && batch.points.len() < rows_at_once => {
                batch.points.push(point.clone())
            }
            _ => batches.push(Batch { from: point.layer, points: vec![point.clone()] }),
        }
    }
    batches
}

/// How many rows fit `memory`: all sites of a layer are taken to be alive at once, which no layer reaches.
pub(crate) fn rows_at_once(sites: &Sites, length: usize, memory: u64) -> usize {
    let numbers = |axes: &[Axis]| -> u64 {
        let size = |axis: &Axis| match axis.size {
            Size::Fixed(size) => size as u64,
            Size::Input => length as u64,
        };
        // Without the batch axis, which comes first.
        axes.iter().skip(1).map(size).product()
    };
    let layer = sites.iter().filter(|site| site.layer == Some(0) && !site.name.ends_with("hook_result"));
    let per_row = 4 * layer.map(|site| numbers(&site.axes)).sum::<u64>().max(1);
    usize::try_from((memory / per_row).clamp(1, 4096)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use endoscope_net::{Selection, SiteId};

    #[test]
    fn points_are_grouped_by_layer_and_cut_at_the_budget() {
        let point = |cell, layer| Point { cell, sites: vec![SiteId(layer)], layer, select: Selection::default() };
        let points = [point(0, 1), point(1, 0), point(2, 1), point(3, 1), point(4, 0)];
        let cells: Vec<(usize, Vec<usize>)> =
            batches(&points, 2).iter().map(|b| (b.from, b.points.iter().map(|p| p.cell).collect())).collect();
        assert_eq!(cells, [(0, vec![1, 4]), (1, vec![0, 2]), (1, vec![3])]);
    }
}
