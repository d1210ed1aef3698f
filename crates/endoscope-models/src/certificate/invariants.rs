//! Each activation of one prompt computed again, in f64, from the captured activations before it.
//!
//! Every declared site is bound by at least one equation here, so that a wrong one cannot go unnoticed. Letters in shapes:
//! s position, h head, g key/value head, e d_head, d d_model, m d_mlp.

use candle_core::{D, Device, Tensor};
use endoscope_net::Captured;

use super::Assertion;
use super::arithmetic::{
    activate, alibi, attention_factor, capped, double, linear, mask, normalise, rotate, sees, softmax, weighted,
};
use super::ledger::{Ledger, numbers};
use crate::decoder::{DenseWeights, LayerWeights, MlpWeights, NormWeights, Weights};
use crate::error::Result;
use crate::ops::Linear;
use crate::rotary::Rotary;
use crate::spec::{ExpertWeights, Experts, Order, Positions, QkNormOver, Spec};

/// Checks every site that a run of `tokens` has `captured`.
pub(super) fn check(
    spec: &Spec,
    weights: &Weights,
    tokens: &[u32],
    captured: &Captured,
    ledger: &mut Ledger,
) -> Result<()> {
    let mut prompt = Prompt { spec, captured, positions: tokens.len(), ledger };
    prompt.finite()?;
    let mut stream = prompt.embeddings(weights, tokens)?;
    for (layer, weights) in weights.layers.iter().enumerate() {
        stream = Layer { prompt: &mut prompt, weights, layer }.check(&stream)?;
    }
    prompt.end(weights, &stream)
}

/// One prompt's activations.
struct Prompt<'a> {
    spec: &'a Spec,
    captured: &'a Captured,
    positions: usize,
    ledger: &'a mut Ledger,
}

impl Prompt<'_> {
    /// A site's activation without its batch axis.
    fn at(&self, site: &str) -> Result<Tensor> {
        Ok(double(&self.captured.get(site)?.squeeze(0)?)?)
    }

    fn compare(&mut self, assertion: Assertion, site: &str, expected: &Tensor) -> Result<()> {
        let found = self.at(site)?;
        self.ledger.compare(assertion, site, &found, expected)
    }

    /// Scores are minus infinity where they are masked; that they are so nowhere else, `Scores` asserts.
    fn finite(&mut self) -> Result<()> {
        for (site, activation) in self.captured.iter() {
            let may_be_masked = site.ends_with("attn.hook_attn_scores");
            let wrong = |x: &f64| !(x.is_finite() || may_be_masked && *x == f64::NEG_INFINITY);
            let count = numbers(activation)?.iter().filter(|x| wrong(x)).count();
            self.ledger.measure(Assertion::Finite, site, count as f64);
        }
        Ok(())
    }

    /// What enters the first layer.
    fn embeddings(&mut self, weights: &Weights, tokens: &[u32]) -> Result<Tensor> {
        let rows = (double(&weights.embed.rows(tokens)?)? * self.spec.embedding_scale)?;
        self.compare(Assertion::Embeddings, "hook_embed", &rows)?;
        let embedded = self.at("hook_embed")?;
        let Some(table) = &weights.pos_embed else { return Ok(embedded) };
        self.compare(Assertion::Embeddings, "hook_pos_embed", &double(&table.narrow(0, 0, tokens.len())?)?)?;
        Ok((embedded + self.at("hook_pos_embed")?)?)
    }

    /// `x` through a norm whose sites begin with `prefix`.
    fn norm(&mut self, prefix: &str, weights: &NormWeights, x: &Tensor) -> Result<Tensor> {
        let (scale, normalized) = normalise(self.spec.norm, self.spec.epsilon, x)?;
        self.compare(Assertion::Norms, &format!("{prefix}.hook_scale"), &scale)?;
        let site = format!("{prefix}.hook_normalized");
        self.compare(Assertion::Norms, &site, &normalized)?;
        Ok(weighted(weights, &self.at(&site)?)?)
    }

    /// What comes after the last layer.
    fn end(&mut self, weights: &Weights, stream: &Tensor) -> Result<()> {
        let normalized = self.norm("ln_final", &weights.ln_final, stream)?;
        let scaled = (linear(&weights.unembed, &normalized)? * self.spec.logit_scale)?;
        self.compare(Assertion::Logits, "hook_logits", &capped(scaled, self.spec.logit_softcap)?)
    }
}

/// One layer of it.
struct Layer<'a, 'p> {
    prompt: &'a mut Prompt<'p>,
    weights: &'a LayerWeights,
    layer: usize,
}

