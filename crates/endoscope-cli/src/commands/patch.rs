//! `endoscope patch`: an activation-patching sweep, as a run directory and a heat map.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use endoscope_causal::{Direction, Metric, Pairs, Planner, ScoreAxis, Scores, Sweep, SweepAxis, sweep};
use endoscope_models::Model;
use endoscope_report::{ColourScale, Label, Report, RunDirectory, Section, Started, Table};
use serde_json::json;

use crate::input::{self, BosArguments, ModelArgument, ModelEncoder};
use crate::output::Output;
use crate::progress;
use crate::provenance::provenance;

#[derive(Debug, Args)]
pub struct Patch {
    #[command(flatten)]
    model: ModelArgument,
    /// Prompt pairs: AutoCircuit JSON, JSON lines, or EAP-IG CSV.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// What is patched: resid_pre, resid_mid, attn_out, mlp_out, z, q, k, v, pattern, mlp_post … or one site (z.3).
    #[arg(long)]
    site: String,
    /// The axes of the table, separated by commas.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "layer,position")]
    over: Vec<OverArgument>,
    /// What is measured at the last position.
    #[arg(long, value_enum, default_value = "logit_diff")]
    metric: MetricArgument,
    /// Denoise: clean into corrupt (what suffices). Noise: corrupt into clean (what is needed).
    #[arg(long, value_enum, default_value = "denoise")]
    direction: DirectionArgument,
    /// How many neurons (or dims) one block of the axis `neuron` has.
    #[arg(long, default_value_t = 16)]
    block: usize,
    /// Run one whole forward pass for each point: slow, the reference.
    #[arg(long)]
    naive: bool,
    #[command(flatten)]
    bos: BosArguments,
    /// The run directory to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OverArgument {
    Layer,
    Position,
    Head,
    Neuron,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MetricArgument {
    #[value(name = "logit_diff", alias = "logit-diff")]
    LogitDiff,
    #[value(alias = "prob")]
    Probability,
    Kl,
    Loss,
    Rank,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DirectionArgument {
    #[value(alias = "denoising")]
    Denoise,
    #[value(alias = "noising")]
    Noise,
}

impl Patch {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.model.open()?;
        let patching = self.sweep();
        let (written, prompts_file) = input::prompts(&self.prompts)?;
        let encoder = ModelEncoder::new(&model, self.bos.bos());
        let pairs = Pairs::encode(&written, &encoder, patching.metric.needs())?;
        let notes: Vec<String> = pairs.notes.iter().cloned().chain(encoder.note()).collect();
        for note in &notes {
            output.note(note);
        }
        // Before the work, so that an existing directory is found out at once.
        let directory = RunDirectory::create(&self.out)?;
        let planner = if self.naive { Planner::Naive } else { Planner::default() };
        let bar = progress::bar(0, "patching");
        let scores = sweep(&model.decoder, &patching, &pairs.pairs, planner, |progress| {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        let scores = scores?;
        let labels: Vec<String> = pairs.pairs[0].clean.iter().map(|&id| model.label(id)).collect();
        let report = report(&model, &scores, &labels)?;
        let mut provenance = provenance(&started, &model, &[])?;
        provenance.files.push(prompts_file);
        provenance.notes.extend(notes);
        directory.write_json(
            "plan.json",
            &json!({
                "verb": "patch",
                "model": model.directory.to_string_lossy(),
                "sweep": patching,
                "planner": planner,
                "pairs": pairs.pairs,
            }),
        )?;
        directory.write_provenance(&provenance)?;
        directory.write_report(&report, &provenance)?;
        let path = directory.finish()?;
        output.document(&report)?;
        output.report(&report)?;
        output.line(&format!("\nwritten to {} (open report.html)", path.display()))
    }

    fn sweep(&self) -> Sweep {
        let axis = |over: &OverArgument| match over {
            OverArgument::Layer => SweepAxis::Layer,
            OverArgument::Position => SweepAxis::Position,
            OverArgument::Head => SweepAxis::Head,
            OverArgument::Neuron => SweepAxis::Neuron,
        };
        Sweep {
            site: self.site.clone(),
            over: self.over.iter().map(axis).collect(),
            metric: match self.metric {
                MetricArgument::LogitDiff => Metric::LogitDiff,
                MetricArgument::Probability => Metric::Probability,
                MetricArgument::Kl => Metric::Kl,
                MetricArgument::Loss => Metric::Loss,
                MetricArgument::Rank => Metric::Rank,
            },
            direction: match self.direction {
                DirectionArgument::Denoise => Direction::Denoise,
                DirectionArgument::Noise => Direction::Noise,
            },
            neuron_block: self.block,
        }
    }
}

/// The tables of a sweep: `scores` (the metric itself), `normalised`, and `spread` where there are several pairs.
pub fn tables(scores: &Scores, positions: &[String]) -> Result<Vec<(String, Table)>> {
    let axes = || scores.axes.iter().map(|axis| (axis.axis.name(), axis_labels(axis, positions)));
    let metric = scores.sweep.metric.name();
    let order: String = scores.axes.iter().map(|axis| format!("[{}]", axis.axis.name())).collect();
    let normalised =
        format!("(score - corrupt) / (clean - corrupt): 0 = as the corrupt run, 1 = as the clean run; values{order}");
    let mut tables = vec![
        (
            "scores".to_string(),
            Table::new(format!("{metric}, mean over prompt pairs; values{order}"), axes(), scores.values.clone())?,
        ),
        ("normalised".to_string(), Table::with_missing(normalised, axes(), scores.normalised.clone())?),
    ];
    if scores.pairs.len() > 1 {
        let description = format!("standard deviation of {metric} over prompt pairs; values{order}");
        tables.push(("spread".to_string(), Table::with_missing(description, axes(), scores.spread.clone())?));
    }
    Ok(tables)
}

fn axis_labels(axis: &ScoreAxis, positions: &[String]) -> Vec<Label> {
    let label = |&value: &usize| match axis.axis {
        SweepAxis::Position => Label::Text(positions.get(value).cloned().unwrap_or_else(|| value.to_string())),
        SweepAxis::Neuron => Label::Text(format!("{value}..{}", value + axis.width)),
        SweepAxis::Layer | SweepAxis::Head => Label::Index(value as i64),
    };
    axis.values.iter().map(label).collect()
}

/// The heat map of a sweep.
pub fn heat_map(heading: &str, scores: &Scores, tables: &[(String, Table)], caption: &str) -> Section {
    let usable = scores.normalised.iter().any(Option::is_some);
    let first = if usable { 1 } else { 0 };
    let others = (0..tables.len()).filter(|&at| at != first);
    Section::HeatMap {
        heading: Some(heading.to_string()),
        table: tables[first].0.clone(),
        alternatives: others.map(|at| tables[at].0.clone()).collect(),
        scale: ColourScale::DIVERGING,
        caption: caption.to_string(),
    }
}

fn report(model: &Model, scores: &Scores, positions: &[String]) -> Result<Report> {
    let Sweep { site, metric, direction, .. } = &scores.sweep;
    let (from, into, meaning) = match direction {
        Direction::Denoise => ("clean", "corrupt", "1 where the patch alone restores the clean behaviour"),
        Direction::Noise => ("corrupt", "clean", "0 where the patch alone breaks the clean behaviour"),
    };
    let pairs = scores.pairs.len();
    let summary = format!(
        "Activations of {site} from the {from} run were put into the {into} run of {}, one place at a time, over {pairs} \
         prompt {}. Measured at the last position: {} is {:.4} on the clean run and {:.4} on the corrupt one.",
        model.directory.display(),
        if pairs == 1 { "pair" } else { "pairs" },
        metric.name(),
        scores.clean,
        scores.corrupt
    );
    let axes: Vec<&str> = scores.axes.iter().map(|axis| axis.axis.name()).collect();
    let mut report = Report::new(format!("Patching {site} over {}", axes.join(" x ")), "patch", summary);
    let tables = tables(scores, positions)?;
    let shown = match scores.normalised.iter().any(Option::is_some) {
        true => format!("Normalised score: {meaning}."),
        false => format!("The {} itself: clean and corrupt do not differ, so there is no scale.", metric.name()),
    };
    let caption = format!("{shown} Position labels are tokens of the first clean prompt.");
    report.sections.push(heat_map("Where the difference lies", scores, &tables, &caption));
    report.tables.extend(tables);
    Ok(report)
}
