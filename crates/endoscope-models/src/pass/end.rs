//! The end of a pass: the final norm and the unembedding, of the rows whose outputs are read.

use candle_core::Tensor;
use endoscope_kernels::soft_cap;
use endoscope_net::{Frame, Part, Prepared, Result, Run, SiteId, Tap, Taps};

use super::Pass;
use crate::decoder::Decoder;
use crate::sites::DecoderSites;

impl<'p> Pass<'p, '_> {
    /// Ends the pass: `[r, d] ->` for each part, `[b, read positions, read columns]`.
    pub fn finish(self) -> Result<Vec<Run>> {
        self.finish_with(|tap, stream| Ok(End { tap, stream }))
    }

    /// Ends a pass of which no output is read, wherever it has come to: `[b, 0, read columns]` for each part.
    pub fn stop(self) -> Result<Vec<Run>> {
        let Self { decoder, taps, stream, work, .. } = self;
        let ended = taps.into_taps().zip(work).map(|(tap, work)| {
            let vocabulary = decoder.spec.vocabulary;
            let columns = tap.output_columns(vocabulary)?.map_or(vocabulary, |columns| columns.len());
            let outputs = Tensor::zeros((tap.frame().rows, 0, columns), stream.dtype(), stream.device())?;
            Ok(tap.finish(outputs, work))
        });
        ended.collect()
    }

    /// The same as [`Pass::finish`], with a last word on each part's rows.
    pub fn finish_with(self, end: impl Fn(Tap<'p>, Tensor) -> Result<End<'p>>) -> Result<Vec<Run>> {
        let Self { decoder, taps, stream, work, .. } = self;
        let mut ends = Vec::with_capacity(work.len());
        for Part { tap, first } in taps.into_parts() {
            let Frame { rows, length, .. } = *tap.frame();
            ends.push(end(tap, stream.narrow(0, first, rows * length)?)?);
        }
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let finished = decoder.unembed(ends)?.into_iter().zip(work);
        Ok(finished
            .map(|(Finished { tap, outputs, rows }, mut work)| {
                work.unembedding += rows as u64;
                tap.finish(outputs, work)
            })
            .collect())
    }
}

/// The end of a run: its rows of the final residual stream.
pub(crate) struct End<'p> {
    pub tap: Tap<'p>,
    /// `[b s, d]`, of the tap's frame.
    pub stream: Tensor,
}

/// What a run ends with.
pub(crate) struct Finished<'p> {
    tap: Tap<'p>,
    /// `[b, read positions, read columns]`.
    outputs: Tensor,
    /// How many rows were unembedded.
    rows: usize,
}

/// Which rows of each sequence go through the final norm and the unembedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EndRows {
    /// Those whose outputs are read.
    Read(Vec<usize>),
    /// This one and all after it, since edits or captures see them.
    From(usize),
}

impl EndRows {
    /// The first of them.
    pub fn first(&self) -> usize {
        match self {
            Self::Read(positions) => positions.iter().copied().min().unwrap_or(usize::MAX),
            Self::From(first) => *first,
        }
    }

    /// How many of `length`.
    pub fn count(&self, length: usize) -> usize {
        match self {
            Self::Read(positions) => positions.len(),
            Self::From(first) => length - first,
        }
    }
}

/// The first row (of those in the tap's frame) whose output is read, if no capture in `layer` or after wants the others.
pub(crate) fn first_read(tap: &Tap, layer: usize) -> Result<Option<usize>> {
    let plan: &Prepared = tap.plan();
    let sites = plan.sites();
    let late = |id: SiteId| sites.get(id).layer.is_none_or(|at| at >= layer);
    if plan.captured_sites().into_iter().any(late) || plan.mixes_positions() {
        return Ok(None);
    }
    Ok(tap.output_positions()?.and_then(|positions| positions.into_iter().min()))
}

/// The last site that is captured, where no run reads an output or anything else of the end; nothing after it is needed.
pub(crate) fn last_read(decoder: &Decoder, taps: &Taps) -> Result<Option<SiteId>> {
    let mut last = SiteId(0);
    for Part { tap, .. } in taps.parts() {
        if tap.output_positions()?.is_none_or(|positions| !positions.is_empty()) {
            return Ok(None);
        }
        last = tap.plan().captured_sites().into_iter().fold(last, SiteId::max);
    }
    Ok((last < decoder.sites.ln_final.scale).then_some(last))
}

/// The rows of some positions of each sequence.
fn choose(x: &Tensor, frame: &Frame, positions: &[usize]) -> Result<Tensor> {
    let rows: Vec<u32> =
        (0..frame.rows).flat_map(|row| positions.iter().map(move |&at| (row * frame.length + at) as u32)).collect();
    let count = rows.len();
    Ok(x.contiguous()?.index_select(&Tensor::from_vec(rows, count, x.device())?, 0)?)
}

