//! Reading: streams through a lens, the final norm and the unembedding, as tokens, probabilities and distances.

use candle_core::Tensor;
use endoscope_net::{
    AxisName, Base, Capture, Change, Edit, Frame, Index, Inputs, Network, Plan, Prepared, Resume, Tap,
};
use serde::Serialize;

use super::{Lens, Streams, is_finite};
use crate::error::{Error, Result};
use crate::metric::{Metric, Target, log_softmax};

/// The end of a network, from the last residual stream to the logits.
///
/// Logits at a position depend on the last residual stream at that position alone, so any rows can be read at the
/// positions of one base run: what its tokens are does not matter.
pub(super) struct Readout<'a> {
    network: &'a dyn Resume,
    pub base: Base,
    /// The last residual stream.
    last: String,
    /// How many rows one branch takes.
    length: usize,
}

impl<'a> Readout<'a> {
    /// From a base run of `tokens`, which captures what `captures` says.
    pub fn new(network: &'a dyn Resume, last: &str, tokens: &[u32], captures: Vec<Capture>) -> Result<Self> {
        let plan = Plan { captures, ..Plan::default() }.outputs_at(Index::At(-1));
        let base = network.base(&Inputs::tokens(vec![tokens.to_vec()])?, &plan)?;
        Ok(Self { network, base, last: last.to_string(), length: tokens.len() })
    }

    /// The logits of rows `[n, d]` of a (mapped) last residual stream: `[n, v]`. A graph of the rows is kept.
    pub fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        let count = rows.dim(0)?;
        let mut plans = Vec::with_capacity(count.div_ceil(self.length));
        for first in (0..count).step_by(self.length) {
            let some = self.length.min(count - first);
            let positions = Index::Range { start: 0, end: Some(some as i64) };
            let change = Change::Set { value: rows.narrow(0, first, some)?.into() };
            let edit = Edit::new(&self.last, change).at(AxisName::Position, positions.clone());
            plans.push(Plan::default().edit(edit).outputs_at(positions));
        }
        let mut runs = self.network.branches(&self.base, &plans)?.into_iter().map(|run| run.outputs.squeeze(0));
        match plans.len() {
            1 => Ok(runs.next().ok_or_else(|| Error::Lens("the network gave no run".into()))??),
            _ => Ok(Tensor::cat(&runs.collect::<candle_core::Result<Vec<_>>>()?, 0)?),
        }
    }
}

/// What is asked of a lens.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The positions that are read.
    pub positions: Index,
    /// The token whose rank and probability are told; none = the network's own most probable one at each position.
    pub target: Option<u32>,
    /// How many of the most probable tokens are told.
    pub top: usize,
}

impl Default for Ask {
    fn default() -> Self {
        Self { positions: Index::All, target: None, top: 5 }
    }
}

/// What a lens read of one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reading {
    /// The streams by full name, in the order of the mathematics; the last one is the network's own word.
    pub streams: Vec<String>,
    /// The positions, from 0.
    pub positions: Vec<usize>,
    /// The target at each position.
    pub targets: Vec<u32>,
    /// `[stream][position]`.
    pub cells: Vec<Vec<Cell>>,
}

/// What one stream says at one position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// The most probable tokens; of equals, the one with the smaller id first.
    pub top: Vec<Candidate>,
    /// How many tokens are more probable than the target: 0 = it is on top.
    pub rank: usize,
    /// The probability of the target.
    pub probability: f64,
    /// The entropy of the distribution, in nats.
    pub entropy: f64,
    /// KL(network's own distribution || this one), in nats.
    pub kl: f64,
}

/// A token and its probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// Its probability.
    pub probability: f64,
}

/// Reads a prompt through a lens, stream by stream: one run of the network, and one unembedding a stream.
///
/// `streams` is for a logit lens; see [`Lens::streams`]. Fails where the lens does not fit the network, a position or the
/// target is out of range, or a stream or a logit is not finite.
pub fn read(network: &dyn Resume, lens: &Lens, tokens: &[u32], ask: &Ask, streams: Streams) -> Result<Reading> {
    let names = lens.streams(network.sites(), streams)?;
    let positions = positions(network, &ask.positions, tokens.len())?;
    let chosen = Index::List(positions.iter().map(|&position| position as i64).collect());
    let capture = |name: &String| Capture::new(name).at(AxisName::Position, chosen.clone());
    let last = names.last().map_or("", String::as_str);
    let readout = Readout::new(network, last, tokens, names.iter().map(capture).collect())?;
    let stream = |name: &str| -> Result<Tensor> { Ok(readout.base.run.captured.get(name)?.squeeze(0)?) };
    let own = readout.logits(&stream(last)?)?.to_vec2::<f32>()?;
    let targets: Vec<u32> = match ask.target {
        Some(target) => vec![target; own.len()],
        None => own.iter().filter_map(|logits| highest(logits, 1).first().copied()).collect(),
    };
    let own: Vec<Vec<f64>> = own.iter().map(|logits| log_softmax(logits)).collect();
    let mut cells = Vec::with_capacity(names.len());
    for name in &names {
        let mapped = lens.translated(name, &stream(name)?)?;
        if !is_finite(&mapped)? {
            return Err(Error::Lens(format!("what it makes of `{name}` is not finite")));
        }
        let logits = readout.logits(&mapped)?.to_vec2::<f32>()?;
        let row = logits.iter().zip(own.iter().zip(&targets));
        let row = row.map(|(logits, (own, &target))| Cell::of(logits, own, target, ask.top));
        cells.push(row.collect::<Result<_>>()?);
    }
    Ok(Reading { streams: names, positions, targets, cells })
}

