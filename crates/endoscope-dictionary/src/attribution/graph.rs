//! The nodes of a graph and the edges between them.

use endoscope_net::{Edit, Network};
use serde::{Deserialize, Serialize};

use super::frozen::Frozen;
use super::prune::influences;
use super::trace::{Target, Tracer};
use super::transcoders::Transcoders;
use crate::error::{Error, Result};
use crate::matrix::Matrix;

/// How large a graph may be. Names and defaults are those of circuit-tracer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphSettings {
    /// The most logits.
    pub max_n_logits: usize,
    /// Logits are taken, the most probable first, until their probabilities reach this sum.
    pub desired_logit_prob: f64,
    /// The most features: those that influence the logits most.
    pub max_feature_nodes: usize,
    /// How many targets are traced back together: the prompt is run as many times at once.
    pub batch_size: usize,
}

impl Default for GraphSettings {
    fn default() -> Self {
        Self { max_n_logits: 10, desired_logit_prob: 0.95, max_feature_nodes: 7500, batch_size: 64 }
    }
}

/// A feature that is active on a token of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Which of the transcoders, by its place among the layers that have one.
    pub transcoder: usize,
    /// Its layer.
    pub layer: usize,
    /// Where in the prompt.
    pub position: usize,
    /// Its number.
    pub feature: usize,
    /// Its activation.
    pub activation: f32,
}

/// A node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// An active feature.
    Feature(Feature),
    /// What no transcoder explains of what a layer's MLP writes at a position.
    Error {
        /// Which of the transcoders.
        transcoder: usize,
        /// Its layer.
        layer: usize,
        /// Where.
        position: usize,
    },
    /// A token's embedding.
    Token {
        /// Where.
        position: usize,
        /// Its id.
        token: u32,
    },
    /// A possible next token.
    Logit {
        /// Its id.
        token: u32,
        /// Its probability.
        probability: f64,
    },
}

/// The edges into some targets.
pub type Edges = Matrix;

/// An attribution graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Features, then errors, then tokens, then logits.
    pub nodes: Vec<Node>,
    /// `[nodes, nodes]`: row `target`, column `source`; how much the source adds to the target's activation, or to its logit less
    /// the mean logit.
    pub edges: Edges,
    /// How many features were active, in the graph or not.
    pub active_features: usize,
}

/// The graph of one prompt.
///
/// # Errors
/// If nothing in the prompt is active, or the network cannot be run as [`Frozen`] needs it.
pub fn attribute(
    network: &dyn Network,
    transcoders: &Transcoders,
    frozen: &Frozen,
    settings: &GraphSettings,
    mut watch: impl FnMut(usize, usize) -> std::ops::ControlFlow<()>,
) -> Result<Graph> {
    let features = active(transcoders, frozen)?;
    let positions = frozen.tokens.len();
    let logits = chosen_logits(&frozen.logits, settings);
    let layers = transcoders.layers.len();
    let sources = features.len() + (layers + 1) * positions;
    let wanted = features.len().min(settings.max_feature_nodes);
    let targets = wanted + logits.len();

    let rows = settings.batch_size.clamp(1, targets);
    let tracer = Tracer::new(network, transcoders, frozen, &features, rows)?;
    let logit_targets: Vec<Target> = logits.iter().map(|&(token, _)| Target::Logit(token)).collect();
    let mut rows: Vec<(Option<usize>, Vec<f32>)> =
        tracer.edges(&logit_targets)?.into_iter().map(|row| (None, row)).collect();
    let mut visited = vec![false; features.len()];
    let mut found = 0;
    while found < wanted {
        if watch(found + logits.len(), targets).is_break() {
            return Err(Error::Measure("the graph was stopped before it was whole".into()));
        }
        // The features that the targets so far owe most to are next.
        let weights: Vec<f64> = logits.iter().map(|&(_, probability)| probability).collect();
        let influence = partial_influence(&rows, &weights, features.len(), sources);
        let mut order: Vec<usize> = (0..features.len()).filter(|&feature| !visited[feature]).collect();
        order.sort_by(|&a, &b| influence[b].total_cmp(&influence[a]).then(a.cmp(&b)));
        order.truncate(tracer.rows().min(wanted - found));
        let next: Vec<Target> = order.iter().map(|&feature| features[feature].into()).collect();
        let edges = tracer.edges(&next)?;
        for (&feature, row) in order.iter().zip(edges) {
            visited[feature] = true;
            rows.push((Some(feature), row));
        }
        found += order.len();
    }

    let kept: Vec<usize> = (0..features.len()).filter(|&feature| visited[feature]).collect();
    let mut nodes: Vec<Node> = kept.iter().map(|&feature| Node::Feature(features[feature])).collect();
    for (transcoder, layer) in transcoders.layers.iter().enumerate() {
        nodes.extend((0..positions).map(|position| Node::Error { transcoder, layer: layer.layer, position }));
    }
    nodes.extend(frozen.tokens.iter().enumerate().map(|(position, &token)| Node::Token { position, token }));
    nodes.extend(logits.iter().map(|&(token, probability)| Node::Logit { token, probability }));
    let mut edges = Matrix::zeros(nodes.len(), nodes.len());
    let rest = features.len()..sources;
    for (number, (feature, row)) in rows.iter().enumerate() {
        let target = match feature {
            Some(feature) => kept.binary_search(feature).unwrap_or(0),
            None => nodes.len() - logits.len() + number,
        };
        let sources = kept.iter().map(|&source| row[source]).chain(row[rest.clone()].iter().copied());
        edges.row_mut(target).iter_mut().zip(sources).for_each(|(edge, value)| *edge = value);
    }
    Ok(Graph { tokens: frozen.tokens.clone(), nodes, edges, active_features: features.len() })
}

