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
    pub(crate) fn entering(&self, node: usize) -> Vec<&GraphEdge> {
        let mut edges: Vec<&GraphEdge> = self.edges.iter().filter(|edge| edge.to == node).collect();
        edges.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        edges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Colour, Report, Section, TerminalStyle, render_html, render_terminal, svg};

    fn graph() -> Graph {
        let node = |name: &str, rank| GraphNode { name: name.into(), rank };
        let edge = |from, to, label: &str, weight| GraphEdge { from, to, label: label.into(), weight };
        Graph {
            nodes: vec![node("input", 0), node("a0.h1", 1), node("<m1>", 1), node("logits", 2)],
            edges: vec![edge(0, 1, "q", 0.25), edge(0, 2, "", -2.), edge(1, 3, "", 1.), edge(2, 3, "", 0.5)],
        }
    }

    fn report(graph: Graph) -> Report {
        let mut report = Report::new("Circuit", "circuit", "");
        report.sections.push(Section::Graph { heading: None, graph, caption: "c".into() });
        report
    }

    #[test]
    fn text_has_the_heaviest_edge_of_each_node_first() {
        let style = TerminalStyle { colour: Colour::None, width: 80 };
        let text = render_terminal(&report(graph()), &style);
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| line.contains("<- ") || *line == "logits").collect();
        let starts = ["logits", "|-   <- a0.h1", "`-   <- <m1>", "`- q <- input", "`-   <- input"];
        assert_eq!(lines.len(), starts.len(), "{text}");
        assert!(lines.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{text}");
    }

    #[test]
    fn the_drawing_has_every_node_and_edge_and_no_markup_of_names() {
        let drawing = svg(&graph());
        assert_eq!((drawing.matches("<rect").count(), drawing.matches("<path").count()), (4, 4));
        assert!(drawing.contains("&lt;m1&gt;") && !drawing.contains("<m1>"));
        assert!(drawing.contains("input -&gt; a0.h1&lt;q&gt;: 0.25"), "{drawing}");
        assert!(render_html(&report(graph()), None).contains("<svg"));
        assert!(svg(&Graph::default()).contains("</svg>"));
    }

    #[test]
    fn what_leads_nowhere_is_a_problem() {
        let mut wrong = graph();
        wrong.edges[0].to = 9;
        wrong.edges[1].weight = f64::NAN;
        wrong.edges.push(GraphEdge { from: 3, to: 0, label: String::new(), weight: 1. });
        let message = report(wrong.clone()).check().unwrap_err().to_string();
        for part in ["between nodes 0 and 9", "weight NaN", "not upwards"] {
            assert!(message.contains(part), "{message}");
        }
        // A report that was not checked is drawn all the same.
        assert!(svg(&wrong).contains("</svg>"));
        let style = TerminalStyle { colour: Colour::None, width: 80 };
        assert!(render_terminal(&report(wrong), &style).contains("logits"));
        assert_eq!(Report::from_json(&report(graph()).to_json().unwrap()).unwrap(), report(graph()));
    }
}
