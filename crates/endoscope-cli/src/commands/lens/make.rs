//! Making a lens from rows of tokens, and measuring it on rows that it has not seen.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::lens::jacobian::{JacobianSettings, Over, average};
use endoscope_causal::lens::tuned::{TunedSettings, train};
use endoscope_causal::lens::{Lens, Streams, losses, split};
use endoscope_models::Model;
use endoscope_report::{HashedFile, RunDirectory, Started, check_destination, write_atomically};
use serde_json::{Value, json};

use super::report;
use crate::input::{BosArguments, ModelArgument};
use crate::output::Output;
use crate::pair_arguments::watching;
use crate::progress;
use crate::provenance::provenance;
use crate::token_rows::RowArguments;

#[derive(Debug, Args)]
#[command(next_help_heading = "Making a lens")]
pub struct MakeArguments {
    /// Make a lens instead of reading a prompt: tuned (translators, trained) or jacobian (the averaged Jacobian, measured). The
    /// last fifth of the rows is held out and measured.
    #[arg(long, value_enum)]
    train: Option<Made>,
    #[command(flatten)]
    source: RowArguments,
    /// The file to write it to.
    #[arg(long, value_name = "FILE.safetensors")]
    save: Option<PathBuf>,
    /// How many steps a tuned lens is trained.
    #[arg(long, default_value_t = TunedSettings::default().steps)]
    steps: usize,
    /// How many positions a step draws (tuned; default 256), or how many tokens run together (jacobian; default 2048).
    #[arg(long)]
    batch: Option<usize>,
    /// Adam's rate at the first step; it falls linearly to zero.
    #[arg(long, default_value_t = TunedSettings::default().learning_rate)]
    learning_rate: f64,
    /// Seed of random rows, and of the positions that are drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which positions of the last stream a Jacobian is of: the same one, or this and all later ones, summed.
    #[arg(long, value_enum, default_value = "same")]
    over: OverArgument,
    /// With --over same, draw so many positions of each row [default: all].
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Made {
    Tuned,
    Jacobian,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OverArgument {
    Same,
    Later,
}

impl MakeArguments {
    pub fn is_asked(&self) -> bool {
        self.train.is_some()
    }

    /// Refuses what is said of making where nothing is made.
    pub fn refuse(&self) -> Result<()> {
        if self.source.given() || self.save.is_some() {
            bail!("--text, --token-rows, --random and --save say how a lens is made; --train tuned|jacobian makes one");
        }
        Ok(())
    }

    pub fn run(
        &self,
        model: &ModelArgument,
        bos: BosArguments,
        streams: Streams,
        out: Option<&Path>,
        output: &mut Output,
    ) -> Result<()> {
        let started = Started::now();
        let save = self.save.as_deref().context("say with --save FILE.safetensors where the lens is to be written")?;
        check_destination(save)?;
        let directory = out.map(RunDirectory::create).transpose()?;
        let model = model.open()?;
        let rows = self.source.read(&model, bos, self.seed)?;
        let (seen, unseen) = split(&rows);
        if unseen.is_empty() {
            bail!("there is only one row; at least two are needed, since the last fifth is held out to measure it");
        }
        let mut lens = self.make(&model, seen, streams)?;
        lens.made.insert("weights".into(), weights(&model)?);
        lens.made.insert("source".into(), self.source.source(self.seed)?);
        let before = losses(&model.decoder, &Lens::logit(), unseen, streams)?;
        let after = losses(&model.decoder, &lens, unseen, streams)?;
        let bytes = lens.to_bytes()?;
        write_atomically(save, |file| file.write_all(&bytes))?;
        let report = report::losses(&model, &lens, (seen.len(), unseen.len()), &before, &after)?;
        let loss = |(before, after)| json!({"logit": before, "lens": after});
        output.document(&json!({
            "saved": save.to_string_lossy(),
            "lens": lens.kind,
            "made": lens.made,
            "held_out_rows": unseen.len(),
            "losses": before.iter().zip(&after).map(loss).collect::<Vec<_>>(),
        }))?;
        output.report(&report)?;
        output.line(&format!("\nthe lens was written to {}", save.display()))?;
        let Some(directory) = directory else { return Ok(()) };
        let mut provenance = provenance(&started, &model, &[])?;
        provenance.files.extend(self.source.file()?);
        provenance.files.push(HashedFile::of("lens", save, &bytes));
        provenance.seeds.insert("lens".into(), self.seed);
        let plan =
            json!({"verb": "lens", "model": model.directory.to_string_lossy(), "lens": lens.kind, "made": lens.made});
        directory.write_json("plan.json", &plan)?;
        directory.write_provenance(&provenance)?;
        directory.write_report(&report, &provenance)?;
        let path = directory.finish()?;
        output.line(&format!("written to {} (open report.html)", path.display()))
    }

    fn make(&self, model: &Model, rows: &[Vec<u32>], streams: Streams) -> Result<Lens> {
        let bar = progress::bar(0, "making the lens");
        let watch = watching(&bar);
        let lens = match self.train {
            Some(Made::Jacobian) => {
                let over = match self.over {
                    OverArgument::Same => Over::Same,
                    OverArgument::Later => Over::Later,
                };
                let batch = self.batch.unwrap_or(JacobianSettings::default().batch);
                let settings = JacobianSettings { over, batch, sample: self.sample, seed: self.seed };
                average(&model.decoder, rows, streams, settings, watch)
            }
            _ => {
                let settings = TunedSettings {
                    steps: self.steps,
                    batch: self.batch.unwrap_or(TunedSettings::default().batch),
                    learning_rate: self.learning_rate,
                    seed: self.seed,
                };
                train(&model.decoder, rows, streams, settings, watch)
            }
        };
        bar.finish_and_clear();
        Ok(lens?)
    }
}

/// The SHA-256 of each file of weights, in order.
pub fn weights(model: &Model) -> Result<Value> {
    let files = model.files.iter().filter(|(role, _)| *role == "weights");
    let hashes = files.map(|(role, path)| Ok(HashedFile::read(*role, path)?.sha256)).collect::<Result<Vec<_>>>()?;
    Ok(json!(hashes))
}
