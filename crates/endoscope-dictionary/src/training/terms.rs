//! The gradients of a loss with respect to latents, and what they make of the weights.
//!
//! All losses here are sums of terms of one form: some latents of each row, what each writes (`values`), the gradient with
//! respect to what is written (`output`), and the gradient with respect to each pre-activation (`deltas`). The gradient of
//! a latent's decoder row is then `Σ value · output`, that of its encoder row `Σ delta · input`, over the rows in which it
//! takes part: as many products as latents take part, whatever the number of latents.

use std::sync::Arc;

use endoscope_kernels::sparse::{ByColumn, SparseRows, add_weighted_rows, dot};

use crate::matrix::{Matrix, norm};

/// One part of a loss.
pub(crate) struct Term {
    pub by_column: ByColumn,
    /// What each entry writes.
    pub values: Vec<f32>,
    /// The gradient with respect to each entry's pre-activation.
    pub deltas: Vec<f32>,
    /// `[rows, d_out]`: the gradient with respect to what is written.
    pub output: Arc<Matrix>,
    /// Whether pre-activations of this term hold the encoder's bias.
    pub biased: bool,
}

impl Term {
    pub fn new(codes: &SparseRows, values: Vec<f32>, deltas: Vec<f32>, output: Arc<Matrix>) -> Self {
        Self { by_column: codes.by_column(), values, deltas, output, biased: true }
    }

    /// A latent's entries: their rows, values and deltas.
    fn gather(&self, latent: usize, into: &mut Gathered) {
        let (rows, entries) = self.by_column.column(latent);
        into.rows.clear();
        into.rows.extend_from_slice(rows);
        into.values.clear();
        into.values.extend(entries.iter().map(|&entry| self.values[entry as usize]));
        into.deltas.clear();
        into.deltas.extend(entries.iter().map(|&entry| self.deltas[entry as usize]));
    }
}

/// Room for the entries of one latent.
#[derive(Default)]
struct Gathered {
    rows: Vec<u32>,
    values: Vec<f32>,
    deltas: Vec<f32>,
}

/// The gradient of one latent, in room that is used again for the next.
pub(crate) struct LatentGradient {
    pub encoder: Vec<f32>,
    pub decoder: Vec<f32>,
    pub bias: f32,
    gathered: Gathered,
}

/// What is needed to know the gradient of any latent.
pub(crate) struct Gradients<'a> {
    pub terms: &'a [Term],
    pub input: &'a Matrix,
    /// How much each latent's penalty grows per length of its decoder row; none where nothing is penalised.
    pub pull: Option<&'a [f32]>,
    /// Blocks of a decoder row whose lengths are penalised separately (the sites of a crosscoder).
    pub blocks: usize,
    /// Whether gradients along decoder rows are taken out.
    pub unit_decoder: bool,
}

impl LatentGradient {
    pub fn new(d_in: usize, d_out: usize) -> Self {
        Self { encoder: vec![0.; d_in], decoder: vec![0.; d_out], bias: 0., gathered: Gathered::default() }
    }

    /// That of `latent`, whose decoder row is `decoder`.
    pub fn compute(&mut self, gradients: &Gradients<'_>, latent: usize, decoder: &[f32]) {
        self.encoder.fill(0.);
        self.decoder.fill(0.);
        self.bias = 0.;
        for term in gradients.terms {
            let gathered = &mut self.gathered;
            term.gather(latent, gathered);
            add_weighted_rows(gradients.input.values(), &gathered.rows, &gathered.deltas, &mut self.encoder);
            add_weighted_rows(term.output.values(), &gathered.rows, &gathered.values, &mut self.decoder);
            if term.biased {
                self.bias += gathered.deltas.iter().sum::<f32>();
            }
        }
        if let Some(pull) = gradients.pull.map(|pull| pull[latent]).filter(|&pull| pull != 0.) {
            let width = decoder.len() / gradients.blocks.max(1);
            for (gradient, part) in self.decoder.chunks_mut(width.max(1)).zip(decoder.chunks(width.max(1))) {
                let length = norm(part);
                if length > 0. {
                    gradient.iter_mut().zip(part).for_each(|(g, d)| *g += pull * d / length);
                }
            }
        }
        if gradients.unit_decoder {
            let square = dot(decoder, decoder);
            if square > 0. {
                let along = dot(&self.decoder, decoder) / square;
                self.decoder.iter_mut().zip(decoder).for_each(|(g, d)| *g -= along * d);
            }
        }
    }

    /// Its squared length, the biases included.
    pub fn square(&self) -> f64 {
        let square = |x: &[f32]| f64::from(dot(x, x));
        square(&self.encoder) + square(&self.decoder) + f64::from(self.bias).powi(2)
    }
}

/// The gradient that reaches the decoder's bias through the inputs it is subtracted from: `-Σ (Σ deltas) · encoder row`.
pub(crate) fn through_inputs(terms: &[Term], encoder: &[f32], d_in: usize) -> Vec<f32> {
    let mut sum = vec![0.; d_in];
    let latents = encoder.len() / d_in.max(1);
    let (mut rows, mut weights) = (Vec::new(), Vec::new());
    for latent in 0..latents {
        let total: f32 = terms
            .iter()
            .map(|term| term.by_column.column(latent).1.iter().map(|&entry| term.deltas[entry as usize]).sum::<f32>())
            .sum();
        if total != 0. {
            rows.push(latent as u32);
            weights.push(-total);
        }
    }
    add_weighted_rows(encoder, &rows, &weights, &mut sum);
    sum
}
