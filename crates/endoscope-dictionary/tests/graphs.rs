//! Attribution graphs: over transcoders of each layer, with skips, and across layers; beside circuit-tracer.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor};
use common::{model, rows, whole, width};
use endoscope_dictionary::attribution::{
    Feature, Frozen, Graph, GraphNames, GraphSettings, Node, Transcoders, attribute, graph_json, measure, prune,
    value_without,
};
use endoscope_dictionary::formats::{Contents, open};
use endoscope_dictionary::{Activation, Config, CrossLayerTranscoder, Dictionary, Magnitude, Matrix, Weights};
use endoscope_models::Model;
use endoscope_net::{Inputs, Network, Plan};
use serde_json::Value;

/// An edge, or a sum of edges, beside the same by other f32 operations, relative to one more than its size.
const TOLERANCE: f64 = 1e-3;
/// The same beside circuit-tracer: what differs is the order of sums.
const BESIDE_CIRCUIT_TRACER: f64 = 1e-4;

/// LayerNorm, and RMSNorm.
const MODELS: [&str; 2] = ["gpt2-odd", "llama-grouped"];
const KINDS: [Kind; 3] = [Kind::Plain, Kind::Skip, Kind::CrossLayer];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Skip,
    CrossLayer,
}

fn numbers(rows: usize, columns: usize, seed: usize, size: f32) -> Matrix {
    let value = |at: usize| ((((at + 31 * seed) * 7919) % 1009) as f32 / 1009. - 0.5) * 2. * size;
    Matrix::new(rows, columns, (0..rows * columns).map(value).collect()).unwrap()
}

/// One for each of the first `layers`, with latents of another kind in each.
fn dictionaries(network: &dyn Network, layers: usize, latents: usize, kind: Kind) -> Vec<Dictionary> {
    let transcoder = |layer: usize| {
        let (input, output) = (format!("blocks.{layer}.hook_mlp_in"), format!("blocks.{layer}.hook_mlp_out"));
        let (d_in, width) = (width(network, &input), width(network, &output));
        let d_out = if kind == Kind::CrossLayer { (layers - layer) * width } else { width };
        let mut bias = vec![0.05; width];
        bias.resize(d_out, 0.);
        let weights = Weights {
            encoder: numbers(latents, d_in, layer, 0.7),
            encoder_bias: vec![-0.2; latents],
            decoder: numbers(latents, d_out, layer + 50, 0.3),
            decoder_bias: bias,
            threshold: (layer == 2).then(|| vec![0.1; latents]),
            skip: (kind == Kind::Skip).then(|| numbers(d_out, d_in, layer + 80, 0.3)),
            ..Weights::default()
        };
        let activation = match layer {
            0 => Activation::Relu,
            1 => Activation::TopK { k: 3, by_decoder_norm: false },
            _ => Activation::JumpRelu,
        };
        let config = Config { sites: vec![input], output_site: Some(output), activation, ..Config::default() };
        Dictionary::new(config, weights).unwrap()
    };
    (0..layers).map(transcoder).collect()
}

fn together(network: &dyn Network, dictionaries: Vec<Dictionary>, kind: Kind) -> Transcoders {
    match kind {
        Kind::CrossLayer => {
            Transcoders::cross_layer(network, CrossLayerTranscoder::new(dictionaries).unwrap()).unwrap()
        }
        _ => Transcoders::new(network, dictionaries).unwrap(),
    }
}

/// A model, transcoders in it, and one prompt.
struct Traced {
    model: Model,
    transcoders: Transcoders,
    frozen: Frozen,
    graph: Graph,
}

impl Traced {
    fn new(name: &str, kind: Kind, change: impl Fn(usize, &mut Weights)) -> Self {
        Self::with(name, kind, |layer, config, mut weights| {
            change(layer, &mut weights);
            (config, weights)
        })
    }

