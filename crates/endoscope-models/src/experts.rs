//! Experts in the place of an MLP: each position is read by the few that its router finds most probable.

use candle_core::{D, Tensor};
use endoscope_net::{Error, Result, Taps};

use crate::decoder::{Decoder, DenseWeights};
use crate::ops::{self, Linear};
use crate::sites::LayerSites;
use crate::spec::{ExpertWeights, Experts};

impl Decoder {
    /// `[r, d] -> [r, d]`: the sum of what the chosen experts put out, by weight, in the order of their numbers.
    ///
    /// The choice is read back from `hook_expert_indices`, so that an edit there sends positions to other experts.
    pub(crate) fn experts(
        &self,
        spec: &Experts,
        router: &Linear,
        experts: &[DenseWeights],
        sites: &LayerSites,
        x: &Tensor,
        taps: &mut Taps,
    ) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let scores = taps.at(sites.router, self.rounded(router.forward(x)?)?)?;
        let probabilities = taps.at(sites.expert_weights, endoscope_kernels::softmax(&scores)?)?;
        let chosen = most_probable(&probabilities, spec.active)?;
        let indices = Tensor::from_vec(chosen.concat(), (rows, spec.active), x.device())?;
        let indices = taps.at(sites.expert_indices, indices)?.to_vec2::<f32>()?;
        let mut out = x.zeros_like()?;
        if rows == 0 {
            return Ok(out);
        }
        let indices: Vec<Vec<u32>> =
            indices.iter().map(|row| row.iter().map(|&at| number(at, spec.count)).collect()).collect::<Result<_>>()?;
        let table = Tensor::from_vec(indices.concat(), (rows, spec.active), x.device())?;
        let mut weights = probabilities.contiguous()?.gather(&table, D::Minus1)?;
        if spec.weights == ExpertWeights::Renormalised {
            weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        }
        let weights = weights.reshape(rows * spec.active)?;
        let activation = self.spec.activation;
        for (number, expert) in experts.iter().enumerate() {
            // Where among all choices this expert is.
            let places: Vec<u32> = indices
                .concat()
                .iter()
                .enumerate()
                .filter_map(|(at, &chosen)| (chosen as usize == number).then_some(at as u32))
                .collect();
            if places.is_empty() {
                continue;
            }
            let count = places.len();
            let readers: Vec<u32> = places.iter().map(|place| place / spec.active as u32).collect();
            let readers = Tensor::from_vec(readers, count, x.device())?;
            let places = Tensor::from_vec(places, count, x.device())?;
            let read = x.index_select(&readers, 0)?;
            let pre = self.rounded(expert.gate.forward(&read)?)?;
            let post = match &expert.up {
                Some(up) => ops::activate_gated(activation, &pre, &self.rounded(up.forward(&read)?)?)?,
                None => ops::activate(activation, &pre)?,
            };
            let weight = weights.index_select(&places, 0)?.unsqueeze(1)?;
            let read = self.rounded(expert.down.forward(&self.rounded(post)?)?)?.broadcast_mul(&weight)?;
            out = out.index_add(&readers, &read, 0)?;
        }
        Ok(out)
    }
}

/// The numbers of the `active` most probable experts of each row, the most probable first; of equals the first.
fn most_probable(probabilities: &Tensor, active: usize) -> Result<Vec<Vec<f32>>> {
    let rows = probabilities.detach().to_vec2::<f32>()?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            order.into_iter().take(active).map(|at| at as f32).collect()
        })
        .collect())
}

fn number(at: f32, count: usize) -> Result<u32> {
    if at.fract() == 0. && at >= 0. && at < count as f32 {
        return Ok(at as u32);
    }
    let reason = format!("{at} is not the number of an expert; there are {count}, from 0");
    Err(Error::EditNotPossible { site: "mlp.hook_expert_indices".into(), reason })
}
