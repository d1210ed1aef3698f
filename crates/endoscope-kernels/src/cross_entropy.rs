//! The mean cross entropy of some rows of logits: one pass forward, one backward.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::simd::{Output, build, exp, sum, vectorized};
use crate::softmax::{largest, softmax_row};
use crate::storage::{is_fast, output, tensor, values, width, with_values};

/// The mean of `ln(sum(exp(x))) - x[target]` over `counted`, pairs of a row and its target: `[…, n] -> []`, in nats.
///
/// An error where nothing is counted, rows do not ascend, or a row or a target is not there.
pub fn cross_entropy(logits: &Tensor, counted: &[(usize, u32)]) -> Result<Tensor> {
    let width = width(logits.shape())?;
    let rows = logits.elem_count() / width.max(1);
    if counted.is_empty() || !counted.is_sorted_by(|a, b| a.0 < b.0) {
        bail!("a cross entropy needs rows that count, each once and in order; there are {}", counted.len());
    }
    if let Some((row, target)) = counted.iter().find(|&&(row, target)| row >= rows || target as usize >= width) {
        bail!("row {row} and target {target} are not among {rows} rows of {width} logits");
    }
    let logits = logits.reshape((rows, width))?;
    if is_fast(&logits) {
        return logits.contiguous()?.apply_op1(CrossEntropy { counted: counted.to_vec() });
    }
    let (rows, targets): (Vec<u32>, Vec<u32>) = counted.iter().map(|&(row, target)| (row as u32, target)).unzip();
    let rows = Tensor::from_vec(rows, counted.len(), logits.device())?;
    let targets = Tensor::from_vec(targets, (counted.len(), 1), logits.device())?;
    let logits = logits.contiguous()?.index_select(&rows, 0)?;
    (logits.log_sum_exp(D::Minus1)? - logits.gather(&targets, 1)?.squeeze(1)?)?.mean_all()
}

vectorized! {
    /// `ln(sum(exp(x)))`.
    fn log_sum_exp<'a>(x: &'a [f32]) -> f64 {
        let largest = largest(x);
        sum(x, |x| f64::from(exp(x - largest))).ln() + f64::from(largest)
    }
}

vectorized! {
    /// `dx = (softmax(x) - [at the target]) scale`, and 0 in rows that have none.
    fn backward<'a, 'o>(
        x: &'a [f32],
        targets: &'a [Option<u32>],
        width: usize,
        scale: f32,
        dx: Output<'o>,
    ) -> Output<'o> {
        let mut dx = dx;
        let mut row = vec![0.; width];
        for (x, target) in x.chunks_exact(width).zip(targets) {
            match target {
                None => dx.extend(std::iter::repeat_n(0., width)),
                Some(target) => {
                    row.copy_from_slice(x);
                    softmax_row(&mut row);
                    row[*target as usize] -= 1.;
                    dx.extend(row.iter().map(|x| x * scale));
                }
            }
        }
        dx
    }
}

struct CrossEntropy {
    counted: Vec<(usize, u32)>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width) = (values(storage, layout)?, width(layout.shape())?);
        let loss = |&(row, target): &(usize, u32)| {
            let x = &x[row * width..][..width];
            log_sum_exp(x) - f64::from(x[target as usize])
        };
        // Summed in order, so that threads change no bit.
        let losses: Vec<f64> = self.counted.par_iter().map(loss).collect();
        output(vec![(losses.iter().sum::<f64>() / losses.len() as f64) as f32], ())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = x.dims2()?;
        let scale = dy.to_scalar::<f32>()? / self.counted.len() as f32;
        let mut targets = vec![None; rows];
        self.counted.iter().for_each(|&(row, target)| targets[row] = Some(target));
        let dx = with_values([x], |[x]| {
            build(x.len(), width, width, |first, dx| {
                let rows = first..first + dx.len() / width;
                backward(&x[first * width..][..dx.len()], &targets[rows], width, scale, dx)
            })
        })?;
        tensor(dx, x.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, random, same_bits_on_any_threads};
    use candle_core::{DType, Device};

    /// Two of three rows, with their targets.
    fn counted(rows: usize, width: usize) -> Vec<(usize, u32)> {
        (0..rows).filter(|row| row % 3 != 1).map(|row| (row, (row * 7 % width) as u32)).collect()
    }

    #[test]
    fn agrees_with_the_composed_one_in_f64() {
        for (rows, width) in [(1, 1), (1, 5), (4, 16), (7, 37), (300, 300)] {
            let x = (random((rows, width), 1) * 10.).unwrap();
            let counted = counted(rows, width);
            let fused = cross_entropy(&x, &counted).unwrap();
            assert!(fused.dims().is_empty());
            let composed = cross_entropy(&x.to_dtype(DType::F64).unwrap(), &counted).unwrap();
            let (fused, composed) = (fused.to_scalar::<f32>().unwrap(), composed.to_scalar::<f64>().unwrap());
            assert!((f64::from(fused) - composed).abs() <= 3e-7 * composed.max(1.), "{fused} {composed}");
        }
    }

    #[test]
    fn nan_and_infinities() {
        let of = |row: [f32; 2]| {
            let x = Tensor::new(&[row], &Device::Cpu).unwrap();
            cross_entropy(&x, &[(0, 0)]).unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(of([f32::NAN, 0.]).is_nan() && of([0., f32::NAN]).is_nan() && of([f32::INFINITY, 0.]).is_nan());
        assert_eq!((of([0., f32::NEG_INFINITY]), of([f32::NEG_INFINITY, 0.])), (0., f32::INFINITY));
        // A row that does not count changes nothing.
        let x = Tensor::new(&[[0f32, 0.], [f32::NAN, 0.]], &Device::Cpu).unwrap();
        assert_eq!(cross_entropy(&x, &[(0, 1)]).unwrap().to_scalar::<f32>().unwrap(), 2f32.ln());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random((2, 3), 1);
        for counted in [vec![], vec![(2, 0)], vec![(0, 3)], vec![(1, 0), (0, 0)], vec![(0, 0), (0, 1)]] {
            assert!(cross_entropy(&x, &counted).is_err(), "{counted:?}");
        }
    }

    #[test]
    fn gradients() {
        check_gradients(&[&random((7, 37), 3)], 1e-6, |x| cross_entropy(&x[0], &counted(7, 37)));
        check_gradients(&[&random((37, 7), 3)], 1e-6, |x| cross_entropy(&x[0].t()?, &counted(7, 37)));
        check_gradients(&[&random((2, 3, 21), 3)], 1e-6, |x| cross_entropy(&x[0], &counted(6, 21)));
    }

    #[test]
    fn threads_change_no_bit() {
        same_bits_on_any_threads(&[&random((301, 333), 4)], |x| cross_entropy(&x[0], &counted(301, 333)));
    }
}
