//! The one error type of the crate.

use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a dictionary, its files, or what it is applied to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read or is not what it should be.
    #[error("{} cannot be used as a dictionary: {reason}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A dictionary of a kind that is not computed here.
    #[error("{} asks for {what}, which is not supported", path.display())]
    Unsupported {
        /// The file or directory.
        path: PathBuf,
        /// What it asks for, by the name that the file gives it.
        what: String,
    },
    /// A file that cannot be written.
    #[error("{} cannot be written: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Weights that do not fit each other.
    #[error("the dictionary's {name} has shape {found:?}, not {expected:?}")]
    Shape {
        /// Which array.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What the others demand.
        expected: Vec<usize>,
    },
    /// A configuration that makes no sense.
    #[error("the dictionary's configuration is not possible: {0}")]
    Config(String),
    /// Activations of the wrong width, or that are not numbers.
    #[error("these activations cannot be used: {0}")]
    Activations(String),
    /// A training that makes no sense, or went wrong.
    #[error("the dictionary cannot be trained: {0}")]
    Training(String),
    /// A feature that the dictionary does not have.
    #[error("there is no feature {feature}: the dictionary has {latents}")]
    NoSuchFeature {
        /// The number asked for.
        feature: usize,
        /// How many there are.
        latents: usize,
    },
    /// A measure that cannot be taken.
    #[error("this cannot be measured: {0}")]
    Measure(String),
    /// From the network.
    #[error(transparent)]
    Network(#[from] endoscope_net::Error),
    /// From a tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// A file that is not what it should be.
    pub(crate) fn file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_path_buf(), reason: reason.to_string() }
    }

    /// A file that cannot be written.
    pub(crate) fn write(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Write { path: path.to_path_buf(), reason: reason.to_string() }
    }
}
