//! Which nodes and edges of a graph matter: influence on the logits, and what is left above a share of it.

use serde::{Deserialize, Serialize};

use super::graph::{Graph, Node};

/// A graph's nodes and edges that are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// Whether each node is kept.
    pub nodes: Vec<bool>,
    /// The edges that are kept: target, source.
    pub edges: Vec<(usize, usize)>,
    /// For each node the share of all influence that it and those above it hold.
    pub influence: Vec<f64>,
}

/// How much the logits, by their `weights`, owe to each source: through rows of absolute edges that sum to 1, over paths of any
/// length. A row is that of a feature (by its place among the sources) or of a logit, in order.
pub(super) fn influences(
    rows: &[(Option<usize>, Vec<f64>)],
    weights: &[f64],
    features: usize,
    sources: usize,
) -> Vec<f64> {
    let mut total = vec![0f64; sources];
    let mut flow = vec![0f64; sources];
    let mut logits = weights.iter();
    for (_, row) in rows.iter().filter(|(target, _)| target.is_none()) {
        let weight = logits.next().copied().unwrap_or(0.);
        flow.iter_mut().zip(row).for_each(|(flow, edge)| *flow += weight * edge);
    }
    // Edges lead from lower layers to higher ones, so that the flow runs dry after as many rounds as there are layers.
    for _ in 0..=rows.len() {
        total.iter_mut().zip(&flow).for_each(|(total, flow)| *total += flow);
        let mut next = vec![0f64; sources];
        let mut moved = 0.;
        for (target, row) in rows {
            let Some(inflow) = target.filter(|&target| target < features).map(|target| flow[target]) else { continue };
            if inflow > 0. {
                moved += inflow;
                next.iter_mut().zip(row).for_each(|(next, edge)| *next += inflow * edge);
            }
        }
        if moved <= 1e-12 {
            break;
        }
        flow = next;
    }
    total
}

/// Keeps the nodes that hold `node_threshold` of the influence, then the edges that hold `edge_threshold` of what flows between
/// them; features without an edge in or out fall away. Tokens and logits are always kept.
pub fn prune(graph: &Graph, node_threshold: f64, edge_threshold: f64) -> Pruned {
    let count = graph.nodes.len();
    let everything = vec![true; count];
    let node_influence = flows(graph, &everything);
    let (kept_by_share, influence) = shares(&node_influence, node_threshold);
    let mut nodes: Vec<bool> = (0..count)
        .map(|node| match graph.nodes[node] {
            Node::Token { .. } | Node::Logit { .. } => true,
            Node::Feature(_) | Node::Error { .. } => kept_by_share[node],
        })
        .collect();
    // How much flows along each edge among the nodes that are left.
    let flow = flows(graph, &nodes);
    let mut flat = Vec::new();
    for target in (0..count).filter(|&target| nodes[target]) {
        let inflow = match graph.nodes[target] {
            Node::Logit { probability, .. } => probability,
            _ => flow[target],
        };
        let row = normalized(graph, target, &nodes);
        flat.extend(row.into_iter().map(|(source, share)| (target, source, share * inflow)));
    }
    let values: Vec<f64> = flat.iter().map(|&(.., value)| value).collect();
    let (kept, _) = shares(&values, edge_threshold);
    let mut edges: Vec<(usize, usize)> =
        flat.iter().zip(kept).filter(|(_, kept)| *kept).map(|(&(target, source, _), _)| (target, source)).collect();
    loop {
        let (mut into, mut out) = (vec![false; count], vec![false; count]);
        for &(target, source) in &edges {
            into[target] = true;
            out[source] = true;
        }
        let mut changed = false;
        for node in 0..count {
            let stays = match graph.nodes[node] {
                Node::Token { .. } | Node::Logit { .. } => true,
                Node::Feature(_) => into[node] && out[node],
                Node::Error { .. } => out[node],
            };
            if nodes[node] && !stays {
                nodes[node] = false;
                changed = true;
            }
        }
        if !changed {
            break;
        }
        edges.retain(|&(target, source)| nodes[target] && nodes[source]);
    }
    Pruned { nodes, edges, influence }
}

/// The sources of a target among `nodes` with their share of its absolute edges.
fn normalized(graph: &Graph, target: usize, nodes: &[bool]) -> Vec<(usize, f64)> {
    let row = graph.edges.row(target);
    let own = |&(source, edge): &(usize, &f32)| nodes[source] && *edge != 0.;
    let total: f64 = row.iter().enumerate().filter(own).map(|(_, edge)| f64::from(edge.abs())).sum();
    let scale = if total > 0. { 1. / total } else { 0. };
    row.iter().enumerate().filter(own).map(|(source, edge)| (source, f64::from(edge.abs()) * scale)).collect()
}

/// What flows into each node from the logits.
fn flows(graph: &Graph, nodes: &[bool]) -> Vec<f64> {
    let count = graph.nodes.len();
    let rows: Vec<(Option<usize>, Vec<f64>)> = (0..count)
        .filter(|&target| nodes[target] && matches!(graph.nodes[target], Node::Feature(_) | Node::Logit { .. }))
        .map(|target| {
            let mut row = vec![0.; count];
            normalized(graph, target, nodes).into_iter().for_each(|(source, share)| row[source] = share);
            (matches!(graph.nodes[target], Node::Feature(_)).then_some(target), row)
        })
        .collect();
    let weights: Vec<f64> = graph
        .nodes
        .iter()
        .filter_map(|node| if let Node::Logit { probability, .. } = node { Some(*probability) } else { None })
        .collect();
    influences(&rows, &weights, count, count)
}

/// Which values hold `threshold` of the sum, the largest first, and for each the share that it and the larger ones hold.
fn shares(values: &[f64], threshold: f64) -> (Vec<bool>, Vec<f64>) {
    let total: f64 = values.iter().sum();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    let (mut kept, mut share) = (vec![false; values.len()], vec![1.; values.len()]);
    let mut sum = 0.;
    for at in order {
        let before = if total > 0. { sum / total } else { 1. };
        sum += values[at];
        kept[at] = values[at] > 0. && before < threshold;
        share[at] = if total > 0. { sum / total } else { 1. };
    }
    (kept, share)
}
