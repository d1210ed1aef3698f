//! The taps of a pass over several runs at once, whose rows lie one after the other.

use std::ops::Range;

use candle_core::Tensor;

use crate::error::Result;
use crate::frame::Frame;
use crate::site::SiteId;
use crate::tap::Tap;

/// One run's part of a pass.
#[derive(Debug)]
pub struct Part<'p> {
    /// Its tap.
    pub tap: Tap<'p>,
    /// Its first row.
    pub first: usize,
}

impl Part<'_> {
    /// Its rows: sequence after sequence, each position after position.
    pub fn rows(&self) -> Range<usize> {
        let Frame { rows, length, .. } = *self.tap.frame();
        self.first..self.first + rows * length
    }
}

/// The parts of a pass, in the order of their rows.
#[derive(Debug, Default)]
pub struct Taps<'p> {
    parts: Vec<Part<'p>>,
}

impl<'p> Taps<'p> {
    /// Adds a run after the last.
    pub fn push(&mut self, tap: Tap<'p>) {
        self.parts.push(Part { tap, first: self.rows() });
    }

    /// How many rows there are in all.
    pub fn rows(&self) -> usize {
        self.parts.last().map_or(0, |part| part.rows().end)
    }

    /// The parts.
    pub fn parts(&self) -> &[Part<'p>] {
        &self.parts
    }

    /// The parts, to be changed.
    pub fn parts_mut(&mut self) -> &mut [Part<'p>] {
        &mut self.parts
    }

    /// The parts, in order.
    pub fn into_parts(self) -> Vec<Part<'p>> {
        self.parts
    }

    /// The taps, in order.
    pub fn into_taps(self) -> impl Iterator<Item = Tap<'p>> {
        self.parts.into_iter().map(|part| part.tap)
    }

    /// Whether a run reads or changes this site, so that its tensor must be built.
    pub fn wants(&self, id: SiteId) -> bool {
        self.parts.iter().any(|part| part.tap.wants(id))
    }

    /// Whether [`Taps::at`] may return another tensor than it was given here.
    pub fn rewrites(&self, id: SiteId) -> bool {
        self.parts.iter().any(|part| part.tap.rewrites(id))
    }

    /// Hands over the activation `[row, …]` of a site `[batch, position, …]`; what comes back is what the rest of the
    /// network must read.
    pub fn at(&mut self, id: SiteId, activation: Tensor) -> Result<Tensor> {
        if let [part] = self.parts.as_mut_slice() {
            return whole(&mut part.tap, id, activation);
        }
        if !self.wants(id) {
            return Ok(activation);
        }
        // Runs that leave the site alone keep their rows in one piece.
        let mut pieces: Vec<Tensor> = Vec::new();
        let mut taken = 0;
        for part in &mut self.parts {
            if !part.tap.wants(id) {
                continue;
            }
            let rows = part.rows();
            let mine = activation.narrow(0, rows.start, rows.len())?;
            let changes = part.tap.rewrites(id);
            let mine = whole(&mut part.tap, id, mine.contiguous()?)?;
            if changes {
                if rows.start > taken {
                    pieces.push(activation.narrow(0, taken, rows.start - taken)?);
                }
                pieces.push(mine);
                taken = rows.end;
            }
        }
        let all = activation.dim(0)?;
        match taken {
            0 => Ok(activation),
            taken => {
                if taken < all {
                    pieces.push(activation.narrow(0, taken, all - taken)?);
                }
                Ok(Tensor::cat(&pieces, 0)?)
            }
        }
    }

    /// Hands over a site whose tensor is worth building only for those runs that want it: `make` builds the activation of the
    /// rows that it is given. What comes back are the rows of the runs that may have changed theirs.
    pub fn at_those(
        &mut self,
        id: SiteId,
        make: impl Fn(Range<usize>) -> Result<Tensor>,
    ) -> Result<Vec<(Range<usize>, Tensor)>> {
        let mut changed = Vec::new();
        for part in self.parts.iter_mut().filter(|part| part.tap.wants(id)) {
            let rows = part.rows();
            let mine = whole(&mut part.tap, id, make(rows.clone())?)?;
            if part.tap.rewrites(id) {
                changed.push((rows, mine));
            }
        }
        Ok(changed)
    }
}

/// All rows of one run.
fn whole(tap: &mut Tap<'_>, id: SiteId, activation: Tensor) -> Result<Tensor> {
    if !tap.wants(id) {
        return Ok(activation);
    }
    let dims = activation.dims().to_vec();
    let Frame { rows, length, .. } = *tap.frame();
    let shape = [&[rows, length], &dims[1..]].concat();
    Ok(tap.at(id, activation.reshape(shape)?)?.reshape(dims)?)
}
