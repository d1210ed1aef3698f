//! The one forward pass: every decoder-only family is this program with other switches.
//!
//! A pass carries rows: positions of one or more sequences, of one or more runs, one after the other. A whole run is one
//! part of `b s` rows; a sweep's branches are many parts, each with the positions that its edits reach, which see the
//! base run's keys and values for those before. Letters in shapes: r rows, b batch, s position, t key position, h head,
//! g key/value head, e d_head, d d_model, m d_mlp, v vocabulary.

use candle_core::Tensor;
use endoscope_kernels::attention::{self, Heads, KeysValues, Span};
use endoscope_kernels::{Centre, soft_cap};
use endoscope_net::{Frame, Part, Prepared, Result, Run, SiteId, Tap, Taps, Work};

use crate::cache::Cache;
use crate::decoder::{Decoder, DenseWeights, LayerWeights, MlpWeights, NormWeights};
use crate::experts;
use crate::ops;
use crate::sites::{DecoderSites, LayerSites, NormSites};
use crate::spec::{Norm, Order, Positions, QkNorm, QkNormOver, Spec};

/// Where keys and values of positions outside the pass come from, and where those of the pass go.
pub(crate) enum Memory<'m> {
    /// Each sequence sees itself alone.
    Own,
    /// Sequences that go on, one cache each.
    Caches(&'m mut [Cache]),
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
    /// What the MLP of the layer reads where it stands beside attention: the start of the layer, or its shared norm.
    beside: Option<Tensor>,
    memory: Memory<'m>,
    /// What each part has computed.
    pub work: Vec<Work>,
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
            Order::Parallel => Some(self.stream.clone()),
            Order::ParallelSharedNorm => Some(normed.clone()),
        };
        let attn_in = self.taps.at(sites.attn_in, normed)?;
        let z = self.attention(layer, &attn_in)?;
        let output = &weights.attention.o;
        let between = [sites.result, sites.attn_out_raw, sites.attn_out].into_iter().any(|id| self.taps.wants(id));
        let shape = (z.dim(0)?, self.decoder.spec.heads * self.decoder.spec.d_head);
        if !between && self.decoder.writes_directly() {
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
        let out = self.taps.at(sites.attn_out_raw, out)?;
        let out = self.written(weights.ln1_post.as_ref(), &sites.ln1_post, out)?;
        let out = self.taps.at(sites.attn_out, out)?;
        self.stream = (&self.stream + out)?;
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
        let normed = match (self.beside.take(), self.decoder.spec.order) {
            (Some(normed), Order::ParallelSharedNorm) => normed,
            (Some(start), _) => self.norm_of(weights.ln2.as_ref(), &sites.ln2, start)?,
            (None, _) => self.normed(weights.ln2.as_ref(), &sites.ln2)?,
        };
        let mlp_in = self.taps.at(sites.mlp_in, normed)?;
        let between = self.taps.wants(sites.mlp_out_raw) || self.taps.wants(sites.mlp_out);
        let out = match &weights.mlp {
            MlpWeights::Dense(mlp) => {
                let post = self.neurons(mlp, sites, &mlp_in)?;
                if !between && self.decoder.writes_directly() {
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
                let activation = self.decoder.spec.activation;
                experts::forward(spec, activation, router, experts, sites, &mlp_in, &mut self.taps)?
            }
        };
        let out = self.taps.at(sites.mlp_out_raw, out)?;
        let out = self.written(weights.ln2_post.as_ref(), &sites.ln2_post, out)?;
        let out = self.taps.at(sites.mlp_out, out)?;
        self.stream = (&self.stream + out)?;
        Ok(())
    }

    /// What the down projection reads: `[r, d] -> [r, m]`.
    fn neurons(&mut self, mlp: &DenseWeights, sites: &LayerSites, mlp_in: &Tensor) -> Result<Tensor> {
        let activation = self.decoder.spec.activation;
        let pre = self.taps.at(sites.pre, mlp.gate.forward(mlp_in)?)?;
        let post = match &mlp.up {
            Some(up) => {
                let pre_linear = self.taps.at(sites.pre_linear, up.forward(mlp_in)?)?;
                ops::activate_gated(activation, &pre, &pre_linear)?
            }
            None => ops::activate(activation, &pre)?,
        };
        self.taps.at(sites.post, post)
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

    /// `[r, d] -> [r, h, e]`: softmax(q k^T scale) v.
    fn attention(&mut self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let (weights, sites) = self.layer_parts(layer);
        let weights = &weights.attention;
        let Spec { heads, kv_heads, d_head, .. } = self.decoder.spec;
        let angles = self.decoder.angles(layer);
        let projected = |linear: &ops::Linear, x: &Tensor, norm: Option<&NormWeights>, heads| {
            self.decoder.projected(linear, x, norm, (x.dim(0)?, heads, d_head))
        };
        let k = projected(&weights.k, x, weights.k_norm.as_ref(), kv_heads)?;
        let v = projected(&weights.v, x, None, kv_heads)?;
        let k = self.taps.at(sites.k, k)?;
        let v = self.taps.at(sites.v, v)?;
        let k = match angles {
            Some(angles) => self.taps.at(sites.rot_k, angles.rotate(&k, &self.positions())?)?,
            None => k,
        };
        // Whose keys these are, before rows are left out.
        let sequences = self.sequences();
        let x = match layer + 1 == self.decoder.spec.layers {
            true => self.leave_out(x)?,
            false => x.clone(),
        };
        let q = self.decoder.projected(&weights.q, &x, weights.q_norm.as_ref(), (x.dim(0)?, heads, d_head))?;
        let q = self.taps.at(sites.q, q)?;
        let q = match angles {
            Some(angles) => self.taps.at(sites.rot_q, angles.rotate(&q, &self.positions())?)?,
            None => q,
        };
        let graph = [&q, &k, &v].iter().any(|x| x.track_op())
            || self.taps.parts().iter().any(|part| part.tap.plan().needs_graph());
        let z = match graph {
            true => self.attention_with_gradient(layer, &q, &k, &v)?,
            false => self.fused_attention(layer, &q, &k, &v, &sequences)?,
        };
        self.taps.at(sites.z, z)
    }

    /// The position of each row.
    fn positions(&self) -> Vec<usize> {
        let frames = self.taps.parts().iter().map(|part| *part.tap.frame());
        frames
            .flat_map(|Frame { rows, offset, length, .. }| (0..rows).flat_map(move |_| offset..offset + length))
            .collect()
    }

    /// Each sequence: the first of its rows, how many they are, and its first position.
    fn sequences(&self) -> Vec<Sequence> {
        let mut sequences = Vec::new();
        for part in self.taps.parts() {
            let Frame { rows, offset, length, .. } = *part.tap.frame();
            sequences.extend((0..rows).map(|row| Sequence { first: part.first + row * length, length, offset }));
        }
        sequences
    }

    /// In the last layer: goes on with the rows whose outputs are read and those after them, where no capture wants
    /// the others.
    fn leave_out(&mut self, x: &Tensor) -> Result<Tensor> {
        let layer = self.decoder.spec.layers - 1;
        let mut kept: Vec<u32> = Vec::new();
        let (mut taps, mut first) = (Taps::default(), 0);
        // A run that branches start from keeps every row.
        let keeps = matches!(self.memory, Memory::Keep(_));
        for part in std::mem::take(&mut self.taps).into_parts() {
            let frame = *part.tap.frame();
            let from = match keeps {
                true => 0,
                false => first_read(&part.tap, layer)?.map_or(0, |from| from.min(frame.length - 1)),
            };
            for row in 0..frame.rows {
                let start = first + row * frame.length;
                kept.extend((start + from..start + frame.length).map(|row| row as u32));
            }
            first += frame.rows * frame.length;
            let mut tap = part.tap;
            tap.narrow(Frame { offset: frame.offset + from, length: frame.length - from, ..frame });
            taps.push(tap);
        }
        self.taps = taps;
        if kept.len() == first {
            return Ok(x.clone());
        }
        let count = kept.len();
        let kept = Tensor::from_vec(kept, count, x.device())?;
        self.stream = self.stream.contiguous()?.index_select(&kept, 0)?;
        if let Some(beside) = &mut self.beside {
            *beside = beside.contiguous()?.index_select(&kept, 0)?;
        }
        Ok(x.contiguous()?.index_select(&kept, 0)?)
    }

    /// Attention in our kernels: fused, but for parts that read or change scores or pattern.
    fn fused_attention(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        sequences: &[Sequence],
    ) -> Result<Tensor> {
        let sites = &self.decoder.sites.layers[layer];
        let Spec { heads, kv_heads, d_head, .. } = self.decoder.spec;
        let keys = sequences.iter().map(|sequence| sequence.offset + sequence.length).max().unwrap_or(0);
        let key_bias = self.decoder.key_bias(layer, keys);
        let shape = Heads {
            soft_cap: self.decoder.spec.attention_softcap.map(|cap| cap as f32),
            key_bias: &key_bias,
            window: self.decoder.spec.window(layer),
            ..Heads::plain(heads, kv_heads, d_head, self.decoder.spec.attention_scale(layer) as f32)
        };
        let (k, v) = (floats(k)?, floats(v)?);
        let width = kv_heads * d_head;
        let rows = |sequence: &Sequence| sequence.first * width..(sequence.first + sequence.length) * width;
        let (mut new, mut past): (Vec<KeysValues>, Option<&[KeysValues]>) = (Vec::new(), None);
        let own: Vec<&KeysValues> = match &mut self.memory {
            Memory::Caches(caches) => {
                for (cache, sequence) in caches.iter_mut().zip(sequences) {
                    cache.layers[layer].append(&k[rows(sequence)], &v[rows(sequence)]);
                }
                caches.iter().map(|cache| &cache.layers[layer]).collect()
            }
            memory => {
                new.extend(sequences.iter().map(|sequence| {
                    let mut own = KeysValues::new(kv_heads, d_head, sequence.length);
                    own.append(&k[rows(sequence)], &v[rows(sequence)]);
                    own
                }));
                if let Memory::Base(base) = memory {
                    past = Some(base);
                }
                new.iter().collect()
            }
        };
        let past = past.map(|past| &past[layer]);
        // The queries may be fewer than the keys: the last ones.
        let mut spans = Vec::with_capacity(sequences.len());
        for part in self.taps.parts() {
            let Frame { rows, length, .. } = *part.tap.frame();
            for row in 0..rows {
                let sequence = &sequences[spans.len()];
                let past = past.filter(|_| sequence.offset > 0).map(|past| (past, sequence.offset));
                spans.push(Span { first: part.first + row * length, queries: length, past, own: own[spans.len()] });
            }
        }
        let q_values = floats(q)?;
        let opened = |tap: &Tap| tap.wants(sites.attn_scores) || tap.wants(sites.pattern);
        let z = if self.taps.parts().iter().any(|part| opened(&part.tap)) {
            let mut z = Vec::with_capacity(q_values.len());
            let mut at = 0;
            for part in self.taps.parts_mut() {
                let mine = &spans[at..at + part.tap.frame().rows];
                at += mine.len();
                let rows = part.rows();
                if opened(&part.tap) {
                    z.extend(opened_attention(&mut part.tap, sites, &q_values, mine, shape)?);
                } else {
                    let relative: Vec<Span> =
                        mine.iter().map(|span| Span { first: span.first - rows.start, ..*span }).collect();
                    let width = heads * d_head;
                    z.extend(attention::attention(&q_values[rows.start * width..rows.end * width], &relative, shape));
                }
            }
            z
        } else {
            attention::attention(&q_values, &spans, shape)
        };
        if let Memory::Keep(kept) = &mut self.memory {
            kept.append(&mut new);
        }
        Ok(Tensor::from_vec(z, q.shape(), q.device())?)
    }

    /// The same in operations that have gradients; for whole runs.
    fn attention_with_gradient(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let sites = &self.decoder.sites.layers[layer];
        let Spec { heads, kv_heads, d_head, .. } = self.decoder.spec;
        let [part] = self.taps.parts_mut() else {
            return Err(endoscope_net::Error::Network("only whole runs have gradients".into()));
        };
        let Frame { rows: b, length: s, .. } = *part.tap.frame();
        let t = k.dim(0)? / b;
        // [b, g, t, e]; the query heads that share a key/value head lie beside each other: [b, g, (h / g) s, e].
        let by_head = |x: &Tensor| x.reshape((b, t, kv_heads, d_head))?.transpose(1, 2)?.contiguous();
        let (k, v) = (by_head(k)?, by_head(v)?);
        let grouped = (b, kv_heads, heads / kv_heads * s, d_head);
        let q = q.reshape((b, s, heads, d_head))?.transpose(1, 2)?.contiguous()?.reshape(grouped)?;
        let mut scores = (q.matmul(&k.transpose(2, 3)?)? * self.decoder.spec.attention_scale(layer))?;
        if let Some(cap) = self.decoder.spec.attention_softcap {
            scores = soft_cap(&scores, cap)?;
        }
        let mut scores = scores.reshape((b, heads, s, t))?;
        let key_bias = self.decoder.key_bias(layer, t);
        if !key_bias.is_empty() {
            scores = scores.broadcast_add(&Tensor::from_vec(key_bias, (heads, 1, t), scores.device())?)?;
        }
        let mask = ops::causal_mask(t - s, s, self.decoder.spec.window(layer), scores.device())?;
        let scores = scores.broadcast_add(&mask)?;
        let scores = part.tap.at(sites.attn_scores, scores)?;
        let pattern = part.tap.at(sites.pattern, endoscope_kernels::softmax(&scores)?)?;
        let z = pattern.contiguous()?.reshape((b, kv_heads, heads / kv_heads * s, t))?.matmul(&v)?;
        let z = z.reshape((b, heads, s, d_head))?.transpose(1, 2)?.contiguous()?;
        Ok(z.reshape((b * s, heads, d_head))?)
    }

    /// Ends the pass: `[r, d] ->` for each part, `[b, read positions, read columns]`.
    pub fn finish(self) -> Result<Vec<Run>> {
        self.finish_with(|tap, stream| Ok(End { tap, stream }))
    }

    /// The same, with a last word on each part's rows.
    pub fn finish_with(self, end: impl Fn(Tap<'p>, Tensor) -> Result<End<'p>>) -> Result<Vec<Run>> {
        let Self { decoder, taps, stream, work, .. } = self;
        let mut ends = Vec::with_capacity(work.len());
        for Part { tap, first } in taps.into_parts() {
            let Frame { rows, length, .. } = *tap.frame();
            ends.push(end(tap, stream.narrow(0, first, rows * length)?)?);
        }
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let finished = decoder.unembed(ends)?.into_iter().zip(work);
        Ok(finished
            .map(|(Finished { tap, outputs, rows }, mut work)| {
                work.unembedding += rows as u64;
                tap.finish(outputs, work)
            })
            .collect())
    }
}

/// Rows of a pass that are one sequence.
struct Sequence {
    first: usize,
    length: usize,
    /// The position of the first row.
    offset: usize,
}

/// The end of a run: its rows of the final residual stream.
pub(crate) struct End<'p> {
    pub tap: Tap<'p>,
    /// `[b s, d]`, of the tap's frame.
    pub stream: Tensor,
}

/// What a run ends with.
pub(crate) struct Finished<'p> {
    tap: Tap<'p>,
    /// `[b, read positions, read columns]`.
    outputs: Tensor,
    /// How many rows were unembedded.
    rows: usize,
}

