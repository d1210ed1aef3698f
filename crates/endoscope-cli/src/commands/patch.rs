//! `endoscope patch`: a sweep of one change over a grid, as a run directory and a heat map.

mod donor;
mod paths;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::{
    Align, Memory, Metric, Pair, Pairs, PathSweep, Planner, Sweep, SweepAxis, SweepChange, explain_across, path_sweep,
    sweep_across,
};
use endoscope_models::Model;
use endoscope_net::{Edit, Plan, Value};
use endoscope_report::{HashedFile, RunDirectory, Started};
use serde_json::json;

use self::paths::PathArguments;
pub use self::report::{heat_map, push_cost, report, tables};
use crate::input::{self, BosArguments, ModelArgument, ModelEncoder};
use crate::intervals::IntervalArguments;
use crate::output::Output;
use crate::pair_arguments::{DirectionArgument, MetricArgument, watching};
use crate::provenance::provenance;
use crate::{memory, progress};

#[derive(Debug, Args)]
pub struct Patch {
    #[command(flatten)]
    model: ModelArgument,
    /// Prompt pairs: AutoCircuit JSON, JSON lines, or EAP-IG CSV.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// What is changed: resid_pre, resid_mid, attn_out, mlp_out, z, q, k, v, pattern, mlp_post … or one site (z.3).
    #[arg(long, required_unless_present = "to")]
    site: Option<String>,
    /// The axes of the table, separated by commas: layer, position, head, neuron, key, direction, pair.
    #[arg(long, value_delimiter = ',', default_value = "layer,position")]
    over: Vec<SweepAxis>,
    /// What is done at each point: patch (from the other run), zero, mean, knock_out, or JSON as in a plan.
    #[arg(long, default_value = "patch")]
    change: SweepChange,
    /// What is measured at the last position.
    #[arg(long, value_enum, default_value = "logit_diff")]
    metric: MetricArgument,
    /// Denoise: the corrupt run is changed (what suffices). Noise: the clean run is changed (what is needed).
    #[arg(long, value_enum, default_value = "denoise")]
    direction: DirectionArgument,
    /// Another model with the same sites and tokens, whose runs give the activations (cross-model patching). A pair without
    /// `corrupt` then has the same prompt for both.
    #[arg(long, value_name = "MODEL", conflicts_with = "to")]
    donor_model: Option<PathBuf>,
    /// How prompts that differ in length lie over each other in a sweep over positions: by their first or last position;
    /// each position is averaged over the pairs that have it.
    #[arg(long, value_enum, conflicts_with = "to")]
    align: Option<AlignArgument>,
    /// How many neurons (or dims) one block of the axis `neuron` has.
    #[arg(long, default_value_t = 16)]
    block: usize,
    /// The matrix [direction, dim] that the axis `direction` goes over: a tensor of a safetensors file.
    #[arg(long, value_name = "FILE.safetensors[:TENSOR]")]
    directions: Option<PathBuf>,
    /// A plan whose edits are made in the changed run and at every point as well.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Naive runs one whole forward pass for each point: slow, the reference.
    #[arg(long, value_enum, default_value = "planned")]
    planner: PlannerArgument,
    /// The most memory that this process may take, such as 4GiB [default: 1GiB for each batch of points].
    #[arg(long, value_name = "SIZE", value_parser = memory::size)]
    memory: Option<u64>,
    /// Say what the sweep would cost, and run nothing but the two runs of each pair.
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    paths: PathArguments,
    #[command(flatten)]
    intervals: IntervalArguments,
    #[command(flatten)]
    bos: BosArguments,
    /// The run directory to write; must not exist.
    #[arg(long, value_name = "DIR", required_unless_present = "explain")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AlignArgument {
    First,
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PlannerArgument {
    Planned,
    Naive,
}

impl PlannerArgument {
    fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Naive => "naive",
        }
    }
}

/// What is to be swept.
enum Asked {
    Points(Sweep),
    Paths(PathSweep),
}

/// What was read before anything runs.
struct Read {
    pairs: Vec<Pair>,
    notes: Vec<String>,
    prompts: HashedFile,
}

