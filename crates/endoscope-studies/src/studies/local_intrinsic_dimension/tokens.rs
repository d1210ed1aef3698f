//! Tokens of rows, and what a model makes of them: loss, accuracy, and the points that are measured.

use std::collections::HashSet;

use candle_core::Tensor;
use endoscope_causal::dimension::{Points, TwoNn};
use endoscope_models::Decoder;
use endoscope_net::{Capture, Captured, Index, Inputs, Network, Plan};
use endoscope_organisms::{BOS, Row};
use endoscope_train::{Batch, answered, cross_entropy, generator};
use rand::seq::SliceRandom;

use super::{Config, LocalIntrinsicDimension};
use crate::error::{Error, Result};
use crate::study::Study;

/// Whether tokens that come after the same tokens in another order are different points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mirrors {
    Apart,
    One,
}

/// Rows, and which of their tokens are points.
pub(super) struct Tokens {
    batch: Batch,
    /// Row and position: places from which a token that counts is predicted, no two of them after the same tokens.
    places: Vec<(usize, usize)>,
}

impl Tokens {
    /// Of all places in rows from which a token that counts is predicted `config.points`, drawn by the seed. A row that comes again
    /// is left out, and so is a place after the same tokens as another: it would be the same point.
    pub fn new(rows: Vec<Row>, mirrors: Mirrors, config: &Config, seed: u64) -> Result<Self> {
        let (mut seen, mut known) = (HashSet::new(), HashSet::new());
        let mut rows: Vec<Row> = rows.into_iter().filter(|row| seen.insert(row.tokens.clone())).collect();
        let mut places = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            let before = |at: usize| {
                let mut tokens = row.tokens[..at].to_vec();
                if mirrors == Mirrors::One {
                    tokens.sort_unstable();
                }
                tokens
            };
            let counts = (1..row.tokens.len()).filter(|&at| row.mask[at] && known.insert(before(at)));
            places.extend(counts.map(|at| (number, at - 1)));
        }
        if places.len() < config.points || config.points <= config.neighbours {
            let (found, Config { points, neighbours, .. }) = (places.len(), config);
            let problem = format!(
                "`points` is {points}; it must be at most {found}, the tokens that differ in what comes before them, and more than \
                 the {neighbours} neighbours"
            );
            return Err(Error::Settings { slug: LocalIntrinsicDimension::SLUG, problems: vec![problem] });
        }
        places.shuffle(&mut generator(seed, 0));
        places.truncate(config.points);
        places.sort_unstable();
        let longest = rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
        for row in &mut rows {
            // After the last token that counts, where a causal model's other positions do not see it.
            row.tokens.resize(longest, BOS);
            row.mask.resize(longest, false);
        }
        let (tokens, mask) = rows.into_iter().map(|row| (row.tokens, row.mask)).unzip();
        Ok(Self { batch: Batch { tokens, mask }, places })
    }

    /// The row of each point.
    pub fn rows(&self) -> Vec<usize> {
        self.places.iter().map(|&(row, _)| row).collect()
    }

    /// Loss and accuracy on all rows, and the points after the last layer.
    pub fn scored(&self, decoder: &Decoder) -> Result<(f64, f64, Points)> {
        let last = decoder.spec.layers.saturating_sub(1);
        let plan = Plan::default().capture(Capture::new(format!("resid_post.{last}")));
        let run = decoder.run(&Inputs::tokens(self.batch.tokens.clone())?, &plan)?;
        let loss = f64::from(cross_entropy(&run.outputs, &self.batch)?.to_scalar::<f32>()?);
        Ok((loss, answered(&run.outputs, &self.batch)?.share(), self.points(&run.captured, last)?))
    }

    /// The points after each layer.
    pub fn layers(&self, decoder: &Decoder) -> Result<Vec<Points>> {
        // Of no interest are outputs.
        let plan = Plan::default().capture(Capture::new("resid_post.*")).outputs_at(Index::At(-1));
        let run = decoder.run(&Inputs::tokens(self.batch.tokens.clone())?, &plan)?;
        (0..decoder.spec.layers).map(|layer| self.points(&run.captured, layer)).collect()
    }

    fn points(&self, captured: &Captured, layer: usize) -> Result<Points> {
        let all = captured.get(&format!("blocks.{layer}.hook_resid_post"))?;
        let (_, length, _) = all.dims3()?;
        let flat: Vec<u32> = self.places.iter().map(|&(row, at)| (row * length + at) as u32).collect();
        let chosen = all.flatten(0, 1)?.index_select(&Tensor::new(flat, all.device())?, 0)?;
        Ok(Points::new(&chosen)?)
    }
}

/// The mean over points of the TwoNN dimension of each one's nearest neighbours.
pub(super) fn dimension(points: &Points, config: &Config) -> Result<f64> {
    let local: Vec<f64> = points.local(config.neighbours, &TwoNn::default())?.into_iter().flatten().collect();
    match local.len() {
        0 => Err(Error::Unsuitable {
            reason: "around every point each is as far from its second neighbour as from its first".into(),
        }),
        count => Ok(local.iter().sum::<f64>() / count as f64),
    }
}
