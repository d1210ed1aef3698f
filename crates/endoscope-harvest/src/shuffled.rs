//! Shuffled reading within a budget of memory.
//!
//! An epoch is a permutation of all rows. It is made in two steps, so that neither the harvest nor the permutation need fit in
//! memory. First the rows are cut into runs of neighbours (256 rows, or fewer where the buffer is small: it holds at least
//! 16 runs), and all runs of all shards are put in a random order. Then as many runs as the buffer holds are read at a time, and the
//! rows in the buffer are put in a random order. So each row comes exactly once in an epoch, and a batch mixes rows from all over the
//! harvest; but it is not a uniform permutation: neighbours in a run come within one buffer of each other. The larger the buffer, the
//! less this matters.

use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::manifest::OutputRecord;
use crate::reader::ActivationReader;

/// The longest run of neighbours.
const RUN: usize = 256;
/// The fewest runs that a buffer holds.
const RUNS: usize = 16;

/// How rows are shuffled. The same numbers give the same batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shuffle {
    /// Where the order comes from.
    pub seed: u64,
    /// How many rows are held in memory, as they are on the disk; what is given out comes on top.
    pub buffer_rows: usize,
    /// How many rows a batch has; the last one of an epoch has what is left.
    pub batch_rows: usize,
}

/// A place in the stream of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShuffleCursor {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch in it, from 0.
    pub batch: u64,
}

/// Rows in shuffled order.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Which it is.
    pub cursor: ShuffleCursor,
    /// The number of each row in the harvest.
    pub rows: Vec<u64>,
    /// The rows of each output: `[batch, width]`, f32.
    pub values: Vec<Tensor>,
}

/// A stream of shuffled batches, epoch after epoch, without end; see the module.
pub struct Shuffled<'a> {
    reader: &'a ActivationReader,
    outputs: Vec<&'a OutputRecord>,
    shuffle: Shuffle,
    cursor: ShuffleCursor,
    rows: u64,
    /// The runs of this epoch in their order.
    runs: Vec<Run>,
    /// The first run that is not yet in the buffer, and which buffer it begins.
    next_run: usize,
    next_buffer: u64,
    /// The rows in the buffer, as they are on the disk, of each output.
    buffer: Vec<Vec<u8>>,
    /// Their numbers in the harvest.
    numbers: Vec<u64>,
    /// The order in which they are given out, and how many have been.
    order: Vec<u32>,
    given: usize,
}

/// Neighbouring rows of one shard.
#[derive(Debug, Clone, Copy)]
struct Run {
    shard: u32,
    rows: u32,
    first: u64,
}

impl ActivationReader {
    /// The rows of some outputs in shuffled order, from the first epoch on; all outputs have the same row at the same place.
    pub fn shuffled(&self, outputs: &[&str], shuffle: Shuffle) -> Result<Shuffled<'_>> {
        let outputs = outputs.iter().map(|name| self.output(name)).collect::<Result<Vec<_>>>()?;
        let Some(first) = outputs.first() else {
            return Err(Error::Settings("no output is to be read".into()));
        };
        if let Some(other) = outputs.iter().find(|output| output.per != first.per) {
            let (one, other) = (&first.name, &other.name);
            return Err(Error::Settings(format!("`{one}` and `{other}` have rows of different things")));
        }
        if shuffle.buffer_rows == 0 || shuffle.batch_rows == 0 {
            return Err(Error::Settings("buffers and batches of no rows cannot be shuffled".into()));
        }
        let rows = self.rows(first.per);
        if rows == 0 {
            return Err(Error::Settings(format!("`{}` has no rows", first.name)));
        }
        let buffer = vec![Vec::new(); outputs.len()];
        let mut shuffled = Shuffled {
            reader: self,
            outputs,
            shuffle,
            cursor: ShuffleCursor::default(),
            rows,
            runs: Vec::new(),
            next_run: 0,
            next_buffer: 0,
            buffer,
            numbers: Vec::new(),
            order: Vec::new(),
            given: 0,
        };
        shuffled.begin(0);
        Ok(shuffled)
    }
}

