//! The one forward pass: every decoder-only family is this program with other switches.
//!
//! Letters in shapes: b batch, s position, t key position, h head, g key/value head, e d_head, d d_model, m d_mlp,
//! v vocabulary.

use candle_core::{DType, Device, Tensor};
use endoscope_kernels::Centre;
use endoscope_net::{
    Base, Capture, Cost, Error, Frame, Inputs, Network, Plan, Prepared, Result, Resume, Run, Sites, Tap, TokenRows,
    Work,
};

use crate::cache::{Cache, LayerCache};
use crate::ops::{self, Linear, Rotary};
use crate::sites::{DecoderSites, LayerSites, NormSites};
use crate::spec::{Mlp, Norm, Positions, Spec};

/// The weights of a decoder in our names. Families fill it; see [`crate::families`].
#[derive(Debug, Clone)]
pub struct Weights {
    /// `[v, d]`.
    pub embed: Tensor,
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
    pub ln1: NormWeights,
    /// `d -> h e`.
    pub q: Linear,
    /// `d -> g e`.
    pub k: Linear,
    /// `d -> g e`.
    pub v: Linear,
    /// `h e -> d`.
    pub o: Linear,
    /// The norm before the MLP.
    pub ln2: NormWeights,
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
    /// `[d]`, for LayerNorm.
    pub bias: Option<Tensor>,
}

/// A decoder-only transformer with every site.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Its switches.
    pub spec: Spec,
    /// Its weights.
    pub weights: Weights,
    sites: DecoderSites,
    rotary: Option<Rotary>,
}

impl Decoder {
    /// A decoder; `weights` must have the shapes that `spec` says.
    pub fn new(spec: Spec, weights: Weights) -> Result<Self> {
        let rotary = match spec.positions {
            Positions::Rotary { base } => Some(Rotary::new(base, spec.d_head, spec.context, &Device::Cpu)?),
            Positions::Learned => None,
        };
        let sites = DecoderSites::new(&spec)?;
        Ok(Self { spec, weights, sites, rotary })
    }

    /// Runs the positions of `frame`, given the keys and values of those before it in `cache`.
    pub fn forward(
        &self,
        tokens: &TokenRows,
        prepared: &Prepared,
        frame: Frame,
        cache: Option<&mut Cache>,
    ) -> Result<Run> {
        let mut tap = Tap::new(prepared, frame)?;
        let embedded = self.embed(tokens, &mut tap)?;
        let stream = self.layers(embedded, &mut tap, cache)?;
        let logits = self.unembed(stream, &mut tap)?;
        let rows = (frame.rows * frame.length * self.spec.layers) as u64;
        let unembedding = (logits.elem_count() / logits.dim(2)?.max(1)) as u64;
        Ok(tap.finish(logits, Work { attention: rows, mlp: rows, unembedding }))
    }

    /// `[b, s] -> [b, s, d]`.
    fn embed(&self, tokens: &TokenRows, tap: &mut Tap) -> Result<Tensor> {
        let offset = tap.frame().offset;
        self.check_tokens(tokens, offset)?;
        let ids = tokens.tensor(self.weights.embed.device())?;
        let rows = self.weights.embed.index_select(&ids.flatten_all()?, 0)?;
        let embedded = rows.reshape((tokens.rows(), tokens.length(), self.spec.d_model))?;
        let embedded = tap.at(self.sites.embed, embedded)?;
        let Some(pos_embed) = &self.weights.pos_embed else { return Ok(embedded) };
        let positions = pos_embed.narrow(0, offset, tokens.length())?;
        if !tap.wants(self.sites.pos_embed) {
            return Ok(embedded.broadcast_add(&positions)?);
        }
        let positions = positions.unsqueeze(0)?.broadcast_as(embedded.shape())?.contiguous()?;
        Ok((embedded + tap.at(self.sites.pos_embed, positions)?)?)
    }

