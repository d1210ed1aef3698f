//! Matrices packed for products: a weight is packed once and multiplied many times.
//!
//! The columns are cut into panels of [`PANEL`]; a panel holds its rows one after the other, so that a product reads it
//! from front to back, whether for one row (decoding, at the memory's speed) or for hundreds. Values are kept as f32,
//! bf16, f16, or 8-bit integers (`packing.rs`); sums are always f32.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::packing::{self, Panels, Precision};
use crate::storage::{is_fast, output, tensor, values, with_values};
use crate::tile::{BLOCK, Bytes, Halves, PANEL, Panel, ROWS, Rows, Shared, Singles, Sums, UpperHalves, tile};

/// Rows of the inner axis that are multiplied before the next: with a dozen rows of the left side they fit a first-level cache.
const DEPTH: usize = 384;

/// Rows of the left side that stay in a second-level cache.
const HEIGHT: usize = 240;

/// How many multiply-adds one thread does alone: fewer are not worth waking another.
const ALONE: usize = 1 << 17;

/// A matrix `[inner, columns]`, the right side of a product.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    inner: usize,
    columns: usize,
    panels: Panels,
}

/// What is added to a product: first a bias to every row, then a matrix of the product's shape.
#[derive(Debug, Clone, Copy, Default)]
struct Added<'a> {
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
}

impl PackedMatrix {
    /// Packs `value(row, column)`.
    pub fn pack(
        inner: usize,
        columns: usize,
        precision: Precision,
        value: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        Self { inner, columns, panels: packing::pack(inner, columns, precision, value) }
    }

