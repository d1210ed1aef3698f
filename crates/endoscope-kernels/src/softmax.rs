//! Softmax over the last axis.
//!
//! A value below e^-87.3 of its row's largest is 0. NaN or plus infinity anywhere in a row makes the row NaN, and so
//! does a row of minus infinities, as in candle.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

use crate::simd::{LANES, Output, build, exp, sum, sum_pairs, vectorized};
use crate::storage::{is_fast, output, tensor, values, width, with_values};

/// `exp(x) / sum(exp(x))` over the last axis: `[…, n] -> […, n]`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    width(x.shape())?;
    match is_fast(x) {
        true => x.contiguous()?.apply_op1(Softmax),
        false => composed(x),
    }
}

fn composed(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    // What is subtracted cancels, so it needs no gradient.
    let powers = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

vectorized! {
    /// Rows of `width` values.
    fn forward<'a, 'o>(x: &'a [f32], width: usize, y: Output<'o>) -> Output<'o> {
        let mut y = y;
        let mut row = vec![0.; width];
        for x in x.chunks_exact(width) {
            row.copy_from_slice(x);
            softmax_row(&mut row);
            y.extend(row.iter().copied());
        }
        y
    }
}

/// One row, in place. Minus infinities at its end change no bit of what comes before.
#[inline(always)]
pub fn softmax_row(row: &mut [f32]) {
    let largest = largest(row);
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let factor = (1. / sum(row, f64::from)) as f32;
    for x in row {
        *x *= factor;
    }
}

/// The largest value, minus infinity if there is none but NaN.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, &x| if x > largest { x } else { largest })
}

vectorized! {
    /// `dx = y (dy - sum(dy y))`, over rows of `width` values.
    fn backward<'a, 'o>(y: &'a [f32], dy: &'a [f32], width: usize, dx: Output<'o>) -> Output<'o> {
        let mut dx = dx;
        for (y, dy) in y.chunks_exact(width).zip(dy.chunks_exact(width)) {
            let total = sum_pairs(y, dy, |y, dy| f64::from(y) * f64::from(dy)) as f32;
            dx.extend(y.iter().zip(dy).map(|(y, dy)| y * (dy - total)));
        }
        dx
    }
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width) = (values(storage, layout)?, width(layout.shape())?);
        let y = build(x.len(), width, width, |first, y| forward(&x[first * width..][..y.len()], width.max(1), y));
        output(y, layout.shape())
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let width = width(x.shape())?;
        let dx = with_values([y, dy], |[y, dy]| {
            build(y.len(), width, width, |first, dx| {
                let (y, dy) = (&y[first * width..][..dx.len()], &dy[first * width..][..dx.len()]);
                backward(y, dy, width.max(1), dx)
            })
        })?;
        tensor(dx, x.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, floats, random, same_bits_on_any_threads};
    use candle_core::Device;
    use proptest::prelude::*;

    fn reference(row: &[f32]) -> Vec<f64> {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = row.iter().map(|&x| f64::from(x - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    }

    fn of(row: &[f32]) -> Vec<f32> {
        floats(&softmax(&Tensor::new(row, &Device::Cpu).unwrap()).unwrap())
    }

    proptest! {
        #[test]
        fn agrees_with_f64(
            row in prop::collection::vec(prop_oneof![8 => -120f32..120., 1 => Just(f32::NEG_INFINITY)], 1..200),
        ) {
            prop_assume!(row.iter().any(|x| x.is_finite()));
            for (y, expected) in of(&row).into_iter().zip(reference(&row)) {
                prop_assert!((f64::from(y) - expected).abs() <= 5e-7 * expected + 2e-38, "{y} {expected}");
            }
        }
    }

    #[test]
    fn long_rows_stay_accurate() {
        let row = floats(&random(50_257, 1));
        for (y, expected) in of(&row).into_iter().zip(reference(&row)) {
            assert!((f64::from(y) - expected).abs() <= 5e-7 * expected);
        }
    }

    #[test]
    fn infinities_and_nan() {
        const NONE: f32 = f32::NEG_INFINITY;
        assert_eq!(of(&[NONE, 3., NONE]), [0., 1., 0.]);
        assert_eq!(of(&[-1e30, 0.]), [0., 1.]);
        for length in [1, 2, 15, 16, 17, 40] {
            assert!(of(&vec![NONE; length]).iter().all(|y| y.is_nan()));
            for poison in [f32::NAN, f32::INFINITY] {
                let mut row = vec![1.; length];
                row[length - 1] = poison;
                assert!(of(&row).iter().all(|y| y.is_nan()), "{length} {poison}");
            }
        }
        // One row's NaN stays in that row.
        let x = Tensor::new(&[[f32::NAN, 0.], [0., 0.]], &Device::Cpu).unwrap();
        let y = softmax(&x).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[0].iter().all(|y| y.is_nan()) && y[1] == [0.5, 0.5]);
    }

    #[test]
    fn shapes() {
        for shape in [(0, 3), (3, 0), (1, 1), (5, 16), (4, 37)] {
            let x = random(shape, 2);
            for x in [x.clone(), x.t().unwrap()] {
                let y = softmax(&x).unwrap();
                assert_eq!(y.shape(), x.shape());
                let contiguous = softmax(&x.contiguous().unwrap()).unwrap();
                assert_eq!(floats(&y), floats(&contiguous));
            }
        }
        assert!(softmax(&Tensor::new(1f32, &Device::Cpu).unwrap()).is_err());
    }

    #[test]
    fn gradients() {
        check_gradients(&[&random((3, 4, 21), 3)], 1e-6, |x| softmax(&x[0]));
        check_gradients(&[&random((21, 4), 3)], 1e-6, |x| softmax(&x[0].t()?));
    }

    #[test]
    fn threads_change_no_bit() {
        same_bits_on_any_threads(&[&random((301, 333), 4)], |x| softmax(&x[0]));
    }
}