/// Which rows of each sequence go through the final norm and the unembedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EndRows {
    /// Those whose outputs are read.
    Read(Vec<usize>),
    /// This one and all after it, since edits or captures see them.
    From(usize),
}

impl EndRows {
    /// The first of them.
    pub fn first(&self) -> usize {
        match self {
            Self::Read(positions) => positions.iter().copied().min().unwrap_or(usize::MAX),
            Self::From(first) => *first,
        }
    }

    /// How many of `length`.
    pub fn count(&self, length: usize) -> usize {
        match self {
            Self::Read(positions) => positions.len(),
            Self::From(first) => length - first,
        }
    }
}

/// The first row (of those in the tap's frame) whose output is read, if no capture in `layer` or after wants the others.
pub(crate) fn first_read(tap: &Tap, layer: usize) -> Result<Option<usize>> {
    let plan: &Prepared = tap.plan();
    let sites = plan.sites();
    let late = |id: SiteId| sites.get(id).layer.is_none_or(|at| at >= layer);
    if plan.captured_sites().into_iter().any(late) || plan.mixes_positions() {
        return Ok(None);
    }
    Ok(tap.output_positions()?.and_then(|positions| positions.into_iter().min()))
}

/// Attention of one part whose scores or pattern are read or changed.
fn opened_attention(
    tap: &mut Tap,
    sites: &LayerSites,
    q: &[f32],
    spans: &[Span<'_>],
    heads: Heads<'_>,
) -> Result<Vec<f32>> {
    let (mut scores, mut z) = (Vec::new(), Vec::new());
    let (mut queries, mut keys) = (0, 0);
    for span in spans {
        (queries, keys) = (span.queries, span.keys());
        scores.extend(attention::scores(q, span, heads));
    }
    let shape = (spans.len(), heads.queries, queries, keys);
    let scores = Tensor::from_vec(scores, shape, &candle_core::Device::Cpu)?;
    let scores = tap.at(sites.attn_scores, scores)?;
    let pattern = tap.at(sites.pattern, endoscope_kernels::softmax(&scores)?)?;
    let pattern = floats(&pattern)?;
    for (pattern, span) in pattern.chunks((heads.queries * queries * keys).max(1)).zip(spans) {
        z.extend(attention::mix(pattern, span, heads));
    }
    Ok(z)
}

fn floats(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1()?)
}

