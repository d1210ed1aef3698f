//! Attention of a pass: keys and values of its rows and of those before them, then each query over them.

use candle_core::Tensor;
use endoscope_kernels::attention::{self, Heads, KeysValues, Span};
use endoscope_kernels::soft_cap;
use endoscope_net::{Frame, Result, SiteId, Tap, Taps};

use super::end::first_read;
use super::inputs::Projection;
use super::{Beside, Memory, Pass};
use crate::decoder::Decoder;
use crate::ops;
use crate::sites::LayerSites;
use crate::spec::{Positions, Spec};

impl Pass<'_, '_> {
    /// `[r, d] -> [r, h, e]`: softmax(q k^T scale) v.
    pub(super) fn attention(&mut self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let (weights, sites) = self.layer_parts(layer);
        let weights = &weights.attention;
        let Spec { heads, kv_heads, .. } = self.decoder.spec;
        let of = |input, linear, norm, heads| Projection { input, linear, norm, heads };
        let k = self.project(layer, x, of(sites.k_input, &weights.k, weights.k_norm.as_ref(), kv_heads))?;
        let v = self.project(layer, x, of(sites.v_input, &weights.v, None, kv_heads))?;
        let k = self.at(sites.k, k)?;
        let v = self.at(sites.v, v)?;
        let k = self.turned(layer, sites.rot_k, k)?;
        // Whose keys these are, before rows are left out.
        let sequences = self.sequences();
        let x = match layer + 1 == self.decoder.spec.layers {
            true => self.leave_out(x)?,
            false => x.clone(),
        };
        let q = self.project(layer, &x, of(sites.q_input, &weights.q, weights.q_norm.as_ref(), heads))?;
        let q = self.at(sites.q, q)?;
        let q = self.turned(layer, sites.rot_q, q)?;
        let graph = [&q, &k, &v].iter().any(|x| x.track_op())
            || self.taps.parts().iter().any(|part| part.tap.plan().needs_graph());
        let z = match graph {
            true => self.attention_with_gradient(layer, &q, &k, &v, &sequences)?,
            false => self.fused_attention(layer, &q, &k, &v, &sequences)?,
        };
        self.at(sites.z, z)
    }

    /// Queries or keys after rotary positions, where the layer has them.
    fn turned(&mut self, layer: usize, id: SiteId, x: Tensor) -> Result<Tensor> {
        match self.decoder.angles(layer) {
            Some(angles) => {
                let turned = angles.rotate(&x, &self.positions())?;
                self.at(id, turned)
            }
            None => Ok(x),
        }
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
        if let Some(Beside { stream, normed }) = &mut self.beside {
            *stream = stream.contiguous()?.index_select(&kept, 0)?;
            if let Some(normed) = normed {
                *normed = normed.contiguous()?.index_select(&kept, 0)?;
            }
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

    /// The same in operations that have gradients; each part by itself, and whole.
    fn attention_with_gradient(
        &mut self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        sequences: &[Sequence],
    ) -> Result<Tensor> {
        if !matches!(self.memory, Memory::Own) {
            return Err(endoscope_net::Error::Network("only whole runs have gradients".into()));
        }
        let (mut z, mut at) = (Vec::new(), 0);
        for part in self.taps.parts_mut() {
            let keys = &sequences[at..at + part.tap.frame().rows];
            at += keys.len();
            let (first, count) = (keys[0].first, keys.iter().map(|sequence| sequence.length).sum::<usize>());
            let q = q.narrow(0, part.first, part.rows().len())?;
            let (k, v) = (k.narrow(0, first, count)?, v.narrow(0, first, count)?);
            z.push(self.decoder.part_attention(layer, &mut part.tap, &q, &k, &v)?);
        }
        match z.as_slice() {
            [one] => Ok(one.clone()),
            many => Ok(Tensor::cat(many, 0)?),
        }
    }
}

impl Decoder {
    /// Attention of one part in operations that have gradients: `[b s, h, e]`, keys and values `[b t, g, e]`.
    fn part_attention(&self, layer: usize, tap: &mut Tap, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let sites = &self.sites.layers[layer];
        let Spec { heads, kv_heads, d_head, .. } = self.spec;
        let Frame { rows: b, length: s, .. } = *tap.frame();
        let t = k.dim(0)? / b;
        // [b, g, t, e]; the query heads that share a key/value head lie beside each other: [b, g, (h / g) s, e].
        let by_head = |x: &Tensor| x.reshape((b, t, kv_heads, d_head))?.transpose(1, 2)?.contiguous();
        let (k, v) = (by_head(k)?, by_head(v)?);
        let grouped = (b, kv_heads, heads / kv_heads * s, d_head);
        let q = q.reshape((b, s, heads, d_head))?.transpose(1, 2)?.contiguous()?.reshape(grouped)?;
        let mut scores = (q.matmul(&k.transpose(2, 3)?)? * self.spec.attention_scale(layer))?;
        if let Some(cap) = self.spec.attention_softcap {
            scores = soft_cap(&scores, cap)?;
        }
        let mut scores = scores.reshape((b, heads, s, t))?;
        let key_bias = self.key_bias(layer, t);
        if !key_bias.is_empty() {
            scores = scores.broadcast_add(&Tensor::from_vec(key_bias, (heads, 1, t), scores.device())?)?;
        }
        let mask = ops::causal_mask(t - s, s, self.spec.window(layer), scores.device())?;
        let scores = scores.broadcast_add(&mask)?;
        let scores = tap.at(sites.attn_scores, scores)?;
        let pattern = tap.at(sites.pattern, endoscope_kernels::softmax(&scores)?)?;
        let z = pattern.contiguous()?.reshape((b, kv_heads, heads / kv_heads * s, t))?.matmul(&v)?;
        let z = z.reshape((b, heads, s, d_head))?.transpose(1, 2)?.contiguous()?;
        Ok(z.reshape((b * s, heads, d_head))?)
    }
}

/// Rows of a pass that are one sequence.
struct Sequence {
    first: usize,
    length: usize,
    /// The position of the first row.
    offset: usize,
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
}
