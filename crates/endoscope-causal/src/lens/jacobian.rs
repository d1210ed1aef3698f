//! The Jacobian lens: the mean of `d last[p'] / d h[p]` over prompts and positions, where `h` is the residual stream after
//! some layer and `last` the one that the unembedding reads. Read as a lens, `J h` is what a small change of `h` makes of
//! the last stream, in the mean: the first-order effect that everything above has, attention and norms included.
//!
//! Row `i` of a Jacobian is the gradient of `last[i]`, one backward pass for all streams; the rows of a batch are copies
//! of a prompt, each with another `i`.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use endoscope_net::{AxisName, Capture, Index, Inputs, Network, Plan};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Kind, Lens, Streams, Translator, to_make};
use crate::error::{Error, Result};
use crate::pairs::Progress;

/// Which positions of the last stream count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// The same: `d last[p] / d h[p]`. Only the prompt up to p matters, and each p takes backward passes of its own.
    #[default]
    Same,
    /// The sum over this one and all after it: `sum over p' >= p of d last[p'] / d h[p]`; one backward pass has every p.
    Later,
}

/// How a Jacobian lens is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JacobianSettings {
    /// Which positions of the last stream count.
    pub over: Over,
    /// How many tokens a batch may hold (copies times length); at least one copy runs. It changes no result.
    pub batch: usize,
    /// With [`Over::Same`], how many positions of each row are drawn, each at most once; none = all.
    pub sample: Option<usize>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for JacobianSettings {
    fn default() -> Self {
        Self { over: Over::default(), batch: 2048, sample: None, seed: 0 }
    }
}

/// Measures the Jacobian of every stream but the last over the positions of `rows`, each position with the same weight;
/// `watch` hears of the gradients taken and may end it.
pub fn average(
    network: &dyn Network,
    rows: &[Vec<u32>],
    streams: Streams,
    settings: JacobianSettings,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Lens> {
    let (names, last, d_model) = to_make(network, streams)?;
    let JacobianSettings { over, batch, sample, seed } = settings;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // The prompts that run, each with the number of its row.
    let mut prompts: Vec<(usize, &[u32])> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        match (over, sample) {
            (Over::Same, None) => prompts.extend((0..row.len()).map(|position| (number, &row[..=position]))),
            (Over::Same, Some(sample)) => {
                let drawn = rand::seq::index::sample(&mut random, row.len(), sample.min(row.len()));
                prompts.extend(drawn.into_iter().map(|position| (number, &row[..=position])));
            }
            (Over::Later, None) => prompts.push((number, row)),
            (Over::Later, Some(_)) => {
                return Err(Error::Lens(
                    "a sum over later positions has every position at once: none are drawn".into(),
                ));
            }
        }
    }
    let positions = if over == Over::Same { prompts.len() } else { rows.iter().map(Vec::len).sum() };
    if positions == 0 {
        return Err(Error::Lens("there is no position to measure it on".into()));
    }
    let mut sums = vec![vec![0f64; d_model * d_model]; names.len()];
    let mut progress = Progress { done: 0, total: prompts.len() * d_model };
    for (number, prompt) in prompts {
        let copies = (batch / prompt.len()).clamp(1, d_model);
        for first in (0..d_model).step_by(copies) {
            let copies = copies.min(d_model - first);
            let found = gradients(network, (&names, &last), prompt, over, (first, copies))?;
            for ((sums, name), gradient) in sums.iter_mut().zip(&names).zip(found) {
                for (sum, slope) in sums[first * d_model..].iter_mut().zip(gradient) {
                    if !slope.is_finite() {
                        return Err(Error::Lens(format!("the gradient by `{name}` of row {number} is not finite")));
                    }
                    *sum += f64::from(slope);
                }
            }
            progress.done += copies;
            if watch(progress).is_break() {
                return Err(Error::Interrupted);
            }
        }
    }
    let mut translators = Vec::with_capacity(names.len());
    for (site, sums) in names.into_iter().zip(sums) {
        let means: Vec<f32> = sums.into_iter().map(|sum| (sum / positions as f64) as f32).collect();
        let matrix = Tensor::from_vec(means, (d_model, d_model), &Device::Cpu)?;
        translators.push(Translator { site, matrix, bias: None });
    }
    let mut made = serde_json::Map::new();
    made.insert("settings".into(), serde_json::to_value(settings).map_err(|error| Error::Lens(error.to_string()))?);
    made.insert("rows".into(), rows.len().into());
    made.insert("positions".into(), positions.into());
    Ok(Lens { kind: Kind::Jacobian, translators, made })
}

/// The gradients of `copies` dims of the last stream, from dim `first` on, by each stream: `[copies, d]` each, summed over
/// the positions that count.
fn gradients(
    network: &dyn Network,
    (names, last): (&[String], &str),
    prompt: &[u32],
    over: Over,
    (first, copies): (usize, usize),
) -> Result<Vec<Vec<f32>>> {
    let at = |capture: Capture| match over {
        Over::Same => capture.at(AxisName::Position, Index::At(-1)),
        Over::Later => capture,
    };
    // Of the outputs, which nobody wants, as little as can be.
    let plan = Plan::default().capture(at(Capture::new(last))).outputs_at(Index::At(-1)).columns_at(Index::At(0));
    let plan = names.iter().fold(plan, |plan, name| plan.capture(at(Capture::new(name)).with_gradient()));
    let run = network.run(&Inputs::tokens(vec![prompt.to_vec(); copies])?, &plan)?;
    let stream = run.captured.get(last)?;
    let d_model = stream.dim(2)?;
    let mut own = vec![0f32; copies * d_model];
    (0..copies).for_each(|copy| own[copy * d_model + first + copy] = 1.);
    // Copy i gives only its own dim, at every position that counts.
    let own = Tensor::from_vec(own, (copies, 1, d_model), &Device::Cpu)?;
    let found = run.gradients(&stream.broadcast_mul(&own)?.sum_all()?)?;
    let of = |name: &String| Ok(found.get(name)?.sum(1)?.flatten_all()?.to_vec1()?);
    names.iter().map(of).collect()
}