impl Decoder {
    /// `(x - mean) / scale * weight + bias`, without mean and bias for RMSNorm. The fused kernel gives the same bits as
    /// its parts, so that reading inside a norm changes nothing.
    fn norm(&self, weights: &NormWeights, sites: &NormSites, x: &Tensor, taps: &mut Taps) -> Result<Tensor> {
        let (centre, epsilon) = (centre(self.spec.norm), self.spec.epsilon);
        if !taps.wants(sites.scale) && !taps.wants(sites.normalized) {
            return Ok(endoscope_kernels::norm(x, &weights.weight, weights.bias.as_ref(), centre, epsilon)?);
        }
        let scale = taps.at(sites.scale, endoscope_kernels::norm_scale(x, centre, epsilon)?)?;
        let normalized = taps.at(sites.normalized, endoscope_kernels::norm_normalize(x, &scale, centre)?)?;
        let weighted = normalized.broadcast_mul(&weights.weight)?;
        Ok(match &weights.bias {
            Some(bias) => weighted.broadcast_add(bias)?,
            None => weighted,
        })
    }

    /// Whether what attention and MLP put out is added to the stream as it is.
    pub(crate) fn writes_directly(&self) -> bool {
        !self.spec.placement.after() && self.spec.residual_scale == 1.
    }

