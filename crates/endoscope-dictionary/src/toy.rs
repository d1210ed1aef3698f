//! Vectors whose features are known: what dictionaries are tried on.
//!
//! After the toy models of superposition (Elhage et al. 2022): more directions than dimensions, few of them in each vector. With
//! groups, features of one group come together; with parents, a feature comes only with its parent (as in Bussmann et al. 2025,
//! which trains Matryoshka dictionaries on such trees).

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::training::{Examples, Stream, start};

/// How vectors are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Toy {
    /// How many dimensions.
    pub width: usize,
    /// How many features.
    pub features: usize,
    /// How many features a vector has on average.
    pub active: f64,
    /// How features depend on each other.
    pub structure: Structure,
    /// The deviation of noise in each dimension.
    pub noise: f32,
    /// What directions and vectors are drawn by.
    pub seed: u64,
}

/// How features depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Structure {
    /// Not at all.
    #[default]
    Independent,
    /// Groups of so many features: where a group is there, half of its features are.
    Correlated(usize),
    /// Trees of one parent and so many children less one: children come only with their parent.
    Hierarchical(usize),
}

impl Default for Toy {
    fn default() -> Self {
        Self { width: 64, features: 256, active: 5., structure: Structure::default(), noise: 0., seed: 0 }
    }
}

/// Directions that were drawn, and vectors of them.
#[derive(Debug, Clone)]
pub struct ToyStream {
    toy: Toy,
    directions: Matrix,
}

impl Toy {
    /// Draws the directions.
    pub fn stream(&self) -> Result<ToyStream> {
        let group = match self.structure {
            Structure::Independent => 1,
            Structure::Correlated(group) | Structure::Hierarchical(group) => group,
        };
        let whole = group > 0 && self.features > 0 && self.width > 0 && self.features.is_multiple_of(group);
        let few = self.active > 0. && self.active <= self.features as f64 / 2.;
        if !(whole && few && self.noise.is_finite()) {
            let reason = format!("{self:?}: features are whole groups, of which at most half are active");
            return Err(Error::Config(reason));
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let values = start::directions(self.features, self.width, 1., &mut random);
        Ok(ToyStream { toy: self.clone(), directions: Matrix::new(self.features, self.width, values)? })
    }
}

impl ToyStream {
    /// `[features, width]`: the true directions, of length 1.
    pub fn directions(&self) -> &Matrix {
        &self.directions
    }

    /// Vectors `[rows, width]`, the same for the same number.
    pub fn vectors(&self, number: u64, rows: usize) -> Matrix {
        let Toy { width, features, active, structure, noise, seed } = self.toy;
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ (number + 1).rotate_left(20));
        let mut vectors = Matrix::zeros(rows, width);
        // Shares at which `active` features are there on average.
        let (group, first, others) = match structure {
            Structure::Independent => (1, active / features as f64, 0.),
            Structure::Correlated(group) => (group, 2. * active / features as f64, 0.5),
            Structure::Hierarchical(group) => {
                let (size, child) = (group as f64, 0.3);
                (group, active * size / features as f64 / (1. + child * (size - 1.)), child)
            }
        };
        for row in 0..rows {
            for start in (0..features).step_by(group) {
                if random.random::<f64>() >= first {
                    continue;
                }
                for feature in start..start + group {
                    let always = group == 1 || (feature == start && matches!(structure, Structure::Hierarchical(_)));
                    if always || random.random::<f64>() < others {
                        let size = 0.5 + random.random::<f32>();
                        let direction = self.directions.row(feature);
                        vectors.row_mut(row).iter_mut().zip(direction).for_each(|(x, d)| *x += size * d);
                    }
                }
            }
            if noise > 0. {
                vectors.row_mut(row).iter_mut().for_each(|x| *x += noise * start::gaussian(&mut random));
            }
        }
        vectors
    }
}

impl Stream for ToyStream {
    fn batch(&mut self, number: u64, rows: usize) -> Result<Examples> {
        Ok(Examples { input: self.vectors(number, rows), target: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_features_are_there_as_were_asked_for() {
        for structure in [Structure::Independent, Structure::Correlated(4), Structure::Hierarchical(4)] {
            // With as many dimensions as features that are nearly orthogonal, products tell which features are there.
            let toy = Toy { width: 2048, features: 32, active: 3., structure, ..Toy::default() };
            let stream = toy.stream().unwrap();
            let vectors = stream.vectors(0, 2000);
            let products = vectors.times_transposed(stream.directions()).unwrap();
            let there = products.values().iter().map(|&x| x > 0.3);
            let count = there.clone().filter(|&there| there).count() as f64 / 2000.;
            assert!((count - 3.).abs() < 0.25, "{structure:?}: {count}");
            let there: Vec<bool> = there.collect();
            if let Structure::Hierarchical(_) = structure {
                let orphan = |row: &[bool]| row.chunks(4).any(|tree| !tree[0] && tree.iter().any(|&x| x));
                assert!(!there.chunks(32).any(orphan));
            }
            assert_eq!(vectors, stream.vectors(0, 2000));
            assert_ne!(vectors, stream.vectors(1, 2000));
        }
        assert!(Toy { features: 10, structure: Structure::Correlated(4), ..Toy::default() }.stream().is_err());
    }
}
