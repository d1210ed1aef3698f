//! What heads do, in the words of Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"): QK and OV as
//! factored matrices, how much a head copies, and how much heads of later layers read of what earlier ones write.
//!
//! Norms of the stream are not part of it: fold them into the weights first ([`crate::process`]) where they matter. Rotary
//! models turn queries and keys by their distance, so what is shown of QK is the product without that rotation: what a
//! query and a key at the same position see. Biases are left out.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::factored::{Eigenvalue, Factored};
use crate::views::{WeightName, WeightView, for_each_query_head};

/// What a later head reads with of what an earlier one writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Composition {
    /// Its queries.
    Query,
    /// Its keys.
    Key,
    /// Its values.
    Value,
}

/// One head in numbers.
#[derive(Debug, Clone)]
pub struct HeadNumbers {
    /// The Frobenius norm of `W_Q W_K^T`.
    pub qk_norm: f64,
    /// The singular values of `W_Q W_K^T`, the largest first.
    pub qk_singular_values: Vec<f64>,
    /// The Frobenius norm of `W_V W_O`.
    pub ov_norm: f64,
    /// The singular values of `W_V W_O`, the largest first.
    pub ov_singular_values: Vec<f64>,
    /// The eigenvalues of `W_V W_O`, the largest magnitude first.
    pub ov_eigenvalues: Vec<Eigenvalue>,
    /// The sum of the eigenvalues of `W_E W_V W_O W_U` over the sum of their magnitudes: 1 where attending to a token
    /// raises that token's own logit in every direction, -1 where it lowers it.
    pub copying: f64,
}

impl Decoder {
    /// `W_Q W_K^T` of each query head: `[d, d]`, unscaled. Read it as query times key.
    pub fn qk(&self, layer: usize) -> Result<Vec<Factored>> {
        let query = self.heads_of(WeightView::Query, layer)?;
        let key = self.heads_of(WeightView::Key, layer)?;
        each_head(self.spec.heads, |head| Factored::new(&query.get(head)?, &key.get(head)?.t()?))
    }

    /// `W_V W_O` of each query head: `[d, d]`.
    pub fn ov(&self, layer: usize) -> Result<Vec<Factored>> {
        let value = self.heads_of(WeightView::Value, layer)?;
        let output = self.heads_of(WeightView::Output, layer)?;
        each_head(self.spec.heads, |head| Factored::new(&value.get(head)?, &output.get(head)?))
    }

    /// The numbers of every head, layer by layer.
    pub fn heads(&self) -> Result<Vec<Vec<HeadNumbers>>> {
        let all = |view| self.weight(WeightName { view, layer: None });
        let through_vocabulary = all(WeightView::Unembedding)?.matmul(&all(WeightView::Embedding)?)?;
        (0..self.spec.layers)
            .map(|layer| {
                let value = self.heads_of(WeightView::Value, layer)?;
                let output = self.heads_of(WeightView::Output, layer)?;
                let (qk, ov) = (self.qk(layer)?, self.ov(layer)?);
                each_head(self.spec.heads, |head| {
                    // The eigenvalues of W_E W_V W_O W_U are those of W_V (W_O W_U W_E), but for zeros.
                    let copied = Factored::new(&value.get(head)?, &output.get(head)?.matmul(&through_vocabulary)?)?;
                    Ok(HeadNumbers {
                        qk_norm: qk[head].norm(),
                        qk_singular_values: qk[head].singular_values()?,
                        ov_norm: ov[head].norm(),
                        ov_singular_values: ov[head].singular_values()?,
                        ov_eigenvalues: ov[head].eigenvalues()?,
                        copying: positivity(&copied.eigenvalues()?),
                    })
                })
            })
            .collect()
    }

    /// `[layer, head, layer, head]`: what the first head writes, read by the second, as
    /// `|W_OV W_QK| / (|W_OV| |W_QK|)` in Frobenius norms (`W_QK^T` for keys, `W_OV` for values), as TransformerLens's
    /// `all_composition_scores` has it; zero where the second head is not of a later layer, or either does nothing.
    pub fn composition_scores(&self, kind: Composition) -> Result<Tensor> {
        let (layers, heads) = (self.spec.layers, self.spec.heads);
        let mut scores = vec![0f32; (layers * heads).pow(2)];
        // Each earlier head's write [r, d] without what does not change norms, of norm 1, one below the other.
        let mut writes: Vec<Tensor> = Vec::with_capacity(layers);
        for later in 0..layers {
            let reads = match kind {
                Composition::Query => self.qk(later)?,
                Composition::Key => self.qk(later)?.iter().map(Factored::transpose).collect(),
                Composition::Value => self.ov(later)?,
            };
            let reads = each_head(heads, |head| of_norm_one(reads[head].without_right()?))?;
            let reads = Tensor::cat(&reads, 1)?;
            for (earlier, writes) in writes.iter().enumerate() {
                let norms = block_norms(&writes.matmul(&reads)?, heads)?;
                for (at, norm) in norms.into_iter().enumerate() {
                    let (from, to) = (earlier * heads + at / heads, later * heads + at % heads);
                    scores[from * layers * heads + to] = norm;
                }
            }
            if later + 1 < layers {
                let ov = self.ov(later)?;
                let ov = each_head(heads, |head| of_norm_one(ov[head].without_left()?))?;
                writes.push(Tensor::cat(&ov, 0)?);
            }
        }
        Ok(Tensor::from_vec(scores, (layers, heads, layers, heads), &candle_core::Device::Cpu)?)
    }

    /// A view of a layer, with one entry for each query head.
    fn heads_of(&self, view: WeightView, layer: usize) -> Result<Tensor> {
        for_each_query_head(&self.weight(WeightName { view, layer: Some(layer) })?, 0, self.spec.heads)
    }
}

fn each_head<T: Send>(heads: usize, f: impl Fn(usize) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
    (0..heads).into_par_iter().map(f).collect()
}

/// The sum of eigenvalues over the sum of their magnitudes (Elhage et al. 2021, "Detecting copying behavior").
pub fn positivity(values: &[Eigenvalue]) -> f64 {
    let magnitudes: f64 = values.iter().map(|value| value.magnitude()).sum();
    if magnitudes == 0. { 0. } else { values.iter().map(|value| value.real).sum::<f64>() / magnitudes }
}

fn of_norm_one(x: Tensor) -> Result<Tensor> {
    let norm = x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
    Ok(if norm == 0. { x } else { x.to_dtype(DType::F64)?.affine(1. / norm, 0.)?.to_dtype(DType::F32)? })
}

/// The norm of each of `heads x heads` blocks of a matrix.
fn block_norms(x: &Tensor, heads: usize) -> Result<Vec<f32>> {
    let (rows, columns) = x.dims2()?;
    if !rows.is_multiple_of(heads) || !columns.is_multiple_of(heads) {
        return Err(Error::Factored {
            what: "composition",
            reason: format!("{rows} x {columns} has no {heads} blocks"),
        });
    }
    let values = x.flatten_all()?.to_vec1::<f32>()?;
    let (height, width) = (rows / heads, columns / heads);
    let mut sums = vec![0f64; heads * heads];
    for (row, values) in values.chunks(columns.max(1)).enumerate() {
        for (head, values) in values.chunks(width.max(1)).enumerate() {
            let squares: f32 = values.iter().map(|value| value * value).sum();
            sums[row / height * heads + head] += f64::from(squares);
        }
    }
    Ok(sums.into_iter().map(|sum| sum.sqrt() as f32).collect())
}
