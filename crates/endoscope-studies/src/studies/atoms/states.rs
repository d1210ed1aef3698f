//! States that are made of known atoms.

use endoscope_dictionary::Matrix;
use endoscope_dictionary::evaluate::matched;
use endoscope_train::generator;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::Config;
use crate::error::Result;

/// States of known atoms, stretched: `x = c D A`.
pub struct States {
    /// `[atoms, width]`: two orthonormal bases that are as far from each other as bases can be (the identity and Hadamard's
    /// matrix, turned together), so that the largest cosine of two atoms is `1 / √width`.
    pub atoms: Matrix,
    /// `[width, width]`, and its inverse.
    pub stretched: Matrix,
    back: Matrix,
    seed: u64,
}

impl States {
    pub fn new(config: &Config, seed: u64) -> Result<Self> {
        let width = config.width;
        let scale = 1. / (width as f32).sqrt();
        let hadamard =
            |row: usize, column: usize| if (row & column).count_ones().is_multiple_of(2) { scale } else { -scale };
        let both = |row: usize, column: usize| match row < width {
            true => f32::from(u8::from(row == column)),
            false => hadamard(row - width, column),
        };
        let values = (0..2 * width * width).map(|at| both(at / width, at % width)).collect();
        let turn = rotation(width, seed, 1)?;
        let atoms = Matrix::new(2 * width, width, values)?.times_transposed(&turn)?;
        // Turned, stretched along the axes from 1 / √s to √s, and turned again.
        let (first, second) = (rotation(width, seed, 2)?, rotation(width, seed, 3)?);
        let along = |at: usize| config.stretch.powf(at as f64 / (width - 1) as f64 - 0.5) as f32;
        let map = |power: f32| -> Result<Matrix> {
            let mut scaled = first.clone();
            for row in 0..width {
                scaled.row_mut(row).iter_mut().for_each(|x| *x *= along(row).powf(power));
            }
            Ok(scaled)
        };
        // A = Fᵀ S G, its inverse Gᵀ S⁻¹ F; both as matrices that rows are multiplied by.
        let stretched = map(1.)?.transposed().times_transposed(&second.transposed())?;
        let back = second.transposed().times_transposed(&map(-1.)?.transposed())?;
        Ok(Self { atoms, stretched, back, seed })
    }

    /// States, `[rows, width]`, of `active` atoms each.
    pub fn draw(&self, number: u64, rows: usize, active: usize) -> Result<Matrix> {
        let mut random = generator(self.seed, (1 << 40) + number);
        let mut straight = Matrix::zeros(rows, self.atoms.columns());
        let mut order: Vec<usize> = (0..self.atoms.rows()).collect();
        for row in 0..rows {
            let (chosen, _) = order.partial_shuffle(&mut random, active.min(self.atoms.rows()));
            for &mut atom in chosen {
                let size = random.random_range(0.5f32..1.5);
                straight.row_mut(row).iter_mut().zip(self.atoms.row(atom)).for_each(|(x, d)| *x += size * d);
            }
        }
        Ok(straight.times_transposed(&self.stretched.transposed())?)
    }

    /// How well directions of stretched states are the atoms, once the stretch is taken back.
    pub fn recovered(&self, directions: &Matrix) -> Result<f64> {
        Ok(matched(&self.atoms, &directions.times_transposed(&self.back.transposed())?)?.mean_max_cosine)
    }
}

/// An orthogonal matrix, drawn at random.
fn rotation(width: usize, seed: u64, draw: u64) -> Result<Matrix> {
    Ok(Matrix::from_tensor(&crate::shared::random_directions((width, width), seed, draw)?)?)
}
