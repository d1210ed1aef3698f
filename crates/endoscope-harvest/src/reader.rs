//! Reading a harvest: ranges of rows, in order, with where each comes from.

use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::manifest::{INDEX, MANIFEST, Manifest, OutputRecord, Per, SEQUENCE_INDEX};
use crate::shard::{Shard, verify};

/// A complete harvest, open for reading. It holds no activations; files are read where they are asked for.
#[derive(Debug)]
pub struct ActivationReader {
    pub(crate) directory: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
}

/// Where rows of tokens come from; one entry a row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenIndex {
    /// The document, from 0.
    pub document: Vec<i64>,
    /// The sequence, from 0.
    pub sequence: Vec<i64>,
    /// The position in the sequence, from 0.
    pub position: Vec<i64>,
    /// The token id.
    pub token: Vec<i64>,
}

/// Where rows of sequences come from; one entry a row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SequenceIndex {
    /// The document of the first token, from 0.
    pub document: Vec<i64>,
    /// The number of the sequence, from 0.
    pub number: Vec<i64>,
    /// How many rows of tokens it has.
    pub tokens: Vec<i64>,
}

impl ActivationReader {
    /// Opens a complete harvest. The lengths and headers of all shards are checked; [`ActivationReader::verify`] checks every byte.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref().to_path_buf();
        let Some(manifest) = Manifest::read(&directory)? else {
            let reason = "it is not there".to_string();
            return Err(Error::Manifest { path: directory.join(MANIFEST), reason });
        };
        if !manifest.complete {
            return Err(Error::Incomplete { path: directory, rows: manifest.rows(Per::Token) });
        }
        let shards = manifest.shards.iter().map(|record| Shard::open(&directory, &manifest, record));
        let shards = shards.collect::<Result<_>>()?;
        Ok(Self { directory, manifest, shards })
    }

    /// What the harvest is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Reads every shard and compares its SHA-256 with that of what was written: worth while before a long training.
    pub fn verify(&self, mut tell: impl FnMut(usize) -> Result<()>) -> Result<()> {
        self.manifest.shards.iter().enumerate().try_for_each(|(number, record)| {
            verify(&self.directory, record)?;
            tell(number + 1)
        })
    }

    /// The output of a name.
    pub fn output(&self, name: &str) -> Result<&OutputRecord> {
        let mut outputs: Vec<&OutputRecord> = self.manifest.outputs.iter().collect();
        if let Some(found) = outputs.iter().copied().find(|output| output.name == name) {
            return Ok(found);
        }
        outputs.sort_by_key(|output| (strsim::jaro(&output.name, name) * -1e6) as i64);
        let known = outputs.into_iter().take(8).map(|output| output.name.clone()).collect();
        Err(Error::UnknownOutput { path: self.directory.clone(), name: name.into(), known })
    }

    /// How many rows outputs of this kind have.
    pub fn rows(&self, per: Per) -> u64 {
        self.manifest.rows(per)
    }

    /// Rows of an output, counted through all shards: `[rows, width]`, f32. A range beyond the end is cut.
    pub fn read(&self, output: &str, rows: Range<u64>) -> Result<Tensor> {
        let record = self.output(output)?;
        let numbers = self.manifest.dtype.read(&self.bytes(&record.name, self.row_bytes(record), record.per, rows)?);
        let count = numbers.len() / record.width;
        Ok(Tensor::from_vec(numbers, (count, record.width), &Device::Cpu)?)
    }

    /// Where rows of tokens come from.
    pub fn tokens(&self, rows: Range<u64>) -> Result<TokenIndex> {
        let [document, sequence, position, token] = INDEX.map(|name| self.integers(name, Per::Token, rows.clone()));
        Ok(TokenIndex { document: document?, sequence: sequence?, position: position?, token: token? })
    }

    /// Where rows of sequences come from.
    pub fn sequences(&self, rows: Range<u64>) -> Result<SequenceIndex> {
        let [document, number, tokens] = SEQUENCE_INDEX.map(|name| self.integers(name, Per::Sequence, rows.clone()));
        Ok(SequenceIndex { document: document?, number: number?, tokens: tokens? })
    }

    pub(crate) fn row_bytes(&self, output: &OutputRecord) -> usize {
        output.width * self.manifest.dtype.bytes()
    }

    /// Rows within one shard, added to the end of `into`.
    pub(crate) fn shard_bytes(
        &self,
        shard: usize,
        output: &OutputRecord,
        rows: Range<u64>,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        match self.shards.get(shard) {
            Some(shard) => shard.read(&output.name, self.row_bytes(output), rows, into),
            None => Ok(()),
        }
    }

    fn integers(&self, name: &str, per: Per, rows: Range<u64>) -> Result<Vec<i64>> {
        let bytes = self.bytes(name, 8, per, rows)?;
        Ok(bytes.as_chunks().0.iter().map(|&number| i64::from_le_bytes(number)).collect())
    }

    fn bytes(&self, tensor: &str, row: usize, per: Per, rows: Range<u64>) -> Result<Vec<u8>> {
        let (mut bytes, mut first) = (Vec::new(), 0);
        for (shard, record) in self.shards.iter().zip(&self.manifest.shards) {
            let count = record.rows_of(per);
            let within = rows.start.clamp(first, first + count) - first..rows.end.clamp(first, first + count) - first;
            if within.start < within.end {
                shard.read(tensor, row, within, &mut bytes)?;
            }
            first += count;
        }
        Ok(bytes)
    }
}
