//! The decoder's arithmetic below the level of a site, in operations that have gradients.

use candle_core::{Device, Result, Tensor};
use endoscope_kernels::{activation as kernels, add_bias};

use crate::spec::Activation;

/// A linear map `x W + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[in, out]` (may be a transposed view).
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `[…, in] -> […, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (inputs, outputs) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        let rows = x.elem_count() / inputs;
        let mut y = x.reshape((rows, inputs))?.matmul(&self.weight)?;
        if let Some(bias) = &self.bias {
            y = add_bias(&y, bias)?;
        }
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        y.reshape(shape)
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
        let (cos, sin) = cos_sin(&frequencies, 0, context.min(TABULATED))?;
        Ok(Self { frequencies, cos, sin })
    }

    /// Rotates `[batch, position, head, d_head]` whose first position is `offset`.
    pub fn rotate(&self, x: &Tensor, offset: usize) -> Result<Tensor> {
        let (_, length, _, d_head) = x.dims4()?;
        let half = d_head / 2;
        let (cos, sin) = match offset + length <= self.cos.dim(0)? {
            true => (self.cos.narrow(0, offset, length)?, self.sin.narrow(0, offset, length)?),
            false => cos_sin(&self.frequencies, offset, length)?,
        };
        let (cos, sin) = (cos.reshape((1, length, 1, half))?, sin.reshape((1, length, 1, half))?);
        let (first, second) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let rotated_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
        let rotated_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
        Tensor::cat(&[rotated_first, rotated_second], 3)
    }
}

/// Cosines and sines `[length, half]` of the angles from position `offset` on.
fn cos_sin(frequencies: &Tensor, offset: usize, length: usize) -> Result<(Tensor, Tensor)> {
    let positions = Tensor::arange(offset as u32, (offset + length) as u32, frequencies.device())?;
    let angles = positions.to_dtype(frequencies.dtype())?.reshape((length, 1))?.matmul(frequencies)?;
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
        let x = Tensor::new(&[[[[1f32, 0., 0., 1.]]]], &Device::Cpu).unwrap().broadcast_as((1, 4, 1, 4)).unwrap();
        // Across the end of the table: two positions on each side.
        let across = rotary.rotate(&x, TABULATED - 2).unwrap();
        let inside = rotary.rotate(&x.narrow(1, 0, 2).unwrap(), TABULATED - 2).unwrap();
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&across.narrow(1, 0, 2).unwrap()), bits(&inside));
        let last = bits(&across.narrow(1, 3, 1).unwrap());
        let angle = (TABULATED + 1) as f32;
        assert!((last[0] - angle.cos()).abs() < 1e-6 && (last[2] - angle.sin()).abs() < 1e-6, "{last:?}");
    }
}