    fn check_tokens(&self, tokens: &TokenRows, offset: usize) -> Result<()> {
        let total = offset + tokens.length();
        if total > self.spec.context {
            let message = format!("the sequence has {total} tokens, but the model's context is {}", self.spec.context);
            return Err(Error::Inputs(message));
        }
        for (row, ids) in tokens.ids().iter().enumerate() {
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

    /// All layers.
    fn layers(&self, mut stream: Tensor, tap: &mut Tap, mut cache: Option<&mut Cache>) -> Result<Tensor> {
        let frame = *tap.frame();
        // One query sees every key, so decoding needs no mask.
        let mask = match frame.length {
            1 => None,
            length => Some(ops::causal_mask(frame.offset, length, stream.device())?),
        };
        for layer in 0..self.spec.layers {
            let cache = cache.as_deref_mut().map(|cache| &mut cache.layers[layer]);
            stream = self.layer(layer, stream, tap, cache, mask.as_ref())?;
        }
        Ok(stream)
    }

    /// `[b, s, d] -> [b, s, d]`.
    fn layer(
        &self,
        layer: usize,
        stream: Tensor,
        tap: &mut Tap,
        cache: Option<&mut LayerCache>,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (weights, sites) = (&self.weights.layers[layer], &self.sites.layers[layer]);
        let stream = tap.at(sites.resid_pre, stream)?;
        let attn_in = self.norm(&weights.ln1, &sites.ln1, &stream, tap)?;
        let attn_in = tap.at(sites.attn_in, attn_in)?;
        let attn_out = self.attention(layer, &attn_in, tap, cache, mask)?;
        let attn_out = tap.at(sites.attn_out_raw, attn_out)?;
        let attn_out = tap.at(sites.attn_out, attn_out)?;
        let stream = tap.at(sites.resid_mid, (stream + attn_out)?)?;
        let mlp_in = self.norm(&weights.ln2, &sites.ln2, &stream, tap)?;
        let mlp_in = tap.at(sites.mlp_in, mlp_in)?;
        let mlp_out = self.mlp(weights, sites, &mlp_in, tap)?;
        let mlp_out = tap.at(sites.mlp_out_raw, mlp_out)?;
        let mlp_out = tap.at(sites.mlp_out, mlp_out)?;
        tap.at(sites.resid_post, (stream + mlp_out)?)
    }

    /// `(x - mean) / scale * weight + bias`, without mean and bias for RMSNorm. The fused kernel gives the same bits as
    /// its parts, so that reading inside a norm changes nothing.
    fn norm(&self, weights: &NormWeights, sites: &NormSites, x: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        let (centre, epsilon) = match self.spec.norm {
            Norm::LayerNorm => (Centre::Mean, self.spec.epsilon),
            Norm::RmsNorm => (Centre::None, self.spec.epsilon),
        };
        if !tap.wants(sites.scale) && !tap.wants(sites.normalized) {
            return Ok(endoscope_kernels::norm(x, &weights.weight, weights.bias.as_ref(), centre, epsilon)?);
        }
        let scale = tap.at(sites.scale, endoscope_kernels::norm_scale(x, centre, epsilon)?)?;
        let normalized = tap.at(sites.normalized, endoscope_kernels::norm_normalize(x, &scale, centre)?)?;
        let weighted = normalized.broadcast_mul(&weights.weight)?;
        Ok(match &weights.bias {
            Some(bias) => weighted.broadcast_add(bias)?,
            None => weighted,
        })
    }

    /// `[b, s, d] -> [b, s, d]`: softmax(q k^T scale) v, through the output projection.
    fn attention(
        &self,
        layer: usize,
        x: &Tensor,
        tap: &mut Tap,
        cache: Option<&mut LayerCache>,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (weights, sites) = (&self.weights.layers[layer], &self.sites.layers[layer]);
        let Spec { heads, kv_heads, d_head, .. } = self.spec;
        let (b, s, _) = x.dims3()?;
        let mut q = tap.at(sites.q, weights.q.forward(x)?.reshape((b, s, heads, d_head))?)?;
        let mut k = tap.at(sites.k, weights.k.forward(x)?.reshape((b, s, kv_heads, d_head))?)?;
        let v = tap.at(sites.v, weights.v.forward(x)?.reshape((b, s, kv_heads, d_head))?)?;
        if let Some(rotary) = &self.rotary {
            let offset = tap.frame().offset;
            q = tap.at(sites.rot_q, rotary.rotate(&q, offset)?)?;
            k = tap.at(sites.rot_k, rotary.rotate(&k, offset)?)?;
        }
        // [b, g, t, e], with what is cached before what is new.
        let (k, v) = (k.transpose(1, 2)?.contiguous()?, v.transpose(1, 2)?.contiguous()?);
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v)?,
            None => (k, v),
        };
        let t = k.dim(2)?;
        // The query heads that share a key/value head lie beside each other: [b, g, (h / g) s, e].
        let grouped = (b, kv_heads, heads / kv_heads * s, d_head);
        let q = q.transpose(1, 2)?.contiguous()?.reshape(grouped)?;
        let scores = (q.matmul(&k.transpose(2, 3)?)? * self.spec.attention_scale(layer))?;
        let mut scores = scores.reshape((b, heads, s, t))?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        let scores = tap.at(sites.attn_scores, scores)?;
        let pattern = tap.at(sites.pattern, endoscope_kernels::softmax(&scores)?)?;
        let z = pattern.contiguous()?.reshape((b, kv_heads, heads / kv_heads * s, t))?.matmul(&v)?;
        let z = z.reshape((b, heads, s, d_head))?.transpose(1, 2)?.contiguous()?;
        let z = tap.at(sites.z, z)?;
        let out = weights.o.forward(&z.reshape((b, s, heads * d_head))?)?;
        if !tap.wants(sites.result) {
            return Ok(out);
        }
        let result = head_results(&z, &weights.o.weight)?;
        let rewritten = tap.at(sites.result, result.clone())?;
        // Only what an edit moved is added, so that what it leaves alone keeps its bits.
        match tap.rewrites(sites.result) {
            true => Ok((out + (rewritten - result)?.sum(2)?)?),
            false => Ok(out),
        }
    }