impl Shuffled<'_> {
    /// Where the next batch stands.
    pub fn cursor(&self) -> ShuffleCursor {
        self.cursor
    }

    /// How many batches an epoch has.
    pub fn batches(&self) -> u64 {
        self.rows.div_ceil(self.shuffle.batch_rows as u64)
    }

    /// Goes to a place, without reading what lies before it.
    pub fn seek(&mut self, cursor: ShuffleCursor) -> Result<()> {
        // One past the last batch is the next epoch.
        let epoch = cursor.epoch.saturating_add(cursor.batch / self.batches());
        let batch = cursor.batch % self.batches();
        self.begin(epoch);
        self.cursor.batch = batch;
        let mut skipped = batch * self.shuffle.batch_rows as u64;
        loop {
            let count: u64 = self.buffered().iter().map(|run| u64::from(run.rows)).sum();
            if skipped < count {
                break;
            }
            skipped -= count;
            self.next_run += self.buffered().len();
            self.next_buffer += 1;
        }
        self.fill()?;
        self.given = skipped as usize;
        Ok(())
    }

    /// The next batch.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let cursor = self.cursor;
        let left = self.rows - cursor.batch * self.shuffle.batch_rows as u64;
        let count = left.min(self.shuffle.batch_rows as u64) as usize;
        let widths: Vec<usize> = self.outputs.iter().map(|output| self.reader.row_bytes(output)).collect();
        let mut rows = Vec::with_capacity(count);
        let mut bytes: Vec<Vec<u8>> = widths.iter().map(|width| Vec::with_capacity(width * count)).collect();
        while rows.len() < count {
            if self.given == self.order.len() {
                self.fill()?;
            }
            let end = self.order.len().min(self.given + count - rows.len());
            for &at in self.order.get(self.given..end).unwrap_or_default() {
                let at = at as usize;
                rows.extend(self.numbers.get(at));
                for ((into, buffer), width) in bytes.iter_mut().zip(&self.buffer).zip(&widths) {
                    into.extend_from_slice(buffer.get(at * width..(at + 1) * width).unwrap_or_default());
                }
            }
            self.given = end;
        }
        let dtype = self.reader.manifest().dtype;
        let values = bytes
            .iter()
            .zip(&self.outputs)
            .map(|(bytes, output)| Ok(Tensor::from_vec(dtype.read(bytes), (count, output.width), &Device::Cpu)?));
        let values = values.collect::<Result<_>>()?;
        self.cursor.batch += 1;
        if self.cursor.batch == self.batches() {
            self.begin(cursor.epoch + 1);
        }
        Ok(Batch { cursor, rows, values })
    }

    /// The generator of an epoch: of the order of runs, or of that in a buffer.
    fn generator(&self, buffer: Option<u64>) -> ChaCha8Rng {
        let mut generator = ChaCha8Rng::seed_from_u64(self.shuffle.seed);
        generator.set_stream(self.cursor.epoch);
        // What comes after the order of the runs in one stream would depend on how many there are.
        match buffer {
            None => generator,
            Some(buffer) => {
                let mut seed = [0; 32];
                generator.fill(&mut seed);
                let mut generator = ChaCha8Rng::from_seed(seed);
                generator.set_stream(buffer + 1);
                generator
            }
        }
    }

    /// Puts the runs of an epoch in order.
    fn begin(&mut self, epoch: u64) {
        self.cursor = ShuffleCursor { epoch, batch: 0 };
        let longest = (self.shuffle.buffer_rows / RUNS).clamp(1, RUN) as u64;
        let per = self.outputs.first().map(|output| output.per);
        self.runs.clear();
        for (shard, record) in self.reader.manifest().shards.iter().enumerate() {
            let rows = per.map_or(0, |per| record.rows_of(per));
            let run = |first: u64| Run { shard: shard as u32, rows: longest.min(rows - first) as u32, first };
            self.runs.extend((0..rows).step_by(longest as usize).map(run));
        }
        let mut generator = self.generator(None);
        self.runs.shuffle(&mut generator);
        (self.next_run, self.next_buffer, self.given) = (0, 0, 0);
        self.order.clear();
    }

    /// The runs that come into the buffer next.
    fn buffered(&self) -> &[Run] {
        let next = self.runs.get(self.next_run..).unwrap_or_default();
        let mut rows = 0;
        let fits = |run: &&Run| {
            rows += run.rows as usize;
            rows <= self.shuffle.buffer_rows
        };
        let count = next.iter().take_while(fits).count();
        &next[..count]
    }

    /// Reads the next runs, and puts their rows in order.
    fn fill(&mut self) -> Result<()> {
        let runs = self.buffered().to_vec();
        let most = self.rows.min(self.shuffle.buffer_rows as u64) as usize;
        self.numbers.clear();
        self.numbers.reserve_exact(most);
        self.order.clear();
        self.order.reserve_exact(most);
        let mut firsts = Vec::with_capacity(self.reader.manifest().shards.len());
        let mut first = 0;
        for record in &self.reader.manifest().shards {
            firsts.push(first);
            first += self.outputs.first().map_or(0, |output| record.rows_of(output.per));
        }
        for (output, buffer) in self.outputs.iter().zip(&mut self.buffer) {
            buffer.clear();
            // As much as any buffer needs, so that it never grows beside its old self.
            buffer.reserve_exact(most * self.reader.row_bytes(output));
            for run in &runs {
                let rows = run.first..run.first + u64::from(run.rows);
                self.reader.shard_bytes(run.shard as usize, output, rows, buffer)?;
            }
        }
        for run in &runs {
            let first = firsts.get(run.shard as usize).copied().unwrap_or_default() + run.first;
            self.numbers.extend(first..first + u64::from(run.rows));
        }
        let mut generator = self.generator(Some(self.next_buffer));
        self.order.extend(0..self.numbers.len() as u32);
        self.order.shuffle(&mut generator);
        self.given = 0;
        self.next_run += runs.len();
        self.next_buffer += 1;
        match self.order.is_empty() {
            // All rows of the epoch are given: the count in the manifest says otherwise.
            true => Err(Error::Settings("the harvest has fewer rows than it says".into())),
            false => Ok(()),
        }
    }
}

impl Iterator for Shuffled<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_batch())
    }
}
