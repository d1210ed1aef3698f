//! `endoscope align`: where a variable lives, found by training an intervention; as a run directory with a plan that makes it.

mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use clap::{Args, ValueEnum};
use endoscope_causal::{Aligned, Alignment, Find, Gate, Objective, Progress, Triples, align, parse_triples};
use endoscope_models::Model;
use endoscope_net::{AxisName, Change, Edit, Index, Network, Plan, Selection, Value};
use endoscope_report::{HashedFile, RunDirectory, Started};
use serde_json::json;

use super::capture::write_tensors;
use super::patch::{directions, file_and_tensor};
use crate::input::{BosArguments, ModelArgument, ModelEncoder};
use crate::output::Output;
use crate::progress;
use crate::provenance::provenance;

#[derive(Debug, Args)]
pub struct Align {
    #[command(flatten)]
    model: ModelArgument,
    /// Triples: JSON with `triples`, a JSON list, or JSON lines of
    /// {"base": …, "source": …, "answers": […], "wrong_answers": […]}.
    #[arg(long, value_name = "FILE")]
    triples: PathBuf,
    /// Where it is sought: a kind of site (z, mlp_post), a glob, or one site (resid_post.3, k.1).
    #[arg(long)]
    site: String,
    /// What is sought: a mask over heads, neurons (or dims) or given directions; or a subspace, of --dims or as many as it
    /// takes (boundless).
    #[arg(long, value_enum)]
    find: FindArgument,
    /// The positions at which something is put into the base (of attention matrices, the query positions) [default: all].
    #[arg(long, value_name = "INDEX", allow_hyphen_values = true)]
    positions: Option<Index>,
    /// The heads in which it is sought [default: all].
    #[arg(long, value_name = "INDEX", allow_hyphen_values = true)]
    heads: Option<Index>,
    /// How a mask is trained.
    #[arg(long, value_enum, default_value = "clamp")]
    gate: GateArgument,
    /// How many dims a subspace has [default: 1].
    #[arg(long, value_name = "N")]
    dims: Option<usize>,
    /// The orthonormal rows [direction, dim] that `--find directions` chooses from: a tensor of a safetensors file.
    #[arg(long, value_name = "FILE.safetensors[:TENSOR]")]
    directions: Option<PathBuf>,
    /// What training makes large, at the last position: the log of the answers' total probability, their mean logit, or that
    /// less the wrong answers'.
    #[arg(long, value_enum, default_value = "log_probability")]
    objective: ObjectiveArgument,
    /// What one unit of the mask costs, in units of the objective.
    #[arg(long, default_value_t = 0.01, value_name = "LAMBDA")]
    penalty: f64,
    /// Training steps.
    #[arg(long, default_value_t = 200)]
    steps: usize,
    /// Triples a step.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// The learning rate of Adam, falling to 0: of a mask's entries, or the angle in radians by which a subspace's rows turn
    /// [default: 0.05 for masks, 0.3 for subspaces].
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// The share of triples that training never sees.
    #[arg(long, default_value_t = 0.25, value_name = "SHARE")]
    held_out: f64,
    /// Random masks or subspaces of the same size, as a control.
    #[arg(long, default_value_t = 5, value_name = "N")]
    controls: usize,
    /// Every number follows from it and from the rest.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    bos: BosArguments,
    /// The run directory to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FindArgument {
    Heads,
    #[value(alias = "dims")]
    Neurons,
    Directions,
    #[value(alias = "das")]
    Subspace,
    Boundless,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum GateArgument {
    Clamp,
    Sigmoid,
    #[value(name = "hard_concrete", alias = "hard-concrete")]
    HardConcrete,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ObjectiveArgument {
    #[value(name = "log_probability", alias = "log-probability")]
    LogProbability,
    Logit,
    #[value(name = "logit_diff", alias = "logit-diff")]
    LogitDiff,
}

/// The file of masks and directions in a run directory, and the plan that uses it.
const FOUND: &str = "found.safetensors";
const INTERVENTION: &str = "intervention.json";
/// What the plan takes activations from; `endoscope capture` writes it.
const SOURCE: &str = "source.safetensors";

impl Align {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.model.open()?;
        let alignment = self.alignment(&model)?;
        let text = std::fs::read_to_string(&self.triples)
            .with_context(|| format!("cannot read the triples {}", self.triples.display()))?;
        let written = parse_triples(&text).with_context(|| self.triples.display().to_string())?;
        let encoder = ModelEncoder::new(&model, self.bos.bos());
        let Triples { triples, mut notes } = Triples::encode(&written, &encoder, alignment.objective.needs())
            .with_context(|| self.triples.display().to_string())?;
        notes.extend(encoder.note());
        for note in &notes {
            output.note(note);
        }
        // Before the work, so that an existing directory is found out at once.
        let directory = RunDirectory::create(&self.out)?;
        let bar = progress::bar(0, "training");
        let aligned = align(&model.decoder, &alignment, &triples, |progress: Progress| {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        let aligned = aligned?;
        let report = report::report(&model, &alignment, &aligned)?;
        let mut provenance = provenance(&started, &model, &[])?;
        provenance.files.push(HashedFile::of("triples", &self.triples, text.as_bytes()));
        if let Some(directions) = &self.directions {
            provenance.files.push(HashedFile::read("directions", file_and_tensor(directions).0)?);
        }
        provenance.notes.extend(notes);
        provenance.seeds.insert("alignment".into(), alignment.seed);
        directory.write_json(
            "plan.json",
            &json!({
                "verb": "align",
                "model": model.directory.to_string_lossy(),
                "alignment": alignment,
                "triples": triples,
                "held_out": aligned.held_out,
            }),
        )?;
        write_tensors(&directory.path().join(FOUND), &tensors(&aligned))?;
        directory.write_json(INTERVENTION, &intervention(&aligned))?;
        output.finish(directory, &provenance, &report)
    }

    fn alignment(&self, model: &Model) -> Result<Alignment> {
        let gate = match self.gate {
            GateArgument::Clamp => Gate::Clamp,
            GateArgument::Sigmoid => Gate::Sigmoid,
            GateArgument::HardConcrete => Gate::HardConcrete,
        };
        if self.dims.is_some() && self.find != FindArgument::Subspace {
            bail!("--dims is for --find subspace");
        }
        if self.directions.is_some() != (self.find == FindArgument::Directions) {
            bail!("--find directions and --directions FILE need each other");
        }
        let find = match self.find {
            FindArgument::Heads => Find::Heads { gate },
            FindArgument::Neurons => Find::Neurons { gate },
            FindArgument::Directions => {
                let file = self.directions.as_deref().context("--directions FILE is missing")?;
                Find::Directions { gate, directions: loaded(directions(file)?)? }
            }
            FindArgument::Subspace => Find::Subspace { dims: self.dims.unwrap_or(1) },
            FindArgument::Boundless => Find::Boundless,
        };
        let mut select = Selection::default();
        if let Some(positions) = &self.positions {
            let sites = model.decoder.sites();
            let site = sites.get(sites.resolve(&self.site)?[0]);
            let axis = site.position_axis().with_context(|| format!("site `{}` has no positions", site.name))?;
            select = select.with(axis, positions.clone());
        }
        if let Some(heads) = &self.heads {
            select = select.with(AxisName::Head, heads.clone());
        }
        let usual = Alignment::new(&self.site, find);
        Ok(Alignment {
            select,
            objective: match self.objective {
                ObjectiveArgument::LogProbability => Objective::LogProbability,
                ObjectiveArgument::Logit => Objective::Logit,
                ObjectiveArgument::LogitDiff => Objective::LogitDiff,
            },
            penalty: self.penalty,
            steps: self.steps,
            batch: self.batch,
            learning_rate: self.learning_rate.unwrap_or(usual.learning_rate),
            held_out: self.held_out,
            seed: self.seed,
            random_controls: self.controls,
            ..usual
        })
    }
}

/// A value of a file, read.
fn loaded(value: Value) -> Result<Value> {
    let plan = Plan::default().edit(Edit::new("directions", Change::Set { value })).load(Path::new("."))?;
    match plan.edits.into_iter().next().map(|edit| edit.change) {
        Some(Change::Set { value }) => Ok(value),
        _ => bail!("--directions names no tensor"),
    }
}

/// What was found, by name: `SITE.mask`, `SITE.soft` and, for directions, `SITE.along`.
fn tensors(aligned: &Aligned) -> Vec<(String, Tensor)> {
    let of = |site: &endoscope_causal::FoundSite| {
        let named = |what: &str, tensor: &Tensor| (format!("{}.{what}", site.site), tensor.clone());
        let along = site.along.iter().map(|along| named("along", along)).collect::<Vec<_>>();
        [named("mask", &site.mask), named("soft", &site.soft)].into_iter().chain(along).collect::<Vec<_>>()
    };
    aligned.sites.iter().flat_map(of).collect()
}

/// The plan that puts what was found of a captured source run into another run. Sites where nothing was found have no edit.
fn intervention(aligned: &Aligned) -> serde_json::Value {
    let edit = |site: &endoscope_causal::FoundSite| {
        let file = |what: &str| json!({"file": FOUND, "tensor": format!("{}.{what}", site.site)});
        let mut interpolate = json!({"source": {"file": SOURCE}, "mask": file("mask")});
        if site.along.is_some() {
            interpolate["along"] = file("along");
        }
        json!({"site": site.site, "select": site.select, "change": {"interpolate": interpolate}})
    };
    let found = aligned.sites.iter().filter(|site| site.size() > 0);
    json!({"edits": found.map(edit).collect::<Vec<_>>()})
}