    fn with(name: &str, kind: Kind, change: impl Fn(usize, Config, Weights) -> (Config, Weights)) -> Self {
        let model = model(name);
        let network = &model.decoder;
        let changed = |(layer, dictionary): (usize, Dictionary)| {
            let (config, weights) = dictionary.into_parts();
            let (config, weights) = change(layer, config, weights);
            Dictionary::new(config, weights).unwrap()
        };
        let dictionaries = dictionaries(network, model.spec().layers, 12, kind).into_iter().enumerate().map(changed);
        let transcoders = together(network, dictionaries.collect(), kind);
        let frozen = Frozen::new(network, &transcoders, &rows(network)[0]).unwrap();
        let graph = graph(network, &transcoders, &frozen, &settings());
        Self { model, transcoders, frozen, graph }
    }

    fn targets(&self) -> impl Iterator<Item = (usize, &Node)> {
        let is_target = |node: &Node| matches!(node, Node::Feature(_) | Node::Logit { .. });
        self.graph.nodes.iter().enumerate().filter(move |(_, node)| is_target(node))
    }

    fn sources(&self) -> &[Node] {
        let logits = self.graph.nodes.iter().filter(|node| matches!(node, Node::Logit { .. })).count();
        &self.graph.nodes[..self.graph.nodes.len() - logits]
    }
}

fn settings() -> GraphSettings {
    GraphSettings { max_n_logits: 3, batch_size: 7, ..GraphSettings::default() }
}

fn graph(network: &dyn Network, transcoders: &Transcoders, frozen: &Frozen, settings: &GraphSettings) -> Graph {
    attribute(network, transcoders, frozen, settings, |_, _| ControlFlow::Continue(())).unwrap()
}

fn names<'a>(scan: &'a str, model: &Model, settings: GraphSettings) -> GraphNames<'a> {
    let layers = model.spec().layers;
    GraphNames { slug: "test", scan, prompt: "…", layers, settings, node_threshold: 0.8, edge_threshold: 0.98 }
}

fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() < tolerance * (1. + expected.abs())
}

#[test]
fn every_edge_of_a_graph_is_the_measured_change() {
    for name in MODELS {
        for kind in KINDS {
            let traced = Traced::new(name, kind, |_, _| ());
            let Traced { model, transcoders, frozen, graph } = &traced;
            let (mut checked, mut largest) = (0, 0f64);
            for (target, node) in traced.targets() {
                let without =
                    |sources: &[Node]| value_without(&model.decoder, transcoders, frozen, sources, node).unwrap();
                let with_all = without(&[]);
                for (source, from) in traced.sources().iter().enumerate() {
                    let edge = f64::from(graph.edges.row(target)[source]);
                    // A sample of all edges, and every large one.
                    if edge.abs() < 0.05 && (target * 31 + source) % 29 != 0 {
                        continue;
                    }
                    let measured = with_all - without(&[*from]);
                    let same = close(edge, measured, TOLERANCE);
                    assert!(same, "{name} {kind:?}: {edge} from {from:?} to {node:?}, measured {measured}");
                    if checked == 0 {
                        assert_eq!(measure(&model.decoder, transcoders, frozen, from, node).unwrap(), measured);
                    }
                    checked += 1;
                    largest = largest.max(edge.abs());
                }
            }
            assert!(checked > 200 && largest > 0.05, "{name} {kind:?}: {checked} edges, up to {largest}");
        }
    }
}

impl Traced {
    /// What all sources add, and what is there without any, is what the network itself computes.
    fn check_sums(&self, case: &str) {
        let Self { model, transcoders, frozen, graph } = self;
        let tokens = Inputs::tokens(vec![graph.tokens.clone()]).unwrap();
        let logits = model.decoder.run(&tokens, &Plan::default()).unwrap().outputs.get(0).unwrap();
        let logits = logits.get(graph.tokens.len() - 1).unwrap().to_vec1::<f32>().unwrap();
        let mean = logits.iter().map(|&logit| f64::from(logit)).sum::<f64>() / logits.len() as f64;
        for (target, node) in self.targets() {
            let edges: f64 = graph.edges.row(target).iter().map(|&edge| f64::from(edge)).sum();
            let without = value_without(&model.decoder, transcoders, frozen, self.sources(), node).unwrap();
            let (bias, expected) = match *node {
                Node::Feature(Feature { transcoder, feature, activation, .. }) => {
                    let dictionary = transcoders.get(transcoder);
                    let Weights { encoder_bias, magnitude, .. } = dictionary.weights();
                    let bias = match (dictionary.config().activation, magnitude) {
                        (_, Some(magnitude)) => magnitude.bias[feature],
                        (Activation::TopK { by_decoder_norm: true, .. }, _) => {
                            encoder_bias[feature] * dictionary.decoder_norms()[feature]
                        }
                        _ => encoder_bias[feature],
                    };
                    (bias, f64::from(activation))
                }
                Node::Logit { token, .. } => (0., f64::from(logits[token as usize]) - mean),
                _ => unreachable!(),
            };
            let found = edges + without + f64::from(bias);
            assert!(
                close(found, expected, TOLERANCE),
                "{case}: {found} are {edges} of sources and {without} without them, {expected} at {node:?}"
            );
        }
    }
}

