//! Batches from a harvest.

use anyhow::{Result, bail};
use endoscope_dictionary::training::{Examples, Stream};
use endoscope_dictionary::{Config, Error, Matrix};
use endoscope_harvest::{ActivationReader, Shuffle, ShuffleCursor, Shuffled};

/// How many rows are held in memory while they are mixed.
const BUFFER_ROWS: usize = 1 << 17;

/// A harvest's rows, shuffled anew in each epoch.
pub struct HarvestStream<'a> {
    shuffled: Shuffled<'a>,
    batch_rows: usize,
    /// How many of the values that come with each row are read; the others are what shall be written.
    inputs: usize,
}

impl<'a> HarvestStream<'a> {
    /// Of the outputs named as the sites that `template` reads and writes.
    pub fn new(reader: &'a ActivationReader, template: &Config, batch_rows: usize, seed: u64) -> Result<Self> {
        let names: Vec<&str> = template.sites.iter().chain(&template.output_site).map(String::as_str).collect();
        let shuffle = Shuffle { seed, buffer_rows: BUFFER_ROWS.max(batch_rows), batch_rows };
        let shuffled = reader.shuffled(&names, shuffle)?;
        if shuffled.batches() == 0 {
            bail!("the harvest has no rows");
        }
        Ok(Self { shuffled, batch_rows, inputs: template.sites.len() })
    }
}

impl Stream for HarvestStream<'_> {
    fn batch(&mut self, number: u64, rows: usize) -> endoscope_dictionary::Result<Examples> {
        let fail = |reason: String| Error::Training(reason);
        if rows != self.batch_rows {
            return Err(fail(format!("the stream has batches of {}, {rows} were asked for", self.batch_rows)));
        }
        let batches = self.shuffled.batches();
        let cursor = ShuffleCursor { epoch: number / batches, batch: number % batches };
        if self.shuffled.cursor() != cursor {
            self.shuffled.seek(cursor).map_err(|error| fail(error.to_string()))?;
        }
        let batch = self.shuffled.next_batch().map_err(|error| fail(error.to_string()))?;
        let joined = |parts: &[candle_core::Tensor]| Matrix::from_tensor(&candle_core::Tensor::cat(parts, 1)?);
        let (inputs, targets) = batch.values.split_at(self.inputs);
        Ok(Examples { input: joined(inputs)?, target: if targets.is_empty() { None } else { Some(joined(targets)?) } })
    }
}
