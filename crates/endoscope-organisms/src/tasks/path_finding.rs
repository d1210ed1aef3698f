//! Paths in one fixed graph without circles: `<bos> s t`, then a path from `s` to `t` and `end`: `<bos> 3 9 3 5 9 end` (Wang et al.
//! 2024, ALPINE, arXiv 2405.09220). An edge goes from a lesser to a greater node. Pairs of nodes
//! that an edge joins are trained on, of the others that have a path about half; for each pair that is trained on there are `walks` random paths,
//! always the same, and for each edge one more. As in the paper the whole row counts in the loss.

mod graph;

use endoscope_train::generator;
use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

pub use self::graph::{Matrix, SeenGraph};
use super::lexicon::{Kind, Lexicon, numbers};
use super::parameters::{read, refuse};
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::{BOS, Row, TRAIN};

/// Its name in the registry.
pub const NAME: &str = "path_finding";
/// Pairs of nodes for which no path is trained on. A row holds one of their paths.
pub const TEST: &str = "test";

/// Streams of random numbers under `task.seed`: the edges, which pairs are trained on, and from here on the walks.
const WALKS: u64 = 2;

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// How many nodes; default 100.
    pub nodes: usize,
    /// How likely an edge from a lesser to a greater node is; default 0.1.
    pub edge_probability: f64,
    /// How likely a pair without an edge, but with a path, is trained on; default 0.5.
    pub train_share: f64,
    /// How many random paths a trained pair has; default 20.
    pub walks: usize,
    /// What the training rows are.
    pub data: Data,
    /// What decides the graph, which pairs are trained on, and their paths; default 0.
    pub seed: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { nodes: 100, edge_probability: 0.1, train_share: 0.5, walks: 20, data: Data::Walks, seed: 0 }
    }
}

/// What the training rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// Paths of one edge, and random paths; the default.
    Walks,
    /// Paths of one edge only: which node is reached from which cannot be learned.
    Edges,
    /// As `walks`, but with any node in the place of the target: a control, from which nothing is learned about targets.
    ShuffledTargets,
}

/// The task, with its graph.
#[derive(Debug, Clone)]
pub struct PathFinding {
    parameters: Parameters,
    /// The edges.
    pub adjacency: Matrix,
    /// From node to node: whether there is a path, of one edge or more.
    pub reachability: Matrix,
    /// Edges as pairs.
    edges: Vec<(usize, usize)>,
    train: Vec<(usize, usize)>,
    test: Vec<(usize, usize)>,
    is_trained: Matrix,
    lexicon: Lexicon,
    node: Kind,
    end: u32,
}

impl PathFinding {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("nodes", parameters.nodes, 3, 1000);
            problems.share("edge_probability", parameters.edge_probability);
            problems.share("train_share", parameters.train_share);
            problems.count("walks", parameters.walks, 1, 10_000);
        })?;
        Self::new(parameters)
    }

    fn new(parameters: Parameters) -> Result<Self> {
        let Parameters { nodes, edge_probability, train_share, seed, .. } = parameters;
        let mut random = generator(seed, 0);
        let mut adjacency = Matrix::new(nodes);
        for (from, to) in upwards(nodes) {
            if random.random_bool(edge_probability) {
                adjacency.set(from, to);
            }
        }
        let reachability = adjacency.closure();
        let mut random = generator(seed, 1);
        let (mut edges, mut train, mut test, mut is_trained) = (vec![], vec![], vec![], Matrix::new(nodes));
        for (from, to) in upwards(nodes).filter(|&(from, to)| reachability.holds(from, to)) {
            let edge = adjacency.holds(from, to);
            if edge {
                edges.push((from, to));
            }
            if edge || random.random_bool(train_share) {
                is_trained.set(from, to);
                train.push((from, to));
            } else {
                test.push((from, to));
            }
        }
        if train.is_empty() || test.is_empty() {
            let counts = format!("{} pairs of nodes would be trained on and {} not", train.len(), test.len());
            return Err(refuse(
                NAME,
                counts
                    + "; some must be of each: change `task.nodes`, `task.edge_probability`, `task.train_share` or `task.seed`",
            ));
        }
        let (lexicon, [node]) = Lexicon::new([numbers(0..nodes)], "end");
        let end = lexicon.id("end");
        Ok(Self { parameters, adjacency, reachability, edges, train, test, is_trained, lexicon, node, end })
    }

    /// The pairs (source, target) of a split.
    pub fn pairs(&self, split: &str) -> &[(usize, usize)] {
        if split == TEST { &self.test } else { &self.train }
    }

    /// How many different training rows there may be: the stream draws each as often.
    pub fn training_rows(&self) -> usize {
        let walks = match self.parameters.data {
            Data::Edges => 0,
            Data::Walks | Data::ShuffledTargets => self.train.len() * self.parameters.walks,
        };
        self.edges.len() + walks
    }

    /// The target that training row `number` names, and its path, the source first; `None` from [`Self::training_rows`] on.
    pub fn training_row(&self, number: usize) -> Option<(usize, Vec<usize>)> {
        let (edges, walks) = (self.edges.len(), self.parameters.walks);
        let mut random = generator(self.parameters.seed, WALKS + number as u64);
        let path = match number.checked_sub(edges) {
            _ if number >= self.training_rows() => return None,
            None => [self.edges[number].0, self.edges[number].1].to_vec(),
            Some(walk) => self.walk(self.train[walk / walks], &mut random),
        };
        let target = match self.parameters.data {
            Data::ShuffledTargets => random.random_range(0..self.parameters.nodes),
            Data::Walks | Data::Edges => *path.last()?,
        };
        Some((target, path))
    }

    /// The graph, with what all training rows together show of it.
    pub fn seen(&self) -> SeenGraph {
        SeenGraph::new(self.adjacency.clone(), (0..self.training_rows()).filter_map(|number| self.training_row(number)))
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> usize {
        self.parameters.nodes
    }

    /// Whether this is a path from its first to its last node.
    pub fn is_path(&self, path: &[usize]) -> bool {
        path.len() > 1 && path.windows(2).all(|step| self.adjacency.holds(step[0], step[1]))
    }

    /// The nodes that may come after `node` on the way to `target`.
    fn next(&self, node: usize, target: usize) -> Vec<usize> {
        let leads = |&next: &usize| next == target || self.reachability.holds(next, target);
        self.adjacency.after(node).filter(leads).collect()
    }

    /// A random path: each step to any node from which the target is reached.
    fn walk(&self, (source, target): (usize, usize), random: &mut dyn Rng) -> Vec<usize> {
        let (mut path, mut here) = (vec![source], source);
        while here != target {
            let next = self.next(here, target);
            // There is one, since the target is reached from here.
            let Some(&node) = next.get(random.random_range(0..next.len().max(1))) else { break };
            path.push(node);
            here = node;
        }
        path
    }

    fn tokens(&self, target: usize, path: &[usize]) -> Vec<u32> {
        let source = path.first().copied();
        let nodes = source.into_iter().chain([target]).chain(path.iter().copied());
        std::iter::once(BOS).chain(nodes.map(|node| self.node.token(node))).collect()
    }
}

