//! Harvesting: sequences through the network, rows to shards, one shard after the other.
//!
//! A shard is written under another name, synced and renamed; then `harvest.json`, which says that it is there, in the same
//! way. So whatever happens, the folder holds a harvest up to some shard, and going on from there gives the bytes that an
//! unbroken run gives: the network's numbers do not depend on what is run together.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::DType;
use endoscope_net::{Capture, Index, Inputs, Network, Padding, Plan};
use serde_json::Value;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::manifest::{MANIFEST, Manifest, Per, ShardRecord, VERSION, shard_file};
use crate::output::Output;
use crate::sequence::{Cursor, Packing, Sequence, Sequences};
use crate::shard::Rows;

/// How large a shard becomes where nothing is said of it, in bytes.
const SHARD_BYTES: u64 = 128 << 20;

/// What to harvest, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is kept; at least one, none twice.
    pub outputs: Vec<Output>,
    /// How documents become sequences.
    pub packing: Packing,
    /// Token ids whose rows are left out.
    pub exclude: BTreeSet<u32>,
    /// What activations are written as.
    pub dtype: Dtype,
    /// A shard ends with the first sequence by which it has so many rows of tokens; without a number, so many that it has
    /// about 128 MiB.
    pub shard_rows: Option<u64>,
    /// The harvest ends with the first sequence by which so many tokens were run.
    pub max_tokens: Option<u64>,
    /// Where the rows come from: the model and the corpus, with hashes. It is kept, and a harvest goes on only if it is the same.
    pub source: Value,
    /// About how many tokens are run together. It changes no byte.
    pub batch_tokens: usize,
    /// What is done with activations that are not finite.
    pub non_finite: NonFinite,
}

/// What is done with NaN and infinities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NonFinite {
    /// They are an error.
    #[default]
    Refuse,
    /// They are written.
    Allow,
}

/// How far a harvest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Tokens run, with those of earlier runs.
    pub tokens: u64,
    /// Rows of tokens kept.
    pub rows: u64,
    /// Shards on the disk.
    pub shards: usize,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Harvested {
    /// The harvest as it now stands.
    pub manifest: Manifest,
    /// How many shards this run found done.
    pub found: usize,
    /// How many tokens at the end of the corpus, or cut off from examples, came into no sequence of this run.
    pub left_out: u64,
}

/// The token ids of documents, from some document on.
pub type Documents<'a> = Box<dyn Iterator<Item = Result<Vec<u32>>> + 'a>;

/// Harvests into a folder, or goes on where it was left off.
///
/// `documents(n)` gives the token ids of the documents from number `n` on, always the same. `tell` hears of every batch; if it
/// gives an error, the harvest stops there, and can go on later.
pub fn harvest<'a>(
    network: &dyn Network,
    settings: &Settings,
    documents: &dyn Fn(u64) -> Result<Documents<'a>>,
    directory: &Path,
    tell: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<Harvested> {
    let wanted = settings.manifest(network)?;
    fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    let _lock = Lock::take(directory)?;
    let manifest = match Manifest::read(directory)? {
        None => {
            refuse_foreign(directory)?;
            wanted.write(directory)?;
            wanted
        }
        // Begun, and nothing came of it.
        Some(found) if found.shards.is_empty() => {
            wanted.write(directory)?;
            wanted
        }
        Some(found) => match found.difference(&wanted) {
            None => found,
            Some((what, then, now)) => {
                return Err(Error::Changed { path: directory.to_path_buf(), what, then, now });
            }
        },
    };
    let lost = sweep(directory, &manifest)?;
    let found = manifest.shards.len() - lost.len();
    let mut harvest = Harvest { network, settings, manifest, directory, tell };
    for number in lost {
        harvest.make_again(number, documents)?;
    }
    let left_out = if harvest.manifest.complete { 0 } else { harvest.go_on(documents)? };
    Ok(Harvested { manifest: harvest.manifest, found, left_out })
}

