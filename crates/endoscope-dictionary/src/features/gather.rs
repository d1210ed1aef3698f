//! One pass over a corpus: where each feature is active, most of all and at random.

use std::ops::ControlFlow;

use endoscope_net::{Inputs, Network};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::dictionary::{Codes, Dictionary};
use crate::error::{Error, Result};
use crate::evaluate::activations;
use crate::evaluate::splice::{batches, capturing};

/// A token on which a feature was active.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The row of tokens.
    pub row: u32,
    /// The position in it.
    pub position: u32,
    /// The feature's activation.
    pub activation: f32,
}

/// What is known of one feature.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub feature: usize,
    /// On how many tokens it was active.
    pub fired: u64,
    /// The sum of its activations.
    pub sum: f64,
    /// Its strongest tokens, one a row, the strongest first.
    pub top: Vec<Example>,
    /// Tokens drawn evenly from all on which it was active, one a row, in the order of rows.
    pub sampled: Vec<Example>,
}

/// How much is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gather {
    /// The features; all if none are named.
    pub features: Option<Vec<usize>>,
    /// How many of the strongest tokens.
    pub top: usize,
    /// How many drawn ones.
    pub sampled: usize,
    /// What they are drawn by.
    pub seed: u64,
}

impl Default for Gather {
    fn default() -> Self {
        Self { features: None, top: 20, sampled: 20, seed: 0 }
    }
}

/// What a corpus says of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gathered {
    /// How many tokens were read.
    pub tokens: u64,
    /// What is known of each feature asked for, in the order of their numbers.
    pub records: Vec<Record>,
}

/// Runs `rows` of tokens, of which `watch` hears as they are done (how many of them), and of each token's latents.
pub fn gather(
    network: &dyn Network,
    dictionary: &Dictionary,
    rows: &[Vec<u32>],
    asked: &Gather,
    mut watch: impl FnMut(usize, &Codes) -> ControlFlow<()>,
) -> Result<Gathered> {
    let latents = dictionary.latents();
    let wanted: Vec<usize> = match &asked.features {
        None => (0..latents).collect(),
        Some(features) => {
            features.iter().try_for_each(|&feature| dictionary.check_feature(feature))?;
            let mut features = features.clone();
            features.sort_unstable();
            features.dedup();
            features
        }
    };
    let mut place = vec![u32::MAX; latents];
    wanted.iter().enumerate().for_each(|(at, &feature)| place[feature] = at as u32);
    let mut records: Vec<Record> = wanted.iter().map(|&feature| Record { feature, ..Record::default() }).collect();
    // What drawn examples are ordered by: the smallest stay.
    let mut drawn: Vec<Vec<(u64, Example)>> = vec![Vec::new(); wanted.len()];
    let (mut first, mut tokens) = (0usize, 0u64);
    for batch in batches(rows) {
        let inputs = Inputs::tokens(batch.to_vec())?;
        let run = network.run(&inputs, &capturing(dictionary))?;
        let (input, _) = activations(network, dictionary, &run)?;
        let codes = dictionary.encode(&input)?;
        let length = batch.first().map_or(0, Vec::len);
        tokens += input.rows() as u64;
        for row in 0..batch.len() {
            // The strongest token of this row for each feature.
            let mut best: Vec<(u32, Example)> = Vec::new();
            for position in 0..length {
                let (columns, values) = codes.latents.row(row * length + position);
                for (&column, &activation) in columns.iter().zip(values) {
                    let at = place[column as usize];
                    if at != u32::MAX {
                        let record = &mut records[at as usize];
                        record.fired += 1;
                        record.sum += f64::from(activation);
                        best.push((at, Example { row: (first + row) as u32, position: position as u32, activation }));
                    }
                }
            }
            best.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.activation.total_cmp(&a.1.activation)));
            for group in best.chunk_by(|a, b| a.0 == b.0) {
                let (at, example) = group[0];
                insert(&mut records[at as usize].top, example, asked.top);
                let chance = mixed(asked.seed, u64::from(at) << 32 | (first + row) as u64);
                let token = group[(mixed(chance, 1) % group.len() as u64) as usize].1;
                let kept = &mut drawn[at as usize];
                kept.push((chance, token));
                if kept.len() > 2 * asked.sampled + 8 {
                    kept.sort_unstable_by_key(|&(chance, _)| chance);
                    kept.truncate(asked.sampled);
                }
            }
        }
        first += batch.len();
        if watch(batch.len(), &codes).is_break() {
            break;
        }
    }
    if tokens == 0 {
        return Err(Error::Measure("there are no tokens to read features on".into()));
    }
    records.par_iter_mut().zip(drawn).for_each(|(record, mut drawn)| {
        drawn.sort_unstable_by_key(|&(chance, _)| chance);
        drawn.truncate(asked.sampled);
        record.sampled = drawn.into_iter().map(|(_, example)| example).collect();
        record.sampled.sort_by_key(|example| (example.row, example.position));
    });
    Ok(Gathered { tokens, records })
}

/// Puts an example among the strongest.
fn insert(top: &mut Vec<Example>, example: Example, most: usize) {
    let at = top.partition_point(|other| other.activation >= example.activation);
    if at < most {
        top.insert(at, example);
        top.truncate(most);
    }
}

/// A number that looks random (splitmix64).
fn mixed(seed: u64, at: u64) -> u64 {
    let mut x = seed.wrapping_add((at ^ seed.rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
