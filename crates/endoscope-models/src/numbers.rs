//! Numbers of a file, read from wherever they lie, by several threads at once.

use std::fs::File;
use std::io;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// How many numbers are converted at once: what lies in a cache is converted without another trip to memory.
const PIECE: usize = 1 << 16;

/// The dtypes that [`read`] knows.
pub(crate) const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];

/// Fills `into` with the numbers that begin at byte `start`, as f32. They are little-endian, as in every file.
pub(crate) fn read(file: &File, dtype: Dtype, start: u64, into: &mut [f32]) -> io::Result<()> {
    if dtype == Dtype::F32 {
        read_exact_at(file, bytemuck::cast_slice_mut(into), start)?;
        if cfg!(target_endian = "big") {
            into.iter_mut().for_each(|number| *number = f32::from_bits(number.to_bits().swap_bytes()));
        }
        return Ok(());
    }
    let width = if dtype == Dtype::F64 { 8 } else { 2 };
    let mut bytes = vec![0; width * PIECE.min(into.len())];
    let mut halves = vec![0u16; if width == 2 { PIECE.min(into.len()) } else { 0 }];
    let mut at = start;
    for numbers in into.chunks_mut(PIECE) {
        let bytes = &mut bytes[..width * numbers.len()];
        read_exact_at(file, bytes, at)?;
        at += bytes.len() as u64;
        if dtype == Dtype::F64 {
            let whole = bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32);
            numbers.iter_mut().zip(whole).for_each(|(number, whole)| *number = whole);
            continue;
        }
        let halves = &mut halves[..numbers.len()];
        halves.iter_mut().zip(bytes.as_chunks().0).for_each(|(half, &bytes)| *half = u16::from_le_bytes(bytes));
        match dtype {
            Dtype::F16 => halves.reinterpret_cast::<f16>().convert_to_f32_slice(numbers),
            _ => halves.reinterpret_cast::<bf16>().convert_to_f32_slice(numbers),
        }
    }
    Ok(())
}

/// `count` 16-bit numbers as they are written, from byte `start` on.
pub(crate) fn read_halves(file: &File, start: u64, count: usize) -> io::Result<Vec<u16>> {
    let mut halves = vec![0u16; count];
    let pieces = halves.par_chunks_mut(PIECE).enumerate();
    pieces.try_for_each(|(at, piece)| {
        read_exact_at(file, bytemuck::cast_slice_mut(piece), start + 2 * (at * PIECE) as u64)?;
        if cfg!(target_endian = "big") {
            piece.iter_mut().for_each(|half| *half = half.swap_bytes());
        }
        Ok::<(), io::Error>(())
    })?;
    Ok(halves)
}

/// `count` numbers as f32, from byte `start` on.
pub(crate) fn read_all(file: &File, dtype: Dtype, start: u64, count: usize) -> io::Result<Vec<f32>> {
    let width = dtype.bitsize() / 8;
    let mut numbers = vec![0.; count];
    let pieces = numbers.par_chunks_mut(PIECE).enumerate();
    pieces.try_for_each(|(at, piece)| read(file, dtype, start + (width * at * PIECE) as u64, piece))?;
    Ok(numbers)
}

/// Which of `numbers` is the first that is infinite or no number.
pub(crate) fn not_finite(numbers: &[f32]) -> Option<usize> {
    // One maximum over all is many times cheaper than a question to each.
    let largest = numbers.iter().map(|number| number.to_bits() & !(1 << 31)).fold(0, u32::max);
    if f32::from_bits(largest).is_finite() { None } else { numbers.iter().position(|number| !number.is_finite()) }
}

/// Fills `bytes` from byte `at` of the file on. The file's cursor does not count, so threads do not disturb each other.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

/// Fills `bytes` from byte `at` of the file on. The file's cursor does not count, so threads do not disturb each other.
#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes = &mut bytes[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_dtype_is_read_from_any_place() {
        let values: Vec<f32> = (0..PIECE + 5).map(|at| (at % 200) as f32 - 99.5).collect();
        for dtype in DTYPES {
            let mut file = tempfile::tempfile().unwrap();
            for &value in &values {
                let bytes = match dtype {
                    Dtype::F32 => value.to_le_bytes().to_vec(),
                    Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                    Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                    _ => f64::from(value).to_le_bytes().to_vec(),
                };
                file.write_all(&bytes).unwrap();
            }
            let width = dtype.bitsize() / 8;
            assert_eq!(read_all(&file, dtype, 0, values.len()).unwrap(), values);
            let mut some = [0.; 3];
            read(&file, dtype, 7 * width as u64, &mut some).unwrap();
            assert_eq!(some, values[7..10]);
            assert!(read_all(&file, dtype, width as u64, values.len()).is_err());
            if width == 2 {
                let halves = read_halves(&file, 2, values.len() - 1).unwrap();
                let mut bits = [0; 2];
                read_exact_at(&file, &mut bits, 2 * (PIECE as u64 + 1)).unwrap();
                assert_eq!(halves[PIECE], u16::from_le_bytes(bits));
                assert!(read_halves(&file, 2, values.len()).is_err());
            }
        }
    }

    #[test]
    fn the_first_that_is_not_finite_is_found() {
        assert_eq!(not_finite(&[]), None);
        assert_eq!(not_finite(&[0., -f32::MAX, f32::MIN_POSITIVE]), None);
        assert_eq!(not_finite(&[1., f32::NEG_INFINITY, f32::NAN]), Some(1));
        assert_eq!(not_finite(&[1., 2., -f32::NAN]), Some(2));
    }
}
