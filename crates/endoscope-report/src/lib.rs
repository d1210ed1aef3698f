//! What a run found, and how it is kept and shown: tables with named axes, claims with controls, provenance, run
//! directories, and renderers for the terminal, for a page, for Parquet and for JSON.
//!
//! For whoever runs a method or a study: fill a [`Report`], render it, write it.
//!
//! ```
//! use endoscope_report::*;
//!
//! let axes = [("layer", labels(0..2)), ("position", labels(["<s>", "Once", " upon"]))];
//! let scores = Table::new("share of the logit difference restored", axes, vec![0., 0.1, 0.2, 0., 0.4, 0.9])?;
//!
//! let mut report = Report::new("Where the subject is read", "patch", "Layer 1 moves it to the last token.");
//! report.tables.insert("scores".into(), scores);
//! report.sections.push(Section::HeatMap {
//!     heading: Some("Residual stream".into()),
//!     table: "scores".into(),
//!     alternatives: vec![],
//!     scale: ColourScale::DIVERGING,
//!     caption: "One edit per layer and position.".into(),
//! });
//! report.claims.push(Claim::new(
//!     "The last position carries the answer.",
//!     Measured::number(0.9, "of the logit difference"),
//!     "0.0 at the first token, which no clean prompt changes",
//!     Verdict::Shown,
//! )?);
//! report.sections.push(Section::Claims { heading: None });
//!
//! let style = TerminalStyle { colour: Colour::None, width: 80 };
//! assert!(render_terminal(&report, &style).contains("0.90@"));
//!
//! # let parent = tempfile::tempdir()?;
//! # let out = parent.path().join("run");
//! let started = Started::now();
//! let run = RunDirectory::create(&out)?;
//! run.write_json("plan.json", &serde_json::json!({"edits": []}))?;
//! let provenance = Provenance::new("0.1.0", vec!["endoscope".into(), "patch".into()], &started);
//! run.write_provenance(&provenance)?;
//! run.write_report(&report, &provenance)?;
//! run.finish()?;
//! assert!(out.join("report.html").is_file() && out.join("tables/scores.parquet").is_file());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Not here: models, methods and their parameters; statistics (a table holds what was computed elsewhere); reading
//! Parquet back; comparing two runs.

#![forbid(unsafe_code)]

mod atomic;
mod claim;
mod colour;
mod error;
mod graph;
mod html;
mod json;
mod label;
mod number;
mod panel;
mod parquet_file;
mod provenance;
mod report;
mod run_directory;
mod table;
mod terminal;

pub use atomic::{check_destination, write_atomically};
pub use claim::{Claim, Control, Measured, Verdict};
pub use colour::ColourScale;
pub use error::{Error, Result};
pub use graph::{Graph, GraphEdge, GraphNode};
pub use html::{render_html, svg};
pub use label::{Label, labels};
pub use parquet_file::write_parquet;
pub use provenance::{HashedFile, Machine, Provenance, Started, peak_memory_bytes};
pub use report::{Report, Section};
pub use run_directory::RunDirectory;
pub use table::{Axes, Table};
pub use terminal::{Colour, TerminalStyle, render_terminal};
