//! One measure at one step: a model in, named numbers out.

use std::collections::HashMap;
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Tensor};
use endoscope_causal::dimension::{SiteDimension, dimension_sites};
use endoscope_causal::probe::{ControlTypes, ProbeKind, ProbeScores, ProbeSites, probe_sites};
use endoscope_causal::statistics::{Bootstrap, Resampling};
use endoscope_causal::{Pairs, Planner, head_looks, repeated_tokens, sweep};
use endoscope_models::{Bos, Model, NamedPositions};
use endoscope_net::{Inputs, Network, Plan};
use endoscope_organisms::Task;
use endoscope_train::{Recipe, answered, cross_entropy};
use serde::{Deserialize, Serialize};

use super::battery::{Dimensions, Heads, Measure, Norms, OnTask, Patching, Probing};
use crate::commands::heads::plain_vocabulary;
use crate::commands::probe::data::{Data, Wanted};
use crate::input::{self, BosArguments, ModelEncoder};

/// Batches of a measure come from here on; no training has so many steps.
const FRESH: u64 = 1 << 62;

/// A number of a measure, or why it is missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Number {
    /// What is drawn in one figure: `accuracy`, `induction`.
    pub figure: String,
    /// Which line of it: `layer 1 head 0`; empty if there is one.
    pub line: String,
    /// A finite number, or the reason why there is none.
    pub value: Result<f64, String>,
}

impl Number {
    fn new(figure: &str, line: impl Into<String>, value: f64) -> Self {
        let value = if value.is_finite() { Ok(value) } else { Err(format!("it is {value}")) };
        Self { figure: figure.into(), line: line.into(), value }
    }

    /// What may be missing, for a reason.
    fn or(figure: &str, line: impl Into<String>, value: Option<f64>, reason: &str) -> Self {
        match value {
            Some(value) => Self::new(figure, line, value),
            None => Self { figure: figure.into(), line: line.into(), value: Err(reason.into()) },
        }
    }
}

/// A step of a run.
pub struct Checkpoint<'a> {
    pub recipe: &'a Recipe,
    pub model: &'a Model,
    pub tensors: &'a HashMap<String, Tensor>,
}

impl Measure {
    pub fn of(&self, checkpoint: &Checkpoint) -> Result<Vec<Number>> {
        match self {
            Self::Task(task) => task.of(checkpoint),
            Self::Heads(heads) => heads.of(checkpoint.model),
            Self::Sweep(patching) => patching.of(checkpoint.model),
            Self::Probe(probing) => probing.of(checkpoint.model),
            Self::Dimension(dimensions) => dimensions.of(checkpoint),
            Self::Norms(norms) => norms.of(checkpoint.tensors),
        }
    }
}

impl OnTask {
    fn of(&self, checkpoint: &Checkpoint) -> Result<Vec<Number>> {
        let Checkpoint { recipe, model, .. } = checkpoint;
        let parts = endoscope_organisms::task_parts(&recipe.task.name, &recipe.task.parameters)?;
        let several = parts.len() > 1;
        let mut numbers = Vec::new();
        for (name, task) in parts {
            let line = if several { name } else { String::new() };
            let (loss, accuracy) = self.of_part(&*task, self.seed.unwrap_or(recipe.training.seed), model)?;
            numbers.push(Number::new("loss", line.clone(), loss));
            numbers.push(Number::or("accuracy", line, accuracy, "nothing that the task asks has a known answer"));
        }
        Ok(numbers)
    }

