//! Batches from a harvest.

use anyhow::{Result, bail};
use candle_core::Tensor;
use endoscope_dictionary::training::{Examples, Stream};
use endoscope_dictionary::{Config, Error, Matrix};
use endoscope_harvest::{ActivationReader, Shuffle, ShuffleCursor, Shuffled};

/// How many rows are held in memory while they are mixed.
const BUFFER_ROWS: usize = 1 << 17;

/// A harvest's rows, shuffled anew in each epoch, or in order; then what fills no batch at an epoch's end is not seen.
pub struct HarvestStream<'a> {
    shuffled: Shuffled<'a>,
    /// What is read in order.
    in_order: Option<InOrder<'a>>,
    batch_rows: usize,
    /// How many of the values that come with each row are read; the others are what shall be written.
    inputs: usize,
}

struct InOrder<'a> {
    reader: &'a ActivationReader,
    names: Vec<String>,
    rows: u64,
}

impl<'a> HarvestStream<'a> {
    /// Of the outputs named as the sites that `template` reads and writes.
    pub fn new(
        reader: &'a ActivationReader,
        template: &Config,
        batch_rows: usize,
        seed: u64,
        in_order: bool,
    ) -> Result<Self> {
        let names: Vec<&str> = template.sites.iter().chain(&template.output_site).map(String::as_str).collect();
        let shuffle = Shuffle { seed, buffer_rows: BUFFER_ROWS.max(batch_rows), batch_rows };
        let shuffled = reader.shuffled(&names, shuffle)?;
        if shuffled.batches() == 0 {
            bail!("the harvest has no rows");
        }
        let in_order = match in_order {
            false => None,
            true => {
                let rows = reader.rows(reader.output(names[0])?.per);
                if rows < batch_rows as u64 {
                    bail!("the harvest has {rows} rows, less than a batch of {batch_rows}");
                }
                Some(InOrder { reader, names: names.into_iter().map(String::from).collect(), rows })
            }
        };
        Ok(Self { shuffled, in_order, batch_rows, inputs: template.sites.len() })
    }
}

impl HarvestStream<'_> {
    /// Of a batch, what each output holds: `[batch, width]`.
    fn values(&mut self, number: u64) -> endoscope_harvest::Result<Vec<Tensor>> {
        if let Some(InOrder { reader, names, rows }) = &self.in_order {
            let batch = self.batch_rows as u64;
            let first = number % (rows / batch) * batch;
            return names.iter().map(|name| reader.read(name, first..first + batch)).collect();
        }
        let batches = self.shuffled.batches();
        let cursor = ShuffleCursor { epoch: number / batches, batch: number % batches };
        if self.shuffled.cursor() != cursor {
            self.shuffled.seek(cursor)?;
        }
        Ok(self.shuffled.next_batch()?.values)
    }
}

impl Stream for HarvestStream<'_> {
    fn batch(&mut self, number: u64, rows: usize) -> endoscope_dictionary::Result<Examples> {
        let fail = |reason: String| Error::Training(reason);
        if rows != self.batch_rows {
            return Err(fail(format!("the stream has batches of {}, {rows} were asked for", self.batch_rows)));
        }
        let values = self.values(number).map_err(|error| fail(error.to_string()))?;
        let joined = |parts: &[Tensor]| Matrix::from_tensor(&Tensor::cat(parts, 1)?);
        let (inputs, targets) = values.split_at(self.inputs);
        Ok(Examples { input: joined(inputs)?, target: if targets.is_empty() { None } else { Some(joined(targets)?) } })
    }
}
