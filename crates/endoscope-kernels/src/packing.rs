//! How a matrix is laid out for products: its columns are cut into panels of [`PANEL`], and a panel holds its rows one
//! after the other.
//!
//! A matrix is packed from whatever gives its numbers, a panel or a few rows at a time, so that a file is never held
//! beside what is made of it.

use std::ops::Range;

use bytemuck::allocation::zeroed_vec;
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

/// The panels of a matrix, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub enum Panels {
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

/// One panel while it is filled.
enum Panel<'a> {
    F32(&'a mut [Line<f32>]),
    Bf16(&'a mut [Line<u32>]),
    F16(&'a mut [Line<u32>]),
    Int8 { bytes: &'a mut [Line<u32>], scales: &'a mut [Line<f32>] },
}

impl Panels {
    /// `count` panels of `inner` rows of zeros, which take no memory before they are written.
    fn new(inner: usize, count: usize, precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32(zeroed_vec(2 * inner * count)),
            Precision::Bf16 => Self::Bf16(zeroed_vec(inner * count)),
            Precision::F16 => Self::F16(zeroed_vec(inner * count)),
            Precision::Int8 => Self::Int8 {
                bytes: zeroed_vec(inner.div_ceil(2) * count),
                scales: zeroed_vec(2 * inner.div_ceil(BLOCK) * count),
            },
        }
    }

    /// Each panel of `inner` rows.
    fn each(&mut self, inner: usize) -> Vec<Panel<'_>> {
        let size = inner.max(1);
        match self {
            Self::F32(lines) => lines.chunks_mut(2 * size).map(Panel::F32).collect(),
            Self::Bf16(lines) => lines.chunks_mut(size).map(Panel::Bf16).collect(),
            Self::F16(lines) => lines.chunks_mut(size).map(Panel::F16).collect(),
            Self::Int8 { bytes, scales } => {
                let bytes = bytes.chunks_mut(size.div_ceil(2));
                let panels = bytes.zip(scales.chunks_mut(2 * size.div_ceil(BLOCK)));
                panels.map(|(bytes, scales)| Panel::Int8 { bytes, scales }).collect()
            }
        }
    }

    /// One value of `inner` rows as it is multiplied.
    pub fn value(&self, inner: usize, k: usize, column: usize) -> f32 {
        let (panel, half, j) = (column / PANEL, column % PANEL / HALF, column % HALF);
        match self {
            Self::F32(lines) => lines[2 * (panel * inner + k) + half].0[j],
            Self::Bf16(lines) => bf16::from_bits((lines[panel * inner + k].0[j] >> (16 * half)) as u16).to_f32(),
            Self::F16(lines) => f16::from_bits((lines[panel * inner + k].0[j] >> (16 * half)) as u16).to_f32(),
            Self::Int8 { bytes, scales } => {
                let byte = bytes[panel * inner.div_ceil(2) + k / 2].0[j] >> (16 * (k % 2) + 8 * half) & 0xff;
                (byte as f32 - 128.) * scales[2 * (panel * inner.div_ceil(BLOCK) + k / BLOCK) + half].0[j]
            }
        }
    }

    /// How values are kept.
    pub fn precision(&self) -> Precision {
        match self {
            Self::F32(_) => Precision::F32,
            Self::Bf16(_) => Precision::Bf16,
            Self::F16(_) => Precision::F16,
            Self::Int8 { .. } => Precision::Int8,
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

impl Panel<'_> {
    /// Writes the rows `rows`, of which `value(row, column)` is one number: whole blocks of [`BLOCK`], but for the last.
    ///
    /// Compiled for the instructions that the processor has; what is written does not depend on them.
    fn fill(&mut self, rows: Range<usize>, value: impl Fn(usize, usize) -> f32) {
        pulp::Arch::new().dispatch(Fill { panel: self, rows, value });
    }
}

struct Fill<'a, 'b, V> {
    panel: &'a mut Panel<'b>,
    rows: Range<usize>,
    value: V,
}

impl<V: Fn(usize, usize) -> f32> pulp::NullaryFnOnce for Fill<'_, '_, V> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { panel, rows, value } = self;
        let row = |k: usize| -> [f32; PANEL] { std::array::from_fn(|j| value(k, j)) };
        match panel {
            Panel::F32(lines) => {
                for (k, lines) in rows.clone().zip(lines[2 * rows.start..2 * rows.end].as_chunks_mut::<2>().0) {
                    let row = row(k);
                    *lines = [0, HALF].map(|half| Line(std::array::from_fn(|j| row[half + j])));
                }
            }
            Panel::Bf16(lines) => {
                for (k, line) in rows.clone().zip(&mut lines[rows]) {
                    let halves = row(k).map(upper_half);
                    *line = Line(std::array::from_fn(|j| halves[j] | halves[HALF + j] << 16));
                }
            }
            Panel::F16(lines) => {
                let largest = f16::MAX.to_f32();
                for (k, line) in rows.clone().zip(&mut lines[rows]) {
                    let mut halves = [f16::ZERO; PANEL];
                    halves.convert_from_f32_slice(&row(k).map(|value| value.clamp(-largest, largest)));
                    let bits = |j: usize| u32::from(halves[j].to_bits());
                    *line = Line(std::array::from_fn(|j| bits(j) | bits(HALF + j) << 16));
                }
            }
            Panel::Int8 { bytes, scales } => {
                for first in rows.clone().step_by(BLOCK) {
                    let last = rows.end.min(first + BLOCK);
                    let scales = &mut scales[first / BLOCK * 2..][..2];
                    fill_block(&mut bytes[first / 2..last.div_ceil(2)], scales, first..last, row);
                }
            }
        }
    }
}

