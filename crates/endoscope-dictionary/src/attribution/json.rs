//! Graphs as the JSON that circuit-tracer's page and Neuronpedia read.

use serde_json::{Value, json};

use super::graph::{Feature, Graph, GraphSettings, Node};
use super::prune::Pruned;

/// What a graph is called, and what its nodes are.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphNames<'a> {
    /// The file's name without its end.
    pub slug: &'a str,
    /// The model's id.
    pub scan: &'a str,
    /// The prompt as text.
    pub prompt: &'a str,
    /// How many layers the network has.
    pub layers: usize,
    /// Settings by which it was made, and both thresholds of pruning.
    pub settings: GraphSettings,
    /// The share of influence that nodes were kept for.
    pub node_threshold: f64,
    /// The share of influence that edges were kept for.
    pub edge_threshold: f64,
}

/// `(x + y)(x + y + 1) / 2 + y` (Cantor 1877): one number for a layer and a feature.
fn cantor(x: usize, y: usize) -> u128 {
    let (x, y) = (x as u128, y as u128);
    (x + y) * (x + y + 1) / 2 + y
}

/// The kept part of a graph. `label` names a token.
///
/// An error node's id is `0_LAYER_POSITION`, as circuit-tracer writes it, unless a feature of layer 0 has that id: then it is
/// `E0_LAYER_POSITION`, since readers take ids for unique.
pub fn graph_json(graph: &Graph, pruned: &Pruned, names: &GraphNames<'_>, label: impl Fn(u32) -> String) -> Value {
    let id = |node: &Node| match *node {
        Node::Feature(Feature { layer, position, feature, .. }) => format!("{layer}_{feature}_{position}"),
        Node::Error { layer, position, .. } => {
            let taken = |other: &Node| {
                matches!(*other, Node::Feature(Feature { layer: 0, feature, position: at, .. })
                if feature == layer && at == position)
            };
            match graph.nodes.iter().any(taken) {
                true => format!("E0_{layer}_{position}"),
                false => format!("0_{layer}_{position}"),
            }
        }
        Node::Token { position, token } => format!("E_{token}_{position}"),
        Node::Logit { token, .. } => format!("{}_{token}_{}", names.layers + 1, graph.tokens.len().saturating_sub(1)),
    };
    let last = graph.tokens.len().saturating_sub(1);
    let best = graph
        .nodes
        .iter()
        .filter_map(
            |node| if let Node::Logit { token, probability } = node { Some((*token, *probability)) } else { None },
        )
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(token, _)| token);
    let described = |number: usize| {
        let node = &graph.nodes[number];
        let (feature, layer, position, kind, js, text): (Value, String, usize, &str, String, String) = match *node {
            Node::Feature(Feature { layer, position, feature, .. }) => (
                json!(cantor(layer, feature) as u64),
                layer.to_string(),
                position,
                "cross layer transcoder",
                format!("{layer}_{feature}-0"),
                String::new(),
            ),
            Node::Error { layer, position, .. } => (
                json!(-1),
                layer.to_string(),
                position,
                "mlp reconstruction error",
                format!("{layer}_{position}-0"),
                format!("Err: mlp {}", label(graph.tokens[position])),
            ),
            Node::Token { position, token } => (
                json!(position),
                "E".into(),
                position,
                "embedding",
                format!("E_{token}-{position}"),
                format!("Emb: {}", label(token)),
            ),
            Node::Logit { token, probability } => (
                json!(token),
                (names.layers + 1).to_string(),
                last,
                "logit",
                format!("L_{token}-{last}"),
                format!("Output \"{}\" (p={probability:.3})", label(token)),
            ),
        };
        let mut value = json!({
            "node_id": id(node),
            "feature": feature,
            "layer": layer,
            "ctx_idx": position,
            "feature_type": kind,
            "jsNodeId": js,
            "clerp": text,
            "influence": if let Node::Logit { .. } = node { None } else { Some(pruned.influence[number]) },
            "is_target_logit": matches!(*node, Node::Logit { token, .. } if Some(token) == best),
            "token_prob": if let Node::Logit { probability, .. } = node { *probability } else { 0. },
            "run_idx": 0,
            "reverse_ctx_idx": 0,
        });
        if let (Node::Feature(feature), Some(map)) = (node, value.as_object_mut()) {
            map.insert("activation".into(), json!(feature.activation));
        }
        value
    };
    let nodes: Vec<Value> = (0..graph.nodes.len()).filter(|&node| pruned.nodes[node]).map(described).collect();
    let link = |&(target, source): &(usize, usize)| {
        json!({
            "source": id(&graph.nodes[source]),
            "target": id(&graph.nodes[target]),
            "weight": graph.edges.row(target)[source],
        })
    };
    let GraphSettings { max_n_logits, desired_logit_prob, batch_size, max_feature_nodes } = names.settings;
    json!({
        "metadata": {
            "slug": names.slug,
            "scan": names.scan,
            "transcoder_list": [],
            "prompt_tokens": graph.tokens.iter().map(|&token| label(token)).collect::<Vec<_>>(),
            "prompt": names.prompt,
            "node_threshold": names.node_threshold,
            "schema_version": 1,
            "generation_settings": {
                "max_n_logits": max_n_logits,
                "desired_logit_prob": desired_logit_prob,
                "batch_size": batch_size,
                "max_feature_nodes": max_feature_nodes,
            },
            "pruning_settings": {"node_threshold": names.node_threshold, "edge_threshold": names.edge_threshold},
            "info": {"generator": {"name": "endoscope", "version": env!("CARGO_PKG_VERSION")}},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": pruned.edges.iter().map(link).collect::<Vec<_>>(),
    })
}
