//! A circuit as data, in the names of nodes and edges that edge attribution patching uses (EAP-IG, Hanna et al. 2024,
//! arXiv 2403.17806).

use serde::{Deserialize, Serialize};

/// The true circuit of a model: what is not in it does not touch the answer.
///
/// A node is `input` (embedding plus position), `aL.hH` (head H of layer L), `mL` (the MLP of layer L) or `logits`. An edge is
/// `FROM->TO`, and to a head `FROM->aL.hH<q>`, `<k>` or `<v>`: what `FROM` wrote, as the queries, keys or values of that
/// head read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Circuit {
    /// The heads and MLPs that are in it (`input` and `logits` always are).
    pub nodes: Vec<Node>,
    /// The edges that are in it.
    pub edges: Vec<Edge>,
}

/// A head or an MLP of a circuit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// `a0.h2`, `m1` …
    pub name: String,
    /// What it does, in a sentence.
    pub about: String,
}

/// An edge of a circuit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// `a0.h2->a1.h1<k>` …
    pub name: String,
    /// Whether an exchange of prompts can show it.
    pub carries: Carries,
    /// What passes over it, in a sentence.
    pub about: String,
}

/// What passes over an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carries {
    /// What differs between the clean and the corrupt prompt: patching the edge from the other prompt changes the answer.
    Difference,
    /// What is the same in both (positions, the first token): needed, but only zeroing shows it.
    Constant,
}

impl Circuit {
    pub(super) fn new(nodes: &[(&str, &str)], edges: &[(&str, Carries, &str)]) -> Self {
        let node = |&(name, about): &(&str, &str)| Node { name: name.into(), about: about.into() };
        let edge =
            |&(name, carries, about): &(&str, Carries, &str)| Edge { name: name.into(), carries, about: about.into() };
        Self { nodes: nodes.iter().map(node).collect(), edges: edges.iter().map(edge).collect() }
    }

    /// The names of the edges which carry what differs between the prompts of a pair: what a method that exchanges
    /// activations between them should find, no more and no less.
    pub fn differing(&self) -> impl Iterator<Item = &str> {
        self.edges.iter().filter(|edge| edge.carries == Carries::Difference).map(|edge| edge.name.as_str())
    }
}
