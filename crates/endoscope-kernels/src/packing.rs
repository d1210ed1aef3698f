//! How a matrix is laid out for products: its columns are cut into panels of [`PANEL`], and a panel holds its rows one
//! after the other.
//!
//! A matrix is packed from whatever gives its numbers, a panel or a few rows at a time, so that a file is never held
//! beside what is made of it.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::tile::{BLOCK, HALF, Line, PANEL};

/// How values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// The upper 16 bits of an f32, rounded to nearest.
    Bf16,
    /// 16 bits with 5 of exponent, rounded to nearest; what lies beyond ±65504 becomes that, and NaN has no place.
    F16,
    /// 8-bit integers with one scale for each 32 values along the inner axis of a column, as in GGUF's Q8_0: the scale
    /// is `max |w| / 127` rounded to f16, and `w` becomes `round(w / scale) * scale`.
    Int8,
}

/// How many numbers of several rows are held at once while they are spread over panels.
const PIECE: usize = 1 << 19;

/// The rows of one panel.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Two lines a row.
    F32(Vec<Line<f32>>),
    /// A line a row, of words that hold a column of the first half below one of the second.
    Bf16(Vec<Line<u32>>),
    /// The same.
    F16(Vec<Line<u32>>),
    /// A line for two rows, of words that hold, from the lowest byte, the even row's column of the first and second
    /// half, then the odd row's, all plus 128; and two lines of scales for each block of rows.
    Int8 {
        /// The integers.
        bytes: Vec<Line<u32>>,
        /// What they are multiplied by.
        scales: Vec<Line<f32>>,
    },
}

impl Values {
    /// No rows yet, with room for `inner`.
    fn new(inner: usize, precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32(Vec::with_capacity(2 * inner)),
            Precision::Bf16 => Self::Bf16(Vec::with_capacity(inner)),
            Precision::F16 => Self::F16(Vec::with_capacity(inner)),
            Precision::Int8 => Self::Int8 {
                bytes: Vec::with_capacity(inner.div_ceil(2)),
                scales: Vec::with_capacity(2 * inner.div_ceil(BLOCK)),
            },
        }
    }

    /// Appends `rows` rows of `value(row, column)`: whole blocks of [`BLOCK`], but for the last rows of all.
    #[inline(always)]
    fn extend(&mut self, rows: usize, value: impl Fn(usize, usize) -> f32) {
        match self {
            Self::F32(lines) => lines
                .extend((0..2 * rows).map(|line| Line(std::array::from_fn(|j| value(line / 2, line % 2 * HALF + j))))),
            Self::Bf16(lines) => {
                let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
                let word = |k, j| bits(value(k, j)) | bits(value(k, HALF + j)) << 16;
                lines.extend((0..rows).map(|k| Line(std::array::from_fn(|j| word(k, j)))));
            }
            Self::F16(lines) => {
                let row = |k: usize| {
                    let largest = f16::MAX.to_f32();
                    let row: [f32; PANEL] = std::array::from_fn(|j| value(k, j).clamp(-largest, largest));
                    let mut halves = [f16::ZERO; PANEL];
                    halves.convert_from_f32_slice(&row);
                    let bits = |j: usize| u32::from(halves[j].to_bits());
                    Line(std::array::from_fn(|j| bits(j) | bits(HALF + j) << 16))
                };
                lines.extend((0..rows).map(row));
            }
            Self::Int8 { bytes, scales } => {
                for first in (0..rows).step_by(BLOCK) {
                    let count = BLOCK.min(rows - first);
                    extend_block(bytes, scales, count, |k, j| value(first + k, j));
                }
            }
        }
    }

    /// One value as it is multiplied.
    pub fn value(&self, k: usize, column: usize) -> f32 {
        let (half, j) = (column / HALF, column % HALF);
        match self {
            Self::F32(lines) => lines[2 * k + half].0[j],
            Self::Bf16(lines) => bf16::from_bits((lines[k].0[j] >> (16 * half)) as u16).to_f32(),
            Self::F16(lines) => f16::from_bits((lines[k].0[j] >> (16 * half)) as u16).to_f32(),
            Self::Int8 { bytes, scales } => {
                let byte = bytes[k / 2].0[j] >> (16 * (k % 2) + 8 * half) & 0xff;
                (byte as f32 - 128.) * scales[2 * (k / BLOCK) + half].0[j]
            }
        }
    }

    /// How much memory they take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(lines) => size_of_val(lines.as_slice()),
            Self::Bf16(lines) | Self::F16(lines) => size_of_val(lines.as_slice()),
            Self::Int8 { bytes, scales } => size_of_val(bytes.as_slice()) + size_of_val(scales.as_slice()),
        }
    }
}