impl Layer<'_, '_> {
    fn site(&self, name: &str) -> String {
        format!("blocks.{}.{name}", self.layer)
    }

    fn at(&self, name: &str) -> Result<Tensor> {
        self.prompt.at(&self.site(name))
    }

    fn compare(&mut self, assertion: Assertion, name: &str, expected: &Tensor) -> Result<()> {
        let site = self.site(name);
        self.prompt.compare(assertion, &site, expected)
    }

    fn norm(&mut self, name: &str, weights: Option<&NormWeights>, x: &Tensor) -> Result<Tensor> {
        let prefix = self.site(name);
        match weights {
            Some(weights) => self.prompt.norm(&prefix, weights, x),
            None => Ok(x.clone()),
        }
    }

    /// Checks the layer, given what should enter it; gives what leaves it.
    fn check(mut self, stream: &Tensor) -> Result<Tensor> {
        let order = self.prompt.spec.order;
        self.compare(Assertion::Stream, "hook_resid_pre", stream)?;
        let pre = self.at("hook_resid_pre")?;
        for name in ["hook_q_input", "hook_k_input", "hook_v_input"] {
            let copies = self.at(name)?;
            self.compare(Assertion::Stream, name, &pre.unsqueeze(1)?.broadcast_as(copies.shape())?.contiguous()?)?;
        }
        let read = self.norm("ln1", self.weights.ln1.as_ref(), &pre)?;
        self.compare(Assertion::Norms, "hook_attn_in", &read)?;
        self.attention()?;
        let after_attention = (&pre + self.at("hook_attn_out")?)?;
        let mlp_input = match order {
            Order::Sequential => {
                self.compare(Assertion::Stream, "hook_resid_mid", &after_attention)?;
                self.at("hook_resid_mid")?
            }
            Order::Parallel | Order::ParallelSharedNorm => pre,
        };
        self.compare(Assertion::Stream, "hook_mlp_input", &mlp_input)?;
        let mlp_reads = match order {
            Order::Sequential | Order::Parallel => self.norm("ln2", self.weights.ln2.as_ref(), &mlp_input)?,
            Order::ParallelSharedNorm => read,
        };
        self.compare(Assertion::Norms, "hook_mlp_in", &mlp_reads)?;
        match &self.weights.mlp {
            MlpWeights::Dense(dense) => self.dense(dense)?,
            MlpWeights::Experts { router, experts } => self.experts(router, experts)?,
        }
        self.written("hook_mlp_out", "ln2_post", self.weights.ln2_post.as_ref())?;
        self.compare(Assertion::Stream, "hook_resid_post", &(after_attention + self.at("hook_mlp_out")?)?)?;
        self.at("hook_resid_post")
    }

    /// What is added to the stream of what is put out.
    fn written(&mut self, out: &str, norm: &str, weights: Option<&NormWeights>) -> Result<()> {
        let raw = self.at(&format!("{out}_raw"))?;
        let normed = self.norm(norm, weights, &raw)?;
        let scale = self.prompt.spec.residual_scale;
        self.compare(Assertion::Writes, out, &(normed * scale)?)
    }

    fn attention(&mut self) -> Result<()> {
        let spec = self.prompt.spec;
        let weights = &self.weights.attention;
        let x = self.at("hook_attn_in")?;
        let q = self.projected(&weights.q, weights.q_norm.as_ref(), spec.heads, &x)?;
        self.compare(Assertion::QueriesKeysValues, "attn.hook_q", &q)?;
        let k = self.projected(&weights.k, weights.k_norm.as_ref(), spec.kv_heads, &x)?;
        self.compare(Assertion::QueriesKeysValues, "attn.hook_k", &k)?;
        let v = self.projected(&weights.v, None, spec.kv_heads, &x)?;
        self.compare(Assertion::QueriesKeysValues, "attn.hook_v", &v)?;
        let q = self.turned("attn.hook_q", "attn.hook_rot_q")?;
        let k = self.turned("attn.hook_k", "attn.hook_rot_k")?;
        self.scores(&q, &k)?;
        self.pattern()?;
        let z = self.at("attn.hook_pattern")?.matmul(&self.by_head(&self.at("attn.hook_v")?)?)?;
        self.compare(Assertion::PatternTimesValues, "attn.hook_z", &z.transpose(0, 1)?.contiguous()?)?;
        let z = self.at("attn.hook_z")?.flatten_from(1)?;
        self.compare(Assertion::AttentionOut, "hook_attn_out_raw", &linear(&weights.o, &z)?)?;
        let results = self.at("attn.hook_result")?.sum(1)?;
        let sum = match &weights.o.bias {
            Some(bias) => results.broadcast_add(&double(bias)?)?,
            None => results,
        };
        self.compare(Assertion::HeadResults, "hook_attn_out_raw", &sum)?;
        self.written("hook_attn_out", "ln1_post", self.weights.ln1_post.as_ref())
    }

