//! What is done to each input vector before it is encoded, and how that is undone.

use crate::config::Normalization;
use crate::matrix::{Matrix, norm};

/// How one vector was changed: `y = (x - shift) / scale`, up to the 1e-5 that a LayerNorm adds to its divisor alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rescaled {
    scale: f32,
    shift: f32,
}

impl Rescaled {
    /// What the vector was divided by.
    pub fn scale(self) -> f32 {
        self.scale
    }

    /// Back to where the vector came from.
    pub fn undo(self, row: &mut [f32]) {
        row.iter_mut().for_each(|x| *x = *x * self.scale + self.shift);
    }
}

/// The rows of `x` as the encoder reads them, and how to get back.
pub(crate) fn normalize(normalization: Normalization, x: &Matrix) -> (Matrix, Option<Vec<Rescaled>>) {
    let mut rows = x.clone();
    let each: fn(&mut [f32]) -> Rescaled = match normalization {
        Normalization::None | Normalization::ExpectedAverageOnlyIn => return (rows, None),
        Normalization::ConstantNormRescale => constant_norm,
        Normalization::LayerNorm => layer_norm,
    };
    let rescaled = (0..rows.rows()).map(|row| each(rows.row_mut(row))).collect();
    (rows, Some(rescaled))
}

fn constant_norm(row: &mut [f32]) -> Rescaled {
    let length = norm(row);
    // A vector of zeros has no direction; it stays, and comes back as it was written.
    let scale = if length > 0. { length / (row.len() as f32).sqrt() } else { 1. };
    row.iter_mut().for_each(|x| *x /= scale);
    Rescaled { scale, shift: 0. }
}

fn layer_norm(row: &mut [f32]) -> Rescaled {
    let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / row.len().max(1) as f64;
    let squares = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
    let deviation = (squares / row.len().saturating_sub(1).max(1) as f64).sqrt() as f32;
    let mean = mean as f32;
    row.iter_mut().for_each(|x| *x = (*x - mean) / (deviation + 1e-5));
    Rescaled { scale: deviation, shift: mean }
}
