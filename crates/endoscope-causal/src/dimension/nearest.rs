//! The nearest neighbours of every point, exactly: blocked products in f32 say which points may be among them, f64 says which are.
//!
//! `|a - b|² = |a|² + |b|² - 2 a·b`, so that nearly all of the work is a matrix product, and half of one: the product of a pair
//! serves both of its points. Its rounding is bounded: a sum of n products, in whatever order, is off by at most
//! `n u / (1 - n u) |a| |b|` with `u = 2^-24` (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1).
//! Whatever may be among the nearest within this bound is computed again from the points themselves in f64, so that rounding
//! decides nothing: bad conditions cost time only.

use std::sync::Arc;

use candle_core::{Device, Storage, Tensor};
use endoscope_kernels::{PackedMatrix, Precision};
use rayon::prelude::*;

use super::fail;
use crate::error::Result;

/// Points whose products with all that follow are computed at once: they stay packed in a second-level cache.
const STRIPE: usize = 512;

/// Of those that follow, how many at a time: their products stay in a third-level cache.
const ROWS: usize = 2048;

/// Points that are compared with limits at once: nearly always none of them is near enough.
const GROUP: usize = 32;

/// Half the distance from 1 to the next f32.
const ROUNDING: f32 = f32::EPSILON / 2.;

/// Another point, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Neighbour {
    pub point: usize,
    pub squared_distance: f64,
}

