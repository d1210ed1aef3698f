//! The running mean of the weights (Polyak and Juditsky 1992; with exponential decay, as in Tarvainen and Valpola 2017,
//! arXiv 1703.01780, equation 1).

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor, Var};

use crate::error::Result;

/// The folder of the mean's model, in the result and in each checkpoint.
pub const EMA: &str = "ema";

/// The mean, which starts as the first weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Ema {
    /// How much of itself it keeps in an update.
    pub decay: f64,
    /// Name of the weight -> its mean, flat in row-major order.
    pub means: BTreeMap<String, Vec<f32>>,
}

impl Ema {
    /// The mean of one step's weights: the weights.
    pub fn new(decay: f64, variables: &BTreeMap<String, Var>) -> Result<Self> {
        let flat = |(name, variable): (&String, &Var)| Ok((name.clone(), variable.flatten_all()?.to_vec1()?));
        Ok(Self { decay, means: variables.iter().map(flat).collect::<Result<_>>()? })
    }

    /// mean := decay mean + (1 - decay) weights.
    pub fn update(&mut self, variables: &BTreeMap<String, Var>) -> Result<()> {
        let decay = self.decay;
        for (name, means) in &mut self.means {
            let Some(variable) = variables.get(name) else { continue };
            let weights: Vec<f32> = variable.flatten_all()?.to_vec1()?;
            for (mean, weight) in means.iter_mut().zip(weights) {
                *mean = (decay * f64::from(*mean) + (1. - decay) * f64::from(weight)) as f32;
            }
        }
        Ok(())
    }

    /// The means in the shapes of their weights.
    pub fn tensors(&self, variables: &BTreeMap<String, Var>) -> Result<HashMap<String, Tensor>> {
        let shaped = |(name, variable): (&String, &Var)| {
            let means = self.means.get(name)?.clone();
            Some(Tensor::from_vec(means, variable.shape(), &Device::Cpu).map(|tensor| (name.clone(), tensor)))
        };
        Ok(variables.iter().filter_map(shaped).collect::<candle_core::Result<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_follows_the_weights_by_its_formula() {
        let variable = Var::new(&[[1f32, 2.]], &Device::Cpu).unwrap();
        let variables = BTreeMap::from([("w".to_string(), variable.clone())]);
        let mut ema = Ema::new(0.75, &variables).unwrap();
        for (weights, expected) in [([5f32, 2.], [2f32, 2.]), ([2., -2.], [2., 1.])] {
            variable.set(&Tensor::new(&[weights], &Device::Cpu).unwrap()).unwrap();
            ema.update(&variables).unwrap();
            assert_eq!(ema.tensors(&variables).unwrap()["w"].to_vec2::<f32>().unwrap(), [expected]);
        }
    }
}