    /// Packs matrices whose columns are written one after the other: `read(range, into)` gives the columns `range`,
    /// `[range, inner]`, and each part is ranges of them.
    ///
    /// What is read is not held: a few columns for each thread at a time.
    pub fn read_columns<E: Send>(
        inner: usize,
        parts: &[Vec<Range<usize>>],
        precision: Precision,
        read: impl Fn(Range<usize>, &mut [f32]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Vec<Self>, E> {
        let part = |part: &Vec<Range<usize>>| {
            let panels = packing::pack_columns(inner, part, precision, &read)?;
            Ok(Self { inner, columns: packing::length(part), panels })
        };
        parts.iter().map(part).collect()
    }

    /// Packs matrices whose rows are written one after the other: `read(range, into)` gives the rows `range`,
    /// `[range, width]`, and each part is ranges of their columns.
    ///
    /// What is read is not held: some rows at a time.
    pub fn read_rows<E: Send>(
        inner: usize,
        width: usize,
        parts: &[Vec<Range<usize>>],
        precision: Precision,
        read: impl Fn(Range<usize>, &mut [f32]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Vec<Self>, E> {
        let panels = packing::pack_rows(inner, width, parts, precision, &read)?;
        let whole = |(part, panels): (&Vec<_>, _)| Self { inner, columns: packing::length(part), panels };
        Ok(parts.iter().zip(panels).map(whole).collect())
    }

    /// Packs a tensor `[inner, columns]` of f32 on the CPU, of any strides.
    pub fn from_tensor(weight: &Tensor, precision: Precision) -> Result<Self> {
        let (inner, columns) = weight.dims2()?;
        if !is_fast(weight) {
            bail!("only f32 matrices on the CPU are packed");
        }
        let (storage, layout) = weight.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { bail!("only matrices on the CPU are packed") };
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
        let [down, across] = layout.stride() else { bail!("a matrix has two axes") };
        let (down, across) = (*down, *across);
        Ok(Self::pack(inner, columns, precision, |k, column| values[k * down + column * across]))
    }

    /// The length of the axis that is summed over.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How values are kept.
    pub fn precision(&self) -> Precision {
        self.panels.precision()
    }

    /// How much memory it takes.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// One value as it is multiplied.
    fn value(&self, k: usize, column: usize) -> f32 {
        self.panels.value(self.inner, k, column)
    }

    /// The matrix as it is multiplied: a tensor `[inner, columns]` of f32.
    pub fn unpack(&self) -> Result<Tensor> {
        let values: Vec<f32> = (0..self.inner)
            .into_par_iter()
            .flat_map_iter(|k| (0..self.columns).map(move |column| self.value(k, column)))
            .collect();
        Tensor::from_vec(values, (self.inner, self.columns), &candle_core::Device::Cpu)
    }

    /// The columns at `indices`, one after the other: `[indices, inner]`. (The rows of an embedding that is the unembedding transposed.)
    pub fn gather(&self, indices: &[u32]) -> Result<Tensor> {
        self.check_columns(indices)?;
        let mut values = Vec::with_capacity(indices.len() * self.inner);
        for &column in indices {
            values.extend((0..self.inner).map(|k| self.value(k, column as usize)));
        }
        Tensor::from_vec(values, (indices.len(), self.inner), &candle_core::Device::Cpu)
    }

    /// The matrix of the columns at `indices`, in that order; products with it have the bits of those with the whole.
    pub fn select(&self, indices: &[u32]) -> Result<Self> {
        self.check_columns(indices)?;
        Ok(Self::pack(self.inner, indices.len(), Precision::F32, |k, at| self.value(k, indices[at] as usize)))
    }

    fn check_columns(&self, indices: &[u32]) -> Result<()> {
        match indices.iter().find(|&&at| at as usize >= self.columns) {
            Some(at) => bail!("column {at} is out of range: there are {}", self.columns),
            None => Ok(()),
        }
    }

    /// `x W (+ bias) (+ residual)`: `[…, inner] -> […, columns]`, with `residual` of the result's shape.
    ///
    /// Differentiable with respect to `x` and `residual`.
    pub fn product(
        self: &std::sync::Arc<Self>,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let rows = x.elem_count() / self.inner.max(1);
        if x.dims().last() != Some(&self.inner) {
            bail!("{:?} cannot be multiplied by a matrix of {} rows", x.dims(), self.inner);
        }
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.columns;
        }
        let bias = match bias {
            Some(bias) if bias.dims() != [self.columns] => {
                bail!("a bias of shape {:?} does not fit {} columns", bias.dims(), self.columns)
            }
            Some(bias) => Some(with_values([bias], |[bias]| bias.to_vec())?),
            None => None,
        };
        let product = Product { matrix: self.clone(), bias, rows };
        let x = x.contiguous()?;
        match residual {
            None => x.apply_op1(product)?.reshape(shape),
            Some(residual) if residual.dims() != shape => {
                bail!("a residual of shape {:?} does not fit a product of shape {shape:?}", residual.dims())
            }
            Some(residual) => x.apply_op2(&residual.contiguous()?, product)?.reshape(shape),
        }
    }

    /// `x W[range]`: `[rows, range] -> [rows, columns]`, with only these of the matrix's rows.
    ///
    /// What one head, or some neurons, write to the residual stream. Has no gradient.
    pub fn product_of_part(&self, x: &Tensor, range: Range<usize>) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        if width != range.len() || range.end > self.inner {
            bail!("{width} columns do not fit the rows {range:?} of {}", self.inner);
        }
        let values = with_values([x], |[x]| self.multiply(Rows::new(x, width), rows, range, Added::default()))?;
        tensor(values, &Shape::from((rows, self.columns)))
    }

    /// `x W + bias` of rows one after the other: `[rows, inner] -> [rows, columns]`. For what keeps its numbers in slices
    /// instead of tensors; has no gradient.
    pub fn product_of_rows(&self, x: &[f32], bias: &[f32]) -> Result<Vec<f32>> {
        let rows = x.len() / self.inner.max(1);
        if x.len() != rows * self.inner || bias.len() != self.columns {
            let (inner, columns) = (self.inner, self.columns);
            bail!(
                "{} values and a bias of {} do not fit a matrix of {inner} rows, {columns} columns",
                x.len(),
                bias.len()
            );
        }
        let added = Added { bias: Some(bias), residual: None };
        Ok(self.multiply(Rows::new(x, self.inner), rows, 0..self.inner, added))
    }

    fn multiply(&self, x: Rows<'_>, rows: usize, range: Range<usize>, added: Added<'_>) -> Vec<f32> {
        let length = rows * self.columns;
        let mut values: Vec<f32> = Vec::with_capacity(length);
        let whole = Shared::uninit(&mut values.spare_capacity_mut()[..length]);
        let panels = self.columns.div_ceil(PANEL);
        let work = rows * range.len().max(1) * PANEL;
        // A task is big enough to be worth a thread and small enough that the last ones end together.
        let threads = rayon::current_num_threads();
        let per_task = (ALONE / work.max(1)).max(panels / (4 * threads)).max(1);
        let tasks = panels.div_ceil(per_task.max(1));
        let task = |at: usize| {
            let panels = at * per_task..((at + 1) * per_task).min(panels);
            pulp::Arch::new().dispatch(Task { matrix: self, x, rows, range: range.clone(), added, panels, whole });
        };
        if tasks <= 1 || threads == 1 {
            (0..tasks).for_each(task);
        } else {
            (0..tasks).into_par_iter().with_max_len(1).for_each(task);
        }
        // SAFETY: every row of every panel has been written, and the panels cover all columns.
        #[expect(unsafe_code, reason = "safe Rust cannot fill a vector's spare room column by column")]
        unsafe {
            values.set_len(length);
        }
        values
    }
}

/// Some panels of a product.
struct Task<'a> {
    matrix: &'a PackedMatrix,
    x: Rows<'a>,
    rows: usize,
    range: Range<usize>,
    added: Added<'a>,
    panels: Range<usize>,
    whole: Shared,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { matrix, x, rows, range, added, panels, whole } = self;
        for top in (0..rows).step_by(HEIGHT) {
            let bottom = (top + HEIGHT).min(rows);
            let mut k = range.start;
            loop {
                let end = (k + DEPTH).min(range.end);
                for panel in panels.clone() {
                    let strip = Strip {
                        x: x.from(top, k - range.start),
                        first: top,
                        rows: bottom - top,
                        columns: matrix.columns,
                        panel,
                        resume: k > range.start,
                        last: (end == range.end).then_some(added),
                    };
                    let inner = matrix.inner;
                    let start = panel * inner;
                    match &matrix.panels {
                        Panels::F32(lines) => {
                            strip.run(simd, Singles(&lines[2 * (start + k)..2 * (start + end)]), whole)
                        }
                        Panels::Bf16(lines) => strip.run(simd, UpperHalves(&lines[start + k..start + end]), whole),
                        Panels::F16(lines) => strip.run(simd, Halves(&lines[start + k..start + end]), whole),
                        Panels::Int8 { bytes, scales } => {
                            let (pairs, blocks) = (inner.div_ceil(2), 2 * inner.div_ceil(BLOCK));
                            let bytes = &bytes[panel * pairs..][..pairs];
                            let scales = &scales[panel * blocks..][..blocks];
                            strip.run(simd, Bytes::new(bytes, scales, k, end - k), whole);
                        }
                    }
                }
                k = end;
                if k >= range.end {
                    break;
                }
            }
        }
    }
}

