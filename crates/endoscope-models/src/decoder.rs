//! Decoder-only transformers: weights, and whole runs. The forward pass itself is `pass.rs`.

use candle_core::{DType, Device, Tensor};
use endoscope_net::{Capture, Error, Frame, Inputs, Network, Plan, Prepared, Result, Run, Sites, Tap, Taps, TokenRows};

use crate::cache::Cache;
use crate::ops::{Embedding, Linear};
use crate::pass::{Memory, Pass, last_read};
use crate::process::Process;
use crate::rotary::Angles;
use crate::sites::DecoderSites;
use crate::spec::{Positions, Spec};

/// The weights of a decoder in our names. Families fill it; see [`crate::families`].
#[derive(Debug, Clone)]
pub struct Weights {
    /// `v -> d`.
    pub embed: Embedding,
    /// `[context, d]` where positions are learned.
    pub pos_embed: Option<Tensor>,
    /// Layer by layer.
    pub layers: Vec<LayerWeights>,
    /// The norm before the unembedding.
    pub ln_final: NormWeights,
    /// `d -> v`.
    pub unembed: Linear,
}

/// The weights of one layer.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// The norm before attention.
    pub ln1: Option<NormWeights>,
    /// Attention.
    pub attention: AttentionWeights,
    /// The norm of what attention writes.
    pub ln1_post: Option<NormWeights>,
    /// The norm before the MLP, where it has one of its own.
    pub ln2: Option<NormWeights>,
    /// The MLP or the experts in its place.
    pub mlp: MlpWeights,
    /// The norm of what the MLP writes.
    pub ln2_post: Option<NormWeights>,
}

/// The weights of attention.
#[derive(Debug, Clone)]
pub struct AttentionWeights {
    /// `d -> h e`.
    pub q: Linear,
    /// `d -> g e`.
    pub k: Linear,
    /// `d -> g e`.
    pub v: Linear,
    /// `h e -> d`.
    pub o: Linear,
    /// The weights of the norm of queries: `[e]`, `[h, e]` or `[h e]`, see [`crate::QkNormOver`].
    pub q_norm: Option<NormWeights>,
    /// And of keys, with g in the place of h.
    pub k_norm: Option<NormWeights>,
}

/// An MLP, or experts.
#[derive(Debug, Clone)]
pub enum MlpWeights {
    /// One MLP for all positions.
    Dense(DenseWeights),
    /// Several, of which each position is read by a few.
    Experts {
        /// `d -> experts`.
        router: Linear,
        /// The experts.
        experts: Vec<DenseWeights>,
    },
}

/// The weights of one MLP.
#[derive(Debug, Clone)]
pub struct DenseWeights {
    /// `d -> m`: what the activation function is applied to (the gate of a gated MLP).
    pub gate: Linear,
    /// `d -> m`: the other factor of a gated MLP.
    pub up: Option<Linear>,
    /// `m -> d`.
    pub down: Linear,
}

/// The weight and bias that follow a normalisation.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// `[d]`.
    pub weight: Tensor,
    /// `[d]`, where LayerNorm has one.
    pub bias: Option<Tensor>,
}

/// What numbers activations are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// f32.
    #[default]
    F32,
    /// What an operation puts out is rounded to the nearest bf16, as where a model runs in bf16: embeddings, norms,
    /// projections, rotated queries and keys, what attention and MLP put out, the sums of the residual stream, logits. Sums
    /// inside an operation, attention from scores to values among them, are f32, as in fused kernels; so are the
    /// scales and normalised vectors within norms.
    Bf16,
}

/// A decoder-only transformer with every site.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// What numbers its activations are.
    pub compute: Compute,
    /// Its switches.
    pub spec: Spec,
    /// Its weights.
    pub weights: Weights,
    /// What was done to the weights since they were read, in order; see [`crate::process`].
    pub processed: Vec<Process>,
    pub(crate) sites: DecoderSites,
    /// The angles of each kind of rotation.
    angles: Vec<Angles>,
}

impl Decoder {
    /// A decoder; `weights` must have the shapes that `spec` says.
    pub fn new(spec: Spec, weights: Weights) -> Result<Self> {
        let kinds = match &spec.positions {
            Positions::Rotary { kinds, .. } => kinds.as_slice(),
            _ => &[],
        };
        let angles = kinds.iter().map(|kind| Angles::new(kind, spec.context, &Device::Cpu));
        let angles = angles.collect::<candle_core::Result<_>>()?;
        let sites = DecoderSites::new(&spec)?;
        Ok(Self { compute: Compute::default(), spec, weights, processed: Vec::new(), sites, angles })
    }

    /// The angles by which a layer turns queries and keys.
    pub(crate) fn angles(&self, layer: usize) -> Option<&Angles> {
        self.angles.get(self.spec.rotation(layer)?)
    }

