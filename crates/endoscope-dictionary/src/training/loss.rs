//! The loss of a batch under each objective, and its gradient as terms.

use std::sync::Arc;

use endoscope_kernels::PackedMatrix;
use endoscope_kernels::sparse::SparseRows;

use super::parameter::Parameter;
use super::select::{Dead, Wanted, select};
use super::settings::{Objective, Penalty};
use super::terms::Term;
use crate::error::Result;
use crate::matrix::Matrix;
use crate::normalization::Rescaled;

/// What a loss is computed from.
pub(crate) struct Batch<'a> {
    /// What the encoder reads, `[rows, d_in]`: normalised, the decoder's bias subtracted where that is asked for.
    pub input: &'a Matrix,
    /// `[rows, d_out]`.
    pub target: &'a Matrix,
    /// How outputs are brought back to the target's units, row by row.
    pub rescaled: Option<&'a [Rescaled]>,
    /// What a skip connection adds, `[rows, d_out]`.
    pub skip: Option<&'a Matrix>,
}

/// The weights a loss depends on.
pub(crate) struct Model<'a> {
    pub objective: &'a Objective,
    pub encoder: &'a PackedMatrix,
    pub encoder_bias: &'a [f32],
    pub decoder: &'a [f32],
    pub decoder_bias: &'a [f32],
    /// Lengths of decoder rows; of a crosscoder the sum of its blocks' lengths.
    pub lengths: &'a [f32],
    pub threshold: Option<&'a Parameter>,
    pub magnitude: Option<(&'a Parameter, &'a Parameter)>,
    /// Latents that have not been active for long.
    pub dead: &'a [u32],
    /// The share of the sparsity penalty that is in force.
    pub sparsity: f64,
}

/// The loss of a batch and its gradient.
pub(crate) struct Loss {
    pub total: f64,
    /// The squared error alone, summed over dimensions, averaged over rows.
    pub error: f64,
    /// The latents whose activity counts, with their activations.
    pub codes: SparseRows,
    pub terms: Vec<Term>,
    /// See [`super::terms::Gradients::pull`].
    pub pull: Option<Vec<f32>>,
    /// With respect to the decoder's bias, as far as outputs depend on it.
    pub decoder_bias: Vec<f32>,
    /// With respect to outputs, for a skip connection.
    pub output: Arc<Matrix>,
    /// What the batch was reconstructed as.
    pub reconstruction: Matrix,
    pub threshold: Option<Vec<f32>>,
    /// With respect to `r_mag` and `b_mag`.
    pub magnitude: Option<(Vec<f32>, Vec<f32>)>,
    /// The least latent of the batch, in the units they are compared in.
    pub least: Option<f32>,
}

/// The batch's loss.
pub(crate) fn loss(model: &Model<'_>, batch: &Batch<'_>) -> Result<Loss> {
    match model.objective {
        Objective::Standard { l1 } => standard(model, batch, *l1),
        Objective::Gated { l1 } => gated(model, batch, *l1),
        Objective::TopK { k, dead, by_decoder_norm } => {
            let scale = by_decoder_norm.then_some(model.lengths);
            largest(model, batch, &Wanted::Largest { k: *k, scale }, scale, *dead, &[])
        }
        Objective::BatchTopK { k, dead, by_decoder_norm, widths, .. } => {
            let scale = by_decoder_norm.then_some(model.lengths);
            let k = (k * batch.input.rows() as f64) as usize;
            largest(model, batch, &Wanted::LargestOfAll { k, scale }, scale, *dead, widths)
        }
        &Objective::JumpRelu { l0, penalty, bandwidth, through_input, pre_activation, .. } => {
            jump_relu(model, batch, &Jump { l0, penalty, bandwidth, through_input, pre_activation })
        }
    }
}

/// What some latents make of a batch: the error, the gradient with respect to it, and what was written.
struct Written {
    error: f64,
    /// With respect to what is written, before it is brought to the target's units.
    gradient: Matrix,
    reconstruction: Matrix,
}

/// The error of `codes`, decoded: `mean over rows of Σ (reconstruction - target)²`.
fn written(model: &Model<'_>, batch: &Batch<'_>, codes: &SparseRows) -> Written {
    let width = model.decoder_bias.len();
    let mut out = match batch.skip {
        Some(skip) => skip.clone(),
        None => Matrix::zeros(batch.input.rows(), width),
    };
    for row in out.values_mut().chunks_exact_mut(width.max(1)) {
        row.iter_mut().zip(model.decoder_bias).for_each(|(out, bias)| *out += bias);
    }
    codes.add_product(model.decoder, width, out.values_mut());
    against(batch, out)
}