    /// Queries, keys or values by head, clamped and normalised: `[r, d] -> [r, head, e]`.
    fn projected(
        &self,
        linear: &ops::Linear,
        x: &Tensor,
        norm: Option<&NormWeights>,
        shape: (usize, usize, usize),
    ) -> Result<Tensor> {
        let mut y = linear.forward(x)?;
        let all_heads = self.spec.qk_norm.is_some_and(|norm| norm.over == QkNormOver::AllHeads);
        if let (Some(weights), Some(qk_norm), true) = (norm, self.spec.qk_norm, all_heads) {
            y = self.qk_norm(weights, qk_norm, &y)?;
        }
        if let Some(clip) = self.spec.clip_qkv {
            y = y.clamp(-clip, clip)?;
        }
        let y = y.reshape(shape)?;
        match (norm, self.spec.qk_norm) {
            (Some(weights), Some(qk_norm)) if !all_heads => self.qk_norm(weights, qk_norm, &y),
            _ => Ok(y),
        }
    }

    fn qk_norm(&self, weights: &NormWeights, QkNorm { norm, over }: QkNorm, x: &Tensor) -> Result<Tensor> {
        let (centre, epsilon) = (centre(norm), self.spec.epsilon);
        if over != QkNormOver::OwnHead {
            return Ok(endoscope_kernels::norm(x, &weights.weight, weights.bias.as_ref(), centre, epsilon)?);
        }
        let scale = endoscope_kernels::norm_scale(x, centre, epsilon)?;
        let weighted = endoscope_kernels::norm_normalize(x, &scale, centre)?.broadcast_mul(&weights.weight)?;
        Ok(match &weights.bias {
            Some(bias) => weighted.broadcast_add(bias)?,
            None => weighted,
        })
    }

