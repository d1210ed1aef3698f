//! Rows of few nonzero entries, as the codes of a dictionary are, and their products with dense matrices.
//!
//! A product costs what the entries cost, not what the width costs: of 24,576 latents of which 32 are active, one in 768
//! multiply-adds of the dense product is left. Sums run in the order of the entries, whatever the number of threads.

use rayon::prelude::*;

use crate::simd::{LANES, vectorized};

/// How many multiply-adds one task makes, at least.
const TASK: usize = 1 << 16;

/// Rows of `width` entries of which few are not zero (compressed sparse rows).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SparseRows {
    width: usize,
    /// Where each row's entries start, and where the last ends.
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

impl SparseRows {
    /// No rows yet.
    pub fn new(width: usize) -> Self {
        Self { width, starts: vec![0], columns: Vec::new(), values: Vec::new() }
    }

    /// Adds a row of `(column, value)`; columns at or beyond the width are left out.
    pub fn push(&mut self, entries: impl IntoIterator<Item = (u32, f32)>) {
        for (column, value) in entries {
            if (column as usize) < self.width {
                self.columns.push(column);
                self.values.push(value);
            }
        }
        self.starts.push(self.columns.len());
    }

    /// Adds the rows of another, which must be of the same width (else nothing is added).
    pub fn append(&mut self, other: &Self) {
        if other.width == self.width {
            let before = self.columns.len();
            self.starts.extend(other.starts.iter().skip(1).map(|start| start + before));
            self.columns.extend_from_slice(&other.columns);
            self.values.extend_from_slice(&other.values);
        }
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// How many columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many entries are stored, over all rows.
    pub fn entries(&self) -> usize {
        self.columns.len()
    }

    /// The columns and values of a row.
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.starts[row]..self.starts[row + 1];
        (&self.columns[range.clone()], &self.values[range])
    }

    /// All columns, row after row.
    pub fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The rows in full, `[rows, width]`.
    pub fn dense(&self) -> Vec<f32> {
        let mut dense = vec![0.; self.rows() * self.width];
        for (row, dense) in dense.chunks_exact_mut(self.width.max(1)).enumerate() {
            let (columns, values) = self.row(row);
            columns.iter().zip(values).for_each(|(&column, value)| dense[column as usize] += value);
        }
        dense
    }

    /// The entries whose column `keep` wants, as they are.
    pub fn filtered(&self, keep: impl Fn(u32) -> bool) -> Self {
        let mut kept = Self::new(self.width);
        for row in 0..self.rows() {
            let (columns, values) = self.row(row);
            kept.push(columns.iter().copied().zip(values.iter().copied()).filter(|&(column, _)| keep(column)));
        }
        kept
    }

    /// Adds the product with `matrix`, `[width, out_width]`, to `out`, `[rows, out_width]`: what a decoder does.
    ///
    /// # Panics
    /// If a slice is not of that size.
    pub fn add_product(&self, matrix: &[f32], out_width: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.rows() * out_width, "the product is of another size");
        assert_eq!(matrix.len(), self.width * out_width, "the matrix is of another size");
        let rows = self.rows_per_task(out_width);
        out.par_chunks_mut(rows * out_width.max(1)).enumerate().for_each(|(task, out)| {
            for (row, out) in out.chunks_exact_mut(out_width.max(1)).enumerate() {
                let (columns, values) = self.row(task * rows + row);
                add_weighted_rows(matrix, columns, values, out);
            }
        });
    }

    /// For each entry at `(row, column)` the product of `left`'s row, `[rows, inner]`, with `matrix`'s row `column`,
    /// `[width, inner]`: the gradient with respect to the entry's value, where `left` is that with respect to the product.
    ///
    /// # Panics
    /// If a slice is not of that size.
    pub fn dots(&self, left: &[f32], matrix: &[f32], inner: usize) -> Vec<f32> {
        assert_eq!(left.len(), self.rows() * inner, "the left side is of another size");
        assert_eq!(matrix.len(), self.width * inner, "the matrix is of another size");
        let mut dots = vec![0.; self.entries()];
        let mut rest = dots.as_mut_slice();
        let rows = self.rows_per_task(inner);
        let mut tasks = Vec::new();
        for first in (0..self.rows()).step_by(rows) {
            let last = (first + rows).min(self.rows());
            let (these, others) = rest.split_at_mut(self.starts[last] - self.starts[first]);
            rest = others;
            tasks.push((first..last, these));
        }
        tasks.into_par_iter().for_each(|(range, mut dots)| {
            for row in range {
                let (columns, _) = self.row(row);
                let (these, others) = dots.split_at_mut(columns.len());
                dots = others;
                row_dots(&left[row * inner..][..inner], matrix, columns, these);
            }
        });
        dots
    }

    /// Where the entries of each column are.
    pub fn by_column(&self) -> ByColumn {
        let mut starts = vec![0usize; self.width + 1];
        for &column in &self.columns {
            starts[column as usize + 1] += 1;
        }
        for at in 0..self.width {
            starts[at + 1] += starts[at];
        }
        let mut next = starts.clone();
        let mut rows = vec![0u32; self.columns.len()];
        let mut entries = vec![0u32; self.columns.len()];
        for row in 0..self.rows() {
            for entry in self.starts[row]..self.starts[row + 1] {
                let slot = &mut next[self.columns[entry] as usize];
                rows[*slot] = row as u32;
                entries[*slot] = entry as u32;
                *slot += 1;
            }
        }
        ByColumn { starts, rows, entries }
    }

    fn rows_per_task(&self, inner: usize) -> usize {
        let work = (self.entries() / self.rows().max(1) + 1) * inner;
        (TASK / work.max(1)).max(1)
    }
}

