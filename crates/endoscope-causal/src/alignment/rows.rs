//! Triples ready to run: split into what is trained on and what is held out, in batches with the sources' activations.

use std::collections::BTreeMap;

use endoscope_net::{Capture, Captured, Edit, Index, Inputs, Network, Plan};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::found::AlignmentScore;
use super::triples::Triple;
use crate::error::{Error, Result};
use crate::metric::{Metric, Target};

/// The numbers of the triples that are trained on, and of those that are held out.
///
/// Of each desideratum the same share is held out, at least one if there is more than one; triples of the same two prompts
/// stay together, so that nothing held out was trained on.
pub(crate) fn split(triples: &[Triple], share: f64, random: &mut ChaCha8Rng) -> (Vec<usize>, Vec<usize>) {
    /// The numbers of triples by their two prompts.
    type Together<'a> = BTreeMap<(&'a [u32], &'a [u32]), Vec<usize>>;
    let mut by_desideratum: BTreeMap<&str, Together> = BTreeMap::new();
    for (number, triple) in triples.iter().enumerate() {
        let prompts = by_desideratum.entry(&triple.desideratum).or_default();
        prompts.entry((&triple.base, &triple.source)).or_default().push(number);
    }
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for prompts in by_desideratum.into_values() {
        let mut groups: Vec<Vec<usize>> = prompts.into_values().collect();
        groups.shuffle(random);
        let out = match groups.len() {
            several if several > 1 && share > 0. => ((several as f64 * share).round() as usize).clamp(1, several - 1),
            _ => 0,
        };
        held_out.extend(groups.drain(..out).flatten());
        train.extend(groups.into_iter().flatten());
    }
    train.sort_unstable();
    held_out.sort_unstable();
    (train, held_out)
}

/// The same triples with the sources of others: what they were to tell is gone. Within prompts of one length each source
/// moves to another triple, as far as there is more than one.
pub(crate) fn shuffled(triples: &[Triple], random: &mut ChaCha8Rng) -> Vec<Triple> {
    let mut shuffled = triples.to_vec();
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, triple) in triples.iter().enumerate() {
        by_length.entry(triple.base.len()).or_default().push(number);
    }
    for mut numbers in by_length.into_values() {
        numbers.shuffle(random);
        for (at, &number) in numbers.iter().enumerate() {
            let giver = numbers[(at + 1) % numbers.len()];
            shuffled[number].source = triples[giver].source.clone();
        }
    }
    shuffled
}

/// Triples of one length that run together.
pub(crate) struct Batch {
    pub inputs: Inputs,
    /// The activations of the sources at the sites of the alignment, `[row, …]`.
    pub sources: Captured,
    pub rows: Vec<Row>,
}

/// One triple of a batch.
pub(crate) struct Row {
    pub target: Target,
    pub weight: f64,
    pub desideratum: String,
}

/// Batches of at most `size` of the triples `among`, whose sources are run now.
pub(crate) fn batches(
    network: &dyn Network,
    sites: &[String],
    triples: &[Triple],
    among: &[usize],
    size: usize,
    random: &mut ChaCha8Rng,
) -> Result<Vec<Batch>> {
    let mut order = among.to_vec();
    order.shuffle(random);
    order.sort_by_key(|&number| triples[number].base.len());
    let plan = sites.iter().fold(Plan::default(), |plan, site| plan.capture(Capture::new(site)));
    let plan = plan.outputs_at(Index::At(-1));
    let mut batches = Vec::new();
    for same_length in order.chunk_by(|&a, &b| triples[a].base.len() == triples[b].base.len()) {
        for numbers in same_length.chunks(size) {
            let chosen = || numbers.iter().map(|&number| &triples[number]);
            let sources = Inputs::tokens(chosen().map(|triple| triple.source.clone()).collect())?;
            let row = |triple: &Triple| Row {
                target: Target {
                    answers: triple.answers.clone(),
                    wrong_answers: triple.wrong_answers.clone(),
                    clean: Vec::new(),
                },
                weight: triple.weight,
                desideratum: triple.desideratum.clone(),
            };
            batches.push(Batch {
                inputs: Inputs::tokens(chosen().map(|triple| triple.base.clone()).collect())?,
                sources: network.run(&sources, &plan)?.captured,
                rows: chosen().map(row).collect(),
            });
        }
    }
    Ok(batches)
}

