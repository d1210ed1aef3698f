//! `endoscope study`: the catalogue of papers, and those of them that run.

mod list;
mod run;
mod show;
mod table;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::output::Output;

#[derive(Debug, Args)]
pub struct StudyVerb {
    #[command(subcommand)]
    command: StudyCommand,
}

#[derive(Debug, Subcommand)]
enum StudyCommand {
    /// The papers of the catalogue, and which of them have a study.
    List(list::List),
    /// A paper's card, and its study's settings, seeds and limits.
    Show(show::Show),
    /// Runs a study and writes its report.
    Run(run::Run),
    /// What the studies of these run directories gave, claim by claim, as a table in Markdown.
    Table(table::TableOfRuns),
}

impl StudyVerb {
    pub fn run(self, output: &mut Output) -> Result<()> {
        match self.command {
            StudyCommand::List(list) => list.run(output),
            StudyCommand::Show(show) => show.run(output),
            StudyCommand::Run(run) => run.run(output),
            StudyCommand::Table(table) => table.run(output),
        }
    }
}
