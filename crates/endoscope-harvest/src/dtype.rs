//! The numbers of a shard: f32, bf16 or f16, little-endian.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// How activations are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// As they are.
    #[default]
    F32,
    /// Rounded to the nearest: three digits, every size.
    Bf16,
    /// Rounded to the nearest: three and a half digits, at most 65,504.
    F16,
}

impl Dtype {
    /// How many bytes a number takes.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// What safetensors calls it.
    pub(crate) fn stored(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::Bf16 => safetensors::Dtype::BF16,
            Self::F16 => safetensors::Dtype::F16,
        }
    }

    /// Adds numbers to the end of `bytes`; the first that is not finite once rounded, and how many of these there are.
    pub(crate) fn append(self, numbers: &[f32], bytes: &mut Vec<u8>) -> Option<(usize, f32, u64)> {
        match self {
            Self::F32 => {
                put(numbers.iter().map(|number| number.to_le_bytes()), bytes);
                not_finite(numbers.iter().copied())
            }
            Self::Bf16 => {
                let mut rounded = vec![bf16::ZERO; numbers.len()];
                rounded.convert_from_f32_slice(numbers);
                put(rounded.iter().map(|number| number.to_le_bytes()), bytes);
                not_finite(rounded.iter().map(|number| number.to_f32()))
            }
            Self::F16 => {
                let mut rounded = vec![f16::ZERO; numbers.len()];
                rounded.convert_from_f32_slice(numbers);
                put(rounded.iter().map(|number| number.to_le_bytes()), bytes);
                not_finite(rounded.iter().map(|number| number.to_f32()))
            }
        }
    }

    /// The numbers of these bytes.
    pub(crate) fn read(self, bytes: &[u8]) -> Vec<f32> {
        if self == Self::F32 {
            return bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect();
        }
        let bits: Vec<u16> = bytes.as_chunks().0.iter().map(|&bits| u16::from_le_bytes(bits)).collect();
        let mut numbers = vec![0.; bits.len()];
        match self {
            Self::Bf16 => bits.reinterpret_cast::<bf16>().convert_to_f32_slice(&mut numbers),
            _ => bits.reinterpret_cast::<f16>().convert_to_f32_slice(&mut numbers),
        }
        numbers
    }
}

/// Adds numbers of `N` bytes each, in one piece: byte by byte would take longer than rounding them.
fn put<const N: usize>(numbers: impl ExactSizeIterator<Item = [u8; N]>, bytes: &mut Vec<u8>) {
    let before = bytes.len();
    bytes.resize(before + N * numbers.len(), 0);
    bytes[before..].as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(place, number)| *place = number);
}

fn not_finite(numbers: impl Iterator<Item = f32> + Clone) -> Option<(usize, f32, u64)> {
    // First without a branch for each number.
    if numbers.clone().fold(true, |all, number| all & number.is_finite()) {
        return None;
    }
    let mut bad = numbers.enumerate().filter(|(_, number)| !number.is_finite());
    let (at, value) = bad.next()?;
    Some((at, value, 1 + bad.count() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let numbers = [1.5, -0.0, 65_504., 2f32.powi(-20)];
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let mut bytes = vec![7];
            assert_eq!(dtype.append(&numbers, &mut bytes), None);
            assert_eq!(bytes.len(), 1 + 4 * dtype.bytes());
            let read = dtype.read(&bytes[1..]);
            assert!(numbers.iter().zip(&read).all(|(a, b)| (a - b).abs() <= 4e-3 * a.abs().max(1e-6)), "{read:?}");
            assert!(read[1].is_sign_negative());
        }
    }

    #[test]
    fn what_is_not_finite_is_counted_after_rounding() {
        let numbers = [1., 70_000., f32::NAN, f32::INFINITY];
        let mut bytes = Vec::new();
        assert!(matches!(Dtype::F32.append(&numbers, &mut bytes), Some((2, value, 2)) if value.is_nan()));
        assert_eq!(Dtype::F16.append(&numbers, &mut bytes), Some((1, f32::INFINITY, 3)));
        assert!(matches!(Dtype::Bf16.append(&numbers, &mut bytes), Some((2, _, 2))));
    }
}
