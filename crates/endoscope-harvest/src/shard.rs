//! One shard: a safetensors file with the rows of all outputs and where each comes from.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use endoscope_report::{HashedFile, write_atomically};
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::manifest::{INDEX, Manifest, Per, SEQUENCE_INDEX, ShardRecord};
use crate::sequence::Cursor;

/// The longest header that is read.
const LONGEST_HEADER: u64 = 1 << 20;

/// Rows on their way to a shard.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    /// The numbers of each output, as they are written.
    pub outputs: Vec<Vec<u8>>,
    /// For each row of a token: document, sequence, position in the sequence, token id.
    pub index: [Vec<i64>; 4],
    /// For each row of a sequence: the document of its first token, its number, how many rows of tokens it has.
    pub sequences: [Vec<i64>; 3],
    /// How many tokens were run.
    pub tokens: u64,
    /// The place after the last sequence.
    pub ends: Cursor,
}

impl Rows {
    pub fn new(outputs: usize) -> Self {
        Self { outputs: vec![Vec::new(); outputs], ..Self::default() }
    }

    pub fn count(&self, per: Per) -> u64 {
        match per {
            Per::Token => self.index[0].len() as u64,
            Per::Sequence => self.sequences[0].len() as u64,
        }
    }

    /// Writes them as a shard: whole or not at all, and on the disk when this returns. Its length and SHA-256.
    pub fn write(&self, manifest: &Manifest, path: &Path) -> Result<(u64, String)> {
        let bytes = |numbers: &[i64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let index = INDEX.iter().zip(&self.index).chain(SEQUENCE_INDEX.iter().zip(&self.sequences));
        let index: Vec<(&str, Vec<u8>)> = index.map(|(name, numbers)| (*name, bytes(numbers))).collect();
        let mut tensors: Vec<(String, safetensors::Dtype, Vec<usize>, &[u8])> = Vec::new();
        for (name, bytes) in &index {
            tensors.push((name.to_string(), safetensors::Dtype::I64, vec![bytes.len() / 8], bytes));
        }
        for (output, bytes) in manifest.outputs.iter().zip(&self.outputs) {
            let rows = self.count(output.per) as usize;
            tensors.push((output.name.clone(), manifest.dtype.stored(), vec![rows, output.width], bytes));
        }
        let mut end = 0;
        let infos = tensors.iter().map(|(name, dtype, shape, bytes)| {
            let start = end;
            end += bytes.len();
            (name.clone(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) })
        });
        let infos = infos.collect();
        let damaged = |reason: String| Error::Shard { path: path.to_path_buf(), reason };
        let metadata = Metadata::new(None, infos).map_err(|error| damaged(error.to_string()))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|error| damaged(error.to_string()))?;
        // Numbers are aligned to 8 bytes.
        header.resize(header.len().next_multiple_of(8), b' ');
        let (mut hash, mut length) = (Sha256::new(), 0);
        write_atomically(path, |file| {
            let mut put = |bytes: &[u8]| -> io::Result<()> {
                hash.update(bytes);
                length += bytes.len() as u64;
                file.write_all(bytes)
            };
            put(&(header.len() as u64).to_le_bytes())?;
            put(&header)?;
            tensors.iter().try_for_each(|(_, _, _, bytes)| put(bytes))
        })?;
        Ok((length, crate::hex(&hash.finalize())))
    }
}

/// A shard whose header was found to be what the manifest says.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    /// Where the numbers of each tensor begin in the file.
    starts: HashMap<String, u64>,
}

impl Shard {
    /// Reads and checks the header; no number is read.
    pub fn open(directory: &Path, manifest: &Manifest, record: &ShardRecord) -> Result<Self> {
        let path = directory.join(&record.file);
        let damaged = |reason: String| Error::Shard { path: path.clone(), reason };
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("it is not there".into())),
            opened => opened.map_err(Error::io("open", &path))?,
        };
        let length = file.metadata().map_err(Error::io("look at", &path))?.len();
        if length != record.bytes {
            return Err(damaged(format!("it has {length} bytes, and {} were written", record.bytes)));
        }
        let mut read = |bytes: &mut [u8]| file.read_exact(bytes).map_err(|error| damaged(error.to_string()));
        let mut size = [0; 8];
        read(&mut size)?;
        let size = u64::from_le_bytes(size);
        if size > LONGEST_HEADER.min(length.saturating_sub(8)) {
            return Err(damaged(format!("its header is said to have {size} bytes")));
        }
        let mut header = vec![0; size as usize];
        read(&mut header)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| damaged(format!("its header cannot be read: {error}")))?;
        if metadata.data_len() as u64 != length - 8 - size {
            return Err(damaged("its header does not account for its length".into()));
        }
        let index = INDEX.map(|name| (name, safetensors::Dtype::I64, Per::Token, None));
        let sequences = SEQUENCE_INDEX.map(|name| (name, safetensors::Dtype::I64, Per::Sequence, None));
        let outputs = manifest.outputs.iter();
        let outputs =
            outputs.map(|output| (output.name.as_str(), manifest.dtype.stored(), output.per, Some(output.width)));
        let mut starts = HashMap::new();
        for (name, dtype, per, width) in index.into_iter().chain(sequences).chain(outputs) {
            let Some(info) = metadata.info(name) else { return Err(damaged(format!("it has no tensor `{name}`"))) };
            if info.dtype != dtype {
                return Err(damaged(format!("`{name}` is {:?}, and harvest.json says {dtype:?}", info.dtype)));
            }
            let shape: Vec<usize> = [Some(record.rows_of(per) as usize), width].into_iter().flatten().collect();
            if info.shape != shape {
                return Err(damaged(format!("`{name}` is {:?}, and harvest.json says {shape:?}", info.shape)));
            }
            starts.insert(name.to_string(), 8 + size + info.data_offsets.0 as u64);
        }
        Ok(Self { path, starts })
    }

    /// The bytes of some rows of a tensor, each of `row` bytes, added to the end of `into`.
    pub fn read(&self, tensor: &str, row: usize, rows: Range<u64>, into: &mut Vec<u8>) -> Result<()> {
        let start = self.starts.get(tensor).copied().unwrap_or(0) + rows.start * row as u64;
        let length = (rows.end - rows.start) as usize * row;
        let mut file = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        file.seek(SeekFrom::Start(start)).map_err(Error::io("read", &self.path))?;
        let before = into.len();
        into.resize(before + length, 0);
        file.read_exact(&mut into[before..]).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::Shard { path: self.path.clone(), reason: "it has become shorter".into() }
            }
            _ => Error::io("read", &self.path)(error),
        })
    }
}

/// Reads a whole shard and compares its SHA-256 with that of the manifest.
pub(crate) fn verify(directory: &Path, record: &ShardRecord) -> Result<()> {
    let path = directory.join(&record.file);
    let found = HashedFile::read("shard", &path)?;
    match found.sha256 == record.sha256 && found.bytes == record.bytes {
        true => Ok(()),
        false => {
            let reason = format!("its SHA-256 is {}, and that of what was written {}", found.sha256, record.sha256);
            Err(Error::Shard { path, reason })
        }
    }
}