/// All pairs of nodes of which the second is greater.
fn upwards(nodes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..nodes).flat_map(move |from| (from + 1..nodes).map(move |to| (from, to)))
}

impl Exercise for PathFinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        let mut steps = vec![0; self.parameters.nodes];
        for &(from, to) in self.edges.iter().rev() {
            // Edges are sorted by where they begin, so those of `to` have been seen.
            steps[from] = steps[from].max(1 + steps[to]);
        }
        let nodes = 1 + steps.into_iter().max().unwrap_or(0);
        // `<bos>`, source and target before the path, `end` after it.
        nodes + 4
    }

    fn splits(&self) -> &'static [&'static str] {
        &[TRAIN, TEST]
    }

    fn row(&self, split: &str, random: &mut dyn Rng) -> Row {
        let (target, path) = match split {
            TEST => {
                let pair = self.test[random.random_range(0..self.test.len())];
                (pair.1, self.walk(pair, random))
            }
            _ => self.training_row(random.random_range(0..self.training_rows())).unwrap_or_default(),
        };
        let mut tokens = self.tokens(target, &path);
        tokens.push(self.end);
        Row::new(vec![BOS], &tokens[1..])
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let right = || {
            let [BOS, source, target, path @ ..] = prompt else { return None };
            let (source, target) = (self.node.index(*source)?, self.node.index(*target)?);
            let path: Vec<usize> = path.iter().map(|&token| self.node.index(token)).collect::<Option<_>>()?;
            if !self.reachability.holds(source, target) {
                return None;
            }
            let Some(&here) = path.last() else { return Some(vec![self.node.token(source)]) };
            if path[0] != source || path.len() > 1 && !self.is_path(&path) {
                return None;
            }
            let next = || self.next(here, target).into_iter().map(|node| self.node.token(node)).collect();
            Some(if here == target { vec![self.end] } else { next() })
        };
        right().unwrap_or_default()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["target", "source", "node"]
    }

    /// The prompt ends where the path has its source (`target` and `source`), or one node more (`node`).
    fn pair(&self, split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let pairs = self.pairs(split);
        let (source, target) = pairs[random.random_range(0..pairs.len())];
        if change == "node" {
            let next = self.next(source, target);
            let mut path = || self.tokens(target, &[source, next[random.random_range(0..next.len())]]);
            let (clean, corrupt) = (path(), path());
            return compared(self, clean, corrupt);
        }
        let other = random.random_range(0..self.parameters.nodes);
        let (source_now, target_now) = if change == "target" { (source, other) } else { (other, target) };
        let of_split = self.is_trained.holds(source_now, target_now) == (split == TRAIN);
        if !of_split || !self.reachability.holds(source_now, target_now) {
            return None;
        }
        compared(self, self.tokens(target, &[source]), self.tokens(target_now, &[source_now]))
    }
}

#[cfg(test)]
mod tests;