/// Some rows of one panel of a product, over a part of the inner axis.
struct Strip<'a> {
    x: Rows<'a>,
    first: usize,
    rows: usize,
    columns: usize,
    panel: usize,
    resume: bool,
    /// What is added once the sums are complete.
    last: Option<Added<'a>>,
}

impl Strip<'_> {
    #[inline(always)]
    fn run<S: Simd, P: Panel>(self, simd: S, b: P, whole: Shared) {
        let Self { x, first, rows, columns, panel, resume, last } = self;
        let width = (columns - panel * PANEL).min(PANEL);
        for row in (0..rows).step_by(ROWS) {
            let count = (rows - row).min(ROWS);
            let start = (first + row) * columns + panel * PANEL;
            // SAFETY: `start` is a cell of the product, whose capacity is `all rows * columns`; the `count` rows of
            // `width` values from there on belong to this task's panel alone, and are initialised once `resume` holds,
            // since the first part of the inner axis writes them all.
            #[expect(unsafe_code, reason = "the cells of one panel are not one slice")]
            unsafe {
                let cells = whole.cell(start, (count - 1) * columns + width);
                if width == PANEL {
                    tile(simd, count, x.from(row, 0), b, Sums { start: cells, stride: columns, resume });
                } else {
                    let mut edge = [[0f32; PANEL]; ROWS];
                    if resume {
                        for (i, edge) in edge.iter_mut().enumerate().take(count) {
                            std::ptr::copy_nonoverlapping(cells.add(i * columns), edge.as_mut_ptr(), width);
                        }
                    }
                    let start = edge.as_mut_ptr().cast::<f32>();
                    tile(simd, count, x.from(row, 0), b, Sums { start, stride: PANEL, resume });
                    for (i, edge) in edge.iter().enumerate().take(count) {
                        std::ptr::copy_nonoverlapping(edge.as_ptr(), cells.add(i * columns), width);
                    }
                }
                if let Some(Added { bias, residual }) = last {
                    for i in 0..count {
                        let cells = std::slice::from_raw_parts_mut(cells.add(i * columns), width);
                        if let Some(bias) = bias {
                            cells
                                .iter_mut()
                                .zip(&bias[panel * PANEL..][..width])
                                .for_each(|(cell, bias)| *cell += bias);
                        }
                        if let Some(residual) = residual {
                            let residual = &residual[start + i * columns..][..width];
                            cells.iter_mut().zip(residual).for_each(|(cell, residual)| *cell += residual);
                        }
                    }
                }
            }
        }
    }
}

