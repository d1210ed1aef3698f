//! `endoscope bench`: how fast this machine does what the other verbs do, against what the machine could do at most.
//!
//! Without `--work` every work is repeated in turns and a table is printed. With it, the verb is a worker for a script that
//! interleaves it with other tools: for each line on standard input it does the work once and answers with its seconds.

mod cost;
mod machine;
mod model;
mod suite;
mod training;
mod work;
mod worker;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::input::WeightsArgument;
use crate::output::Output;
use crate::threads;
use work::{Size, Work};

#[derive(Debug, Args)]
pub struct Bench {
    /// A model directory or hub id [default: random weights in GPT-2 small's shape, made in memory].
    model: Option<PathBuf>,
    #[command(flatten)]
    weights: WeightsArgument,
    /// Do only these works, separated by commas [default: all of them].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORK,…", conflicts_with = "work")]
    only: Vec<Work>,
    /// How often each work is done; the median counts.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "work")]
    repeats: u32,
    /// Be a worker: do this once for each line on standard input.
    #[arg(long, value_enum)]
    work: Option<Work>,
    /// Rows of a worker's batch [default: as without --work].
    #[arg(long, requires = "work", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Tokens in each row of a worker's batch (of decoding and opening: of the prompt) [default: as without --work].
    #[arg(long, requires = "work", value_parser = clap::value_parser!(u32).range(1..))]
    length: Option<u32>,
}

impl Bench {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let directory = self.model.as_deref();
        let depth = self.weights.depth();
        if self.work == Some(Work::Train) || self.only == [Work::Train] {
            threads::for_training()?;
        }
        match self.work {
            None => suite::run(directory, &self.only, self.repeats as usize, depth, output),
            Some(work) => {
                let usual = work.usual_size();
                let given = |given: Option<u32>, usual: usize| given.map_or(usual, |given| given as usize);
                let size = Size { batch: given(self.batch, usual.batch), length: given(self.length, usual.length) };
                worker::run(directory, work, size, depth)
            }
        }
    }
}
