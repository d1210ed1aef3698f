//! The decoder's arithmetic below the level of a site, in operations that have gradients.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use endoscope_kernels::{PackedMatrix, Precision, activation as kernels, add_bias};

use crate::spec::Activation;

/// The matrix of a linear map.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// Packed for products.
    Packed(Arc<PackedMatrix>),
    /// A tensor `[in, out]` (may be a transposed view): a variable that is being trained.
    Plain(Tensor),
}

/// A linear map `x W + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[in, out]`.
    pub matrix: Matrix,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Packs `weight` `[in, out]` unless it is to be trained (no precision).
    pub fn new(weight: Tensor, bias: Option<Tensor>, precision: Option<Precision>) -> Result<Self> {
        let matrix = match precision {
            Some(precision) => Matrix::Packed(Arc::new(PackedMatrix::from_tensor(&weight, precision)?)),
            None => Matrix::Plain(weight),
        };
        Ok(Self { matrix, bias })
    }

    /// `[row, in] -> [row, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.matrix {
            Matrix::Packed(matrix) => matrix.product(x, self.bias.as_ref(), None),
            Matrix::Plain(weight) => {
                let y = x.matmul(weight)?;
                match &self.bias {
                    Some(bias) => add_bias(&y, bias),
                    None => Ok(y),
                }
            }
        }
    }

    /// `residual + (x W + b)`, of which `[row, out]` is one pass.
    pub fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.matrix {
            Matrix::Packed(matrix) => matrix.product(x, self.bias.as_ref(), Some(residual)),
            Matrix::Plain(_) => self.forward(x)? + residual,
        }
    }

    /// `x W` where `x` `[row, values]` stands for the inputs `range` and all others are zero; no bias.
    pub fn forward_part(&self, x: &Tensor, range: Range<usize>) -> Result<Tensor> {
        match &self.matrix {
            Matrix::Packed(matrix) if !x.track_op() => matrix.product_of_part(x, range),
            Matrix::Packed(matrix) => x.matmul(&matrix.unpack()?.narrow(0, range.start, range.len())?),
            Matrix::Plain(weight) => x.matmul(&weight.narrow(0, range.start, range.len())?),
        }
    }

    /// The map to these outputs only.
    pub fn select(&self, outputs: &[u32]) -> Result<Self> {
        let indices = |x: &Tensor| Tensor::new(outputs, x.device());
        let matrix = match &self.matrix {
            Matrix::Packed(matrix) => Matrix::Packed(Arc::new(matrix.select(outputs)?)),
            Matrix::Plain(weight) => Matrix::Plain(weight.contiguous()?.index_select(&indices(weight)?, 1)?),
        };
        let bias = self.bias.as_ref().map(|bias| bias.contiguous()?.index_select(&indices(bias)?, 0)).transpose()?;
        Ok(Self { matrix, bias })
    }
}

/// Vectors of tokens.
#[derive(Debug, Clone)]
pub enum Embedding {
    /// `[vocabulary, d]`.
    Table(Tensor),
    /// The columns of the unembedding, kept once.
    Tied(Arc<PackedMatrix>),
}

impl Embedding {
    /// `[tokens, d]`.
    pub fn rows(&self, tokens: &[u32]) -> Result<Tensor> {
        match self {
            Self::Table(table) => table.index_select(&Tensor::new(tokens, table.device())?, 0),
            Self::Tied(matrix) => matrix.gather(tokens),
        }
    }
}

/// The activation function, elementwise.
pub fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::GeluErf => kernels::gelu_erf(x),
        Activation::GeluTanh => kernels::gelu_tanh(x),
        Activation::Silu => kernels::silu(x),
        Activation::Relu => kernels::relu(x),
    }
}

/// The activation function of `gate`, times `up`.
pub fn activate_gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::GeluErf => kernels::gated_gelu_erf(gate, up),
        Activation::GeluTanh => kernels::gated_gelu_tanh(gate, up),
        Activation::Silu => kernels::gated_silu(gate, up),
        Activation::Relu => kernels::gated_relu(gate, up),
    }
}