/// The entries of [`SparseRows`], column by column, each column's in the order of the rows.
#[derive(Debug, Clone)]
pub struct ByColumn {
    starts: Vec<usize>,
    rows: Vec<u32>,
    entries: Vec<u32>,
}

impl ByColumn {
    /// The rows that have an entry in this column, and which entry (of all) it is.
    pub fn column(&self, column: usize) -> (&[u32], &[u32]) {
        let range = self.starts[column]..self.starts[column + 1];
        (&self.rows[range.clone()], &self.entries[range])
    }
}

vectorized! {
    /// `sum += Σ weights[i] · matrix[rows[i]]`, with rows as long as `sum`.
    pub fn add_weighted_rows<'a>(matrix: &'a [f32], rows: &'a [u32], weights: &'a [f32], sum: &'a mut [f32]) {
        let width = sum.len();
        for (&row, &weight) in rows.iter().zip(weights) {
            let row = &matrix[row as usize * width..][..width];
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += weight * x;
            }
        }
    }
}

vectorized! {
    fn row_dots<'a>(left: &'a [f32], matrix: &'a [f32], columns: &'a [u32], dots: &'a mut [f32]) {
        for (&column, dot) in columns.iter().zip(dots) {
            *dot = dot_inline(left, &matrix[column as usize * left.len()..][..left.len()]);
        }
    }
}

vectorized! {
    /// The inner product of two vectors, in f32 over 64 lanes that are added in a fixed order.
    pub fn dot<'a>(a: &'a [f32], b: &'a [f32]) -> f32 {
        dot_inline(a, b)
    }
}

