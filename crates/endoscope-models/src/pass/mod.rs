//! The one forward pass: every decoder-only family is this program with other switches.
//!
//! A pass carries rows: positions of one or more sequences, of one or more runs, one after the other. A whole run is one
//! part of `b s` rows; a sweep's branches are many parts, each with the positions that its edits reach, which see the
//! base run's keys and values for those before. Letters in shapes: r rows, b batch, s position, t key position, h head,
//! g key/value head, e d_head, d d_model, m d_mlp, v vocabulary.

mod attention;
mod end;
mod inputs;

pub(crate) use end::{End, first_read, last_read};

use candle_core::Tensor;
use endoscope_kernels::Centre;
use endoscope_kernels::attention::KeysValues;
use endoscope_net::{Result, SiteId, Tap, Taps, Work};

use crate::cache::Cache;
use crate::decoder::{Compute, Decoder, DenseWeights, LayerWeights, MlpWeights, NormWeights};
use crate::ops;
use crate::sites::{LayerSites, NormSites};
use crate::spec::{Norm, Order};

/// Where keys and values of positions outside the pass come from, and where those of the pass go.
pub(crate) enum Memory<'m> {
    /// Each sequence sees itself alone.
    Own,
    /// Sequences that go on, one cache each.
    Caches(Vec<&'m mut Cache>),
    /// One sequence, whose keys and values are kept layer by layer.
    Keep(&'m mut Vec<KeysValues>),
    /// Each part goes on from the first positions of the same other run.
    Base(&'m [KeysValues]),
}

/// A forward pass on its way.
pub(crate) struct Pass<'p, 'm> {
    pub decoder: &'m Decoder,
    pub taps: Taps<'p>,
    /// The residual stream `[r, d]`.
    pub stream: Tensor,
    /// What the MLP of the layer reads where it stands beside attention.
    beside: Option<Beside>,
    memory: Memory<'m>,
    /// What each part has computed.
    pub work: Vec<Work>,
}

/// The start of a layer, for an MLP beside its attention.
struct Beside {
    /// `[r, d]`.
    stream: Tensor,
    /// The same through the norm that both share.
    normed: Option<Tensor>,
}

impl<'p, 'm> Pass<'p, 'm> {
    /// A pass from the start of a layer.
    pub fn new(decoder: &'m Decoder, taps: Taps<'p>, stream: Tensor, memory: Memory<'m>) -> Self {
        let work = vec![Work::default(); taps.parts().len()];
        Self { decoder, taps, stream, beside: None, memory, work }
    }

    /// Adds parts whose rows are `stream`.
    pub fn join(&mut self, taps: impl IntoIterator<Item = Tap<'p>>, stream: &[Tensor]) -> Result<()> {
        if stream.is_empty() {
            return Ok(());
        }
        taps.into_iter().for_each(|tap| self.taps.push(tap));
        self.work.resize(self.taps.parts().len(), Work::default());
        self.stream = Tensor::cat(&[std::slice::from_ref(&self.stream), stream].concat(), 0)?;
        Ok(())
    }

    fn layer_parts(&self, layer: usize) -> (&'m LayerWeights, &'m LayerSites) {
        (&self.decoder.weights.layers[layer], &self.decoder.sites.layers[layer])
    }

    /// One whole layer: `[r, d] -> [r, d]`.
    pub fn layer(&mut self, layer: usize) -> Result<()> {
        self.attend(layer)?;
        self.reach_middle(layer)?;
        self.transform(layer)?;
        self.reach_end(layer)
    }

    /// Goes on to `site`, and no further than the half of a layer that it stands in.
    pub fn reach(&mut self, site: SiteId) -> Result<()> {
        let Some(layer) = self.decoder.sites.sites.get(site).layer else { return Ok(()) };
        for below in 0..layer {
            self.layer(below)?;
        }
        let sites = &self.decoder.sites.layers[layer];
        if site == sites.resid_pre {
            return self.at_stream(site);
        }
        self.attend(layer)?;
        self.reach_middle(layer)?;
        if site >= sites.mlp_input {
            self.transform(layer)?;
            self.reach_end(layer)?;
        }
        Ok(())
    }

    /// The attention half of a layer, up to the sum.
    pub fn attend(&mut self, layer: usize) -> Result<()> {
        if self.taps.rows() == 0 {
            return Ok(());
        }
        for (part, work) in self.taps.parts().iter().zip(&mut self.work) {
            work.attention += part.rows().len() as u64;
        }
        let (weights, sites) = self.layer_parts(layer);
        self.at_stream(sites.resid_pre)?;
        let normed = self.normed(weights.ln1.as_ref(), &sites.ln1)?;
        self.beside = match self.decoder.spec.order {
            Order::Sequential => None,
            Order::Parallel => Some(Beside { stream: self.stream.clone(), normed: None }),
            Order::ParallelSharedNorm => Some(Beside { stream: self.stream.clone(), normed: Some(normed.clone()) }),
        };
        let attn_in = self.at(sites.attn_in, normed)?;
        let z = self.attention(layer, &attn_in)?;
        let output = &weights.attention.o;
        let between = [sites.result, sites.attn_out_raw, sites.attn_out].into_iter().any(|id| self.taps.wants(id));
        let shape = (z.dim(0)?, self.decoder.spec.heads * self.decoder.spec.d_head);
        if !between && self.decoder.fuses_sums() {
            self.stream = output.forward_onto(&z.reshape(shape)?, &self.stream)?;
            return Ok(());
        }
        let mut out = output.forward(&z.reshape(shape)?)?;
        if self.taps.wants(sites.result) {
            let result = self.decoder.head_results(layer, &z)?;
            let rewritten = self.taps.at(sites.result, result.clone())?;
            // Only what an edit moved is added, so that what it leaves alone keeps its bits.
            if self.taps.rewrites(sites.result) {
                out = (out + (rewritten - result)?.sum(1)?)?;
            }
        }
        let out = self.at(sites.attn_out_raw, out)?;
        let out = self.written(weights.ln1_post.as_ref(), &sites.ln1_post, out)?;
        let out = self.at(sites.attn_out, out)?;
        self.stream = self.decoder.rounded((&self.stream + out)?)?;
        Ok(())
    }

    /// The residual stream between the halves of a layer.
    pub fn reach_middle(&mut self, layer: usize) -> Result<()> {
        self.at_stream(self.decoder.sites.layers[layer].resid_mid)
    }

    /// The MLP half of a layer, up to the sum.
    pub fn transform(&mut self, layer: usize) -> Result<()> {
        if self.taps.rows() == 0 {
            return Ok(());
        }
        for (part, work) in self.taps.parts().iter().zip(&mut self.work) {
            work.mlp += part.rows().len() as u64;
        }
        let (weights, sites) = self.layer_parts(layer);
        let normed = self.mlp_reads(layer)?;
        let mlp_in = self.at(sites.mlp_in, normed)?;
        let between = self.taps.wants(sites.mlp_out_raw) || self.taps.wants(sites.mlp_out);
        let out = match &weights.mlp {
            MlpWeights::Dense(mlp) => {
                let post = self.neurons(mlp, sites, &mlp_in)?;
                if !between && self.decoder.fuses_sums() {
                    self.stream = mlp.down.forward_onto(&post, &self.stream)?;
                    return Ok(());
                }
                mlp.down.forward(&post)?
            }
            MlpWeights::Experts { router, experts } => {
                let Some(spec) = self.decoder.spec.experts(layer) else {
                    return Err(endoscope_net::Error::Network(format!(
                        "layer {layer} has experts that its spec lacks"
                    )));
                };
                self.decoder.experts(spec, router, experts, sites, &mlp_in, &mut self.taps)?
            }
        };
        let out = self.at(sites.mlp_out_raw, out)?;
        let out = self.written(weights.ln2_post.as_ref(), &sites.ln2_post, out)?;
        let out = self.at(sites.mlp_out, out)?;
        self.stream = self.decoder.rounded((&self.stream + out)?)?;
        Ok(())
    }

    /// What the down projection reads: `[r, d] -> [r, m]`.
    fn neurons(&mut self, mlp: &DenseWeights, sites: &LayerSites, mlp_in: &Tensor) -> Result<Tensor> {
        let activation = self.decoder.spec.activation;
        let pre = self.at(sites.pre, mlp.gate.forward(mlp_in)?)?;
        let post = match &mlp.up {
            Some(up) => {
                let pre_linear = self.at(sites.pre_linear, up.forward(mlp_in)?)?;
                ops::activate_gated(activation, &pre, &pre_linear)?
            }
            None => ops::activate(activation, &pre)?,
        };
        self.at(sites.post, post)
    }

    /// What is added to the stream of what attention or the MLP put out.
    fn written(&mut self, post: Option<&NormWeights>, sites: &NormSites, out: Tensor) -> Result<Tensor> {
        let out = self.norm_of(post, sites, out)?;
        match self.decoder.spec.residual_scale {
            1. => Ok(out),
            scale => Ok((out * scale)?),
        }
    }

    /// The residual stream after a layer.
    pub fn reach_end(&mut self, layer: usize) -> Result<()> {
        self.at_stream(self.decoder.sites.layers[layer].resid_post)
    }

    /// Hands over what an operation puts out.
    fn at(&mut self, id: SiteId, activation: Tensor) -> Result<Tensor> {
        let activation = self.decoder.rounded(activation)?;
        self.taps.at(id, activation)
    }

    fn at_stream(&mut self, id: SiteId) -> Result<()> {
        if self.taps.wants(id) {
            self.stream = self.taps.at(id, self.stream.clone())?;
        }
        Ok(())
    }

    /// The stream through a norm, if there is one.
    fn normed(&mut self, weights: Option<&NormWeights>, sites: &NormSites) -> Result<Tensor> {
        self.norm_of(weights, sites, self.stream.clone())
    }

    fn norm_of(&mut self, weights: Option<&NormWeights>, sites: &NormSites, x: Tensor) -> Result<Tensor> {
        match weights {
            Some(weights) => self.decoder.norm(weights, sites, &x, &mut self.taps),
            None => Ok(x),
        }
    }
}

impl Decoder {
    /// `(x - mean) / scale * weight + bias`, without mean and bias for RMSNorm. The fused kernel gives the same bits as
    /// its parts, so that reading inside a norm changes nothing.
    fn norm(&self, weights: &NormWeights, sites: &NormSites, x: &Tensor, taps: &mut Taps) -> Result<Tensor> {
        let (centre, epsilon) = (centre(self.spec.norm), self.spec.epsilon);
        if !taps.wants(sites.scale) && !taps.wants(sites.normalized) {
            return self.rounded(endoscope_kernels::norm(x, &weights.weight, weights.bias.as_ref(), centre, epsilon)?);
        }
        let scale = taps.at(sites.scale, endoscope_kernels::norm_scale(x, centre, epsilon)?)?;
        let normalized = taps.at(sites.normalized, endoscope_kernels::norm_normalize(x, &scale, centre)?)?;
        let weighted = normalized.broadcast_mul(&weights.weight)?;
        self.rounded(match &weights.bias {
            Some(bias) => weighted.broadcast_add(bias)?,
            None => weighted,
        })
    }

    /// Whether what attention and MLP put out is added to the stream as it is, so that product and sum may be one operation.
    fn fuses_sums(&self) -> bool {
        !self.spec.placement.after() && self.spec.residual_scale == 1. && self.compute == Compute::F32
    }
}

fn centre(norm: Norm) -> Centre {
    match norm {
        Norm::LayerNorm | Norm::PlainLayerNorm => Centre::Mean,
        Norm::RmsNorm => Centre::None,
    }
}
