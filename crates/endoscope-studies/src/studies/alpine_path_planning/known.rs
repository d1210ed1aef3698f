//! A graph that is known, and what training showed of it: that of the task, or one in a file of the user's.

use std::collections::HashMap;
use std::path::Path;

use endoscope_models::{Bos, Model};
use endoscope_organisms::tasks::path_finding::{Matrix, PathFinding, SeenGraph, TEST};
use endoscope_train::generator;
use rand::RngExt;

use super::AlpinePathPlanning;
use crate::error::{Error, Result};
use crate::study::Study;

/// How many nodes a file may name: matrices of all pairs are held.
const MOST_NODES: usize = 1000;

/// A graph with names.
pub(super) struct Known {
    /// What nodes are called.
    pub names: Vec<String>,
    /// Its edges, and what was seen of it.
    pub graph: SeenGraph,
    /// Pairs of source and target that have a path, but none that was seen.
    pub untrained: Vec<(usize, usize)>,
}

impl Known {
    /// The graph of a task.
    pub fn of_task(task: &PathFinding) -> Self {
        let names = (0..task.nodes()).map(|node| node.to_string()).collect();
        Self { names, graph: task.seen(), untrained: task.pairs(TEST).to_vec() }
    }

    /// A graph from a file: each line is a path that was seen in training, as names of nodes separated by blanks, and a
    /// line of two names an edge. Empty lines and those that begin with `#` are left out.
    pub fn read(path: &Path) -> Result<(Self, String)> {
        let io = |source| Error::Io { doing: "read the graph", path: path.display().to_string(), source };
        let text = std::fs::read_to_string(path).map_err(io)?;
        let slug = AlpinePathPlanning::SLUG;
        Ok((Self::parse(&text).map_err(|problems| Error::Settings { slug, problems })?, text))
    }