    /// What an operation puts out, as [`Compute`] says.
    pub(crate) fn rounded(&self, x: Tensor) -> Result<Tensor> {
        match self.compute {
            Compute::F32 => Ok(x),
            Compute::Bf16 => Ok(x.to_dtype(DType::BF16)?.to_dtype(DType::F32)?),
        }
    }

    /// Runs the positions of each of `frames`, whose tokens are the rows of `tokens` in order, given the keys and values of
    /// those before them: one cache for each row, if any.
    pub fn forward(
        &self,
        tokens: &[Vec<u32>],
        prepared: &Prepared,
        frames: &[Frame],
        caches: Option<Vec<&mut Cache>>,
    ) -> Result<Vec<Run>> {
        in_pool(|| {
            let mut taps = Taps::default();
            for &frame in frames {
                taps.push(Tap::new(prepared, frame)?);
            }
            let stream = self.embed(tokens, &mut taps)?;
            let last = if caches.is_none() { last_read(self, &taps)? } else { None };
            let memory = caches.map_or(Memory::Own, Memory::Caches);
            let mut pass = Pass::new(self, taps, stream, memory);
            if let Some(last) = last {
                pass.reach(last)?;
                return pass.stop();
            }
            for layer in 0..self.spec.layers {
                pass.layer(layer)?;
            }
            pass.finish()
        })
    }

    /// The embeddings of the rows of `taps`: `[r, d]`.
    pub(crate) fn embed(&self, tokens: &[Vec<u32>], taps: &mut Taps) -> Result<Tensor> {
        let frames = taps.parts().iter().map(|part| *part.tap.frame());
        let rows: Vec<(usize, usize)> =
            frames.flat_map(|Frame { rows, offset, length, .. }| (0..rows).map(move |_| (offset, length))).collect();
        self.check_tokens(tokens, &rows)?;
        let mut embedded = self.weights.embed.rows(&tokens.concat())?;
        if self.spec.embedding_scale != 1. {
            embedded = (embedded * self.spec.embedding_scale)?;
        }
        let embedded = taps.at(self.sites.embed, self.rounded(embedded)?)?;
        let Some(pos_embed) = &self.weights.pos_embed else { return Ok(embedded) };
        let positions = rows.iter().map(|&(offset, length)| pos_embed.narrow(0, offset, length));
        let positions = Tensor::cat(&positions.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let positions = taps.at(self.sites.pos_embed, self.rounded(positions)?)?;
        self.rounded((embedded + positions)?)
    }

    /// `rows` has the first position and the length of each row.
    fn check_tokens(&self, tokens: &[Vec<u32>], rows: &[(usize, usize)]) -> Result<()> {
        if tokens.len() != rows.len() || tokens.iter().zip(rows).any(|(ids, (_, length))| ids.len() != *length) {
            return Err(Error::Inputs("the frames are not those of the tokens".into()));
        }
        for (row, (ids, (offset, length))) in tokens.iter().zip(rows).enumerate() {
            let total = offset + length;
            if total > self.spec.context {
                return Err(Error::Inputs(format!(
                    "the sequence has {total} tokens, but the model's context is {}",
                    self.spec.context
                )));
            }
            if let Some((position, id)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= self.spec.vocabulary) {
                return Err(Error::Inputs(format!(
                    "token id {id} (row {row}, position {}) is out of range: the vocabulary has {} tokens (0 to {})",
                    position + offset,
                    self.spec.vocabulary,
                    self.spec.vocabulary - 1
                )));
            }
        }
        Ok(())
    }
}

/// Runs `f` on a thread of rayon's pool: the kernels then share their work with its siblings without being handed over.
pub(crate) fn in_pool<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let mut result = None;
    rayon::scope(|_| result = Some(f()));
    result.unwrap_or_else(|| Err(Error::Network("the thread pool ran nothing".into())))
}

pub(crate) fn tokens_of(inputs: &Inputs) -> Result<&TokenRows> {
    match inputs {
        Inputs::Tokens(tokens) => Ok(tokens),
        _ => Err(Error::Inputs("a language model reads tokens".into())),
    }
}

impl Network for Decoder {
    fn sites(&self) -> &Sites {
        &self.sites.sites
    }

    fn run(&self, inputs: &Inputs, plan: &Plan) -> Result<Run> {
        let tokens = tokens_of(inputs)?;
        let prepared = Prepared::new(self.sites(), plan)?;
        let rows = self.forward(tokens.ids(), &prepared, &tokens.frames(), None)?;
        Run::of_rows(tokens, &prepared, rows)
    }
}

/// The plan that captures every site.
pub fn capture_everything() -> Plan {
    Plan::default().capture(Capture::new("*"))
}
