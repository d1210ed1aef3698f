//! The mathematics of a decoder once more, in f64 and without a look at the forward pass.

use candle_core::{D, DType, Device, Result, Tensor};
use half::bf16;

use crate::decoder::NormWeights;
use crate::ops::{Linear, Matrix};
use crate::rotary::{Pairs, Rotary, RotaryScaling};
use crate::spec::{Activation, Norm};

/// How many outputs of a linear map are computed at once: its matrix is never whole in memory in f64.
const OUTPUTS: usize = 1024;

/// `x W + b` of `[row, in]`.
pub(super) fn linear(linear: &Linear, x: &Tensor) -> Result<Tensor> {
    let product = product(&linear.matrix, x)?;
    match &linear.bias {
        Some(bias) => product.broadcast_add(&double(bias)?),
        None => Ok(product),
    }
}

/// `x W` of `[row, in]`.
fn product(matrix: &Matrix, x: &Tensor) -> Result<Tensor> {
    let outputs = match matrix {
        Matrix::Packed(matrix) => matrix.columns(),
        Matrix::Plain(weight) => weight.dim(1)?,
    };
    let starts = (0..outputs).step_by(OUTPUTS);
    let parts = starts.map(|start| {
        let count = OUTPUTS.min(outputs - start);
        let columns = match matrix {
            Matrix::Packed(matrix) => {
                let columns: Vec<u32> = (start..start + count).map(|column| column as u32).collect();
                matrix.gather(&columns)?.t()?
            }
            Matrix::Plain(weight) => weight.narrow(1, start, count)?,
        };
        x.matmul(&double(&columns)?.contiguous()?)
    });
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
}

/// A norm's divisor and what is divided by it, over the last axis.
pub(super) fn normalise(norm: Norm, epsilon: f64, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let centred = match norm {
        Norm::LayerNorm | Norm::PlainLayerNorm => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        Norm::RmsNorm => x.clone(),
    };
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    let normalized = centred.broadcast_div(&scale)?;
    Ok((scale, normalized))
}

/// What a norm makes of what it has divided.
pub(super) fn weighted(weights: &NormWeights, normalized: &Tensor) -> Result<Tensor> {
    let weighted = normalized.broadcast_mul(&double(&weights.weight)?)?;
    match &weights.bias {
        Some(bias) => weighted.broadcast_add(&double(bias)?),
        None => Ok(weighted),
    }
}

/// The activation function.
pub(super) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::GeluErf => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
    }
}

/// `cap tanh(x / cap)`, where there is a cap.
pub(super) fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}

/// Over the last axis.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let powers = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

/// `[query, key]`: whether a query may look at a key.
pub(super) fn sees(query: usize, key: usize, window: Option<usize>) -> bool {
    key <= query && window.is_none_or(|window| query < key + window)
}

/// `[1, position, position]`: minus infinity where a query may not look.
pub(super) fn mask(positions: usize, window: Option<usize>) -> Result<Tensor> {
    let cell = |at: usize| match sees(at / positions, at % positions, window) {
        true => 0.,
        false => f64::NEG_INFINITY,
    };
    let cells: Vec<f64> = (0..positions * positions).map(cell).collect();
    Tensor::from_vec(cells, (1, positions, positions), &Device::Cpu)
}

/// ALiBi: `[head, 1, key]`, a slope times the key's position, both and their product rounded to bf16 as Falcon has it.
pub(super) fn alibi(heads: usize, keys: usize) -> Result<Tensor> {
    let rounded = |x: f32| bf16::from_f32(x).to_f32();
    let power = (1..=heads).rev().find(|count| count.is_power_of_two()).unwrap_or(1);
    // The first heads divide 8 octaves evenly; those beyond a power of two stand between them.
    let octaves = |head: usize| match head < power {
        true => 8. * (head + 1) as f64 / power as f64,
        false => 8. * (2 * (head - power) + 1) as f64 / (2 * power) as f64,
    };
    let slopes = (0..heads).map(|head| rounded((-octaves(head)).exp2() as f32));
    let cells: Vec<f64> =
        slopes.flat_map(|slope| (0..keys).map(move |key| f64::from(rounded(slope * rounded(key as f32))))).collect();
    Tensor::from_vec(cells, (heads, 1, keys), &Device::Cpu)
}

