//! Circuit files, and the names of edges and receivers.
#![no_main]

use endoscope_causal::{Choice, Circuit, Edge, Graph, Receiver, circuit_from_json, circuit_to_json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(edge) = text.parse::<Edge>() {
        assert_eq!(edge.to_string().parse::<Edge>().ok(), Some(edge));
    }
    let _ = text.parse::<Receiver>();
    for graph in [Graph::of_sizes(2, 4, 2, 8, false), Graph::of_sizes(1, 2, 2, 4, true)] {
        let Ok((circuit, scores)) = circuit_from_json(&graph, text) else { continue };
        let pruned = circuit.pruned(&graph);
        assert!(pruned.len() <= circuit.len());
        let _ = Circuit::chosen(&graph, &scores, Choice::Greedy(3));
        let again = circuit_to_json(&graph, &circuit, Some(&scores)).to_string();
        assert_eq!(circuit_from_json(&graph, &again).ok(), Some((circuit, scores)));
    }
});
