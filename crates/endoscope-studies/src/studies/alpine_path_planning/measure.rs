//! What is measured of one model: its paths, its attention, its weights.

use std::collections::HashMap;
use std::ops::ControlFlow;

use endoscope_causal::lens::TokenViews;
use endoscope_causal::statistics::auc;
use endoscope_models::{Caching, Model, Sampling, Settings, generate_batch};
use endoscope_net::{Capture, Inputs, Network, Padding, Plan, TokenRows};
use endoscope_organisms::Task;
use endoscope_organisms::tasks::path_finding::{Matrix, TEST};
use endoscope_train::generator;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::known::{Asked, Known};
use crate::error::{Error, Result};

/// How many prompts go on at once.
const TOGETHER: usize = 256;
/// Over how many draws the control with half of the cells is averaged.
const SPLITS: usize = 64;
/// The part of a task's prompt before the path: `<bos>`, source and target.
const PROMPT: usize = 3;

/// How a path is asked for.
pub(super) struct Asking<'a> {
    /// The prompt, with `{source}` and `{target}`.
    pub prompt: &'a str,
    /// The text at which an answer ends.
    pub stop: &'a str,
    /// How many tokens an answer has at most.
    pub longest: usize,
    /// How many answers are sampled for each pair, at temperature 1 as in the paper.
    pub samples: usize,
}

/// The share of right answers to each question.
pub(super) fn answers(
    model: &Model,
    known: &Known,
    asked: &[Asked],
    asking: &Asking<'_>,
    seed: u64,
) -> Result<Vec<f64>> {
    let tokenizer = model.tokenizer()?;
    let prompts = asked.iter().map(|pair| {
        let text = asking.prompt.replace("{source}", &known.names[pair.source]);
        Ok(tokenizer.encode(&text.replace("{target}", &known.names[pair.target]), Default::default())?.ids)
    });
    let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_>>()?;
    let numbers: HashMap<&str, usize> = (0..).zip(&known.names).map(|(node, name)| (name.as_str(), node)).collect();
    let mut right = vec![0.; asked.len()];
    for sample in 0..asking.samples {
        for (chunk, prompts) in prompts.chunks(TOGETHER).enumerate() {
            let first = chunk * TOGETHER;
            let stream = (sample * asked.len() + first) as u64;
            let settings = Settings {
                max_tokens: asking.longest,
                sampling: Sampling {
                    temperature: 1.,
                    seed: seed.wrapping_shl(32).wrapping_add(stream),
                    ..Sampling::default()
                },
                stop: vec![asking.stop.to_string()],
                stop_at_end_token: true,
                caching: Caching::On,
            };
            let rows = TokenRows::padded(prompts.to_vec(), Padding::Right)?;
            let generated = generate_batch(model, &rows, &Plan::default(), &settings, |_| ControlFlow::Continue(()))?;
            for (at, answer) in (first..).zip(generated) {
                let said = answer.text.unwrap_or_default();
                let before = if asking.prompt.ends_with("{source}") { &known.names[asked[at].source] } else { "" };
                let path = path_of(&format!("{before} {said}"), &numbers);
                let is_right = path.is_some_and(|path| {
                    path.first() == Some(&asked[at].source)
                        && path.last() == Some(&asked[at].target)
                        && known.graph.is_path(&path)
                });
                right[at] += f64::from(u8::from(is_right)) / asking.samples as f64;
            }
        }
    }
    Ok(right)
}

/// The nodes that a text names, separated by blanks, commas or arrows; `None` if there is anything else.
fn path_of(text: &str, numbers: &HashMap<&str, usize>) -> Option<Vec<usize>> {
    let text = text.replace("->", " ").replace(['→', ','], " ");
    text.split_whitespace()
        .map(|word| numbers.get(word).or_else(|| numbers.get(word.trim_end_matches('.'))).copied())
        .collect()
}

/// How well paths are found that were not trained on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Behaviour {
    /// The share of right paths, of all pairs.
    pub all: f64,
    /// How many pairs there are of each degree, and the share of right paths; none where none was asked for.
    pub degrees: [(usize, Option<f64>); 4],
    /// Of pairs of degree 1 or more, and of 2 or more.
    pub joined: [Option<Joined>; 2],
}

