//! The innermost loop of every matrix product: a few rows times one panel of columns, sums kept in registers.
//!
//! A product is a chain of fused multiply-adds per output value, over the inner axis from its first index to its last,
//! from 0. Nothing else: so a value's bits depend neither on the processor, nor on the threads, nor on which other rows
//! or columns are computed with it. A row of a batch has the bits of that row alone.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use pulp::Simd;

/// How many columns a panel has: two registers of AVX-512.
pub const PANEL: usize = 32;

/// Half of them: the columns `j` and `HALF + j` are multiplied together, so that a 32-bit word can hold both.
pub const HALF: usize = PANEL / 2;

/// The most rows that one tile has: 24 of 32 registers hold sums.
pub const ROWS: usize = 12;

/// One cache line of a panel, aligned so that no load straddles two.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line<T>(pub [T; HALF]);

/// Rows of `f32` in memory: row `i` starts at `i * stride`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows `stride` apart, the first at the start of `values`.
    pub fn new(values: &'a [f32], stride: usize) -> Self {
        Self { values, stride }
    }

    /// The rows from `first` on, each from its value `column` on.
    pub fn from(self, first: usize, column: usize) -> Self {
        Self { values: &self.values[(first * self.stride + column).min(self.values.len())..], stride: self.stride }
    }
}

/// Where sums go on after a part of the inner axis, and where they end: rows of [`PANEL`] values, `stride` apart.
#[derive(Clone, Copy)]
pub struct Sums {
    /// The first value of the first row.
    pub start: *mut f32,
    /// From one row to the next.
    pub stride: usize,
    /// Whether the sums begin at what is there, rather than at 0.
    pub resume: bool,
}

/// Values of which each task writes others.
#[derive(Clone, Copy)]
pub struct Shared {
    start: *mut f32,
    length: usize,
}

#[expect(unsafe_code, reason = "tasks write different values of one vector")]
// SAFETY: whoever writes promises that no other task has the same values, and nobody reads before all have ended.
unsafe impl Send for Shared {}
#[expect(unsafe_code, reason = "tasks write different values of one vector")]
// SAFETY: as for Send.
unsafe impl Sync for Shared {}

impl Shared {
    /// The values of a slice.
    pub fn new(values: &mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), length: values.len() }
    }

    /// Values that nobody has written yet.
    pub fn uninit(values: &mut [MaybeUninit<f32>]) -> Self {
        Self { start: values.as_mut_ptr().cast(), length: values.len() }
    }

    /// Where value `at` is, of which `count` follow.
    #[inline(always)]
    pub fn cell(self, at: usize, count: usize) -> *mut f32 {
        assert!(at + count <= self.length, "a cell out of range");
        self.start.wrapping_add(at)
    }

    /// Writes `values` from `at` on.
    ///
    /// # Safety
    /// No other task may write them, and nobody read them before all tasks have ended.
    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write different values of one vector")]
    pub unsafe fn write(self, at: usize, values: &[f32]) {
        let cell = self.cell(at, values.len());
        // SAFETY: in range, as was just checked; exclusive, as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), cell, values.len()) };
    }
}

/// Rows of a panel of columns, in whatever form they are kept.
pub trait Panel: Copy {
    /// How many rows.
    fn len(self) -> usize;

    /// The values of row `k` in the columns from `lane` and from `HALF + lane` on, a register of each.
    ///
    /// # Safety
    /// `k < len()` and `lane + S::F32_LANES <= HALF`.
    #[expect(unsafe_code, reason = "in the innermost loop a check of bounds costs as much as the product")]
    unsafe fn load<S: Simd>(self, simd: S, k: usize, lane: usize) -> [S::f32s; 2];
}

/// Rows of f32: two lines each.
#[derive(Clone, Copy)]
pub struct Singles<'a>(pub &'a [Line<f32>]);

/// Rows of bf16: one line each, of words that hold a column of the first half below one of the second.
#[derive(Clone, Copy)]
pub struct UpperHalves<'a>(pub &'a [Line<u32>]);

/// Rows of f16, all finite, in the same order.
#[derive(Clone, Copy)]
pub struct Halves<'a>(pub &'a [Line<u32>]);

/// Rows of 8-bit integers plus 128, times scales: a line for two rows, of words that hold, from the lowest byte, the
/// even row's column of the first and second half, then the odd row's.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    lines: &'a [Line<u32>],
    /// Two lines for each block of rows.
    scales: &'a [Line<f32>],
    start: usize,
    length: usize,
}

