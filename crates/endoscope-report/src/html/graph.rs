//! Graphs as SVG: boxes in rows, the first row at the bottom; what lies under the pointer is named by its title.

use super::text::escaped;
use crate::graph::{Graph, GraphEdge};
use crate::number::Digits;

const ROW: f64 = 76.;
const COLUMN: f64 = 82.;
const BOX: (f64, f64) = (66., 24.);
const MARGIN: f64 = 24.;

const STYLE: &str = ".graph rect{fill:#fff;stroke:#667;rx:5}.graph text{font:12px ui-monospace,monospace;text-anchor:middle;fill:#223}\
    .graph path{fill:none;opacity:.55}.graph path:hover{opacity:1;stroke-width:6}.graph .up{stroke:#2166ac}.graph .down{stroke:#b2182b}\
    .graph g:hover rect{fill:#eef}";

/// The graph as one `<svg>` element, complete enough to be a file of its own.
pub fn svg(graph: &Graph) -> String {
    let ranks = graph.nodes.iter().map(|node| node.rank + 1).max().unwrap_or(1);
    let counts: Vec<usize> =
        (0..ranks).map(|rank| graph.nodes.iter().filter(|node| node.rank == rank).count()).collect();
    let widest = counts.iter().copied().max().unwrap_or(1).max(1);
    let (width, height) = (2. * MARGIN + COLUMN * widest as f64, 2. * MARGIN + ROW * ranks as f64);
    let mut placed = vec![0usize; ranks];
    let centres: Vec<(f64, f64)> = graph
        .nodes
        .iter()
        .map(|node| {
            let at = placed[node.rank];
            placed[node.rank] += 1;
            let left = (width - COLUMN * counts[node.rank] as f64) / 2.;
            (left + COLUMN * (at as f64 + 0.5), height - MARGIN - ROW * (node.rank as f64 + 0.5))
        })
        .collect();
    let digits = Digits::of(graph.edges.iter().map(|edge| Some(edge.weight)), 3);
    let name = |node: usize| graph.nodes.get(node).map_or("", |node| node.name.as_str());
    let drawn = |edge: &GraphEdge| {
        let (Some((x1, y1)), Some((x2, y2))) = (centres.get(edge.from), centres.get(edge.to)) else {
            return String::new();
        };
        // Doors lie side by side.
        let door = match edge.label.as_str() {
            "q" => -18.,
            "v" => 18.,
            _ => 0.,
        };
        let (start, end) = (y1 - BOX.1 / 2., y2 + BOX.1 / 2.);
        let bend = (start - end).max(10.) / 2.;
        let thickness = 0.7 + 4. * edge.weight.abs() / graph.largest();
        let sign = if edge.weight < 0. { "down" } else { "up" };
        let x2 = x2 + door;
        format!(
            "<path class=\"{sign}\" stroke-width=\"{thickness:.1}\" d=\"M{x1:.1} {start:.1}C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {end:.1}\">\
             <title>{}</title></path>\n",
            start - bend,
            end + bend,
            escaped(&described(name(edge.from), name(edge.to), edge, digits))
        )
    };
    // The heaviest last, so that they lie on top.
    let mut order: Vec<&GraphEdge> = graph.edges.iter().collect();
    order.sort_by(|a, b| a.weight.abs().total_cmp(&b.weight.abs()));
    let edges: String = order.into_iter().map(drawn).collect();
    let nodes: String = graph
        .nodes
        .iter()
        .zip(&centres)
        .enumerate()
        .map(|(number, (node, (x, y)))| {
            let (wide, high) = BOX;
            let into: Vec<String> = graph
                .entering(number)
                .into_iter()
                .map(|edge| described(name(edge.from), &node.name, edge, digits))
                .collect();
            format!(
                "<g><title>{}</title><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{wide}\" height=\"{high}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\">{}</text></g>\n",
                escaped(&[std::slice::from_ref(&node.name), into.as_slice()].concat().join("\n")),
                x - wide / 2.,
                y - high / 2.,
                y + 4.,
                escaped(&node.name)
            )
        })
        .collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"graph\" role=\"img\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\">\n<style>{STYLE}</style>\n{edges}{nodes}</svg>\n"
    )
}

fn described(from: &str, to: &str, edge: &GraphEdge, digits: Digits) -> String {
    let door = if edge.label.is_empty() { String::new() } else { format!("<{}>", edge.label) };
    format!("{from} -> {to}{door}: {}", digits.format(edge.weight))
}
