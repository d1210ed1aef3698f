//! Weight processing: other weights that compute the same, chosen so that they are easier to read. Off unless asked for.
//!
//! What TransformerLens does by default when it loads a model, here under names that are recorded in
//! [`Decoder::processed`]. The matrices that are changed are kept in f32 whatever the rest is kept as, because rounding them
//! again would not be neutral. Sites move with the weights: after `fold-ln` what a matrix reads is `hook_normalized` itself.

use std::fmt;
use std::str::FromStr;

use candle_core::{D, Tensor};
use endoscope_kernels::Precision;
use serde::{Deserialize, Serialize};

use crate::decoder::{Decoder, DenseWeights, LayerWeights, MlpWeights, NormWeights};
use crate::error::{Error, Result};
use crate::ops::{Embedding, Linear, Matrix};
use crate::spec::{Norm, Order, Placement, Spec};
use crate::views::for_each_query_head;

/// One change of weights that leaves what the model computes as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Process {
    /// Weight and bias of each norm that a matrix reads through go into that matrix; a norm of what attention or the MLP
    /// writes, or of queries and keys, stays. What LayerNorm puts out has mean zero, so the part of a matrix that reads the
    /// mean is taken out too.
    #[serde(rename = "fold-ln")]
    FoldLayerNorm,
    /// What is written to the residual stream gets mean zero: LayerNorm, which all readers see it through, takes the mean
    /// away. For LayerNorm models only.
    #[serde(rename = "center-writing")]
    CenterWriting,
    /// The mean over the vocabulary is taken from the unembedding: the logits of a position all change by the same number,
    /// their softmax not at all.
    #[serde(rename = "center-unembed")]
    CenterUnembed,
    /// The biases of values go into the output bias of attention: a row of attention sums to 1, so they are always
    /// written in full.
    #[serde(rename = "fold-value-biases")]
    FoldValueBiases,
}

impl Process {
    /// All of them, in the order in which they are done.
    pub const ALL: &[Process] = &[Self::FoldLayerNorm, Self::CenterWriting, Self::CenterUnembed, Self::FoldValueBiases];

    /// `fold-ln`, `center-writing`, `center-unembed` or `fold-value-biases`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FoldLayerNorm => "fold-ln",
            Self::CenterWriting => "center-writing",
            Self::CenterUnembed => "center-unembed",
            Self::FoldValueBiases => "fold-value-biases",
        }
    }

    /// Why this would change what a model computes, if it would.
    pub fn problem(self, spec: &Spec) -> Option<String> {
        let layer_norm = spec.norm != Norm::RmsNorm;
        match self {
            Self::CenterWriting if !layer_norm => Some(
                "its norm is RMSNorm, which sees the mean of the residual stream; only LayerNorm takes it away".into(),
            ),
            Self::CenterWriting if spec.placement != Placement::Pre => Some(
                "its norms stand on what attention and MLP write, so not every reader of the stream is a norm".into(),
            ),
            Self::CenterUnembed if spec.logit_softcap.is_some() => {
                Some("its logits have a soft-cap, after which a constant no longer cancels".into())
            }
            Self::FoldValueBiases if spec.clip_qkv.is_some() && spec.biases.qkv => {
                Some("its values are clipped after their bias is added".into())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Process {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Self::ALL.iter().copied().find(|process| process.name() == name).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|process| process.name()).collect();
            format!("`{name}` is no weight processing; there are {}", all.join(", "))
        })
    }
}

/// Whether all of `processes` are neutral for this model; the first that is not is the error.
pub fn check(spec: &Spec, processes: &[Process]) -> Result<()> {
    for &process in processes {
        if let Some(reason) = process.problem(spec) {
            return Err(Error::Process { process, reason });
        }
    }
    Ok(())
}

/// Changes the weights of `decoder`, each process once and in the order of [`Process::ALL`]; all or nothing.
pub fn apply(decoder: &mut Decoder, processes: &[Process]) -> Result<()> {
    check(&decoder.spec, processes)?;
    let mut changed = decoder.clone();
    for &process in Process::ALL.iter().filter(|process| processes.contains(process)) {
        match process {
            Process::FoldLayerNorm => fold_layer_norm(&mut changed)?,
            Process::CenterWriting => center_writing(&mut changed)?,
            Process::CenterUnembed => center_unembed(&mut changed)?,
            Process::FoldValueBiases => fold_value_biases(&mut changed)?,
        }
        changed.processed.push(process);
    }
    *decoder = changed;
    Ok(())
}

fn fold_layer_norm(decoder: &mut Decoder) -> Result<()> {
    let Decoder { spec, weights, .. } = decoder;
    let means = if spec.norm == Norm::RmsNorm { Means::Read } else { Means::Gone };
    for layer in &mut weights.layers {
        let LayerWeights { ln1, ln2, attention, mlp, .. } = layer;
        let mlp_norm = if spec.order == Order::ParallelSharedNorm { &*ln1 } else { &*ln2 };
        if let Some(norm) = mlp_norm {
            spec.biases.mlp |= norm.bias.is_some();
            for linear in readers(mlp) {
                fold(linear, norm, means)?;
            }
        }
        if let Some(norm) = ln1 {
            spec.biases.qkv |= norm.bias.is_some();
            for linear in [&mut attention.q, &mut attention.k, &mut attention.v] {
                fold(linear, norm, means)?;
            }
        }
        for norm in [ln1, ln2].into_iter().flatten() {
            forget(norm)?;
        }
    }
    fold(&mut weights.unembed, &weights.ln_final, means)?;
    forget(&mut weights.ln_final)?;
    untie(decoder)
}