/// The turn of each pair from one position to the next, in radians.
fn turns(rotary: &Rotary) -> Vec<f64> {
    let pairs = rotary.dims / 2;
    let plain = (0..pairs).map(|pair| rotary.base.powf(-(pair as f64) / pairs as f64));
    let circle = std::f64::consts::TAU;
    match &rotary.scaling {
        RotaryScaling::None => plain.collect(),
        RotaryScaling::Linear { factor } => plain.map(|turn| turn / factor).collect(),
        RotaryScaling::Factors { factors, .. } => plain.zip(factors).map(|(turn, factor)| turn / factor).collect(),
        RotaryScaling::Llama3 { factor, low, high, original_context } => plain
            .map(|turn| {
                // How far between the two ends the pair's circles over the original context lie.
                let circles = *original_context as f64 * turn / circle;
                let kept = ((circles - low) / (high - low)).clamp(0., 1.);
                turn * (kept + (1. - kept) / factor)
            })
            .collect(),
        RotaryScaling::Yarn { factor, fast, slow, truncate, original_context, .. } => {
            // The pair, as a fraction, that makes so many circles over the original context.
            let pair =
                |circles: f64| pairs as f64 * (*original_context as f64 / (circles * circle)).ln() / rotary.base.ln();
            let (first, last) = match truncate {
                true => (pair(*fast).floor(), pair(*slow).ceil()),
                false => (pair(*fast), pair(*slow)),
            };
            let (first, last) = (first.max(0.), last.min(rotary.dims as f64 - 1.));
            let width = if first == last { 0.001 } else { last - first };
            plain
                .enumerate()
                .map(|(at, turn)| {
                    let kept = 1. - ((at as f64 - first) / width).clamp(0., 1.);
                    turn * (kept + (1. - kept) / factor)
                })
                .collect()
        }
    }
}

/// What queries and keys are multiplied by besides being turned.
pub(super) fn attention_factor(rotary: &Rotary) -> f64 {
    match rotary.scaling {
        RotaryScaling::Yarn { attention, .. } | RotaryScaling::Factors { attention, .. } => attention,
        RotaryScaling::None | RotaryScaling::Linear { .. } | RotaryScaling::Llama3 { .. } => 1.,
    }
}

/// `[position, head, d_head]`, each pair turned as far as its position says.
pub(super) fn rotate(rotary: &Rotary, x: &Tensor) -> Result<Tensor> {
    let (positions, heads, d_head) = x.dims3()?;
    let (turns, factor) = (turns(rotary), attention_factor(rotary));
    let mut values: Vec<f64> = x.flatten_all()?.to_vec1()?;
    for position in 0..positions {
        for head in 0..heads {
            let start = (position * heads + head) * d_head;
            let vector = &mut values[start..start + d_head];
            for (pair, turn) in turns.iter().enumerate() {
                let (first, second) = members(rotary, pair);
                let (sin, cos) = (position as f64 * turn).sin_cos();
                let (a, b) = (vector[first], vector[second]);
                vector[first] = factor * (a * cos - b * sin);
                vector[second] = factor * (b * cos + a * sin);
            }
        }
    }
    Tensor::from_vec(values, (positions, heads, d_head), &Device::Cpu)
}

/// The dimensions of a pair.
fn members(rotary: &Rotary, pair: usize) -> (usize, usize) {
    match rotary.pairs {
        Pairs::Halves => (pair, pair + rotary.dims / 2),
        Pairs::Neighbours => (2 * pair, 2 * pair + 1),
    }
}

/// In f64.
pub(super) fn double(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F64)
}