impl Decoder {
    /// The rows of a run that go through its end.
    pub(crate) fn end_rows(&self, tap: &Tap) -> Result<EndRows> {
        let DecoderSites { ln_final, logits, .. } = &self.sites;
        let seen = [ln_final.scale, ln_final.normalized, *logits].into_iter().any(|id| tap.wants(id));
        Ok(match (tap.output_positions()?, seen) {
            (Some(positions), false) => EndRows::Read(positions),
            (None, false) => EndRows::From(0),
            (_, true) => EndRows::From(first_read(tap, self.spec.layers)?.unwrap_or(0)),
        })
    }

    /// Logits of what the unembedding puts out.
    fn logits(&self, x: Tensor) -> Result<Tensor> {
        let x = self.rounded(x)?;
        let x = if self.spec.logit_scale == 1. { x } else { (x * self.spec.logit_scale)? };
        self.rounded(match self.spec.logit_softcap {
            Some(cap) => soft_cap(&x, cap)?,
            None => x,
        })
    }

    /// The end of each run: `[b s, d] -> [b, read positions, read columns]`.
    fn unembed<'p>(&self, ends: Vec<End<'p>>) -> Result<Vec<Finished<'p>>> {
        let DecoderSites { ln_final, logits, .. } = &self.sites;
        let mut taps = Taps::default();
        let mut streams = Vec::with_capacity(ends.len());
        // Positions still to be chosen, in the frame that is left; and columns.
        let mut reads = Vec::with_capacity(ends.len());
        for End { mut tap, stream } in ends {
            let frame = *tap.frame();
            let columns = tap.output_columns(self.spec.vocabulary)?;
            let (rows, exact): (Vec<usize>, bool) = match self.end_rows(&tap)? {
                EndRows::Read(positions) => (positions, true),
                EndRows::From(first) => ((first..frame.length).collect(), false),
            };
            let offset = frame.offset + if exact { 0 } else { rows.first().copied().unwrap_or(0) };
            streams.push(match rows.len() == frame.length && !exact {
                true => stream,
                false => choose(&stream, &frame, &rows)?,
            });
            tap.narrow(Frame { offset, length: rows.len(), ..frame });
            reads.push((if exact { None } else { tap.output_positions()? }, columns));
            taps.push(tap);
        }
        let stream = match streams.as_slice() {
            [one] => one.clone(),
            many => Tensor::cat(many, 0)?,
        };
        let normalized = self.norm(&self.weights.ln_final, ln_final, &stream, &mut taps)?;
        let mut finished: Vec<Option<Tensor>> = vec![None; reads.len()];
        for at in 0..reads.len() {
            if finished[at].is_some() {
                continue;
            }
            // Runs that read the same columns share one product; one whose logits are seen needs all of them.
            let seen = |at: usize| taps.parts()[at].tap.wants(*logits);
            let group: Vec<usize> = match seen(at) {
                true => vec![at],
                false => (at..reads.len()).filter(|&other| reads[other].1 == reads[at].1 && !seen(other)).collect(),
            };
            let rows = |at: usize| {
                let rows = taps.parts()[at].rows();
                normalized.narrow(0, rows.start, rows.len())
            };
            let x = match group.len() == reads.len() {
                true => normalized.clone(),
                false => Tensor::cat(&group.iter().map(|&at| rows(at)).collect::<candle_core::Result<Vec<_>>>()?, 0)?,
            };
            let columns: Option<Vec<u32>> =
                reads[at].1.as_ref().map(|list| list.iter().map(|&column| column as u32).collect());
            let output = match (&columns, seen(at)) {
                (Some(columns), false) => self.logits(self.weights.unembed.select(columns)?.forward(&x)?)?,
                (_, false) => self.logits(self.weights.unembed.forward(&x)?)?,
                (columns, true) => {
                    let tap = &mut taps.parts_mut()[at].tap;
                    let Frame { rows, length, .. } = *tap.frame();
                    let output = self.logits(self.weights.unembed.forward(&x)?)?;
                    let vocabulary = self.spec.vocabulary;
                    let output = tap.at(*logits, output.reshape((rows, length, vocabulary))?)?;
                    let output = output.contiguous()?.reshape((rows * length, vocabulary))?;
                    match columns {
                        Some(columns) => output.index_select(&Tensor::new(columns.as_slice(), output.device())?, 1)?,
                        None => output,
                    }
                }
            };
            let mut first = 0;
            for at in group {
                let rows = taps.parts()[at].rows().len();
                finished[at] = Some(output.narrow(0, first, rows)?);
                first += rows;
            }
        }
        let mut runs = Vec::with_capacity(reads.len());
        for ((tap, output), (later, _)) in taps.into_taps().zip(finished).zip(reads) {
            let frame = *tap.frame();
            let output = output.ok_or_else(|| endoscope_net::Error::Network("a run has no output".into()))?;
            let rows = frame.rows * frame.length;
            let output = match later {
                Some(positions) => choose(&output, &frame, &positions)?,
                None => output,
            };
            let shape = (frame.rows, output.dim(0)? / frame.rows.max(1), output.dim(1)?);
            runs.push(Finished { outputs: output.reshape(shape)?, tap, rows });
        }
        Ok(runs)
    }
}
