//! Frames: which part of which sequences a forward pass is computing, and what an index means there.

use crate::error::{Error, Result};
use crate::network::{Padding, TokenRows};
use crate::selection::Index;
use crate::site::{AxisName, Site};

/// What a forward pass computes: `length` positions from `offset` on, of sequences whose prompt has `prompt` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Rows of the batch.
    pub rows: usize,
    /// Positions of the prompt; the end that negative positions count from.
    pub prompt: usize,
    /// The first position computed now (those before are in a cache).
    pub offset: usize,
    /// How many positions are computed now.
    pub length: usize,
    /// Whether more positions may follow, so that an index past the prompt is no error.
    pub grows: bool,
    /// The batch that the rows are of.
    pub batch: Batch,
}

/// A batch, some of whose rows a frame computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// How many rows the batch has.
    pub rows: usize,
    /// The first row of the frame.
    pub first: usize,
    /// The positions of its longest row.
    pub longest: usize,
    /// Where arrays that hold the whole batch fill up its shorter rows.
    pub padding: Padding,
}

impl Frame {
    /// A forward pass over whole sequences.
    pub fn whole(rows: usize, length: usize) -> Self {
        let batch = Batch { rows, first: 0, longest: length, padding: Padding::default() };
        Self { rows, prompt: length, offset: 0, length, grows: false, batch }
    }

    /// A forward pass over one whole row of a batch.
    pub fn of_row(tokens: &TokenRows, row: usize) -> Self {
        let batch = Batch { rows: tokens.rows(), first: row, longest: tokens.length(), padding: tokens.padding() };
        Self { batch, ..Self::whole(1, tokens.ids().get(row).map_or(0, Vec::len)) }
    }

    /// Whether the batch has other rows, which are computed elsewhere.
    pub(crate) fn is_part(&self) -> bool {
        self.rows != self.batch.rows
    }

    /// An error with the row that it arose in.
    pub(crate) fn named(&self, error: Error) -> Error {
        match self.is_part() {
            true => Error::Row { row: self.batch.first, length: self.prompt, error: Box::new(error) },
            false => error,
        }
    }

    /// Where this part's positions begin in an array that holds `size` positions of the whole batch.
    pub(crate) fn start_in(&self, size: usize) -> usize {
        match self.batch.padding {
            Padding::Left if self.is_part() => size.saturating_sub(self.prompt),
            _ => 0,
        }
    }

    pub(crate) fn extent(&self, axis: AxisName, length: usize) -> Extent {
        match axis {
            AxisName::Batch => Extent { end: self.batch.rows, first: self.batch.first, length, grows: false },
            AxisName::Position | AxisName::Query => {
                Extent { end: self.prompt, first: self.offset, length: self.length, grows: self.grows }
            }
            // Keys reach back to position 0 whatever is cached.
            AxisName::Key => Extent { end: self.prompt, first: 0, length, grows: self.grows },
            _ => Extent::fixed(length),
        }
    }
}

/// The entries `first .. first + length` of an axis that is present now; negative indices count from `end`.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    end: usize,
    first: usize,
    length: usize,
    grows: bool,
}

impl Extent {
    pub fn fixed(size: usize) -> Self {
        Self { end: size, first: 0, length: size, grows: false }
    }
}

/// The entries of `index` that lie in `extent`, counted from its first.
pub(crate) fn entries(site: &Site, axis: AxisName, index: &Index, extent: Extent) -> Result<Vec<usize>> {
    let Extent { end, first, length, grows } = extent;
    let present = |at: usize| (at >= first && at < first + length).then(|| at - first);
    let out_of_range = |index: i64| Error::IndexOutOfRange { site: site.name.clone(), axis, index, size: end };
    let absolute = |at: i64| -> Result<usize> {
        let from_start = if at < 0 { at.saturating_add(end as i64) } else { at };
        let exists = from_start >= 0 && (grows || (from_start as usize) < end.max(first + length));
        if exists { Ok(from_start as usize) } else { Err(out_of_range(at)) }
    };
    // A boundary of a range may be one past the end.
    let boundary = |at: i64| -> Result<usize> {
        let from_start = if at < 0 { at.saturating_add(end as i64) } else { at };
        let exists = from_start >= 0 && (grows || from_start as usize <= end.max(first + length));
        if exists { Ok(from_start as usize) } else { Err(out_of_range(at)) }
    };
    match index {
        Index::All => Ok((0..length).collect()),
        Index::At(at) => Ok(present(absolute(*at)?).into_iter().collect()),
        Index::List(list) => {
            let mut chosen = Vec::with_capacity(list.len());
            let mut seen = std::collections::HashSet::with_capacity(list.len());
            for &at in list {
                let position = absolute(at)?;
                if !seen.insert(position) {
                    return Err(Error::RepeatedIndex { site: site.name.clone(), axis, index: at });
                }
                chosen.extend(present(position));
            }
            Ok(chosen)
        }
        Index::Range { start, end: stop } => {
            let start = boundary(*start)?;
            let stop = stop.map(boundary).transpose()?.unwrap_or(usize::MAX);
            Ok((start.max(first)..stop.min(first + length)).map(|at| at - first).collect())
        }
        Index::Generated => Ok((end.max(first)..first + length).map(|at| at - first).collect()),
    }
}
