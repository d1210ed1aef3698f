//! A dictionary: activations to few latents, and back.

use std::borrow::Cow;
use std::sync::OnceLock;

use endoscope_kernels::sparse::SparseRows;
use endoscope_kernels::{PackedMatrix, Precision, top_k_of_row};
use rayon::prelude::*;

use crate::config::{Activation, Config};
use crate::error::{Error, Result};
use crate::matrix::{Matrix, norm};
use crate::normalization::{Rescaled, normalize};

/// How many pre-activations are held at once.
const PRE_ACTIVATIONS: usize = 1 << 22;

/// The arrays of a dictionary, one row a latent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights {
    /// `[latents, d_in]`: the direction that each latent reads (`W_enc` transposed).
    pub encoder: Matrix,
    /// `[latents]`: added to each pre-activation. Of a gated dictionary the gate's bias.
    pub encoder_bias: Vec<f32>,
    /// `[latents, d_out]`: the direction that each latent writes (`W_dec`).
    pub decoder: Matrix,
    /// `[d_out]`.
    pub decoder_bias: Vec<f32>,
    /// `[latents]`: what a JumpReLU pre-activation must exceed.
    pub threshold: Option<Vec<f32>>,
    /// A gated dictionary's magnitudes.
    pub magnitude: Option<Magnitude>,
    /// `[d_out, d_in]`: what a skip transcoder adds, `x W_skipᵀ`.
    pub skip: Option<Matrix>,
}

/// How a gated dictionary's magnitudes differ from its gates: `exp(rescale) · (a - gate bias) + bias`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Magnitude {
    /// `[latents]`: `r_mag`.
    pub rescale: Vec<f32>,
    /// `[latents]`: `b_mag`.
    pub bias: Vec<f32>,
}

/// Latents of some activations, and how their vectors were scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// Row by row the latents that are active, in the order of their numbers.
    pub latents: SparseRows,
    pub(crate) rescaled: Option<Vec<Rescaled>>,
}

impl Codes {
    /// How long one unit of a decoded vector is in the row's own units.
    pub(crate) fn scale_of_row(&self, row: usize) -> f32 {
        self.rescaled.as_ref().map_or(1., |rescaled| rescaled[row].scale())
    }
}

/// A sparse autoencoder, transcoder or crosscoder.
#[derive(Debug)]
pub struct Dictionary {
    config: Config,
    weights: Weights,
    /// The length of each decoder row.
    decoder_norms: Vec<f32>,
    packed: OnceLock<PackedMatrix>,
}

impl Clone for Dictionary {
    fn clone(&self) -> Self {
        let Self { config, weights, decoder_norms, .. } = self;
        let (config, weights, decoder_norms) = (config.clone(), weights.clone(), decoder_norms.clone());
        Self { config, weights, decoder_norms, packed: OnceLock::new() }
    }
}

impl PartialEq for Dictionary {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config && self.weights == other.weights
    }
}

impl Dictionary {
    /// Checks that the arrays fit each other and the configuration, and hold numbers only.
    pub fn new(config: Config, weights: Weights) -> Result<Self> {
        check(&config, &weights)?;
        let decoder_norms = weights.decoder.norms();
        Ok(Self { config, weights, decoder_norms, packed: OnceLock::new() })
    }

    /// What it is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its arrays.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Both, to be changed and put together again by [`Dictionary::new`].
    pub fn into_parts(self) -> (Config, Weights) {
        (self.config, self.weights)
    }

    /// How many latents.
    pub fn latents(&self) -> usize {
        self.weights.encoder.rows()
    }

    /// How many dimensions it reads.
    pub fn d_in(&self) -> usize {
        self.weights.encoder.columns()
    }

    /// How many dimensions it writes.
    pub fn d_out(&self) -> usize {
        self.weights.decoder.columns()
    }

    /// The length of each latent's decoder row.
    pub fn decoder_norms(&self) -> &[f32] {
        &self.decoder_norms
    }

    /// Whether it writes what it reads.
    pub fn is_autoencoder(&self) -> bool {
        self.config.output_site.is_none() && self.d_in() == self.d_out()
    }

