//! The decoder's arithmetic below the level of a site, in operations that have gradients.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
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

impl Matrix {
    /// Packs `weight` `[in, out]` unless it is to be trained (no precision).
    pub fn new(weight: Tensor, precision: Option<Precision>) -> crate::Result<Self> {
        Ok(match precision {
            Some(precision) => Self::Packed(Arc::new(PackedMatrix::from_tensor(&weight, precision)?)),
            None => Self::Plain(weight),
        })
    }

    /// `[in, out]`, as it is multiplied.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match self {
            Self::Packed(matrix) => matrix.unpack(),
            Self::Plain(weight) => weight.contiguous(),
        }
    }

    /// How many inputs and outputs it has.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Packed(matrix) => Ok((matrix.inner(), matrix.columns())),
            Self::Plain(weight) => weight.dims2(),
        }
    }
}

impl Linear {
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
    /// `[vocabulary, d]`; 16 bits if it is stored so.
    Table(Tensor),
    /// The columns of the unembedding, kept once.
    Tied(Arc<PackedMatrix>),
}

impl Embedding {
    /// `[tokens, d]`, f32 where the table has 16 bits.
    pub fn rows(&self, tokens: &[u32]) -> Result<Tensor> {
        match self {
            Self::Table(table) => {
                let rows = table.index_select(&Tensor::new(tokens, table.device())?, 0)?;
                match rows.dtype() {
                    DType::BF16 | DType::F16 => rows.to_dtype(DType::F32),
                    _ => Ok(rows),
                }
            }
            Self::Tied(matrix) => matrix.gather(tokens),
        }
    }

    /// `[vocabulary, d]`.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match self {
            Self::Table(table) => table.contiguous(),
            Self::Tied(matrix) => matrix.unpack()?.t()?.contiguous(),
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

/// `[length, offset + length]`: 0 where a query may look, minus infinity where the key lies after it or before its
/// window.
pub fn causal_mask(offset: usize, length: usize, window: Option<usize>, device: &Device) -> Result<Tensor> {
    let keys = offset + length;
    let sees = |query: usize, key: usize| key <= query && window.is_none_or(|window| query - key < window);
    let mask: Vec<f32> = (offset..keys)
        .flat_map(|query| (0..keys).map(move |key| if sees(query, key) { 0. } else { f32::NEG_INFINITY }))
        .collect();
    Tensor::from_vec(mask, (length, keys), device)
}

/// What ALiBi adds to scores, before they are scaled: `[head, key]` of `keys` positions (Press et al. 2021, arXiv
/// 2108.12409). Slopes and products are rounded to bf16, as Falcon was trained with.
pub fn alibi(heads: usize, keys: usize) -> Vec<f32> {
    let power = 1 << heads.ilog2();
    let base = |count: usize| 2f64.powf(-8. / count as f64);
    let slopes = (1..=power).map(|i| base(power).powi(i as i32));
    let between = (0..heads - power).map(|i| base(2 * power).powi(2 * i as i32 + 1));
    let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
    let slopes = slopes.chain(between).map(|slope| rounded(slope as f32));
    slopes.flat_map(|slope| (0..keys).map(move |key| rounded(slope * rounded(key as f32)))).collect()
}
