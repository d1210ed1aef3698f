//! The loss, in operations that have gradients.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::batches::Batch;

/// Which tokens the loss is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// Those that the batch's mask counts.
    #[default]
    Certain,
    /// Every token but the first.
    Every,
}

impl LossOn {
    /// The batch with the mask that this loss is taken under.
    pub fn mask(self, batch: &Batch) -> Batch {
        match self {
            Self::Certain => batch.clone(),
            Self::Every => {
                let mask = batch.tokens.iter().map(|row| (0..row.len()).map(|at| at > 0).collect()).collect();
                Batch { tokens: batch.tokens.clone(), mask }
            }
        }
    }
}

/// How many of the tokens that count are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answered {
    /// Those that have the largest logit, alone or with others.
    pub right: usize,
    /// All.
    pub count: usize,
}

impl Answered {
    /// The share that is right; NaN where nothing counts.
    pub fn share(self) -> f64 {
        self.right as f64 / self.count as f64
    }
}

/// How many of the tokens that `batch.mask` counts have the largest logit; `logits` `[row, position, vocabulary]`.
pub fn answered(logits: &Tensor, batch: &Batch) -> Result<Answered> {
    let logits = logits.detach().to_vec3::<f32>()?;
    let mut answered = Answered::default();
    for ((logits, tokens), mask) in logits.iter().zip(&batch.tokens).zip(&batch.mask) {
        for at in (1..tokens.len()).filter(|&at| mask[at]) {
            let Some(logits) = logits.get(at - 1) else { continue };
            answered.count += 1;
            // Not a number is larger than nothing and smaller than nothing: it is never right.
            let right = |logit: &f32| logits.iter().all(|other| other <= logit);
            answered.right += usize::from(logits.get(tokens[at] as usize).is_some_and(right));
        }
    }
    Ok(answered)
}

/// The mean cross entropy, in nats, of the next tokens that `batch.mask` counts.
///
/// `logits` are those of all positions, `[row, position, vocabulary]`; the result is a scalar.
pub fn cross_entropy(logits: &Tensor, batch: &Batch) -> Result<Tensor> {
    let (_, length, _) = logits.dims3()?;
    let mut counted = Vec::new();
    for (row, (tokens, mask)) in batch.tokens.iter().zip(&batch.mask).enumerate() {
        counted.extend((1..length).filter(|&at| mask[at]).map(|at| (row * length + at - 1, tokens[at])));
    }
    endoscope_kernels::cross_entropy(logits, &counted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Two rows of three tokens over a vocabulary of two; only the masked targets count.
    fn example() -> (Tensor, Batch) {
        let logits = [[[2f32, 0.], [0., 1.], [9., 9.]], [[0., 3.], [5., 0.], [9., 9.]]];
        let tokens = vec![vec![0, 0, 1], vec![1, 0, 1]];
        let mask = vec![vec![true, true, false], vec![false, true, true]];
        (Tensor::new(&logits, &Device::Cpu).unwrap(), Batch { tokens, mask })
    }

    #[test]
    fn only_what_the_mask_counts_has_a_loss() {
        let (logits, batch) = example();
        let negative = |right: f64, wrong: f64| (1. + (wrong - right).exp()).ln();
        let loss = |batch: &Batch| f64::from(cross_entropy(&logits, batch).unwrap().to_scalar::<f32>().unwrap());
        let certain = (negative(2., 0.) + negative(0., 3.) + negative(0., 5.)) / 3.;
        assert!((loss(&LossOn::Certain.mask(&batch)) - certain).abs() < 1e-6);
        let every = (negative(2., 0.) + negative(1., 0.) + negative(0., 3.) + negative(0., 5.)) / 4.;
        assert!((loss(&LossOn::Every.mask(&batch)) - every).abs() < 1e-6);
    }

    #[test]
    fn answers_are_counted_where_the_mask_says() {
        let (logits, batch) = example();
        assert_eq!(answered(&logits, &batch).unwrap(), Answered { right: 1, count: 3 });
        assert_eq!(answered(&logits, &LossOn::Every.mask(&batch)).unwrap(), Answered { right: 2, count: 4 });
        let nothing = (logits * f64::NAN).unwrap();
        assert_eq!(answered(&nothing, &batch).unwrap(), Answered { right: 0, count: 3 });
    }
}
