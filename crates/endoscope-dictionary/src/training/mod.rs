//! Training dictionaries: [`Settings`] go in, a [`Trainer`] sees one batch of [`Examples`] after another, and gives the
//! [`crate::Dictionary`] at any time.

mod checkpoint;
mod loss;
mod parameter;
mod preparation;
mod run;
mod select;
mod settings;
pub(crate) mod start;
mod streams;
mod terms;
#[cfg(test)]
mod tests;
mod trainer;

pub use run::{Job, REPORT_EVERY, Stream, Trained, train};
pub use settings::{BiasStart, InputScaling, Objective, Penalty, Settings};
pub use streams::NetworkStream;
pub use trainer::{Examples, Progress, Trainer};