/// How many rows of a column of 8-bit integers share a scale.
pub const BLOCK: usize = 32;

impl<'a> Bytes<'a> {
    /// Rows `start .. start + length` of a whole panel.
    pub fn new(lines: &'a [Line<u32>], scales: &'a [Line<f32>], start: usize, length: usize) -> Self {
        assert!((start + length).div_ceil(2) <= lines.len() && 2 * (start + length).div_ceil(BLOCK) <= scales.len());
        Self { lines, scales, start, length }
    }
}

/// A register read from `lane` on.
///
/// # Safety
/// `lane + lanes of R <= HALF`.
#[inline(always)]
#[expect(unsafe_code, reason = "as Panel::load")]
unsafe fn read<T, R: Copy>(line: *const Line<T>, lane: usize) -> R {
    // SAFETY: the caller's promise.
    unsafe { line.cast::<T>().add(lane).cast::<R>().read_unaligned() }
}

#[expect(unsafe_code, reason = "as Panel::load")]
impl Panel for Singles<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        self.0.len() / 2
    }

    // SAFETY: the trait says what callers must see to.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, _: S, k: usize, lane: usize) -> [S::f32s; 2] {
        // SAFETY: row `k` is the lines `2 k` and `2 k + 1`; the lanes are the caller's promise.
        unsafe { [read(self.0.as_ptr().add(2 * k), lane), read(self.0.as_ptr().add(2 * k + 1), lane)] }
    }
}

#[expect(unsafe_code, reason = "as Panel::load")]
impl Panel for UpperHalves<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        self.0.len()
    }

    // SAFETY: the trait says what callers must see to.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, simd: S, k: usize, lane: usize) -> [S::f32s; 2] {
        // SAFETY: the caller's promise.
        let words: S::u32s = unsafe { read(self.0.as_ptr().add(k), lane) };
        let first = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let second = simd.and_u32s(words, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(first), simd.transmute_f32s_u32s(second)]
    }
}

#[expect(unsafe_code, reason = "as Panel::load")]
impl Panel for Halves<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        self.0.len()
    }

    // SAFETY: the trait says what callers must see to.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, simd: S, k: usize, lane: usize) -> [S::f32s; 2] {
        // SAFETY: the caller's promise.
        let words: S::u32s = unsafe { read(self.0.as_ptr().add(k), lane) };
        let left = |bits: u32| simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(bits));
        let right = simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s(3));
        [widened(simd, left(13), left(16)), widened(simd, right, words)]
    }
}

/// f16 as f32, exactly: `magnitude` holds its lower 15 bits from bit 13 on, `sign` its sign as the highest bit.
#[inline(always)]
fn widened<S: Simd>(simd: S, magnitude: S::u32s, sign: S::u32s) -> S::f32s {
    /// 2^-14, below which an f16 is subnormal: it has lost the leading 1 that its bits have as an f32.
    const LEAST: f32 = 6.103_515_6e-5;
    /// What the exponents of the two formats differ by.
    const BIAS: u32 = (127 - 15) << 23;
    let magnitude = simd.and_u32s(magnitude, simd.splat_u32s(0x7fff << 13));
    let x = simd.transmute_f32s_u32s(simd.add_u32s(magnitude, simd.splat_u32s(BIAS)));
    // A subnormal m / 2^24 reads as x = 2^-15 + m / 2^25, and 2 x - 2^-14 is less than x exactly then.
    let x = simd.min_f32s(x, simd.mul_add_f32s(x, simd.splat_f32s(2.), simd.splat_f32s(-LEAST)));
    let sign = simd.and_u32s(sign, simd.splat_u32s(1 << 31));
    simd.transmute_f32s_u32s(simd.or_u32s(simd.transmute_u32s_f32s(x), sign))
}

