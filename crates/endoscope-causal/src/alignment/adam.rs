//! Adam (Kingma and Ba 2014, arXiv 1412.6980, algorithm 1), for the few numbers that an alignment trains.

use candle_core::{Tensor, Var};

use crate::error::Result;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// The state of one variable.
#[derive(Debug)]
pub(crate) struct Adam {
    steps: i32,
    mean: Tensor,
    square: Tensor,
}

impl Adam {
    pub fn new(variable: &Var) -> Result<Self> {
        let zero = variable.as_tensor().detach().zeros_like()?;
        Ok(Self { steps: 0, mean: zero.clone(), square: zero })
    }

    /// What the variable becomes after a step down `gradient`, of about `rate` in each number.
    pub fn step(&mut self, variable: &Var, gradient: &Tensor, rate: f64) -> Result<Tensor> {
        let gradient = gradient.detach();
        self.steps += 1;
        self.mean = ((&self.mean * BETA1)? + (&gradient * (1. - BETA1))?)?;
        self.square = ((&self.square * BETA2)? + (gradient.sqr()? * (1. - BETA2))?)?;
        let mean = (&self.mean / (1. - BETA1.powi(self.steps)))?;
        let square = (&self.square / (1. - BETA2.powi(self.steps)))?;
        Ok((variable.as_tensor().detach() - ((mean / (square.sqrt()? + EPSILON)?)? * rate)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn steps_are_those_of_the_algorithm() {
        let variable = Var::new(&[1f32, -2.], &Device::Cpu).unwrap();
        let mut adam = Adam::new(&variable).unwrap();
        let gradients = [[0.5f32, -4.], [0.25, 1.], [-1., 0.]];
        let (mut at, mut mean, mut square) = ([1f64, -2.], [0f64; 2], [0f64; 2]);
        for (step, gradient) in gradients.iter().enumerate() {
            let next = adam.step(&variable, &Tensor::new(gradient, &Device::Cpu).unwrap(), 0.1).unwrap();
            variable.set(&next).unwrap();
            for entry in 0..2 {
                let g = f64::from(gradient[entry]);
                mean[entry] = 0.9 * mean[entry] + 0.1 * g;
                square[entry] = 0.999 * square[entry] + 0.001 * g * g;
                let power = step as i32 + 1;
                let (m, v) = (mean[entry] / (1. - 0.9f64.powi(power)), square[entry] / (1. - 0.999f64.powi(power)));
                at[entry] -= 0.1 * m / (v.sqrt() + 1e-8);
            }
            let found = variable.to_vec1::<f32>().unwrap();
            assert!(found.iter().zip(at).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5), "{found:?} {at:?}");
        }
    }
}
