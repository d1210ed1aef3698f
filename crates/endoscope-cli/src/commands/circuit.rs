//! `endoscope circuit`: a circuit found, pruned, drawn and tested.

mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::{
    Ablation, Choice, Circuit, CircuitRuns, EdgeMethod, EdgeSweep, Planner, acdc, circuit_from_json, circuit_to_json,
    curve, edge_scores, measure, random_faithfulness, random_scores,
};
use endoscope_report::{HashedFile, Started, svg};
use serde_json::json;

use self::report::Search;
use crate::input::ModelArgument;
use crate::output::Output;
use crate::pair_arguments::{PairArguments, RunWriter, watching};
use crate::progress;

/// How many random circuits are the control.
const RANDOM_CIRCUITS: usize = 5;

#[derive(Debug, Args)]
pub struct FindCircuit {
    #[command(flatten)]
    model: ModelArgument,
    #[command(flatten)]
    pairs: PairArguments,
    /// How edges are scored: exact patching, EAP, EAP-IG; or acdc, which removes one after the other.
    #[arg(long, value_enum, default_value = "exact", conflicts_with = "circuit")]
    method: Method,
    /// Test this circuit instead of finding one: a JSON file of EAP-IG, or edges.json of `endoscope attribute` with --edges or
    /// --threshold.
    #[arg(long, value_name = "FILE")]
    circuit: Option<PathBuf>,
    /// Keep so many edges, the best into what is already read, from the logits down.
    #[arg(long, value_name = "N", conflicts_with = "threshold")]
    edges: Option<usize>,
    /// Choose the edges of the largest scores, wherever they are.
    #[arg(long, requires = "edges")]
    top: bool,
    /// Keep edges whose score is at least this; for acdc: those whose removal makes the metric worse by at least this.
    #[arg(long, value_name = "T")]
    threshold: Option<f64>,
    /// What edges outside the circuit carry: what they carry in the corrupt run, nothing, or the mean over corrupt prompts.
    #[arg(long, value_enum, default_value = "patch")]
    ablation: AblationArgument,
    /// Over how many points gradients are integrated.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// The seed of the random scores that are the control.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The run directory to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    Exact,
    Eap,
    EapIg,
    EapIgWrites,
    Acdc,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AblationArgument {
    Patch,
    Zero,
    Mean,
}

impl FindCircuit {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.model.open()?;
        let read = self.pairs.read(&model, output)?;
        let writer = RunWriter::create(&self.out, started, &model)?;
        let ablation = match self.ablation {
            AblationArgument::Patch => Ablation::Patch,
            AblationArgument::Zero => Ablation::Zero,
            AblationArgument::Mean => Ablation::Mean,
        };
        let metric = self.pairs.metric();
        let runs = CircuitRuns::new(&model.decoder, &read.pairs, metric, ablation)?;
        let graph = &runs.graph;
        let bar = progress::bar(0, "searching");
        let mut files = Vec::new();
        let search = match (&self.circuit, self.method) {
            (Some(path), _) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
                files.push(HashedFile::read("circuit", path)?);
                let (circuit, scores) = circuit_from_json(graph, &text).with_context(|| path.display().to_string())?;
                let circuit = match self.choice() {
                    Some(choice) => Circuit::chosen(graph, &scores, choice)?.pruned(graph),
                    None => circuit,
                };
                Search {
                    how: format!("The circuit is that of {}", path.display()),
                    circuit,
                    scores,
                    curve: None,
                    random: None,
                }
            }
            (None, Method::Acdc) => {
                let Some(threshold) = self.threshold.filter(|_| self.edges.is_none()) else {
                    bail!("acdc keeps what matters more than --threshold T; it does not count edges");
                };
                let found = acdc(&runs, threshold, watching(&bar))?;
                let scores = found.damage.iter().map(|damage| damage.unwrap_or(0.)).collect();
                let how =
                    format!("Edges were removed one after the other where that cost less than {threshold} (ACDC)");
                Search { how, circuit: found.circuit, scores, curve: None, random: None }
            }
            (None, method) => {
                let steps = usize::from(self.steps);
                let (method, how) = match method {
                    Method::Eap => (EdgeMethod::Gradient, "estimated by gradients (EAP)".to_string()),
                    Method::EapIg => (
                        EdgeMethod::IntegratedInputs { steps },
                        format!("estimated by gradients at {steps} inputs (EAP-IG)"),
                    ),
                    Method::EapIgWrites => {
                        (EdgeMethod::IntegratedWrites { steps }, format!("estimated by gradients at {steps} writes"))
                    }
                    Method::Exact | Method::Acdc => (EdgeMethod::Exact, "patched one by one".to_string()),
                };
                let Some(choice) = self.choice() else {
                    bail!("say how much is to be kept: --edges N or --threshold T");
                };
                let asked = EdgeSweep { metric, ..EdgeSweep::new(method) };
                let scores =
                    edge_scores(&model.decoder, &asked, &read.pairs, Planner::default(), watching(&bar))?.effects;
                let circuit = Circuit::chosen(graph, &scores, choice)?.pruned(graph);
                let greedy = !self.top;
                bar.set_message("measuring");
                let found = curve(&runs, &scores, greedy, watching(&bar))?;
                let random = curve(&runs, &random_scores(graph.len(), self.seed), greedy, watching(&bar))?;
                let how = format!("Edges were {how}, and chosen by the size of their effect");
                Search { how, circuit, scores, curve: found, random }
            }
        };
        let measures = measure(&runs, &search.circuit, watching(&bar))?;
        bar.finish_and_clear();
        let seeds: Vec<u64> = (self.seed..).take(RANDOM_CIRCUITS).collect();
        let random = random_faithfulness(&runs, search.circuit.len(), &seeds)?;
        let random = random.map(|found| found.iter().sum::<f64>() / found.len() as f64);
        let report = report::report(&model, &runs, &search, &measures, random)?;
        let document = circuit_to_json(graph, &search.circuit, Some(&search.scores));
        writer.directory.write_json("circuit.json", &document)?;
        let drawing = svg(&report::drawing(graph, &search.circuit, &search.scores));
        writer.directory.write("circuit.svg", |file| file.write_all(drawing.as_bytes()))?;
        let input = json!({"metric": metric, "ablation": ablation, "edges": self.edges, "top": self.top,
            "threshold": self.threshold, "steps": self.steps, "seed": self.seed});
        writer.finish(read, files, ("random circuits", self.seed), input, &report, output)
    }

    fn choice(&self) -> Option<Choice> {
        match (self.edges, self.threshold) {
            (Some(count), _) if self.top => Some(Choice::Top(count)),
            (Some(count), _) => Some(Choice::Greedy(count)),
            (None, Some(least)) => Some(Choice::Threshold(least)),
            (None, None) => None,
        }
    }
}