struct Product {
    matrix: std::sync::Arc<PackedMatrix>,
    bias: Option<Vec<f32>>,
    rows: usize,
}

impl Product {
    fn forward(&self, x: &[f32], residual: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let Self { matrix, bias, rows } = self;
        let added = Added { bias: bias.as_deref(), residual };
        let values = matrix.multiply(Rows::new(x, matrix.inner), *rows, 0..matrix.inner, added);
        output(values, (*rows, matrix.columns))
    }

    fn gradient(&self, x: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let dy = dy.reshape((self.rows, self.matrix.columns))?;
        dy.matmul(&self.matrix.unpack()?.t()?)?.reshape(x.shape()).map(Some)
    }
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(values(s1, l1)?, None)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        self.gradient(x, dy)
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product_and_residual"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(values(s1, l1)?, Some(values(s2, l2)?))
    }

    fn bwd(&self, x: &Tensor, residual: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let through = match residual.track_op() {
            true => Some(dy.reshape(residual.shape())?),
            false => None,
        };
        Ok((self.gradient(x, dy)?, through))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, floats, random};
    use proptest::prelude::*;
    use std::sync::Arc;

    const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::Bf16, Precision::F16, Precision::Int8];

    /// The chain of fused multiply-adds that defines a product.
    fn reference(x: &Tensor, w: &Tensor) -> Vec<f32> {
        let (rows, inner) = x.dims2().unwrap();
        let columns = w.dim(1).unwrap();
        let (x, w) = (floats(x), floats(w));
        let cell =
            |i: usize, j: usize| (0..inner).fold(0f32, |sum, k| x[i * inner + k].mul_add(w[k * columns + j], sum));
        (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|(i, j)| cell(i, j)).collect()
    }

    fn same(a: &[f32], b: &[f32]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn has_the_bits_of_the_chain(
            rows in 0usize..30, inner in 0usize..100, columns in 0usize..100, long in any::<bool>(), seed in any::<u64>(),
        ) {
            let inner = if long { inner + 380 } else { inner };
            let (x, w) = (random((rows, inner), seed), random((inner, columns), !seed));
            for precision in PRECISIONS {
                let packed = Arc::new(PackedMatrix::from_tensor(&w, precision).unwrap());
                let stored = packed.unpack().unwrap();
                prop_assert_eq!(stored.dims(), w.dims());
                let product = packed.multiply(Rows::new(&floats(&x), inner), rows, 0..inner, Added::default());
                prop_assert!(same(&product, &reference(&x, &stored)), "{:?}", precision);
            }
        }

    }

    #[test]
    fn each_precision_keeps_what_it_promises() {
        let w = random((100, 70), 1);
        let kept = |precision| floats(&PackedMatrix::from_tensor(&w, precision).unwrap().unpack().unwrap());
        let w = floats(&w);
        assert_eq!(kept(Precision::F32), w);
        let within = |kept: Vec<f32>, bound: &dyn Fn(f32) -> f32| {
            for (kept, w) in kept.iter().zip(&w) {
                assert!((kept - w).abs() <= bound(*w), "{kept} {w}");
            }
        };
        within(kept(Precision::Bf16), &|w| w.abs() / 256.);
        // Half of the last of 11 bits, or of the least subnormal.
        within(kept(Precision::F16), &|w| (w.abs() / 2048.).max(3e-8));
        // Half a step, of which the largest of a block (below 4) has 127; the scale itself is rounded to f16.
        within(kept(Precision::Int8), &|_| 4. / 127. * 0.51);
    }

    #[test]
    fn every_16_bit_number_is_multiplied_as_it_is() {
        let device = candle_core::Device::Cpu;
        let f16 = |bits| half::f16::from_bits(bits).to_f32();
        let bf16 = |bits| half::bf16::from_bits(bits).to_f32();
        for (precision, widen) in [(Precision::F16, &f16 as &dyn Fn(u16) -> f32), (Precision::Bf16, &bf16)] {
            let all: Vec<f32> = (0..=u16::MAX).map(widen).filter(|x| x.is_finite()).collect();
            let count = all.len();
            let w = Tensor::from_vec(all.clone(), (1, count), &device).unwrap();
            let packed = Arc::new(PackedMatrix::from_tensor(&w, precision).unwrap());
            assert_eq!(floats(&packed.unpack().unwrap()), all);
            let one = Tensor::new(&[[1f32]], &device).unwrap();
            assert_eq!(floats(&packed.product(&one, None, None).unwrap()), all, "{precision:?}");
        }
        let w = Tensor::new(&[[1e5f32, -1e5]], &device).unwrap();
        let beyond = PackedMatrix::from_tensor(&w, Precision::F16).unwrap().unpack().unwrap();
        assert_eq!(floats(&beyond), [65504., -65504.]);
    }

    #[test]
    fn transposed_and_narrowed_weights_are_packed_as_they_are_seen() {
        let w = random((50, 41), 2);
        let seen = w.t().unwrap().narrow(1, 3, 40).unwrap();
        let packed = PackedMatrix::from_tensor(&seen, Precision::F32).unwrap();
        assert_eq!(bits(&packed.unpack().unwrap()), bits(&seen));
        assert!(PackedMatrix::from_tensor(&w.to_dtype(candle_core::DType::F64).unwrap(), Precision::F32).is_err());
    }

    #[test]
    fn a_row_has_the_bits_of_that_row_alone_and_a_column_too() {
        let (x, w) = (random((29, 400), 3), random((400, 75), 4));
        let packed = Arc::new(PackedMatrix::from_tensor(&w, Precision::F32).unwrap());
        let whole = floats(&packed.product(&x, None, None).unwrap());
        for row in [0, 11, 12, 28] {
            let alone = floats(&packed.product(&x.narrow(0, row, 1).unwrap(), None, None).unwrap());
            assert!(same(&alone, &whole[row * 75..][..75]));
        }
        let few =
            Arc::new(packed.select(&[74, 0, 33]).unwrap()).product(&x, None, None).unwrap().to_vec2::<f32>().unwrap();
        for (row, few) in few.iter().enumerate() {
            assert!(same(few, &[74, 0, 33].map(|column| whole[row * 75 + column])));
        }
        assert_eq!(
            floats(&packed.gather(&[74, 0]).unwrap()),
            floats(
                &w.t()
                    .unwrap()
                    .contiguous()
                    .unwrap()
                    .index_select(&Tensor::new(&[74u32, 0], &candle_core::Device::Cpu).unwrap(), 0)
                    .unwrap()
            )
        );
        assert!(packed.select(&[75]).is_err() && packed.gather(&[75]).is_err());
    }

    #[test]
    fn bias_and_residual_are_added_in_this_order() {
        let (x, w) = (random((2, 3, 20), 5), random((20, 37), 6));
        let (bias, residual) = (random(37, 7), random((2, 3, 37), 8));
        let packed = Arc::new(PackedMatrix::from_tensor(&w, Precision::F32).unwrap());
        let plain = packed.product(&x, None, None).unwrap();
        let with_bias = packed.product(&x, Some(&bias), None).unwrap();
        assert_eq!(bits(&with_bias), bits(&plain.broadcast_add(&bias).unwrap()));
        let with_both = packed.product(&x, Some(&bias), Some(&residual)).unwrap();
        assert_eq!(bits(&with_both), bits(&(with_bias + &residual).unwrap()));
        assert!(packed.product(&x, Some(&random(36, 7)), None).is_err());
        assert!(packed.product(&x, None, Some(&x)).is_err());
        assert!(packed.product(&residual, None, None).is_err());
    }

    #[test]
    fn a_part_of_the_inner_axis() {
        let (x, w) = (random((7, 16), 9), random((64, 40), 10));
        let packed = PackedMatrix::from_tensor(&w, Precision::F32).unwrap();
        let part = packed.product_of_part(&x, 32..48).unwrap();
        assert!(packed.product_of_part(&x, 56..72).is_err() && packed.product_of_part(&x, 0..15).is_err());
        assert!(same(&floats(&part), &reference(&x, &w.narrow(0, 32, 16).unwrap().contiguous().unwrap())));
    }

    #[test]
    fn gradients() {
        let w = random((20, 37), 11);
        let packed = Arc::new(PackedMatrix::from_tensor(&w, Precision::F32).unwrap());
        // The checker wants the composed f64 version too: it is the one taken for what is not packed.
        crate::testing::check_gradients(&[&random((2, 3, 20), 12), &random((2, 3, 37), 13)], 1e-5, |x| {
            match is_fast(&x[0]) {
                true => packed.product(&x[0], None, Some(&x[1])),
                false => x[0].broadcast_matmul(&w.to_dtype(x[0].dtype())?)? + &x[1],
            }
        });
    }

    #[test]
    fn nan_and_infinity_stay_in_their_row_and_column() {
        let mut x = vec![1f32; 3 * 50];
        x[50 + 7] = f32::NAN;
        let mut w = vec![1f32; 50 * 40];
        w[40 + 33] = f32::INFINITY;
        let device = candle_core::Device::Cpu;
        let w = Tensor::from_vec(w, (50, 40), &device).unwrap();
        let packed = Arc::new(PackedMatrix::from_tensor(&w, Precision::F32).unwrap());
        let y = packed.product(&Tensor::from_vec(x, (3, 50), &device).unwrap(), None, None).unwrap();
        let y = y.to_vec2::<f32>().unwrap();
        assert!(y[1].iter().all(|y| y.is_nan()));
        assert!(y[0].iter().enumerate().all(|(column, &y)| if column == 33 { y == f32::INFINITY } else { y == 50. }));
    }

    #[test]
    fn threads_change_no_bit() {
        let (x, w) = (random((300, 400), 14), random((400, 500), 15));
        let packed = Arc::new(PackedMatrix::from_tensor(&w, Precision::F32).unwrap());
        crate::testing::same_bits_on_any_threads(&[&x], |x| packed.product(&x[0], None, None));
    }
}
