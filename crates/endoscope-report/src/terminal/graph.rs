//! Graphs as text: each node from the top down, with what enters it.

use super::TerminalStyle;
use super::text::Ink;
use crate::graph::Graph;
use crate::label::safe;
use crate::number::Digits;

/// The most edges that are written; the lightest are left out.
const SHOWN: usize = 80;

pub fn render(graph: &Graph, style: &TerminalStyle, out: &mut Vec<String>) {
    let ink = Ink(style.colour);
    let digits = Digits::of(graph.edges.iter().map(|edge| Some(edge.weight)), 3);
    let mut weights: Vec<f64> = graph.edges.iter().map(|edge| edge.weight.abs()).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    let least = weights.get(SHOWN).copied().unwrap_or(f64::NEG_INFINITY);
    let mut order: Vec<usize> = (0..graph.nodes.len()).collect();
    order.sort_by_key(|&node| (std::cmp::Reverse(graph.nodes[node].rank), node));
    let wide = graph.nodes.iter().map(|node| node.name.chars().count()).max().unwrap_or(0);
    let mut shown = 0;
    for node in order {
        let edges: Vec<_> = graph.entering(node).into_iter().filter(|edge| edge.weight.abs() > least).collect();
        if edges.is_empty() {
            continue;
        }
        out.push(ink.bold(&safe(&graph.nodes[node].name)));
        shown += edges.len();
        let last = edges.len() - 1;
        for (at, edge) in edges.into_iter().enumerate() {
            let branch = if at == last { "`-" } else { "|-" };
            let from = safe(graph.nodes.get(edge.from).map_or("", |node| node.name.as_str()));
            out.push(format!(
                "  {branch} {:>1} <- {from:<wide$}  {:>9}",
                safe(&edge.label),
                digits.format(edge.weight)
            ));
        }
    }
    if shown < graph.edges.len() {
        out.push(format!("({} lighter edges are not written here)", graph.edges.len() - shown));
    }
}
