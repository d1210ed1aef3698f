//! What goes to standard output and standard error: the only place that writes there.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use endoscope_report::{Colour, Provenance, Report, RunDirectory, TerminalStyle, render_terminal};
use serde::Serialize;

/// Standard output, as text or as one JSON document.
#[derive(Debug)]
pub struct Output {
    /// Whether one JSON document is wanted.
    pub json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Text, in text mode only.
    pub fn text(&mut self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { write(text) }
    }

    /// A line of text, in text mode only.
    pub fn line(&mut self, line: &str) -> Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// The one JSON document, in JSON mode only.
    pub fn document(&mut self, document: &impl Serialize) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        write(&(serde_json::to_string_pretty(document)? + "\n"))
    }

    /// A report: rendered for this terminal, or as JSON.
    pub fn report(&mut self, report: &Report) -> Result<()> {
        self.text(&render_terminal(report, &style()))
    }

    /// Writes what a run directory ends with, shows the report, and says where it is.
    pub fn finish(&mut self, directory: RunDirectory, provenance: &Provenance, report: &Report) -> Result<()> {
        directory.write_provenance(provenance)?;
        directory.write_report(report, provenance)?;
        let path = directory.finish()?;
        self.document(report)?;
        self.report(report)?;
        self.line(&format!("\nwritten to {} (open report.html)", path.display()))
    }

    /// A remark to whoever sits there; never on standard output.
    pub fn note(&self, note: &str) {
        complain(&format!("note: {note}"));
    }
}

/// True colour where a person looks and has not asked for none (no-color.org).
pub fn style() -> TerminalStyle {
    let terminal = std::io::stdout().is_terminal();
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let columns = console::Term::stdout().size_checked().map_or(100, |(_, columns)| usize::from(columns));
    TerminalStyle {
        colour: if terminal && !refused && !dumb { Colour::TrueColour } else { Colour::None },
        width: columns.clamp(40, 160),
    }
}

fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("standard output was closed before everything was written to it")
}

/// To standard error; if even that is closed there is nobody left to tell.
pub fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}
