//! `endoscope study run`.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use endoscope_models::Depth;
use endoscope_report::{RunDirectory, Started};
use endoscope_studies::{Lab, Level, Progress, study};
use serde_json::json;

use crate::input;
use crate::output::Output;
use crate::progress;
use crate::provenance::{next_free, of_program};
use crate::threads;

#[derive(Debug, Args)]
pub struct Run {
    /// The paper's slug, as `endoscope study list` shows it.
    slug: String,
    /// How much is done: smoke takes seconds and checks the machinery, full takes minutes and gives the verdicts.
    #[arg(long, value_enum, default_value = "full")]
    level: LevelArgument,
    /// A model directory, GGUF file or hub id, in place of the study's organism.
    #[arg(long)]
    model: Option<PathBuf>,
    /// A setting of the study, as `endoscope study show` lists them; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The seeds, at least three [default: those that the study declares].
    #[arg(long, value_delimiter = ',', value_name = "SEED[,SEED]")]
    seeds: Vec<u64>,
    /// The folder where finished steps are kept, so that a run that was stopped goes on.
    #[arg(long, value_name = "DIR", default_value = "runs/cache")]
    cache: PathBuf,
    /// The run directory to write; must not exist [default: runs/SLUG, or the next free runs/SLUG-2 …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LevelArgument {
    Smoke,
    Full,
}

impl Run {
    pub fn run(self, output: &mut Output) -> Result<()> {
        threads::side_by_side()?;
        let started = Started::now();
        let study = study(&self.slug)?;
        let level = match self.level {
            LevelArgument::Smoke => Level::Smoke,
            LevelArgument::Full => Level::Full,
        };
        // All that can be wrong with what was asked, before any work.
        let settings = study.configured(level, &self.set)?;
        let seeds = if self.seeds.is_empty() { study.seeds().to_vec() } else { self.seeds.clone() };
        let mut lab = Lab::new(level, seeds)?.with_cache(&self.cache);
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free(study.slug())))?;
        let model = self.model.as_deref().map(|model| input::open(model, Depth::Stored)).transpose()?;
        if let Some(model) = &model {
            lab = lab.with_model(model);
        }
        let bar = progress::bar(0, "");
        let watch = |now: &Progress<'_>| {
            bar.set_message(now.step.to_string());
            bar.set_length(now.total);
            bar.set_position(now.done);
            ControlFlow::Continue(())
        };
        let lab = lab.with_watch(&watch);
        let report = study.report(&lab, &self.set);
        bar.finish_and_clear();
        let report = report?;
        let mut provenance = of_program(&started);
        provenance.files = lab.used();
        if let Some(revision) = model.as_ref().and_then(|model| model.revision.as_ref()) {
            provenance.revisions.insert(revision.repository.clone(), revision.commit.clone());
        }
        for (number, &seed) in (1..).zip(lab.seeds()) {
            provenance.seeds.insert(format!("seed {number}"), seed);
        }
        let plan = json!({
            "verb": "study run",
            "slug": study.slug(),
            "level": level.name(),
            "model": self.model.as_ref().map(|model| model.to_string_lossy()),
            "settings": settings,
            "seeds": lab.seeds(),
        });
        directory.write_json("plan.json", &plan)?;
        output.finish(directory, &provenance, &report)
    }
}
