//! `endoscope train`: a recipe to a model, with checkpoints; the same command continues a run that was stopped. And what can
//! be done with the series of checkpoints that a run keeps: list it, take a step out, measure every step.

mod battery;
mod measures;
mod measuring;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_report::Started;
use endoscope_train::{Outcome, Recipe, Series};
use serde_json::json;

use self::battery::Battery;
use crate::output::Output;
use crate::progress;
use crate::provenance::next_free;
use crate::threads;

#[derive(Debug, Args)]
pub struct Train {
    /// The recipe, a TOML file.
    #[arg(required_unless_present = "series", conflicts_with = "series")]
    recipe: Option<PathBuf>,
    /// The model directory to write; must not exist. Until training ends, everything is in DIR.partial. With --series: the
    /// model (--export), or the run directory (--battery) [default: runs/battery, or the next free runs/battery-2 …].
    #[arg(long, value_name = "DIR", required_unless_present = "series")]
    out: Option<PathBuf>,
    /// Stop after this many steps; the same command without it goes on.
    #[arg(long, value_name = "STEP", conflicts_with = "series")]
    stop_after: Option<u64>,
    /// A run whose recipe had `checkpoints`: nothing is trained. Alone, it lists the steps.
    #[arg(long, value_name = "DIR")]
    series: Option<PathBuf>,
    /// Write the model of this step of the series to --out, as a Hugging Face directory.
    #[arg(long, value_name = "STEP", requires = "series", requires = "out", conflicts_with = "battery")]
    export: Option<u64>,
    /// Measure every step of the series: a JSON file of measures. After training, the run directory is OUT/battery.
    #[arg(long, value_name = "FILE.json")]
    battery: Option<PathBuf>,
}

impl Train {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let battery = self.battery.as_deref().map(Battery::read).transpose()?;
        match (&self.series, &self.recipe) {
            (Some(series), _) => self.of_series(series, battery, started, output),
            (None, Some(recipe)) => self.train(recipe, battery, started, output),
            (None, None) => bail!("a recipe, or --series DIR, is needed"),
        }
    }

    fn of_series(&self, path: &Path, battery: Option<Battery>, started: Started, output: &mut Output) -> Result<()> {
        let series = Series::open(path)?;
        if let Some(battery) = battery {
            let out = self.out.clone().unwrap_or_else(|| next_free("battery"));
            return measuring::run(&series, &battery, &out, started, output);
        }
        match (self.export, &self.out) {
            (Some(step), Some(out)) => {
                series.export(step, out)?;
                let entry = series.at(step)?;
                output.document(&json!({
                    "out": out.to_string_lossy(), "step": step, "loss": entry.loss, "hash": entry.hash,
                }))?;
                output.line(&format!("the model of step {step} is in {}", out.display()))
            }
            (None, Some(_)) => bail!("--out is for --export STEP or --battery FILE.json"),
            (_, None) => list(&series, output),
        }
    }

    fn train(&self, recipe: &Path, battery: Option<Battery>, started: Started, output: &mut Output) -> Result<()> {
        threads::for_training()?;
        let out = self.out.as_deref().context("--out DIR is missing")?;
        let recipe = Recipe::read(recipe)?;
        if battery.is_some() && recipe.training.checkpoints.is_none() {
            bail!(
                "--battery measures every step of a series, but the recipe keeps none; give it, for example, \
                 training.checkpoints = {{ every = 10 }}"
            );
        }
        let bar = progress::bar(recipe.training.steps, "training");
        let mut last = None;
        let outcome = endoscope_organisms::train(&recipe, out, &mut |progress| {
            bar.set_position(progress.step);
            bar.set_prefix(format!("· loss {:.4}, {:.0} tokens/s", progress.loss, progress.tokens_per_second));
            last = Some(progress.clone());
            match self.stop_after {
                Some(stop) if progress.step >= stop => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        bar.finish_and_clear();
        let (directory, step, finished) = match outcome? {
            Outcome::Finished { directory, losses } => (directory, losses.len() as u64, true),
            Outcome::Stopped { directory, step } => (directory, step, false),
        };
        let loss = last.as_ref().map(|progress| progress.loss);
        let shown = loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        let steps = recipe.training.steps;
        let early = if finished && step < steps { format!(" of {steps}: accurate enough") } else { String::new() };
        match finished {
            true => output
                .line(&format!("trained for {step} steps{early}{shown}; the model is in {}", directory.display()))?,
            false => output.line(&format!(
                "stopped after {step} of {steps} steps{shown}; the same command goes on from {}",
                directory.display()
            ))?,
        }
        match battery {
            Some(battery) if finished => {
                measuring::run(&Series::open(&directory)?, &battery, &directory.join("battery"), started, output)
            }
            _ => output.document(&json!({
                "out": directory.to_string_lossy(),
                "finished": finished,
                "step": step,
                "steps": steps,
                "loss": loss,
                "tokens_per_second": last.as_ref().map(|progress| progress.tokens_per_second),
            })),
        }
    }
}

/// The steps of a series.
fn list(series: &Series, output: &mut Output) -> Result<()> {
    let entry =
        |entry: &endoscope_train::SeriesEntry| json!({"step": entry.step, "loss": entry.loss, "hash": entry.hash});
    let entries: Vec<serde_json::Value> = series.entries.iter().map(entry).collect();
    output.document(&json!({"series": series.directory.to_string_lossy(), "entries": entries}))?;
    for entry in &series.entries {
        let loss = entry.loss.map_or_else(|| "      ".to_string(), |loss| format!("{loss:.4}"));
        output.line(&format!("step {:>6}  loss {loss}  {}", entry.step, &entry.hash[..entry.hash.len().min(12)]))?;
    }
    Ok(())
}
