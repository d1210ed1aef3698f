//! A model on a batch of questions: its answers under edits, what its parts write directly, where its heads look, and
//! the few dimensions into which what they read is compressed.

use std::ops::ControlFlow;

use candle_core::{D, DType, Device, Tensor};
use endoscope_causal::{Component, DirectExchange, Pair, direct_exchange};
use endoscope_models::Decoder;
use endoscope_models::factored::Factored;
use endoscope_net::{AxisName, Capture, Captured, Change, Edit, Index, Inputs, Network, Plan};
use endoscope_train::generator;
use rand::RngExt;

use super::questions::Prompt;
use crate::error::Result;
use crate::shared::{Head, random_directions};

/// A model and prompts that are laid out alike.
pub struct Bench<'a> {
    decoder: &'a Decoder,
    pub prompts: &'a [Prompt],
    /// The metric without any edit.
    pub whole: f64,
}

/// What a model answers.
pub struct Answers {
    /// The logit of the right label less the mean of the other three, averaged over prompts.
    pub metric: f64,
    /// The label with the highest logit, of each prompt.
    pub chosen: Vec<usize>,
}

/// Where a head looks from the last token.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// The share of its attention that items get, from the label to the token after the option.
    pub items: f64,
    /// Of this the share of the right item.
    pub right: f64,
    /// Of this the share of that item, by number, which gets most on average.
    pub one: f64,
    /// Which token of an item it looks at most: an index into [`Places`](super::questions::Places).
    place: usize,
}

impl Look {
    /// The class of the head, after the classes of the paper.
    pub fn class(self) -> &'static str {
        match self {
            Self { items, .. } if items < 0.3 => "elsewhere",
            Self { right, .. } if right >= 0.6 => "the right item",
            Self { one, .. } if one >= 0.6 => "one item",
            _ => "several items",
        }
    }
}

impl<'a> Bench<'a> {
    pub fn new(decoder: &'a Decoder, prompts: &'a [Prompt]) -> Result<Self> {
        let mut bench = Self { decoder, prompts, whole: 0. };
        bench.whole = bench.answers(vec![])?.metric;
        Ok(bench)
    }

    fn inputs(&self) -> Result<Inputs> {
        Ok(Inputs::tokens(self.prompts.iter().map(|prompt| prompt.tokens.clone()).collect())?)
    }

    /// The answers under edits.
    pub fn answers(&self, edits: Vec<Edit>) -> Result<Answers> {
        let plan = Plan { edits, ..Plan::default() }.outputs_at(Index::At(-1));
        let logits = self.decoder.run(&self.inputs()?, &plan)?.outputs.squeeze(1)?.to_vec2::<f32>()?;
        let mut answers = Answers { metric: 0., chosen: Vec::new() };
        for (logits, prompt) in logits.iter().zip(self.prompts) {
            let labels: Vec<f64> = prompt.labels.iter().map(|&label| f64::from(logits[label as usize])).collect();
            let (right, all) = (labels[prompt.right], labels.iter().sum::<f64>());
            answers.metric += (right - (all - right) / (labels.len() - 1) as f64) / self.prompts.len() as f64;
            answers.chosen.push((0..labels.len()).max_by(|&a, &b| labels[a].total_cmp(&labels[b])).unwrap_or(0));
        }
        Ok(answers)
    }

    /// The share of the metric that is left under edits.
    pub fn kept(&self, edits: Vec<Edit>) -> Result<f64> {
        Ok(self.answers(edits)?.metric / self.whole)
    }

    /// The share of prompts for which the right label has the highest logit of the four.
    pub fn accuracy(&self) -> Result<f64> {
        let chosen = self.answers(vec![])?.chosen;
        let right = chosen.iter().zip(self.prompts).filter(|(chosen, prompt)| **chosen == prompt.right).count();
        Ok(right as f64 / self.prompts.len() as f64)
    }

    /// For each prompt another whose right label is another, drawn at random; itself if there is none.
    pub fn donors(&self, seed: u64) -> Vec<usize> {
        let (count, mut random) = (self.prompts.len(), generator(seed, 1 << 33));
        let donor = |at: usize| {
            let first = random.random_range(0..count);
            let mut others = (0..count).map(|step| (first + step) % count);
            others.find(|&other| self.prompts[other].right != self.prompts[at].right).unwrap_or(at)
        };
        (0..count).map(donor).collect()
    }

