//! `endoscope dict graph`: the attribution graph of one prompt over transcoders.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_dictionary::attribution::{
    Frozen, Graph, GraphNames, GraphSettings, Node, Pruned, Transcoders, attribute, graph_json, prune,
};
use endoscope_dictionary::formats::{self, Contents};
use endoscope_models::Model;
use endoscope_net::Network;
use endoscope_report::{HashedFile, Report, RunDirectory, Section, Started, Table, labels};
use serde_json::json;

use super::source::{files, open_one};
use crate::input::{self, BosArguments, ModelArgument};
use crate::output::Output;
use crate::progress;
use crate::provenance::{next_free, provenance};

#[derive(Debug, Args)]
pub struct AttributionGraph {
    #[command(flatten)]
    model: ModelArgument,
    /// Transcoders, one for the MLP of each layer: directories of one or several; or the directory of one cross-layer transcoder.
    #[arg(long = "transcoders", value_name = "PATH", required = true)]
    transcoders: Vec<PathBuf>,
    /// The prompt.
    #[arg(long)]
    prompt: String,
    /// What the graph is called; the name of its file.
    #[arg(long, default_value = "graph")]
    slug: String,
    /// The most logits.
    #[arg(long, default_value_t = GraphSettings::default().max_n_logits)]
    max_n_logits: usize,
    /// Logits are taken until their probabilities reach this sum.
    #[arg(long, default_value_t = GraphSettings::default().desired_logit_prob)]
    desired_logit_prob: f64,
    /// The most features.
    #[arg(long, default_value_t = GraphSettings::default().max_feature_nodes)]
    max_feature_nodes: usize,
    /// How many targets are traced back together: the prompt is run as many times at once.
    #[arg(long, default_value_t = GraphSettings::default().batch_size)]
    batch_size: usize,
    /// The share of influence that nodes are kept for.
    #[arg(long, default_value_t = 0.8)]
    node_threshold: f64,
    /// The share of influence that edges are kept for.
    #[arg(long, default_value_t = 0.98)]
    edge_threshold: f64,
    #[command(flatten)]
    bos: BosArguments,
    /// The run directory to write; must not exist [default: runs/dict-graph, or the next free].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl AttributionGraph {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.model.open()?;
        let transcoders = opened(&model.decoder, &self.transcoders)?;
        let prompt = input::text(&model, &self.prompt, self.bos, output)?;
        let network = &model.decoder;
        let frozen = Frozen::new(network, &transcoders, &prompt.ids)?;
        let settings = GraphSettings {
            max_n_logits: self.max_n_logits,
            desired_logit_prob: self.desired_logit_prob,
            max_feature_nodes: self.max_feature_nodes,
            batch_size: self.batch_size,
        };
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("dict-graph")))?;
        let bar = progress::bar(0, "tracing back");
        let graph = attribute(network, &transcoders, &frozen, &settings, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        let graph = graph?;
        let pruned = prune(&graph, self.node_threshold, self.edge_threshold);
        let names = GraphNames {
            slug: &self.slug,
            scan: &model.directory.file_name().unwrap_or_default().to_string_lossy(),
            prompt: &self.prompt,
            layers: model.spec().layers,
            settings,
            node_threshold: self.node_threshold,
            edge_threshold: self.edge_threshold,
        };
        let value = graph_json(&graph, &pruned, &names, |token| model.label(token));
        directory.write_json(&format!("{}.json", self.slug), &value)?;
        directory.write_json("graph-metadata.json", &json!({"graphs": [value["metadata"]]}))?;
        let report = report(&self.prompt, &graph, &pruned, &model)?;
        let mut provenance = provenance(&started, &model, &[])?;
        for path in &self.transcoders {
            for file in files(path)? {
                provenance.files.push(HashedFile::read("transcoder", &file).context("a transcoder's file")?);
            }
        }
        output.finish(directory, &provenance, &report)
    }
}

/// The transcoders at these paths: one for each layer, or one across them.
fn opened(network: &dyn Network, paths: &[PathBuf]) -> Result<Transcoders> {
    let mut dictionaries = Vec::new();
    for path in paths {
        match formats::open(path)?.contents {
            Contents::Dictionary(dictionary) => dictionaries.push(*dictionary),
            Contents::Set(members) => {
                for member in &members {
                    dictionaries.push(open_one(member)?);
                }
            }
            Contents::CrossLayer(transcoder) => {
                if paths.len() > 1 {
                    bail!("{} is a cross-layer transcoder, which stands for all MLPs: give no others", path.display());
                }
                return Ok(Transcoders::cross_layer(network, *transcoder)?);
            }
        }
    }
    Ok(Transcoders::new(network, dictionaries)?)
}

fn named(node: &Node, model: &Model) -> String {
    match node {
        Node::Feature(feature) => {
            format!("feature {}, layer {}, position {}", feature.feature, feature.layer, feature.position)
        }
        Node::Error { layer, position, .. } => format!("error, layer {layer}, position {position}"),
        Node::Token { position, token } => format!("token {:?}, position {position}", model.label(*token)),
        Node::Logit { token, probability } => format!("logit {:?} (p = {probability:.3})", model.label(*token)),
    }
}

/// The strongest edges that were kept.
fn report(prompt: &str, graph: &Graph, pruned: &Pruned, model: &Model) -> Result<Report> {
    const MOST: usize = 30;
    let kept = pruned.nodes.iter().filter(|&&kept| kept).count();
    let features = graph.nodes.iter().filter(|node| matches!(node, Node::Feature(_))).count();
    let summary = format!(
        "{prompt:?}: {} features are active, {features} are in the graph; {kept} of {} nodes and {} edges are kept.",
        graph.active_features,
        graph.nodes.len(),
        pruned.edges.len()
    );
    let mut report = Report::new("An attribution graph", "dict-graph", summary);
    let mut edges: Vec<(usize, usize, f32)> =
        pruned.edges.iter().map(|&(target, source)| (target, source, graph.edges.row(target)[source])).collect();
    edges.sort_by(|a, b| b.2.abs().total_cmp(&a.2.abs()));
    edges.truncate(MOST);
    if edges.is_empty() {
        return Ok(report);
    }
    let name = |&(target, source, _): &(usize, usize, f32)| {
        format!("{} → {}", named(&graph.nodes[source], model), named(&graph.nodes[target], model))
    };
    let axes = [("edge", labels(edges.iter().map(name).collect::<Vec<_>>())), ("weight", labels(["weight"]))];
    let values = edges.iter().map(|&(.., weight)| f64::from(weight)).collect();
    report.tables.insert("edges".into(), Table::new("the strongest edges", axes, values)?);
    report.sections.push(Section::Table {
        heading: Some("The strongest edges".into()),
        table: "edges".into(),
        caption:
            "How much the source adds to the target's activation, or to the logit less the mean logit, with attention \
                  patterns and norms held."
                .into(),
    });
    Ok(report)
}