/// At which place a lens has a token, over prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReciprocalRanks {
    /// The streams by full name, in the order of the mathematics; the last one is the network's own word.
    pub streams: Vec<String>,
    /// `[stream][position]`: the mean over prompts of 1 / place, where the place on top is 1; so 1 = always on top.
    pub means: Vec<Vec<f64>>,
}

/// The mean reciprocal rank of each prompt's target, stream by stream, at `positions`, of which every prompt must have the same number.
/// The final norm is applied to every stream, the last included, which the network itself reads through it too. `streams` as for [`read`].
pub fn reciprocal_ranks(
    network: &dyn Resume,
    lens: &Lens,
    prompts: &[(Vec<u32>, u32)],
    positions: &Index,
    streams: Streams,
) -> Result<ReciprocalRanks> {
    let mut sums: Option<ReciprocalRanks> = None;
    for (tokens, target) in prompts {
        let ask = Ask { positions: positions.clone(), target: Some(*target), top: 0 };
        let Reading { streams, cells, positions, .. } = read(network, lens, tokens, &ask, streams)?;
        let zeros = vec![vec![0.; positions.len()]; streams.len()];
        let sums = sums.get_or_insert(ReciprocalRanks { streams, means: zeros });
        for (sums, cells) in sums.means.iter_mut().zip(&cells) {
            if sums.len() != cells.len() {
                let (here, before) = (cells.len(), sums.len());
                return Err(Error::Lens(format!("one prompt has {here} of the positions asked for, another {before}")));
            }
            sums.iter_mut().zip(cells).for_each(|(sum, cell)| *sum += 1. / (cell.rank + 1) as f64);
        }
    }
    let Some(mut ranks) = sums else { return Err(Error::Lens("there is no prompt to read".into())) };
    ranks.means.iter_mut().flatten().for_each(|mean| *mean /= prompts.len() as f64);
    Ok(ranks)
}

/// Which positions an index stands for in a prompt of `length` tokens; at least one.
fn positions(network: &dyn Network, index: &Index, length: usize) -> Result<Vec<usize>> {
    let plan = Plan::default().outputs_at(index.clone());
    let prepared = Prepared::new(network.sites(), &plan)?;
    let found = Tap::new(&prepared, Frame::whole(1, length))?.output_positions()?;
    match found.unwrap_or_else(|| (0..length).collect()) {
        none if none.is_empty() => Err(Error::Lens(format!("the positions `{index}` of {length} tokens are none"))),
        positions => Ok(positions),
    }
}

/// The ids of the largest logits, the largest first; of equals the smaller id.
fn highest(logits: &[f32], count: usize) -> Vec<u32> {
    let order = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let count = count.min(ids.len());
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
    }
    ids.truncate(count);
    ids.sort_unstable_by(order);
    ids
}

impl Cell {
    /// What `logits` say where the logarithms of the network's own probabilities are `own`.
    fn of(logits: &[f32], own: &[f64], target: u32, top: usize) -> Result<Self> {
        // It sees to it that the target is there and that no logit is NaN.
        let rank = Metric::Rank.value(logits, &Target { answers: vec![target], ..Target::default() })?;
        let log_probabilities = log_softmax(logits);
        let probability = |token: u32| log_probabilities[token as usize].exp();
        // x log x is 0 at 0.
        let mean = |of: &[f64], value: &dyn Fn(usize) -> f64| -> f64 {
            let terms = of.iter().enumerate().map(|(token, log)| (token, log.exp()));
            terms.filter(|(_, share)| *share > 0.).map(|(token, share)| share * value(token)).sum()
        };
        Ok(Self {
            top: highest(logits, top)
                .into_iter()
                .map(|token| Candidate { token, probability: probability(token) })
                .collect(),
            rank: rank as usize,
            probability: probability(target),
            entropy: mean(&log_probabilities, &|token| -log_probabilities[token]),
            kl: mean(own, &|token| own[token] - log_probabilities[token]),
        })
    }
}

/// How far one stream of a lens is from what the network itself says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Loss {
    /// The stream, by its full name.
    pub stream: String,
    /// KL(network's own distribution || this one), in nats, mean over all positions of all rows.
    pub kl: f64,
    /// The share of positions at which both put the same token on top.
    pub agreement: f64,
}

/// How far a lens is from the network on rows of tokens, stream by stream. `streams` as for [`read`].
pub fn losses(network: &dyn Resume, lens: &Lens, rows: &[Vec<u32>], streams: Streams) -> Result<Vec<Loss>> {
    let mut sums: Vec<Loss> = Vec::new();
    let mut count = 0.;
    for row in rows {
        let reading = read(network, lens, row, &Ask { top: 0, ..Ask::default() }, streams)?;
        count += reading.positions.len() as f64;
        if sums.is_empty() {
            sums.extend(reading.streams.into_iter().map(|stream| Loss { stream, kl: 0., agreement: 0. }));
        }
        for (sum, cells) in sums.iter_mut().zip(&reading.cells) {
            sum.kl += cells.iter().map(|cell| cell.kl).sum::<f64>();
            sum.agreement += cells.iter().filter(|cell| cell.rank == 0).count() as f64;
        }
    }
    if sums.is_empty() {
        return Err(Error::Lens("there is no row to measure it on".into()));
    }
    let mean = |sum: Loss| Loss { kl: sum.kl / count, agreement: sum.agreement / count, ..sum };
    Ok(sums.into_iter().map(mean).collect())
}