    /// What each part contributes to the metric directly, and what that of each prompt's donor would.
    pub fn direct(&self, donors: &[usize]) -> Result<DirectExchange> {
        let pair = |(prompt, &donor): (&Prompt, &usize)| Pair {
            clean: prompt.tokens.clone(),
            corrupt: self.prompts[donor].tokens.clone(),
            answers: vec![prompt.labels[prompt.right]],
            wrong_answers: prompt
                .labels
                .iter()
                .copied()
                .filter(|&label| label != prompt.labels[prompt.right])
                .collect(),
        };
        let pairs: Vec<Pair> = self.prompts.iter().zip(donors).map(pair).collect();
        Ok(direct_exchange(self.decoder, &pairs, |_| ControlFlow::Continue(()))?)
    }

    fn captured(&self, captures: Vec<Capture>) -> Result<Captured> {
        let plan = Plan { captures, ..Plan::default() }.outputs_at(Index::At(-1));
        Ok(self.decoder.run(&self.inputs()?, &plan)?.captured)
    }

    /// What the parts write at the last token of each prompt.
    pub fn written(&self, parts: &[Component]) -> Result<Vec<Written>> {
        of_parts(&self.captured(at_the_end(parts))?, parts)
    }

    /// The same of the prompts whose wrong options have changed places, which may differ in length.
    pub fn written_shuffled(&self, parts: &[Component]) -> Result<Vec<Written>> {
        let mut rows: Vec<Vec<Written>> = Vec::with_capacity(self.prompts.len());
        for prompt in self.prompts {
            let plan = Plan { captures: at_the_end(parts), ..Plan::default() }.outputs_at(Index::At(-1));
            let run = self.decoder.run(&Inputs::tokens(vec![prompt.shuffled.clone()])?, &plan)?;
            rows.push(of_parts(&run.captured, parts)?);
        }
        let all = |part: usize| -> Result<Written> {
            let rows: Vec<&Tensor> = rows.iter().map(|row| &row[part].value).collect();
            Ok(Written { value: Tensor::cat(&rows, 0)?, part: parts[part] })
        };
        (0..parts.len()).map(all).collect()
    }

    /// Where the heads of all layers look: `[layer][head]`.
    pub fn looks(&self) -> Result<Vec<Vec<Look>>> {
        let name = |layer: usize| format!("blocks.{layer}.attn.hook_pattern");
        let layers = 0..self.decoder.spec.layers;
        let capture = |layer| Capture::new(name(layer)).at(AxisName::Query, Index::At(-1));
        let captured = self.captured(layers.clone().map(capture).collect())?;
        let of_layer = |layer: usize| -> Result<Vec<Look>> {
            // `[row, head, key]`.
            let pattern = captured.get(&name(layer))?.squeeze(2)?.to_vec3::<f32>()?;
            Ok((0..self.decoder.spec.heads).map(|head| self.look(|row| &pattern[row][head])).collect())
        };
        layers.map(of_layer).collect()
    }

    fn look<'b>(&self, attention: impl Fn(usize) -> &'b Vec<f32>) -> Look {
        let places = &self.prompts[0].places;
        let (mut right, mut items, mut on) = (0., vec![0.; places.len()], [0.; 4]);
        for (row, prompt) in self.prompts.iter().enumerate() {
            let attention = attention(row);
            for (item, place) in places.iter().enumerate() {
                let share: f64 = attention[place[0]..=place[3]].iter().copied().map(f64::from).sum();
                items[item] += share;
                right += if item == prompt.right { share } else { 0. };
                on.iter_mut().zip(place).for_each(|(on, &at)| *on += f64::from(attention[at]));
            }
        }
        let (all, most) = (items.iter().sum::<f64>(), items.iter().copied().fold(0., f64::max));
        let of_items = |share: f64| if all > 0. { share / all } else { 0. };
        let place = (0..on.len()).max_by(|&a, &b| on[a].total_cmp(&on[b])).unwrap_or(0);
        Look { items: all / self.prompts.len() as f64, right: of_items(right), one: of_items(most), place }
    }

    /// What heads read, collected over these prompts.
    pub fn reads(&self, heads: &[Head], looks: &[Vec<Look>], reading: Reading) -> Result<Vec<Read>> {
        let group = self.decoder.spec.heads / self.decoder.spec.kv_heads.max(1);
        let mut reads: Vec<Read> = Vec::new();
        for &Head { layer, head } in heads {
            let (site, head_of_site, positions) = match reading {
                Reading::Queries => ("q", head, vec![-1]),
                _ => {
                    let place = looks[layer][head].place;
                    let positions = self.prompts[0].places.iter().map(|item| item[place] as i64).collect();
                    (if reading == Reading::Keys { "k" } else { "v" }, head / group.max(1), positions)
                }
            };
            let site = format!("blocks.{layer}.attn.hook_{site}");
            let select = Select { site, head: head_of_site, positions };
            // Heads that share keys and values read the same.
            if reads.iter().all(|read| read.select != select) {
                let captured = self.captured(vec![select.capture()])?;
                reads.push(Read::of(captured.get(&select.site)?, select)?);
            }
        }
        Ok(reads)
    }
}

