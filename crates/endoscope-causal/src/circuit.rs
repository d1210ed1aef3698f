//! Circuits: some edges of a network's graph, and how they are chosen by scores.

use crate::error::{Error, Result};
use crate::graph::{Edge, Graph, Node, Reader};

/// The edges that are kept; all others carry ablated activations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Circuit {
    kept: Vec<bool>,
}

/// How edges are chosen by their scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// So many edges of the largest absolute score.
    Top(usize),
    /// So many edges, from the logits downwards: each time the best edge into what is already read (EAP-IG's greedy search).
    Greedy(usize),
    /// Every edge whose absolute score is at least this.
    Threshold(f64),
}

impl Circuit {
    /// Everything.
    pub fn full(graph: &Graph) -> Self {
        Self { kept: vec![true; graph.len()] }
    }

    /// Nothing.
    pub fn empty(graph: &Graph) -> Self {
        Self { kept: vec![false; graph.len()] }
    }

    /// Exactly these edges.
    pub fn of(graph: &Graph, edges: impl IntoIterator<Item = Edge>) -> Result<Self> {
        let mut circuit = Self::empty(graph);
        for edge in edges {
            circuit.kept[graph.number(edge)?] = true;
        }
        Ok(circuit)
    }

    /// Edges chosen by `scores` (one for each edge of the graph; ties in the order of the network), not pruned.
    pub fn chosen(graph: &Graph, scores: &[f64], choice: Choice) -> Result<Self> {
        if scores.len() != graph.len() {
            return Err(Error::Circuit(format!("{} scores do not fit a graph of {} edges", scores.len(), graph.len())));
        }
        if let Some(number) = scores.iter().position(|score| !score.is_finite()) {
            return Err(Error::Circuit(format!("the score of {} is {}", graph.edge(number), scores[number])));
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].abs().total_cmp(&scores[a].abs()));
        let mut circuit = Self::empty(graph);
        match choice {
            Choice::Top(count) => order.iter().take(count).for_each(|&number| circuit.kept[number] = true),
            Choice::Threshold(least) => {
                order.iter().take_while(|&&number| scores[number].abs() >= least).for_each(|&n| circuit.kept[n] = true);
            }
            Choice::Greedy(count) if count >= scores.len() => circuit = Self::full(graph),
            Choice::Greedy(count) => {
                let mut read = vec![false; graph.readers().len()];
                read[graph.readers().len() - 1] = true;
                let reader_of = |number: usize| {
                    (0..graph.readers().len()).find(|&reader| graph.edges_into(reader).contains(&number)).unwrap_or(0)
                };
                let readers: Vec<usize> = order.iter().map(|&number| reader_of(number)).collect();
                let mut taken = vec![false; order.len()];
                for _ in 0..count {
                    let Some(at) = (0..order.len()).find(|&at| !taken[at] && read[readers[at]]) else { break };
                    taken[at] = true;
                    circuit.kept[order[at]] = true;
                    for reader in graph.readers_of(graph.edge(order[at]).from) {
                        if let Some(reader) = graph.readers().iter().position(|&known| known == reader) {
                            read[reader] = true;
                        }
                    }
                }
            }
        }
        Ok(circuit)
    }

    /// Whether the edge of this number is kept.
    pub fn keeps(&self, number: usize) -> bool {
        self.kept[number]
    }

    /// How many edges its graph has.
    pub(crate) fn size(&self) -> usize {
        self.kept.len()
    }

    /// Keeps an edge, or not.
    pub(crate) fn set(&mut self, number: usize, kept: bool) {
        self.kept[number] = kept;
    }

    /// How many edges are kept.
    pub fn len(&self) -> usize {
        self.kept.iter().filter(|&&kept| kept).count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        !self.kept.contains(&true)
    }

    /// Every edge that this circuit leaves out.
    pub fn complement(&self) -> Self {
        Self { kept: self.kept.iter().map(|kept| !kept).collect() }
    }

    /// The kept edges, in the order of the network.
    pub fn edges<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = Edge> + 'a {
        graph.edges().zip(&self.kept).filter(|(_, kept)| **kept).map(|(edge, _)| edge)
    }

    /// The nodes that a kept edge leaves, in the order of the network.
    pub fn nodes(&self, graph: &Graph) -> Vec<Node> {
        let mut nodes: Vec<Node> = self.edges(graph).map(|edge| edge.from).collect();
        nodes.sort_by_key(|&node| graph.node_number(node));
        nodes.dedup();
        nodes
    }

    /// Without edges from or to this node.
    pub fn without(&self, graph: &Graph, node: Node) -> Self {
        let readers = graph.readers_of(node);
        let mut circuit = self.clone();
        for (number, edge) in graph.edges().enumerate() {
            // A key that several heads share stays with the others.
            let alone = readers.contains(&edge.to) && graph.nodes_of(edge.to).len() == 1;
            if edge.from == node || alone {
                circuit.kept[number] = false;
            }
        }
        circuit
    }

    /// Without edges that change nothing: those into what nothing kept reads, and those from nodes that read nothing kept.
    pub fn pruned(&self, graph: &Graph) -> Self {
        let edges: Vec<Edge> = graph.edges().collect();
        let mut circuit = self.clone();
        loop {
            let mut fed = vec![false; graph.nodes().len()];
            let mut read = vec![false; graph.nodes().len()];
            let number = |node: Node| graph.node_number(node).unwrap_or(0);
            fed[0] = true;
            for edge in edges.iter().enumerate().filter(|(at, _)| circuit.kept[*at]).map(|(_, edge)| edge) {
                read[number(edge.from)] = true;
                graph.nodes_of(edge.to).into_iter().for_each(|node| fed[number(node)] = true);
            }
            let lives = |edge: &Edge| {
                let reaches =
                    edge.to == Reader::Logits || graph.nodes_of(edge.to).into_iter().any(|node| read[number(node)]);
                fed[number(edge.from)] && reaches
            };
            let before = circuit.len();
            for (at, edge) in edges.iter().enumerate() {
                circuit.kept[at] &= lives(edge);
            }
            if circuit.len() == before {
                return circuit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> Graph {
        Graph::of_sizes(2, 2, 2, 4, false)
    }

    fn circuit(edges: &[&str]) -> Circuit {
        Circuit::of(&graph(), edges.iter().map(|edge| edge.parse().unwrap())).unwrap()
    }

    fn names(circuit: &Circuit) -> Vec<String> {
        circuit.edges(&graph()).map(|edge| edge.to_string()).collect()
    }

    #[test]
    fn pruning_keeps_whole_paths_only() {
        let whole = ["input->a0.h0<v>", "a0.h0->a1.h1<k>", "a1.h1->logits"];
        let dead = ["input->m0", "m1->logits", "a0.h1->a1.h0<q>"];
        let all = circuit(&[whole.as_slice(), dead.as_slice()].concat());
        assert_eq!(names(&all.pruned(&graph())), whole);
        assert!(circuit(&dead).pruned(&graph()).is_empty());
        let full = Circuit::full(&graph());
        assert_eq!(full.pruned(&graph()), full);
        assert_eq!(full.complement(), Circuit::empty(&graph()));
        assert_eq!(all.nodes(&graph()).len(), 5);
    }

    #[test]
    fn choices_by_score() {
        let graph = graph();
        let mut scores = vec![0.; graph.len()];
        for (edge, score) in [("input->m0", 5.), ("m0->logits", -1.), ("input->logits", 2.), ("input->a1.h0<q>", 4.)] {
            scores[graph.number(edge.parse().unwrap()).unwrap()] = score;
        }
        let chosen = |choice| names(&Circuit::chosen(&graph, &scores, choice).unwrap());
        assert_eq!(chosen(Choice::Top(2)), ["input->m0", "input->a1.h0<q>"]);
        assert_eq!(chosen(Choice::Threshold(2.)), ["input->m0", "input->a1.h0<q>", "input->logits"]);
        assert_eq!(chosen(Choice::Greedy(3)), ["input->m0", "input->logits", "m0->logits"]);
        assert_eq!(chosen(Choice::Top(1000)).len(), graph.len());
        assert!(Circuit::chosen(&graph, &[1.], Choice::Top(1)).is_err());
        scores[3] = f64::NAN;
        assert!(Circuit::chosen(&graph, &scores, Choice::Top(1)).is_err());
    }
}
