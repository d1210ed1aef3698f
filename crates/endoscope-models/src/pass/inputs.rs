//! What each head and the MLP read of the residual stream: copies of their own, where a plan reads or changes them.
//!
//! Built only for runs that ask: a stream for each head is as large as all heads' results. Without a change, what is read is
//! what the layer's one norm gives, to the bit.

use std::ops::Range;

use candle_core::Tensor;
use endoscope_net::{Error, Result, SiteId, Tap};

use super::{Beside, Pass, centre};
use crate::decoder::{Decoder, NormWeights};
use crate::ops::Linear;
use crate::sites::LayerSites;
use crate::spec::{QkNorm, QkNormOver};

/// How queries, keys or values are made.
#[derive(Clone, Copy)]
pub(super) struct Projection<'a> {
    /// The site of each head's own copy of the stream.
    pub input: SiteId,
    pub linear: &'a Linear,
    /// The norm of queries and keys.
    pub norm: Option<&'a NormWeights>,
    pub heads: usize,
}

impl Pass<'_, '_> {
    /// Queries, keys or values by head: `[r, d] -> [r, head, e]`, where `x` is what the layer's norm gives of the stream.
    pub(super) fn project(&mut self, layer: usize, x: &Tensor, projection: Projection<'_>) -> Result<Tensor> {
        let decoder = self.decoder;
        let ordinary = || decoder.projected(&projection, x);
        if !self.taps.wants(projection.input) {
            return ordinary();
        }
        let (weights, sites) = self.layer_parts(layer);
        self.check_alone(projection.input, &[sites.ln1.scale, sites.ln1.normalized, sites.attn_in])?;
        let (heads, width) = (projection.heads, decoder.spec.d_model);
        let own = self.copies(projection.input, |stream, rows| {
            stream.unsqueeze(1)?.broadcast_as((rows, heads, width))?.contiguous()
        })?;
        replaced(x.dim(0)?, ordinary, own, |copies| {
            decoder.projected_by_head(&projection, &decoder.plain_norm(&weights.ln1, copies)?)
        })
    }

    /// What the MLP of a layer reads, through its norm: `[r, d]`.
    pub(super) fn mlp_reads(&mut self, layer: usize) -> Result<Tensor> {
        let decoder = self.decoder;
        let (weights, sites) = self.layer_parts(layer);
        let Beside { stream, normed } = match self.beside.take() {
            Some(beside) => beside,
            None => Beside { stream: self.stream.clone(), normed: None },
        };
        let (norm, norm_sites, normed) = match normed {
            Some(normed) => (&weights.ln1, &sites.ln1, normed),
            None => (&weights.ln2, &sites.ln2, self.norm_of(weights.ln2.as_ref(), &sites.ln2, stream.clone())?),
        };
        if !self.taps.wants(sites.mlp_input) {
            return Ok(normed);
        }
        self.check_alone(sites.mlp_input, &[norm_sites.scale, norm_sites.normalized])?;
        let own = {
            // The copies are of the stream that the MLP reads, which is not always that of the pass.
            let there = std::mem::replace(&mut self.stream, stream);
            let own = self.copies(sites.mlp_input, |stream, _| stream.contiguous());
            self.stream = there;
            own?
        };
        replaced(normed.dim(0)?, || Ok(normed), own, |copies| decoder.plain_norm(norm, copies))
    }

    /// The copies of the stream that runs may have changed, with their rows.
    fn copies(
        &mut self,
        id: SiteId,
        copy: impl Fn(&Tensor, usize) -> candle_core::Result<Tensor>,
    ) -> Result<Vec<Copies>> {
        // A run that only asks for the gradient of a copy reads the layer's norm as well, whose gradient it must not count twice.
        let only_gradients = !self.taps.parts().iter().any(|part| part.tap.plan().edits(id));
        let stream = if only_gradients { self.stream.detach() } else { self.stream.clone() };
        let changed =
            self.taps.at_those(id, |rows| Ok(copy(&stream.narrow(0, rows.start, rows.len())?, rows.len())?))?;
        Ok(changed.into_iter().map(|(rows, copies)| Copies { rows, copies, only_gradients }).collect())
    }