/// Appends `count <= BLOCK` rows that share scales.
fn extend_block(
    bytes: &mut Vec<Line<u32>>,
    scales: &mut Vec<Line<f32>>,
    count: usize,
    value: impl Fn(usize, usize) -> f32,
) {
    let scale = |j: usize| {
        let largest = (0..count).map(|k| value(k, j).abs()).fold(0., f32::max);
        f16::from_f32(largest / 127.).to_f32()
    };
    let own: [f32; PANEL] = std::array::from_fn(scale);
    scales.extend([0, HALF].map(|half| Line(std::array::from_fn(|j| own[half + j]))));
    let byte = |k: usize, j: usize| {
        if k >= count {
            return 128;
        }
        let steps = if own[j] == 0. { 0. } else { (value(k, j) / own[j]).round() };
        (steps.clamp(-127., 127.) + 128.) as u32
    };
    let word =
        |k: usize, j: usize| byte(k, j) | byte(k, HALF + j) << 8 | byte(k + 1, j) << 16 | byte(k + 1, HALF + j) << 24;
    bytes.extend((0..count).step_by(2).map(|k| Line(std::array::from_fn(|j| word(k, j)))));
}

/// The panels of `value(row, column)`.
pub fn pack(
    inner: usize,
    columns: usize,
    precision: Precision,
    value: impl Fn(usize, usize) -> f32 + Sync,
) -> Vec<Values> {
    let panel = |panel: usize| {
        let mut values = Values::new(inner, precision);
        // Beyond the last column there are zeros.
        values.extend(inner, |k, j| match panel * PANEL + j {
            column if column < columns => value(k, column),
            _ => 0.,
        });
        values
    };
    (0..columns.div_ceil(PANEL)).into_par_iter().map(panel).collect()
}

/// The panels of the columns `part`, ranges one after the other, where `read(range, into)` writes columns
/// `[range, inner]`. Of several errors the one of the first panel is returned.
pub fn pack_columns<E: Send>(
    inner: usize,
    part: &[Range<usize>],
    precision: Precision,
    read: &(impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync),
) -> Result<Vec<Values>, E> {
    let columns = length(part);
    let panel = |buffer: &mut Vec<f32>, panel: usize| {
        let width = PANEL.min(columns - panel * PANEL);
        buffer.resize(width * inner, 0.);
        let mut rest = &mut buffer[..];
        for range in section(part, panel * PANEL, width) {
            let (now, later) = rest.split_at_mut(range.len() * inner);
            read(range, now)?;
            rest = later;
        }
        let mut values = Values::new(inner, precision);
        match width {
            PANEL => values.extend(inner, |k, j| buffer[j * inner + k]),
            _ => values.extend(inner, |k, j| if j < width { buffer[j * inner + k] } else { 0. }),
        }
        Ok(values)
    };
    let panels: Vec<_> = (0..columns.div_ceil(PANEL)).into_par_iter().map_init(Vec::new, panel).collect();
    panels.into_iter().collect()
}

/// The panels of each of `parts`, ranges of columns one after the other, where `read(range, into)` writes rows
/// `[range, width]` of all columns.
pub fn pack_rows<E: Send>(
    inner: usize,
    width: usize,
    parts: &[Vec<Range<usize>>],
    precision: Precision,
    read: &(impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync),
) -> Result<Vec<Vec<Values>>, E> {
    let columns = |part: &Vec<Range<usize>>| part.iter().cloned().flatten().collect::<Vec<usize>>();
    let columns: Vec<Vec<usize>> = parts.iter().map(columns).collect();
    let panels = columns.iter().flat_map(|columns| columns.chunks(PANEL));
    let mut panels: Vec<(&[usize], Values)> = panels.map(|columns| (columns, Values::new(inner, precision))).collect();
    let height = (PIECE / width.max(1) / BLOCK * BLOCK).max(BLOCK).min(inner);
    let mut buffer = vec![0.; height * width];
    for first in (0..inner).step_by(height.max(1)) {
        let rows = height.min(inner - first);
        let buffer = &mut buffer[..rows * width];
        let blocks = buffer.par_chunks_mut((BLOCK * width).max(1)).enumerate();
        let read: Vec<_> = blocks
            .map(|(at, into)| {
                let start = first + at * BLOCK;
                read(start..(start + BLOCK).min(first + rows), into)
            })
            .collect();
        read.into_iter().collect::<Result<(), E>>()?;
        let buffer = &*buffer;
        panels.par_iter_mut().for_each(|(columns, values)| match columns.len() {
            PANEL => values.extend(rows, |k, j| buffer[k * width + columns[j]]),
            _ => values.extend(rows, |k, j| columns.get(j).map_or(0., |column| buffer[k * width + column])),
        });
    }
    let mut panels = panels.into_iter().map(|(_, values)| values);
    Ok(columns.iter().map(|columns| panels.by_ref().take(columns.len().div_ceil(PANEL)).collect()).collect())
}

