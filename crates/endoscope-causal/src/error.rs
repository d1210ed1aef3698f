//! The one error type of the crate.

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with prompts, a metric or a sweep.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A prompt file that cannot be read.
    #[error("the prompts cannot be read: {0}")]
    Prompts(String),
    /// One prompt pair that cannot be used.
    #[error("prompt pair {pair}: {reason}")]
    Pair {
        /// Its number, from 0.
        pair: usize,
        /// What is wrong.
        reason: String,
    },
    /// Clean and corrupt have different numbers of tokens.
    #[error(
        "prompt pair {pair}: clean has {} tokens and corrupt has {}; patching needs equal length\n  clean:   {}\n  corrupt: {}",
        clean.len(), corrupt.len(), clean.join(" | "), corrupt.join(" | ")
    )]
    UnequalLength {
        /// Its number, from 0.
        pair: usize,
        /// The tokens of the clean prompt.
        clean: Vec<String>,
        /// The tokens of the corrupt prompt.
        corrupt: Vec<String>,
    },
    /// A metric that cannot be computed.
    #[error("the metric {metric} cannot be computed: {reason}")]
    Metric {
        /// Its name.
        metric: &'static str,
        /// Why.
        reason: String,
    },
    /// A sweep that makes no sense.
    #[error("the sweep is not possible: {0}")]
    Sweep(String),
    /// A node, an edge or a circuit that is not one of this network.
    #[error("the circuit is not possible: {0}")]
    Circuit(String),
    /// A lens that cannot be made or used.
    #[error("the lens cannot be used: {0}")]
    Lens(String),
    /// One triple that cannot be used.
    #[error("triple {triple}: {reason}")]
    Triple {
        /// Its number, from 0.
        triple: usize,
        /// What is wrong.
        reason: String,
    },
    /// An alignment that makes no sense, or whose training went wrong.
    #[error("the alignment is not possible: {0}")]
    Alignment(String),
    /// A network that cannot give its activations to the other.
    #[error("the donor network does not fit: {0}")]
    Donor(String),
    /// The memory promised is not enough for a single point.
    #[error(
        "{promised} bytes of memory are too little: {held} are held or kept free before the first point, and a point needs {least}; give at least {}",
        held.saturating_add(*least)
    )]
    Memory {
        /// What was promised.
        promised: u64,
        /// What the process holds with model, base run and donor run, and what is kept free for the rest.
        held: u64,
        /// What the costliest point needs.
        least: u64,
    },
    /// A probe that cannot be fitted or scored.
    #[error("the probe is not possible: {0}")]
    Probe(String),
    /// Points whose dimension cannot be estimated.
    #[error("the dimension cannot be estimated: {0}")]
    Dimension(String),
    /// A statistic that these numbers do not have.
    #[error("the statistic cannot be computed: {0}")]
    Statistics(String),
    /// Whoever watches asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A site, plan or input is wrong.
    #[error(transparent)]
    Net(#[from] endoscope_net::Error),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
