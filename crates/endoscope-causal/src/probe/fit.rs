//! Fitting a linear probe: one convex function for each kind, minimised by Newton's method.
//!
//! The minimum is the same whichever way it is reached, so that the weights are those of scikit-learn: `LogisticRegression` with
//! `C = 1 / l2` and `Ridge` with `alpha = l2`. As there (with its default solver) the intercept is not penalised.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// Newton steps after which a fit is given up.
const STEPS: usize = 200;
/// The largest entry of the gradient at the minimum, as a share of the largest at zero.
const CONVERGED: f64 = 1e-9;

/// What is minimised over weights `[feature, output]`: the loss summed over rows, plus `l2 / 2` times the sum of squared weights.
pub(crate) struct Objective {
    /// `[row, feature]`, f64; the last feature is a one where there is an intercept.
    pub features: Tensor,
    pub loss: Loss,
    pub l2: f64,
    /// Whether the last feature is the intercept, which is not penalised.
    pub intercept: bool,
}

/// A loss of the predictions z, row by row.
pub(crate) enum Loss {
    /// `log(1 + exp z) - y z`, y being 0 or 1.
    Logistic(Vec<f64>),
    /// `log Σ exp z_k - z_y`, y being one of so many classes.
    Multinomial { classes: usize, of: Vec<usize> },
    /// `(z - y)² / 2`.
    Squared(Vec<f64>),
}

/// The function at some weights, and what its curvature is computed from.
struct Place {
    value: f64,
    gradient: Vec<f64>,
    /// Probabilities `[row, output]`.
    probabilities: Vec<f64>,
}

impl Objective {
    fn outputs(&self) -> usize {
        match self.loss {
            Loss::Multinomial { classes, .. } => classes,
            Loss::Logistic(_) | Loss::Squared(_) => 1,
        }
    }

    /// `X w`: `[feature, output] -> [row, output]`.
    fn forward(&self, weights: &[f64]) -> Result<Vec<f64>> {
        let weights = Tensor::from_slice(weights, (self.features.dim(1)?, self.outputs()), &Device::Cpu)?;
        Ok(self.features.matmul(&weights)?.flatten_all()?.to_vec1()?)
    }

    /// `Xᵀ u + l2 w`: `[row, output] -> [feature, output]`.
    fn back(&self, rows: &[f64], weights: &[f64]) -> Result<Vec<f64>> {
        let rows = Tensor::from_slice(rows, (self.features.dim(0)?, self.outputs()), &Device::Cpu)?;
        let mut sums: Vec<f64> = self.features.t()?.matmul(&rows)?.flatten_all()?.to_vec1()?;
        let free = if self.intercept { self.outputs() } else { 0 };
        let penalised = sums.len() - free;
        sums.iter_mut().zip(weights).take(penalised).for_each(|(sum, weight)| *sum += self.l2 * weight);
        Ok(sums)
    }

    fn at(&self, weights: &[f64]) -> Result<Place> {
        let z = self.forward(weights)?;
        let (mut value, mut probabilities, mut errors) = (0., Vec::new(), Vec::with_capacity(z.len()));
        match &self.loss {
            Loss::Logistic(truth) => {
                for (&z, &y) in z.iter().zip(truth) {
                    let p = 1. / (1. + (-z).exp());
                    value += z.max(0.) + (-z.abs()).exp().ln_1p() - y * z;
                    probabilities.push(p);
                    errors.push(p - y);
                }
            }
            Loss::Multinomial { classes, of } => {
                for (z, &y) in z.chunks(*classes).zip(of) {
                    let p = softmax(z);
                    value -= p[y].max(f64::MIN_POSITIVE).ln();
                    errors.extend(p.iter().enumerate().map(|(class, p)| p - f64::from(u8::from(class == y))));
                    probabilities.extend(p);
                }
            }
            Loss::Squared(truth) => {
                for (&z, &y) in z.iter().zip(truth) {
                    value += (z - y).powi(2) / 2.;
                    errors.push(z - y);
                }
            }
        }
        let free = if self.intercept { self.outputs() } else { 0 };
        let squares: f64 = weights[..weights.len() - free].iter().map(|weight| weight * weight).sum();
        Ok(Place { value: value + self.l2 / 2. * squares, gradient: self.back(&errors, weights)?, probabilities })
    }

    /// The second derivative there, times a vector `[feature, output]`.
    fn curvature(&self, place: &Place, vector: &[f64]) -> Result<Vec<f64>> {
        let mut u = self.forward(vector)?;
        match &self.loss {
            Loss::Logistic(_) => {
                u.iter_mut().zip(&place.probabilities).for_each(|(u, p)| *u *= p * (1. - p));
            }
            Loss::Multinomial { classes, .. } => {
                for (u, p) in u.chunks_mut(*classes).zip(place.probabilities.chunks(*classes)) {
                    let mean = dot(u, p);
                    u.iter_mut().zip(p).for_each(|(u, p)| *u = p * (*u - mean));
                }
            }
            Loss::Squared(_) => {}
        }
        self.back(&u, vector)
    }

