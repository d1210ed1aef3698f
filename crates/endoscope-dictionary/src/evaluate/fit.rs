//! What a dictionary explains, and with how many latents: sums over batches, figures at the end.

use serde::{Deserialize, Serialize};

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, norm};

/// The edges of the density histogram, as powers of ten: below the first, between two, above the last.
pub const HISTOGRAM_EDGES: [i32; 6] = [-6, -5, -4, -3, -2, -1];

/// What a dictionary makes of activations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// How many vectors.
    pub rows: u64,
    /// Active latents a vector.
    pub l0: f64,
    /// The fraction of variance unexplained: `Σ ‖y - ŷ‖² / Σ ‖y - mean y‖²`. 1 less the explained variance.
    pub fvu: f64,
    /// The squared error, summed over dimensions, averaged over vectors.
    pub mse: f64,
    /// The mean cosine of what is written with what should be.
    pub cosine: f64,
    /// The mean length of what is written over the mean length of what should be.
    pub length_ratio: f64,
    /// The mean sum of activations.
    pub l1: f64,
    /// The share of latents that were never active.
    pub dead: f64,
    /// How many latents are active on a share of vectors below 1e-6, below 1e-5, … below 0.1, and at or above it; the first
    /// holds the dead ones.
    pub density_histogram: Vec<u64>,
}

/// The sums behind a [`Fit`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FitSums {
    rows: u64,
    active: u64,
    error: f64,
    sum: Vec<f64>,
    square: f64,
    cosine: f64,
    length: f64,
    target_length: f64,
    l1: f64,
    fired: Vec<u64>,
}

impl FitSums {
    /// Adds vectors, `[rows, d_in]`, and what should be written, `[rows, d_out]`, where that is not the same.
    pub fn add(&mut self, dictionary: &Dictionary, input: &Matrix, target: Option<&Matrix>) -> Result<()> {
        let codes = dictionary.encode(input)?;
        let output = dictionary.reconstruct_from(input, &codes)?;
        let target = target.unwrap_or(input);
        if (target.rows(), target.columns()) != (output.rows(), output.columns()) {
            let (rows, columns) = (target.rows(), target.columns());
            let reason = format!(
                "{rows} targets of {columns} dimensions do not fit a dictionary that writes {}",
                output.columns()
            );
            return Err(Error::Activations(reason));
        }
        target.check(output.columns())?;
        self.sum.resize(target.columns(), 0.);
        self.fired.resize(dictionary.latents(), 0);
        self.rows += target.rows() as u64;
        self.active += codes.latents.entries() as u64;
        self.l1 += codes.latents.values().iter().map(|&x| f64::from(x)).sum::<f64>();
        codes.latents.columns().iter().for_each(|&latent| self.fired[latent as usize] += 1);
        for (y, t) in output.iter().zip(target.iter()) {
            let (own, wanted) = (f64::from(norm(y)), f64::from(norm(t)));
            let product: f64 = y.iter().zip(t).map(|(&y, &t)| f64::from(y) * f64::from(t)).sum();
            self.error += y.iter().zip(t).map(|(&y, &t)| (f64::from(y) - f64::from(t)).powi(2)).sum::<f64>();
            self.sum.iter_mut().zip(t).for_each(|(sum, &t)| *sum += f64::from(t));
            self.square += wanted * wanted;
            self.cosine += if own * wanted > 0. { product / (own * wanted) } else { 0. };
            self.length += own;
            self.target_length += wanted;
        }
        Ok(())
    }

    /// On how many vectors each latent was active.
    pub fn fired(&self) -> &[u64] {
        &self.fired
    }

    /// The figures.
    pub fn finish(&self) -> Result<Fit> {
        if self.rows < 2 {
            return Err(Error::Measure(format!("{} vectors have no variance", self.rows)));
        }
        let rows = self.rows as f64;
        let variance = self.square - self.sum.iter().map(|sum| sum * sum).sum::<f64>() / rows;
        if variance <= 0. {
            return Err(Error::Measure(
                "all vectors are the same, so that none of their variance can be explained".into(),
            ));
        }
        let mut density_histogram = vec![0; HISTOGRAM_EDGES.len() + 1];
        for &fired in &self.fired {
            let density = fired as f64 / rows;
            let bin = HISTOGRAM_EDGES.iter().position(|&edge| density < 10f64.powi(edge));
            density_histogram[bin.unwrap_or(HISTOGRAM_EDGES.len())] += 1;
        }
        let dead = self.fired.iter().filter(|&&fired| fired == 0).count();
        Ok(Fit {
            rows: self.rows,
            l0: self.active as f64 / rows,
            fvu: self.error / variance,
            mse: self.error / rows,
            cosine: self.cosine / rows,
            length_ratio: self.length / self.target_length,
            l1: self.l1 / rows,
            dead: dead as f64 / self.fired.len().max(1) as f64,
            density_histogram,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::dictionary::Weights;

    fn halving() -> Dictionary {
        let eye = Matrix::new(2, 2, vec![1., 0., 0., 1.]).unwrap();
        let half = Matrix::new(2, 2, vec![0.5, 0., 0., 0.5]).unwrap();
        let weights = Weights {
            encoder: eye,
            encoder_bias: vec![0.; 2],
            decoder: half,
            decoder_bias: vec![0.; 2],
            ..Weights::default()
        };
        Dictionary::new(Config::default(), weights).unwrap()
    }

    #[test]
    fn figures_are_those_of_the_definitions() {
        let x = Matrix::new(4, 2, vec![2., 0., 4., 0., 6., 0., 0., 0.]).unwrap();
        let mut sums = FitSums::default();
        sums.add(&halving(), &x.select([0, 1]), None).unwrap();
        sums.add(&halving(), &x.select([2, 3]), None).unwrap();
        let fit = sums.finish().unwrap();
        // Errors 1, 4, 9, 0; around the mean 3: 1, 1, 9, 9.
        assert_eq!((fit.rows, fit.l0, fit.mse, fit.fvu), (4, 0.75, 3.5, 14. / 20.));
        assert_eq!((fit.cosine, fit.length_ratio, fit.l1, fit.dead), (0.75, 0.5, 3., 0.5));
        assert_eq!(fit.density_histogram, [1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(sums.fired(), [3, 0]);
    }

    #[test]
    fn what_does_not_vary_is_not_explained() {
        let mut sums = FitSums::default();
        sums.add(&halving(), &Matrix::new(2, 2, vec![1.; 4]).unwrap(), None).unwrap();
        assert!(sums.finish().is_err());
        assert!(sums.add(&halving(), &Matrix::zeros(2, 3), None).is_err());
        assert!(sums.add(&halving(), &Matrix::zeros(2, 2), Some(&Matrix::zeros(1, 2))).is_err());
    }
}
