//! A vector added to every row.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::simd::{Output, build, vectorized};
use crate::storage::{check_vector, is_fast, output, tensor, values, with_values};

/// `x + bias`: `[…, n], [n] -> […, n]`, bit for bit candle's `broadcast_add`.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    check_vector("a bias", x.shape(), bias.shape())?;
    // Only the gradient of the bias is slow in candle.
    match bias.track_op() && is_fast(x) && is_fast(bias) {
        true => x.contiguous()?.apply_op2(&bias.contiguous()?, AddBias),
        false => x.broadcast_add(bias),
    }
}

vectorized! {
    fn forward<'a, 'o>(x: &'a [f32], bias: &'a [f32], y: Output<'o>) -> Output<'o> {
        let mut y = y;
        for x in x.chunks_exact(bias.len().max(1)) {
            y.extend(x.iter().zip(bias).map(|(x, bias)| x + bias));
        }
        y
    }
}

/// How many columns one task sums: its sums stay in registers.
const COLUMNS: usize = 64;

vectorized! {
    /// `out[i]` = the sum of column `first + i`, from the first row to the last.
    fn sum_columns<'a>(x: &'a [f32], width: usize, first: usize, out: &'a mut [f32]) {
        let mut sums = [0f64; COLUMNS];
        let sums = &mut sums[..out.len()];
        for row in x.chunks_exact(width) {
            for (sum, &x) in sums.iter_mut().zip(&row[first..]) {
                *sum += f64::from(x);
            }
        }
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            *out = sum as f32;
        }
    }
}

/// The sums of the columns, kept in f64: `[rows, width] -> [width]`.
pub(crate) fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.; width];
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(task, out)| sum_columns(x, width, task * COLUMNS, out));
    sums
}

struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = (values(s1, l1)?, values(s2, l2)?);
        let width = bias.len();
        let y = build(x.len(), width, width, |first, y| forward(&x[first * width..][..y.len()], bias, y));
        output(y, l1.shape())
    }

    fn bwd(&self, x: &Tensor, bias: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dbias = match bias.track_op() {
            true => Some(tensor(with_values([dy], |[dy]| column_sums(dy, bias.elem_count()))?, bias.shape())?),
            false => None,
        };
        Ok((x.track_op().then(|| dy.clone()), dbias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, check_gradients, random, same_bits_on_any_threads};

    #[test]
    fn has_the_bits_of_candles_sum() {
        for shape in [(0, 3), (3, 0), (1, 1), (5, 17), (300, 129)] {
            let x = random(shape, 1);
            for x in [x.clone(), x.t().unwrap()] {
                let bias = random(x.dim(1).unwrap(), 2);
                assert_eq!(bits(&add_bias(&x, &bias).unwrap()), bits(&x.broadcast_add(&bias).unwrap()));
            }
        }
        let error = add_bias(&random((2, 3), 1), &random((1, 3), 1)).unwrap_err().to_string();
        assert!(error.contains("[1, 3]") && error.contains("[2, 3]"), "{error}");
    }

    #[test]
    fn gradients() {
        check_gradients(&[&random((2, 3, 70), 3), &random(70, 4)], 1e-6, |x| add_bias(&x[0], &x[1]));
    }

    #[test]
    fn threads_change_no_bit() {
        same_bits_on_any_threads(&[&random((600, 129), 5), &random(129, 6)], |x| add_bias(&x[0], &x[1]));
    }
}