/// How many numbers ranges have together.
pub fn length(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(Range::len).sum()
}

/// The numbers from the `from`-th on, `count` of them, of ranges one after the other.
fn section(ranges: &[Range<usize>], from: usize, count: usize) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut found = Vec::new();
    for range in ranges {
        let (first, last) = (from.max(start), (from + count).min(start + range.len()));
        if first < last {
            found.push(range.start + first - start..range.start + last - start);
        }
        start += range.len();
    }
    found
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of ranges, of which there may be one")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::Bf16, Precision::F16, Precision::Int8];

    #[test]
    fn sections_of_ranges() {
        let ranges = [5..8, 20..20, 0..4];
        assert_eq!(section(&ranges, 0, 7), [5..8, 0..4]);
        assert_eq!(section(&ranges, 2, 2), [7..8, 0..1]);
        assert_eq!(section(&ranges, 3, 1), [0..1]);
        assert_eq!(section(&ranges, 6, 9), [3..4]);
        assert_eq!(section(&ranges, 7, 1), Vec::<Range<usize>>::new());
    }

    /// Some number for each place.
    fn number(k: usize, column: usize) -> f32 {
        (k as f32 * 0.37 + column as f32 * 1.3).sin() * (k % 7) as f32
    }

    /// What is read in either order is what is packed from its numbers one by one.
    fn check(inner: usize, width: usize, parts: &[Vec<Range<usize>>]) {
        for precision in PRECISIONS {
            let expected: Vec<Vec<Values>> = parts
                .iter()
                .map(|part| {
                    let columns: Vec<usize> = part.iter().cloned().flatten().collect();
                    pack(inner, columns.len(), precision, |k, at| number(k, columns[at]))
                })
                .collect();
            let column = |range: Range<usize>, into: &mut [f32]| {
                assert!(range.end <= width && into.len() == range.len() * inner);
                into.iter_mut().enumerate().for_each(|(at, x)| *x = number(at % inner, range.start + at / inner));
                Ok::<(), String>(())
            };
            for (part, expected) in parts.iter().zip(&expected) {
                assert_eq!(&pack_columns(inner, part, precision, &column).unwrap(), expected);
            }
            let row = |range: Range<usize>, into: &mut [f32]| {
                assert!(range.end <= inner && into.len() == range.len() * width);
                into.iter_mut().enumerate().for_each(|(at, x)| *x = number(range.start + at / width, at % width));
                Ok::<(), String>(())
            };
            assert_eq!(pack_rows(inner, width, parts, precision, &row).unwrap(), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn reading_packs_the_same(
            inner in 0usize..100,
            width in 0usize..150,
            cuts in proptest::collection::vec(proptest::collection::vec((0usize..200, 0usize..90), 0..4), 0..4),
        ) {
            let range = |(start, length): (usize, usize)| start.min(width)..(start + length).min(width).max(start.min(width));
            let parts: Vec<Vec<_>> = cuts.into_iter().map(|part| part.into_iter().map(range).collect()).collect();
            check(inner, width, &parts);
        }
    }

    #[test]
    fn rows_that_are_read_in_several_pieces() {
        let width = PIECE / BLOCK / 2 + 5;
        check(2 * BLOCK + 3, width, &[vec![0..40, width - 1..width], vec![width - 9..width]]);
    }

    #[test]
    fn the_first_error_is_returned_whichever_thread_meets_one() {
        let fail = |range: Range<usize>, _: &mut [f32]| if range.end > 40 { Err(range.start) } else { Ok(()) };
        for _ in 0..20 {
            assert_eq!(pack_columns(3, &[0..500], Precision::F32, &fail).unwrap_err(), 32);
            assert_eq!(pack_rows(500, 3, &[vec![0..3]], Precision::F32, &fail).unwrap_err(), 32);
        }
    }
}
