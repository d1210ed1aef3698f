//! The nearest neighbours of every point, exactly: blocked products in f32 say which points may be among them, f64 says which are.
//!
//! `|a - b|² = |a|² + |b|² - 2 a·b`, so that nearly all of the work is a matrix product, and half of one: the product of a pair
//! serves both of its points. Its rounding is bounded: a sum of n products, in whatever order, is off by at most
//! `n u / (1 - n u) |a| |b|` with `u = 2^-24` (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1).
//! Whatever may be among the nearest within this bound is computed again from the points themselves in f64, so that rounding
//! decides nothing: bad conditions cost time only.
//!
//! Once some neighbours of each point are known, most products need not be computed: [`Shadow`] tells which.

use std::ops::Range;

use endoscope_kernels::sparse::dot;
use rayon::prelude::*;

use super::fail;
use super::shadow::{Shadow, columns};
use crate::error::Result;

/// Points whose products with all that follow are computed at once: they stay packed in a second-level cache.
const STRIPE: usize = 512;

/// Of those that follow, how many at a time: their products stay in a third-level cache.
const ROWS: usize = 2048;

/// Points that are compared with limits at once: nearly always none of them is near enough.
pub(super) const GROUP: usize = 32;

/// Of how many pairs one may be near for shadows to be used: what they leave is computed pair by pair, several times slower than in
/// a block.
const PAIRS_FOR_ONE: usize = 24;

/// Half the distance from 1 to the next f32.
pub(super) const ROUNDING: f32 = f32::EPSILON / 2.;

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
    // A shadow's numbers must be few beside the point's.
    let block = Block { stripe: STRIPE, rows: ROWS, directions: (dim / 8).min(64) };
    blocked(points, dim, count, block, of)
}

/// In what pieces the work is done.
#[derive(Debug, Clone, Copy)]
struct Block {
    stripe: usize,
    rows: usize,
    /// Of the shadows; with none there are no shadows.
    directions: usize,
}

