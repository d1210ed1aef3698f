//! Gates: masks in [0, 1] that can be trained, and how they become 0 or 1.

use candle_core::Tensor;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// How an entry of a mask is written by a number that is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// The number itself, put back into [0, 1] after each step (DCM; Davies et al. 2023, arXiv 2307.03637).
    #[default]
    Clamp,
    /// `sigmoid(w)`.
    Sigmoid,
    /// The hard concrete distribution (Louizos et al. 2017, arXiv 1712.01312): exact zeros and ones while it is trained.
    HardConcrete,
}

/// Temperature and stretch of the hard concrete distribution, as in the paper's experiments.
const BETA: f64 = 2. / 3.;
const GAMMA: f64 = -0.1;
const ZETA: f64 = 1.1;

impl Gate {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Clamp, Self::Sigmoid, Self::HardConcrete];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clamp => "clamp",
            Self::Sigmoid => "sigmoid",
            Self::HardConcrete => "hard_concrete",
        }
    }

    /// The number of a gate that is half open.
    pub(crate) fn half_open(self) -> f32 {
        match self {
            Self::Clamp => 0.5,
            Self::Sigmoid | Self::HardConcrete => 0.,
        }
    }

    /// The mask that a step is trained with; a hard concrete one is a draw (equations 10 and 11).
    pub(crate) fn sample(self, numbers: &Tensor, random: &mut ChaCha8Rng) -> Result<Tensor> {
        if self != Self::HardConcrete {
            return self.mask(numbers);
        }
        // ln u - ln (1 - u), of u that is neither 0 nor 1.
        let logistic = |_| {
            let u = random.random::<f64>().clamp(1e-7, 1. - 1e-7);
            (u.ln() - (1. - u).ln()) as f32
        };
        let noise: Vec<f32> = (0..numbers.elem_count()).map(logistic).collect();
        let noise = Tensor::from_vec(noise, numbers.shape(), numbers.device())?;
        stretched(&sigmoid(&((numbers + noise)? / BETA)?)?)
    }

    /// The mask that is tested, without noise (equation 13).
    pub(crate) fn mask(self, numbers: &Tensor) -> Result<Tensor> {
        match self {
            Self::Clamp => Ok(numbers.clone()),
            Self::Sigmoid => sigmoid(numbers),
            Self::HardConcrete => stretched(&sigmoid(numbers)?),
        }
    }

    /// The size of the mask: its sum, or how many gates are expected not to be 0 (equation 12). `[]`
    pub(crate) fn size(self, numbers: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Clamp | Self::Sigmoid => self.mask(numbers)?,
            Self::HardConcrete => sigmoid(&(numbers - BETA * (-GAMMA / ZETA).ln())?)?,
        }
        .sum_all()?)
    }

    /// The numbers where they may be.
    pub(crate) fn project(self, numbers: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Clamp => numbers.clamp(0f32, 1f32)?,
            Self::Sigmoid | Self::HardConcrete => numbers.clone(),
        })
    }
}

/// In a form whose gradient is a number wherever `x` is one.
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((((x * 0.5)?.tanh()? + 1.)? * 0.5)?)
}

/// `min(1, max(0, s (zeta - gamma) + gamma))`.
fn stretched(s: &Tensor) -> Result<Tensor> {
    Ok(((s * (ZETA - GAMMA))? + GAMMA)?.clamp(0f32, 1f32)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alignment::generator;
    use candle_core::{Device, Var};

    #[test]
    fn draws_of_the_hard_concrete_agree_with_their_formulas() {
        const DRAWS: usize = 40_000;
        for log_alpha in [-3f64, -1., 0., 0.7, 2.5] {
            let numbers = Tensor::full(log_alpha as f32, DRAWS, &Device::Cpu).unwrap();
            let draws = Gate::HardConcrete.sample(&numbers, &mut generator(5, 0)).unwrap().to_vec1::<f32>().unwrap();
            assert!(draws.iter().all(|draw| (0. ..=1.).contains(draw)));
            let sigmoid = |x: f64| 1. / (1. + (-x).exp());
            // P(z > t), from the distribution function of the concrete distribution (appendix B).
            let above = |t: f64| sigmoid(log_alpha - BETA * ((t - GAMMA) / (ZETA - t)).ln());
            let open = draws.iter().filter(|&&draw| draw > 0.).count() as f64 / DRAWS as f64;
            let one = Tensor::new(&[log_alpha as f32], &Device::Cpu).unwrap();
            let expected = f64::from(Gate::HardConcrete.size(&one).unwrap().to_scalar::<f32>().unwrap());
            assert!((expected - above(0.)).abs() < 1e-6, "{expected} {}", above(0.));
            // Four standard deviations of a share of 40,000 draws are 0.01.
            assert!((open - expected).abs() < 0.01, "{log_alpha}: {open} of the draws are open, expected {expected}");
            // The mean of z is the integral of P(z > t) from 0 to 1.
            let mean = draws.iter().map(|&draw| f64::from(draw)).sum::<f64>() / DRAWS as f64;
            let integral = (0..1000).map(|at| above((at as f64 + 0.5) / 1000.)).sum::<f64>() / 1000.;
            assert!((mean - integral).abs() < 0.01, "{log_alpha}: mean {mean}, expected {integral}");
            let closed = draws.iter().filter(|&&draw| draw == 1.).count() as f64 / DRAWS as f64;
            assert!((closed - above(1.)).abs() < 0.01, "{log_alpha}: {closed} are 1, expected {}", above(1.));
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let weights = [1f32, -2., 0.5, 3.];
        let weigh = |mask: &Tensor| (mask * Tensor::new(&weights, &Device::Cpu).unwrap()).unwrap().sum_all().unwrap();
        for gate in Gate::ALL {
            let at = [0.1f32, 0.4, -0.3, 0.6];
            let value = |numbers: &Tensor| {
                let mask = gate.sample(numbers, &mut generator(1, 0)).unwrap();
                (weigh(&mask) + gate.size(numbers).unwrap()).unwrap()
            };
            let numbers = Var::new(&at, &Device::Cpu).unwrap();
            let gradients = value(numbers.as_tensor()).backward().unwrap();
            let found = gradients.get(&numbers).unwrap().to_vec1::<f32>().unwrap();
            for (entry, found) in found.into_iter().enumerate() {
                let moved = |step: f32| {
                    let mut moved = at;
                    moved[entry] += step;
                    value(&Tensor::new(&moved, &Device::Cpu).unwrap()).to_scalar::<f32>().unwrap()
                };
                let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((found - slope).abs() < 2e-3, "{gate:?} {entry}: {found} {slope}");
            }
        }
    }

    #[test]
    fn far_numbers_have_masks_and_gradients_that_are_numbers() {
        for gate in Gate::ALL {
            let numbers = Var::new(&[-200f32, 200.], &Device::Cpu).unwrap();
            let projected = gate.project(numbers.as_tensor()).unwrap();
            assert_eq!(gate.mask(&projected).unwrap().to_vec1::<f32>().unwrap(), [0., 1.], "{gate:?}");
            let sum = gate.mask(numbers.as_tensor()).unwrap().sum_all().unwrap();
            let gradients = sum.backward().unwrap();
            let gradient = gradients.get(&numbers).unwrap().to_vec1::<f32>().unwrap();
            assert!(gradient.iter().all(|x| x.is_finite()), "{gate:?}: {gradient:?}");
        }
    }
}
