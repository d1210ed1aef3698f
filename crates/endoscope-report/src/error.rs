//! What can go wrong, one sentence a variant.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that this crate can refuse or fail at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A table's axes are fewer than one or more than four.
    #[error("a table has {found} axes; it needs between 1 and 4")]
    Rank {
        /// How many were given.
        found: usize,
    },

    /// Two axes of one table share a name.
    #[error("two axes of the table are named `{name}`; each axis needs its own name")]
    RepeatedAxis {
        /// The shared name.
        name: String,
    },

    /// An axis name that JSON, Parquet or a page could not keep apart from a number or from nothing.
    #[error("`{}` cannot name an axis; a name starts with a letter or `_` and holds no control character", .name.escape_debug())]
    AxisName {
        /// The refused name.
        name: String,
    },

    /// The number of values is not the product of the axes' lengths.
    #[error("the table has {found} values, but its axes {shape:?} need {}", .needed.map_or("more than can be counted".into(), |n| n.to_string()))]
    Count {
        /// How many values were given.
        found: usize,
        /// The length of each axis, in order.
        shape: Vec<usize>,
        /// Their product, unless it overflows.
        needed: Option<usize>,
    },

    /// Nested JSON values that do not follow the axes.
    #[error("`{place}` {problem}, but axis `{axis}` has {expected} labels")]
    Nesting {
        /// Where in the JSON, for example `values[2]`.
        place: String,
        /// What is there.
        problem: String,
        /// The axis that this depth belongs to.
        axis: String,
        /// How many entries that axis needs.
        expected: usize,
    },

    /// A number where a list was needed, or the other way round, below the last axis.
    #[error("`{place}` is a list, but the table's axes end above it")]
    TooDeep {
        /// Where in the JSON, for example `values[2][0]`.
        place: String,
    },

    /// Something else where a value of a table belongs.
    #[error("`{place}` is not a number or null")]
    NotANumber {
        /// Where in the JSON, for example `values[2][0]`.
        place: String,
    },

    /// Something else where the text of a table's cell belongs.
    #[error("`{place}` is not a text")]
    NotAText {
        /// Where in the JSON, for example `texts[2][0]`.
        place: String,
    },

    /// A claim's control was left blank.
    #[error("the claim has no control; say what was measured where the effect must be absent")]
    NoControl,

    /// A report whose sections and tables do not fit together; every problem is listed.
    #[error("the report `{title}` does not hold together: {}", .problems.join("; "))]
    Report {
        /// The report's title.
        title: String,
        /// One clause for each problem.
        problems: Vec<String>,
    },

    /// JSON that cannot be read or written.
    #[error("{what} is not valid JSON of its kind: {source}")]
    Json {
        /// Which document.
        what: String,
        /// What serde says.
        source: serde_json::Error,
    },

    /// The place for a run directory is taken.
    #[error("`{}` exists already; choose another --out or remove it", .path.display())]
    Exists {
        /// The taken path.
        path: PathBuf,
    },

    /// A path that cannot be replaced by a file.
    #[error("`{}` is {kind}, so no file can be written there; choose another path", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there instead of a regular file.
        kind: &'static str,
    },

    /// A file name that leads out of the run directory.
    #[error("`{}` cannot name a file of a run directory; use a relative path without `..`", .name.escape_debug())]
    FileName {
        /// The refused name.
        name: String,
    },

    /// The system refused to read or write.
    #[error("cannot {doing} `{}`: {source}", .path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },

    /// Two columns of a Parquet file would share a name.
    #[error("the table's columns for Parquet would hold `{name}` twice; rename the axis")]
    RepeatedColumn {
        /// The shared name.
        name: String,
    },

    /// The Parquet encoder failed.
    #[error("cannot encode the table as Parquet: {source}")]
    Parquet {
        /// What the encoder says.
        #[from]
        source: parquet::errors::ParquetError,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`, for use in `map_err`.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { doing, path: path.to_owned(), source }
    }
}