impl Settings {
    /// The manifest of a harvest that is about to begin.
    fn manifest(&self, network: &dyn Network) -> Result<Manifest> {
        self.packing.check()?;
        if self.shard_rows == Some(0) || self.max_tokens == Some(0) || self.batch_tokens == 0 {
            return Err(Error::Settings("shards, batches and the tokens that are run cannot be of size 0".into()));
        }
        let outputs = self.outputs.iter().map(|output| output.record(network)).collect::<Result<Vec<_>>>()?;
        if outputs.is_empty() {
            return Err(Error::Settings("nothing is to be kept: name at least one site".into()));
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = outputs.iter().find(|output| !names.insert(&output.name)) {
            return Err(Error::Settings(format!("`{}` is asked for twice", twice.name)));
        }
        let widths = |per: Per| -> usize {
            outputs.iter().filter(|output| output.per == per).map(|output| output.width * self.dtype.bytes()).sum()
        };
        // What a row of a token takes, its index and its share of its sequence's rows with it.
        let row = 32 + widths(Per::Token) + widths(Per::Sequence) / self.packing.context;
        Ok(Manifest {
            version: VERSION,
            source: self.source.clone(),
            packing: self.packing,
            exclude: self.exclude.clone(),
            dtype: self.dtype,
            outputs,
            shard_rows: self.shard_rows.unwrap_or((SHARD_BYTES / row as u64).max(1)),
            max_tokens: self.max_tokens,
            shards: Vec::new(),
            complete: false,
        })
    }
}

/// A harvest on its way.
struct Harvest<'a> {
    network: &'a dyn Network,
    settings: &'a Settings,
    manifest: Manifest,
    directory: &'a Path,
    tell: &'a mut dyn FnMut(Progress) -> Result<()>,
}