/// What a part writes at the last token, of each prompt.
pub struct Written {
    part: Component,
    /// `[row, 1, d]`, of a head `[row, 1, 1, d_head]`.
    value: Tensor,
}

impl Written {
    /// The edit that puts this there.
    pub fn put(&self) -> Edit {
        self.edit(Change::Set { value: self.value.clone().into() })
    }

    /// The edit that puts there what the part writes in other prompts of the same batch.
    pub fn put_of(&self, donors: &[usize]) -> Result<Edit> {
        let donors = Tensor::from_iter(donors.iter().map(|&donor| donor as u32), &Device::Cpu)?;
        let value = self.value.contiguous()?.index_select(&donors, 0)?;
        Ok(self.edit(Change::Set { value: value.into() }))
    }

    /// The edit that puts the mean over prompts there.
    pub fn put_mean(&self) -> Result<Edit> {
        Ok(self.edit(Change::Set { value: self.value.mean_keepdim(0)?.into() }))
    }

    fn edit(&self, change: Change) -> Edit {
        let edit = Edit::new(site(self.part), change).at(AxisName::Position, Index::At(-1));
        match self.part {
            Component::Head { head, .. } => edit.at(AxisName::Head, Index::At(head as i64)),
            _ => edit,
        }
    }
}

/// The site where a part's output is exchanged. Only heads and MLPs are.
fn site(part: Component) -> String {
    match part {
        Component::Head { layer, .. } => format!("blocks.{layer}.attn.hook_z"),
        Component::Mlp { layer } => format!("blocks.{layer}.hook_mlp_out"),
        _ => "hook_embed".into(),
    }
}

fn at_the_end(parts: &[Component]) -> Vec<Capture> {
    let mut sites: Vec<String> = parts.iter().map(|&part| site(part)).collect();
    sites.sort();
    sites.dedup();
    sites.into_iter().map(|site| Capture::new(site).at(AxisName::Position, Index::At(-1))).collect()
}

fn of_parts(captured: &Captured, parts: &[Component]) -> Result<Vec<Written>> {
    let of_part = |&part: &Component| -> Result<Written> {
        let all = captured.get(&site(part))?;
        let value = match part {
            Component::Head { head, .. } => all.narrow(2, head, 1)?,
            _ => all.clone(),
        };
        Ok(Written { part, value })
    };
    parts.iter().map(of_part).collect()
}

/// What of attention is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Queries, at the last token.
    Queries,
    /// Keys, at that token of each item which the head looks at most.
    Keys,
    /// Values, there.
    Values,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Select {
    site: String,
    head: usize,
    positions: Vec<i64>,
}

impl Select {
    fn capture(&self) -> Capture {
        let positions = Index::List(self.positions.clone());
        Capture::new(&self.site).at(AxisName::Position, positions).at(AxisName::Head, Index::At(self.head as i64))
    }

    fn edit(&self, change: Change) -> Edit {
        let positions = Index::List(self.positions.clone());
        Edit::new(&self.site, change).at(AxisName::Position, positions).at(AxisName::Head, Index::At(self.head as i64))
    }
}

/// The directions of queries, keys or values of a head over prompts, before any rotation by position.
pub struct Read {
    select: Select,
    /// `[d_head]`.
    mean: Tensor,
    /// Orthonormal `[k, d_head]`: right singular vectors of the differences from the mean, in order.
    directions: Tensor,
}

