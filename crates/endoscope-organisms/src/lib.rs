//! Organisms: small models of ours with a mechanism that is known beforehand, and the tasks that make them.
//!
//! For whoever tests a method of interpretability where the right answer is known, offline. [`organisms`] are shipped
//! inside the binary and written as Hugging Face directories by [`write_organism`]; [`train`] makes one anew from its
//! recipe; [`task`] gives fresh data with the exact answers. Those that [`constructed`] gives were not trained: their weights
//! were written by hand, so that their circuits are known exactly.
//!
//! ```
//! let directory = tempfile::tempdir()?;
//! let path = directory.path().join("induction");
//! endoscope_organisms::write_organism("induction", &path)?;
//! let model = endoscope_models::Model::open(&path)?;
//! assert_eq!(model.tokenizer()?.encode("ba da ba", Default::default())?.ids.len(), 4, "<bos> and three words");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Not here: the training loop (endoscope-train), methods, any printing.

#![forbid(unsafe_code)]

pub mod constructed;
mod error;
mod registry;
mod shipped;
mod task;
pub mod tasks;
mod tokenizer;

pub use constructed::{Carries, Circuit, Constructed, constructed};
pub use error::{Error, Result};
pub use registry::{TASKS, task, task_parts, train};
pub use shipped::{Organism, organisms, write_organism};
pub use task::{BOS, Row, SPECIAL, TRAIN, Task, UNKNOWN, words};
pub use tasks::questions::{PromptPair, Question};
pub use tasks::streamed::{Exercise, Streamed};
pub use tokenizer::tokenizer_files;