#[expect(unsafe_code, reason = "as Panel::load")]
impl Panel for Bytes<'_> {
    #[inline(always)]
    fn len(self) -> usize {
        self.length
    }

    // SAFETY: the trait says what callers must see to.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, simd: S, k: usize, lane: usize) -> [S::f32s; 2] {
        let k = self.start + k;
        // SAFETY: `new` has checked that all rows have their lines and scales; the lanes are the caller's promise.
        let (words, scales): (S::u32s, [S::f32s; 2]) = unsafe {
            let scales = self.scales.as_ptr().add(k / BLOCK * 2);
            (read(self.lines.as_ptr().add(k / 2), lane), [read(scales, lane), read(scales.add(1), lane)])
        };
        // A byte in the lowest bits of 2^23 is a whole number of that size: subtracting leaves the integer, exactly.
        const EXPONENT: u32 = 0x4b00_0000;
        let number = |shift: u32| {
            let byte = simd.and_u32s(simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s(shift)), simd.splat_u32s(0xff));
            let large = simd.transmute_f32s_u32s(simd.or_u32s(byte, simd.splat_u32s(EXPONENT)));
            simd.sub_f32s(large, simd.splat_f32s(8_388_608. + 128.))
        };
        let numbers = if k.is_multiple_of(2) { [number(0), number(8)] } else { [number(16), number(24)] };
        [simd.mul_f32s(numbers[0], scales[0]), simd.mul_f32s(numbers[1], scales[1])]
    }
}

/// `sums[i][j] (+)= sum over k of a[i][k] * b[k][j]` for `rows <= ROWS` rows and all [`PANEL`] columns.
///
/// # Safety
/// `sums` must be valid for writes of `rows` rows of [`PANEL`] values (and initialised, to resume).
#[inline(always)]
#[expect(unsafe_code, reason = "the sums of one tile lie between those that other threads write")]
pub unsafe fn tile<S: Simd, P: Panel>(simd: S, rows: usize, a: Rows<'_>, b: P, sums: Sums) {
    let length = b.len();
    assert!(
        rows <= ROWS && (rows == 0 || length == 0 || (rows - 1) * a.stride + length <= a.values.len()),
        "a tile out of range"
    );
    // Sixteen registers hold the sums of six rows.
    let most = if S::REGISTER_COUNT >= 32 { ROWS } else { ROWS / 2 };
    for first in (0..rows).step_by(most) {
        let a = a.from(first, 0);
        let sums = Sums { start: sums.start.wrapping_add(first * sums.stride), ..sums };
        macro_rules! by_rows {
            ($($rows:literal)*) => {
                match (rows - first).min(most) {
                    // SAFETY: the ranges of `a` were checked for all rows; `sums` is the caller's promise.
                    $($rows => unsafe { Columns::<S, P, $rows>::run(simd, a, b, sums) },)*
                    _ => {}
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// `M` rows: a processor with narrower registers makes them in several passes over the panel.
struct Columns<S, P, const M: usize>(PhantomData<(S, P)>);

#[expect(unsafe_code, reason = "as tile")]
impl<S: Simd, P: Panel, const M: usize> Columns<S, P, M> {
    /// # Safety
    /// `M` rows of `a` must have `b.len()` values, and `sums` be valid for `M` rows.
    #[inline(always)]
    unsafe fn run(simd: S, a: Rows<'_>, b: P, sums: Sums) {
        const { assert!(HALF.is_multiple_of(S::F32_LANES)) };
        for lane in (0..HALF).step_by(S::F32_LANES) {
            let start = a.values.as_ptr();
            let cell = |i: usize, half: usize| sums.start.wrapping_add(i * sums.stride + half * HALF + lane);
            let mut acc = [[simd.splat_f32s(0.); 2]; M];
            if sums.resume {
                for (i, acc) in acc.iter_mut().enumerate() {
                    for (half, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: row `i` of `M`, and the lanes end within a half: what the caller promised.
                        *acc = unsafe { cell(i, half).cast::<S::f32s>().read_unaligned() };
                    }
                }
            }
            for k in 0..b.len() {
                // SAFETY: `k` is a row, and the lanes end within a half, which they divide.
                let columns = unsafe { b.load(simd, k, lane) };
                for (i, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: `i < M` and `k < b.len()`: within the rows that the caller promised.
                    let x = simd.splat_f32s(unsafe { *start.add(i * a.stride + k) });
                    for (acc, &column) in acc.iter_mut().zip(&columns) {
                        *acc = simd.mul_add_f32s(x, column, *acc);
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                for (half, &acc) in acc.iter().enumerate() {
                    // SAFETY: as when they were read.
                    unsafe { cell(i, half).cast::<S::f32s>().write_unaligned(acc) };
                }
            }
        }
    }
}