/// The error of an output, and its gradient.
fn against(batch: &Batch<'_>, mut out: Matrix) -> Written {
    let rows = out.rows();
    let mut gradient = Matrix::zeros(rows, out.columns());
    let mut error = 0f64;
    let weight = 2. / rows.max(1) as f32;
    for row in 0..rows {
        let rescaled = batch.rescaled.map(|rescaled| rescaled[row]);
        if let Some(rescaled) = rescaled {
            rescaled.undo(out.row_mut(row));
        }
        let scale = rescaled.map_or(1., Rescaled::scale) * weight;
        let difference = out.row(row).iter().zip(batch.target.row(row)).map(|(y, t)| y - t);
        let mut sum = 0f32;
        for (gradient, difference) in gradient.row_mut(row).iter_mut().zip(difference) {
            sum += difference * difference;
            *gradient = difference * scale;
        }
        error += f64::from(sum);
    }
    Written { error: error / rows.max(1) as f64, gradient, reconstruction: out }
}

fn column_sums(matrix: &Matrix) -> Vec<f32> {
    matrix.mean().iter().map(|mean| mean * matrix.rows() as f32).collect()
}

/// Adds `from` to `to`.
fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

fn standard(model: &Model<'_>, batch: &Batch<'_>, l1: f64) -> Result<Loss> {
    let codes = select(batch.input, model.encoder, model.encoder_bias, &Wanted::Positive, None)?.main;
    let Written { error, gradient, reconstruction } = written(model, batch, &codes);
    let weight = (l1 * model.sparsity / batch.input.rows().max(1) as f64) as f32;
    let output = Arc::new(gradient);
    let mut deltas = codes.dots(output.values(), model.decoder, output.columns());
    let penalty = Penalised::new(&codes, codes.values(), weight, model.lengths);
    penalty.add_to(&codes, &mut deltas);
    Ok(Loss {
        total: error + penalty.loss,
        error,
        terms: vec![Term::new(&codes, codes.values().to_vec(), deltas, output.clone())],
        pull: Some(penalty.pull),
        decoder_bias: column_sums(&output),
        output,
        reconstruction,
        threshold: None,
        magnitude: None,
        least: None,
        codes,
    })
}

/// `weight · Σ value · length of the decoder row`.
struct Penalised<'a> {
    loss: f64,
    pull: Vec<f32>,
    weight: f32,
    lengths: &'a [f32],
}

impl<'a> Penalised<'a> {
    fn new(codes: &SparseRows, values: &[f32], weight: f32, lengths: &'a [f32]) -> Self {
        let mut pull = vec![0.; lengths.len()];
        for (&column, value) in codes.columns().iter().zip(values) {
            pull[column as usize] += weight * value;
        }
        let loss = pull.iter().zip(lengths).map(|(&pull, &length)| f64::from(pull) * f64::from(length)).sum();
        Self { loss, pull, weight, lengths }
    }

    fn add_to(&self, codes: &SparseRows, deltas: &mut [f32]) {
        for (delta, &column) in deltas.iter_mut().zip(codes.columns()) {
            *delta += self.weight * self.lengths[column as usize];
        }
    }
}

fn gated(model: &Model<'_>, batch: &Batch<'_>, l1: f64) -> Result<Loss> {
    let gates = select(batch.input, model.encoder, model.encoder_bias, &Wanted::Positive, None)?.main;
    let (mut rescale_gradient, mut bias_gradient) = (vec![0.; gates.width()], vec![0.; gates.width()]);
    let mut codes = gates.clone();
    let slopes: Vec<f32> = match model.magnitude {
        Some((rescale, bias)) => {
            for (value, &at) in codes.values_mut().iter_mut().zip(gates.columns()) {
                let at = at as usize;
                *value = (*value - model.encoder_bias[at]) * rescale.values[at].exp() + bias.values[at];
            }
            gates.columns().iter().map(|&at| rescale.values[at as usize].exp()).collect()
        }
        None => vec![1.; gates.entries()],
    };
    let magnitudes = codes.values().to_vec();
    codes.values_mut().iter_mut().for_each(|value| *value = value.max(0.));

    let Written { error, gradient, reconstruction } = written(model, batch, &codes);
    let output = Arc::new(gradient);
    let mut deltas = codes.dots(output.values(), model.decoder, output.columns());
    for (entry, delta) in deltas.iter_mut().enumerate() {
        let at = gates.columns()[entry] as usize;
        if magnitudes[entry] <= 0. {
            *delta = 0.;
            continue;
        }
        let bias = model.magnitude.map_or(0., |(_, bias)| bias.values[at]);
        bias_gradient[at] += *delta;
        rescale_gradient[at] += *delta * (magnitudes[entry] - bias);
        *delta *= slopes[entry];
    }
    let mut magnitude = Term::new(&codes, codes.values().to_vec(), deltas, output.clone());
    magnitude.biased = false;

    let alone = written(model, batch, &gates);
    let alone_output = Arc::new(alone.gradient);
    let mut deltas = gates.dots(alone_output.values(), model.decoder, alone_output.columns());
    let weight = (l1 * model.sparsity / batch.input.rows().max(1) as f64) as f32;
    let penalty = Penalised::new(&gates, gates.values(), weight, model.lengths);
    penalty.add_to(&gates, &mut deltas);
    let mut decoder_bias = column_sums(&output);
    add(&mut decoder_bias, &column_sums(&alone_output));
    let gate = Term::new(&gates, gates.values().to_vec(), deltas, alone_output);
    Ok(Loss {
        total: error + alone.error + penalty.loss,
        error,
        codes: positive(&codes),
        terms: vec![magnitude, gate],
        pull: Some(penalty.pull),
        decoder_bias,
        output,
        reconstruction,
        threshold: None,
        magnitude: model.magnitude.map(|_| (rescale_gradient, bias_gradient)),
        least: None,
    })
}

