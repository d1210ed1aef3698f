//! `endoscope dimension`: how many dimensions the activations of each layer fill.

mod report;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::dimension::{DimensionSites, Fit, TwoNn, dimension_sites};
use endoscope_models::Model;
use endoscope_net::Index;
use endoscope_report::{HashedFile, RunDirectory, Started};
use serde_json::json;

use crate::input::{self, BosArguments, ModelArgument};
use crate::intervals::IntervalArguments;
use crate::output::Output;
use crate::pair_arguments::watching;
use crate::progress;
use crate::provenance::{next_free, provenance};
use crate::token_rows::{RowArguments, fitting};

#[derive(Debug, Args)]
pub struct DimensionVerb {
    #[command(flatten)]
    model: ModelArgument,
    /// A prompt file; its clean prompts are the rows.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "token_rows", "random", "length", "rows"])]
    prompts: Option<PathBuf>,
    #[command(flatten)]
    rows: RowArguments,
    /// What is measured: resid_post, resid_mid, attn_out, mlp_out, z (heads together) … or one site (resid_post.3).
    #[arg(long, default_value = "resid_post")]
    site: String,
    /// What is measured by itself.
    #[arg(long, value_enum, default_value = "layer")]
    over: OverArgument,
    /// The positions of each row that are points: `1..` leaves out the first token.
    #[arg(long, value_name = "POSITIONS", default_value = "all", allow_hyphen_values = true)]
    positions: Index,
    /// No more points than this, drawn by the seed; compare figures of equally many points only.
    #[arg(long, value_name = "N", default_value_t = 3000)]
    points: usize,
    /// Also estimate the dimension around each point, on so many of its nearest neighbours.
    #[arg(long, value_name = "L")]
    neighbours: Option<usize>,
    /// How local dimensions are estimated: a line through the ratios of distances, or the largest likelihood.
    #[arg(long, value_enum, default_value = "linear")]
    fit: FitArgument,
    /// The share of ratios that is left out, the largest ones.
    #[arg(long, value_name = "SHARE", default_value_t = TwoNn::default().discarded)]
    discard: f64,
    #[command(flatten)]
    intervals: IntervalArguments,
    #[command(flatten)]
    bos: BosArguments,
    /// The run directory to write; must not exist [default: runs/dimension, or the next free runs/dimension-2 …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OverArgument {
    Layer,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FitArgument {
    Linear,
    Likelihood,
}

impl DimensionVerb {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let asked = self.asked();
        let model = self.model.open()?;
        let rows = self.rows(&model, output)?;
        // Before the work, so that an existing directory is found out at once.
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("dimension")))?;
        let bar = progress::bar(0, "measuring dimensions");
        let watch = watching(&bar);
        let resampling = self.intervals.resampling();
        let found = dimension_sites(&model.decoder, &asked, &rows, &resampling, watch);
        bar.finish_and_clear();
        let found = found?;
        let report = report::report(&model, &asked, &found, rows.len(), self.intervals.confidence)?;
        let mut provenance = provenance(&started, &model, &[])?;
        match &self.prompts {
            Some(path) => provenance.files.push(HashedFile::read("prompts", path)?),
            None => provenance.files.extend(self.rows.file()?),
        }
        provenance.seeds.insert("rows, points, controls and intervals".into(), self.intervals.seed);
        let plan = json!({
            "verb": "dimension",
            "model": model.directory.to_string_lossy(),
            "dimension": asked,
            "confidence": self.intervals.confidence,
            "seed": self.intervals.seed,
            "rows": rows,
        });
        directory.write_json("plan.json", &plan)?;
        directory.write_json("dimensions.json", &found)?;
        output.finish(directory, &provenance, &report)
    }

    fn asked(&self) -> DimensionSites {
        // The only axis there is.
        let OverArgument::Layer = self.over;
        let fit = match self.fit {
            FitArgument::Linear => Fit::Linear,
            FitArgument::Likelihood => Fit::Likelihood,
        };
        DimensionSites {
            site: self.site.clone(),
            positions: self.positions.clone(),
            points: self.points,
            two_nn: TwoNn { fit, discarded: self.discard },
            neighbours: self.neighbours,
        }
    }

    fn rows(&self, model: &Model, output: &Output) -> Result<Vec<Vec<u32>>> {
        let Some(path) = &self.prompts else {
            if !self.rows.given() {
                bail!("there is nothing to read: --prompts FILE, --text FILE, --token-rows FILE.json or --random ROWS");
            }
            return self.rows.read(model, self.bos, self.intervals.seed);
        };
        fitting(input::rows(model, path, self.bos, output)?, usize::MAX, model.spec().context)
    }
}