    fn parse(text: &str) -> std::result::Result<Self, Vec<String>> {
        let (mut names, mut numbers) = (Vec::new(), HashMap::new());
        let (mut paths, mut problems) = (Vec::new(), Vec::new());
        let lines = (1..).zip(text.lines().map(str::trim));
        for (line, text) in lines.filter(|(_, text)| !text.is_empty() && !text.starts_with('#')) {
            let path: Vec<usize> = text
                .split_whitespace()
                .map(|name| {
                    *numbers.entry(name.to_string()).or_insert_with(|| {
                        names.push(name.to_string());
                        names.len() - 1
                    })
                })
                .collect();
            match path.windows(2).find(|step| step[0] == step[1]) {
                Some(step) => problems.push(format!("`graph` line {line} goes from `{}` to itself", names[step[0]])),
                None if path.len() < 2 => problems.push(format!("`graph` line {line} names one node; an edge has two")),
                None => paths.push(path),
            }
        }
        if names.len() > MOST_NODES {
            problems.push(format!("`graph` has {} nodes; at most {MOST_NODES} are possible", names.len()));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let (mut edges, mut trained) = (Matrix::new(names.len()), Matrix::new(names.len()));
        for path in &paths {
            path.windows(2).for_each(|step| edges.set(step[0], step[1]));
            trained.set(path[0], path[path.len() - 1]);
        }
        let graph = SeenGraph::new(edges, paths.into_iter().map(|path| (path[path.len() - 1], path)));
        let pairs =
            (0..names.len()).flat_map(|source| graph.reachability.after(source).map(move |target| (source, target)));
        let untrained = pairs.filter(|&(source, target)| source != target && !trained.holds(source, target)).collect();
        Ok(Self { names, graph, untrained })
    }

    /// Pairs of nodes of which the first might have an edge to the second: all, or if every edge goes from a lesser to
    /// a greater node, those that do.
    pub fn cells(&self) -> Vec<(usize, usize)> {
        let nodes = 0..self.names.len();
        let upwards = nodes.clone().all(|from| self.graph.adjacency.after(from).all(|to| from < to));
        let all = nodes.clone().flat_map(|from| nodes.clone().map(move |to| (from, to)));
        all.filter(|(from, to)| if upwards { from < to } else { from != to }).collect()
    }

    /// At most `most` pairs of each degree that were not trained on, drawn at random, with their degrees; how many
    /// there are of each.
    pub fn drawn(&self, most: usize, seed: u64) -> (Vec<Asked>, [usize; 4]) {
        let mut random = generator(seed, 1 << 40);
        let mut by_degree: [Vec<(usize, usize)>; 4] = Default::default();
        for &(source, target) in &self.untrained {
            if let Some(degree) = self.graph.degree(source, target) {
                by_degree[degree].push((source, target));
            }
        }
        let counts = by_degree.each_ref().map(Vec::len);
        let distances: Vec<_> = (0..self.names.len()).map(|source| self.graph.adjacency.distances(source)).collect();
        let mut asked = Vec::new();
        for (degree, mut pairs) in by_degree.into_iter().enumerate() {
            for kept in 0..most.min(pairs.len()) {
                let chosen = random.random_range(kept..pairs.len());
                pairs.swap(kept, chosen);
                let (source, target) = pairs[kept];
                asked.push(Asked { source, target, degree, distance: distances[source][target].unwrap_or(0) });
            }
        }
        (asked, counts)
    }

    /// The token of each node, if each name is one token of its own; with a blank before it where the model needs one.
    pub fn tokens(&self, model: &Model) -> Result<Option<Vec<u32>>> {
        let tokenizer = model.tokenizer()?;
        let one = |text: &str| -> Result<Option<u32>> {
            let ids = tokenizer.encode(text, Bos::Omit)?.ids;
            Ok((ids.len() == 1 && tokenizer.unknown() != Some(ids[0])).then(|| ids[0]))
        };
        let mut tokens = Vec::new();
        for name in &self.names {
            let token = match one(&format!(" {name}"))? {
                Some(token) => Some(token),
                None => one(name)?,
            };
            match token.filter(|token| !tokens.contains(token)) {
                Some(token) => tokens.push(token),
                None => return Ok(None),
            }
        }
        Ok(Some(tokens))
    }
}

/// A question: a path from source to target, with how hard it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub source: usize,
    pub target: usize,
    /// How much must be put together from what was seen.
    pub degree: usize,
    /// The least number of steps.
    pub distance: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_edges_and_paths_that_were_seen() {
        let known = Known::parse("# tools\nask plan\nplan act\nact check done\n\nask plan act\n").unwrap();
        assert_eq!(known.names, ["ask", "plan", "act", "check", "done"]);
        // Trained: the two edges, act to done, ask to act. The others must be found.
        assert_eq!(known.untrained, [(0, 3), (0, 4), (1, 3), (1, 4), (2, 3), (3, 4)]);
        let degree = |source, target| known.graph.degree(source, target);
        assert_eq!([degree(3, 4), degree(2, 4), degree(1, 4), degree(0, 4)], [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(known.cells().len(), 10, "all edges go forwards");
        let (asked, counts) = known.drawn(1, 7);
        assert_eq!((asked.len(), counts.iter().sum::<usize>()), (3, 6));
        assert!(asked.iter().all(|asked| degree(asked.source, asked.target) == Some(asked.degree)));
        let circle = Known::parse("a b\nb a").unwrap();
        assert_eq!((circle.cells().len(), circle.untrained.len()), (2, 0));
    }

    #[test]
    fn lines_that_are_no_paths_are_named() {
        let problems = Known::parse("a b\nc\nd d\n").err().unwrap_or_default();
        assert_eq!(problems.len(), 2);
        assert!(problems[0].contains("line 2") && problems[1].contains("line 3"), "{problems:?}");
        let many: String = (0..=MOST_NODES).map(|node| format!("a{node} b\n")).collect();
        assert!(Known::parse(&many).err().unwrap_or_default()[0].contains("at most 1000"));
    }
}
