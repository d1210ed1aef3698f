//! A fitted probe: directions in the space of the activations, and biases.

use candle_core::{D, DType, Device, Tensor};

use super::fit::{Loss, Objective, softmax};
use super::{Examples, Features, Intercept, Labels, Probe, ProbeKind};
use crate::error::{Error, Result};

/// A probe's directions. Its score of an activation x is `direction · x + bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// One for two classes (towards the second) and for numbers; otherwise one for each class.
    pub directions: Vec<Vec<f64>>,
    /// One for each direction.
    pub biases: Vec<f64>,
    /// The classes that it knows, by their numbers; none for numbers.
    pub classes: Vec<usize>,
}

/// How features are brought to one scale: `(x - mean) / scale`.
struct Scaling {
    /// `[1, feature]`
    mean: Tensor,
    /// `[1, feature]`
    scale: Tensor,
}

impl Scaling {
    fn of(features: &Tensor) -> Result<Self> {
        let mean = features.mean_keepdim(0)?;
        let deviation = features.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?.sqrt()?;
        // What differs by rounding only is constant; as in scikit-learn it is not blown up.
        let least = ((mean.abs()? * 1e-12)? + f64::MIN_POSITIVE)?;
        let scale = deviation.gt(&least)?.where_cond(&deviation, &deviation.ones_like()?)?;
        Ok(Self { mean, scale })
    }
}

impl Probe {
    /// Fits the probe on all examples.
    pub fn fit(&self, examples: &Examples) -> Result<Fitted> {
        match (self.kind, examples.labels()) {
            (ProbeKind::MassMean, Labels::Classes { of, .. }) => mass_mean(examples, &present(of)?, of),
            (ProbeKind::Logistic { l2 }, Labels::Classes { of, .. }) => {
                if !(l2 > 0. && l2.is_finite()) {
                    return Err(Error::Probe(format!(
                        "l2 must be a positive number, not {l2}: without it classes that can be told apart have no best weights"
                    )));
                }
                let classes = present(of)?;
                let among = |class: &usize| classes.iter().position(|known| known == class).unwrap_or(0);
                let loss = match classes.as_slice() {
                    [_, second] => {
                        Loss::Logistic(of.iter().map(|class| f64::from(u8::from(class == second))).collect())
                    }
                    _ => Loss::Multinomial { classes: classes.len(), of: of.iter().map(among).collect() },
                };
                self.linear(examples, loss, l2, classes)
            }
            (ProbeKind::Ridge { l2 }, Labels::Numbers(numbers)) => {
                if !(l2 >= 0. && l2.is_finite()) {
                    return Err(Error::Probe(format!("l2 must be a number from 0 on, not {l2}")));
                }
                self.linear(examples, Loss::Squared(numbers.clone()), l2, Vec::new())
            }
            (kind, Labels::Numbers(_)) => {
                Err(Error::Probe(format!("a probe of kind {} needs classes; numbers want ridge", kind.name())))
            }
            (kind, Labels::Classes { .. }) => {
                Err(Error::Probe(format!("a probe of kind {} needs numbers for labels, not classes", kind.name())))
            }
        }
    }

    fn linear(&self, examples: &Examples, loss: Loss, l2: f64, classes: Vec<usize>) -> Result<Fitted> {
        let features = examples.features();
        let (count, dim) = features.dims2()?;
        let scaling = match self.features {
            Features::Raw => None,
            Features::Standardised => Some(Scaling::of(features)?),
        };
        let mut scaled = match &scaling {
            None => features.clone(),
            Some(Scaling { mean, scale }) => features.broadcast_sub(mean)?.broadcast_div(scale)?,
        };
        if self.intercept == Intercept::Fitted {
            scaled = Tensor::cat(&[scaled, Tensor::ones((count, 1), DType::F64, &Device::Cpu)?], 1)?;
        }
        let intercept = self.intercept == Intercept::Fitted;
        let weights = Objective { features: scaled.contiguous()?, loss, l2, intercept }.minimum()?;
        // [feature, output], the intercept last.
        let outputs = weights.len() / (dim + usize::from(intercept));
        let bias = |output: usize| if intercept { weights[dim * outputs + output] } else { 0. };
        let mut directions: Vec<Vec<f64>> =
            (0..outputs).map(|output| (0..dim).map(|at| weights[at * outputs + output]).collect()).collect();
        let mut biases: Vec<f64> = (0..outputs).map(bias).collect();
        if let Some(Scaling { mean, scale }) = &scaling {
            let (mean, scale) = (mean.flatten_all()?.to_vec1::<f64>()?, scale.flatten_all()?.to_vec1::<f64>()?);
            for (direction, bias) in directions.iter_mut().zip(&mut biases) {
                direction.iter_mut().zip(&scale).for_each(|(weight, scale)| *weight /= scale);
                *bias -= direction.iter().zip(&mean).map(|(weight, mean)| weight * mean).sum::<f64>();
            }
        }
        Ok(Fitted { directions, biases, classes })
    }
}