fn blocked<T: Send>(
    points: &[f32],
    dim: usize,
    count: usize,
    block: Block,
    of: impl Fn(&[Neighbour]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let all = points.len() / dim.max(1);
    let terms = (dim + 8) as f32 * ROUNDING;
    if count == 0 || all <= count || terms >= 0.5 {
        return fail(format!("{all} points of dimension {dim} have no {count} neighbours that can be told apart"));
    }
    let cloud = Cloud::new(points, dim, count, terms);
    let mut shadow = None;
    let mut near = vec![Near::default(); all];
    for start in (0..all).step_by(block.stripe) {
        let end = (start + block.stripe).min(all);
        if start == block.stripe && block.directions > 0 {
            shadow = Some(Shadow::new(&cloud.scaled, dim, &cloud.norms, block.directions)?);
        }
        cloud.compare_with(&mut near, [start, end], start..end)?;
        for top in (end..all).step_by(block.rows) {
            let bottom = (top + block.rows).min(all);
            if let Some(shadow) = &shadow
                && let Some(pairs) = cloud.pairs_by_shadows(shadow, &near, [start, end], top..bottom)?
            {
                cloud.add_pairs(&mut near, top, &pairs);
                continue;
            }
            shadow = None;
            cloud.compare_with(&mut near, [start, end], top..bottom)?;
        }
        // What is far is left out now: the next shadows are held against nearer limits.
        near.par_iter_mut().enumerate().for_each(|(row, near)| cloud.narrow(near, row));
    }
    let settled = near.par_iter().enumerate().map(|(row, near)| of(&cloud.settle(near, row)));
    settled.collect()
}

/// Points, each with its product with one and the same other.
type Pairs = Vec<(usize, f32)>;

/// What has been found around one point: every point that may be among its nearest, and others.
#[derive(Debug, Clone)]
struct Near {
    /// What the lowest squared distance of a point, without the norm of this one, must not be above.
    limit: f32,
    /// A point, and its product with this one.
    found: Pairs,
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
    /// From their mean, the farthest at distance 1, which rounds least. Distances keep their order.
    scaled: Vec<f32>,
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
    fn new(points: &'a [f32], dim: usize, count: usize, terms: f32) -> Self {
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
        Self { points, dim, count, scaled, bound, shrunk, norms, lows, highs }
    }

    fn of(&self, points: Range<usize>) -> &[f32] {
        &self.scaled[points.start * self.dim..points.end * self.dim]
    }

    /// Compares the points from `start` to below `end` with `rows`, which are the same or others.
    fn compare_with(&self, near: &mut [Near], [start, end]: [usize; 2], rows: Range<usize>) -> Result<()> {
        let width = end - start;
        let products =
            columns(self.of(start..end), self.dim).product_of_rows(self.of(rows.clone()), &vec![0.; width])?;
        let of_rows = near[rows.clone()].par_iter_mut().zip(products.par_chunks(width)).enumerate();
        of_rows.for_each(|(at, (near, products))| {
            for (group, products) in products.chunks(GROUP).enumerate() {
                self.compare(near, rows.start + at, start + group * GROUP, products);
            }
        });
        if rows.start > start {
            let of_columns = near[start..end].par_chunks_mut(GROUP).enumerate();
            of_columns.for_each(|(group, near)| {
                let parts = products.chunks_exact(width).map(|products| &products[group * GROUP..]);
                let parts = parts.enumerate().map(|(at, products)| (rows.start + at, products));
                self.compare_all(near, start + group * GROUP, parts);
            });
        }
        Ok(())
    }

    /// Of each of `rows` the points from `start` to below `end` that may be near it, or it near them, with their products;
    /// nothing where they are too many.
    fn pairs_by_shadows(
        &self,
        shadow: &Shadow,
        near: &[Near],
        stripe: [usize; 2],
        rows: Range<usize>,
    ) -> Result<Option<Vec<Pairs>>> {
        let reach =
            |range: Range<usize>| -> Vec<f32> { range.map(|point| near[point].limit + self.lows[point]).collect() };
        let [start, end] = stripe;
        let found = shadow.near(rows.clone(), start..end, &reach(rows.clone()), &reach(start..end))?;
        if found.iter().map(Vec::len).sum::<usize>() * PAIRS_FOR_ONE > rows.len() * (end - start) {
            return Ok(None);
        }
        let products = |(at, points): (usize, Vec<usize>)| {
            let row = self.of(rows.start + at..rows.start + at + 1);
            points.into_iter().map(|point| (point, dot(row, self.of(point..point + 1)))).collect()
        };
        Ok(Some(found.into_par_iter().enumerate().map(products).collect()))
    }

    /// Adds pairs with their products: of the point `top` and of each that follows.
    fn add_pairs(&self, near: &mut [Near], top: usize, pairs: &[Pairs]) {
        for (at, pairs) in pairs.iter().enumerate() {
            for &(point, product) in pairs {
                self.add(&mut near[top + at], top + at, point, product);
                self.add(&mut near[point], point, top + at, product);
            }
        }
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
        if near.found.len() < self.count {
            return;
        }
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

    fn found(points: &[f32], dim: usize, count: usize, block: Block) -> Vec<Vec<usize>> {
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
            block in [1usize..40, 1usize..40, 0usize..8],
            scale in prop_oneof![Just(1e-30f32), Just(1e-3), Just(1.), Just(1e37)],
            // Far from the origin and from each other f32 products alone would choose wrongly.
            far in prop_oneof![Just(0f32), Just(1e4)],
        ) {
            let (dim, points) = points;
            let [stripe, rows, directions] = block;
            let place = |(at, value): (usize, f32)| (value + if at % (3 * dim) < dim { far } else { 0. }) * scale.min(1e33);
            let points: Vec<f32> = points.concat().into_iter().enumerate().map(place).collect();
            prop_assert_eq!(found(&points, dim, count, Block { stripe, rows, directions }), by_hand(&points, dim, count));
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
        assert_eq!(found(&points, 3, 5, Block { stripe: STRIPE, rows: ROWS, directions: 0 }), by_hand(&points, 3, 5));
    }

    #[test]
    fn shadows_of_points_near_a_plane_leave_out_most_pairs_and_no_neighbour() {
        // Two directions, and a tenth of that in the other 38.
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let points: Vec<f32> = (0..900)
            .flat_map(|_| {
                let (x, y) = (next(), next());
                (0..40)
                    .map(|at| x * (at as f32).sin() + y * (at as f32 / 2.).cos() + 0.01 * next())
                    .collect::<Vec<f32>>()
            })
            .collect();
        let block = Block { stripe: 100, rows: 300, directions: 3 };
        assert_eq!(found(&points, 40, 3, block), by_hand(&points, 40, 3));
        let cloud = Cloud::new(&points, 40, 3, 48. * ROUNDING);
        let shadow = Shadow::new(&cloud.scaled, 40, &cloud.norms, 3).unwrap();
        let mut near = vec![Near::default(); 900];
        let none = cloud.pairs_by_shadows(&shadow, &near, [0, 100], 100..400).unwrap();
        assert!(none.is_none(), "before anything is known every pair may be near");
        cloud.compare_with(&mut near, [0, 100], 100..400).unwrap();
        cloud.compare_with(&mut near, [0, 100], 0..100).unwrap();
        near[..400].iter_mut().enumerate().for_each(|(row, near)| cloud.narrow(near, row));
        assert!(cloud.pairs_by_shadows(&shadow, &near, [100, 200], 200..400).unwrap().is_some());
    }

    #[test]
    fn too_few_points_are_refused() {
        for (points, dim, count) in [(0, 3, 2), (2, 3, 2), (4, 3, 0), (4, 0, 2)] {
            assert!(each_nearest(&vec![0.; points * dim], dim, count, |_| Ok(())).is_err());
        }
    }
}
