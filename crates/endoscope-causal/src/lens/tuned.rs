//! The tuned lens (Belrose et al. 2023, arXiv 2303.08112): for each stream an affine translator `h + A h + b`, trained so
//! that what it says is near to what the network says.
//!
//! The objective is theirs (their equation 9): the mean over positions of KL(network || lens) in nats. Translators start
//! as the identity, so before the first step this is the logit lens. Theirs are trained with SGD and Nesterov momentum on
//! half a billion tokens; here the rows are few, and Adam (Kingma and Ba 2014, arXiv 1412.6980: 0.9, 0.999, 1e-8) is used, its
//! rate falling linearly to zero, without weight decay. The network runs once a row; its streams are kept, and every
//! step costs unembeddings only.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use endoscope_net::{Capture, Inputs, Plan, Resume};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::readout::Readout;
use super::{Kind, Lens, Streams, Translator, is_finite, to_make};
use crate::error::{Error, Result};
use crate::pairs::Progress;

/// How a tuned lens is trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TunedSettings {
    /// How many steps.
    pub steps: usize,
    /// How many positions a step draws, with repetition, from all positions of all rows.
    pub batch: usize,
    /// Adam's rate at the first step.
    pub learning_rate: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for TunedSettings {
    fn default() -> Self {
        Self { steps: 250, batch: 256, learning_rate: 1e-3, seed: 0 }
    }
}

/// A translator in training.
struct Trained {
    site: String,
    /// `A` `[to, from]` and `b` `[to]`.
    matrix: Var,
    bias: Var,
    /// The stream at every position: `[n, d]`.
    rows: Tensor,
    optimizer: AdamW,
}