#[test]
fn edges_and_biases_sum_to_activations_and_logits() {
    for name in MODELS {
        for kind in KINDS {
            Traced::new(name, kind, |_, _| ()).check_sums(&format!("{name} {kind:?}"));
        }
    }
}

/// Latents that are scaled after they are chosen: their edges are in units of their activations.
#[test]
fn edges_are_in_units_of_activations() {
    for kind in KINDS {
        let scaled = |by_decoder_norm: bool| {
            Traced::with("llama-grouped", kind, |layer, config, mut weights| {
                let activation = match layer {
                    1 => {
                        let (rescale, bias) = (numbers(1, 12, 9, 0.5), numbers(1, 12, 10, 0.1));
                        let [rescale, bias] = [rescale, bias].map(|row| row.values().to_vec());
                        weights.magnitude = Some(Magnitude { rescale, bias });
                        Activation::Gated
                    }
                    _ => {
                        weights.threshold = None;
                        if !by_decoder_norm {
                            weights.fold_decoder_norms();
                        }
                        Activation::TopK { k: 4, by_decoder_norm }
                    }
                };
                (Config { activation, ..config }, weights)
            })
        };
        let traced = scaled(true);
        traced.check_sums(&format!("{kind:?}"));
        // The same with decoder rows of length 1.
        let folded = scaled(false).graph;
        assert_eq!(traced.graph.nodes.len(), folded.nodes.len(), "{kind:?}");
        for (found, expected) in traced.graph.edges.values().iter().zip(folded.edges.values()) {
            assert!(close(f64::from(*found), f64::from(*expected), BESIDE_CIRCUIT_TRACER), "{kind:?}");
        }
    }
}

/// The same features, with other edges between them.
fn largest_change(a: &Graph, b: &Graph) -> f32 {
    assert_eq!(a.nodes, b.nodes);
    let features = a.nodes.iter().filter(|node| matches!(node, Node::Feature(_))).count();
    let differences = (0..features).flat_map(|target| {
        let pairs = a.edges.row(target)[..features].iter().zip(&b.edges.row(target)[..features]);
        pairs.map(|(a, b)| (a - b).abs())
    });
    differences.fold(0., f32::max)
}

#[test]
fn edges_lead_through_skips_and_into_later_layers() {
    for name in MODELS {
        let plain = Traced::new(name, Kind::Plain, |_, _| ()).graph;
        let skip = Traced::new(name, Kind::Skip, |_, _| ()).graph;
        assert!(largest_change(&plain, &skip) > 0.05, "{name}: a skip changes edges between features");
        let zeros = |_: usize, weights: &mut Weights| {
            weights.skip = Some(Matrix::zeros(weights.decoder.columns(), weights.encoder.columns()));
        };
        assert_eq!(Traced::new(name, Kind::Skip, zeros).graph, plain, "{name}: a skip of zeros is none");

        // A cross-layer transcoder that writes to its own layer alone is one of each layer.
        let width = width(&model(name).decoder, "mlp_out.0");
        let own = |layer: usize, weights: &mut Weights| {
            let latents = weights.decoder.rows();
            let plain = numbers(latents, width, layer + 50, 0.3);
            for latent in 0..latents {
                let row = weights.decoder.row_mut(latent);
                row.fill(0.);
                row[..width].copy_from_slice(plain.row(latent));
            }
        };
        let narrow = Traced::new(name, Kind::CrossLayer, own).graph;
        assert_eq!(largest_change(&plain, &narrow), 0., "{name}");
        assert_eq!(narrow, plain, "{name}");
        let wide = |layer: usize, weights: &mut Weights| {
            own(layer, weights);
            let all = numbers(weights.decoder.rows(), weights.decoder.columns(), layer + 90, 0.3);
            for latent in 0..all.rows() {
                weights.decoder.row_mut(latent)[width..].copy_from_slice(&all.row(latent)[width..]);
            }
        };
        let wide = Traced::new(name, Kind::CrossLayer, wide).graph;
        assert!(largest_change(&plain, &wide) > 0.05, "{name}: what is written in later layers changes edges");
    }
}

