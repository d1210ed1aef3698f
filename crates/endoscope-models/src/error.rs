//! The one error type of the crate.

use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a model directory, or with what it is asked to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read.
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
    /// The directory is no model.
    #[error("{path} is not a model directory: {reason}")]
    NotAModel {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// An architecture that has no translator.
    #[error("{path}: model_type `{model_type}` is not supported; supported are: {supported}")]
    UnknownFamily {
        /// config.json.
        path: PathBuf,
        /// What it says.
        model_type: String,
        /// What would be accepted.
        supported: String,
    },
    /// A family whose config.json is not written from a spec.
    #[error("no config.json of the family {family} is written from switches; give the keys of its own configuration")]
    NoConfig {
        /// Its `model_type`.
        family: &'static str,
    },
    /// A config.json whose meaning is not certain.
    #[error("{path} cannot be translated with certainty:\n  - {}", problems.join("\n  - "))]
    Config {
        /// config.json.
        path: PathBuf,
        /// Every problem found.
        problems: Vec<String>,
    },
    /// Weights that are missing, unused, of wrong shape or dtype, or not finite.
    #[error("the weights in {path} do not fit the model:\n  - {}", problems.join("\n  - "))]
    Weights {
        /// The weights file or index.
        path: PathBuf,
        /// Every problem found.
        problems: Vec<String>,
    },
    /// The model has no tokenizer and was given text.
    #[error("{path} is missing, so text cannot be tokenized; give token ids instead (--tokens 1,2,3)")]
    NoTokenizer {
        /// Where tokenizer.json should be.
        path: PathBuf,
    },
    /// The tokenizer failed, or has no beginning-of-sequence token.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// tokenizer.json or tokenizer_config.json.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// Messages that are no chat.
    #[error("the chat cannot be read: {0}")]
    Chat(String),
    /// The model has no chat template, or none of that name.
    #[error("{path} has no chat template{}; {advice}", name.as_ref().map(|name| format!(" named `{name}`")).unwrap_or_default())]
    NoChatTemplate {
        /// The model's directory.
        path: PathBuf,
        /// The name asked for, if any.
        name: Option<String>,
        /// What there is instead, or what to do.
        advice: String,
    },
    /// A chat template that cannot be read, or fails on these messages.
    #[error("the chat template {path} fails: {reason}")]
    ChatTemplate {
        /// The file that holds it.
        path: PathBuf,
        /// What went wrong, and in which of its lines.
        reason: String,
    },
    /// A chat template that does not take these messages.
    #[error("the chat template {path} refuses these messages: {reason}")]
    ChatRefused {
        /// The file that holds it.
        path: PathBuf,
        /// What the template says.
        reason: String,
    },
    /// Positions that cannot be read, or that the prompt does not have.
    #[error("`{written}` names no positions of the prompt: {reason}")]
    Positions {
        /// What was asked for.
        written: String,
        /// Why not, and what there is.
        reason: String,
    },
    /// A repository of the hub that cannot be named, found, reached or fetched.
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// A view of weights that is not there.
    #[error("there is no `{view}`{}: {reason}", layer.map(|layer| format!(" in layer {layer}")).unwrap_or_default())]
    View {
        /// What was asked for.
        view: String,
        /// Of which layer, if of one.
        layer: Option<usize>,
        /// Why not, and what there is.
        reason: String,
    },
    /// Weight processing that would change what this model computes.
    #[error("{process} would change what this model computes: {reason}")]
    Process {
        /// Which.
        process: crate::process::Process,
        /// Why.
        reason: String,
    },
    /// Singular values or eigenvalues that cannot be computed.
    #[error("{what} cannot be computed: {reason}")]
    Factored {
        /// Which numbers.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A setting of generation that makes no sense.
    #[error("{0}")]
    Generation(String),
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
}
