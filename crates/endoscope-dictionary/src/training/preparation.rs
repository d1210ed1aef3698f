//! Maps of inputs that are estimated once, and folded into the weights when a training ends.

use serde::{Deserialize, Serialize};

use super::settings::InputScaling;
use crate::dictionary::Weights;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, norm};
use crate::whitening::Whitening;

/// What is done to all vectors alike before a dictionary in training sees them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Preparation {
    /// Nothing.
    #[default]
    None,
    /// Each input times `input`, each target times `output`.
    Scale { input: f32, output: f32 },
    /// `(x - mean) matrix`, of inputs and targets.
    Whitening(Whitening),
}

impl Preparation {
    /// From a sample of what will be trained on.
    pub fn estimate(scaling: InputScaling, input: &Matrix, target: Option<&Matrix>) -> Result<Self> {
        match scaling {
            InputScaling::ExpectedAverageOnlyIn => {
                let input = scale(input)?;
                Ok(Self::Scale { input, output: target.map_or(Ok(input), scale)? })
            }
            InputScaling::CovarianceWhitening if target.is_some() => {
                Err(Error::Training("covariance_whitening is for what writes what it reads: no transcoder".into()))
            }
            InputScaling::CovarianceWhitening => Whitening::of(input).map(Self::Whitening),
            InputScaling::None | InputScaling::ConstantNormRescale | InputScaling::LayerNorm => Ok(Self::None),
        }
    }

    /// Inputs (or targets, if `target`) as the dictionary sees them.
    pub fn apply(&self, x: &Matrix, target: bool) -> Result<Matrix> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Scale { input, output } => {
                let factor = if target { output } else { input };
                let mut scaled = x.clone();
                scaled.values_mut().iter_mut().for_each(|x| *x *= factor);
                Ok(scaled)
            }
            Self::Whitening(whitening) => whitening.apply(x),
        }
    }

    /// The same dictionary for vectors as they are.
    pub fn fold(&self, weights: &mut Weights, apply_b_dec_to_input: bool) -> Result<()> {
        match self {
            Self::None => {}
            Self::Scale { input, output } => {
                weights.encoder.values_mut().iter_mut().for_each(|x| *x *= input);
                weights.decoder.values_mut().iter_mut().for_each(|x| *x /= output);
                weights.decoder_bias.iter_mut().for_each(|x| *x /= output);
                if let Some(skip) = &mut weights.skip {
                    skip.values_mut().iter_mut().for_each(|x| *x *= input / output);
                }
            }
            Self::Whitening(Whitening { mean, matrix, inverse }) => {
                let width = mean.len();
                // Both matrices are symmetric.
                weights.encoder = weights.encoder.times_transposed(matrix)?;
                if !apply_b_dec_to_input {
                    let mean = Matrix::new(1, width, mean.clone())?;
                    let shift = weights.encoder.times_transposed(&mean)?;
                    for (latent, shift) in shift.values().iter().enumerate() {
                        weights.encoder_bias[latent] -= shift;
                        if let Some(magnitude) = &mut weights.magnitude {
                            // Magnitudes are told from pre-activations less their bias.
                            magnitude.bias[latent] -= shift * magnitude.rescale[latent].exp();
                        }
                    }
                }
                weights.decoder = weights.decoder.times_transposed(inverse)?;
                let bias = Matrix::new(1, width, weights.decoder_bias.clone())?.times_transposed(inverse)?;
                weights.decoder_bias = bias.values().iter().zip(mean).map(|(b, mean)| b + mean).collect();
            }
        }
        Ok(())
    }
}

/// The factor that brings the mean length to `√d`.
fn scale(x: &Matrix) -> Result<f32> {
    let lengths = x.iter().map(|row| f64::from(norm(row))).sum::<f64>() / x.rows().max(1) as f64;
    match lengths > 0. && lengths.is_finite() {
        true => Ok(((x.columns() as f64).sqrt() / lengths) as f32),
        false => Err(Error::Training(format!("the mean length of the first activations is {lengths}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::dictionary::{Dictionary, Magnitude};

    fn sample(rows: usize, width: usize) -> Matrix {
        let values = (0..rows * width).map(|at| (((at * at + 7 * at) % 97) as f32 - 48.) / (10. + (at % width) as f32));
        Matrix::new(rows, width, values.collect()).unwrap()
    }

    /// Folded, a dictionary gives for vectors as they are what it gave for prepared ones.
    #[test]
    fn folding_changes_no_latent() {
        let x = sample(60, 4);
        let weights = Weights {
            encoder: sample(6, 4),
            encoder_bias: vec![0.1, -0.2, 0.3, 0., 0.5, -0.1],
            decoder: sample(6, 4),
            decoder_bias: vec![0.2, 0.1, -0.3, 0.4],
            ..Weights::default()
        };
        let gated =
            Weights { magnitude: Some(Magnitude { rescale: vec![0.3; 6], bias: vec![0.2; 6] }), ..weights.clone() };
        for scaling in [InputScaling::ExpectedAverageOnlyIn, InputScaling::CovarianceWhitening] {
            for (apply_b_dec_to_input, weights) in [(true, &weights), (false, &weights), (false, &gated)] {
                let activation = match weights.magnitude {
                    Some(_) => crate::Activation::Gated,
                    None => crate::Activation::Relu,
                };
                let config = Config { apply_b_dec_to_input, activation, ..Config::default() };
                let prepared = Preparation::estimate(scaling, &x, None).unwrap();
                let before = Dictionary::new(config.clone(), weights.clone()).unwrap();
                let mut folded = weights.clone();
                prepared.fold(&mut folded, apply_b_dec_to_input).unwrap();
                let after = Dictionary::new(config, folded).unwrap();
                let (codes, folded_codes) =
                    (before.encode(&prepared.apply(&x, false).unwrap()).unwrap(), after.encode(&x).unwrap());
                for (a, b) in codes.latents.dense().iter().zip(folded_codes.latents.dense()) {
                    assert!((a - b).abs() < 2e-3, "{scaling:?} {a} {b}");
                }
                let back = prepared.apply(&after.decode(&folded_codes), true).unwrap();
                for (a, b) in before.decode(&codes).values().iter().zip(back.values()) {
                    assert!((a - b).abs() < 2e-2 * (1. + a.abs()), "{scaling:?} {a} {b}");
                }
            }
        }
    }
}