    /// What is added to the scaled scores of each key: `[h, keys]`, or nothing.
    fn key_bias(&self, layer: usize, keys: usize) -> Vec<f32> {
        if self.spec.positions != Positions::Alibi {
            return Vec::new();
        }
        let scale = self.spec.attention_scale(layer) as f32;
        ops::alibi(self.spec.heads, keys).into_iter().map(|bias| bias * scale).collect()
    }

    /// Each head's own write to the residual stream: `[r, h, e] -> [r, h, d]`, without bias.
    pub(crate) fn head_results(&self, layer: usize, z: &Tensor) -> Result<Tensor> {
        let (_, heads, d_head) = z.dims3()?;
        let output = &self.weights.layers[layer].attention.o;
        let results: Vec<Tensor> = (0..heads)
            .map(|head| {
                let z = z.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
                output.forward_part(&z, head * d_head..(head + 1) * d_head)
            })
            .collect::<candle_core::Result<_>>()?;
        Ok(Tensor::stack(&results, 1)?)
    }

    /// The rows of a run that go through its end.
    pub(crate) fn end_rows(&self, tap: &Tap) -> Result<EndRows> {
        let DecoderSites { ln_final, logits, .. } = &self.sites;
        let seen = [ln_final.scale, ln_final.normalized, *logits].into_iter().any(|id| tap.wants(id));
        Ok(match (tap.output_positions()?, seen) {
            (Some(positions), false) => EndRows::Read(positions),
            (None, false) => EndRows::From(0),
            (_, true) => EndRows::From(first_read(tap, self.spec.layers)?.unwrap_or(0)),
        })
    }

