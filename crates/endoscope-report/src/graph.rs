//! Directed graphs whose edges have weights: circuits.

use serde::{Deserialize, Serialize};

/// A graph in layers, read from the bottom (rank 0) to the top.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// The nodes; within a rank they stand in this order.
    pub nodes: Vec<GraphNode>,
    /// The edges.
    pub edges: Vec<GraphEdge>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphNode {
    /// What it is called.
    pub name: String,
    /// How high it stands, from 0.
    pub rank: usize,
}

/// An edge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphEdge {
    /// The number of the node that it leaves.
    pub from: usize,
    /// The number of the node that it enters.
    pub to: usize,
    /// By which door it enters, such as `q`; empty if there is only one.
    pub label: String,
    /// Its weight, positive or negative.
    pub weight: f64,
}

impl Graph {
    /// What is wrong with it: edges from or to nowhere, or downwards, and weights that are no numbers.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (number, edge) in self.edges.iter().enumerate() {
            match (self.nodes.get(edge.from), self.nodes.get(edge.to)) {
                (Some(from), Some(to)) if from.rank >= to.rank => {
                    problems
                        .push(format!("edge {number} leads from rank {} to rank {}, not upwards", from.rank, to.rank));
                }
                (Some(_), Some(_)) => {}
                _ => problems.push(format!(
                    "edge {number} is between nodes {} and {}, of {}",
                    edge.from,
                    edge.to,
                    self.nodes.len()
                )),
            }
            if !edge.weight.is_finite() {
                problems.push(format!("edge {number} has the weight {}", edge.weight));
            }
        }
        problems
    }

    /// The largest absolute weight; 1 where all are 0.
    pub(crate) fn largest(&self) -> f64 {
        let largest = self.edges.iter().fold(0f64, |largest, edge| largest.max(edge.weight.abs()));
        if largest > 0. { largest } else { 1. }
    }

    /// The edges that enter a node, the heaviest first.
    pub(crate) fn into_node(&self, node: usize) -> Vec<&GraphEdge> {
        let mut edges: Vec<&GraphEdge> = self.edges.iter().filter(|edge| edge.to == node).collect();
        edges.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        edges
    }
}
