//! The nearest neighbours of every point, exactly: blocked products in f32 say which points may be among them, f64 says which are.
//!
//! `|a - b|² = |a|² + |b|² - 2 a·b`, so that nearly all of the work is one matrix product. Its rounding is bounded: a sum of n
//! products, in whatever order, is off by at most `n u / (1 - n u) |a| |b|` with `u = 2^-24` (Higham 2002, "Accuracy and
//! Stability of Numerical Algorithms", section 3.1). Whatever may be among the nearest within this bound is computed again from
//! the points themselves in f64, so that rounding decides nothing: bad conditions cost time only.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::fail;
use crate::error::Result;

/// Bytes of products that are held at once (and once more while they are read).
const BLOCK: usize = 64 << 20;

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
    blocked(points, dim, count, BLOCK, of)
}

fn blocked<T: Send>(
    points: &[f32],
    dim: usize,
    count: usize,
    block: usize,
    of: impl Fn(&[Neighbour]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let all = points.len() / dim.max(1);
    let terms = (dim + 8) as f32 * ROUNDING;
    if count == 0 || all <= count || terms >= 0.5 {
        return fail(format!("{all} points of dimension {dim} have no {count} neighbours that can be told apart"));
    }
    // The other roundings (of the points, of norms and of their sum with the product) are below eight more terms.
    let bound = terms / (1. - terms);
    let (scaled, norms) = centred(points, dim);
    let scaled = Tensor::from_vec(scaled, (all, dim), &Device::Cpu)?;
    let transposed = scaled.t()?;
    let rows = (block / size_of::<f32>() / all).clamp(1, all);
    let mut found = Vec::with_capacity(all);
    for start in (0..all).step_by(rows) {
        let products = scaled.narrow(0, start, rows.min(all - start))?.matmul(&transposed)?;
        let products = products.flatten_all()?.to_vec1::<f32>()?;
        let of_row = |(at, products): (usize, &[f32])| {
            let row = start + at;
            let candidates = candidates(row, products, &norms, count, bound, dim);
            let mut near: Vec<Neighbour> = candidates
                .into_iter()
                .map(|point| Neighbour { point, squared_distance: squared_distance(points, dim, row, point) })
                .collect();
            near.sort_by(|a, b| a.squared_distance.total_cmp(&b.squared_distance).then(a.point.cmp(&b.point)));
            near.truncate(count);
            of(&near)
        };
        let of_rows: Result<Vec<T>> = products.par_chunks(all).enumerate().map(of_row).collect();
        found.extend(of_rows?);
    }
    Ok(found)
}

/// The points from their mean, the farthest at distance 1, and their squared norms: what rounds least. Distances keep their order.
fn centred(points: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let count = (points.len() / dim) as f64;
    let mut mean = vec![0f64; dim];
    for point in points.chunks(dim) {
        mean.iter_mut().zip(point).for_each(|(mean, &value)| *mean += f64::from(value));
    }
    mean.iter_mut().for_each(|mean| *mean /= count);
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
    (scaled, norms.into_iter().map(|norm| (norm * scale * scale) as f32).collect())
}

/// All points that may be among the `count` nearest of one, given its products with all.
fn candidates(row: usize, products: &[f32], norms: &[f32], count: usize, bound: f32, dim: usize) -> Vec<usize> {
    // Squared distances without |a|², which all have in common; they are off by `bound (|a|² + |b|²)` at most.
    let mut highest: Vec<f32> =
        norms.iter().zip(products).map(|(norm, product)| norm * (1. + bound) - 2. * product).collect();
    highest[row] = f32::INFINITY;
    let (_, &mut limit, _) = highest.select_nth_unstable_by(count - 1, f32::total_cmp);
    // What underflows is smaller than f32's smallest normal number.
    let limit = limit + 2. * bound * norms[row] + 4. * dim as f32 * f32::MIN_POSITIVE;
    let lowest = norms.iter().zip(products).map(|(norm, product)| norm * (1. - bound) - 2. * product);
    lowest.enumerate().filter(|&(point, lowest)| lowest <= limit && point != row).map(|(point, _)| point).collect()
}

/// In f64, from the points themselves.
fn squared_distance(points: &[f32], dim: usize, a: usize, b: usize) -> f64 {
    const LANES: usize = 8;
    let (a, b) = (&points[a * dim..(a + 1) * dim], &points[b * dim..(b + 1) * dim]);
    let square = |a: f32, b: f32| (f64::from(a) - f64::from(b)).powi(2);
    let (a, rest_a) = a.as_chunks::<LANES>();
    let (b, rest_b) = b.as_chunks::<LANES>();
    let mut sums = [0f64; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
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

    fn found(points: &[f32], dim: usize, count: usize, block: usize) -> Vec<Vec<usize>> {
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
            block in 1usize..4000,
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
        assert_eq!(found(&points, 3, 5, 4096), by_hand(&points, 3, 5));
    }

    #[test]
    fn too_few_points_are_refused() {
        for (points, dim, count) in [(0, 3, 2), (2, 3, 2), (4, 3, 0), (4, 0, 2)] {
            assert!(each_nearest(&vec![0.; points * dim], dim, count, |_| Ok(())).is_err());
        }
    }
}
