//! Training small decoders: a recipe goes in, a Hugging Face directory with checkpoints comes out.
//!
//! For whoever makes an organism or studies how a mechanism forms. [`train`] needs a [`Recipe`], something that gives
//! [`Batches`], and a name for the result; a run that was killed continues from its last checkpoint when it is started
//! again, with the same losses bit for bit. Start reading at [`train`], then `run_directory.rs` for what lies on disk; a
//! [`Series`] gives back the weights of any step that the recipe kept.
//!
//! ```
//! use std::ops::ControlFlow;
//! use endoscope_train::{Batch, Batches, Outcome, Recipe, train};
//!
//! /// Counts upwards.
//! struct Counting;
//!
//! impl Batches for Counting {
//!     fn vocabulary(&self) -> usize { 8 }
//!     fn length(&self) -> usize { 6 }
//!     fn batch(&self, seed: u64, step: u64, rows: usize) -> Batch {
//!         let first = |row: usize| seed as u32 + step as u32 + row as u32;
//!         let tokens = (0..rows).map(|row| (0..6).map(|at| (first(row) + at) % 8).collect()).collect();
//!         Batch { tokens, mask: vec![vec![true; 6]; rows] }
//!     }
//! }
//!
//! let recipe = Recipe::parse("recipe.toml", r#"
//! [model]
//! family = "gpt2"
//! context = 6
//! d_model = 8
//! layers = 1
//! heads = 2
//! d_mlp = 16
//!
//! [task]
//! name = "counting"
//!
//! [training]
//! steps = 3
//! batch = 4
//! seed = 1
//! learning_rate = 0.001
//! "#)?;
//! # let directory = tempfile::tempdir()?;
//! # let out = directory.path().join("model");
//! let outcome = train(&recipe, &Counting, &[], &out, &mut |progress| {
//!     assert!(progress.loss.is_finite());
//!     ControlFlow::Continue(())
//! })?;
//! assert!(matches!(outcome, Outcome::Finished { .. }));
//! # endoscope_models::Model::open(&out)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Not here: tasks and their registry (endoscope-organisms), the forward pass (endoscope-models), any printing.

#![forbid(unsafe_code)]

mod adamw;
mod batches;
mod checkpoint;
mod checkpoints;
mod ema;
mod error;
mod loss;
mod model_recipe;
mod parameters;
mod recipe;
mod recipe_keys;
mod run_directory;
mod schedule;
mod series;
mod series_writer;
mod slope;
mod start;
mod trainer;

pub use adamw::{AdamW, Moments};
pub use batches::{Batch, Batches, generator};
pub use checkpoints::{Checkpoints, EarlyStop};
pub use ema::{EMA, Ema};
pub use error::{Error, Result};
pub use loss::{Answered, LossOn, answered, cross_entropy};
pub use model_recipe::{ModelRecipe, PositionsRecipe, Shape, ShortKeys};
pub use parameters::Parameters;
pub use recipe::{Recipe, TaskRecipe, TrainingRecipe};
pub use run_directory::{CHECKPOINTS, partial_directory};
pub use schedule::learning_rate;
pub use series::{SERIES, Series, SeriesEntry};
pub use slope::{Slope, slope};
pub use start::Start;
pub use trainer::{Outcome, Progress, initial_model, train};
