//! A dictionary in training: its weights, what Adam keeps of them, and one update after another.

use endoscope_kernels::sparse::AdamStep;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::loss::{Batch, Loss, Model, loss};
use super::parameter::Parameter;
use super::preparation::Preparation;
use super::settings::{BiasStart, InputScaling, Objective, Settings};
use super::start;
use super::terms::{Gradients, LatentGradient, through_inputs};
use crate::config::{Activation, Config};
use crate::dictionary::{Dictionary, Magnitude, Weights, pack, subtract};
use crate::error::{Error, Result};
use crate::matrix::{Matrix, norm};
use crate::normalization::normalize;

/// Vectors to train on.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// `[rows, d_in]`.
    pub input: Matrix,
    /// `[rows, d_out]`: what shall be written, where that is not the input (a transcoder).
    pub target: Option<Matrix>,
}

/// What one update saw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Updates made, this one included.
    pub step: u64,
    /// The loss of the batch, before the update.
    pub loss: f64,
    /// The share of the batch's variance that was not reconstructed.
    pub fvu: f64,
    /// Active latents a row.
    pub l0: f64,
    /// The share of latents that were not active for `dead_after_steps`.
    pub dead: f64,
}

/// A dictionary in training.
#[derive(Debug, Clone, PartialEq)]
pub struct Trainer {
    pub(crate) settings: Settings,
    /// What the dictionary will say of itself.
    pub(crate) template: Config,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    pub(crate) step: u64,
    pub(crate) preparation: Preparation,
    pub(crate) encoder: Parameter,
    pub(crate) encoder_bias: Parameter,
    pub(crate) decoder: Parameter,
    pub(crate) decoder_bias: Parameter,
    pub(crate) threshold: Option<Parameter>,
    pub(crate) magnitude: Option<(Parameter, Parameter)>,
    pub(crate) skip: Option<Parameter>,
    /// Updates since each latent was last active.
    pub(crate) idle: Vec<u64>,
    /// What a BatchTopK latent must exceed once it is trained.
    pub(crate) running_threshold: f64,
}

