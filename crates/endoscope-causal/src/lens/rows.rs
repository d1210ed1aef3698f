//! Rows of tokens to make a lens from, where there is no text.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rows of `prefix` and then the same random tokens twice, of `length` tokens in all (one less where the rest is odd): the
/// second half can be predicted, the first cannot. The same arguments give the same rows.
pub fn repeated_rows(vocabulary: u32, prefix: &[u32], length: usize, rows: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let period = length.saturating_sub(prefix.len()) / 2;
    let row = |_| {
        let repeated: Vec<u32> = (0..period).map(|_| random.random_range(0..vocabulary.max(1))).collect();
        [prefix, &repeated, &repeated].concat()
    };
    (0..rows).map(row).collect()
}

/// The rows that a lens is made from, and the last fifth (at least one), on which it is measured; none of the
/// latter where there is only one row.
pub fn split(rows: &[Vec<u32>]) -> (&[Vec<u32>], &[Vec<u32>]) {
    let held_out = if rows.len() < 2 { 0 } else { rows.len().div_ceil(5) };
    rows.split_at(rows.len() - held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_repeat_and_are_the_same_again() {
        let rows = repeated_rows(50, &[1], 12, 4, 7);
        assert_eq!(rows, repeated_rows(50, &[1], 12, 4, 7));
        assert_ne!(rows, repeated_rows(50, &[1], 12, 4, 8));
        for row in &rows {
            assert_eq!((row.len(), row[0]), (11, 1));
            assert_eq!(row[1..6], row[6..]);
        }
        assert_ne!(rows[0], rows[1]);
    }

    #[test]
    fn a_fifth_is_held_out() {
        for (rows, held_out) in [(0, 0), (1, 0), (2, 1), (5, 1), (6, 2), (100, 20)] {
            let all = vec![vec![0]; rows];
            let (seen, unseen) = split(&all);
            assert_eq!((seen.len(), unseen.len()), (rows - held_out, held_out));
        }
    }
}
