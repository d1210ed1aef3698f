//! The one error type of the crate.

use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a recipe or a training run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A file or folder that cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A recipe that is no recipe.
    #[error("the recipe {path} cannot be used:\n  - {}", problems.join("\n  - "))]
    Recipe {
        /// recipe.toml.
        path: PathBuf,
        /// Every problem found, with the name of its key.
        problems: Vec<String>,
    },
    /// The result is already there.
    #[error("the output directory {path} exists; choose another name, or remove it to train anew")]
    OutputExists {
        /// The directory.
        path: PathBuf,
    },
    /// The place of the unfinished run is taken by something else.
    #[error("{path} is in the way: it is where an unfinished run is kept, but {reason}; move it away")]
    InTheWay {
        /// The directory.
        path: PathBuf,
        /// Why it is no unfinished run.
        reason: String,
    },
    /// Another process trains into the same directory.
    #[error("another process is training in {path}; wait for it, or choose another output directory")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The unfinished run was begun with another recipe.
    #[error(
        "the unfinished run in {path} was begun with another recipe, so it cannot be continued; restore the recipe, or \
         remove the directory to train anew. What changed:\n  - {}",
        changes.join("\n  - ")
    )]
    RecipeChanged {
        /// The directory of the unfinished run.
        path: PathBuf,
        /// Each changed key with both values.
        changes: Vec<String>,
    },
    /// A checkpoint that cannot be continued from.
    #[error("the checkpoint {path} cannot be used: {reason}; remove it to continue from the one before")]
    Checkpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Weights that a training cannot start from.
    #[error("training cannot start from the model {path}: {reason}")]
    Start {
        /// Its directory.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A series of checkpoints that cannot be used.
    #[error("the series {path} cannot be used: {reason}")]
    Series {
        /// Its folder, or the file in it.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A batch that does not fit the model.
    #[error("the task's batch of step {step} cannot be trained on: {reason}")]
    Batch {
        /// The step.
        step: u64,
        /// What is wrong.
        reason: String,
    },
    /// Training diverged.
    #[error(
        "at step {step} the {what} is {value}: training diverged; lower training.learning_rate or \
         training.gradient_clip and start again. Checkpoints up to then are kept in {kept}"
    )]
    NotFinite {
        /// The step, counted from 1.
        step: u64,
        /// "loss" or "gradient norm".
        what: &'static str,
        /// NaN or infinite.
        value: f64,
        /// The directory of the unfinished run.
        kept: PathBuf,
    },
    /// A weight that has no gradient: a defect of the network, not of the recipe.
    #[error("the weight `{name}` has no gradient, so it cannot be trained")]
    NoGradient {
        /// The weight's name in the file.
        name: String,
    },
    /// The model refused.
    #[error(transparent)]
    Model(#[from] endoscope_models::Error),
    /// A site, plan or input is wrong.
    #[error(transparent)]
    Net(#[from] endoscope_net::Error),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn read(path: &Path, reason: impl ToString) -> Self {
        Self::Read { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn write(path: &Path, reason: impl ToString) -> Self {
        Self::Write { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn series(path: &Path, reason: impl ToString) -> Self {
        Self::Series { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn checkpoint(path: &Path, reason: impl ToString) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), reason: reason.to_string() }
    }
}
