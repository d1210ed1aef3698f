//! The nodes of a graph and the edges between them.

use candle_core::Tensor;
use endoscope_net::Network;
use serde::{Deserialize, Serialize};

use super::frozen::{Frozen, Transcoders, last_logits};
use super::prune::influences;
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
    /// How many targets' edges are found in one run.
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
    /// What a layer's transcoder does not explain at a position.
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
    /// `[nodes, nodes]`: row `target`, column `source`; how much the source adds to the target's pre-activation or logit (less
    /// the mean logit).
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

    let mut finder = Finder { network, transcoders, frozen, features: &features, batch: settings.batch_size.max(1) };
    let logit_targets: Vec<Target> = logits.iter().map(|&(token, _)| Target::Logit(token)).collect();
    let mut rows: Vec<(Option<usize>, Vec<f32>)> =
        finder.edges(&logit_targets)?.into_iter().map(|row| (None, row)).collect();
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
        order.truncate(finder.batch.min(wanted - found));
        let next: Vec<Target> = order.iter().map(|&feature| Target::Feature(feature)).collect();
        let edges = finder.edges(&next)?;
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
    let writes = |scale: f32, vector: &[f32]| vector.iter().map(|x| -scale * x).collect::<Vec<f32>>();
    let edit = match *source {
        Node::Feature(Feature { transcoder, position, feature, activation, .. }) => {
            let layer = &transcoders.layers[transcoder];
            Frozen::adding(&layer.output, position, writes(activation, &layer.transcoder.direction(feature)?))?
        }
        Node::Error { transcoder, position, .. } => {
            let vector = writes(1., frozen.errors[transcoder].row(position));
            Frozen::adding(&transcoders.layers[transcoder].output, position, vector)?
        }
        Node::Token { position, .. } => {
            Frozen::adding(&frozen.embedding, position, writes(1., frozen.embedded.row(position)))?
        }
        Node::Logit { .. } => return Err(Error::Measure("a logit is no source".into())),
    };
    let value = |edits| -> Result<f64> {
        let run = frozen.run(network, transcoders, 1, false, edits)?;
        let target = match *target {
            Node::Feature(Feature { transcoder, position, feature, .. }) => {
                Target::Encoded { transcoder, position, feature }
            }
            Node::Logit { token, .. } => Target::Logit(token),
            _ => return Err(Error::Measure("errors and tokens are no targets".into())),
        };
        Ok(f64::from(target.value(transcoders, &run, 0)?.to_scalar::<f32>()?))
    };
    Ok(value(Vec::new())? - value(vec![edit])?)
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

/// What edges lead to.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// One of the features, by its place in the list.
    Feature(usize),
    /// A feature, in the prompt or not.
    Encoded {
        transcoder: usize,
        position: usize,
        feature: usize,
    },
    Logit(u32),
}

impl Target {
    fn value(self, transcoders: &Transcoders, run: &endoscope_net::Run, row: usize) -> Result<Tensor> {
        match self {
            Self::Encoded { transcoder, position, feature } => {
                let layer = &transcoders.layers[transcoder];
                let x = run.captured.get(&layer.input)?.get(row)?.get(position)?.flatten_all()?;
                let direction = layer.transcoder.weights().encoder.row(feature);
                let direction = Tensor::from_slice(direction, direction.len(), x.device())?;
                Ok((x * direction)?.sum_all()?)
            }
            Self::Logit(token) => {
                let logits = last_logits(run, row)?;
                Ok((logits.get(token as usize)? - logits.mean_all()?)?)
            }
            Self::Feature(_) => {
                Err(Error::Measure("a feature of the list has no place in the prompt by itself".into()))
            }
        }
    }
}

struct Finder<'a> {
    network: &'a dyn Network,
    transcoders: &'a Transcoders,
    frozen: &'a Frozen,
    features: &'a [Feature],
    batch: usize,
}

impl Finder<'_> {
    /// For each target what each source adds: features, errors (layer by layer), tokens.
    fn edges(&mut self, targets: &[Target]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        for targets in targets.chunks(self.batch) {
            let run = self.frozen.run(self.network, self.transcoders, targets.len(), true, Vec::new())?;
            let values = targets.iter().enumerate().map(|(row, &target)| {
                let target = match target {
                    Target::Feature(at) => {
                        let Feature { transcoder, position, feature, .. } = self.features[at];
                        Target::Encoded { transcoder, position, feature }
                    }
                    other => other,
                };
                target.value(self.transcoders, &run, row)
            });
            // The rows do not know of each other: one backward pass of the sum gives the gradients of all.
            let sum = Tensor::stack(&values.collect::<Result<Vec<_>>>()?, 0)?.sum_all()?;
            let gradients = run.gradients(&sum)?;
            let of = |site: &str| -> Result<Vec<Matrix>> {
                let gradient = gradients.get(site)?;
                (0..targets.len()).map(|row| Matrix::from_tensor(&gradient.get(row)?)).collect()
            };
            let outputs =
                self.transcoders.layers.iter().map(|layer| of(&layer.output)).collect::<Result<Vec<Vec<Matrix>>>>()?;
            let embeddings = of(&self.frozen.embedding)?;
            for row in 0..targets.len() {
                all.push(self.row(&outputs, &embeddings, row)?);
            }
        }
        Ok(all)
    }

    fn row(&self, outputs: &[Vec<Matrix>], embeddings: &[Matrix], row: usize) -> Result<Vec<f32>> {
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let mut edges = Vec::with_capacity(self.features.len() + (outputs.len() + 1) * self.frozen.tokens.len());
        for &Feature { transcoder, position, feature, activation, .. } in self.features {
            let dictionary = &self.transcoders.layers[transcoder].transcoder;
            edges.push(activation * product(outputs[transcoder][row].row(position), &dictionary.direction(feature)?));
        }
        for (errors, gradients) in self.frozen.errors.iter().zip(outputs) {
            edges.extend(errors.iter().zip(gradients[row].iter()).map(|(error, gradient)| product(error, gradient)));
        }
        edges.extend(self.frozen.embedded.iter().zip(embeddings[row].iter()).map(|(x, gradient)| product(x, gradient)));
        Ok(edges)
    }
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
