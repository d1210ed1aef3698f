//! The one error type of the crate.

use std::io;
use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while activations are written, read or moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A corpus that cannot be read.
    #[error("the corpus {} cannot be read: {reason}", path.display())]
    Corpus {
        /// Its file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// One document that cannot be used.
    #[error("document {document} of {}: {reason}", path.display())]
    Document {
        /// The corpus.
        path: PathBuf,
        /// Its number, from 0.
        document: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Options that make no sense, or not together.
    #[error("{0}")]
    Settings(String),
    /// A site whose activations are no rows of numbers.
    #[error("the site {site} cannot be harvested: {reason}")]
    Site {
        /// Its name.
        site: String,
        /// Why.
        reason: String,
    },
    /// A harvest.json that is not one of this program.
    #[error("{} does not describe a harvest: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A shard that is not what was written.
    #[error(
        "the shard {} is damaged: {reason}; remove it and run the same harvest again, which makes this shard anew, or pull it again",
        path.display()
    )]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The harvest that is there was begun in another way.
    #[error(
        "the harvest in {} was begun with {what} = {then}, and now it is {now}; go on with what it was, or give another folder",
        path.display()
    )]
    Changed {
        /// Its folder.
        path: PathBuf,
        /// What differs.
        what: String,
        /// What it was.
        then: String,
        /// What it is now.
        now: String,
    },
    /// A harvest that has not come to its end.
    #[error("the harvest in {} is not complete ({rows} rows so far); run the same command again, which goes on", path.display())]
    Incomplete {
        /// Its folder.
        path: PathBuf,
        /// How many rows it has.
        rows: u64,
    },
    /// Somebody else writes there.
    #[error("another process is writing to {}; wait for it, or give another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Activations that are no numbers.
    #[error(
        "{count} activations of {output} in one batch are not finite; the first is {value} at dim {dim} of position {position} in sequence \
         {sequence} (document {document}, token id {token}){advice}. Nothing that was written before is lost; --allow-non-finite keeps such numbers"
    )]
    NotFinite {
        /// What was being written.
        output: String,
        /// How many of one batch.
        count: u64,
        /// The first of them.
        value: f32,
        /// Its place in the row.
        dim: usize,
        /// The position in the sequence.
        position: usize,
        /// The sequence, from 0.
        sequence: u64,
        /// The document, from 0.
        document: u64,
        /// The token there.
        token: u32,
        /// What may help.
        advice: &'static str,
    },
    /// An output that the harvest does not have.
    #[error("the harvest in {} has no `{name}`; it has {}", path.display(), known.join(", "))]
    UnknownOutput {
        /// The harvest's folder.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// What there is, the nearest names first.
        known: Vec<String>,
    },
    /// A place to which harvests are sent, or from which they come.
    #[error("{url}: {reason}")]
    Store {
        /// Where.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// Whoever watches asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] endoscope_report::Error),
    /// A site, plan or input is wrong.
    #[error(transparent)]
    Net(#[from] endoscope_net::Error),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// An error of the file system, to be given its source.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File(endoscope_report::Error::Io { doing, path, source })
    }
}
