//! How directions lie to each other: within a dictionary, and between two. Gram matrices are computed block by block and never
//! held whole.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::matrix::{Matrix, norm};

/// Rows of a Gram matrix that are held at once.
const BLOCK: usize = 256;

/// The rows of a matrix as unit vectors; rows of length zero stay, and have no cosine with anything.
fn unit(rows: &Matrix) -> Matrix {
    let mut unit = rows.clone();
    for row in 0..unit.rows() {
        let length = norm(unit.row(row));
        if length > 0. {
            unit.row_mut(row).iter_mut().for_each(|x| *x /= length);
        }
    }
    unit
}

/// For each row of `of` the largest cosine with a row of `among`, and that row. With `others`, where both are the same matrix, a
/// row is not compared with itself.
pub fn largest_cosines(of: &Matrix, among: &Matrix, others: bool) -> Result<Vec<(usize, f32)>> {
    if of.columns() != among.columns() {
        let reason = format!("directions of {} and {} dimensions have no cosine", of.columns(), among.columns());
        return Err(Error::Measure(reason));
    }
    let (of, among) = (unit(of), unit(among));
    let mut all = Vec::with_capacity(of.rows());
    for start in (0..of.rows()).step_by(BLOCK) {
        let block = of.select(start..(start + BLOCK).min(of.rows()));
        let cosines = block.times_transposed(&among)?;
        let best = |(number, row): (usize, &[f32])| {
            let own = start + number;
            let candidates = row.iter().copied().enumerate().filter(|&(at, _)| !(others && at == own));
            candidates.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((own, 0.))
        };
        let rows: Vec<&[f32]> = cosines.iter().collect();
        all.par_extend(rows.into_par_iter().enumerate().map(best));
    }
    Ok(all)
}

/// How the directions of one dictionary are found in another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matched {
    /// The mean over its directions of the largest cosine with the other's (MMCS; Sharkey et al. 2022).
    pub mean_max_cosine: f64,
    /// The share of its directions whose largest cosine is above 0.9.
    pub recovered: f64,
    /// The largest cosine of each.
    pub cosines: Vec<f32>,
}

/// How the directions of `of` are found among those of `among`.
pub fn matched(of: &Matrix, among: &Matrix) -> Result<Matched> {
    let cosines: Vec<f32> = largest_cosines(of, among, false)?.into_iter().map(|(_, cosine)| cosine).collect();
    let count = cosines.len().max(1) as f64;
    Ok(Matched {
        mean_max_cosine: cosines.iter().map(|&cosine| f64::from(cosine)).sum::<f64>() / count,
        recovered: cosines.iter().filter(|&&cosine| cosine > 0.9).count() as f64 / count,
        cosines,
    })
}

/// How close the directions of a dictionary are to each other, and what follows for sparse codes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coherence {
    /// The largest absolute cosine of two directions.
    pub coherence: f64,
    /// For each direction the largest absolute cosine with another.
    pub of_each: Vec<f32>,
    /// For each direction the sum of its `k` largest absolute cosines with others (the Babel function; Tropp 2004).
    pub babel: Vec<f32>,
    /// The share of directions that meet the condition under which a code of `k` is unique, `k < (1 + 1/μ) / 2`, with their own
    /// coherence as μ (Donoho and Elad 2003).
    pub unique: f64,
}

/// Coherence for codes of `k` entries.
pub fn coherence(directions: &Matrix, k: usize) -> Result<Coherence> {
    if directions.rows() < 2 || k == 0 {
        return Err(Error::Measure("coherence is of two directions or more, and of codes of one entry or more".into()));
    }
    let unit = unit(directions);
    let (mut of_each, mut babel) = (Vec::new(), Vec::new());
    for start in (0..unit.rows()).step_by(BLOCK) {
        let block = unit.select(start..(start + BLOCK).min(unit.rows()));
        let cosines = block.times_transposed(&unit)?;
        let rows: Vec<&[f32]> = cosines.iter().collect();
        let sums: Vec<(f32, f32)> = rows
            .into_par_iter()
            .enumerate()
            .map(|(number, row)| {
                let mut others: Vec<f32> =
                    row.iter().enumerate().filter(|&(at, _)| at != start + number).map(|(_, x)| x.abs()).collect();
                let k = k.min(others.len());
                others.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
                let largest = others[..k].iter().copied().fold(0., f32::max);
                (largest, others[..k].iter().sum())
            })
            .collect();
        of_each.extend(sums.iter().map(|sums| sums.0));
        babel.extend(sums.iter().map(|sums| sums.1));
    }
    let holds = |&&mu: &&f32| mu == 0. || (k as f64) < (1. + 1. / f64::from(mu)) / 2.;
    let unique = of_each.iter().filter(holds).count() as f64 / of_each.len() as f64;
    let coherence = of_each.iter().copied().fold(0., f32::max);
    Ok(Coherence { coherence: f64::from(coherence), of_each, babel, unique })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_of_directions() {
        let a = Matrix::new(2, 2, vec![2., 0., 0., 3.]).unwrap();
        let b = Matrix::new(3, 2, vec![0., 1., 3., 4., -5., 0.]).unwrap();
        let found = matched(&a, &b).unwrap();
        assert!((found.mean_max_cosine - 0.8).abs() < 1e-6 && found.recovered == 0.5, "{found:?}");
        assert_eq!(largest_cosines(&a, &b, false).unwrap().map_rows(), [1, 0]);
        assert_eq!(largest_cosines(&b, &b, true).unwrap().map_rows(), [1, 0, 0]);
        assert!(matched(&a, &Matrix::zeros(1, 3)).is_err());
    }

    trait Rows {
        fn map_rows(self) -> Vec<usize>;
    }

    impl Rows for Vec<(usize, f32)> {
        fn map_rows(self) -> Vec<usize> {
            self.into_iter().map(|(row, _)| row).collect()
        }
    }

    #[test]
    fn coherence_of_known_directions() {
        // Two at a cosine of 0.6, one orthogonal to both.
        let directions = Matrix::new(3, 3, vec![1., 0., 0., 0.6, -0.8, 0., 0., 0., 7.]).unwrap();
        let found = coherence(&directions, 1).unwrap();
        assert!((found.coherence - 0.6).abs() < 1e-6);
        assert_eq!(found.unique, 1.);
        let two = coherence(&directions, 2).unwrap();
        assert!((two.unique - 1. / 3.).abs() < 1e-9, "{two:?}");
        assert!((two.babel[0] - 0.6).abs() < 1e-6 && two.babel[2] == 0.);
        assert!(coherence(&directions.select([0]), 1).is_err());
    }

    #[test]
    fn many_blocks_give_what_one_gives() {
        let rows = 3 * BLOCK + 5;
        let values = (0..rows * 3).map(|at| ((at * 7919) % 1013) as f32 - 500.).collect();
        let all = Matrix::new(rows, 3, values).unwrap();
        let found = largest_cosines(&all, &all, true).unwrap();
        let unit = unit(&all);
        for row in [0, 255, 256, rows - 1] {
            let cosine = |at: usize| unit.row(row).iter().zip(unit.row(at)).map(|(a, b)| a * b).sum::<f32>();
            let best = (0..rows).filter(|&at| at != row).map(cosine).fold(-1., f32::max);
            assert!((found[row].1 - best).abs() < 1e-5);
        }
    }
}
