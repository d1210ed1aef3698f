//! Circuits as EAP-IG's JSON files: `{"cfg": …, "nodes": {"a0.h1": {"in_graph": …}}, "edges": {"a0.h1->m1": {"score": …, "in_graph": …}}}`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::circuit::Circuit;
use crate::error::{Error, Result};
use crate::graph::{Edge, Graph};

#[derive(Debug, Serialize, Deserialize)]
struct Configuration {
    n_layers: usize,
    n_heads: usize,
    /// Only where it differs; EAP-IG has one set of keys for each head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n_key_value_heads: Option<usize>,
    parallel_attn_mlp: bool,
    d_model: usize,
}

/// A circuit's file: all edges with their scores (0 where there is none).
pub fn to_json(graph: &Graph, circuit: &Circuit, scores: Option<&[f64]>) -> Value {
    let configuration = Configuration {
        n_layers: graph.layers,
        n_heads: graph.heads,
        n_key_value_heads: (graph.heads != graph.kv_heads).then_some(graph.kv_heads),
        parallel_attn_mlp: graph.parallel,
        d_model: graph.d_model,
    };
    let kept = circuit.nodes(graph);
    let mut nodes: Map<String, Value> =
        graph.nodes().iter().map(|node| (node.to_string(), json!({"in_graph": kept.contains(node)}))).collect();
    nodes.insert("logits".into(), json!({"in_graph": true}));
    let edges: Map<String, Value> = graph
        .edges()
        .enumerate()
        .map(|(number, edge)| {
            let score = scores.and_then(|scores| scores.get(number)).copied().unwrap_or(0.);
            (edge.to_string(), json!({"score": score, "in_graph": circuit.keeps(number)}))
        })
        .collect();
    json!({"cfg": configuration, "nodes": nodes, "edges": edges})
}

/// The circuit and the scores of a file, for the network with this graph. Edges that the file leaves out are not kept, with score 0.
pub fn from_json(graph: &Graph, text: &str) -> Result<(Circuit, Vec<f64>)> {
    #[derive(Deserialize)]
    struct File {
        cfg: Option<Configuration>,
        edges: Map<String, Value>,
    }
    #[derive(Deserialize)]
    struct OfEdge {
        #[serde(default)]
        score: Option<f64>,
        in_graph: bool,
    }
    let wrong = |reason: String| Error::Circuit(format!("this is no circuit file: {reason}"));
    let file: File = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if let Some(Configuration { n_layers, n_heads, parallel_attn_mlp, d_model, .. }) = file.cfg {
        let theirs = (n_layers, n_heads, d_model, parallel_attn_mlp);
        let ours = (graph.layers, graph.heads, graph.d_model, graph.parallel);
        if theirs != ours {
            let text = |(layers, heads, width, parallel): (usize, usize, usize, bool)| {
                let beside = if parallel { ", MLPs beside attention" } else { "" };
                format!("{layers} layers of {heads} heads, {width} wide{beside}")
            };
            return Err(Error::Circuit(format!(
                "the circuit is of a network of {}; this one has {}",
                text(theirs),
                text(ours)
            )));
        }
    }
    let mut circuit = Circuit::empty(graph);
    let mut scores = vec![0.; graph.len()];
    for (name, value) in file.edges {
        let edge: Edge = name.parse()?;
        let number = graph.number(edge)?;
        let OfEdge { score, in_graph } =
            serde_json::from_value(value).map_err(|error| wrong(format!("edge {name}: {error}")))?;
        circuit.set(number, in_graph);
        scores[number] = score.unwrap_or(0.);
    }
    Ok((circuit, scores))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::Choice;

    #[test]
    fn a_file_comes_back_as_it_was() {
        for graph in [Graph::of_sizes(2, 3, 3, 6, false), Graph::of_sizes(1, 4, 2, 8, true)] {
            let scores: Vec<f64> = (0..graph.len()).map(|at| (at as f64 * 1.7).sin()).collect();
            let circuit = Circuit::chosen(&graph, &scores, Choice::Top(7)).unwrap();
            let text = to_json(&graph, &circuit, Some(&scores)).to_string();
            assert_eq!(from_json(&graph, &text).unwrap(), (circuit, scores));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let graph = Graph::of_sizes(2, 3, 3, 6, false);
        let other =
            to_json(&Graph::of_sizes(3, 3, 3, 6, false), &Circuit::empty(&Graph::of_sizes(3, 3, 3, 6, false)), None);
        for (text, part) in [
            ("", "no circuit file"),
            ("{}", "edges"),
            (r#"{"edges": {"input->m7": {"in_graph": true}}}"#, "no edge `input->m7`"),
            (r#"{"edges": {"input": {"in_graph": true}}}"#, "no edge"),
            (r#"{"edges": {"input->m0": {"score": 1}}}"#, "in_graph"),
            (other.to_string().as_str(), "3 layers"),
        ] {
            let error = from_json(&graph, text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(from_json(&graph, r#"{"edges": {"input->m0": {"in_graph": true}}}"#).unwrap().0.len(), 1);
    }
}