impl Patch {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.model.open()?;
        let donor = self.donor_model.as_deref().map(|other| donor::open(&self.model, other, &model)).transpose()?;
        let giver = donor.as_ref().map_or(&model.decoder, |donor| &donor.decoder);
        let asked = match self.paths.to.as_slice() {
            [] => Asked::Points(self.sweep()?),
            _ => Asked::Paths(self.path_sweep()?),
        };
        let read = self.pairs(&model, output)?;
        let ask = |least| memory::left(self.memory.unwrap_or(u64::MAX), least);
        let planner = self.planner(&ask)?;
        if let (true, Asked::Points(patching)) = (self.explain, &asked) {
            let cost = explain_across(&model.decoder, giver, patching, &read.pairs, planner)?;
            output.document(&report::cost_document(&cost))?;
            return output.text(&report::cost_text(&cost));
        }
        // Before the work, so that an existing directory is found out at once.
        let directory = RunDirectory::create(self.out.as_deref().context("--out DIR is missing")?)?;
        let resampling = self.intervals.resampling();
        let bar = progress::bar(0, "patching");
        let (report, input) = match asked {
            Asked::Points(patching) => {
                let scores = sweep_across(&model.decoder, giver, &patching, &read.pairs, planner, watching(&bar));
                bar.finish_and_clear();
                let labels = match patching.align {
                    Align::Equal => read.pairs[0].clean.iter().map(|&id| model.label(id)).collect(),
                    Align::First | Align::Last => Vec::new(),
                };
                let report = report::report(&model, donor.as_ref(), &scores?, &labels, &resampling)?;
                (report, json!({"sweep": patching}))
            }
            Asked::Paths(patching) => {
                let scores = path_sweep(&model.decoder, &patching, &read.pairs, planner, watching(&bar));
                bar.finish_and_clear();
                (paths::report(&model, &scores?, &resampling)?, json!({"paths": patching}))
            }
        };
        self.write(directory, &started, (&model, donor.as_ref()), read, input, &report, output)
    }

    #[expect(clippy::too_many_arguments, reason = "everything that a run directory holds")]
    fn write(
        &self,
        directory: RunDirectory,
        started: &Started,
        (model, donor): (&Model, Option<&Model>),
        read: Read,
        input: serde_json::Value,
        report: &endoscope_report::Report,
        output: &mut Output,
    ) -> Result<()> {
        let mut provenance = provenance(started, model, &[])?;
        provenance.files.push(read.prompts);
        if let Some(donor) = donor {
            donor::note(&mut provenance, donor)?;
        }
        for path in [&self.plan, &self.directions_file()].into_iter().flatten() {
            provenance.files.push(HashedFile::read("plan", path)?);
        }
        provenance.notes.extend(read.notes);
        provenance.seeds.insert("intervals".into(), self.intervals.seed);
        let mut plan = json!({
            "verb": "patch",
            "model": model.directory.to_string_lossy(),
            "donor_model": donor.map(|donor| donor.directory.to_string_lossy()),
            "planner": self.planner.name(),
            "memory": self.memory,
            "confidence": self.intervals.confidence,
            "seed": self.intervals.seed,
            "pairs": read.pairs,
        });
        if let (Some(plan), serde_json::Value::Object(input)) = (plan.as_object_mut(), input) {
            plan.extend(input);
        }
        directory.write_json("plan.json", &plan)?;
        output.finish(directory, &provenance, report)
    }

    fn pairs(&self, model: &Model, output: &Output) -> Result<Read> {
        let (mut written, prompts) = input::prompts(&self.prompts)?;
        if self.donor_model.is_some() {
            for pair in written.iter_mut().filter(|pair| pair.corrupt.is_none()) {
                pair.corrupt = Some(pair.clean.clone());
            }
        }
        let encoder = ModelEncoder::new(model, self.bos.bos());
        let Pairs { pairs, mut notes } = Pairs::encode(&written, &encoder, Metric::from(self.metric).needs())?;
        notes.extend(encoder.note());
        for note in &notes {
            output.note(note);
        }
        Ok(Read { pairs, notes, prompts })
    }

    fn planner<'a>(&self, ask: &'a dyn Fn(u64) -> endoscope_causal::Result<u64>) -> Result<Planner<'a>> {
        match (self.planner, self.memory) {
            (PlannerArgument::Naive, Some(_)) => {
                bail!("--memory is for the planner; one whole forward pass a point cannot be cut")
            }
            (PlannerArgument::Naive, None) => Ok(Planner::Naive),
            (PlannerArgument::Planned, None) => Ok(Planner::default()),
            (PlannerArgument::Planned, Some(_)) => Ok(Planner::Planned(Memory::Ask(ask))),
        }
    }

    fn sweep(&self) -> Result<Sweep> {
        if self.over.len() > 4 {
            bail!("--over names {} axes; a table has at most 4", self.over.len());
        }
        let sweep = Sweep {
            change: self.change.clone(),
            metric: self.metric.into(),
            direction: self.direction.into(),
            neuron_block: self.block,
            align: match self.align {
                None => Align::Equal,
                Some(AlignArgument::First) => Align::First,
                Some(AlignArgument::Last) => Align::Last,
            },
            directions: self.directions.as_deref().map(directions).transpose()?,
            with: self.with()?,
            ..Sweep::new(self.site.clone().unwrap_or_default(), self.over.clone())
        };
        Ok(sweep.load(Path::new("."))?)
    }

    fn path_sweep(&self) -> Result<PathSweep> {
        let (metric, direction) = (self.metric.into(), self.direction.into());
        Ok(PathSweep { metric, direction, with: self.with()?, ..self.paths.sweep() })
    }

    /// The edits made at every point as well.
    fn with(&self) -> Result<Vec<Edit>> {
        let Some(path) = &self.plan else { return Ok(Vec::new()) };
        let plan = input::plan(path, None)?;
        if (Plan { edits: Vec::new(), ..plan.clone() }) != Plan::default() {
            bail!("{} does more than edit; a sweep makes its own captures and reads its own outputs", path.display());
        }
        Ok(plan.edits)
    }

    fn directions_file(&self) -> Option<PathBuf> {
        self.directions.as_deref().map(|path| file_and_tensor(path).0)
    }
}

/// Splits `FILE:TENSOR`, unless the whole is a file.
pub fn file_and_tensor(path: &Path) -> (PathBuf, Option<String>) {
    match path.to_str().and_then(|text| text.rsplit_once(':')) {
        Some((file, tensor)) if !path.exists() => (file.into(), Some(tensor.to_string())),
        _ => (path.to_path_buf(), None),
    }
}

/// The value of `--directions`.
pub fn directions(path: &Path) -> Result<Value> {
    let (file, tensor) = file_and_tensor(path);
    let tensor = tensor.unwrap_or_else(|| "directions".into());
    serde_json::from_value(json!({"file": file, "tensor": tensor})).context("--directions")
}
