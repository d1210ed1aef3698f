//! Whitening: the linear change of vectors after which their covariance is the identity, so that inner products do not depend on
//! how the states were stretched.

use serde::{Deserialize, Serialize};

use crate::dictionary::subtract;
use crate::error::{Error, Result};
use crate::matrix::Matrix;

/// `x -> (x - mean) C^(-1/2)`, the symmetric whitening (Bell and Sejnowski 1997), and its inverse.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Whitening {
    /// `[d]`.
    pub mean: Vec<f32>,
    /// `[d, d]`: the inverse root of the covariance.
    pub matrix: Matrix,
    /// `[d, d]`: its root.
    pub inverse: Matrix,
}

/// The least share of the largest variance that a direction counts as having: others are not blown up.
const LEAST_VARIANCE: f64 = 1e-6;

impl Whitening {
    /// That of some vectors, `[rows, d]`, of which there must be more than dimensions.
    pub fn of(x: &Matrix) -> Result<Self> {
        let width = x.columns();
        if x.rows() <= width {
            let reason = format!("a covariance of {width} dimensions needs more than {} vectors", x.rows());
            return Err(Error::Measure(reason));
        }
        x.check(width)?;
        let mean = x.mean();
        let mut centred = x.clone();
        subtract(&mut centred, &mean);
        let transposed = centred.transposed();
        let products = transposed.times_transposed(&transposed)?;
        let scale = 1. / (x.rows() - 1) as f64;
        let values = products.values().iter().map(|&x| f64::from(x) * scale);
        let eigen = nalgebra::SymmetricEigen::new(nalgebra::DMatrix::from_row_iterator(width, width, values));
        let largest = eigen.eigenvalues.iter().copied().fold(0., f64::max);
        if largest <= 0. {
            return Err(Error::Measure("vectors that do not vary have no covariance".into()));
        }
        let power = |exponent: f64| {
            let scales = eigen.eigenvalues.map(|value| value.max(largest * LEAST_VARIANCE).powf(exponent));
            let scaled = &eigen.eigenvectors * nalgebra::DMatrix::from_diagonal(&scales);
            let matrix = scaled * eigen.eigenvectors.transpose();
            Matrix::new(width, width, matrix.iter().map(|&x| x as f32).collect())
        };
        Ok(Self { mean, matrix: power(-0.5)?, inverse: power(0.5)? })
    }

    /// Vectors whitened.
    pub fn apply(&self, x: &Matrix) -> Result<Matrix> {
        let mut centred = x.clone();
        subtract(&mut centred, &self.mean);
        self.directions(&centred)
    }

    /// Directions whitened: as vectors, but without the mean.
    pub fn directions(&self, x: &Matrix) -> Result<Matrix> {
        x.check(self.mean.len())?;
        // The matrix is symmetric.
        x.times_transposed(&self.matrix)
    }

    /// Directions of whitened vectors as those of the vectors they came from.
    pub fn back(&self, x: &Matrix) -> Result<Matrix> {
        x.check(self.mean.len())?;
        x.times_transposed(&self.inverse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitened_vectors_have_unit_covariance() {
        let value = |at: usize| (((at * at + 7 * at) % 97) as f32 - 48.) / (10. + (at % 5) as f32);
        let x = Matrix::new(400, 5, (0..2000).map(value).collect()).unwrap();
        let whitening = Whitening::of(&x).unwrap();
        let white = whitening.apply(&x).unwrap();
        assert!(white.mean().iter().all(|mean| mean.abs() < 1e-4));
        let transposed = white.transposed();
        let products = transposed.times_transposed(&transposed).unwrap();
        for (at, value) in products.values().iter().enumerate() {
            let expected = if at % 6 == 0 { 1. } else { 0. };
            assert!((value / 399. - expected).abs() < 1e-2, "{at}: {value}");
        }
        let there = whitening.directions(&x).unwrap();
        let back = whitening.back(&there).unwrap();
        assert!(back.values().iter().zip(x.values()).all(|(a, b)| (a - b).abs() < 1e-3));
        assert!(Whitening::of(&x.select(0..5)).is_err());
        assert!(Whitening::of(&Matrix::zeros(9, 5)).is_err());
    }
}
