//! `endoscope knockout`: attention edges between groups of positions, cut around each layer.

mod report;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use endoscope_causal::{Cut, Knockout, KnockoutHeads, Memory, Metric, Pairs, Planner, WrittenPair, knockout};
use endoscope_models::{Model, NamedPositions, PromptTokens};
use endoscope_report::{HashedFile, RunDirectory, Started};
use serde_json::json;

use crate::input::{self, BosArguments, ModelArgument, ModelEncoder};
use crate::intervals::IntervalArguments;
use crate::output::Output;
use crate::pair_arguments::MetricArgument;
use crate::pair_arguments::watching;
use crate::provenance::{next_free, provenance};
use crate::{memory, progress};

#[derive(Debug, Args)]
pub struct KnockoutVerb {
    #[command(flatten)]
    model: ModelArgument,
    /// Prompts: AutoCircuit JSON, JSON lines, or EAP-IG CSV. The clean prompts are run, and their answers read.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// The key positions whose edges are cut: `0`, `1..4`, `token:" Paris"`, `token[0]:"fa"`, or several joined by `+`.
    #[arg(long, value_name = "POSITIONS", allow_hyphen_values = true)]
    from: NamedPositions,
    /// The query positions that lose them.
    #[arg(long, value_name = "POSITIONS", default_value = "last", allow_hyphen_values = true)]
    to: NamedPositions,
    /// How many layers are cut together, around each layer.
    #[arg(long, value_name = "LAYERS", default_value_t = 1)]
    window: usize,
    /// Cut each head by itself, instead of all heads of a layer.
    #[arg(long)]
    each_head: bool,
    /// What is measured at the last position.
    #[arg(long, value_enum, default_value = "probability")]
    metric: MetricArgument,
    /// The most memory that this process may take, such as 4GiB [default: 1GiB for each batch of cells].
    #[arg(long, value_name = "SIZE", value_parser = memory::size)]
    memory: Option<u64>,
    #[command(flatten)]
    intervals: IntervalArguments,
    #[command(flatten)]
    bos: BosArguments,
    /// The run directory to write; must not exist [default: runs/knockout, or the next free runs/knockout-2 …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl KnockoutVerb {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.model.open()?;
        let (cuts, prompts, notes) = self.cuts(&model)?;
        notes.iter().for_each(|note| output.note(note));
        let asked = Knockout {
            window: self.window,
            heads: if self.each_head { KnockoutHeads::Each } else { KnockoutHeads::All },
            metric: self.metric.into(),
            seed: self.intervals.seed,
        };
        // Before the work, so that an existing directory is found out at once.
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("knockout")))?;
        let bar = progress::bar(0, "cutting edges");
        let watch = watching(&bar);
        let ask = |least| memory::left(self.memory.unwrap_or(u64::MAX), least);
        let planner = match self.memory {
            None => Planner::default(),
            Some(_) => Planner::Planned(Memory::Ask(&ask)),
        };
        let scores = knockout(&model.decoder, &asked, &cuts, planner, watch);
        bar.finish_and_clear();
        let report = report::report(&model, &scores?, &self.from, &self.to, &self.intervals.resampling())?;
        let mut provenance = provenance(&started, &model, &[])?;
        provenance.files.push(prompts);
        provenance.notes.extend(notes);
        provenance.seeds.insert("control and intervals".into(), self.intervals.seed);
        let plan = json!({
            "verb": "knockout",
            "model": model.directory.to_string_lossy(),
            "knockout": asked,
            "confidence": self.intervals.confidence,
            "prompts": cuts,
        });
        directory.write_json("plan.json", &plan)?;
        output.finish(directory, &provenance, &report)
    }

    /// The prompts with their edges, the file, and what the reader should be told.
    fn cuts(&self, model: &Model) -> Result<(Vec<Cut>, HashedFile, Vec<String>)> {
        let (written, file) = input::prompts(&self.prompts)?;
        // Nothing is patched: the corrupt prompt is not read, and need not be there.
        let clean = |pair: WrittenPair| WrittenPair { corrupt: Some(pair.clean.clone()), ..pair };
        let written: Vec<WrittenPair> = written.into_iter().map(clean).collect();
        let encoder = ModelEncoder::new(model, self.bos.bos());
        let Pairs { pairs, mut notes } = Pairs::encode(&written, &encoder, Metric::from(self.metric).needs())?;
        notes.extend(encoder.note());
        let mut cuts = Vec::with_capacity(pairs.len());
        for (number, pair) in pairs.into_iter().enumerate() {
            let labels: Vec<String> = pair.clean.iter().map(|&id| model.label(id)).collect();
            let prompt = PromptTokens { labels: &labels, messages: &[] };
            let place = |option: &str| format!("{option}, prompt {number}");
            let from = self.from.resolve(&prompt).with_context(|| place("--from"))?;
            let to = self.to.resolve(&prompt).with_context(|| place("--to"))?;
            cuts.push(Cut { pair, from, to });
        }
        Ok((cuts, file, notes))
    }
}