/// What `of` says of the `count` nearest neighbours of each point, the nearest first and of equal ones the one that comes
/// first. `points` are `[point, dim]`, row after row, all finite; there are more than `count` of them.
pub(super) fn each_nearest<T: Send>(
    points: &[f32],
    dim: usize,
    count: usize,
    of: impl Fn(&[Neighbour]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    blocked(points, dim, count, [STRIPE, ROWS], of)
}

fn blocked<T: Send>(
    points: &[f32],
    dim: usize,
    count: usize,
    [stripe, rows]: [usize; 2],
    of: impl Fn(&[Neighbour]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let all = points.len() / dim.max(1);
    let terms = (dim + 8) as f32 * ROUNDING;
    if count == 0 || all <= count || terms >= 0.5 {
        return fail(format!("{all} points of dimension {dim} have no {count} neighbours that can be told apart"));
    }
    let (cloud, scaled) = Cloud::new(points, dim, count, terms);
    let scaled = Tensor::from_vec(scaled, (all, dim), &Device::Cpu)?;
    let mut near = vec![Near::default(); all];
    for start in (0..all).step_by(stripe) {
        let end = (start + stripe).min(all);
        let columns = scaled.narrow(0, start, end - start)?.t()?;
        let columns = Arc::new(PackedMatrix::from_tensor(&columns, Precision::F32)?);
        // Those of the stripe itself, then all that follow it.
        let tops = std::iter::once(start).chain((end..all).step_by(rows));
        for top in tops {
            let bottom = if top == start { end } else { (top + rows).min(all) };
            let product = columns.product(&scaled.narrow(0, top, bottom - top)?, None, None)?;
            let (storage, _) = product.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else { return fail("a product on the CPU is elsewhere") };
            let products = storage.as_slice::<f32>()?;
            let of_rows = near[top..bottom].par_iter_mut().zip(products.par_chunks(end - start));
            of_rows.enumerate().for_each(|(at, (near, products))| {
                for (group, products) in products.chunks(GROUP).enumerate() {
                    cloud.compare(near, top + at, start + group * GROUP, products);
                }
            });
            if top > start {
                let of_columns = near[start..end].par_chunks_mut(GROUP).enumerate();
                of_columns.for_each(|(group, near)| {
                    let rows = products.chunks_exact(end - start).map(|products| &products[group * GROUP..]);
                    cloud.compare_all(near, start + group * GROUP, rows.enumerate().map(|(at, row)| (top + at, row)));
                });
            }
        }
    }
    let settled = near.par_iter_mut().enumerate().map(|(row, near)| {
        cloud.narrow(near, row);
        of(&cloud.settle(near, row))
    });
    settled.collect()
}

/// What has been found around one point: every point that may be among its nearest, and others.
#[derive(Debug, Clone)]
struct Near {
    /// What the lowest squared distance of a point, without the norm of this one, must not be above.
    limit: f32,
    /// A point, and its product with this one.
    found: Vec<(usize, f32)>,
}

impl Default for Near {
    fn default() -> Self {
        Self { limit: f32::INFINITY, found: Vec::new() }
    }
}

/// The points, and how their products round.
struct Cloud<'a> {
    points: &'a [f32],
    dim: usize,
    count: usize,
    /// The share of `|a|² + |b|²` that a squared distance may be off by.
    bound: f32,
    /// By what squared distances of the scaled points are smaller.
    shrunk: f64,
    /// Squared norms of the scaled points, and the same less and more what rounding may have done.
    norms: Vec<f32>,
    lows: Vec<f32>,
    highs: Vec<f32>,
}

impl<'a> Cloud<'a> {
    /// Also the scaled points: from their mean, the farthest at distance 1, which rounds least. Distances keep their order.
    fn new(points: &'a [f32], dim: usize, count: usize, terms: f32) -> (Self, Vec<f32>) {
        // The other roundings (of the points, of norms and of their sum with the product) are below eight more terms.
        let bound = terms / (1. - terms);
        let mut mean = vec![0f64; dim];
        for point in points.chunks(dim) {
            mean.iter_mut().zip(point).for_each(|(mean, &value)| *mean += f64::from(value));
        }
        mean.iter_mut().for_each(|mean| *mean /= (points.len() / dim) as f64);
        let norm = |point: &[f32]| -> f64 {
            point.iter().zip(&mean).map(|(&value, mean)| (f64::from(value) - mean).powi(2)).sum()
        };
        let norms: Vec<f64> = points.par_chunks(dim).map(norm).collect();
        let largest = norms.iter().copied().fold(0., f64::max);
        let scale = if largest > 0. { 1. / largest.sqrt() } else { 1. };
        let mut scaled = points.to_vec();
        scaled.par_chunks_mut(dim).for_each(|point| {
            point.iter_mut().zip(&mean).for_each(|(value, mean)| *value = ((f64::from(*value) - mean) * scale) as f32);
        });
        let shrunk = scale * scale;
        let norms: Vec<f32> = norms.into_iter().map(|norm| (norm * shrunk) as f32).collect();
        let (lows, highs) = norms.iter().map(|norm| (norm * (1. - bound), norm * (1. + bound))).unzip();
        (Self { points, dim, count, bound, shrunk, norms, lows, highs }, scaled)
    }

    /// The points from `first` on, given their products with `row`.
    fn compare(&self, near: &mut Near, row: usize, first: usize, products: &[f32]) {
        let lows = &self.lows[first..first + products.len()];
        if !lows.iter().zip(products).fold(false, |any, (low, product)| any | (low - 2. * product <= near.limit)) {
            return;
        }
        for (at, &product) in products.iter().enumerate() {
            self.add(near, row, first + at, product);
        }
    }

    /// `rows` are points with their products with those from `first` on, of which there are as many as `near`.
    fn compare_all<'r>(&self, near: &mut [Near], first: usize, rows: impl Iterator<Item = (usize, &'r [f32])>) {
        let mut limits: Vec<f32> = near.iter().map(|near| near.limit).collect();
        for (row, products) in rows {
            let low = self.lows[row];
            let pairs = limits.iter().zip(products);
            if !pairs.fold(false, |any, (limit, product)| any | (low - 2. * product <= *limit)) {
                continue;
            }
            for (at, ((near, limit), &product)) in near.iter_mut().zip(&mut limits).zip(products).enumerate() {
                self.add(near, first + at, row, product);
                *limit = near.limit;
            }
        }
    }

    /// Keeps `point` if it may be among the nearest of `row`.
    fn add(&self, near: &mut Near, row: usize, point: usize, product: f32) {
        if point == row || self.lows[point] - 2. * product > near.limit {
            return;
        }
        near.found.push((point, product));
        let room = 8 + 4 * self.count;
        if near.found.len() < room {
            return;
        }
        self.narrow(near, row);
        if near.found.len() > room / 2 {
            // Products cannot tell them apart.
            let nearest = self.settle(near, row);
            near.found.retain(|&(point, _)| nearest.iter().any(|near| near.point == point));
            if let Some(last) = nearest.last() {
                let farthest = (last.squared_distance * self.shrunk) as f32 * (1. + self.bound);
                let limit = farthest - self.norms[row] * (1. - 2. * self.bound) + self.underflow();
                near.limit = near.limit.min(limit);
            }
        }
    }

    /// Leaves out those that are farther than `count` others, whatever rounding did.
    fn narrow(&self, near: &mut Near, row: usize) {
        // Squared distances without |row|², which all have in common; they are off by `bound (|row|² + |point|²)` at most, and what
        // underflows is smaller than f32's smallest normal number.
        let high = |&(point, product): &(usize, f32)| self.highs[point] - 2. * product;
        let (_, at_limit, _) = near.found.select_nth_unstable_by(self.count - 1, |a, b| high(a).total_cmp(&high(b)));
        let limit = high(at_limit) + 2. * self.bound * self.norms[row] + self.underflow();
        near.limit = near.limit.min(limit);
        near.found.retain(|&(point, product)| self.lows[point] - 2. * product <= near.limit);
    }

    fn underflow(&self) -> f32 {
        4. * self.dim as f32 * f32::MIN_POSITIVE
    }

    /// The nearest of those that were found, in f64.
    fn settle(&self, near: &Near, row: usize) -> Vec<Neighbour> {
        let squared_distance = |point: usize| squared_distance(self.points, self.dim, row, point);
        let found = near.found.iter();
        let mut nearest: Vec<Neighbour> =
            found.map(|&(point, _)| Neighbour { point, squared_distance: squared_distance(point) }).collect();
        nearest.sort_by(|a, b| a.squared_distance.total_cmp(&b.squared_distance).then(a.point.cmp(&b.point)));
        nearest.truncate(self.count);
        nearest
    }
}

