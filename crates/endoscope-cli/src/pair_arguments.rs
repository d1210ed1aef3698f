//! What verbs that measure on prompt pairs have in common: their arguments, what was read, and the run directory.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};
use endoscope_causal::{Direction, Metric, Pair, Pairs, Progress};
use endoscope_models::Model;
use endoscope_report::{HashedFile, Report, RunDirectory, Started};
use indicatif::ProgressBar;
use serde_json::json;

use crate::input::{self, BosArguments, ModelEncoder};
use crate::output::Output;
use crate::provenance::provenance;

/// Prompt pairs and what is measured on them.
#[derive(Debug, Args)]
pub struct PairArguments {
    /// Prompt pairs: AutoCircuit JSON, JSON lines, or EAP-IG CSV.
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// What is measured at the last position.
    #[arg(long, value_enum, default_value = "logit_diff")]
    pub metric: MetricArgument,
    #[command(flatten)]
    bos: BosArguments,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MetricArgument {
    #[value(name = "logit_diff", alias = "logit-diff")]
    LogitDiff,
    #[value(alias = "prob")]
    Probability,
    Kl,
    Loss,
    Rank,
    Accuracy,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DirectionArgument {
    #[value(alias = "denoising")]
    Denoise,
    #[value(alias = "noising")]
    Noise,
}

/// What was read before anything runs.
pub struct ReadPairs {
    pub pairs: Vec<Pair>,
    pub notes: Vec<String>,
    pub prompts: HashedFile,
}

impl PairArguments {
    /// Reads and tokenizes the pairs; what is to be noted is said at once.
    pub fn read(&self, model: &Model, output: &Output) -> Result<ReadPairs> {
        let (written, prompts) = input::prompts(&self.prompts)?;
        let encoder = ModelEncoder::new(model, self.bos.bos());
        let Pairs { pairs, mut notes } = Pairs::encode(&written, &encoder, self.metric().needs())?;
        notes.extend(encoder.note());
        notes.iter().for_each(|note| output.note(note));
        Ok(ReadPairs { pairs, notes, prompts })
    }

    pub fn metric(&self) -> Metric {
        self.metric.into()
    }
}

impl From<MetricArgument> for Metric {
    fn from(argument: MetricArgument) -> Self {
        match argument {
            MetricArgument::LogitDiff => Self::LogitDiff,
            MetricArgument::Probability => Self::Probability,
            MetricArgument::Kl => Self::Kl,
            MetricArgument::Loss => Self::Loss,
            MetricArgument::Rank => Self::Rank,
            MetricArgument::Accuracy => Self::Accuracy,
        }
    }
}

impl From<DirectionArgument> for Direction {
    fn from(argument: DirectionArgument) -> Self {
        match argument {
            DirectionArgument::Denoise => Self::Denoise,
            DirectionArgument::Noise => Self::Noise,
        }
    }
}

/// Shows progress on a bar, and goes on.
pub fn watching(bar: &ProgressBar) -> impl FnMut(Progress) -> ControlFlow<()> {
    |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        ControlFlow::Continue(())
    }
}

/// A run directory in the making, with what its provenance needs.
pub struct RunWriter<'a> {
    pub directory: RunDirectory,
    pub started: Started,
    pub model: &'a Model,
}

impl<'a> RunWriter<'a> {
    /// Before the work, so that an existing directory is found out at once.
    pub fn create(out: &Path, started: Started, model: &'a Model) -> Result<Self> {
        Ok(Self { directory: RunDirectory::create(out)?, started, model })
    }

    /// Writes plan, provenance and report, shows the report, and gives the directory its name.
    pub fn finish(
        self,
        read: ReadPairs,
        files: Vec<HashedFile>,
        (drawn, seed): (&str, u64),
        input: serde_json::Value,
        report: &Report,
        output: &mut Output,
    ) -> Result<()> {
        let Self { directory, started, model } = self;
        let mut provenance = provenance(&started, model, &[])?;
        provenance.files.push(read.prompts);
        provenance.files.extend(files);
        provenance.seeds.insert(drawn.into(), seed);
        provenance.notes.extend(read.notes);
        let mut plan = json!({"verb": report.verb, "model": model.directory.to_string_lossy(), "pairs": read.pairs});
        if let (Some(plan), serde_json::Value::Object(input)) = (plan.as_object_mut(), input) {
            plan.extend(input);
        }
        directory.write_json("plan.json", &plan)?;
        output.finish(directory, &provenance, report)
    }
}