/// The entries above zero.
fn positive(codes: &SparseRows) -> SparseRows {
    let mut kept = SparseRows::new(codes.width());
    for row in 0..codes.rows() {
        let (columns, values) = codes.row(row);
        kept.push(columns.iter().copied().zip(values.iter().copied()).filter(|&(_, value)| value > 0.));
    }
    kept
}

/// TopK, BatchTopK and, with `widths`, Matryoshka.
///
/// Where latents are compared by decoder length, `a ‖d‖` is what is compared and given, and `(a ‖d‖) (d / ‖d‖) = a d` is what
/// is written: no gradient passes through lengths.
fn largest(
    model: &Model<'_>,
    batch: &Batch<'_>,
    wanted: &Wanted<'_>,
    scale: Option<&[f32]>,
    dead: f64,
    widths: &[usize],
) -> Result<Loss> {
    let k_dead = (batch.input.columns() / 2).min(model.dead.len());
    let asked = (dead > 0. && k_dead > 0).then_some(Dead { latents: model.dead, k: k_dead, scale });
    let selected = select(batch.input, model.encoder, model.encoder_bias, wanted, asked.as_ref())?;
    let codes = selected.main;
    let Written { error, gradient, reconstruction } = written(model, batch, &codes);
    let mut total = error;
    let mut output = Arc::new(gradient);
    let mut terms = Vec::new();
    let mut decoder_bias = column_sums(&output);

    // The first latents by themselves, from the widest to the narrowest: a latent's gradient is the sum of all in which it is.
    let inner: Vec<usize> = widths.iter().copied().filter(|&width| width < codes.width()).collect();
    let mut upper = codes.width();
    for &width in inner.iter().rev() {
        terms.push(range_term(model, &codes, width..upper, &output));
        let first = codes.filtered(|column| (column as usize) < width);
        let level = written(model, batch, &first);
        total += level.error;
        add(&mut decoder_bias, &column_sums(&level.gradient));
        let mut sum = output.as_ref().clone();
        add(sum.values_mut(), level.gradient.values());
        output = Arc::new(sum);
        upper = width;
    }
    terms.push(range_term(model, &codes, 0..upper, &output));

    if let Some(entries) = selected.dead {
        let residual = batch.target.values().iter().zip(reconstruction.values()).map(|(t, y)| t - y).collect();
        let residual = Matrix::new(batch.target.rows(), batch.target.columns(), residual)?;
        let mut out = Matrix::zeros(residual.rows(), residual.columns());
        entries.add_product(model.decoder, residual.columns(), out.values_mut());
        let of_residual = Batch { target: &residual, rescaled: None, skip: None, ..*batch };
        let mut aside = against(&of_residual, out);
        let half = (batch.input.columns() / 2).max(1);
        let share = dead * (model.dead.len() as f64 / half as f64).min(1.);
        total += share * aside.error;
        aside.gradient.values_mut().iter_mut().for_each(|x| *x *= share as f32);
        let aside = Arc::new(aside.gradient);
        let deltas = entries.dots(aside.values(), model.decoder, aside.columns());
        terms.push(Term::new(&entries, entries.values().to_vec(), deltas, aside));
    }
    let compared = codes.columns().iter().zip(codes.values()).map(|(&at, a)| a * scale.map_or(1., |s| s[at as usize]));
    let least = compared.filter(|&a| a > 0.).min_by(f32::total_cmp);
    Ok(Loss {
        total,
        error,
        terms,
        pull: None,
        decoder_bias,
        output,
        reconstruction,
        threshold: None,
        magnitude: None,
        least,
        codes,
    })
}

/// The term of the latents in `range`.
fn range_term(model: &Model<'_>, codes: &SparseRows, range: std::ops::Range<usize>, output: &Arc<Matrix>) -> Term {
    let part = match range.len() == codes.width() {
        true => codes.clone(),
        false => codes.filtered(|column| range.contains(&(column as usize))),
    };
    let deltas = part.dots(output.values(), model.decoder, output.columns());
    Term::new(&part, part.values().to_vec(), deltas, output.clone())
}

