//! The one error type of the crate.

use std::path::PathBuf;

use crate::site::AxisName;

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a site name, a plan, or the inputs of a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pattern matches no site.
    #[error("unknown site `{pattern}`; the nearest names are: {}", nearest.join(", "))]
    UnknownSite {
        /// What was asked for.
        pattern: String,
        /// The nearest accepted names, best first.
        nearest: Vec<String>,
    },
    /// A site name that would be right with another layer.
    #[error("`{pattern}` names layer {layer}, but the network has {layers} layers (0 to {})", .layers.saturating_sub(1))]
    LayerOutOfRange {
        /// What was asked for.
        pattern: String,
        /// The layer that it names.
        layer: i64,
        /// The number of layers that exist.
        layers: usize,
    },
    /// A pattern that is no valid glob.
    #[error("`{pattern}` is not a valid site pattern: {reason}")]
    BadPattern {
        /// What was asked for.
        pattern: String,
        /// What the glob parser said.
        reason: String,
    },
    /// Two sites of one network with the same name.
    #[error("the network declares the site `{0}` twice")]
    DuplicateSite(String),
    /// A selection names an axis which the site does not have.
    #[error("site `{site}` has no axis `{axis}`; its axes are: {axes}")]
    NoSuchAxis {
        /// The full site name.
        site: String,
        /// The axis asked for.
        axis: AxisName,
        /// The axes that exist.
        axes: String,
    },
    /// What does not fit one row of a batch whose rows are computed apart.
    #[error("in row {row} of the batch, of {length} tokens: {error}")]
    Row {
        /// The row.
        row: usize,
        /// Its length.
        length: usize,
        /// What is wrong there.
        error: Box<Error>,
    },
    /// A selected index that does not exist.
    #[error("index {index} is out of range for axis `{axis}` of `{site}`, which has {size} entries")]
    IndexOutOfRange {
        /// The full site name.
        site: String,
        /// The axis.
        axis: AxisName,
        /// The index asked for.
        index: i64,
        /// How many entries there are.
        size: usize,
    },
    /// An index text that cannot be read.
    #[error(
        "`{0}` is not an index: write a number, a list of numbers, \"all\", \"last\", \"generated\" or a range like \"2..5\" or \"-1..\""
    )]
    BadIndex(String),
    /// The same index twice in one selection.
    #[error("index {index} is listed twice for axis `{axis}` of `{site}`")]
    RepeatedIndex {
        /// The full site name.
        site: String,
        /// The axis.
        axis: AxisName,
        /// The repeated index.
        index: i64,
    },
    /// One site captured twice with different selections.
    #[error("site `{0}` is captured twice with different selections; one capture a site")]
    CapturedTwice(String),
    /// A value whose shape does not fit.
    #[error("the {what} of the edit at `{site}` has shape {found:?}, which does not fit {expected:?}")]
    ValueShape {
        /// The full site name.
        site: String,
        /// Which value of the edit.
        what: &'static str,
        /// The value's shape.
        found: Vec<usize>,
        /// What it must fit (broadcast to).
        expected: Vec<usize>,
    },
    /// An edit that cannot be made at this kind of site.
    #[error("the edit at `{site}` is not possible: {reason}")]
    EditNotPossible {
        /// The full site name.
        site: String,
        /// Why.
        reason: String,
    },
    /// A value that names a file and has not been loaded.
    #[error("the plan names the file {0}, which has not been loaded: call Plan::load first")]
    NotLoaded(PathBuf),
    /// A file of a plan that cannot be read.
    #[error("cannot read {path} named by the plan: {reason}")]
    PlanFile {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A number in a plan that is NaN or infinite.
    #[error("the {what} of the edit at `{site}` holds a NaN or an infinity")]
    NotFinite {
        /// The full site name (or pattern).
        site: String,
        /// Which value.
        what: &'static str,
    },
    /// A site that the run was not asked to capture.
    #[error("site `{0}` was not captured by this run")]
    NotCaptured(String),
    /// Inputs that the network cannot take.
    #[error("{0}")]
    Inputs(String),
    /// A failure inside the network.
    #[error("{0}")]
    Network(String),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