impl Harvest<'_> {
    /// Makes a shard again that was done and is gone.
    fn make_again<'d>(&mut self, number: usize, documents: &dyn Fn(u64) -> Result<Documents<'d>>) -> Result<()> {
        let Some(record) = self.manifest.shards.get(number).cloned() else { return Ok(()) };
        let begins = record.begins;
        let mut sequences = Sequences::new(self.manifest.packing, documents(begins.document)?, begins)?;
        let rows = self.fill(&mut sequences, u64::MAX, record.tokens)?;
        let again = self.write(number, &rows, begins)?;
        match again == record {
            true => Ok(()),
            false => {
                let path = self.directory.join(&record.file);
                let reason = "made again it is not what it was, so this program computes otherwise than the one that \
                              wrote the others"
                    .to_string();
                Err(Error::Shard { path, reason })
            }
        }
    }

    /// Goes on to the end; how many tokens came into no sequence.
    fn go_on<'d>(&mut self, documents: &dyn Fn(u64) -> Result<Documents<'d>>) -> Result<u64> {
        let begins = self.manifest.cursor();
        let mut sequences = Sequences::new(self.manifest.packing, documents(begins.document)?, begins)?;
        let (mut tokens, shard_rows) = (self.manifest.tokens(), self.manifest.shard_rows);
        loop {
            let begins = sequences.cursor();
            let most = self.manifest.max_tokens.unwrap_or(u64::MAX).saturating_sub(tokens);
            let rows = self.fill(&mut sequences, shard_rows, most)?;
            tokens += rows.tokens;
            if rows.tokens > 0 {
                let record = self.write(self.manifest.shards.len(), &rows, begins)?;
                self.manifest.shards.push(record);
            }
            self.manifest.complete = rows.count(Per::Token) < shard_rows || rows.tokens >= most;
            if self.manifest.complete && self.manifest.rows(Per::Token) == 0 {
                return Err(Error::Settings(format!(
                    "the corpus gives no row: {} tokens of it fill no sequence of {}, {tokens} were run and are of those \
                     that are left out",
                    sequences.left_out(),
                    self.manifest.packing.context
                )));
            }
            self.manifest.write(self.directory)?;
            if self.manifest.complete {
                return Ok(sequences.left_out());
            }
        }
    }

    /// Writes the rows of a shard.
    fn write(&self, number: usize, rows: &Rows, begins: Cursor) -> Result<ShardRecord> {
        let file = shard_file(number);
        let (bytes, sha256) = rows.write(&self.manifest, &self.directory.join(&file))?;
        let (sequences, tokens, ends) = (rows.count(Per::Sequence), rows.tokens, rows.ends);
        Ok(ShardRecord { file, bytes, sha256, rows: rows.count(Per::Token), sequences, tokens, begins, ends })
    }

    /// The rows of the next sequences: until there are `enough`, `most` tokens are run, or the corpus is at its end.
    fn fill<I: Iterator<Item = Result<Vec<u32>>>>(
        &mut self,
        sequences: &mut Sequences<I>,
        enough: u64,
        most: u64,
    ) -> Result<Rows> {
        let mut rows = Rows::new(self.manifest.outputs.len());
        let before = Progress {
            tokens: self.manifest.tokens(),
            rows: self.manifest.rows(Per::Token),
            shards: self.manifest.shards.len(),
        };
        let (mut done, mut kept) = (most == 0, 0);
        while !done {
            let (mut batch, mut tokens) = (Vec::new(), 0);
            while !done && (batch.is_empty() || tokens < self.settings.batch_tokens) {
                let Some(sequence) = sequences.next() else {
                    done = true;
                    break;
                };
                let sequence = sequence?;
                tokens += sequence.tokens.len();
                kept += sequence.tokens.iter().filter(|token| !self.settings.exclude.contains(token)).count() as u64;
                rows.ends = sequence.after;
                done = kept >= enough || rows.tokens + tokens as u64 >= most;
                batch.push(sequence);
            }
            if !batch.is_empty() {
                self.run(&batch, &mut rows)?;
                rows.tokens += tokens as u64;
                let (tokens, rows) = (before.tokens + rows.tokens, before.rows + rows.count(Per::Token));
                (self.tell)(Progress { tokens, rows, ..before })?;
            }
        }
        Ok(rows)
    }

    /// Runs a batch, and adds its rows.
    fn run(&self, batch: &[Sequence], rows: &mut Rows) -> Result<()> {
        let sites: BTreeSet<&str> = self.manifest.outputs.iter().map(|output| output.site.as_str()).collect();
        let plan = sites.iter().fold(Plan::default(), |plan, site| plan.capture(Capture::new(*site)));
        // Nobody reads an output, so the network need not go beyond the last site.
        let plan = plan.outputs_at(Index::List(Vec::new()));
        let tokens = batch.iter().map(|sequence| sequence.tokens.clone()).collect();
        let run = self.network.run(&Inputs::padded(tokens, Padding::Right)?, &plan)?;
        let kept: Vec<Vec<usize>> = batch.iter().map(|sequence| self.kept(sequence)).collect();
        let batch: Vec<(&Sequence, &[usize])> = batch.iter().zip(kept.iter().map(Vec::as_slice)).collect();
        for site in sites {
            let captured = run.captured.get(site)?;
            let activations = Activations {
                numbers: captured.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
                positions: captured.dim(1)?,
                width: captured.elem_count() / (captured.dim(0)? * captured.dim(1)?),
            };
            for (output, bytes) in rows.outputs.iter_mut().enumerate() {
                if self.manifest.outputs[output].site == site {
                    self.keep(output, &activations, &batch, bytes)?;
                }
            }
        }
        for (sequence, kept) in batch {
            for &position in kept {
                let (document, token) = sequence.at(position);
                let row = [document as i64, sequence.number as i64, position as i64, i64::from(token)];
                rows.index.iter_mut().zip(row).for_each(|(column, number)| column.push(number));
            }
            if !kept.is_empty() {
                let row = [sequence.at(0).0 as i64, sequence.number as i64, kept.len() as i64];
                rows.sequences.iter_mut().zip(row).for_each(|(column, number)| column.push(number));
            }
        }
        Ok(())
    }

    /// Adds what one output keeps of a batch, each sequence with the positions whose rows are kept.
    fn keep(
        &self,
        output: usize,
        activations: &Activations,
        batch: &[(&Sequence, &[usize])],
        bytes: &mut Vec<u8>,
    ) -> Result<()> {
        let reduction = &self.settings.outputs[output].reduction;
        let (mut first, mut count) = (None, 0);
        for (row, (sequence, kept)) in batch.iter().enumerate().filter(|(_, (_, kept))| !kept.is_empty()) {
            let kept_rows: Vec<&[f32]> = kept.iter().map(|&position| activations.at(row, position)).collect();
            if let Some((place, value, more)) = self.settings.dtype.append(&reduction.of(&kept_rows), bytes) {
                first.get_or_insert((*sequence, *kept, place, value));
                count += more;
            }
        }
        let Some((sequence, kept, place, value)) = first.filter(|_| self.settings.non_finite == NonFinite::Refuse)
        else {
            return Ok(());
        };
        let record = &self.manifest.outputs[output];
        let row = if record.per == Per::Token { place / record.width } else { kept.len() - 1 };
        let position = kept.get(row).copied().unwrap_or_default();
        let (document, token) = sequence.at(position);
        let overflows = self.settings.dtype == Dtype::F16 && value.is_infinite();
        Err(Error::NotFinite {
            output: record.name.clone(),
            count,
            value,
            dim: place % record.width,
            position,
            sequence: sequence.number,
            document,
            token,
            advice: if overflows { "; f16 holds at most 65504, and bf16 or f32 hold more" } else { "" },
        })
    }

    /// The positions whose rows are kept.
    fn kept(&self, sequence: &Sequence) -> Vec<usize> {
        let tokens = sequence.tokens.iter().enumerate();
        tokens.filter(|(_, token)| !self.settings.exclude.contains(token)).map(|(position, _)| position).collect()
    }
}

