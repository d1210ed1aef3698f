//! Which pairs of points may be near, from a few numbers of each.
//!
//! A projection makes no distance longer. So points whose shadows on a subspace are farther apart than the neighbours already
//! known are no neighbours, and a product over the subspace alone tells it. Activations vary mostly in few directions: on those
//! nearly all pairs are told apart. The directions are data points under one step of power iteration (Halko, Martinsson and
//! Tropp 2011, "Finding structure with randomness", section 4.5); a bad choice costs time only.

use std::ops::Range;

use endoscope_kernels::{PackedMatrix, Precision};
use rayon::prelude::*;

use super::nearest::{GROUP, ROUNDING};
use crate::error::Result;

/// Points from which the directions are found: the power step is a small part of the work.
const SAMPLE: usize = 2048;

/// The points' coordinates in a subspace.
pub(super) struct Shadow {
    /// `[point, direction]`, row after row.
    coordinates: Vec<f32>,
    directions: usize,
    /// Squared norms of shadows, less what rounding may have done to a squared distance.
    lows: Vec<f32>,
}

impl Shadow {
    /// Of `points`, `[point, dim]` with squared `norms`, on so many directions or fewer, but one at least.
    pub(super) fn new(points: &[f32], dim: usize, norms: &[f32], directions: usize) -> Result<Self> {
        let all = norms.len();
        let spread = |wanted: usize| -> Vec<f32> {
            let wanted = wanted.min(all);
            let point = |at: usize| &points[at * all / wanted * dim..][..dim];
            (0..wanted).flat_map(point).copied().collect()
        };
        let (sample, start) = (spread(SAMPLE), spread(directions));
        let along = columns(&sample, dim).product_of_rows(&start, &vec![0.; sample.len() / dim])?;
        let back = PackedMatrix::pack(sample.len() / dim, dim, Precision::F32, |k, column| sample[k * dim + column]);
        let basis = orthonormal(&back.product_of_rows(&along, &vec![0.; dim])?, dim);
        let directions = basis.len() / dim;
        let coordinates = columns(&basis, dim).product_of_rows(points, &vec![0.; directions])?;
        // A coordinate is off by `n u |a|` at most, a shadow by `√k` times that, and a squared distance of shadows by
        // `4 n u √k (|a|² + |b|²)`; directions are orthonormal, and shadows' products exact, to a few `k u`.
        let bound = ROUNDING * (4.4 * (dim + 8) as f32 * (directions as f32).sqrt() + 8. * (directions + 8) as f32);
        let low = |(shadow, norm): (&[f32], &f32)| -> f32 {
            shadow.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() as f32 - bound * norm
        };
        let lows = coordinates.par_chunks(directions).zip(norms).map(low).collect();
        Ok(Self { coordinates, directions, lows })
    }

    fn of(&self, points: Range<usize>) -> &[f32] {
        &self.coordinates[points.start * self.directions..points.end * self.directions]
    }

    /// Of each of `rows` those of `stripe` that may be as near as one of both reaches: a squared distance, of each of them.
    pub(super) fn near(
        &self,
        rows: Range<usize>,
        stripe: Range<usize>,
        row_reaches: &[f32],
        stripe_reaches: &[f32],
    ) -> Result<Vec<Vec<usize>>> {
        let columns = columns(self.of(stripe.clone()), self.directions);
        let products = columns.product_of_rows(self.of(rows.clone()), &vec![0.; stripe.len()])?;
        let lows = &self.lows[stripe.clone()];
        let of_row = |(products, (low, reach)): (&[f32], (&f32, &f32))| {
            let mut near = Vec::new();
            let groups = products.chunks(GROUP).zip(lows.chunks(GROUP)).zip(stripe_reaches.chunks(GROUP));
            for (group, ((products, lows), reaches)) in groups.enumerate() {
                let may_be_near = |((product, other_low), other_reach): ((&f32, &f32), &f32)| {
                    low + (other_low - 2. * product) <= reach.max(*other_reach)
                };
                let pairs = products.iter().zip(lows).zip(reaches);
                if pairs.clone().fold(false, |any, pair| any | may_be_near(pair)) {
                    let kept = pairs.enumerate().filter(|(_, pair)| may_be_near(*pair));
                    near.extend(kept.map(|(at, _)| stripe.start + group * GROUP + at));
                }
            }
            near
        };
        let of_rows = products.par_chunks(stripe.len()).zip(self.lows[rows].par_iter().zip(row_reaches));
        Ok(of_rows.map(of_row).collect())
    }
}

/// Points, one after the other, as the columns of a matrix.
pub(super) fn columns(points: &[f32], dim: usize) -> PackedMatrix {
    PackedMatrix::pack(dim, points.len() / dim, Precision::F32, |k, column| points[column * dim + k])
}

/// An orthonormal basis of what `vectors` span, row after row: Gram and Schmidt's, twice (Giraud et al. 2005: it is enough).
/// Where they span nothing, one axis.
fn orthonormal(vectors: &[f32], dim: usize) -> Vec<f32> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for vector in vectors.chunks(dim) {
        let mut vector: Vec<f64> = vector.iter().map(|&value| f64::from(value)).collect();
        let before = dot(&vector, &vector).sqrt();
        for _ in 0..2 {
            for other in &basis {
                let along = dot(&vector, other);
                vector.iter_mut().zip(other).for_each(|(value, other)| *value -= along * other);
            }
        }
        let length = dot(&vector, &vector).sqrt();
        // What is left of a vector in the span of the others is rounding.
        if length > 1e-9 * before {
            vector.iter_mut().for_each(|value| *value /= length);
            basis.push(vector);
        }
    }
    if basis.is_empty() {
        basis.push((0..dim).map(|at| f64::from(u8::from(at == 0))).collect());
    }
    basis.concat().into_iter().map(|value| value as f32).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    const WIDTH: usize = 8;
    let (a, rest_a) = a.as_chunks::<WIDTH>();
    let (b, rest_b) = b.as_chunks::<WIDTH>();
    let mut sums = [0f64; WIDTH];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..WIDTH {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
}