    /// The weights `[feature, output]` at the minimum: Newton steps, each found by conjugate gradients (Nocedal and Wright 2006,
    /// algorithm 7.1), from zero.
    pub fn minimum(&self) -> Result<Vec<f64>> {
        let mut weights = vec![0.; self.features.dim(1)? * self.outputs()];
        let mut place = self.at(&weights)?;
        let start = largest(&place.gradient);
        if !start.is_finite() {
            return Err(Error::Probe("features or labels are so large that sums overflow".into()));
        }
        for _ in 0..STEPS {
            let slope = largest(&place.gradient);
            if slope <= CONVERGED * start {
                return Ok(weights);
            }
            let step = self.newton_step(&place, (slope / start).sqrt().min(0.1))?;
            let along = dot(&place.gradient, &step);
            let mut length = 1.;
            let next = loop {
                let there: Vec<f64> = weights.iter().zip(&step).map(|(weight, step)| weight + length * step).collect();
                let next = self.at(&there)?;
                // Close to the minimum a decrease is smaller than what the sum of the losses is rounded by.
                let rounding = 1e-12 * place.value.abs();
                if next.value <= place.value + 1e-4 * length * along + rounding {
                    break Some((there, next));
                }
                length /= 2.;
                if length < 1e-10 {
                    break None;
                }
            };
            let Some((there, next)) = next else { break };
            (weights, place) = (there, next);
        }
        let slope = largest(&place.gradient) / start;
        match slope <= 1e3 * CONVERGED {
            true => Ok(weights),
            false => Err(Error::Probe(format!(
                "the fit does not converge: the gradient is still {slope:.1e} of what it was at zero; standardise the features \
                 or give a larger l2"
            ))),
        }
    }

    /// Minus the inverse curvature times the gradient, by conjugate gradients to a relative accuracy.
    fn newton_step(&self, place: &Place, accuracy: f64) -> Result<Vec<f64>> {
        let mut step = vec![0.; place.gradient.len()];
        let mut rest: Vec<f64> = place.gradient.iter().map(|slope| -slope).collect();
        let mut direction = rest.clone();
        let mut size = dot(&rest, &rest);
        let enough = size * accuracy * accuracy;
        // In exact arithmetic as many as there are weights would do.
        for _ in 0..2 * step.len() + 20 {
            let bent = self.curvature(place, &direction)?;
            let along = dot(&direction, &bent);
            if along.is_nan() || along <= 0. {
                break;
            }
            let length = size / along;
            step.iter_mut().zip(&direction).for_each(|(step, direction)| *step += length * direction);
            rest.iter_mut().zip(&bent).for_each(|(rest, bent)| *rest -= length * bent);
            let left = dot(&rest, &rest);
            if left <= enough {
                break;
            }
            let keep = left / size;
            direction.iter_mut().zip(&rest).for_each(|(direction, rest)| *direction = rest + keep * *direction);
            size = left;
        }
        Ok(step)
    }
}

/// The probabilities of classes from their logits.
pub(crate) fn softmax(z: &[f64]) -> Vec<f64> {
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = z.iter().map(|z| (z - most).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn largest(values: &[f64]) -> f64 {
    match values.iter().any(|value| value.is_nan()) {
        true => f64::NAN,
        false => values.iter().fold(0., |largest: f64, value| largest.max(value.abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objective(loss: Loss, l2: f64) -> Objective {
        let numbers: Vec<f64> = (0..36).map(|at| f64::from(at * 7 % 11) / 5. - 1.).collect();
        let ones = Tensor::ones((12, 1), candle_core::DType::F64, &Device::Cpu).unwrap();
        let features = Tensor::from_vec(numbers, (12, 3), &Device::Cpu).unwrap();
        Objective { features: Tensor::cat(&[features, ones], 1).unwrap(), loss, l2, intercept: true }
    }

    fn losses() -> [Loss; 3] {
        let of: Vec<usize> = (0..12).map(|row| row * 5 % 3).collect();
        [
            Loss::Logistic((0..12).map(|row| f64::from(u8::from(row % 3 == 0))).collect()),
            Loss::Multinomial { classes: 3, of },
            Loss::Squared((0..12).map(|row| f64::from(row * 3 % 7)).collect()),
        ]
    }

    #[test]
    fn gradient_and_curvature_agree_with_differences() {
        for loss in losses() {
            let objective = objective(loss, 0.7);
            let count = 4 * objective.outputs();
            let weights: Vec<f64> = (0..count).map(|at| at as f64 / 7. - 0.4).collect();
            let place = objective.at(&weights).unwrap();
            for at in 0..count {
                let moved = |by: f64| {
                    let mut moved = weights.clone();
                    moved[at] += by;
                    objective.at(&moved).unwrap()
                };
                let (up, down) = (moved(1e-5), moved(-1e-5));
                assert!(((up.value - down.value) / 2e-5 - place.gradient[at]).abs() < 1e-6);
                let mut unit = vec![0.; count];
                unit[at] = 1.;
                let bent = objective.curvature(&place, &unit).unwrap();
                for ((up, down), bent) in up.gradient.iter().zip(&down.gradient).zip(bent) {
                    let slope = (up - down) / 2e-5;
                    assert!((slope - bent).abs() < 1e-5, "{at}: {slope} {bent}");
                }
            }
        }
    }

    #[test]
    fn the_gradient_vanishes_at_the_minimum() {
        for l2 in [1e-4, 1., 1e4] {
            for loss in losses() {
                let objective = objective(loss, l2);
                let start = largest(&objective.at(&vec![0.; 4 * objective.outputs()]).unwrap().gradient);
                let minimum = objective.minimum().unwrap();
                assert!(largest(&objective.at(&minimum).unwrap().gradient) <= 1e-9 * start);
            }
        }
    }

    #[test]
    fn numbers_beyond_f64_are_an_error() {
        let mut objective = objective(Loss::Squared(vec![f64::MAX; 12]), 1.);
        objective.features = (objective.features * 1e300).unwrap();
        assert!(objective.minimum().unwrap_err().to_string().contains("overflow"));
    }
}
