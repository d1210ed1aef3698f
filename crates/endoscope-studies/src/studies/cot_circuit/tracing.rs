//! Causal tracing: a state of another question, one layer and position at a time.

use std::ops::{ControlFlow, Range};

use endoscope_causal::{Direction, Metric, Pair, Planner, Sweep, SweepAxis, sweep};
use endoscope_models::Model;
use endoscope_organisms::tasks::two_hop_facts::{Fact, TwoHopFacts};
use endoscope_train::generator;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use super::arm::{answer, prompt, right, with_bridge};
use crate::error::Result;

/// Which answer is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The bridge, after `h r1 r2`.
    Bridge,
    /// The target, after `h r1 r2 b`.
    Target,
}

/// What the other question has other than this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The head, and with it bridge and target.
    Head,
    /// The first relation, and with it bridge and target.
    FirstRelation,
    /// The second relation, and with it the target.
    SecondRelation,
    /// The head, while bridge and target stay: the control.
    SameBridge,
}

impl Change {
    /// Those that are tried at a stage: its answer changes under all but the last.
    pub fn of(stage: Stage) -> &'static [Change] {
        match stage {
            Stage::Bridge => &[Self::Head, Self::FirstRelation, Self::SameBridge],
            Stage::Target => &[Self::Head, Self::FirstRelation, Self::SecondRelation, Self::SameBridge],
        }
    }

    /// Every question that differs from this one by the change, as all facts have it.
    pub fn others(self, task: &TwoHopFacts, (first, second): (Fact, Fact)) -> Vec<(Fact, Fact)> {
        let of_first = |other: &Fact| {
            let tail = task.tail(other.tail, second.relation)?;
            Some((*other, Fact { head: other.tail, relation: second.relation, tail }))
        };
        let facts = task.facts().iter();
        let differs = |other: &(Fact, Fact)| other.0.tail != first.tail && other.1.tail != second.tail;
        let same_head = |other: &&Fact| other.head == first.head && other.relation != first.relation;
        let same_relation = |other: &&Fact| other.head != first.head && other.relation == first.relation;
        let same_bridge = |other: &&Fact| other.head == second.head && other.tail != second.tail;
        match self {
            Self::Head => facts.filter(same_relation).filter_map(of_first).filter(differs).collect(),
            Self::FirstRelation => facts.filter(same_head).filter_map(of_first).filter(differs).collect(),
            Self::SecondRelation => facts.filter(same_bridge).map(|other| (first, *other)).collect(),
            Self::SameBridge => {
                facts.filter(same_relation).filter(|other| other.tail == first.tail).filter_map(of_first).collect()
            }
        }
    }
}

/// What the states of other questions do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trace {
    pub stage: Stage,
    pub change: Change,
    /// How many questions were traced.
    pub cases: usize,
    /// The share of questions whose answer is no longer on top `[layer][position]`.
    pub displaced: Vec<Vec<f64>>,
    /// The mean rank of that answer (0 = on top).
    pub rank: Vec<Vec<f64>>,
}

impl Trace {
    /// The largest share of displaced answers among these positions, from layer `first` on.
    pub fn most_displaced(&self, positions: Range<usize>, first: usize) -> f64 {
        let layers = self.displaced.iter().skip(first);
        let cells =
            layers.flat_map(|layer| layer.iter().enumerate().filter(|(position, _)| positions.contains(position)));
        cells.map(|(_, share)| *share).fold(0., f64::max)
    }

    /// What was exchanged, in words.
    pub fn name(&self) -> String {
        let change = match self.change {
            Change::Head => "another head",
            Change::FirstRelation => "another first relation",
            Change::SecondRelation => "another second relation",
            Change::SameBridge => "another head, the same bridge",
        };
        match self.stage {
            Stage::Bridge => format!("b: {change}"),
            Stage::Target => format!("t: {change}"),
        }
    }
}

/// Traces those `pairs` that the model answers rightly, together with one of the questions that differ by `change`, if that is answered
/// rightly too. Every share is 0 where there is none.
pub fn trace(
    model: &Model,
    task: &TwoHopFacts,
    pairs: &[(Fact, Fact)],
    (stage, change): (Stage, Change),
    seed: u64,
) -> Result<Trace> {
    let mut random = generator(seed, 16);
    let with_others: Vec<[(Fact, Fact); 2]> =
        pairs.iter().filter_map(|&pair| Some([pair, *change.others(task, pair).choose(&mut random)?])).collect();
    let asked: Vec<_> =
        with_others.iter().flatten().map(|&pair| (prompt(task, pair), answer(task, pair, true))).collect();
    let known = right(model, &asked)?;
    let known = with_others.iter().zip(known.chunks(2)).filter(|(_, right)| right.iter().all(|&right| right));
    let tokens = |pair: (Fact, Fact)| match stage {
        Stage::Bridge => prompt(task, pair),
        Stage::Target => with_bridge(task, pair),
    };
    let place = usize::from(stage == Stage::Target);
    let pair = |[clean, other]: &[(Fact, Fact); 2]| Pair {
        clean: tokens(*clean),
        corrupt: tokens(*other),
        answers: vec![answer(task, *clean, true)[place]],
        wrong_answers: Vec::new(),
    };
    let pairs: Vec<Pair> = known.map(|(pair_of, _)| pair(pair_of)).collect();
    let (layers, positions) = (model.spec().layers, if stage == Stage::Bridge { 4 } else { 5 });
    let cells = splice(model, &pairs, layers * positions)?;
    let table = |of: fn(&[f64; 2]) -> f64| cells.chunks(positions).map(|row| row.iter().map(of).collect()).collect();
    Ok(Trace { stage, change, cases: pairs.len(), displaced: table(|cell| cell[0]), rank: table(|cell| cell[1]) })
}

/// For each layer and position, row by row: the share of pairs whose answer is no longer on top, and its mean rank, when what that layer
/// reads at that position is the corrupt prompt's. All `cells` are 0 where there is no pair.
pub fn splice(model: &Model, pairs: &[Pair], cells: usize) -> Result<Vec<[f64; 2]>> {
    if pairs.is_empty() {
        return Ok(vec![[0.; 2]; cells]);
    }
    let exchange = Sweep {
        metric: Metric::Rank,
        direction: Direction::Noise,
        ..Sweep::new("resid_pre", [SweepAxis::Layer, SweepAxis::Position])
    };
    let scores = sweep(&model.decoder, &exchange, pairs, Planner::default(), |_| ControlFlow::Continue(()))?;
    let share = |cell: usize| {
        let displaced = scores.pairs.iter().filter(|pair| pair.values[cell] > 0.).count();
        displaced as f64 / pairs.len() as f64
    };
    Ok(scores.values.iter().enumerate().map(|(cell, &rank)| [share(cell), rank]).collect())
}