/// In f64, from the points themselves.
fn squared_distance(points: &[f32], dim: usize, a: usize, b: usize) -> f64 {
    const WIDTH: usize = 8;
    let (a, b) = (&points[a * dim..(a + 1) * dim], &points[b * dim..(b + 1) * dim]);
    let square = |a: f32, b: f32| (f64::from(a) - f64::from(b)).powi(2);
    let (a, rest_a) = a.as_chunks::<WIDTH>();
    let (b, rest_b) = b.as_chunks::<WIDTH>();
    let mut sums = [0f64; WIDTH];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..WIDTH {
            sums[lane] += square(a[lane], b[lane]);
        }
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(&a, &b)| square(a, b)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every pair in f64.
    fn by_hand(points: &[f32], dim: usize, count: usize) -> Vec<Vec<usize>> {
        let all = points.len() / dim;
        (0..all)
            .map(|row| {
                let mut near: Vec<usize> = (0..all).filter(|&point| point != row).collect();
                let far = |&point: &usize| squared_distance(points, dim, row, point);
                near.sort_by(|a, b| far(a).total_cmp(&far(b)).then(a.cmp(b)));
                near.truncate(count);
                near
            })
            .collect()
    }

    fn found(points: &[f32], dim: usize, count: usize, block: [usize; 2]) -> Vec<Vec<usize>> {
        let points_of = |near: &[Neighbour]| Ok(near.iter().map(|near| near.point).collect::<Vec<usize>>());
        blocked(points, dim, count, block, points_of).unwrap()
    }

    proptest! {
        #[test]
        fn the_nearest_are_those_of_all_pairs(
            points in (1usize..20).prop_flat_map(|dim| {
                let point = proptest::collection::vec(-1f32..1., dim);
                (Just(dim), proptest::collection::vec(point, 4..40))
            }),
            count in 1usize..4,
            block in [1usize..40, 1usize..40],
            scale in prop_oneof![Just(1e-30f32), Just(1e-3), Just(1.), Just(1e37)],
            // Far from the origin and from each other f32 products alone would choose wrongly.
            far in prop_oneof![Just(0f32), Just(1e4)],
        ) {
            let (dim, points) = points;
            let place = |(at, value): (usize, f32)| (value + if at % (3 * dim) < dim { far } else { 0. }) * scale.min(1e33);
            let points: Vec<f32> = points.concat().into_iter().enumerate().map(place).collect();
            prop_assert_eq!(found(&points, dim, count, block), by_hand(&points, dim, count));
        }
    }

    #[test]
    fn clusters_too_tight_for_f32_products_are_told_apart() {
        // Two clusters a thousand apart, whose points differ by thousandths: products round by a tenth.
        let points: Vec<f32> = (0..200)
            .flat_map(|at| {
                let within = |step: usize| ((at * step) % 97) as f32 / 97e3;
                [if at % 2 == 0 { 0. } else { 1e3 } + within(31), within(17), within(53)]
            })
            .collect();
        assert_eq!(found(&points, 3, 5, [STRIPE, ROWS]), by_hand(&points, 3, 5));
    }

    #[test]
    fn too_few_points_are_refused() {
        for (points, dim, count) in [(0, 3, 2), (2, 3, 2), (4, 3, 0), (4, 0, 2)] {
            assert!(each_nearest(&vec![0.; points * dim], dim, count, |_| Ok(())).is_err());
        }
    }
}