fn center_writing(decoder: &mut Decoder) -> Result<()> {
    untie(decoder)?;
    let weights = &mut decoder.weights;
    weights.embed = Embedding::Table(centered(&weights.embed.to_tensor()?, D::Minus1)?);
    if let Some(positions) = &mut weights.pos_embed {
        *positions = centered(positions, D::Minus1)?;
    }
    for LayerWeights { attention, mlp, .. } in &mut weights.layers {
        for linear in std::iter::once(&mut attention.o).chain(writers(mlp)) {
            center_outputs(linear)?;
        }
    }
    Ok(())
}

fn center_unembed(decoder: &mut Decoder) -> Result<()> {
    untie(decoder)?;
    center_outputs(&mut decoder.weights.unembed)
}

fn fold_value_biases(decoder: &mut Decoder) -> Result<()> {
    let Decoder { spec, weights, .. } = decoder;
    for LayerWeights { attention, .. } in &mut weights.layers {
        let Some(bias) = attention.v.bias.take() else { continue };
        // What each query head reads of its key/value head's bias.
        let bias = for_each_query_head(&bias.reshape((spec.kv_heads, spec.d_head))?, 0, spec.heads)?;
        let written = bias.reshape((1, spec.heads * spec.d_head))?.matmul(&attention.o.matrix.to_tensor()?)?;
        add_bias(&mut attention.o, &written.squeeze(0)?)?;
        spec.biases.attention_out = true;
    }
    Ok(())
}

/// Whether matrices see the mean of what a norm reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    Read,
    Gone,
}

/// `(x weight + bias) W + b = x (weight W) + (bias W + b)`, and x has mean zero where means are gone.
fn fold(linear: &mut Linear, norm: &NormWeights, means: Means) -> Result<()> {
    if let Some(bias) = &norm.bias {
        let added = bias.unsqueeze(0)?.matmul(&linear.matrix.to_tensor()?)?.squeeze(0)?;
        add_bias(linear, &added)?;
    }
    let folded = linear.matrix.to_tensor()?.broadcast_mul(&norm.weight.unsqueeze(1)?)?;
    let folded = match means {
        Means::Read => folded,
        Means::Gone => centered(&folded, D::Minus2)?,
    };
    set_matrix(linear, folded)
}

/// A norm without weight and bias.
fn forget(norm: &mut NormWeights) -> Result<()> {
    *norm = NormWeights { weight: norm.weight.ones_like()?, bias: None };
    Ok(())
}

/// Subtracts the mean over outputs from each input's row, and from the bias.
fn center_outputs(linear: &mut Linear) -> Result<()> {
    set_matrix(linear, centered(&linear.matrix.to_tensor()?, D::Minus1)?)?;
    if let Some(bias) = &mut linear.bias {
        *bias = centered(bias, D::Minus1)?;
    }
    Ok(())
}

fn centered(x: &Tensor, axis: D) -> Result<Tensor> {
    Ok(x.broadcast_sub(&x.mean_keepdim(axis)?)?)
}

fn add_bias(linear: &mut Linear, bias: &Tensor) -> Result<()> {
    linear.bias = Some(match &linear.bias {
        Some(own) => (own + bias)?,
        None => bias.clone(),
    });
    Ok(())
}

fn set_matrix(linear: &mut Linear, weight: Tensor) -> Result<()> {
    let precision = match linear.matrix {
        Matrix::Packed(_) => Some(Precision::F32),
        Matrix::Plain(_) => None,
    };
    linear.matrix = Matrix::new(weight, precision)?;
    Ok(())
}

/// Gives the embedding numbers of its own.
fn untie(decoder: &mut Decoder) -> Result<()> {
    if let Embedding::Tied(_) = decoder.weights.embed {
        decoder.weights.embed = Embedding::Table(decoder.weights.embed.to_tensor()?);
    }
    decoder.spec.tied = false;
    Ok(())
}

/// The matrices that read what comes to an MLP.
fn readers(mlp: &mut MlpWeights) -> Vec<&mut Linear> {
    fn of(dense: &mut DenseWeights) -> impl Iterator<Item = &mut Linear> {
        std::iter::once(&mut dense.gate).chain(&mut dense.up)
    }
    match mlp {
        MlpWeights::Dense(dense) => of(dense).collect(),
        MlpWeights::Experts { router, experts } => {
            std::iter::once(router).chain(experts.iter_mut().flat_map(of)).collect()
        }
    }
}

/// The matrices that write what comes out of an MLP.
fn writers(mlp: &mut MlpWeights) -> Vec<&mut Linear> {
    match mlp {
        MlpWeights::Dense(dense) => vec![&mut dense.down],
        MlpWeights::Experts { experts, .. } => experts.iter_mut().map(|expert| &mut expert.down).collect(),
    }
}