    /// The loss of what the task counts, and the share of what it can judge that has a right token on top.
    fn of_part(&self, task: &dyn Task, seed: u64, model: &Model) -> Result<(f64, Option<f64>)> {
        let (mut loss, mut counted, mut right, mut judged) = (0., 0, 0, 0);
        for number in 0..self.batches {
            let batch = task.batch(seed, FRESH + number, self.rows);
            let logits = model.decoder.run(&Inputs::tokens(batch.tokens.clone())?, &Plan::default())?.outputs;
            let count = answered(&logits, &batch)?.count;
            loss += f64::from(cross_entropy(&logits, &batch)?.to_scalar::<f32>()?) * count as f64;
            counted += count;
            for ((logits, tokens), mask) in logits.to_vec3::<f32>()?.iter().zip(&batch.tokens).zip(&batch.mask) {
                for at in (1..tokens.len()).filter(|&at| mask[at]) {
                    let answers = task.right(&tokens[..at]);
                    let Some(logits) = logits.get(at - 1) else { continue };
                    let on_top = |&answer: &u32| {
                        logits.get(answer as usize).is_some_and(|own| logits.iter().all(|other| other <= own))
                    };
                    judged += usize::from(!answers.is_empty());
                    right += usize::from(answers.iter().any(on_top));
                }
            }
        }
        if counted == 0 {
            bail!("no token of the task's rows counts");
        }
        Ok((loss / counted as f64, (judged > 0).then(|| right as f64 / judged as f64)))
    }
}

impl Heads {
    fn of(&self, model: &Model) -> Result<Vec<Number>> {
        let (prefix, vocabulary) = plain_vocabulary(model, Bos::AsConfigured)?;
        let rows = repeated_tokens(&vocabulary, &prefix, self.rows, self.period, self.seed)?;
        let looks = head_looks(&model.decoder, &rows, |_| ControlFlow::Continue(()))?;
        let mut numbers = Vec::new();
        for wanted in &self.looks {
            let places = looks.uniform.named();
            let Some(place) = places.iter().position(|(name, _)| name == wanted) else {
                bail!("no head looks at `{wanted}`; the places are {}", places.map(|(name, _)| name).join(", "));
            };
            numbers.extend(looks.heads.iter().map(|head| {
                let line = format!("layer {} head {}", head.layer, head.head);
                Number::or(wanted, line, head.pattern.named()[place].1, "no token of the prompts has such a place")
            }));
        }
        Ok(numbers)
    }
}

impl Patching {
    fn of(&self, model: &Model) -> Result<Vec<Number>> {
        let (written, _) = input::prompts(&self.prompts)?;
        let encoder = ModelEncoder::new(model, Bos::AsConfigured);
        let pairs = Pairs::encode(&written, &encoder, self.sweep.metric.needs())?.pairs;
        let watch = |_| ControlFlow::Continue(());
        let scores = sweep(&model.decoder, &self.sweep, &pairs, Planner::default(), watch)?;
        // The values of every cell on the axes, row-major as the scores.
        let mut cells: Vec<Vec<i64>> = vec![Vec::new()];
        for axis in &scores.axes {
            let longer = |cell: &Vec<i64>, &value: &i64| [cell.as_slice(), &[value]].concat();
            cells = cells.iter().flat_map(|cell| axis.values.iter().map(move |value| longer(cell, value))).collect();
        }
        let number = |cell: &Vec<i64>| {
            let named = scores.axes.iter().zip(cell).map(|(axis, value)| format!("{} {value}", axis.axis.name()));
            let line = named.collect::<Vec<_>>().join(" ");
            match cells.iter().position(|other| other == cell) {
                None => Number::or("score", line, None, "the sweep has no such cell"),
                Some(at) => {
                    let reason = "the clean and the corrupt run do not differ, or the change cannot be made";
                    Number::or("score", line, scores.normalised[at], reason)
                }
            }
        };
        Ok(self.cells.as_ref().unwrap_or(&cells).iter().map(number).collect())
    }
}

