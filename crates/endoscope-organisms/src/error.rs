//! The one error type of the crate.

use std::path::PathBuf;

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a task, a recipe or an organism.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that is not in the registry of tasks.
    #[error("there is no task `{name}`; tasks are: {known}")]
    UnknownTask {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Parameters that the task cannot use.
    #[error("the task `{task}` cannot be made from [task]:\n  - {}", problems.join("\n  - "))]
    Parameters {
        /// The task's name.
        task: &'static str,
        /// Every problem found, with the name of its key.
        problems: Vec<String>,
    },
    /// A split or a change that the task does not have.
    #[error("the task `{task}` has no {what} `{name}`; it has: {known}")]
    UnknownPart {
        /// The task's name.
        task: &'static str,
        /// `split` or `change`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// No prompt was found whose answer the change alters.
    #[error(
        "the task `{task}` found no prompts of the split `{split}` whose answers `{change}` makes different; give it more data, or another `task.seed`"
    )]
    NoPair {
        /// The task's name.
        task: &'static str,
        /// What was to be changed.
        change: String,
        /// Where the clean prompt was to come from.
        split: String,
    },
    /// A model too short for its task.
    #[error("`model.context` is {context}, but the task `{task}` has sequences of up to {length} tokens; raise it")]
    Context {
        /// The task's name.
        task: &'static str,
        /// What the recipe says.
        context: usize,
        /// What is needed.
        length: usize,
    },
    /// A name that is not among the shipped organisms.
    #[error("there is no organism `{name}`; shipped are: {known}")]
    UnknownOrganism {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A name that is not among the constructed organisms.
    #[error("there is no constructed organism `{name}`; there are: {known}")]
    UnknownConstructed {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A directory that would be written over.
    #[error("{path} exists; choose another name, or remove it")]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A file or folder that cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A file that cannot be made.
    #[error("a file cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The weights of a constructed organism cannot be made.
    #[error(transparent)]
    Model(#[from] endoscope_models::Error),
    /// Training failed, or the recipe is wrong.
    #[error(transparent)]
    Train(#[from] endoscope_train::Error),
}
