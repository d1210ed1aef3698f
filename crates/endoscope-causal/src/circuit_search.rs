//! Search for a circuit by removing edges: automatic circuit discovery, ACDC (Conmy et al. 2023, arXiv 2304.14997, algorithm 1).

use std::ops::ControlFlow;

use crate::circuit::Circuit;
use crate::circuit_run::CircuitRuns;
use crate::error::{Error, Result};
use crate::graph::Reader;
use crate::pairs::Progress;

/// The most edges whose removal is tried at once.
const TOGETHER: usize = 64;

/// What a search found.
#[derive(Debug, Clone)]
pub struct Found {
    /// What is left, pruned.
    pub circuit: Circuit,
    /// How much worse the metric became when an edge was tried, edge by edge; none where it was removed with a node that nothing
    /// reads, untried.
    pub damage: Vec<Option<f64>>,
    /// The metric of what is left.
    pub value: f64,
    /// How many circuits were run.
    pub runs: usize,
}

/// Removes every edge whose removal makes the metric worse by less than `threshold`, from the logits down, readers and nodes in
/// reverse order; each removal stays.
///
/// Edges are tried several at once, each with those before it removed already. The first that must stay ends a round. So the result
/// is that of trying one after the other.
pub fn acdc(runs: &CircuitRuns, threshold: f64, mut watch: impl FnMut(Progress) -> ControlFlow<()>) -> Result<Found> {
    if !(threshold.is_finite() && threshold >= 0.) {
        return Err(Error::Circuit(format!("the threshold of a search is a number from 0 on, not {threshold}")));
    }
    let graph = &runs.graph;
    let mut circuit = Circuit::full(graph);
    let mut value = runs.values(std::slice::from_ref(&circuit))?[0];
    let mut found = Found { circuit: circuit.clone(), damage: vec![None; graph.len()], value, runs: 1 };
    let mut done = 0;
    for (reader, &to) in graph.readers().iter().enumerate().rev() {
        let edges = graph.edges_into(reader);
        done += edges.len();
        let nodes = graph.nodes_of(to);
        let read = to == Reader::Logits
            || graph.edges().enumerate().any(|(number, edge)| circuit.keeps(number) && nodes.contains(&edge.from));
        let mut left: Vec<usize> = edges.rev().collect();
        if !read {
            left.iter().for_each(|&number| circuit.set(number, false));
            left.clear();
        }
        let mut together = 8;
        while !left.is_empty() {
            let tried = &left[..together.min(left.len())];
            let mut without = circuit.clone();
            let candidates: Vec<Circuit> = tried
                .iter()
                .map(|&number| {
                    without.set(number, false);
                    without.clone()
                })
                .collect();
            let values = runs.values_above(reader, &candidates)?;
            found.runs += values.len();
            let mut accepted = 0;
            let mut stays = None;
            for (&number, &tried) in tried.iter().zip(&values) {
                let damage = runs.metric.damage(value, tried);
                found.damage[number] = Some(damage);
                if damage.is_nan() || damage >= threshold {
                    stays = Some(number);
                    break;
                }
                circuit.set(number, false);
                value = tried;
                accepted += 1;
            }
            together = match stays {
                Some(_) => (accepted + 1).max(2),
                None => (2 * together).min(TOGETHER),
            };
            left.drain(..accepted + usize::from(stays.is_some()));
            if watch(Progress { done: done - left.len(), total: graph.len() }).is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    found.circuit = circuit.pruned(graph);
    found.value = value;
    Ok(found)
}