/// How much worse pairs are that need paths joined.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Joined {
    /// The accuracy of pairs of degree 0 less theirs.
    pub lost: f64,
    /// The accuracy of pairs of degree 0 less that of such pairs of degree 0 as are as far apart.
    pub lost_by_distance: f64,
}

impl Behaviour {
    /// From the share of right answers to each question; `counts` says how many pairs there are of each degree.
    pub fn of(asked: &[Asked], counts: [usize; 4], right: &[f64]) -> Self {
        let mean_of = |wanted: &dyn Fn(&Asked) -> bool| {
            mean(asked.iter().zip(right).filter(|(pair, _)| wanted(pair)).map(|(_, right)| *right))
        };
        let degrees = [0, 1, 2, 3].map(|degree| (counts[degree], mean_of(&|pair| pair.degree == degree)));
        let weighted = degrees.iter().filter_map(|(count, share)| Some(*count as f64 * (*share)?)).sum::<f64>();
        let joined = [1, 2].map(|least| {
            let whole = degrees[0].1?;
            let theirs = mean_of(&|pair| pair.degree >= least)?;
            let as_far = asked.iter().filter(|pair| pair.degree >= least);
            let as_far =
                as_far.filter_map(|pair| mean_of(&|other| other.degree == 0 && other.distance == pair.distance));
            Some(Joined { lost: whole - theirs, lost_by_distance: whole - mean(as_far)? })
        });
        Self { all: weighted / counts.iter().sum::<usize>().max(1) as f64, degrees, joined }
    }
}

/// How much of the attention of the nodes of a path that goes to nodes goes to the target: over rows of the split that
/// is not trained on, and all heads of the first layer. What goes to `<bos>`, which the paper's rows do not have, is
/// left out, for it says nothing of any row.
pub(super) fn attention_on_target(model: &Model, task: &dyn Task, rows: usize, seed: u64) -> Result<f64> {
    let rows = (0..rows as u64).map(|number| Ok(task.row(TEST, seed, number)?.tokens));
    let rows = rows.collect::<Result<Vec<Vec<u32>>>>()?;
    let plan = Plan::default().capture(Capture::new("pattern.0"));
    let run = model.decoder.run(&Inputs::padded(rows.clone(), Padding::Right)?, &plan)?;
    let patterns = run.captured.get("blocks.0.attn.hook_pattern")?;
    let looks = (0..patterns.dim(1)?).map(|head| Ok(patterns.narrow(1, head, 1)?.squeeze(1)?.to_vec3::<f32>()?));
    let looks = looks.collect::<Result<Vec<_>>>()?;
    let looks = looks.iter().flat_map(|patterns| rows.iter().zip(patterns)).flat_map(|(row, pattern)| {
        // The last token ends the row: nothing comes after it.
        let queries = pattern[PROMPT..row.len() - 1].iter();
        queries.map(|keys| f64::from(keys[PROMPT - 1]) / keys[1..].iter().map(|&key| f64::from(key)).sum::<f64>())
    });
    mean(looks).ok_or_else(|| Error::Unsuitable { reason: "there are no rows to look at".into() })
}

/// What is in the weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct InWeights {
    /// How well the adjacency view tells edges from other pairs: the area under the ROC curve.
    pub edges: f64,
    /// The same for as many pairs drawn at random in the place of edges.
    pub edges_drawn: f64,
    /// The mean of the reachability view where the node was seen on the way to the target, where it only could be, and
    /// where it cannot be; less what all targets say of the node alike.
    pub means: [Option<f64>; 3],
    /// How many cells these are.
    pub counts: [usize; 3],
    /// Where half of the seen ones stand by [`place_of_unseen`](Self::place_of_unseen), as if they had not been seen;
    /// the mean over draws of the half.
    pub place_of_hidden: Option<f64>,
}