impl Probing {
    fn of(&self, model: &Model) -> Result<Vec<Number>> {
        let positions: NamedPositions = self.positions.parse().context("positions")?;
        let wanted = match self.probe.kind {
            ProbeKind::Ridge { .. } => Wanted::Numbers,
            ProbeKind::Logistic { .. } | ProbeKind::MassMean => Wanted::Classes,
        };
        let data = Data::read(model, &self.data, &positions, wanted, BosArguments::default())?;
        let asked = ProbeSites {
            site: self.site.clone(),
            over: self.over,
            probe: self.probe,
            split: self.split,
            control_types: ControlTypes::Rows,
        };
        let resampling = estimates_only(0);
        let watch = |_| ControlFlow::Continue(());
        let probed = probe_sites(&model.decoder, &asked, &data.rows, &data.labels, &resampling, watch)?;
        let score = |scores: &ProbeScores| match wanted {
            Wanted::Classes => scores.accuracy.map(|interval| interval.estimate),
            Wanted::Numbers => scores.r2.map(|interval| interval.estimate),
        };
        let what = if wanted == Wanted::Classes { "accuracy" } else { "r2" };
        let mut numbers = Vec::new();
        for (figure, of) in [(what.to_string(), 0), (format!("{what} of shuffled labels"), 1)] {
            numbers.extend(probed.iter().map(|probed| {
                let layer = probed.layer.map_or_else(|| probed.site.clone(), |layer| format!("layer {layer}"));
                let line = probed.head.map_or(layer.clone(), |head| format!("{layer} head {head}"));
                let scores = if of == 0 { &probed.scores } else { &probed.shuffled };
                Number::or(&figure, line, score(scores), "these examples have no such score")
            }));
        }
        Ok(numbers)
    }
}

/// Where nothing but the estimates is used.
fn estimates_only(seed: u64) -> Resampling {
    Resampling { resamples: 1, method: Bootstrap::Percentile, seed, ..Resampling::default() }
}

impl Dimensions {
    fn of(&self, checkpoint: &Checkpoint) -> Result<Vec<Number>> {
        let Checkpoint { recipe, model, .. } = checkpoint;
        let task = endoscope_organisms::task(&recipe.task.name, &recipe.task.parameters)?;
        let seed = self.seed.unwrap_or(recipe.training.seed);
        let all: Vec<String> = task.splits().iter().map(|split| split.to_string()).collect();
        let splits = if self.splits.is_empty() { &all } else { &self.splits };
        let several = splits.len() > 1;
        let mut numbers = Vec::new();
        for split in splits {
            let row = |number| Ok(task.row(split, seed, number)?.tokens);
            let rows = (0..self.rows).map(row).collect::<Result<Vec<_>>>()?;
            let watch = |_| ControlFlow::Continue(());
            let found = dimension_sites(&model.decoder, &self.asked(), &rows, &estimates_only(seed), watch)?;
            for SiteDimension { site, layer, found, control, .. } in found {
                let layer = layer.map_or(site, |layer| format!("layer {layer}"));
                let line = if several { format!("{layer}, {split}") } else { layer };
                numbers.push(Number::new("dimension", line.clone(), found.linear.estimate));
                for (figure, of) in [("local dimension", found), ("local dimension of Gaussian points", control)] {
                    let local = of.local.map(|local| local.mean.estimate);
                    numbers.extend(local.map(|local| Number::new(figure, line.clone(), local)));
                }
            }
        }
        Ok(numbers)
    }
}

impl Norms {
    fn of(&self, tensors: &HashMap<String, Tensor>) -> Result<Vec<Number>> {
        let wanted = |name: &str| self.tensors.is_empty() || self.tensors.iter().any(|part| name.contains(part));
        let mut names: Vec<&String> = tensors.keys().filter(|name| wanted(name)).collect();
        names.sort();
        if names.is_empty() {
            bail!("no weight has a name with {} in it", self.tensors.join(" or "));
        }
        let norm = |name: &&String| {
            let squares = tensors[*name].to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
            Ok(Number::new("norm", name.as_str(), squares.sqrt()))
        };
        names.iter().map(norm).collect()
    }
}
