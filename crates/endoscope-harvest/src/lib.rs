//! Activations of a corpus on disk: written so that a kill loses nothing, and read in order or shuffled within a budget of memory.
//!
//! For whoever trains on activations (dictionaries, probes, transcoders) or reads them with other tools: a harvest is a folder of
//! safetensors files and one `harvest.json`.
//!
//! - [`Corpus`] reads documents; whoever has a tokenizer makes token ids of them.
//! - [`harvest`] packs token ids into sequences ([`Packing`]), runs a [`Network`](endoscope_net::Network) on them and writes shards.
//! - [`ActivationReader`] reads rows; [`Shuffled`] gives them in the order of a training.
//! - [`push`] and [`pull`] move a harvest to S3-compatible stores and back.
//!
//! ```no_run
//! use endoscope_harvest::{ActivationReader, Shuffle};
//!
//! let reader = ActivationReader::open("harvest")?;
//! let shuffle = Shuffle { seed: 0, buffer_rows: 1 << 18, batch_rows: 4096 };
//! for batch in reader.shuffled(&["blocks.0.hook_resid_post"], shuffle)?.take(1000) {
//!     let batch = batch?;
//!     assert_eq!(batch.values[0].dim(0)?, batch.rows.len());
//! }
//! # Ok::<(), endoscope_harvest::Error>(())
//! ```
//!
//! Not here: tokenizers and models, dictionaries, and what is trained on the rows.

#![forbid(unsafe_code)]

mod corpus;
mod dtype;
mod error;
mod http;
mod manifest;
mod output;
mod reader;
mod run;
mod sequence;
mod shard;
mod shuffled;
mod store;

pub use corpus::{Content, Corpus, Document, Kind};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use manifest::{MANIFEST, Manifest, OutputRecord, Per, ShardRecord, VERSION};
pub use output::{Features, Output, ProbeScores, Reduction, Scores};
pub use reader::{ActivationReader, SequenceIndex, TokenIndex};
pub use run::{Documents, Harvested, NonFinite, Progress, Settings, harvest};
pub use sequence::{Cursor, Packing, Sequence, SequenceMode, Sequences};
pub use shuffled::{Batch, Shuffle, ShuffleCursor, Shuffled};
pub use store::{Access, Moved, pull, push};

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