#[inline(always)]
fn dot_inline(a: &[f32], b: &[f32]) -> f32 {
    const WIDE: usize = 4 * LANES;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WIDE>(), b.as_chunks::<WIDE>());
    let mut lanes = [0f32; WIDE];
    for (a, b) in a.iter().zip(b) {
        for i in 0..WIDE {
            lanes[i] += a[i] * b[i];
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    let mut width = WIDE / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// What one step of [`adam`] needs to know.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// The learning rate, divided by `1 - beta1^t`.
    pub rate: f32,
    /// The decay of the running mean.
    pub beta1: f32,
    /// The decay of the running mean square.
    pub beta2: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub second_scale: f32,
    /// Added to the root.
    pub epsilon: f32,
}

impl AdamStep {
    /// Step `step` (from 1) of Adam (Kingma and Ba 2014, arXiv 1412.6980, algorithm 1).
    pub fn new(step: u64, learning_rate: f64, (beta1, beta2): (f64, f64), epsilon: f64) -> Self {
        let bias = |beta: f64| 1. - beta.powf(step as f64);
        Self {
            rate: (learning_rate / bias(beta1)) as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            second_scale: (1. / bias(beta2).sqrt()) as f32,
            epsilon: epsilon as f32,
        }
    }
}

vectorized! {
    /// One step of Adam on weights of one gradient, each of which is multiplied by `scale` first; moments are kept.
    pub fn adam<'a>(
        step: AdamStep,
        scale: f32,
        gradient: &'a [f32],
        first: &'a mut [f32],
        second: &'a mut [f32],
        weights: &'a mut [f32],
    ) {
        for (((w, g), m), v) in weights.iter_mut().zip(gradient).zip(first).zip(second) {
            let g = g * scale;
            *m = step.beta1 * *m + (1. - step.beta1) * g;
            *v = step.beta2 * *v + (1. - step.beta2) * (g * g);
            *w -= step.rate * *m / (v.sqrt() * step.second_scale + step.epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sparse(rows: &[Vec<(u32, f32)>], width: usize) -> SparseRows {
        let mut sparse = SparseRows::new(width);
        rows.iter().for_each(|row| sparse.push(row.iter().copied()));
        sparse
    }

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 101) % 23) as f32 - 11.).collect()
    }

    proptest! {
        #[test]
        fn products_agree_with_dense_ones(
            rows in prop::collection::vec(prop::collection::vec((0u32..9, -4i32..5), 0..7), 0..12),
            inner in 1usize..150,
        ) {
            let rows: Vec<Vec<(u32, f32)>> =
                rows.into_iter().map(|row| row.into_iter().map(|(c, v)| (c, v as f32)).collect()).collect();
            let codes = sparse(&rows, 9);
            let (dense, matrix, left) = (codes.dense(), numbers(9 * inner, 1), numbers(rows.len() * inner, 2));
            let mut out = vec![1.; rows.len() * inner];
            codes.add_product(&matrix, inner, &mut out);
            for (r, out) in out.chunks(inner).enumerate() {
                for (i, &out) in out.iter().enumerate() {
                    let expected: f32 = (0..9).map(|c| dense[r * 9 + c] * matrix[c * inner + i]).sum();
                    prop_assert_eq!(out, 1. + expected);
                }
            }
            let dots = codes.dots(&left, &matrix, inner);
            let mut at = 0;
            for r in 0..codes.rows() {
                for &column in codes.row(r).0 {
                    let expected: f32 = (0..inner).map(|i| left[r * inner + i] * matrix[column as usize * inner + i]).sum();
                    prop_assert_eq!(dots[at], expected);
                    at += 1;
                }
            }
            let by_column = codes.by_column();
            let mut seen = 0;
            for column in 0..9 {
                let (rows, entries) = by_column.column(column);
                seen += entries.len();
                for (&row, &entry) in rows.iter().zip(entries) {
                    prop_assert_eq!(codes.columns()[entry as usize] as usize, column);
                    prop_assert!((codes.starts[row as usize]..codes.starts[row as usize + 1]).contains(&(entry as usize)));
                }
            }
            prop_assert_eq!(seen, codes.entries());
        }
    }

    #[test]
    fn appended_and_filtered_rows_keep_their_entries() {
        let mut codes = sparse(&[vec![(0, 1.), (2, 2.)], vec![]], 3);
        codes.append(&sparse(&[vec![(1, 3.), (7, 4.)]], 3));
        assert_eq!(codes.dense(), [1., 0., 2., 0., 0., 0., 0., 3., 0.]);
        assert_eq!(codes.filtered(|column| column != 2).dense(), [1., 0., 0., 0., 0., 0., 0., 3., 0.]);
        codes.append(&SparseRows::new(4));
        assert_eq!((codes.rows(), codes.entries(), codes.width()), (3, 3, 3));
    }

    /// torch.optim.Adam(lr=0.1, betas=(0.9, 0.99)) on w = 1 with gradients 0.5, -0.2, 0.1.
    #[test]
    fn adam_follows_torch() {
        let (mut w, mut m, mut v) = ([1f32], [0f32], [0f32]);
        for (step, (gradient, expected)) in (1..).zip([(0.5f32, 0.9f32), (-0.2, 0.865_382_6), (0.1, 0.827_305_4)]) {
            adam(AdamStep::new(step, 0.1, (0.9, 0.99), 1e-8), 1., &[gradient], &mut m, &mut v, &mut w);
            assert!((w[0] - expected).abs() < 2e-6, "{} is not {expected}", w[0]);
        }
    }
}