    /// An edit of a copy takes its reader out of reach of what is done to the layer's norm.
    fn check_alone(&self, input: SiteId, norm: &[SiteId]) -> Result<()> {
        let both = |tap: &Tap| tap.plan().edits(input) && norm.iter().any(|&id| tap.rewrites(id));
        match self.taps.parts().iter().find(|part| both(&part.tap)) {
            None => Ok(()),
            Some(part) => {
                let sites = part.tap.plan().sites();
                let site = |id: SiteId| sites.get(id).name.clone();
                let other = norm.iter().find(|&&id| part.tap.rewrites(id)).map_or(String::new(), |&id| site(id));
                let reason = format!("what reads it then goes through a norm of its own, which `{other}` is not");
                Err(Error::EditNotPossible { site: site(input), reason })
            }
        }
    }
}

/// One run's copies of the stream.
struct Copies {
    rows: Range<usize>,
    copies: Tensor,
    /// The run changes none of them.
    only_gradients: bool,
}

/// What `all` rows ordinarily read, with the rows of runs that read copies of their own, which `read` makes of them.
fn replaced(
    all: usize,
    ordinary: impl FnOnce() -> Result<Tensor>,
    own: Vec<Copies>,
    read: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if own.is_empty() {
        return ordinary();
    }
    let copies: Vec<&Tensor> = own.iter().map(|own| &own.copies).collect();
    let read = read(&Tensor::cat(&copies, 0)?)?;
    if read.dim(0)? == all && !own.iter().any(|own| own.only_gradients) {
        return Ok(read);
    }
    let ordinary = ordinary()?;
    let (mut pieces, mut taken, mut first) = (Vec::new(), 0, 0);
    for Copies { rows, only_gradients, .. } in own {
        if rows.start > taken {
            pieces.push(ordinary.narrow(0, taken, rows.start - taken)?);
        }
        let mine = read.narrow(0, first, rows.len())?;
        pieces.push(match only_gradients {
            // Nothing is added but a way for gradients.
            true => (ordinary.narrow(0, rows.start, rows.len())? + (&mine - mine.detach())?)?,
            false => mine,
        });
        first += rows.len();
        taken = rows.end;
    }
    if taken < all {
        pieces.push(ordinary.narrow(0, taken, all - taken)?);
    }
    Ok(Tensor::cat(&pieces, 0)?)
}

impl LayerSites {
    /// The copies of the stream, with whether each is one for all query heads, one for all key/value heads, or one.
    pub(crate) fn inputs(&self) -> [SiteId; 4] {
        [self.q_input, self.k_input, self.v_input, self.mlp_input]
    }
}

impl Decoder {
    /// Queries, keys or values by head, clamped and normalised: `[r, d] -> [r, head, e]`.
    fn projected(&self, projection: &Projection<'_>, x: &Tensor) -> Result<Tensor> {
        self.finished(projection, projection.linear.forward(x)?)
    }

    /// The same where each head reads its own input: `[r, head, d] -> [r, head, e]`.
    fn projected_by_head(&self, projection: &Projection<'_>, x: &Tensor) -> Result<Tensor> {
        let width = self.spec.d_head as u32;
        let heads = (0..projection.heads).map(|head| {
            let first = head as u32 * width;
            let columns: Vec<u32> = (first..first + width).collect();
            projection.linear.select(&columns)?.forward(&x.narrow(1, head, 1)?.squeeze(1)?.contiguous()?)
        });
        self.finished(projection, Tensor::cat(&heads.collect::<candle_core::Result<Vec<_>>>()?, 1)?)
    }

    /// What a projection puts out, `[r, head e] -> [r, head, e]`.
    fn finished(&self, projection: &Projection<'_>, y: Tensor) -> Result<Tensor> {
        let Projection { norm, heads, .. } = *projection;
        let mut y = self.rounded(y)?;
        let all_heads = self.spec.qk_norm.is_some_and(|norm| norm.over == QkNormOver::AllHeads);
        if let (Some(weights), Some(qk_norm), true) = (norm, self.spec.qk_norm, all_heads) {
            y = self.qk_norm(weights, qk_norm, &y)?;
        }
        if let Some(clip) = self.spec.clip_qkv {
            y = y.clamp(-clip, clip)?;
        }
        let y = y.reshape((y.dim(0)?, heads, self.spec.d_head))?;
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

    /// A norm that nobody reads inside, if there is one.
    fn plain_norm(&self, weights: &Option<NormWeights>, x: &Tensor) -> Result<Tensor> {
        match weights {
            None => Ok(x.clone()),
            Some(NormWeights { weight, bias }) => {
                let centre = centre(self.spec.norm);
                self.rounded(endoscope_kernels::norm(x, weight, bias.as_ref(), centre, self.spec.epsilon)?)
            }
        }
    }
}