    /// The latents of each row of `x`, `[rows, d_in]`.
    pub fn encode(&self, x: &Matrix) -> Result<Codes> {
        x.check(self.d_in())?;
        let (mut input, rescaled) = normalize(self.config.normalization, x);
        if self.config.apply_b_dec_to_input {
            subtract(&mut input, &self.weights.decoder_bias);
        }
        let packed = self.packed()?;
        let mut latents = SparseRows::new(self.latents());
        for rows in blocks(input.rows(), self.latents()) {
            let values = &input.values()[rows.start * self.d_in()..rows.end * self.d_in()];
            let pre = packed.product_of_rows(values, &self.weights.encoder_bias)?;
            latents.append(&self.activate(&pre));
        }
        // Undoing is for what goes back to where it came from.
        let rescaled = rescaled.filter(|_| self.is_autoencoder());
        Ok(Codes { latents, rescaled })
    }

    /// What latents write, `[rows, d_out]`; a skip transcoder's skip, which reads the input, is not in it.
    pub fn decode(&self, codes: &Codes) -> Matrix {
        let mut out = Matrix::zeros(codes.latents.rows(), self.d_out());
        for row in out.values_mut().chunks_exact_mut(self.weights.decoder_bias.len().max(1)) {
            row.copy_from_slice(&self.weights.decoder_bias);
        }
        let latents = self.unscaled(&codes.latents);
        latents.add_product(self.weights.decoder.values(), self.d_out(), out.values_mut());
        if let Some(rescaled) = &codes.rescaled {
            (0..out.rows()).zip(rescaled).for_each(|(row, rescaled)| rescaled.undo(out.row_mut(row)));
        }
        out
    }

    /// What it makes of `x`: `[rows, d_in] -> [rows, d_out]`.
    pub fn reconstruct(&self, x: &Matrix) -> Result<Matrix> {
        let codes = self.encode(x)?;
        self.reconstruct_from(x, &codes)
    }

    /// The same from latents of `x` that are already known, or were changed.
    pub fn reconstruct_from(&self, x: &Matrix, codes: &Codes) -> Result<Matrix> {
        let mut out = self.decode(codes);
        if let Some(skip) = &self.weights.skip {
            let through = x.times_transposed(skip)?;
            out.values_mut().iter_mut().zip(through.values()).for_each(|(out, x)| *out += x);
        }
        Ok(out)
    }

    /// The direction that a latent writes per unit of its activation.
    pub fn direction(&self, feature: usize) -> Result<Vec<f32>> {
        self.check_feature(feature)?;
        let row = self.weights.decoder.row(feature);
        let scale = 1. / self.scale_of(feature);
        Ok(row.iter().map(|x| x * scale).collect())
    }

    /// How much an active latent's activation grows per unit of what its encoder row reads.
    pub fn gain(&self, feature: usize) -> Result<f32> {
        self.check_feature(feature)?;
        Ok(match (self.config.activation, &self.weights.magnitude) {
            (Activation::Gated, Some(Magnitude { rescale, .. })) => rescale[feature].exp(),
            _ => self.scale_of(feature),
        })
    }

    /// Errors if there is no such latent.
    pub fn check_feature(&self, feature: usize) -> Result<()> {
        let latents = self.latents();
        if feature < latents { Ok(()) } else { Err(Error::NoSuchFeature { feature, latents }) }
    }

    /// What activations are multiplied by before they are compared and given.
    fn scale_of(&self, latent: usize) -> f32 {
        match self.config.activation {
            Activation::TopK { by_decoder_norm: true, .. } => self.decoder_norms[latent],
            _ => 1.,
        }
    }

