//! What several studies use: a head's name, and random directions.

use candle_core::{DType, Device, Tensor};
use endoscope_models::factored::Factored;
use endoscope_train::generator;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// A head by its layer and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub layer: usize,
    pub head: usize,
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.layer, self.head)
    }
}

/// Orthonormal directions `[rank, d]`, drawn at random.
pub(crate) fn random_directions((rank, width): (usize, usize), seed: u64, draw: u64) -> Result<Tensor> {
    let square = Tensor::eye(rank, DType::F32, &Device::Cpu)?;
    let drawn = Factored::new(&square, &noise((rank, width), seed, (1 << 32) + draw)?)?;
    Ok(drawn.svd()?.right.t()?.contiguous()?)
}

/// Numbers from -1 to 1, the same for the same arguments.
pub(crate) fn noise((rows, columns): (usize, usize), seed: u64, stream: u64) -> Result<Tensor> {
    let mut random = generator(seed, stream);
    let numbers: Vec<f32> = (0..rows * columns).map(|_| random.random_range(-1f32..1.)).collect();
    Ok(Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)?)
}
