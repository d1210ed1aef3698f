//! Studies: papers' methods as programs that say what the paper claims, what was measured here, and what the control gave.
//!
//! For whoever wants to know whether a method does what its paper says, and for whoever adds one. [`papers`] are the cards of the
//! catalogue; [`STUDIES`] those of them that run. A study is one file, an implementation of [`Study`]: settings declared
//! once, and a `run` that measures with at least three seeds and lets [`Test::judge`] compute each verdict.
//!
//! ```
//! use endoscope_studies::{Level, Lab, study};
//! let talking_heads = study("talking-heads")?;
//! assert!(talking_heads.settings().iter().any(|setting| setting.key == "rank"));
//! let lab = Lab::new(Level::Smoke, vec![1, 2, 3])?;
//! let report = talking_heads.report(&lab, &["rows=8".into()])?;
//! assert!(!report.claims.is_empty());
//! # Ok::<(), endoscope_studies::Error>(())
//! ```
//!
//! Not here: methods themselves (endoscope-causal and those beside it), training, any rendering or printing.

#![forbid(unsafe_code)]

mod cache;
pub mod catalogue;
mod error;
mod finding;
mod lab;
pub mod settings;
mod shared;
mod studies;
mod study;
mod vectors;

pub use catalogue::{Card, Kind, paper, papers};
pub use error::{Error, Result};
pub use finding::{CONFIDENCE, FEWEST_SEEDS, Finding, Line, Test};
pub use lab::{Lab, LabModel, Level, Progress, Watch};
pub use studies::STUDIES;
pub use study::{Outcome, Runnable, Study, Untested, overall, study};
