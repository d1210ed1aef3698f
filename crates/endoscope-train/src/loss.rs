//! The loss, in operations that have gradients.

use candle_core::{D, Result, Tensor};

use crate::batches::Batch;

/// The mean cross entropy, in nats, of the next tokens that `batch.mask` counts.
///
/// `logits` are those of all positions, `[row, position, vocabulary]`; the result is a scalar.
pub fn cross_entropy(logits: &Tensor, batch: &Batch) -> Result<Tensor> {
    let (_, length, vocabulary) = logits.dims3()?;
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (row, (tokens, mask)) in batch.tokens.iter().zip(&batch.mask).enumerate() {
        for at in (1..length).filter(|&at| mask[at]) {
            positions.push((row * length + at - 1) as u32);
            targets.push(tokens[at]);
        }
    }
    let count = targets.len();
    let positions = Tensor::from_vec(positions, count, logits.device())?;
    let targets = Tensor::from_vec(targets, (count, 1), logits.device())?;
    let logits = logits.reshape(((), vocabulary))?.index_select(&positions, 0)?;
    (logits.log_sum_exp(D::Minus1)? - logits.gather(&targets, 1)?.squeeze(1)?)?.mean_all()
}
