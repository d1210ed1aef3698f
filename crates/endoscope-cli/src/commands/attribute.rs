//! `endoscope attribute`: which parts matter, by direct attribution, by gradients, or edge by edge.

mod report;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::{
    EdgeMethod, EdgeSweep, Estimate, Metric, Planner, Sweep, SweepAxis, SweepChange, direct, edge_scores, estimate,
    sweep,
};
use endoscope_report::Started;
use serde_json::json;

use crate::input::ModelArgument;
use crate::intervals::IntervalArguments;
use crate::output::Output;
use crate::pair_arguments::{DirectionArgument, PairArguments, RunWriter, watching};
use crate::progress;

#[derive(Debug, Args)]
pub struct Attribute {
    #[command(flatten)]
    model: ModelArgument,
    #[command(flatten)]
    pairs: PairArguments,
    /// How. direct: what each part writes of the logit difference by itself. gradient, integrated: estimates of a patching
    /// sweep. eap, eap-ig, eap-ig-writes: estimates for every edge. edges: every edge patched.
    #[arg(long, value_enum, default_value = "direct")]
    method: Method,
    /// The site of a sweep that is estimated: resid_pre, z, mlp_out, mlp.post …
    #[arg(long, default_value = "z")]
    site: String,
    /// The axes of its table, separated by commas: layer, position, head, neuron, key, pair.
    #[arg(long, value_delimiter = ',', default_value = "layer,head")]
    over: Vec<SweepAxis>,
    /// What is done at each point: patch (from the other run), zero (minus gradient x input), mean, or JSON as in a plan.
    #[arg(long, default_value = "patch")]
    change: SweepChange,
    /// How many neurons (or dims) one block of the axis `neuron` has.
    #[arg(long, default_value_t = 16)]
    block: usize,
    /// Denoise: the corrupt run is changed (what suffices). Noise: the clean run is changed (what is needed).
    #[arg(long, value_enum, default_value = "noise")]
    direction: DirectionArgument,
    /// Over how many points gradients are integrated.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Do not compare the estimates with exact patching.
    #[arg(long)]
    no_exact: bool,
    /// How many of the largest are shown.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    #[command(flatten)]
    intervals: IntervalArguments,
    /// The run directory to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Direct,
    Gradient,
    Integrated,
    Eap,
    EapIg,
    EapIgWrites,
    Edges,
}

impl Attribute {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.model.open()?;
        let read = self.pairs.read(&model, output)?;
        let writer = RunWriter::create(&self.out, started, &model)?;
        let (metric, direction) = (self.pairs.metric(), self.direction.into());
        let steps = usize::from(self.steps);
        let network = &model.decoder;
        let bar = progress::bar(0, "attributing");
        let (report, input) = match self.method {
            Method::Direct => {
                if metric != Metric::LogitDiff {
                    bail!("direct attribution is of the logit difference, not of {}", metric.name());
                }
                let scores = direct(network, &read.pairs, watching(&bar))?;
                (report::direct(&model, &scores, self.top)?, json!({"method": "direct"}))
            }
            Method::Gradient | Method::Integrated => {
                let method = match self.method {
                    Method::Gradient => Estimate::Gradient,
                    _ => Estimate::Integrated { steps },
                };
                let asked = Sweep {
                    change: self.change.clone(),
                    metric,
                    direction,
                    neuron_block: self.block,
                    ..Sweep::new(self.site.clone(), self.over.clone())
                };
                let found = estimate(network, &asked, &read.pairs, method, watching(&bar))?;
                let exact = match self.no_exact {
                    true => None,
                    false => Some(sweep(network, &asked, &read.pairs, Planner::default(), watching(&bar))?),
                };
                let labels: Vec<String> = read.pairs[0].clean.iter().map(|&id| model.label(id)).collect();
                let report =
                    report::estimates(&model, method, &found, exact.as_ref(), &labels, &self.intervals.resampling())?;
                (report, json!({"method": method, "sweep": asked}))
            }
            Method::Eap | Method::EapIg | Method::EapIgWrites | Method::Edges => {
                let method = match self.method {
                    Method::Eap => EdgeMethod::Gradient,
                    Method::EapIg => EdgeMethod::IntegratedInputs { steps },
                    Method::EapIgWrites => EdgeMethod::IntegratedWrites { steps },
                    _ => EdgeMethod::Exact,
                };
                let asked = EdgeSweep { method, metric, direction };
                let found = edge_scores(network, &asked, &read.pairs, Planner::default(), watching(&bar))?;
                let exact = match self.no_exact || method == EdgeMethod::Exact {
                    true => None,
                    false => {
                        let exact = EdgeSweep { method: EdgeMethod::Exact, ..asked };
                        Some(edge_scores(network, &exact, &read.pairs, Planner::default(), watching(&bar))?)
                    }
                };
                let scores = report::edge_document(&found);
                writer.directory.write_json("edges.json", &scores)?;
                (
                    report::edges(&model, &found, exact.as_ref(), self.top, &self.intervals.resampling())?,
                    json!({"edges": asked}),
                )
            }
        };
        bar.finish_and_clear();
        writer.finish(read, Vec::new(), ("intervals", self.intervals.seed), input, &report, output)
    }
}
