//! The largest values of each row.

use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use rayon::prelude::*;
use std::cmp::Ordering;

use crate::simd::{rows_per_task, vectorized};
use crate::storage::{is_fast, width, with_values};

/// The `k` largest values of each row and where they are: `[…, n] -> […, k], u32 […, k]`.
///
/// Largest first; of equal values the one with the lowest index first; NaN after everything else, minus infinity
/// included. It has no gradient: to differentiate, gather `x` at the indices.
pub fn top_k(x: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let width = width(x.shape())?;
    if k > width {
        bail!("the {k} largest of {width} values were asked for (shape {:?})", x.shape());
    }
    let (values, indices) = match x.dtype() {
        DType::F32 if is_fast(x) => {
            let (values, indices) = with_values([x], |[x]| rows(x, width, k, some_beats_f32))?;
            (Tensor::from_vec(values, shape(x, k), &Device::Cpu)?, indices)
        }
        DType::F32 | DType::F16 | DType::BF16 => slow::<f32>(x, width, k)?,
        DType::F64 => slow::<f64>(x, width, k)?,
        other => bail!("top_k orders floating-point values, not {other:?}"),
    };
    Ok((values, Tensor::from_vec(indices, shape(x, k), x.device())?))
}

/// The `k` largest values of one row with their indices, in the order of [`top_k`]; all of them where there are fewer.
pub fn top_k_of_row(row: &[f32], k: usize) -> Vec<(f32, u32)> {
    match k.min(row.len()) {
        0 => Vec::new(),
        k => row_top(row, k, some_beats_f32),
    }
}

fn shape(x: &Tensor, k: usize) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = k;
    }
    dims
}

/// Other dtypes and devices: the same on the CPU, in a dtype that holds every value.
fn slow<T: WithDType + PartialOrd + Sync>(x: &Tensor, width: usize, k: usize) -> Result<(Tensor, Vec<u32>)> {
    let flat = x.detach().to_device(&Device::Cpu)?.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?;
    let (values, indices) = rows(&flat, width, k, |chunk, least| chunk.iter().any(|&x| beats(x, least)));
    let values = Tensor::from_vec(values, shape(x, k), &Device::Cpu)?;
    Ok((values.to_dtype(x.dtype())?.to_device(x.device())?, indices))
}

/// How many values are looked at together: most of them hold nothing that is large enough.
const CHUNK: usize = 128;

/// Whether a later `x` displaces `least`: it is larger, or a number where `least` is NaN.
#[inline(always)]
#[expect(clippy::neg_cmp_op_on_partial_ord, clippy::eq_op, reason = "NaN compares false")]
fn beats<T: PartialOrd + Copy>(x: T, least: T) -> bool {
    !(x <= least) & (x == x)
}

vectorized! {
    fn some_beats_f32<'a>(chunk: &'a [f32], least: f32) -> bool {
        chunk.iter().fold(false, |some, &x| some | beats(x, least))
    }
}

/// Larger first, then lower index; NaN last.
fn order<T: PartialOrd>((a, at_a): &(T, u32), (b, at_b): &(T, u32)) -> Ordering {
    let by_value = b.partial_cmp(a).unwrap_or_else(|| {
        let is_nan = |x: &T| x.partial_cmp(x).is_none();
        is_nan(a).cmp(&is_nan(b))
    });
    by_value.then(at_a.cmp(at_b))
}

fn rows<T: PartialOrd + Copy + Send + Sync>(
    x: &[T],
    width: usize,
    k: usize,
    some_beats: impl Fn(&[T], T) -> bool + Sync,
) -> (Vec<T>, Vec<u32>) {
    if k == 0 || x.is_empty() {
        return Default::default();
    }
    let tops: Vec<Vec<(T, u32)>> =
        x.par_chunks(width).with_min_len(rows_per_task(width)).map(|row| row_top(row, k, &some_beats)).collect();
    tops.into_iter().flatten().unzip()
}