#[test]
fn fewer_features_keep_their_edges() {
    for kind in KINDS {
        let traced = Traced::new("llama-grouped", kind, |_, _| ());
        let Traced { model, transcoders, frozen, graph: all } = &traced;
        let few = GraphSettings { max_feature_nodes: 9, batch_size: 4, ..settings() };
        let few = graph(&model.decoder, transcoders, frozen, &few);
        assert_eq!(few.active_features, all.active_features);
        assert_eq!(few.nodes.iter().filter(|node| matches!(node, Node::Feature(_))).count(), 9);
        let place = |node: &Node| all.nodes.iter().position(|other| other == node).unwrap();
        let places: Vec<usize> = few.nodes.iter().map(place).collect();
        for (target, &target_in_all) in places.iter().enumerate() {
            for (source, &source_in_all) in places.iter().enumerate() {
                let (found, expected) = (few.edges.row(target)[source], all.edges.row(target_in_all)[source_in_all]);
                assert!((found - expected).abs() < 1e-5, "{kind:?}: {found}, not {expected}");
            }
        }
    }
}

#[test]
fn pruned_graphs_are_json_with_unique_ids() {
    for (name, kind) in MODELS.iter().flat_map(|name| KINDS.map(|kind| (*name, kind))) {
        let Traced { model, graph, .. } = Traced::new(name, kind, |_, _| ());
        let pruned = prune(&graph, 0.8, 0.98);
        let kept = pruned.nodes.iter().filter(|&&kept| kept).count();
        assert!(kept < graph.nodes.len() && !pruned.edges.is_empty());
        assert!(pruned.edges.iter().all(|&(target, source)| pruned.nodes[target] && pruned.nodes[source]));
        let all = prune(&graph, 1., 1.);
        assert!(all.edges.len() >= pruned.edges.len());
        let json = graph_json(&graph, &pruned, &names(name, &model, settings()), |token| format!("t{token}"));
        let ids: BTreeSet<&str> =
            json["nodes"].as_array().unwrap().iter().map(|node| node["node_id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), kept, "ids are unique");
        for link in json["links"].as_array().unwrap() {
            assert!(ids.contains(link["source"].as_str().unwrap()) && ids.contains(link["target"].as_str().unwrap()));
        }
    }
}

#[test]
fn what_a_graph_cannot_be_made_of_is_refused() {
    let model = model("gpt2-odd");
    let network = &model.decoder;
    let layers = model.spec().layers;
    let of = |count: usize, kind: Kind| dictionaries(network, count, 5, kind);
    let mut missing = of(layers, Kind::Plain);
    missing.pop();
    let missing = Transcoders::new(network, missing).unwrap();
    let error = Frozen::new(network, &missing, &[1, 2, 3]).unwrap_err().to_string();
    assert!(error.contains("needs one for each layer"), "{error}");

    let fails = |result: Result<Transcoders, endoscope_dictionary::Error>, reason: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    fails(Transcoders::new(network, [of(1, Kind::Plain), of(1, Kind::Plain)].concat()), "two transcoders");
    fails(Transcoders::new(network, Vec::new()), "no transcoder");
    let autoencoder = whole("resid_post.0", width(network, "resid_post.0"));
    fails(Transcoders::new(network, vec![autoencoder]), "read one site and write another");
    // One layer of a cross-layer transcoder is none of a layer by itself.
    fails(Transcoders::new(network, of(2, Kind::CrossLayer)), "writes 40 dimensions, not 1 · 20");

    let across = |transcoders: Vec<Dictionary>| {
        CrossLayerTranscoder::new(transcoders).and_then(|transcoder| Transcoders::cross_layer(network, transcoder))
    };
    let skips = of(1, Kind::Skip);
    fails(across(skips), "layer 0 of the cross-layer transcoder has a skip");
    let mut exchanged = of(2, Kind::CrossLayer);
    let (mut first, mut second) = (exchanged.remove(0).into_parts(), exchanged.remove(0).into_parts());
    std::mem::swap(&mut first.0.output_site, &mut second.0.output_site);
    std::mem::swap(&mut first.0.sites, &mut second.0.sites);
    let exchanged = [first, second].map(|(config, weights)| {
        let config = Config { activation: Activation::Relu, ..config };
        Dictionary::new(config, weights).unwrap()
    });
    fails(across(exchanged.to_vec()), "layer 0 of the cross-layer transcoder writes blocks.1.hook_mlp_out");
}

/// The transcoders of a folder as circuit-tracer keeps them.
fn opened(network: &dyn Network, folder: &Path) -> Transcoders {
    match open(folder).unwrap().contents {
        Contents::CrossLayer(transcoder) => Transcoders::cross_layer(network, *transcoder).unwrap(),
        Contents::Set(paths) => {
            let dictionaries = paths.iter().map(|path| open(path).unwrap().dictionary(path).unwrap());
            Transcoders::new(network, dictionaries.collect()).unwrap()
        }
        Contents::Dictionary(_) => panic!("{} is a set", folder.display()),
    }
}

/// A graph that circuit-tracer has made too.
struct Golden {
    model: Model,
    graph: Graph,
    settings: GraphSettings,
    arrays: HashMap<String, Tensor>,
}

impl Golden {
    fn open(name: &str, kind: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/graphs/{name}-{kind}"));
        let arrays = candle_core::safetensors::load(folder.join("graph.safetensors"), &Device::Cpu).unwrap();
        let model = model(name);
        let network = &model.decoder;
        let transcoders = opened(network, &folder);
        let tokens: Vec<u32> = list(&arrays["tokens"]).into_iter().map(|token| token as u32).collect();
        let frozen = Frozen::new(network, &transcoders, &tokens).unwrap();
        let settings = GraphSettings { max_n_logits: 4, desired_logit_prob: 1., ..GraphSettings::default() };
        let graph = graph(network, &transcoders, &frozen, &settings);
        Self { model, graph, settings, arrays }
    }
}

fn list(tensor: &Tensor) -> Vec<i64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Both have the same nodes with the same activations, and the same edges between them.
#[test]
fn graphs_are_those_of_circuit_tracer() {
    for name in ["gpt2-odd", "llama-sharded"] {
        for kind in ["plain", "skip", "cross-layer"] {
            let case = format!("{name}-{kind}");
            let Golden { model, graph, arrays, .. } = Golden::open(name, kind);
            let tokens = &graph.tokens;

            // Where circuit-tracer has each node: features, errors layer by layer, tokens, logits.
            let mut theirs: HashMap<String, usize> = HashMap::new();
            let mut add = |node: String| {
                theirs.insert(node, theirs.len());
            };
            let features = list(&arrays["features"]);
            for feature in features.chunks(3) {
                add(format!("feature {} {} {}", feature[0], feature[1], feature[2]));
            }
            for layer in 0..model.spec().layers {
                (0..tokens.len()).for_each(|position| add(format!("error {layer} {position}")));
            }
            (0..tokens.len()).for_each(|position| add(format!("token {position}")));
            let logits = list(&arrays["logits"]);
            logits.iter().for_each(|token| add(format!("logit {token}")));
            assert_eq!(theirs.len(), graph.nodes.len(), "{case}");

            let (activations, probabilities) = (floats(&arrays["activations"]), floats(&arrays["probabilities"]));
            let first_logit = theirs.len() - logits.len();
            let place = |node: &Node| match *node {
                Node::Feature(Feature { layer, position, feature, activation, .. }) => {
                    let at = theirs[&format!("feature {layer} {position} {feature}")];
                    assert!((activation - activations[at]).abs() < 1e-4, "{case}: {node:?}, {}", activations[at]);
                    at
                }
                Node::Error { layer, position, .. } => theirs[&format!("error {layer} {position}")],
                Node::Token { position, .. } => theirs[&format!("token {position}")],
                Node::Logit { token, probability } => {
                    let at = theirs[&format!("logit {token}")];
                    let expected = f64::from(probabilities[at - first_logit]);
                    assert!((probability - expected).abs() < 1e-5, "{case}: {node:?}, {expected}");
                    at
                }
            };
            let places: Vec<usize> = graph.nodes.iter().map(place).collect();
            let edges = floats(&arrays["adjacency"]);
            let mut largest = 0f64;
            for (target, &target_there) in places.iter().enumerate() {
                for (source, &source_there) in places.iter().enumerate() {
                    // Ours have the position in them, where it is learned; circuit-tracer's have not.
                    if name == "gpt2-odd" && matches!(graph.nodes[source], Node::Token { .. }) {
                        continue;
                    }
                    let found = f64::from(graph.edges.row(target)[source]);
                    let expected = f64::from(edges[target_there * places.len() + source_there]);
                    assert!(
                        close(found, expected, BESIDE_CIRCUIT_TRACER),
                        "{case}: {found}, not {expected}, from {:?} to {:?}",
                        graph.nodes[source],
                        graph.nodes[target]
                    );
                    largest = largest.max(expected.abs());
                }
            }
            assert!(largest > 0.5, "{case}: {largest}");
        }
    }
}

/// Nodes and links as circuit-tracer writes them into its page's file, after its own pruning.
#[test]
fn pruned_graphs_are_those_of_circuit_tracer() {
    for kind in ["plain", "skip", "cross-layer"] {
        let case = format!("llama-sharded-{kind}");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/graphs").join(&case);
        let expected: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("graph.json")).unwrap()).unwrap();
        let Golden { model, graph, settings, .. } = Golden::open("llama-sharded", kind);
        let names = names("llama-sharded", &model, settings);
        let found = graph_json(&graph, &prune(&graph, 0.8, 0.98), &names, |token| token.to_string());

        // Theirs has error nodes with ids of features.
        let theirs = |id: &Value| id.as_str().unwrap().replace("E0_", "0_");
        let links = |graph: &Value| -> BTreeMap<[String; 2], Vec<f64>> {
            let mut links: BTreeMap<_, Vec<f64>> = BTreeMap::new();
            for link in graph["links"].as_array().unwrap() {
                let ends = [&link["source"], &link["target"]].map(theirs);
                links.entry(ends).or_default().push(link["weight"].as_f64().unwrap());
            }
            links.values_mut().for_each(|weights| weights.sort_by(f64::total_cmp));
            links
        };
        let (ours, others) = (links(&found), links(&expected));
        assert!(ours.len() > 50 && ours.keys().eq(others.keys()), "{case}: {ours:?}, not {others:?}");
        for (ours, others) in ours.values().flatten().zip(others.values().flatten()) {
            assert!(close(*ours, *others, BESIDE_CIRCUIT_TRACER), "{case}: {ours}, not {others}");
        }

        let nodes = |graph: &Value| -> BTreeMap<String, Value> {
            let name = |node: &Value| format!("{} {}", node["feature_type"], node["jsNodeId"]);
            let nodes = graph["nodes"].as_array().unwrap().iter();
            nodes.map(|node| (format!("{} {}", name(node), node["ctx_idx"]), node.clone())).collect()
        };
        let (ours, others) = (nodes(&found), nodes(&expected));
        assert!(ours.len() > 15 && ours.keys().eq(others.keys()), "{case}: {ours:?}, not {others:?}");
        for (name, other) in &others {
            for (key, value) in other.as_object().unwrap() {
                let found = &ours[name][key];
                let same = match (key.as_str(), value) {
                    ("node_id", value) => theirs(found) == theirs(value),
                    ("influence" | "activation" | "token_prob", Value::Number(number)) => {
                        let number = number.as_f64().unwrap();
                        found.as_f64().is_some_and(|found| close(found, number, BESIDE_CIRCUIT_TRACER))
                    }
                    // Ours has what circuit-tracer leaves to its page.
                    ("clerp", value) => value == "" || found == value,
                    ("activation", Value::Null) => found.is_null(),
                    (_, value) => found == value,
                };
                assert!(same, "{case}: {name}: {key} is {found}, not {value}");
            }
        }
    }
}