    /// Latents in units of decoder rows as they are.
    fn unscaled<'a>(&self, latents: &'a SparseRows) -> Cow<'a, SparseRows> {
        if !matches!(self.config.activation, Activation::TopK { by_decoder_norm: true, .. }) {
            return Cow::Borrowed(latents);
        }
        let mut latents = latents.clone();
        let columns = latents.columns().to_vec();
        for (value, column) in latents.values_mut().iter_mut().zip(columns) {
            *value /= self.decoder_norms[column as usize];
        }
        Cow::Owned(latents)
    }

    fn packed(&self) -> Result<&PackedMatrix> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let packed = pack(self.weights.encoder.values(), self.d_in())?;
        Ok(self.packed.get_or_init(|| packed))
    }

    /// The latents of rows of pre-activations.
    fn activate(&self, pre: &[f32]) -> SparseRows {
        let latents = self.latents();
        let weights = &self.weights;
        let rows = |rows: &[f32]| {
            let mut codes = SparseRows::new(latents);
            let mut scaled = Vec::new();
            for row in rows.chunks_exact(latents.max(1)) {
                match self.config.activation {
                    Activation::Relu => codes.push(above(row, |_| 0.)),
                    Activation::JumpRelu => {
                        let threshold = weights.threshold.as_deref().unwrap_or_default();
                        codes.push(above(row, |at| threshold[at].max(0.)));
                    }
                    Activation::TopK { k, by_decoder_norm } => {
                        let mut top = match by_decoder_norm {
                            false => top_k_of_row(row, k),
                            true => {
                                scaled.clear();
                                scaled.extend(row.iter().zip(&self.decoder_norms).map(|(a, norm)| a * norm));
                                top_k_of_row(&scaled, k)
                            }
                        };
                        top.retain(|&(value, _)| value > 0.);
                        top.sort_unstable_by_key(|&(_, at)| at);
                        codes.push(top.into_iter().map(|(value, at)| (at, value)));
                    }
                    Activation::Gated => {
                        let open = above(row, |_| 0.);
                        codes.push(open.filter_map(|(at, gate)| {
                            let value = magnitude(weights, at as usize, gate);
                            (value > 0.).then_some((at, value))
                        }));
                    }
                }
            }
            codes
        };
        let per_task = (PRE_ACTIVATIONS / 64 / latents.max(1)).max(1) * latents.max(1);
        let parts: Vec<SparseRows> = pre.par_chunks(per_task).map(rows).collect();
        let mut all = SparseRows::new(latents);
        parts.iter().for_each(|part| all.append(part));
        all
    }
}

/// The entries of a row that exceed their threshold.
fn above(row: &[f32], threshold: impl Fn(usize) -> f32) -> impl Iterator<Item = (u32, f32)> {
    row.iter().enumerate().filter(move |&(at, &value)| value > threshold(at)).map(|(at, &value)| (at as u32, value))
}

/// A gated latent's magnitude before its own threshold at zero.
pub(crate) fn magnitude(weights: &Weights, latent: usize, gate: f32) -> f32 {
    let Some(Magnitude { rescale, bias }) = &weights.magnitude else { return gate };
    (gate - weights.encoder_bias[latent]) * rescale[latent].exp() + bias[latent]
}

/// Rows of which the pre-activations are held at once.
pub(crate) fn blocks(rows: usize, latents: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let height = (PRE_ACTIVATIONS / latents.max(1)).clamp(16, 1024);
    (0..rows).step_by(height).map(move |start| start..(start + height).min(rows))
}

/// The encoder `[latents, inner]` as products read it.
pub(crate) fn pack(encoder: &[f32], inner: usize) -> Result<PackedMatrix> {
    let part = std::iter::once(0..encoder.len() / inner.max(1)).collect::<Vec<_>>();
    let read = |range: std::ops::Range<usize>, into: &mut [f32]| {
        into.copy_from_slice(&encoder[range.start * inner..range.end * inner]);
        Ok::<(), Error>(())
    };
    let mut packed = PackedMatrix::read_columns(inner, &[part], Precision::F32, read)?;
    packed.pop().ok_or_else(|| Error::Config("it has no encoder".into()))
}

pub(crate) fn subtract(rows: &mut Matrix, vector: &[f32]) {
    for row in rows.values_mut().chunks_exact_mut(vector.len().max(1)) {
        row.iter_mut().zip(vector).for_each(|(x, b)| *x -= b);
    }
}