impl Batch {
    /// The logits at the last position of the bases under `edits`, `[row, v]`.
    pub fn logits(&self, network: &dyn Network, edits: Vec<Edit>) -> Result<candle_core::Tensor> {
        let plan = Plan { edits, ..Plan::default() }.outputs_at(Index::At(-1));
        let outputs = network.run(&self.inputs, &plan)?.outputs;
        let (_, positions, _) = outputs.dims3()?;
        Ok(outputs.narrow(1, positions.saturating_sub(1), 1)?.squeeze(1)?)
    }
}

/// How the wanted answers fare under an intervention, for each desideratum.
pub(crate) fn scores(
    network: &dyn Network,
    batches: &[Batch],
    edits: &dyn Fn(&Captured) -> Vec<Edit>,
) -> Result<Vec<AlignmentScore>> {
    let mut found: BTreeMap<&str, AlignmentScore> = BTreeMap::new();
    for batch in batches {
        let logits = batch.logits(network, edits(&batch.sources))?.to_vec2::<f32>()?;
        for (row, logits) in batch.rows.iter().zip(logits) {
            let Row { target, desideratum, .. } = row;
            let score = found.entry(desideratum).or_insert_with(|| AlignmentScore {
                desideratum: desideratum.clone(),
                triples: 0,
                accuracy: 0.,
                loss: 0.,
                logit_diff: Some(0.),
            });
            score.triples += 1;
            score.accuracy += Metric::Accuracy.value(&logits, target)?;
            score.loss += Metric::Loss.value(&logits, target)?;
            score.logit_diff = match (score.logit_diff, target.wrong_answers.is_empty()) {
                (Some(sum), false) => Some(sum + Metric::LogitDiff.value(&logits, target)?),
                _ => None,
            };
        }
    }
    let mean = |mut score: AlignmentScore| {
        let count = score.triples as f64;
        score.accuracy /= count;
        score.loss /= count;
        score.logit_diff = score.logit_diff.map(|sum| sum / count);
        score
    };
    Ok(found.into_values().map(mean).collect())
}

/// Refuses logits that are no numbers while there is still something to say about them.
pub(crate) fn finite(loss: f32, step: usize) -> Result<()> {
    match loss.is_finite() {
        true => Ok(()),
        false => Err(Error::Alignment(format!("the loss became {loss} at step {step}; try a smaller learning rate"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alignment::generator;

    fn triple(base: &[u32], source: &[u32], desideratum: &str) -> Triple {
        Triple {
            base: base.to_vec(),
            source: source.to_vec(),
            answers: vec![1],
            wrong_answers: vec![],
            desideratum: desideratum.into(),
            weight: 1.,
        }
    }

    #[test]
    fn of_each_desideratum_some_are_held_out_and_the_same_prompts_stay_together() {
        let mut triples: Vec<Triple> = (0..8).map(|at| triple(&[at], &[at + 1], "a")).collect();
        triples.extend((0..4).map(|at| triple(&[at / 2], &[7], "b")));
        triples.push(triple(&[1], &[2], "alone"));
        for seed in 0..20 {
            let (train, held_out) = split(&triples, 0.25, &mut generator(seed, 0));
            let count = |numbers: &[usize], name: &str| {
                numbers.iter().filter(|&&number| triples[number].desideratum == name).count()
            };
            assert_eq!((count(&train, "a"), count(&held_out, "a")), (6, 2));
            assert_eq!((count(&train, "b"), count(&held_out, "b")), (2, 2));
            assert_eq!((count(&train, "alone"), count(&held_out, "alone")), (1, 0));
            assert_eq!(held_out.contains(&8), held_out.contains(&9));
            assert_eq!(split(&triples, 0.25, &mut generator(seed, 0)), (train, held_out));
        }
        assert_eq!(split(&triples, 0., &mut generator(0, 0)).1, [0usize; 0]);
    }

    #[test]
    fn shuffled_sources_are_those_of_others_of_one_length() {
        let mut triples: Vec<Triple> = (0..5).map(|at| triple(&[at], &[at + 10], "")).collect();
        triples.push(triple(&[1, 2], &[3, 4], ""));
        let found = shuffled(&triples, &mut generator(2, 0));
        let mut sources: Vec<u32> = (0..5).map(|at| found[at].source[0]).collect();
        assert!((0..5).all(|at| found[at].source != triples[at].source));
        sources.sort_unstable();
        assert_eq!(sources, [10, 11, 12, 13, 14]);
        assert_eq!(found[5..], triples[5..]);
    }
}
