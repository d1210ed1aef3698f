//! What the kernels share: loops compiled for several instruction sets, rows spread over threads, exp.
//!
//! The bits of a result depend neither on the processor nor on the number of threads: sums run over a fixed number of
//! lanes that are added in a fixed order, a row is computed by one thread, and no multiply-add is contracted.

use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use candle_core::utils::barrier_pool;
use rayon::prelude::*;

/// How many values a loop body handles at once: one register of AVX-512, two of AVX2, four of NEON.
pub const LANES: usize = 16;

/// How many values one task computes.
const TASK: usize = 1 << 14;

/// How many values one thread computes alone: fewer are not worth waking another.
const PARALLEL: usize = 1 << 16;

/// Declares a function whose body is compiled for AVX-512, AVX2 and the baseline (NEON on aarch64), and chosen at run
/// time. What the body calls must be `#[inline(always)]`, or it stays compiled for the baseline.
macro_rules! vectorized {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$life:lifetime $(, $out:lifetime)? $(, $kind:ident: $bound:path)?>($($arg:ident: $type:ty),+ $(,)?)
        $(-> $output:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name<$life $(, $out)? $(, $kind: $bound)?>($($arg: $type),+) $(-> $output)? {
            struct Call<$life $(, $out)? $(, $kind: $bound)?> {
                $($arg: $type,)+
                marker: std::marker::PhantomData<(&$life (), $(&$out (),)? $($kind)?)>,
            }
            impl<$life $(, $out)? $(, $kind: $bound)?> pulp::NullaryFnOnce for Call<$life $(, $out)? $(, $kind)?> {
                #[allow(unused_parens, reason = "no output stands for ()")]
                type Output = ($($output)?);
                #[inline(always)]
                fn call(self) -> Self::Output {
                    let Self { $($arg,)+ marker: _ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Call::<$($kind)?> { $($arg,)+ marker: std::marker::PhantomData })
        }
    };
}
pub(crate) use vectorized;

/// How many rows of `width` values one task computes.
pub fn rows_per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// The part of an output that one task writes, in order and completely.
pub struct Output<'a> {
    slots: &'a mut [MaybeUninit<f32>],
    written: usize,
}

impl Output<'_> {
    /// How many values there are to write in all.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Writes the next values, as many as fit.
    #[inline(always)]
    pub fn extend(&mut self, values: impl Iterator<Item = f32>) {
        let mut count = 0;
        for (slot, value) in self.slots[self.written..].iter_mut().zip(values) {
            slot.write(value);
            count += 1;
        }
        self.written += count;
    }
}

/// Makes `[rows, out_width]`, `length` values in all, from rows of `width` values: `fill(first row, output)` on each
/// task writes some rows. Memory is not cleared first: for the cheaper kernels that costs as much as they do.
pub fn build(
    length: usize,
    out_width: usize,
    width: usize,
    fill: impl Fn(usize, Output<'_>) -> Output<'_> + Sync,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(length);
    let slots = &mut values.spare_capacity_mut()[..length];
    let task = |first: usize, slots: &mut [MaybeUninit<f32>]| {
        let expected = slots.len();
        let output = fill(first, Output { slots, written: 0 });
        assert!(output.written == expected && output.len() == expected, "a kernel left values unwritten");
    };
    let rows = rows_per_task(width);
    let chunk = rows * out_width.max(1);
    if length / out_width.max(1) * width <= PARALLEL {
        task(0, slots);
    } else {
        each_chunk(slots, chunk, |at, slots| task(at * rows, slots));
    }
    // SAFETY: the tasks' slots are together the first `length`, and each task has been seen to write all of its own.
    #[expect(unsafe_code, reason = "safe Rust cannot fill a vector's spare room from several threads")]
    unsafe {
        values.set_len(length);
    }
    values
}

/// Calls `f(number, chunk)` for each chunk, on several threads.
///
/// A thread of rayon's spreads them among its siblings. Any other thread uses the pool that candle's own elementwise
/// operations keep awake, and works along: waking rayon's threads would take longer than most kernels run.
fn each_chunk<T: Send>(values: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if rayon::current_thread_index().is_some() {
        return values.par_chunks_mut(chunk).enumerate().for_each(|(at, chunk)| f(at, chunk));
    }
    let chunks: Vec<_> = values.chunks_mut(chunk).map(|chunk| Mutex::new(Some(chunk))).collect();
    let take = |at: usize| chunks[at].lock().unwrap_or_else(PoisonError::into_inner).take();
    barrier_pool().execute_chunked(chunks.len(), |range| {
        range.for_each(|at| take(at).into_iter().for_each(|chunk| f(at, chunk)));
    });
    assert!((0..chunks.len()).all(|at| take(at).is_none()), "the thread pool left a chunk out");
}

/// Adds what the lanes hold, in a fixed order.
#[inline(always)]
pub fn add_lanes(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum of `term(i)` over `0 .. length`, in f64.
#[inline(always)]
pub fn sum(values: &[f32], term: impl Fn(f32) -> f64) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f64; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += term(chunk[i]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += term(value);
    }
    add_lanes(lanes)
}

/// The sum of `term(a[i], b[i])`, in f64.
#[inline(always)]
pub fn sum_pairs(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f64) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0f64; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += term(a[i], b[i]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += term(a, b);
    }
    add_lanes(lanes)
}

/// `x` within `low ..= high`; NaN stays NaN.
#[inline(always)]
pub fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// exp(x) for x <= 88, within 3e-7 of its value; below e^-87.3 (where f32 loses precision) exactly 0; NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    /// Adding it rounds to an integer, which is then found in the lowest bits.
    const ROUND: f32 = 12_582_912.;
    /// ln 2 in two parts, the first with so few bits that its product with an exponent is exact.
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let within = if x < LOWEST { LOWEST } else { x };
    let rounded = within * std::f32::consts::LOG2_E + ROUND;
    let exponent = rounded - ROUND;
    let r = within - exponent * LN_2.0 - exponent * LN_2.1;
    // Cephes's expf: exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2.
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let mantissa = p * (r * r) + r + 1.;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < LOWEST { 0. } else { mantissa * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_libm() {
        let mut worst = 0f64;
        for step in 0..2_000_000 {
            let x = -87.29 + step as f32 * (175.2 / 2e6);
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!((exp(f32::NEG_INFINITY), exp(-1e30), exp(-88.), exp(0.)), (0., 0., 0., 1.));
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    }

    #[test]
    fn every_value_is_summed_once() {
        for length in 0..70 {
            let values: Vec<f32> = (0..length).map(|i| i as f32).collect();
            assert_eq!(sum(&values, f64::from), (0..length).sum::<usize>() as f64);
            let squares = (0..length).map(|i| i * i).sum::<usize>() as f64;
            assert_eq!(sum_pairs(&values, &values, |a, b| f64::from(a) * f64::from(b)), squares);
        }
    }
}
