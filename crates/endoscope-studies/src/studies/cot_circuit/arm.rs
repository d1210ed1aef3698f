//! What one model says: its answers, and what its streams hold.

use endoscope_causal::lens::{Lens, Streams, reciprocal_ranks};
use endoscope_models::{Caching, Model, Sampling, Settings, generate_batch};
use endoscope_net::{Index, Plan, TokenRows};
use endoscope_organisms::tasks::two_hop_facts::{Fact, IN, OUT, TwoHopFacts};
use endoscope_train::generator;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

use crate::error::Result;

/// What is asked with one seed.
pub struct Questions {
    facts: Vec<Fact>,
    inside: Vec<(Fact, Fact)>,
    outside: Vec<(Fact, Fact)>,
    /// The pairs that are read and traced, of those that are inside.
    pub cases: Vec<(Fact, Fact)>,
}

impl Questions {
    /// So many of each kind, drawn without repetition, and so many cases.
    pub fn new(task: &TwoHopFacts, (questions, cases): (usize, usize), seed: u64) -> Self {
        let drawn = |split: &str, count: usize, stream: u64| {
            let pairs: Vec<(Fact, Fact)> = task.pairs(split).collect();
            pairs.sample(&mut generator(seed, stream), count).copied().collect()
        };
        Self {
            facts: task.facts().sample(&mut generator(seed, 0), questions).copied().collect(),
            inside: drawn(IN, questions, 1),
            outside: drawn(OUT, questions, 2),
            cases: drawn(IN, cases, 3),
        }
    }
}

/// The shares of questions that are answered rightly.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answers {
    /// Facts, one by one.
    pub facts: f64,
    /// Pairs of facts that were trained on in a row, but not with each other.
    pub inside: f64,
    /// Pairs of facts that never were.
    pub outside: f64,
}

impl Answers {
    /// Of a model that writes the bridge, or not: then the target alone is asked for.
    pub fn of(model: &Model, task: &TwoHopFacts, questions: &Questions, writes: bool) -> Result<Self> {
        let facts: Vec<_> =
            questions.facts.iter().map(|f| (task.prompt(f.head, &[f.relation]), vec![task.entity(f.tail)])).collect();
        let pairs = |pairs: &[(Fact, Fact)]| {
            let asked = |&pair: &(Fact, Fact)| (prompt(task, pair), answer(task, pair, writes));
            right(model, &pairs.iter().map(asked).collect::<Vec<_>>()).map(|right| share(&right))
        };
        Ok(Self {
            facts: share(&right(model, &facts)?),
            inside: pairs(&questions.inside)?,
            outside: pairs(&questions.outside)?,
        })
    }
}

/// The answers of a model, and where it has them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Arm {
    pub answers: Answers,
    /// The mean reciprocal rank of the bridge `[stream][position]`, after `<bos> h r1 r2`.
    pub bridge: Vec<Vec<f64>>,
    /// The same of the target; where the model writes the bridge, after that too.
    pub target: Vec<Vec<f64>>,
}

impl Arm {
    pub fn of(model: &Model, task: &TwoHopFacts, questions: &Questions, writes: bool) -> Result<Self> {
        let lens = |of: &dyn Fn((Fact, Fact)) -> (Vec<u32>, u32)| -> Result<Vec<Vec<f64>>> {
            let prompts: Vec<_> = questions.cases.iter().map(|&pair| of(pair)).collect();
            Ok(reciprocal_ranks(&model.decoder, &Lens::logit(), &prompts, &Index::All, Streams::Layers)?.means)
        };
        Ok(Self {
            answers: Answers::of(model, task, questions, writes)?,
            bridge: lens(&|pair| (prompt(task, pair), task.entity(pair.0.tail)))?,
            target: lens(&|pair| {
                let prompt = if writes { with_bridge(task, pair) } else { prompt(task, pair) };
                (prompt, task.entity(pair.1.tail))
            })?,
        })
    }
}

/// `<bos> h r1 r2`.
pub fn prompt(task: &TwoHopFacts, (first, second): (Fact, Fact)) -> Vec<u32> {
    task.prompt(first.head, &[first.relation, second.relation])
}

/// `<bos> h r1 r2 b`.
pub fn with_bridge(task: &TwoHopFacts, pair: (Fact, Fact)) -> Vec<u32> {
    let mut tokens = prompt(task, pair);
    tokens.push(task.entity(pair.0.tail));
    tokens
}

/// `b t`, or `t`.
pub fn answer(task: &TwoHopFacts, (first, second): (Fact, Fact), writes: bool) -> Vec<u32> {
    let both = [task.entity(first.tail), task.entity(second.tail)];
    both[usize::from(!writes)..].to_vec()
}

/// Whether a model goes on after each prompt with exactly what is given beside it, token after token as it writes them.
pub fn right(model: &Model, asked: &[(Vec<u32>, Vec<u32>)]) -> Result<Vec<bool>> {
    let Some(length) = asked.iter().map(|(_, answer)| answer.len()).max() else { return Ok(Vec::new()) };
    let settings = Settings {
        max_tokens: length,
        sampling: Sampling::default(),
        stop: Vec::new(),
        stop_at_end_token: false,
        caching: Caching::On,
    };
    let prompts = TokenRows::padded(asked.iter().map(|(prompt, _)| prompt.clone()).collect(), Default::default())?;
    let written = generate_batch(model, &prompts, &Plan::default(), &settings, |_| ControlFlow::Continue(()))?;
    Ok(written.iter().zip(asked).map(|(written, (_, answer))| written.tokens.starts_with(answer)).collect())
}

/// The share that is true; 0 of nothing.
pub fn share(of: &[bool]) -> f64 {
    of.iter().filter(|&&each| each).count() as f64 / of.len().max(1) as f64
}