/// The activations of a site in one batch: `[sequence, position, width]`.
struct Activations {
    numbers: Vec<f32>,
    positions: usize,
    width: usize,
}

impl Activations {
    fn at(&self, sequence: usize, position: usize) -> &[f32] {
        let start = (sequence * self.positions + position) * self.width;
        self.numbers.get(start..start + self.width).unwrap_or_default()
    }
}

/// Removes what was being written when a run ended; the numbers of the shards that are gone, or of another length.
fn sweep(directory: &Path, manifest: &Manifest) -> Result<Vec<usize>> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let entry = entry.map_err(Error::io("list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let partial = name.starts_with(".endoscope.partial-");
        let unrecorded = name.starts_with("shard-") && !manifest.shards.iter().any(|shard| shard.file == name);
        if partial || unrecorded {
            fs::remove_file(entry.path()).map_err(Error::io("remove", &entry.path()))?;
        }
    }
    let mut lost = Vec::new();
    for (number, shard) in manifest.shards.iter().enumerate() {
        let path = directory.join(&shard.file);
        match fs::metadata(&path) {
            Ok(found) if found.len() == shard.bytes => {}
            Ok(_) => lost.push(number),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => lost.push(number),
            Err(error) => return Err(Error::io("look at", &path)(error)),
        }
    }
    Ok(lost)
}

/// A folder that holds something else is left alone.
pub(crate) fn refuse_foreign(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name().to_string_lossy().into_owned();
        if !name.starts_with(".endoscope.partial-") {
            return Err(Error::Settings(format!(
                "{} holds {name} and no {MANIFEST}: it is no harvest; give an empty folder or a new one",
                directory.display()
            )));
        }
    }
    Ok(())
}

/// A folder that one process alone writes to; let go of when the process ends, however it ends.
pub(crate) struct Lock {
    _directory: Option<File>,
}

impl Lock {
    pub(crate) fn take(path: &Path) -> Result<Self> {
        // Elsewhere folders cannot be opened.
        if cfg!(not(unix)) {
            return Ok(Self { _directory: None });
        }
        let directory = File::open(path).map_err(Error::io("open", path))?;
        match directory.try_lock() {
            Ok(()) => Ok(Self { _directory: Some(directory) }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::InUse { path: PathBuf::from(path) }),
            // A file system without locks: nothing is lost but the warning.
            Err(fs::TryLockError::Error(_)) => Ok(Self { _directory: None }),
        }
    }
}
