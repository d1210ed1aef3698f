//! `endoscope bench`: a worker that repeats one piece of work for a script which interleaves it with another tool.
//!
//! Opens the model, then for each line on standard input runs the work once and prints one line of JSON with its
//! seconds. Random tokens of a fixed seed; the first repetition warms up.

use std::io::BufRead;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};
use endoscope_causal::{Pair, Planner, Sweep, SweepAxis, sweep};
use endoscope_models::Model;
use endoscope_models::decoder::capture_everything;
use endoscope_net::{Inputs, Network, Plan};
use serde_json::json;

use crate::input::ModelArgument;
use crate::output::Output;

#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    model: ModelArgument,
    /// What to time.
    #[arg(long, value_enum)]
    work: Work,
    /// Rows of the batch.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens in each row.
    #[arg(long, default_value_t = 128)]
    length: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Work {
    /// One forward pass, logits at every position.
    Forward,
    /// One forward pass that captures every site.
    Capture,
    /// A denoising sweep of resid_pre over layer x position, with its clean and corrupt runs.
    Sweep,
}

impl Bench {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let model = self.model.open()?;
        for line in std::io::stdin().lock().lines() {
            line?;
            let start = Instant::now();
            self.once(&model)?;
            let seconds = start.elapsed().as_secs_f64();
            let result = json!({"work": format!("{:?}", self.work).to_lowercase(), "seconds": seconds});
            // One document a line: whoever asked waits for it.
            Output::new(false).line(&result.to_string())?;
        }
        let _ = output;
        Ok(())
    }

    fn once(&self, model: &Model) -> Result<()> {
        let vocabulary = model.spec().vocabulary as u64;
        // Any tokens do: a multiplicative generator spreads them over the vocabulary.
        let token = |at: u64| ((at + 1).wrapping_mul(6_364_136_223_846_793_005) >> 33) % vocabulary;
        let row = |row: u64| (0..self.length as u64).map(|at| token(row * 1_000_003 + at) as u32).collect::<Vec<u32>>();
        let rows = || Inputs::tokens((0..self.batch as u64).map(row).collect());
        match self.work {
            Work::Forward => drop(model.decoder.run(&rows()?, &Plan::default())?),
            Work::Capture => drop(model.decoder.run(&rows()?, &capture_everything())?),
            Work::Sweep => {
                let pair = Pair { clean: row(0), corrupt: row(1), answers: vec![0], wrong_answers: vec![1] };
                let patching = Sweep::new("resid_pre", [SweepAxis::Layer, SweepAxis::Position]);
                sweep(&model.decoder, &patching, &[pair], Planner::default(), |_| ControlFlow::Continue(()))?;
            }
        }
        Ok(())
    }
}