/// How many positions are tabulated: a config may name any context, so memory must not follow it.
const TABULATED: usize = 1 << 14;

/// Cosines and sines of the rotary angles: tabulated for the first positions, computed for later ones.
#[derive(Debug, Clone)]
pub struct Rotary {
    frequencies: Tensor,
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Angles `position / base^(2i / d_head)`, in f32 as the reference implementations compute them.
    pub fn new(base: f64, d_head: usize, context: usize, device: &Device) -> Result<Self> {
        let half = d_head / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1. / (base as f32).powf((2 * i) as f32 / d_head as f32)).collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), device)?;
        let (cos, sin) = cos_sin(&frequencies, &(0..context.min(TABULATED)).collect::<Vec<_>>())?;
        Ok(Self { frequencies, cos, sin })
    }

    /// Rotates rows `[row, head, d_head]`, each at its position.
    pub fn rotate(&self, x: &Tensor, positions: &[usize]) -> Result<Tensor> {
        let (rows, _, d_head) = x.dims3()?;
        let half = d_head / 2;
        let last = positions.iter().copied().max().unwrap_or(0);
        let (cos, sin) = match last < self.cos.dim(0)? {
            true => {
                let positions: Vec<u32> = positions.iter().map(|&at| at as u32).collect();
                let positions = Tensor::from_vec(positions, rows, x.device())?;
                (self.cos.index_select(&positions, 0)?, self.sin.index_select(&positions, 0)?)
            }
            false => cos_sin(&self.frequencies, positions)?,
        };
        rotate_halves(x, &cos.reshape((rows, 1, half))?, &sin.reshape((rows, 1, half))?)
    }
}

fn rotate_halves(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(2)? / 2;
    let (first, second) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let rotated_first = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
    let rotated_second = (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?;
    Tensor::cat(&[rotated_first, rotated_second], 2)
}

/// Cosines and sines `[position, half]` of the angles at `positions`.
fn cos_sin(frequencies: &Tensor, positions: &[usize]) -> Result<(Tensor, Tensor)> {
    let count = positions.len();
    let positions: Vec<f32> = positions.iter().map(|&at| at as f32).collect();
    let positions = Tensor::from_vec(positions, (count, 1), frequencies.device())?;
    let angles = positions.matmul(frequencies)?;
    Ok((angles.cos()?, angles.sin()?))
}

/// `[length, offset + length]`: 0 where a query may look, minus infinity where the key lies after it.
pub fn causal_mask(offset: usize, length: usize, device: &Device) -> Result<Tensor> {
    let keys = offset + length;
    let mask: Vec<f32> = (0..length)
        .flat_map(|query| (0..keys).map(move |key| if key > offset + query { f32::NEG_INFINITY } else { 0. }))
        .collect();
    Tensor::from_vec(mask, (length, keys), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    #[test]
    fn positions_beyond_the_table_follow_the_same_formula() {
        let rotary = Rotary::new(10000., 4, 1 << 28, &Device::Cpu).unwrap();
        assert_eq!(rotary.cos.dim(0).unwrap(), TABULATED);
        let x = Tensor::new(&[[[1f32, 0., 0., 1.]]], &Device::Cpu).unwrap().broadcast_as((4, 1, 4)).unwrap();
        // Across the end of the table: two positions on each side.
        let from = TABULATED - 2;
        let across = rotary.rotate(&x, &[from, from + 1, from + 2, from + 3]).unwrap();
        let inside = rotary.rotate(&x.narrow(0, 0, 2).unwrap(), &[from, from + 1]).unwrap();
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&across.narrow(0, 0, 2).unwrap()), bits(&inside));
        let last = bits(&across.narrow(0, 3, 1).unwrap());
        let angle = (TABULATED + 1) as f32;
        assert!((last[0] - angle.cos()).abs() < 1e-6 && (last[2] - angle.sin()).abs() < 1e-6, "{last:?}");
    }
}
