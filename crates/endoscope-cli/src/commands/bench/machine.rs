//! The machine's limits: the rate of a large matrix product, and of reading and copying memory.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use endoscope_kernels::{PackedMatrix, Precision};
use rayon::prelude::*;

use super::work::{Amount, Prepared, Work};

/// Side of the square matrices.
const GEMM_SIDE: usize = 2048;
/// Larger than any processor's caches.
const READ_BYTES: usize = 512 << 20;
/// Bytes of the source; as many are written.
const COPY_BYTES: usize = 256 << 20;
/// What one thread takes at a time.
const PIECE: usize = (1 << 20) / size_of::<u64>();

/// A product of two square f32 matrices: `2 side^3` operations.
pub fn gemm() -> Result<Prepared<'static>> {
    let matrix = |deviation: f32| Tensor::randn(0f32, deviation, (GEMM_SIDE, GEMM_SIDE), &Device::Cpu);
    let left = matrix(1.)?;
    // The fastest matrix product that Endoscope has.
    let right = Arc::new(PackedMatrix::from_tensor(&matrix(1.)?, Precision::F32)?);
    let once = move || {
        let start = Instant::now();
        std::hint::black_box(right.product(&left, None, None)?);
        Ok(start.elapsed().as_secs_f64())
    };
    let amount = Amount::counting(2. * (GEMM_SIDE as f64).powi(3), "FLOP");
    Ok(Prepared::new(Work::Gemm, format!("f32 product, {GEMM_SIDE} cubed"), amount, once))
}

/// All threads read one large array.
pub fn read() -> Prepared<'static> {
    let numbers = written(READ_BYTES);
    let once = move || {
        let start = Instant::now();
        let sum = |piece: &[u64]| piece.iter().fold(0, |sum: u64, number| sum.wrapping_add(*number));
        std::hint::black_box(numbers.par_chunks(PIECE).map(sum).reduce(|| 0, u64::wrapping_add));
        Ok(start.elapsed().as_secs_f64())
    };
    let amount = Amount::counting(READ_BYTES as f64, "B");
    Prepared::new(Work::Read, format!("reading {} MiB", READ_BYTES >> 20), amount, once)
}

/// All threads copy one large array; what is read and what is written both count.
pub fn copy() -> Prepared<'static> {
    let source = written(COPY_BYTES);
    let mut target = written(COPY_BYTES);
    let once = move || {
        let start = Instant::now();
        let pieces = target.par_chunks_mut(PIECE).zip(source.par_chunks(PIECE));
        pieces.for_each(|(target, source)| target.copy_from_slice(source));
        std::hint::black_box(&target);
        Ok(start.elapsed().as_secs_f64())
    };
    let amount = Amount::counting(2. * COPY_BYTES as f64, "B");
    Prepared::new(Work::Copy, format!("copying {} MiB", COPY_BYTES >> 20), amount, once)
}

/// An array whose every page has been written, so that it lies in memory.
fn written(bytes: usize) -> Vec<u64> {
    (0..(bytes / size_of::<u64>()) as u64).into_par_iter().collect()
}