/// What `source` adds to `target`, by running the linear network with and without it: for tests of edges, and for whoever doubts one.
pub fn measure(
    network: &dyn Network,
    transcoders: &Transcoders,
    frozen: &Frozen,
    source: &Node,
    target: &Node,
) -> Result<f64> {
    let value = |without: &[Node]| value_without(network, transcoders, frozen, without, target);
    Ok(value(&[])? - value(&[*source])?)
}

/// The activation of `target` less its bias, as if it stayed active, or its logit less the mean logit: in a run of the linear
/// network in which some `sources` write nothing.
pub fn value_without(
    network: &dyn Network,
    transcoders: &Transcoders,
    frozen: &Frozen,
    sources: &[Node],
    target: &Node,
) -> Result<f64> {
    let target = match *target {
        Node::Feature(feature) => Target::from(feature),
        Node::Logit { token, .. } => Target::Logit(token),
        _ => return Err(Error::Measure("errors and tokens are no targets".into())),
    };
    let mut edits: Vec<Edit> = Vec::new();
    for source in sources {
        match *source {
            Node::Feature(Feature { transcoder, position, feature, activation, .. }) => {
                let own = &transcoders.layers[transcoder];
                let written: Vec<f32> =
                    own.transcoder.direction(feature)?.iter().map(|direction| activation * direction).collect();
                for (layer, vector) in transcoders.layers[transcoder..].iter().zip(written.chunks_exact(own.width)) {
                    edits.push(Frozen::without(&layer.output, position, vector)?);
                }
            }
            Node::Error { transcoder, position, .. } => {
                let vector = frozen.errors[transcoder].row(position);
                edits.push(Frozen::without(&transcoders.layers[transcoder].output, position, vector)?);
            }
            Node::Token { position, .. } => {
                edits.push(Frozen::without(&frozen.entries[0], position, frozen.embedded.row(position))?);
            }
            Node::Logit { .. } => return Err(Error::Measure("a logit is no source".into())),
        }
    }
    let run = frozen.run(network, transcoders, edits)?;
    Ok(f64::from(target.value(transcoders, &run, 0)?.to_scalar::<f32>()?))
}

fn active(transcoders: &Transcoders, frozen: &Frozen) -> Result<Vec<Feature>> {
    let mut features = Vec::new();
    for (transcoder, layer) in transcoders.layers.iter().enumerate() {
        let codes = layer.transcoder.encode(&frozen.read[transcoder])?;
        for position in 0..codes.latents.rows() {
            let (columns, values) = codes.latents.row(position);
            features.extend(columns.iter().zip(values).map(|(&feature, &activation)| Feature {
                transcoder,
                layer: layer.layer,
                position,
                feature: feature as usize,
                activation,
            }));
        }
    }
    match features.is_empty() {
        true => Err(Error::Measure("no feature is active on this prompt".into())),
        false => Ok(features),
    }
}

/// The most probable next tokens with their probabilities.
fn chosen_logits(logits: &[f32], settings: &GraphSettings) -> Vec<(u32, f64)> {
    let mut order: Vec<(u32, f64)> = endoscope_causal::log_softmax(logits)
        .into_iter()
        .enumerate()
        .map(|(token, p)| (token as u32, p.exp()))
        .collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut sum = 0.;
    let enough = order.iter().position(|&(_, probability)| {
        sum += probability;
        sum >= settings.desired_logit_prob
    });
    order.truncate(enough.map_or(order.len(), |last| last + 1).min(settings.max_n_logits.max(1)));
    order
}

/// How much the logits owe to each source, through the targets whose edges are known.
fn partial_influence(rows: &[(Option<usize>, Vec<f32>)], logits: &[f64], features: usize, sources: usize) -> Vec<f64> {
    let mut normalized: Vec<(Option<usize>, Vec<f64>)> = Vec::with_capacity(rows.len());
    for (target, row) in rows {
        let total: f64 = row.iter().map(|x| f64::from(x.abs())).sum();
        let scale = if total > 0. { 1. / total } else { 0. };
        normalized.push((*target, row.iter().map(|x| f64::from(x.abs()) * scale).collect()));
    }
    influences(&normalized, logits, features, sources)
}