impl InWeights {
    /// Of the views of nodes on nodes.
    pub fn of(views: &TokenViews, known: &Known, seed: u64) -> Result<Self> {
        let (mut random, cells) = (generator(seed, 1 << 41), known.cells());
        let scores: Vec<f64> = cells.iter().map(|&(from, to)| views.at_hand[from][to]).collect();
        let mut truth: Vec<bool> = cells.iter().map(|&(from, to)| known.graph.adjacency.holds(from, to)).collect();
        let edges = auc(&scores, &truth)?;
        (1..truth.len()).rev().for_each(|at| truth.swap(at, random.random_range(0..=at)));
        let mut groups: [Vec<f64>; 3] = Default::default();
        // What every target says of a node alike is about the node alone: how often it comes next.
        let means = node_means(views, &cells);
        for &(node, target) in &cells {
            groups[group(&known.graph.seen_reachability, &known.graph.reachability, node, target)]
                .push(views.looked_at[target][node] - means[node]);
        }
        let means = groups.each_ref().map(|group| mean(group.iter().copied()));
        let mut hidden = || {
            let mut halves: [Vec<f64>; 2] = Default::default();
            groups[0].iter().for_each(|&value| halves[usize::from(random.random_bool(0.5))].push(value));
            let [rest, hidden] = halves.map(|half| mean(half.into_iter()));
            place(hidden?, means[2]?, rest?)
        };
        let hidden: Option<Vec<f64>> = (0..SPLITS).map(|_| hidden()).collect();
        Ok(Self {
            edges,
            edges_drawn: auc(&scores, &truth)?,
            means,
            counts: groups.each_ref().map(Vec::len),
            place_of_hidden: hidden.and_then(|places| mean(places.into_iter())),
        })
    }

    /// How much more a target says of nodes that were seen on the way to it than of those that only could be.
    pub fn seen_over_unseen(&self) -> Option<f64> {
        Some(self.means[0]? - self.means[1]?)
    }

    /// Where the nodes that only could be on the way stand between those that cannot be (0) and those that were seen
    /// (1).
    pub fn place_of_unseen(&self) -> Option<f64> {
        place(self.means[1]?, self.means[2]?, self.means[0]?)
    }
}

/// What targets say of each node on average, over the cells that there are.
fn node_means(views: &TokenViews, cells: &[(usize, usize)]) -> Vec<f64> {
    let mut sums = vec![(0., 0.); views.looked_at.len()];
    for &(node, target) in cells {
        sums[node] = (sums[node].0 + views.looked_at[target][node], sums[node].1 + 1.);
    }
    sums.into_iter().map(|(sum, count)| if count > 0. { sum / count } else { 0. }).collect()
}

/// 0 if seen on the way, 1 if only possible, 2 if not.
fn group(seen: &Matrix, reached: &Matrix, node: usize, target: usize) -> usize {
    match (seen.holds(target, node), reached.holds(node, target)) {
        (true, _) => 0,
        (_, true) => 1,
        _ => 2,
    }
}

fn place(value: f64, none: f64, all: f64) -> Option<f64> {
    Some((value - none) / (all - none)).filter(|place| place.is_finite())
}

/// The mean; none of nothing.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0., 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_people_write_paths() {
        let numbers = HashMap::from([("ask", 0), ("plan", 1), ("act", 2)]);
        let path = |text| path_of(text, &numbers);
        for text in ["ask plan act", " ask->plan → act.", "ask, plan, act\n"] {
            assert_eq!(path(text), Some(vec![0, 1, 2]), "{text}");
        }
        assert_eq!((path("ask then act"), path("")), (None, Some(vec![])));
    }

    #[test]
    fn what_is_lost_is_told_from_what_distance_costs() {
        let asked = |degree, distance| Asked { source: 0, target: 1, degree, distance };
        let pairs = [asked(0, 2), asked(0, 2), asked(0, 3), asked(1, 3), asked(2, 9)];
        let found = Behaviour::of(&pairs, [10, 5, 1, 0], &[1., 1., 0.7, 0.5, 0.]);
        assert!((found.all - (9. + 2.5) / 16.).abs() < 1e-12);
        assert_eq!(found.degrees[3], (0, None));
        let joined = found.joined[0].unwrap();
        assert!((joined.lost - (0.9 - 0.25)).abs() < 1e-12 && (joined.lost_by_distance - 0.2).abs() < 1e-12);
        assert!(found.joined[1].is_none(), "nothing of degree 0 is as far");
    }
}
