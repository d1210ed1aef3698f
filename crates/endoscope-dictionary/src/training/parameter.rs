//! Weights with the moments that Adam keeps of them.

use endoscope_kernels::sparse::{AdamStep, adam};
use rayon::prelude::*;

/// An array that is trained.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Parameter {
    pub values: Vec<f32>,
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

impl Parameter {
    pub fn new(values: Vec<f32>) -> Self {
        let zeros = vec![0.; values.len()];
        Self { values, first: zeros.clone(), second: zeros }
    }

    pub fn zeros(length: usize) -> Self {
        Self::new(vec![0.; length])
    }

    /// One update down `scale * gradient`.
    pub fn update(&mut self, step: AdamStep, scale: f32, gradient: &[f32]) {
        const CHUNK: usize = 1 << 14;
        let Self { values, first, second } = self;
        (values.par_chunks_mut(CHUNK), first.par_chunks_mut(CHUNK), second.par_chunks_mut(CHUNK))
            .into_par_iter()
            .zip(gradient.par_chunks(CHUNK))
            .for_each(|((values, first, second), gradient)| adam(step, scale, gradient, first, second, values));
    }

    /// Rows of `width` values with what Adam keeps of them.
    pub fn rows_mut(&mut self, width: usize, per_chunk: usize) -> impl IndexedParallelIterator<Item = Rows<'_>> {
        let chunk = width * per_chunk;
        let Self { values, first, second } = self;
        (values.par_chunks_mut(chunk), first.par_chunks_mut(chunk), second.par_chunks_mut(chunk))
            .into_par_iter()
            .map(move |(values, first, second)| Rows { width, values, first, second })
    }

    /// Forgets the moments of entries `range`, and sets them.
    pub fn restart(&mut self, range: std::ops::Range<usize>, values: &[f32]) {
        self.values[range.clone()].copy_from_slice(values);
        self.first[range.clone()].fill(0.);
        self.second[range].fill(0.);
    }
}

/// Some rows of a [`Parameter`].
pub(crate) struct Rows<'a> {
    width: usize,
    values: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Rows<'_> {
    pub fn count(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    pub fn values(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }

    pub fn update(&mut self, row: usize, step: AdamStep, scale: f32, gradient: &[f32]) {
        let range = row * self.width..(row + 1) * self.width;
        adam(
            step,
            scale,
            gradient,
            &mut self.first[range.clone()],
            &mut self.second[range.clone()],
            &mut self.values[range],
        );
    }
}
