//! The binary `endoscope`: one file per verb under `commands/`. The only crate that prints or exits.

#![forbid(unsafe_code)]

mod chat;
mod commands;
mod input;
mod intervals;
mod memory;
mod output;
mod pair_arguments;
mod progress;
mod provenance;
mod threads;
mod token_rows;

use std::process::ExitCode;

use clap::Parser;

use crate::output::Output;

/// The system's allocator gives a tensor's pages back when it is freed, and the next tensor faults them in again: that
/// costs more than several kernels.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Look inside neural networks, and act on what is found.
#[derive(Debug, Parser)]
#[command(name = "endoscope", version, about, max_term_width = 100, propagate_version = true)]
struct Arguments {
    /// Print one JSON document on standard output, and nothing else there.
    #[arg(long, global = true)]
    json: bool,
    /// How many threads compute [default: RAYON_NUM_THREADS, or as many as the machine has].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    quiet_tokenizers();
    let arguments = Arguments::parse();
    let mut output = Output::new(arguments.json);
    let result = threads::use_only(arguments.threads).and_then(|()| arguments.command.run(&mut output));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The tokenizers library panics on some broken files. That is caught and becomes an error, which should be all one sees.
fn quiet_tokenizers() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|location| location.file().contains("/tokenizers-")) {
            default(panic);
        }
    }));
}
