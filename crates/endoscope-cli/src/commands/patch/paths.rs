//! `endoscope patch --to`: path patching.

use anyhow::Result;
use clap::{Args, ValueEnum};
use endoscope_causal::statistics::Resampling;
use endoscope_causal::{Direction, PathNorm, PathScores, PathSweep, Receiver, Sender};
use endoscope_models::Model;
use endoscope_net::Index;
use endoscope_report::{ColourScale, Label, Report, Section, Table, labels};

use super::report::push_cost;
use crate::intervals::ends;

/// What is asked of path patching.
#[derive(Debug, Args)]
pub struct PathArguments {
    /// Path patching: what the direct paths end at, such as q.1[0], k.1, v.1[0,2], mlp_in.1 or final. May be repeated.
    #[arg(long, value_name = "RECEIVER", conflicts_with_all = ["site", "over", "change", "block", "directions", "explain"])]
    pub to: Vec<Receiver>,
    /// Where the paths begin: heads, mlps, embed, or sites like result.3, separated by commas.
    #[arg(
        long,
        value_name = "SENDERS",
        value_delimiter = ',',
        default_value = "heads,mlps,embed",
        conflicts_with = "site"
    )]
    from: Vec<String>,
    /// The positions at which the senders write: a number, a list, or a range like -1.. [default: all].
    #[arg(long, value_name = "INDEX", allow_hyphen_values = true, conflicts_with = "site")]
    positions: Option<Index>,
    /// Whether the norm that a receiver reads through is recomputed or keeps the scale that it had.
    #[arg(long, value_enum, default_value = "recomputed", conflicts_with = "site")]
    norm: NormArgument,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NormArgument {
    Recomputed,
    Frozen,
}

impl PathArguments {
    /// The sweep, whose metric, direction and edits are still to be set.
    pub fn sweep(&self) -> PathSweep {
        PathSweep {
            from: self.from.iter().map(|from| from.trim().to_string()).collect(),
            positions: self.positions.clone().unwrap_or_default(),
            norm: match self.norm {
                NormArgument::Recomputed => PathNorm::Recomputed,
                NormArgument::Frozen => PathNorm::Frozen,
            },
            ..PathSweep::new(self.to.clone())
        }
    }
}

/// The senders of one kind, as a table needs them.
struct Kind {
    name: &'static str,
    /// The axes of their table.
    axes: Vec<(&'static str, Vec<Label>)>,
    /// For each cell the number of its sender, if it was asked for.
    senders: Vec<Option<usize>>,
}

fn kinds(scores: &PathScores) -> Vec<Kind> {
    let find = |wanted: Sender| scores.senders.iter().position(|sender| *sender == wanted);
    let of_head = |sender: &Sender| match sender {
        Sender::Head { layer, head } => Some((*layer, *head)),
        _ => None,
    };
    let mut head_layers: Vec<usize> = scores.senders.iter().filter_map(of_head).map(|(layer, _)| layer).collect();
    head_layers.dedup();
    let heads = scores.senders.iter().filter_map(of_head).map(|(_, head)| head + 1).max().unwrap_or(0);
    let of_mlp = |sender: &Sender| match sender {
        Sender::Mlp { layer } => Some(*layer),
        _ => None,
    };
    let mlp_layers: Vec<usize> = scores.senders.iter().filter_map(of_mlp).collect();
    let cells = head_layers.iter().flat_map(|&layer| (0..heads).map(move |head| Sender::Head { layer, head }));
    let heads = Kind {
        name: "heads",
        senders: cells.map(find).collect(),
        axes: vec![("layer", labels(head_layers)), ("head", labels(0..heads))],
    };
    let mlps = Kind {
        name: "mlps",
        senders: mlp_layers.iter().map(|&layer| find(Sender::Mlp { layer })).collect(),
        axes: vec![("mlp of layer", labels(mlp_layers))],
    };
    let embedding = find(Sender::Embedding);
    let embed = Kind {
        name: "embed",
        axes: vec![("sender", labels(embedding.map(|_| "embed")))],
        senders: embedding.map(Some).into_iter().collect(),
    };
    [heads, mlps, embed].into_iter().filter(|kind| !kind.senders.is_empty()).collect()
}

/// The page of a sweep over paths.
pub fn report(model: &Model, scores: &PathScores, resampling: &Resampling) -> Result<Report> {
    let paths = &scores.paths;
    let receivers = paths.to.iter().map(Receiver::to_string).collect::<Vec<_>>().join(", ");
    let (from, into) = match paths.direction {
        Direction::Denoise => ("clean", "corrupt"),
        Direction::Noise => ("corrupt", "clean"),
    };
    let norm = match paths.norm {
        PathNorm::Recomputed => "recomputed",
        PathNorm::Frozen => "frozen",
    };
    let pairs = scores.pairs.len();
    let summary = format!(
        "What each part writes to the residual stream in the {from} run was put into the {into} run of {} on its direct path to \
         {receivers} only (norms {norm}), one sender at a time, over {pairs} prompt {}. Measured at the last position: {} is \
         {:.4} on the clean run and {:.4} on the corrupt one.",
        model.directory.display(),
        if pairs == 1 { "pair" } else { "pairs" },
        paths.metric.name(),
        scores.clean,
        scores.corrupt
    );
    let mut report = Report::new(format!("Paths to {receivers}"), "patch", summary);
    let usable = scores.normalised.iter().any(Option::is_some);
    let intervals = scores.intervals(resampling)?;
    for kind in kinds(scores) {
        let cells = |of: &dyn Fn(usize) -> Option<f64>| kind.senders.iter().map(|sender| sender.and_then(of)).collect();
        let metric = paths.metric.name();
        let mut tables = vec![
            (
                format!("{}_normalised", kind.name),
                "(score - corrupt) / (clean - corrupt): 0 = as the corrupt run, 1 = as the clean run".to_string(),
                cells(&|sender| scores.normalised[sender]),
            ),
            (
                format!("{}_scores", kind.name),
                format!("{metric}, mean over prompt pairs"),
                cells(&|sender| Some(scores.values[sender])),
            ),
        ];
        if pairs > 1 {
            let spread = cells(&|sender| scores.spread[sender]);
            tables.push((
                format!("{}_spread", kind.name),
                format!("standard deviation of {metric} over prompt pairs"),
                spread,
            ));
            for (name, description, ends) in ends("the mean", resampling.confidence, &intervals) {
                tables.push((format!("{}_{name}", kind.name), description, cells(&|sender| ends[sender])));
            }
        }
        let shown = if usable { 0 } else { 1 };
        let names: Vec<String> = tables.iter().map(|(name, ..)| name.clone()).collect();
        report.sections.push(Section::HeatMap {
            heading: Some(format!("From {} to {receivers}", kind.name)),
            table: names[shown].clone(),
            alternatives: names
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != shown)
                .map(|(_, name)| name.clone())
                .collect(),
            scale: ColourScale::DIVERGING,
            caption: "A sender that comes after every receiver has no path to it: it changes nothing.".into(),
        });
        for (name, description, values) in tables {
            report.tables.insert(name, Table::with_missing(description, kind.axes.clone(), values)?);
        }
    }
    push_cost(&mut report, &scores.cost)?;
    Ok(report)
}