    /// Logits of what the unembedding puts out.
    fn logits(&self, x: Tensor) -> Result<Tensor> {
        let x = if self.spec.logit_scale == 1. { x } else { (x * self.spec.logit_scale)? };
        match self.spec.logit_softcap {
            Some(cap) => Ok(soft_cap(&x, cap)?),
            None => Ok(x),
        }
    }

    /// The end of each run: `[b s, d] -> [b, read positions, read columns]`.
    fn unembed<'p>(&self, ends: Vec<End<'p>>) -> Result<Vec<Finished<'p>>> {
        let DecoderSites { ln_final, logits, .. } = &self.sites;
        let mut taps = Taps::default();
        let mut streams = Vec::with_capacity(ends.len());
        // Positions still to be chosen, in the frame that is left; and columns.
        let mut reads = Vec::with_capacity(ends.len());
        for End { mut tap, stream } in ends {
            let frame = *tap.frame();
            let columns = tap.output_columns(self.spec.vocabulary)?;
            let (rows, exact): (Vec<usize>, bool) = match self.end_rows(&tap)? {
                EndRows::Read(positions) => (positions, true),
                EndRows::From(first) => ((first..frame.length).collect(), false),
            };
            let offset = frame.offset + if exact { 0 } else { rows.first().copied().unwrap_or(0) };
            streams.push(match rows.len() == frame.length && !exact {
                true => stream,
                false => choose(&stream, &frame, &rows)?,
            });
            tap.narrow(Frame { offset, length: rows.len(), ..frame });
            reads.push((if exact { None } else { tap.output_positions()? }, columns));
            taps.push(tap);
        }
        let stream = match streams.as_slice() {
            [one] => one.clone(),
            many => Tensor::cat(many, 0)?,
        };
        let normalized = self.norm(&self.weights.ln_final, ln_final, &stream, &mut taps)?;
        let mut finished: Vec<Option<Tensor>> = vec![None; reads.len()];
        for at in 0..reads.len() {
            if finished[at].is_some() {
                continue;
            }
            // Runs that read the same columns share one product; one whose logits are seen needs all of them.
            let seen = |at: usize| taps.parts()[at].tap.wants(*logits);
            let group: Vec<usize> = match seen(at) {
                true => vec![at],
                false => (at..reads.len()).filter(|&other| reads[other].1 == reads[at].1 && !seen(other)).collect(),
            };
            let rows = |at: usize| {
                let rows = taps.parts()[at].rows();
                normalized.narrow(0, rows.start, rows.len())
            };
            let x = match group.len() == reads.len() {
                true => normalized.clone(),
                false => Tensor::cat(&group.iter().map(|&at| rows(at)).collect::<candle_core::Result<Vec<_>>>()?, 0)?,
            };
            let columns: Option<Vec<u32>> =
                reads[at].1.as_ref().map(|list| list.iter().map(|&column| column as u32).collect());
            let output = match (&columns, seen(at)) {
                (Some(columns), false) => self.logits(self.weights.unembed.select(columns)?.forward(&x)?)?,
                (_, false) => self.logits(self.weights.unembed.forward(&x)?)?,
                (columns, true) => {
                    let tap = &mut taps.parts_mut()[at].tap;
                    let Frame { rows, length, .. } = *tap.frame();
                    let output = self.logits(self.weights.unembed.forward(&x)?)?;
                    let vocabulary = self.spec.vocabulary;
                    let output = tap.at(*logits, output.reshape((rows, length, vocabulary))?)?;
                    let output = output.contiguous()?.reshape((rows * length, vocabulary))?;
                    match columns {
                        Some(columns) => output.index_select(&Tensor::new(columns.as_slice(), output.device())?, 1)?,
                        None => output,
                    }
                }
            };
            let mut first = 0;
            for at in group {
                let rows = taps.parts()[at].rows().len();
                finished[at] = Some(output.narrow(0, first, rows)?);
                first += rows;
            }
        }
        let mut runs = Vec::with_capacity(reads.len());
        for ((tap, output), (later, _)) in taps.into_taps().zip(finished).zip(reads) {
            let frame = *tap.frame();
            let output = output.ok_or_else(|| endoscope_net::Error::Network("a run has no output".into()))?;
            let rows = frame.rows * frame.length;
            let output = match later {
                Some(positions) => choose(&output, &frame, &positions)?,
                None => output,
            };
            let shape = (frame.rows, output.dim(0)? / frame.rows.max(1), output.dim(1)?);
            runs.push(Finished { outputs: output.reshape(shape)?, tap, rows });
        }
        Ok(runs)
    }
}

fn centre(norm: Norm) -> Centre {
    match norm {
        Norm::LayerNorm => Centre::Mean,
        Norm::RmsNorm => Centre::None,
    }
}

/// The rows of some positions of each sequence.
fn choose(x: &Tensor, frame: &Frame, positions: &[usize]) -> Result<Tensor> {
    let rows: Vec<u32> =
        (0..frame.rows).flat_map(|row| positions.iter().map(move |&at| (row * frame.length + at) as u32)).collect();
    let count = rows.len();
    Ok(x.contiguous()?.index_select(&Tensor::from_vec(rows, count, x.device())?, 0)?)
}
