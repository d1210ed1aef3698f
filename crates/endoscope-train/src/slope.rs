//! The loss of a batch and its gradients, the batch in one piece or in parts.

use std::collections::BTreeMap;

use candle_core::Var;
use candle_core::backprop::GradStore;
use endoscope_models::Decoder;
use endoscope_net::{Inputs, Network, Plan};

use crate::batches::Batch;
use crate::error::Result;
use crate::loss::{Answered, answered, cross_entropy};
use crate::recipe::TrainingRecipe;

/// What an update is made from.
#[derive(Debug)]
pub struct Slope {
    /// The mean over the tokens that count, in nats.
    pub loss: f32,
    /// How many certain tokens were predicted; none where nobody asked (without `training.early_stop`).
    pub answered: Option<Answered>,
    /// The loss's gradient by each variable.
    pub gradients: GradStore,
}

/// The loss of `batch` as `training` says. With `accumulate` above one the rows go through the model in so many parts, one
/// after the other; each part's loss counts by its share of the tokens, so that the sum is the loss of the whole.
pub fn slope(
    decoder: &Decoder,
    variables: &BTreeMap<String, Var>,
    batch: &Batch,
    training: &TrainingRecipe,
) -> Result<Slope> {
    // On a thread of rayon's our kernels share their rows among its siblings, which sleep while they have nothing to do; elsewhere they
    // use candle's threads, which spin.
    rayon::join(|| whole_slope(decoder, variables, batch, training), || ()).0
}

fn whole_slope(
    decoder: &Decoder,
    variables: &BTreeMap<String, Var>,
    batch: &Batch,
    training: &TrainingRecipe,
) -> Result<Slope> {
    let rows = batch.tokens.len();
    let parts = rows.div_ceil(rows.div_ceil(training.accumulate.max(1)).max(1)).max(1);
    let all = targets(&training.loss.mask(batch));
    let mut sum: Option<Slope> = None;
    for part in 0..parts {
        let own = part_of(batch, part, parts);
        let counted = training.loss.mask(&own);
        let share = targets(&counted) as f64 / all as f64;
        // Also where there is no target at all, and the share is no number.
        if share.is_nan() || share == 0. {
            continue;
        }
        let logits = decoder.run(&Inputs::tokens(own.tokens.clone())?, &Plan::default())?.outputs;
        let mut loss = cross_entropy(&logits, &counted)?;
        if parts > 1 {
            loss = (loss * share)?;
        }
        let mut gradients = loss.backward()?;
        idle_experts(&mut gradients, variables)?;
        let answered = training.early_stop.map(|_| answered(&logits, &own)).transpose()?;
        let found = Slope { loss: loss.to_scalar()?, answered, gradients };
        match &mut sum {
            None => sum = Some(found),
            Some(sum) => sum.add(found, variables)?,
        }
    }
    sum.ok_or_else(|| candle_core::Error::Msg("no position counts in the loss".into()).into())
}

/// An expert that no token was sent to has no gradient: it is zero.
fn idle_experts(gradients: &mut GradStore, variables: &BTreeMap<String, Var>) -> Result<()> {
    for (_, variable) in variables.iter().filter(|(name, _)| name.contains(".experts.")) {
        if gradients.get(variable.as_tensor()).is_none() {
            gradients.insert(variable.as_tensor(), variable.zeros_like()?);
        }
    }
    Ok(())
}

impl Slope {
    fn add(&mut self, other: Self, variables: &BTreeMap<String, Var>) -> Result<()> {
        self.loss += other.loss;
        if let (Some(answered), Some(more)) = (&mut self.answered, other.answered) {
            answered.right += more.right;
            answered.count += more.count;
        }
        for variable in variables.values() {
            let variable = variable.as_tensor();
            if let (Some(own), Some(more)) = (self.gradients.get(variable), other.gradients.get(variable)) {
                let both = (own + more)?.detach();
                self.gradients.insert(variable, both);
            }
        }
        Ok(())
    }
}

/// How many tokens count.
fn targets(batch: &Batch) -> usize {
    batch.mask.iter().flat_map(|mask| mask.iter().skip(1)).filter(|&&counts| counts).count()
}

/// The rows of one of `parts` parts of nearly one size.
fn part_of(batch: &Batch, part: usize, parts: usize) -> Batch {
    let rows = batch.tokens.len();
    let own = part * rows / parts..(part + 1) * rows / parts;
    Batch { tokens: batch.tokens[own.clone()].to_vec(), mask: batch.mask[own].to_vec() }
}