/// Keeps candidates: whatever beats the least of the k largest seen so far, cut back to k when there are twice as many.
fn row_top<T: PartialOrd + Copy>(row: &[T], k: usize, some_beats: impl Fn(&[T], T) -> bool) -> Vec<(T, u32)> {
    let mut candidates: Vec<(T, u32)> = row[..k].iter().copied().zip(0..).collect();
    let cut = |candidates: &mut Vec<(T, u32)>| {
        if candidates.len() > k {
            candidates.select_nth_unstable_by(k - 1, order);
            candidates.truncate(k);
        }
    };
    let Some(&(mut least, _)) = candidates.iter().max_by(|a, b| order(a, b)) else { return candidates };
    let most = 2 * k + CHUNK;
    for (chunk, first) in row[k..].chunks(CHUNK).zip((k..).step_by(CHUNK)) {
        if !some_beats(chunk, least) {
            continue;
        }
        let found = chunk.iter().zip(first as u32..).filter(|&(&x, _)| beats(x, least));
        candidates.extend(found.map(|(&x, at)| (x, at)));
        if candidates.len() >= most {
            cut(&mut candidates);
            least = candidates[k - 1].0;
        }
    }
    cut(&mut candidates);
    candidates.sort_unstable_by(order);
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, random};
    use proptest::prelude::*;

    /// Sorts the whole row, stably.
    fn reference(row: &[f32], k: usize) -> Vec<u32> {
        let mut indices: Vec<u32> = (0..row.len() as u32).collect();
        let key = |&at: &u32| row[at as usize];
        indices.sort_by(|a, b| match (key(a).is_nan(), key(b).is_nan()) {
            (false, false) => key(b).partial_cmp(&key(a)).unwrap(),
            (a, b) => a.cmp(&b),
        });
        indices.truncate(k);
        indices
    }

    fn check(row: &[f32], k: usize) {
        let x = Tensor::new(row, &Device::Cpu).unwrap();
        let expected = reference(row, k);
        for dtype in [DType::F32, DType::F64] {
            let (values, indices) = top_k(&x.to_dtype(dtype).unwrap(), k).unwrap();
            assert_eq!(indices.to_vec1::<u32>().unwrap(), expected);
            let wanted: Vec<u32> = expected.iter().map(|&at| row[at as usize].to_bits()).collect();
            if row.iter().all(|x| !x.is_nan()) {
                assert_eq!(bits(&values.to_dtype(DType::F32).unwrap()), wanted);
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_whole_sort(
            row in prop::collection::vec(
                prop_oneof![
                    6 => (-5i32..5).prop_map(|x| x as f32),
                    6 => -5f32..5.,
                    1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0., -0.]),
                ],
                0..700,
            ),
            k in 0usize..300,
        ) {
            check(&row, k.min(row.len()));
        }
    }

    #[test]
    fn rising_falling_equal_and_nan_rows() {
        for length in [1usize, 127, 128, 129, 5000] {
            for k in [0, 1, 2, length / 2, length] {
                let k = k.min(length);
                check(&(0..length).map(|i| i as f32).collect::<Vec<_>>(), k);
                check(&(0..length).map(|i| -(i as f32)).collect::<Vec<_>>(), k);
                check(&vec![1.; length], k);
                check(&vec![f32::NAN; length], k);
            }
        }
    }

    #[test]
    fn shapes() {
        let x = random((3, 40, 5), 1);
        let (values, indices) = top_k(&x.transpose(1, 2).unwrap(), 7).unwrap();
        assert_eq!((values.dims(), indices.dims()), (&[3, 5, 7][..], &[3, 5, 7][..]));
        let gathered = x.transpose(1, 2).unwrap().contiguous().unwrap().gather(&indices, 2).unwrap();
        assert_eq!(bits(&values), bits(&gathered));
        assert_eq!(top_k(&random((0, 4), 1), 2).unwrap().0.dims(), [0, 2]);
        assert_eq!(top_k(&random((4, 0), 1), 0).unwrap().1.dims(), [4, 0]);
        assert!(top_k(&random((2, 4), 1), 5).unwrap_err().to_string().contains("5 largest of 4"));
        assert!(top_k(&Tensor::zeros((2, 2), DType::U32, &Device::Cpu).unwrap(), 1).is_err());
    }
}
