//! `endoscope dict`: dictionaries trained, evaluated, read, put together into graphs, shown, and converted.

mod chosen;
mod convert;
mod endpoint;
mod eval;
mod features;
mod graph;
mod harvested;
mod show;
pub mod source;
mod train;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::output::Output;
pub use chosen::Chosen;
pub use convert::SiteArguments;

#[derive(Debug, Args)]
pub struct DictVerb {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train dictionaries on a harvest, or on a model that runs as they need it.
    Train(train::TrainDictionary),
    /// What a dictionary explains, with how many latents, and what the model loses with it in its place.
    Eval(eval::Evaluate),
    /// Where features are active, what they write, and what a language model makes of them.
    Features(features::Features),
    /// The attribution graph of one prompt over transcoders.
    Graph(graph::AttributionGraph),
    /// What a dictionary of any format is: sizes, sites, how latents come about, what its file says of it.
    Show(show::Show),
    /// A dictionary of any format, or a set of them, in another.
    Convert(convert::Convert),
}

impl DictVerb {
    pub fn run(self, output: &mut Output) -> Result<()> {
        match self.command {
            Command::Train(verb) => verb.run(output),
            Command::Eval(verb) => verb.run(output),
            Command::Features(verb) => verb.run(output),
            Command::Graph(verb) => verb.run(output),
            Command::Show(verb) => verb.run(output),
            Command::Convert(verb) => verb.run(output),
        }
    }
}