impl Read {
    /// Of vectors `[row, position, 1, d_head]`.
    fn of(vectors: &Tensor, select: Select) -> Result<Self> {
        let vectors = vectors.flatten(0, 2)?.contiguous()?;
        let (mean, directions, _) = centred(&vectors)?;
        Ok(Self { select, mean, directions })
    }

    /// The edits that keep of the differences from the mean only what lies in the span of the `directions` `[r,
    /// d_head]`; of none of them that put the mean there.
    pub fn compress(&self, directions: Option<&Tensor>) -> Result<Vec<Edit>> {
        let Some(directions) = directions else {
            return Ok(vec![self.select.edit(Change::Set { value: self.mean.clone().into() })]);
        };
        let mean = self.mean.unsqueeze(0)?;
        let outside = (&mean - mean.matmul(&directions.t()?)?.matmul(directions)?)?.squeeze(0)?;
        let onto = Change::ProjectOnto { directions: directions.clone().into() };
        let add = Change::Add { value: outside.into(), scale: 1. };
        Ok(vec![self.select.edit(onto), self.select.edit(add)])
    }

    /// The first `rank` directions, or the last ones.
    pub fn directions(&self, rank: usize, first: bool) -> Result<Option<Tensor>> {
        let all = self.directions.dim(0)?;
        let rank = rank.min(all);
        let from = if first { 0 } else { all - rank };
        Ok(if rank == 0 { None } else { Some(self.directions.narrow(0, from, rank)?.contiguous()?) })
    }

    /// As many directions, drawn at random.
    pub fn random(&self, rank: usize, seed: u64, draw: u64) -> Result<Option<Tensor>> {
        let width = self.mean.elem_count();
        Ok(if rank == 0 { None } else { Some(random_directions((rank.min(width), width), seed, draw)?) })
    }
}

/// Mean `[d]`, right singular vectors `[k, d]` and singular values of the differences from it, of vectors `[n, d]`.
fn centred(vectors: &Tensor) -> Result<(Tensor, Tensor, Vec<f64>)> {
    let mean = vectors.mean(0)?;
    let square = Tensor::eye(vectors.dim(D::Minus1)?, DType::F32, &Device::Cpu)?;
    let decomposed = Factored::new(&vectors.to_dtype(DType::F32)?.broadcast_sub(&mean)?, &square)?.svd()?;
    Ok((mean, decomposed.right.t()?.contiguous()?, decomposed.values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_classed_by_where_they_look() {
        let look = |items, right, one| Look { items, right, one, place: 0 }.class();
        assert_eq!(look(0.1, 1., 1.), "elsewhere");
        assert_eq!(look(0.9, 0.8, 0.3), "the right item");
        assert_eq!(look(0.9, 0.3, 0.9), "one item");
        assert_eq!(look(0.9, 0.3, 0.3), "several items");
    }

    /// `tools/goldens/mcq_subspace.py` made it with numpy.
    #[test]
    fn directions_are_those_of_numpy() {
        #[derive(serde::Deserialize)]
        struct Golden {
            vectors: Vec<Vec<f32>>,
            mean: Vec<f32>,
            singular_values: Vec<f64>,
            projected: Vec<Vec<f32>>,
        }
        let golden: Golden = serde_json::from_str(include_str!("../../../tests/goldens/mcq_subspace.json")).unwrap();
        let vectors = Tensor::new(golden.vectors, &Device::Cpu).unwrap();
        let (mean, directions, values) = centred(&vectors).unwrap();
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&mean.to_vec1().unwrap(), &golden.mean));
        assert!(values.iter().zip(&golden.singular_values).all(|(a, b)| (a - b).abs() < 1e-5), "{values:?}");
        // Signs are nobody's business; the projection about the mean is.
        let three = directions.narrow(0, 0, 3).unwrap();
        let centred = vectors.broadcast_sub(&mean).unwrap();
        let inside = centred.matmul(&three.t().unwrap()).unwrap().matmul(&three).unwrap();
        let projected = inside.broadcast_add(&mean).unwrap().to_vec2::<f32>().unwrap();
        assert!(projected.iter().zip(&golden.projected).all(|(a, b)| close(a, b)));
    }
}