/// The upper half of an f32, rounded to nearest even, as [`bf16::from_f32`] does it.
#[inline(always)]
fn upper_half(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// Writes the rows of one block, which share scales.
#[inline(always)]
fn fill_block(
    bytes: &mut [Line<u32>],
    scales: &mut [Line<f32>],
    rows: Range<usize>,
    row: impl Fn(usize) -> [f32; PANEL],
) {
    let mut largest = [0f32; PANEL];
    for k in rows.clone() {
        largest.iter_mut().zip(row(k)).for_each(|(largest, value)| *largest = largest.max(value.abs()));
    }
    let steps = largest.map(|largest| f16::from_f32(largest / 127.).to_f32());
    for (half, scales) in scales.iter_mut().enumerate() {
        *scales = Line(std::array::from_fn(|j| steps[half * HALF + j]));
    }
    let row = |k: usize| -> [u32; PANEL] {
        if k >= rows.end {
            return [128; PANEL];
        }
        let row = row(k);
        std::array::from_fn(|j| {
            let count = if steps[j] == 0. { 0. } else { (row[j] / steps[j]).round() };
            (count.clamp(-127., 127.) + 128.) as u32
        })
    };
    for (k, bytes) in rows.clone().step_by(2).zip(bytes) {
        let (even, odd) = (row(k), row(k + 1));
        let word = |j: usize| even[j] | even[HALF + j] << 8 | odd[j] << 16 | odd[HALF + j] << 24;
        *bytes = Line(std::array::from_fn(word));
    }
}

/// The panels of `value(row, column)`.
pub fn pack(inner: usize, columns: usize, precision: Precision, value: impl Fn(usize, usize) -> f32 + Sync) -> Panels {
    let mut panels = Panels::new(inner, columns.div_ceil(PANEL), precision);
    panels.each(inner).into_par_iter().enumerate().for_each(|(number, mut panel)| {
        // Beyond the last column there are zeros.
        panel.fill(0..inner, |k, j| match number * PANEL + j {
            column if column < columns => value(k, column),
            _ => 0.,
        });
    });
    panels
}

/// The panels of the columns `part`, ranges one after the other, where `read(range, into)` writes columns
/// `[range, inner]`. Of several errors the one of the first panel is returned.
pub fn pack_columns<E: Send>(
    inner: usize,
    part: &[Range<usize>],
    precision: Precision,
    read: &(impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync),
) -> Result<Panels, E> {
    let columns = length(part);
    let mut panels = Panels::new(inner, columns.div_ceil(PANEL), precision);
    let fill = |buffer: &mut Vec<f32>, (number, mut panel): (usize, Panel<'_>)| {
        let width = PANEL.min(columns - number * PANEL);
        buffer.resize(width * inner, 0.);
        let mut rest = &mut buffer[..];
        for range in section(part, number * PANEL, width) {
            let (now, later) = rest.split_at_mut(range.len() * inner);
            read(range, now)?;
            rest = later;
        }
        let buffer = &buffer[..];
        match width {
            PANEL => panel.fill(0..inner, |k, j| buffer[j * inner + k]),
            _ => panel.fill(0..inner, |k, j| if j < width { buffer[j * inner + k] } else { 0. }),
        }
        Ok(())
    };
    let filled: Vec<_> = panels.each(inner).into_par_iter().enumerate().map_init(Vec::new, fill).collect();
    filled.into_iter().collect::<Result<(), E>>()?;
    Ok(panels)
}

/// The panels of each of `parts`, ranges of columns one after the other, where `read(range, into)` writes rows
/// `[range, width]` of all columns.
pub fn pack_rows<E: Send>(
    inner: usize,
    width: usize,
    parts: &[Vec<Range<usize>>],
    precision: Precision,
    read: &(impl Fn(Range<usize>, &mut [f32]) -> Result<(), E> + Sync),
) -> Result<Vec<Panels>, E> {
    let columns = |part: &Vec<Range<usize>>| part.iter().cloned().flatten().collect::<Vec<usize>>();
    let columns: Vec<Vec<usize>> = parts.iter().map(columns).collect();
    let new = |columns: &Vec<usize>| Panels::new(inner, columns.len().div_ceil(PANEL), precision);
    let mut packed: Vec<Panels> = columns.iter().map(new).collect();
    let panels = packed.iter_mut().flat_map(|panels| panels.each(inner));
    let mut panels: Vec<_> = columns.iter().flat_map(|columns| columns.chunks(PANEL)).zip(panels).collect();
    let height = (PIECE / width.max(1) / BLOCK * BLOCK).max(BLOCK).min(inner);
    let mut buffer = vec![0.; height * width];
    for first in (0..inner).step_by(height.max(1)) {
        let end = inner.min(first + height);
        let buffer = &mut buffer[..(end - first) * width];
        let blocks = buffer.par_chunks_mut((BLOCK * width).max(1)).enumerate();
        let read: Vec<_> = blocks
            .map(|(at, into)| {
                let start = first + at * BLOCK;
                read(start..end.min(start + BLOCK), into)
            })
            .collect();
        read.into_iter().collect::<Result<(), E>>()?;
        let row = |k: usize| &buffer[(k - first) * width..][..width];
        panels.par_iter_mut().for_each(|(columns, panel)| match columns.first() {
            // What lies side by side is copied faster than what is looked for.
            Some(&start) if columns.len() == PANEL && columns.iter().copied().eq(start..start + PANEL) => {
                panel.fill(first..end, |k, j| row(k)[start + j]);
            }
            _ => panel.fill(first..end, |k, j| columns.get(j).map_or(0., |&column| row(k)[column])),
        });
    }
    Ok(packed)
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
            let expected: Vec<Panels> = parts
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
    fn upper_halves_are_those_of_bf16() {
        for bits in
            (0..=u32::MAX).step_by(4099).chain([0x7f80_0001, 0xffff_ffff, 0x7f7f_ffff, 0x0000_8000, 0x0001_8000])
        {
            let value = f32::from_bits(bits);
            assert_eq!(upper_half(value), u32::from(bf16::from_f32(value).to_bits()), "{bits:x}");
        }
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