    /// `[b, s, d] -> [b, s, d]`.
    fn mlp(&self, weights: &LayerWeights, sites: &LayerSites, x: &Tensor, tap: &mut Tap) -> Result<Tensor> {
        let pre = tap.at(sites.pre, weights.gate.forward(x)?)?;
        let post = match (self.spec.mlp, &weights.up) {
            (Mlp::Gated, Some(up)) => {
                let pre_linear = tap.at(sites.pre_linear, up.forward(x)?)?;
                ops::activate_gated(self.spec.activation, &pre, &pre_linear)?
            }
            _ => ops::activate(self.spec.activation, &pre)?,
        };
        let post = tap.at(sites.post, post)?;
        Ok(weights.down.forward(&post)?)
    }

    /// `[b, s, d] -> [b, read positions, v]`.
    fn unembed(&self, stream: Tensor, tap: &mut Tap) -> Result<Tensor> {
        let positions = tap.output_positions()?;
        let DecoderSites { ln_final, logits, .. } = &self.sites;
        // Rows that nobody reads are not computed, unless a site up here is asked for.
        let all_rows = [ln_final.scale, ln_final.normalized, *logits].into_iter().any(|id| tap.wants(id));
        let choose = |x: Tensor| match &positions {
            None => Ok(x),
            Some(positions) => {
                let positions: Vec<u32> = positions.iter().map(|&at| at as u32).collect();
                let count = positions.len();
                x.contiguous()?.index_select(&Tensor::from_vec(positions, count, x.device())?, 1)
            }
        };
        let stream = if all_rows { stream } else { choose(stream)? };
        let normalized = self.norm(&self.weights.ln_final, ln_final, &stream, tap)?;
        let output = tap.at(*logits, self.weights.unembed.forward(&normalized)?)?;
        let output = if all_rows { choose(output)? } else { output };
        match tap.output_columns(self.spec.vocabulary)? {
            None => Ok(output),
            Some(columns) => {
                let columns: Vec<u32> = columns.into_iter().map(|at| at as u32).collect();
                Ok(output.contiguous()?.index_select(&Tensor::new(columns, output.device())?, 2)?)
            }
        }
    }
}

/// Each head's own write to the residual stream: `[b, s, h, e] x [h e, d] -> [b, s, h, d]`, without bias.
fn head_results(z: &Tensor, output: &Tensor) -> candle_core::Result<Tensor> {
    let (b, s, heads, d_head) = z.dims4()?;
    let d_model = output.dim(1)?;
    let by_head = z.permute((2, 0, 1, 3))?.contiguous()?.reshape((heads, b * s, d_head))?;
    let results = by_head.matmul(&output.contiguous()?.reshape((heads, d_head, d_model))?)?;
    results.reshape((heads, b, s, d_model))?.permute((1, 2, 0, 3))?.contiguous()
}

fn tokens_of(inputs: &Inputs) -> Result<&TokenRows> {
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
        self.forward(tokens, &prepared, Frame::whole(tokens.rows(), tokens.length()), None)
    }
}

impl Resume for Decoder {
    fn base(&self, inputs: &Inputs, plan: &Plan) -> Result<Base> {
        let tokens = tokens_of(inputs)?;
        if tokens.rows() != 1 {
            return Err(Error::Inputs(format!("a base run takes one prompt, not {}", tokens.rows())));
        }
        Ok(Base { inputs: inputs.clone(), run: self.run(inputs, plan)?, state: Box::new(()) })
    }

    fn costs(&self, base: &Base, plans: &[Plan]) -> Result<Vec<Cost>> {
        let rows = (tokens_of(&base.inputs)?.length() * self.spec.layers) as u64;
        plans
            .iter()
            .map(|plan| {
                Prepared::new(self.sites(), plan)?;
                Ok(Cost { work: Work { attention: rows, mlp: rows, unembedding: 1 }, bytes: 1 << 20 })
            })
            .collect()
    }

    fn branches(&self, base: &Base, plans: &[Plan]) -> Result<Vec<Run>> {
        plans.iter().map(|plan| self.run(&base.inputs, plan)).collect()
    }
}

/// The plan that captures every site.
pub fn capture_everything() -> Plan {
    Plan::default().capture(Capture::new("*"))
}

/// The dtype that everything is computed in.
pub const COMPUTE_DTYPE: DType = DType::F32;