    /// Queries, keys or values `[s, head, e]`: projected, clamped, normalised.
    fn projected(&self, map: &Linear, norm: Option<&NormWeights>, heads: usize, x: &Tensor) -> Result<Tensor> {
        let spec = self.prompt.spec;
        let mut y = linear(map, x)?;
        let norm = norm.zip(spec.qk_norm);
        let normed = |y: &Tensor, (weights, kind): (&NormWeights, crate::QkNorm)| -> Result<Tensor> {
            Ok(weighted(weights, &normalise(kind.norm, spec.epsilon, y)?.1)?)
        };
        let of_whole_rows = |kind: crate::QkNorm| kind.over == QkNormOver::AllHeads;
        if let Some(norm) = norm.filter(|norm| of_whole_rows(norm.1)) {
            y = normed(&y, norm)?;
        }
        if let Some(bound) = spec.clip_qkv {
            y = y.clamp(-bound, bound)?;
        }
        let y = y.reshape((self.prompt.positions, heads, spec.d_head))?;
        match norm.filter(|norm| !of_whole_rows(norm.1)) {
            Some(norm) => normed(&y, norm),
            None => Ok(y),
        }
    }

    /// The rotation of this layer.
    fn rotary(&self) -> Option<&Rotary> {
        let spec = self.prompt.spec;
        match &spec.positions {
            Positions::Rotary { kinds, .. } => kinds.get(spec.rotation(self.layer)?),
            _ => None,
        }
    }

    /// Queries or keys as they are multiplied.
    fn turned(&mut self, from: &str, to: &str) -> Result<Tensor> {
        let x = self.at(from)?;
        let Some(rotary) = self.rotary().cloned() else { return Ok(x) };
        self.compare(Assertion::Rotation, to, &rotate(&rotary, &x)?)?;
        let turned = self.at(to)?;
        let length = |x: &Tensor| x.narrow(2, 0, rotary.dims)?.sqr()?.sum(D::Minus1)?.sqrt();
        let (found, expected) = (length(&turned)?, (length(&x)? * attention_factor(&rotary))?);
        let site = self.site(to);
        self.prompt.ledger.compare(Assertion::RotationKeepsLength, &site, &found, &expected)?;
        Ok(turned)
    }

    /// `[s, head, e] -> [h, s, e]`; a key/value head comes once for each query head that it serves.
    fn by_head(&self, x: &Tensor) -> Result<Tensor> {
        let spec = self.prompt.spec;
        let served = (spec.heads / x.dim(1)?) as u32;
        let heads: Vec<u32> = (0..spec.heads as u32).map(|head| head / served).collect();
        let heads = Tensor::from_vec(heads, spec.heads, &Device::Cpu)?;
        Ok(x.index_select(&heads, 1)?.transpose(0, 1)?.contiguous()?)
    }

    fn scores(&mut self, q: &Tensor, k: &Tensor) -> Result<()> {
        let spec = self.prompt.spec;
        let scale = spec.attention_scale(self.layer);
        let keys = self.by_head(k)?.transpose(1, 2)?.contiguous()?;
        let mut scores = capped((self.by_head(q)?.matmul(&keys)? * scale)?, spec.attention_softcap)?;
        if spec.positions == Positions::Alibi {
            scores = scores.broadcast_add(&(alibi(spec.heads, self.prompt.positions)? * scale)?)?;
        }
        let scores = scores.broadcast_add(&mask(self.prompt.positions, spec.window(self.layer))?)?;
        self.compare(Assertion::Scores, "attn.hook_attn_scores", &scores)
    }

    fn pattern(&mut self) -> Result<()> {
        let name = "attn.hook_pattern";
        let scores = self.at("attn.hook_attn_scores")?;
        self.compare(Assertion::Softmax, name, &softmax(&scores)?)?;
        let pattern = self.at(name)?;
        let sums = pattern.sum(D::Minus1)?;
        let (site, positions, window) = (self.site(name), self.prompt.positions, self.prompt.spec.window(self.layer));
        self.prompt.ledger.compare(Assertion::RowsSumToOne, &site, &sums, &sums.ones_like()?)?;
        let cells = numbers(&pattern)?;
        let hidden =
            cells.iter().enumerate().filter(|(at, _)| !sees(at / positions % positions, at % positions, window));
        let largest = hidden.fold(0., |largest: f64, (_, weight)| largest.max(weight.abs()));
        self.prompt.ledger.measure(Assertion::Masked, &site, largest);
        Ok(())
    }

