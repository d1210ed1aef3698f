//! What a circuit explains: faithfulness, completeness, minimality, and curves over circuits of growing size.

use std::ops::ControlFlow;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::circuit::{Choice, Circuit};
use crate::circuit_run::CircuitRuns;
use crate::error::{Error, Result};
use crate::graph::Node;
use crate::pairs::Progress;
use crate::statistics::shuffle;

/// The shares of edges at which a curve is measured: those of the mechanistic interpretability benchmark (Mueller et al. 2025, arXiv
/// 2504.13151).
pub const SHARES: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.];

/// How much of the behaviour a circuit has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measures {
    /// How many edges it keeps.
    pub edges: usize,
    /// The metric of the whole network, m(M).
    pub whole: f64,
    /// The metric with every edge ablated, m(0).
    pub nothing: f64,
    /// The metric of the circuit, m(C).
    pub circuit: f64,
    /// The metric of the whole network with the circuit's edges ablated instead, m(M without C).
    pub complement: f64,
    /// `(m(C) - m(0)) / (m(M) - m(0))`: 1 = as the whole network. None where the network and nothing do not differ.
    pub faithfulness: Option<f64>,
    /// `(m(M) - m(M without C)) / (m(M) - m(0))`: 1 = without the circuit nothing is left, so that it is complete (Wang et al. 2022,
    /// arXiv 2211.00593, section 4).
    pub completeness: Option<f64>,
    /// For each node of the circuit what is lost without it, `(m(C) - m(C without the node)) / (m(M) - m(0))`: a circuit is
    /// minimal if none of them is near 0.
    pub minimality: Vec<(Node, Option<f64>)>,
}

/// Faithfulness of circuits of growing size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curve {
    /// Each share of the edges asked for, how many edges are left after pruning, and their faithfulness.
    pub points: Vec<CurvePoint>,
    /// The area under the curve, its circuit performance ratio (CPR): higher is better.
    pub cpr: f64,
    /// The area between the curve and 1, its circuit-model distance (CMD): lower is better.
    pub cmd: f64,
}

/// One circuit of a curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The share of edges asked for.
    pub share: f64,
    /// How many edges were left after pruning.
    pub edges: usize,
    /// Their faithfulness.
    pub faithfulness: f64,
}

/// Measures a circuit; `watch` hears of the progress and may end it.
pub fn measure(
    runs: &CircuitRuns,
    circuit: &Circuit,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Measures> {
    let graph = &runs.graph;
    let nodes = circuit.nodes(graph);
    let mut circuits = vec![Circuit::full(graph), Circuit::empty(graph), circuit.clone(), circuit.complement()];
    circuits.extend(nodes.iter().map(|&node| circuit.without(graph, node)));
    let total = circuits.len();
    let mut values = Vec::with_capacity(total);
    for some in circuits.chunks(8) {
        values.extend(runs.values(some)?);
        if watch(Progress { done: values.len(), total }).is_break() {
            return Err(Error::Interrupted);
        }
    }
    let [whole, nothing, of_circuit, complement] = [values[0], values[1], values[2], values[3]];
    let share = |difference: f64| share(difference, whole, nothing);
    Ok(Measures {
        edges: circuit.len(),
        whole,
        nothing,
        circuit: of_circuit,
        complement,
        faithfulness: share(of_circuit - nothing),
        completeness: share(whole - complement),
        minimality: nodes.into_iter().zip(values[4..].iter().map(|without| share(of_circuit - without))).collect(),
    })
}

/// The faithfulness of the circuits that `scores` choose at each of [`SHARES`], and the areas; none where the network and nothing do
/// not differ.
pub fn curve(
    runs: &CircuitRuns,
    scores: &[f64],
    greedy: bool,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Option<Curve>> {
    let graph = &runs.graph;
    let ends = runs.values(&[Circuit::full(graph), Circuit::empty(graph)])?;
    let mut points = Vec::new();
    for (done, share_of_edges) in SHARES.into_iter().enumerate() {
        let count = (share_of_edges * graph.len() as f64).round() as usize;
        let choice = if greedy { Choice::Greedy(count) } else { Choice::Top(count) };
        let circuit = Circuit::chosen(graph, scores, choice)?.pruned(graph);
        let value = runs.values(std::slice::from_ref(&circuit))?[0];
        let Some(faithfulness) = share(value - ends[1], ends[0], ends[1]) else { return Ok(None) };
        points.push(CurvePoint { share: share_of_edges, edges: circuit.len(), faithfulness });
        if watch(Progress { done: done + 1, total: SHARES.len() }).is_break() {
            return Err(Error::Interrupted);
        }
    }
    let area = |height: &dyn Fn(f64) -> f64| {
        let under = |pair: &[CurvePoint]| {
            (pair[1].share - pair[0].share) * (height(pair[0].faithfulness) + height(pair[1].faithfulness)) / 2.
        };
        points.windows(2).map(under).sum::<f64>()
    };
    let (cpr, cmd) = (area(&|f| f), area(&|f| (1. - f).abs()));
    Ok(Some(Curve { points, cpr, cmd }))
}

/// Scores that say nothing, the control of every choice by scores: the edges in a random order.
pub fn random_scores(edges: usize, seed: u64) -> Vec<f64> {
    let mut scores: Vec<f64> = (1..=edges).map(|rank| rank as f64).collect();
    shuffle(&mut ChaCha8Rng::seed_from_u64(seed), &mut scores);
    scores
}

/// The faithfulness of circuits of so many edges, chosen at random from the logits down, one for each seed; none where the network
/// and nothing do not differ.
pub fn random_faithfulness(runs: &CircuitRuns, edges: usize, seeds: &[u64]) -> Result<Option<Vec<f64>>> {
    let graph = &runs.graph;
    let mut circuits = vec![Circuit::full(graph), Circuit::empty(graph)];
    for &seed in seeds {
        circuits.push(Circuit::chosen(graph, &random_scores(graph.len(), seed), Choice::Greedy(edges))?);
    }
    let values = runs.values(&circuits)?;
    Ok(values[2..].iter().map(|value| share(value - values[1], values[0], values[1])).collect())
}

/// A difference of the metric on the scale from nothing (0) to the whole network (1).
fn share(difference: f64, whole: f64, nothing: f64) -> Option<f64> {
    let range = whole - nothing;
    // Relative to the size of the numbers: a difference of rounding errors is no scale.
    let usable = range.abs() > 1e-6 * whole.abs().max(nothing.abs()).max(1e-6);
    (usable && difference.is_finite()).then(|| difference / range)
}