impl Trainer {
    /// A dictionary as it starts: `sample` is some of what it will be trained on, from which scales and biases are estimated.
    ///
    /// `template` says which sites it reads and writes; its activation and normalisation are those of the settings.
    pub fn new(settings: Settings, template: Config, sample: &Examples) -> Result<Self> {
        settings.check()?;
        let Examples { input, target } = sample;
        let (d_in, d_out) = (input.columns(), target.as_ref().map_or(input.columns(), Matrix::columns));
        check_examples(sample, d_in, d_out)?;
        let is_transcoder = target.is_some();
        let fail = |reason: &str| Err(Error::Training(reason.into()));
        if input.rows() == 0 {
            return fail("there are no activations");
        }
        if is_transcoder && settings.apply_b_dec_to_input {
            return fail(
                "a transcoder's decoder bias is of another site than its input: set apply_b_dec_to_input = false",
            );
        }
        if is_transcoder
            && matches!(settings.normalization, InputScaling::ConstantNormRescale | InputScaling::LayerNorm)
        {
            return fail(
                "a transcoder's target cannot be undone by its input's own scale: use expected_average_only_in",
            );
        }
        let sites = template.sites.len().max(1);
        if d_in % sites != 0 {
            return Err(Error::Training(format!("{d_in} dimensions are not shared equally by {sites} sites")));
        }
        let preparation = Preparation::estimate(settings.normalization, input, target.as_ref())?;
        let seen = preparation.apply(target.as_ref().unwrap_or(input), is_transcoder)?;
        let latents = settings.latents;
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        let norm = if settings.unit_decoder { 1. } else { settings.decoder_start_norm as f32 };
        let decoder = start::directions(latents, d_out, norm, &mut random);
        let encoder = match d_in == d_out && !is_transcoder {
            true => decoder.clone(),
            false => start::directions(latents, d_in, norm, &mut random),
        };
        let decoder_bias = match settings.bias_start {
            BiasStart::Zero => vec![0.; d_out],
            BiasStart::Mean => seen.mean(),
            BiasStart::GeometricMedian => start::geometric_median(&seen),
        };
        let (threshold, magnitude) = match settings.objective {
            Objective::JumpRelu { threshold, .. } => (Some(Parameter::new(vec![threshold as f32; latents])), None),
            Objective::Gated { .. } => (None, Some((Parameter::zeros(latents), Parameter::zeros(latents)))),
            _ => (None, None),
        };
        Ok(Self {
            skip: settings.skip.then(|| Parameter::zeros(d_out * d_in)),
            settings,
            template,
            d_in,
            d_out,
            step: 0,
            preparation,
            encoder: Parameter::new(encoder),
            encoder_bias: Parameter::zeros(latents),
            decoder: Parameter::new(decoder),
            decoder_bias: Parameter::new(decoder_bias),
            threshold,
            magnitude,
            idle: vec![0; latents],
            running_threshold: 0.,
        })
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Updates made.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Whether all updates are made.
    pub fn is_finished(&self) -> bool {
        self.step >= self.settings.steps
    }

    /// One update.
    pub fn update(&mut self, examples: &Examples) -> Result<Progress> {
        check_examples(examples, self.d_in, self.d_out)?;
        let Examples { input: raw, target } = examples;
        if raw.rows() == 0 {
            return Err(Error::Training("a batch is empty".into()));
        }
        let prepared = self.preparation.apply(raw, false)?;
        let target = match target {
            Some(target) => self.preparation.apply(target, true)?,
            None => prepared.clone(),
        };
        let (mut input, rescaled) = normalize(self.settings.normalization.of_dictionary(), &prepared);
        if self.settings.apply_b_dec_to_input {
            subtract(&mut input, &self.decoder_bias.values);
        }
        if let Some(threshold) = &mut self.threshold {
            // Below zero a threshold would let negative pre-activations through.
            threshold.values.iter_mut().for_each(|threshold| *threshold = threshold.max(0.));
        }
        let skip = self.skip_of(&prepared)?;
        let batch = Batch { input: &input, target: &target, rescaled: rescaled.as_deref(), skip: skip.as_ref() };
        let packed = pack(&self.encoder.values, self.d_in)?;
        let lengths = self.lengths();
        let dead = self.dead();
        let model = Model {
            objective: &self.settings.objective,
            encoder: &packed,
            encoder_bias: &self.encoder_bias.values,
            decoder: &self.decoder.values,
            decoder_bias: &self.decoder_bias.values,
            lengths: &lengths,
            threshold: self.threshold.as_ref(),
            magnitude: self.magnitude.as_ref().map(|(rescale, bias)| (rescale, bias)),
            dead: &dead,
            sparsity: self.settings.sparsity_at(self.step),
        };
        let found = loss(&model, &batch)?;
        if !found.total.is_finite() {
            let step = self.step;
            return Err(Error::Training(format!(
                "the loss of update {step} is {}: lower the learning rate",
                found.total
            )));
        }
        let progress = self.progress(&found, &target);
        self.descend(&found, &input, &prepared)?;
        self.count(&found);
        self.step += 1;
        let resampled = self.settings.resample_every.is_some_and(|every| self.step.is_multiple_of(every));
        if resampled && !self.is_finished() {
            self.resample(&input, &target, &found);
        }
        Ok(Progress { step: self.step, ..progress })
    }

    /// The dictionary as it is now, for vectors as they are.
    pub fn dictionary(&self) -> Result<Dictionary> {
        let latents = self.settings.latents;
        let activation = match self.settings.objective {
            Objective::Standard { .. } => Activation::Relu,
            Objective::Gated { .. } => Activation::Gated,
            Objective::TopK { k, by_decoder_norm, .. } => Activation::TopK { k, by_decoder_norm },
            Objective::BatchTopK { .. } | Objective::JumpRelu { .. } => Activation::JumpRelu,
        };
        let mut weights = Weights {
            encoder: self.encoder_matrix()?,
            encoder_bias: self.encoder_bias.values.clone(),
            decoder: Matrix::new(latents, self.d_out, self.decoder.values.clone())?,
            decoder_bias: self.decoder_bias.values.clone(),
            threshold: self.threshold.as_ref().map(|threshold| threshold.values.iter().map(|x| x.max(0.)).collect()),
            magnitude: self
                .magnitude
                .as_ref()
                .map(|(rescale, bias)| Magnitude { rescale: rescale.values.clone(), bias: bias.values.clone() }),
            skip: self.skip.as_ref().map(|skip| Matrix::new(self.d_out, self.d_in, skip.values.clone())).transpose()?,
        };
        let mut activation = activation;
        match &mut activation {
            // What is compared by decoder length is the same as what has decoder rows of length 1.
            Activation::TopK { by_decoder_norm, .. } if *by_decoder_norm => {
                weights.fold_decoder_norms();
                *by_decoder_norm = false;
            }
            Activation::JumpRelu => {
                if let Objective::BatchTopK { by_decoder_norm, .. } = self.settings.objective {
                    if by_decoder_norm {
                        weights.fold_decoder_norms();
                    }
                    weights.threshold = Some(vec![self.running_threshold as f32; latents]);
                }
            }
            _ => {}
        }
        self.preparation.fold(&mut weights, self.settings.apply_b_dec_to_input)?;
        let config = Config {
            activation,
            apply_b_dec_to_input: self.settings.apply_b_dec_to_input,
            normalization: self.settings.normalization.of_dictionary(),
            ..self.template.clone()
        };
        Dictionary::new(config, weights)
    }

    fn encoder_matrix(&self) -> Result<Matrix> {
        Matrix::new(self.settings.latents, self.d_in, self.encoder.values.clone())
    }

    /// Lengths of decoder rows, summed over the sites of a crosscoder.
    fn lengths(&self) -> Vec<f32> {
        let part = (self.d_out / self.blocks()).max(1);
        self.decoder.values.par_chunks(self.d_out.max(1)).map(|row| row.chunks(part).map(norm).sum()).collect()
    }

    fn blocks(&self) -> usize {
        self.template.sites.len().max(1)
    }

    fn dead(&self) -> Vec<u32> {
        let idle = self.idle.iter().enumerate();
        idle.filter(|&(_, &idle)| idle > self.settings.dead_after_steps).map(|(latent, _)| latent as u32).collect()
    }

    fn skip_of(&self, prepared: &Matrix) -> Result<Option<Matrix>> {
        let Some(skip) = &self.skip else { return Ok(None) };
        let skip = Matrix::new(self.d_out, self.d_in, skip.values.clone())?;
        prepared.times_transposed(&skip).map(Some)
    }

    fn progress(&self, found: &Loss, target: &Matrix) -> Progress {
        let rows = target.rows().max(1) as f64;
        let mean = target.mean();
        let square = |row: &[f32]| row.iter().zip(&mean).map(|(x, m)| f64::from(x - m).powi(2)).sum::<f64>();
        let variance = target.iter().map(square).sum::<f64>() / rows;
        Progress {
            step: self.step,
            loss: found.total,
            fvu: found.error / variance,
            l0: found.codes.entries() as f64 / rows,
            dead: self.dead().len() as f64 / self.settings.latents as f64,
        }
    }

    /// One step down the gradient of all weights.
    fn descend(&mut self, found: &Loss, input: &Matrix, prepared: &Matrix) -> Result<()> {
        let Settings { beta1, beta2, epsilon, unit_decoder, clip, .. } = self.settings;
        let step = AdamStep::new(self.step + 1, self.settings.learning_rate_at(self.step), (beta1, beta2), epsilon);
        let gradients =
            Gradients { terms: &found.terms, input, pull: found.pull.as_deref(), blocks: self.blocks(), unit_decoder };
        let mut decoder_bias = found.decoder_bias.clone();
        if self.settings.apply_b_dec_to_input {
            let through = through_inputs(&found.terms, &self.encoder.values, self.d_in);
            decoder_bias.iter_mut().zip(through).for_each(|(bias, through)| *bias += through);
        }
        let skip = match &self.skip {
            Some(_) => Some(found.output.transposed().times_transposed(&prepared.transposed())?),
            None => None,
        };
        let scale = match clip {
            None => 1.,
            Some(longest) => {
                let square = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
                let vectors = [
                    Some(decoder_bias.as_slice()),
                    found.threshold.as_deref(),
                    found.magnitude.as_ref().map(|(rescale, _)| rescale.as_slice()),
                    found.magnitude.as_ref().map(|(_, bias)| bias.as_slice()),
                    skip.as_ref().map(Matrix::values),
                ];
                let vectors: f64 = vectors.into_iter().flatten().map(square).sum();
                let length = (vectors + self.square(&gradients)).sqrt();
                // As torch.nn.utils.clip_grad_norm_ does.
                (longest / (length + 1e-6)).min(1.) as f32
            }
        };
        self.descend_latents(&gradients, step, scale);
        self.decoder_bias.update(step, scale, &decoder_bias);
        if let (Some(threshold), Some(gradient)) = (&mut self.threshold, &found.threshold) {
            threshold.update(step, scale, gradient);
        }
        if let (Some((rescale, bias)), Some((rescale_gradient, bias_gradient))) =
            (&mut self.magnitude, &found.magnitude)
        {
            rescale.update(step, scale, rescale_gradient);
            bias.update(step, scale, bias_gradient);
        }
        if let (Some(skip), Some(gradient)) = (&mut self.skip, &skip) {
            skip.update(step, scale, gradient.values());
        }
        Ok(())
    }

    /// The squared length of all latents' gradients.
    fn square(&self, gradients: &Gradients<'_>) -> f64 {
        let (d_in, d_out) = (self.d_in, self.d_out);
        let rows: Vec<f64> = (0..self.settings.latents)
            .into_par_iter()
            .with_min_len(16)
            .map_init(
                || LatentGradient::new(d_in, d_out),
                |room, latent| {
                    room.compute(gradients, latent, &self.decoder.values[latent * d_out..][..d_out]);
                    room.square()
                },
            )
            .collect();
        rows.iter().sum()
    }

    fn descend_latents(&mut self, gradients: &Gradients<'_>, step: AdamStep, scale: f32) {
        const LATENTS: usize = 32;
        let (d_in, d_out, unit) = (self.d_in, self.d_out, gradients.unit_decoder);
        let encoder = self.encoder.rows_mut(d_in, LATENTS);
        let decoder = self.decoder.rows_mut(d_out, LATENTS);
        let bias = self.encoder_bias.rows_mut(1, LATENTS);
        encoder.zip(decoder).zip(bias).enumerate().for_each_init(
            || LatentGradient::new(d_in, d_out),
            |room, (chunk, ((mut encoder, mut decoder), mut bias))| {
                for row in 0..encoder.count() {
                    room.compute(gradients, chunk * LATENTS + row, decoder.values(row));
                    encoder.update(row, step, scale, &room.encoder);
                    decoder.update(row, step, scale, &room.decoder);
                    bias.update(row, step, scale, &[room.bias]);
                    if unit {
                        let values = decoder.values(row);
                        let length = norm(values);
                        if length > 0. {
                            values.iter_mut().for_each(|x| *x /= length);
                        }
                    }
                }
            },
        );
    }

    /// Which latents were active, and the running threshold.
    fn count(&mut self, found: &Loss) {
        self.idle.iter_mut().for_each(|idle| *idle += 1);
        for (&latent, &value) in found.codes.columns().iter().zip(found.codes.values()) {
            if value != 0. {
                self.idle[latent as usize] = 0;
            }
        }
        if let (Objective::BatchTopK { threshold_rate, .. }, Some(least)) = (&self.settings.objective, found.least) {
            self.running_threshold += threshold_rate * (f64::from(least) - self.running_threshold);
        }
    }

    /// Dead latents start again at inputs drawn by the square of their error: what they write is that input, what they read a
    /// fifth of the mean living encoder row's length along it (Bricken et al. 2023, "Neuron Resampling").
    fn resample(&mut self, input: &Matrix, target: &Matrix, found: &Loss) {
        let dead = self.dead();
        if dead.is_empty() {
            return;
        }
        let (d_in, d_out) = (self.d_in, self.d_out);
        let errors: Vec<f64> = found
            .reconstruction
            .iter()
            .zip(target.iter())
            .map(|(y, t)| y.iter().zip(t).map(|(y, t)| f64::from(y - t).powi(2)).sum::<f64>().powi(2))
            .collect();
        let total: f64 = errors.iter().sum();
        let is_dead = |latent: usize| dead.binary_search(&(latent as u32)).is_ok();
        let living: Vec<f32> = (0..self.settings.latents)
            .filter(|&latent| !is_dead(latent))
            .map(|latent| norm(&self.encoder.values[latent * d_in..][..d_in]))
            .collect();
        let length = match living.is_empty() {
            true => self.settings.decoder_start_norm as f32,
            false => 0.2 * living.iter().sum::<f32>() / living.len() as f32,
        };
        let write = if self.settings.unit_decoder { 1. } else { self.settings.decoder_start_norm as f32 };
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed ^ self.step.rotate_left(32));
        for latent in dead {
            let row = drawn(&errors, total, &mut random);
            let latent = latent as usize;
            let scaled = |vector: &[f32], length: f32| {
                let own = norm(vector);
                let factor = if own > 0. { length / own } else { 0. };
                vector.iter().map(|x| x * factor).collect::<Vec<f32>>()
            };
            let mut writes = target.row(row).to_vec();
            if d_in == d_out {
                // What is read and written is relative to the decoder's bias.
                writes.iter_mut().zip(&self.decoder_bias.values).for_each(|(x, bias)| *x -= bias);
            }
            self.encoder.restart(latent * d_in..(latent + 1) * d_in, &scaled(input.row(row), length));
            self.decoder.restart(latent * d_out..(latent + 1) * d_out, &scaled(&writes, write));
            self.encoder_bias.restart(latent..latent + 1, &[0.]);
            self.idle[latent] = 0;
        }
    }
}

/// A row by the share of its weight in `total`.
fn drawn(weights: &[f64], total: f64, random: &mut impl Rng) -> usize {
    let mut left = random.random::<f64>() * total;
    for (row, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0. {
            return row;
        }
    }
    weights.len().saturating_sub(1)
}

fn check_examples(examples: &Examples, d_in: usize, d_out: usize) -> Result<()> {
    let Examples { input, target } = examples;
    input.check(d_in)?;
    let Some(target) = target else { return Ok(()) };
    if target.rows() != input.rows() || target.columns() != d_out {
        let (rows, columns) = (target.rows(), target.columns());
        let reason = format!("{rows} targets of {columns} dimensions do not fit {} inputs and {d_out}", input.rows());
        return Err(Error::Activations(reason));
    }
    target.check(d_out)
}