fn check(config: &Config, weights: &Weights) -> Result<()> {
    let Weights { encoder, encoder_bias, decoder, decoder_bias, threshold, magnitude, skip } = weights;
    let (latents, d_in, d_out) = (encoder.rows(), encoder.columns(), decoder.columns());
    let expect = |name, found: Vec<usize>, expected: Vec<usize>| match found == expected {
        true => Ok(()),
        false => Err(Error::Shape { name, found, expected }),
    };
    expect("W_dec", vec![decoder.rows(), d_out], vec![latents, d_out])?;
    expect("b_enc", vec![encoder_bias.len()], vec![latents])?;
    expect("b_dec", vec![decoder_bias.len()], vec![d_out])?;
    let vectors = [
        ("threshold", threshold.as_ref()),
        ("r_mag", magnitude.as_ref().map(|magnitude| &magnitude.rescale)),
        ("b_mag", magnitude.as_ref().map(|magnitude| &magnitude.bias)),
    ];
    for (name, vector) in vectors {
        vector.map_or(Ok(()), |vector| expect(name, vec![vector.len()], vec![latents]))?;
    }
    if let Some(skip) = skip {
        expect("W_skip", vec![skip.rows(), skip.columns()], vec![d_out, d_in])?;
    }
    let fail = |reason: String| Err(Error::Config(reason));
    match (config.activation, threshold, magnitude) {
        _ if latents == 0 || d_in == 0 || d_out == 0 => {
            return fail(format!("it has {latents} latents from {d_in} to {d_out} dimensions"));
        }
        (Activation::JumpRelu, None, _) => return fail("a jumprelu dictionary needs a threshold".into()),
        (Activation::Gated, _, None) => return fail("a gated dictionary needs r_mag and b_mag".into()),
        (Activation::TopK { k, .. }, ..) if k == 0 || k > latents => {
            return fail(format!("the {k} largest of {latents} latents were asked for"));
        }
        _ => {}
    }
    if config.apply_b_dec_to_input && d_in != d_out {
        return fail(format!("a decoder bias of {d_out} dimensions cannot be subtracted from {d_in}"));
    }
    let sites = config.sites.len();
    if sites > 1 && (d_in % sites != 0 || d_out % sites != 0) {
        return fail(format!("{d_in} to {d_out} dimensions are not shared equally by {sites} sites"));
    }
    let arrays = [
        ("W_enc", encoder.values()),
        ("W_dec", decoder.values()),
        ("b_enc", encoder_bias),
        ("b_dec", decoder_bias),
        ("W_skip", skip.as_ref().map_or(&[], Matrix::values)),
    ];
    let vectors = vectors.map(|(name, vector)| (name, vector.map_or(&[][..], Vec::as_slice)));
    match arrays.into_iter().chain(vectors).find(|(_, values)| values.iter().any(|x| !x.is_finite())) {
        Some((name, _)) => fail(format!("{name} holds a value that is not finite")),
        None => Ok(()),
    }
}

impl Weights {
    /// Divides each decoder row by its length, and multiplies what the latent reads by it: the same function, with latents
    /// in units of what they write. Rows of length zero stay.
    pub fn fold_decoder_norms(&mut self) {
        for latent in 0..self.decoder.rows() {
            let length = norm(self.decoder.row(latent));
            if length == 0. {
                continue;
            }
            self.decoder.row_mut(latent).iter_mut().for_each(|x| *x /= length);
            self.encoder.row_mut(latent).iter_mut().for_each(|x| *x *= length);
            self.encoder_bias[latent] *= length;
            if let Some(threshold) = &mut self.threshold {
                threshold[latent] *= length;
            }
            if let Some(Magnitude { bias, .. }) = &mut self.magnitude {
                bias[latent] *= length;
            }
        }
    }

    /// For a dictionary that reads `x - shift`: the same function of `x` itself.
    pub fn fold_input_shift(&mut self, shift: &[f32]) {
        for latent in 0..self.encoder.rows() {
            let read = self.encoder.row(latent).iter().zip(shift).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let read = read.sum::<f64>() as f32;
            self.encoder_bias[latent] -= read;
            if let Some(Magnitude { rescale, bias }) = &mut self.magnitude {
                bias[latent] -= rescale[latent].exp() * read;
            }
        }
    }

    /// For a dictionary trained on `factor · x`: the same function of `x` itself.
    pub fn fold_input_scale(&mut self, factor: f32) {
        self.encoder.values_mut().iter_mut().for_each(|x| *x *= factor);
        self.decoder.values_mut().iter_mut().for_each(|x| *x /= factor);
        self.decoder_bias.iter_mut().for_each(|x| *x /= factor);
    }
}
