//! `endoscope train`: a recipe to a model, with checkpoints; the same command continues a run that was stopped.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use endoscope_train::{Outcome, Recipe};
use serde_json::json;

use crate::output::Output;
use crate::progress;

#[derive(Debug, Args)]
pub struct Train {
    /// The recipe, a TOML file.
    recipe: PathBuf,
    /// The model directory to write; must not exist. Until training ends, everything is in DIR.partial.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Stop after this many steps; the same command without it goes on.
    #[arg(long, value_name = "STEP")]
    stop_after: Option<u64>,
}

impl Train {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let recipe = Recipe::read(&self.recipe)?;
        let bar = progress::bar(recipe.training.steps, "training");
        let mut last = None;
        let outcome = endoscope_organisms::train(&recipe, &self.out, &mut |progress| {
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
        output.document(&json!({
            "out": directory.to_string_lossy(),
            "finished": finished,
            "step": step,
            "steps": recipe.training.steps,
            "loss": loss,
            "tokens_per_second": last.as_ref().map(|progress| progress.tokens_per_second),
        }))?;
        let loss = loss.map_or(String::new(), |loss| format!(", loss {loss:.4}"));
        match finished {
            true => output.line(&format!("trained for {step} steps{loss}; the model is in {}", directory.display())),
            false => output.line(&format!(
                "stopped after {step} of {} steps{loss}; the same command goes on from {}",
                recipe.training.steps,
                directory.display()
            )),
        }
    }
}