    fn dense(&mut self, weights: &DenseWeights) -> Result<()> {
        let x = self.at("hook_mlp_in")?;
        self.compare(Assertion::Neurons, "mlp.hook_pre", &linear(&weights.gate, &x)?)?;
        let mut post = activate(self.prompt.spec.activation, &self.at("mlp.hook_pre")?)?;
        if let Some(up) = &weights.up {
            self.compare(Assertion::Neurons, "mlp.hook_pre_linear", &linear(up, &x)?)?;
            post = (post * self.at("mlp.hook_pre_linear")?)?;
        }
        self.compare(Assertion::Neurons, "mlp.hook_post", &post)?;
        let out = linear(&weights.down, &self.at("mlp.hook_post")?)?;
        self.compare(Assertion::MlpOut, "hook_mlp_out_raw", &out)
    }

    fn experts(&mut self, router: &Linear, experts: &[DenseWeights]) -> Result<()> {
        let Some(spec) = self.prompt.spec.experts(self.layer) else { return Ok(()) };
        let x = self.at("hook_mlp_in")?;
        self.compare(Assertion::Router, "mlp.hook_gate", &linear(router, &x)?)?;
        let probabilities = softmax(&self.at("mlp.hook_gate")?)?;
        self.compare(Assertion::Router, "mlp.hook_expert_weights", &probabilities)?;
        let weights: Vec<Vec<f64>> = self.at("mlp.hook_expert_weights")?.to_vec2()?;
        let indices: Vec<Vec<f64>> = self.at("mlp.hook_expert_indices")?.to_vec2()?;
        let wrong =
            indices.iter().zip(&weights).filter(|(chosen, weights)| !are_most_probable(chosen, weights)).count();
        let site = self.site("mlp.hook_expert_indices");
        self.prompt.ledger.measure(Assertion::ExpertsChosen, &site, wrong as f64);
        if wrong > 0 {
            return Ok(());
        }
        let mut out = x.zeros_like()?;
        for (number, expert) in experts.iter().enumerate() {
            let shares = indices.iter().zip(&weights).map(|(chosen, weights)| share(spec, number, chosen, weights));
            let shares: Vec<f64> = shares.collect();
            let readers: Vec<u32> = (0..shares.len()).filter(|&at| shares[at] != 0.).map(|at| at as u32).collect();
            if readers.is_empty() {
                continue;
            }
            let shares: Vec<f64> = readers.iter().map(|&reader| shares[reader as usize]).collect();
            let shares = Tensor::from_vec(shares, (readers.len(), 1), &Device::Cpu)?;
            let readers = Tensor::new(readers, &Device::Cpu)?;
            let written = self.expert(expert, &x.index_select(&readers, 0)?)?.broadcast_mul(&shares)?;
            out = out.index_add(&readers, &written, 0)?;
        }
        self.compare(Assertion::ExpertsOut, "hook_mlp_out_raw", &out)
    }

    fn expert(&self, weights: &DenseWeights, x: &Tensor) -> Result<Tensor> {
        let post = activate(self.prompt.spec.activation, &linear(&weights.gate, x)?)?;
        let post = match &weights.up {
            Some(up) => (post * linear(up, x)?)?,
            None => post,
        };
        Ok(linear(&weights.down, &post)?)
    }
}

/// Whether these are numbers of experts, each once, the most probable first, and no other is more probable.
fn are_most_probable(chosen: &[f64], weights: &[f64]) -> bool {
    let mut left: Vec<Option<f64>> = weights.iter().copied().map(Some).collect();
    chosen.iter().all(|&number| {
        let largest = left.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
        let place = left.get_mut(number as usize).filter(|_| number >= 0. && number.fract() == 0.);
        place.and_then(Option::take) == Some(largest)
    })
}

/// By what the writes of expert `number` are multiplied in one row.
fn share(spec: &Experts, number: usize, chosen: &[f64], weights: &[f64]) -> f64 {
    if !chosen.contains(&(number as f64)) {
        return 0.;
    }
    let total: f64 = match spec.weights {
        ExpertWeights::Probabilities => 1.,
        ExpertWeights::Renormalised => chosen.iter().filter_map(|&at| weights.get(at as usize)).sum(),
    };
    weights.get(number).map_or(0., |weight| weight / total)
}