/// Trains a translator for every stream but the last on rows of tokens; `watch` hears of the steps and may end it.
///
/// The same arguments give the same numbers. It holds the streams of all positions in memory, and one batch of logits.
pub fn train(
    network: &dyn Resume,
    rows: &[Vec<u32>],
    streams: Streams,
    settings: TunedSettings,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Lens> {
    let TunedSettings { steps, batch, learning_rate, seed } = settings;
    if batch == 0 || !(learning_rate.is_finite() && learning_rate > 0.) {
        let reason = format!("training needs a batch and a learning rate above 0, not {batch} and {learning_rate}");
        return Err(Error::Lens(reason));
    }
    let Some(longest) = rows.iter().max_by_key(|row| row.len()) else {
        return Err(Error::Lens("there is no row to train it on".into()));
    };
    let (names, last, d_model) = to_make(network, streams)?;
    let mut stored = stored(network, rows, &names, &last)?;
    let own = stored.pop().ok_or_else(|| Error::Lens("the network gave no streams".into()))?;
    let readout = Readout::new(network, &last, longest, Vec::new())?;
    let mut trained = Vec::with_capacity(names.len());
    for (site, rows) in names.into_iter().zip(stored) {
        let matrix = Var::zeros((d_model, d_model), DType::F32, &Device::Cpu)?;
        let bias = Var::zeros(d_model, DType::F32, &Device::Cpu)?;
        let adam = ParamsAdamW { lr: learning_rate, weight_decay: 0., ..ParamsAdamW::default() };
        let optimizer = AdamW::new(vec![matrix.clone(), bias.clone()], adam)?;
        trained.push(Trained { site, matrix, bias, rows, optimizer });
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let count = own.dim(0)? as u32;
    for step in 0..steps {
        let drawn: Vec<u32> = (0..batch).map(|_| random.random_range(0..count)).collect();
        let drawn = Tensor::from_vec(drawn, batch, &Device::Cpu)?;
        let targets = probabilities(&readout.logits(&own.index_select(&drawn, 0)?)?)?;
        for each in &mut trained {
            let rows = each.rows.index_select(&drawn, 0)?;
            let mapped = mapped(&rows, each.matrix.as_tensor(), each.bias.as_tensor())?;
            if !is_finite(&mapped)? {
                return Err(Error::Lens(format!(
                    "training of `{}` left the finite numbers before step {step}; try a smaller learning rate",
                    each.site
                )));
            }
            each.optimizer.set_learning_rate(learning_rate * (1. - step as f64 / steps as f64));
            each.optimizer.step(&objective(&readout, &mapped, &targets)?.backward()?)?;
        }
        if watch(Progress { done: step + 1, total: steps }).is_break() {
            return Err(Error::Interrupted);
        }
    }
    let mut translators = Vec::with_capacity(trained.len());
    for Trained { site, matrix, bias, .. } in trained {
        if !is_finite(&matrix)? || !is_finite(&bias)? {
            return Err(Error::Lens(format!(
                "the last step of training left `{site}` with numbers that are not finite"
            )));
        }
        let (matrix, bias) = (matrix.as_detached_tensor(), Some(bias.as_detached_tensor()));
        translators.push(Translator { site, matrix, bias });
    }
    let mut made = serde_json::Map::new();
    made.insert("settings".into(), serde_json::to_value(settings).map_err(|error| Error::Lens(error.to_string()))?);
    made.insert("rows".into(), rows.len().into());
    made.insert("positions".into(), count.into());
    Ok(Lens { kind: Kind::Tuned, translators, made })
}

/// Every position of every row of `names` and, in the end, of `last`: `[n, d]` each.
fn stored(network: &dyn Resume, rows: &[Vec<u32>], names: &[String], last: &str) -> Result<Vec<Tensor>> {
    let all = || names.iter().map(String::as_str).chain([last]);
    let plan = all().fold(Plan::default(), |plan, name| plan.capture(Capture::new(name)));
    let plan = plan.outputs_at(endoscope_net::Index::At(-1));
    let mut pieces: Vec<Vec<Tensor>> = vec![Vec::new(); names.len() + 1];
    for (number, row) in rows.iter().enumerate() {
        let run = network.run(&Inputs::tokens(vec![row.clone()])?, &plan)?;
        for (pieces, name) in pieces.iter_mut().zip(all()) {
            let stream = run.captured.get(name)?.squeeze(0)?;
            if !is_finite(&stream)? {
                return Err(Error::Lens(format!("`{name}` of row {number} is not finite")));
            }
            pieces.push(stream);
        }
    }
    pieces.iter().map(|pieces| Ok(Tensor::cat(pieces, 0)?)).collect()
}

/// `h + A h + b` of each row: `[n, d] -> [n, d]`.
fn mapped(rows: &Tensor, matrix: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok((rows + rows.matmul(&matrix.t()?)?.broadcast_add(bias)?)?)
}

/// A number whose gradient by the rows `mapped` is that of the mean KL(targets || what they say).
///
/// The gradient of KL(p || softmax(z)) by the logits z is softmax(z) - p. It is put there as a constant, so that no softmax is
/// in the graph.
fn objective(readout: &Readout, mapped: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let logits = readout.logits(mapped)?;
    let slope = ((probabilities(&logits.detach())? - targets)? / mapped.dim(0)? as f64)?;
    Ok((logits * slope)?.sum_all()?)
}

/// `[n, v] -> [n, v]`.
fn probabilities(logits: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::softmax_last_dim(&logits.contiguous()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The gradient of the mean KL by A and b, by torch through TransformerLens's norm and unembedding.
    #[test]
    fn the_gradient_of_a_translator_equals_torchs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let golden = root.join("tests/goldens/lens/gpt2-odd-translator.safetensors");
        let golden = candle_core::safetensors::load(golden, &Device::Cpu).unwrap();
        let model = endoscope_models::Model::open(root.join("../endoscope-models/tests/goldens/gpt2-odd")).unwrap();
        // Four positions a branch, so that the six rows need two of them.
        let readout = Readout::new(&model.decoder, "blocks.2.hook_resid_post", &[1, 2, 3, 4], Vec::new()).unwrap();
        let matrix = Var::from_tensor(&golden["matrix"]).unwrap();
        let bias = Var::from_tensor(&golden["bias"]).unwrap();
        let targets = probabilities(&golden["own"]).unwrap();
        let mapped = mapped(&golden["rows"], matrix.as_tensor(), bias.as_tensor()).unwrap();
        let gradients = objective(&readout, &mapped, &targets).unwrap().backward().unwrap();
        for (name, variable) in [("matrix", &matrix), ("bias", &bias)] {
            let expected = &golden[&format!("{name}_gradient")];
            let found = gradients.get(variable).unwrap();
            let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let difference = largest(&(found - expected).unwrap());
            assert!(difference < 1e-4, "{name}: differs by {difference:e}");
            assert!(largest(expected) > 1e-2, "{name}: nothing to compare");
        }
    }
}