/// The classes that there are examples of; at least two.
fn present(of: &[usize]) -> Result<Vec<usize>> {
    let classes: std::collections::BTreeSet<usize> = of.iter().copied().collect();
    match classes.len() {
        0 | 1 => Err(Error::Probe("all examples that it is fitted on have one label; a probe needs two".into())),
        _ => Ok(classes.into_iter().collect()),
    }
}

fn mass_mean(examples: &Examples, classes: &[usize], of: &[usize]) -> Result<Fitted> {
    let &[first, second] = classes else {
        return Err(Error::Probe(format!("a mass-mean probe tells two classes apart, not {}", classes.len())));
    };
    let mean = |class: usize| -> Result<Vec<f64>> {
        let rows: Vec<usize> = (0..of.len()).filter(|&row| of[row] == class).collect();
        Ok(examples.take(&rows)?.features().mean(0)?.to_vec1()?)
    };
    let (first, second) = (mean(first)?, mean(second)?);
    let direction: Vec<f64> = first.iter().zip(&second).map(|(first, second)| second - first).collect();
    let half_way: f64 =
        direction.iter().zip(first.iter().zip(&second)).map(|(along, (a, b))| along * (a + b) / 2.).sum();
    Ok(Fitted { directions: vec![direction], biases: vec![-half_way], classes: classes.to_vec() })
}

impl Fitted {
    /// The score of each row along each direction: `[row, feature] -> [row][direction]`.
    pub fn scores(&self, features: &Tensor) -> Result<Vec<Vec<f64>>> {
        let dim = self.directions.first().map_or(0, Vec::len);
        let directions = Tensor::from_vec(self.directions.concat(), (self.directions.len(), dim), &Device::Cpu)?;
        let mut scores = features.to_dtype(DType::F64)?.contiguous()?.matmul(&directions.t()?)?.to_vec2::<f64>()?;
        for row in &mut scores {
            row.iter_mut().zip(&self.biases).for_each(|(score, bias)| *score += bias);
        }
        Ok(scores)
    }

    /// The probability of each class that it knows: `[row, feature] -> [row][class]`. Those of a mass-mean probe are not
    /// calibrated: their order and their side of one half mean something, their size does not.
    pub fn probabilities(&self, features: &Tensor) -> Result<Vec<Vec<f64>>> {
        let of = |scores: Vec<f64>| match scores.as_slice() {
            [only] => {
                let second = 1. / (1. + (-only).exp());
                vec![1. - second, second]
            }
            _ => softmax(&scores),
        };
        Ok(self.scores(features)?.into_iter().map(of).collect())
    }

    /// `[direction, dim]`, f32: what a plan's `directions` take.
    pub fn tensor(&self) -> Result<Tensor> {
        let rows: Vec<Vec<f32>> = self.directions.iter().map(|row| row.iter().map(|&w| w as f32).collect()).collect();
        let dim = rows.first().map_or(0, Vec::len);
        Ok(Tensor::from_vec(rows.concat(), (rows.len(), dim), &Device::Cpu)?)
    }

    /// The length of each direction.
    pub fn norms(&self) -> Result<Vec<f64>> {
        Ok(self.tensor()?.to_dtype(DType::F64)?.sqr()?.sum(D::Minus1)?.sqrt()?.to_vec1()?)
    }
}