struct Jump {
    l0: f64,
    penalty: Penalty,
    bandwidth: f64,
    through_input: bool,
    pre_activation: f64,
}

fn jump_relu(model: &Model<'_>, batch: &Batch<'_>, jump: &Jump) -> Result<Loss> {
    let none = Vec::new();
    let threshold = model.threshold.map_or(&none, |threshold| &threshold.values);
    let bandwidth = jump.bandwidth as f32;
    // Pre-activations below their threshold, but near it, move it too.
    let least: Vec<f32> = threshold.iter().map(|threshold| threshold - bandwidth / 2.).collect();
    let raised = jump.pre_activation > 0. && !model.dead.is_empty();
    let dead = raised.then_some(Dead { latents: model.dead, k: model.dead.len(), scale: None });
    let selected = select(batch.input, model.encoder, model.encoder_bias, &Wanted::Above(&least), dead.as_ref())?;
    let near = selected.main;
    let mut all = near.clone();
    for (value, &at) in all.values_mut().iter_mut().zip(near.columns()) {
        if *value <= threshold[at as usize] {
            *value = 0.;
        }
    }
    let Written { error, gradient, reconstruction } = written(model, batch, &all);
    let output = Arc::new(gradient);
    let mut deltas = all.dots(output.values(), model.decoder, output.columns());
    let rows = batch.input.rows();
    let weight = jump.l0 * model.sparsity / rows.max(1) as f64;
    let (mut penalty, mut pull) = (0f64, vec![0f32; model.lengths.len()]);
    // How fast the penalty grows with a latent that becomes active, row by row.
    let mut per_active = vec![0f32; rows];
    for (row, per_active) in per_active.iter_mut().enumerate() {
        let (columns, values) = near.row(row);
        let active = columns.iter().zip(values).filter(|&(&at, &a)| a > threshold[at as usize]).count() as f64;
        match jump.penalty {
            Penalty::Step => {
                penalty += weight * active;
                *per_active = weight as f32;
            }
            Penalty::Quadratic { target } => {
                penalty += weight * 2. / target * (active - target).powi(2);
                *per_active = (weight * 4. / target * (active - target)) as f32;
            }
            Penalty::Tanh { .. } => {}
        }
    }
    let mut threshold_gradient = vec![0f32; threshold.len()];
    let mut entry = 0;
    for (row, &per_active) in per_active.iter().enumerate() {
        let (columns, values) = near.row(row);
        for (&at, &a) in columns.iter().zip(values) {
            let (latent, delta) = (at as usize, &mut deltas[entry]);
            entry += 1;
            let (edge, active) = (threshold[latent], a > threshold[latent]);
            if let Penalty::Tanh { scale } = jump.penalty {
                let value = if active { a } else { 0. };
                let length = model.lengths[latent];
                let tanh = (scale as f32 * value * length).tanh();
                penalty += weight * f64::from(tanh);
                let slope = (weight * scale) as f32 * (1. - tanh * tanh);
                *delta += slope * length;
                pull[latent] += slope * value;
            }
            let inside = (a - edge) / bandwidth;
            let inside = inside > -0.5 && inside < 0.5;
            let estimate = if inside { (edge * *delta + per_active) / bandwidth } else { 0. };
            threshold_gradient[latent] -= estimate;
            if !active {
                *delta = 0.;
            }
            if jump.through_input {
                *delta += estimate;
            }
        }
    }
    let mut terms = vec![Term::new(&all, all.values().to_vec(), deltas, output.clone())];
    if let Some(dead) = selected.dead {
        // `mean over rows of Σ relu(threshold - pre-activation) · decoder length`: these latents write nothing.
        let weight = (jump.pre_activation / rows.max(1) as f64) as f32;
        let entries = dead.columns().iter().zip(dead.values());
        let deltas = entries.map(|(&at, &a)| {
            let latent = at as usize;
            let below = threshold[latent] - a;
            if below <= 0. {
                return 0.;
            }
            penalty += f64::from(weight * below * model.lengths[latent]);
            pull[latent] += weight * below;
            threshold_gradient[latent] += weight * model.lengths[latent];
            -weight * model.lengths[latent]
        });
        let deltas = deltas.collect();
        terms.push(Term::new(&dead, vec![0.; dead.values().len()], deltas, output.clone()));
    }
    Ok(Loss {
        total: error + penalty,
        error,
        codes: positive(&all),
        terms,
        pull: (raised || matches!(jump.penalty, Penalty::Tanh { .. })).then_some(pull),
        decoder_bias: column_sums(&output),
        output,
        reconstruction,
        threshold: Some(threshold_gradient),
        magnitude: None,
        least: None,
    })
}
