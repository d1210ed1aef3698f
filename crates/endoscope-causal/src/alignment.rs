//! Alignments: where a variable lives, found by training an intervention.
//!
//! A triple says what answer is wanted when something of a source prompt is put into a base prompt. What is put there is
//! `x + D^T (m * D (source - x))` at chosen sites and positions: a mask `m` over heads or neurons or over given directions
//! `D` (desiderata-based component masking, DCM: Davies et al. 2023, arXiv 2307.03637), or directions `D` that are trained
//! themselves (distributed alignment search, DAS: Geiger et al. 2023, arXiv 2303.02536; boundless, where how many of
//! them is trained too: Wu et al. 2023, arXiv 2305.08809). What was found is rounded, tested on triples held out, and
//! held against chance: others of the same size, and the same training on sources that tell nothing.

mod adam;
mod found;
mod gate;
mod part;
mod rotation;
mod rows;
mod training;
mod triples;

use std::collections::BTreeMap;

use candle_core::Tensor;
use endoscope_net::{AxisName, Index, Selection, Site, Value};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::{Metric, Target};
use crate::prompts::Answers;

pub use found::{Aligned, AlignmentScore, FoundSite, Intervention, Outcome};
pub use gate::Gate;
pub use training::align;
pub use triples::{Triple, Triples, WrittenTriple, parse as parse_triples};

/// What is sought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Find {
    /// Which heads.
    Heads {
        /// How a mask is trained.
        gate: Gate,
    },
    /// Which entries of the last axis: neurons, or dims of the residual stream; of each head its own.
    Neurons {
        /// How a mask is trained.
        gate: Gate,
    },
    /// Which of these directions.
    Directions {
        /// How a mask is trained.
        gate: Gate,
        /// Orthonormal rows `[direction, dim]`.
        directions: Value,
    },
    /// A subspace of so many dims (DAS).
    Subspace {
        /// How many.
        dims: usize,
    },
    /// A subspace of as many dims as it takes (boundless DAS).
    Boundless,
}

impl Find {
    /// Whether directions are trained.
    pub fn is_rotation(&self) -> bool {
        matches!(self, Self::Subspace { .. } | Self::Boundless)
    }
}

/// What training makes small on the logits at the last position, for each triple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Minus the log of the answers' total probability.
    #[default]
    LogProbability,
    /// Minus the answers' mean logit, as in DCM.
    Logit,
    /// Minus the answers' mean logit, plus that of the wrong answers.
    LogitDiff,
}

impl Objective {
    /// The answers that it needs.
    pub fn needs(self) -> Answers {
        match self {
            Self::LogProbability | Self::Logit => Answers::Right,
            Self::LogitDiff => Answers::RightAndWrong,
        }
    }

    /// The loss of each row, `[row, v] -> [row]`: [`Metric::differentiable`] of many rows at once.
    pub(crate) fn losses(self, logits: &Tensor, targets: &[&Target]) -> Result<Tensor> {
        let count = logits.dim(1)?;
        let metric = match self {
            Self::LogProbability | Self::Logit => Metric::Loss,
            Self::LogitDiff => Metric::LogitDiff,
        };
        // Each row's answers in one matrix, filled up with token 0, which then counts for nothing: in a mean by its weight,
        // in a sum of probabilities by a logit far below all others.
        let wrong = |target: &Target| if self == Self::LogitDiff { target.wrong_answers.len() } else { 0 };
        let width = targets.iter().map(|target| target.answers.len() + wrong(target)).max().unwrap_or(0);
        let (mut places, mut weights) = (Vec::new(), Vec::new());
        for (row, target) in targets.iter().enumerate() {
            metric.check(target, count)?;
            let share = |ids: &[u32], sign: f32| vec![sign / ids.len() as f32; ids.len()];
            let wrong = &target.wrong_answers[..wrong(target)];
            let mut ids = [target.answers.as_slice(), wrong].concat();
            let mut own = [share(&target.answers, -1.), share(wrong, 1.)].concat();
            ids.resize(width, 0);
            own.resize(width, 0.);
            places.extend(ids.into_iter().map(|id| (row * count) as i64 + i64::from(id)));
            weights.extend(own);
        }
        let (shape, device) = ((targets.len(), width), logits.device());
        let chosen = logits.flatten_all()?.index_select(&Tensor::new(places, device)?, 0)?.reshape(shape)?;
        match self {
            Self::LogProbability => {
                let far = weights.iter().map(|&weight| if weight == 0. { -1e30 } else { 0f32 }).collect::<Vec<_>>();
                let answers = (chosen + Tensor::from_vec(far, shape, device)?)?.log_sum_exp(1)?;
                Ok((logits.log_sum_exp(1)? - answers)?)
            }
            Self::Logit | Self::LogitDiff => Ok((chosen * Tensor::from_vec(weights, shape, device)?)?.sum(1)?),
        }
    }
}

/// What is sought, where, and how it is trained: an alignment, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alignment {
    /// A kind of site (`z`), a glob, or one site. Masks over several sites are trained together.
    pub site: String,
    /// Which part of it (positions, heads); the rest is left alone.
    #[serde(default, skip_serializing_if = "Selection::is_everything")]
    pub select: Selection,
    /// By layer, the heads that are sought among, where those are not the same in every layer; a site whose layer is not here
    /// has those of `select`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub heads: BTreeMap<usize, Index>,
    /// What is sought there.
    pub find: Find,
    /// What is made small.
    pub objective: Objective,
    /// What one unit of the mask's size costs, in units of the objective (lambda).
    pub penalty: f64,
    /// How many steps are made.
    pub steps: usize,
    /// How many triples a step looks at.
    pub batch: usize,
    /// Of Adam, falling in a line to 0: by how much a mask changes in a step, or by what angle (in radians) a row of a
    /// rotation turns, at most about. A boundary moves by a tenth of that, as a share of the dims.
    pub learning_rate: f64,
    /// The share of triples that is held out of the training, from 0 to below 1.
    pub held_out: f64,
    /// Every number follows from it and from the rest.
    pub seed: u64,
    /// How many others of the same size are drawn as a control.
    pub random_controls: usize,
}

impl Alignment {
    /// With the usual settings: 200 steps of 32 triples, a quarter held out, a penalty of 0.01.
    pub fn new(site: impl Into<String>, find: Find) -> Self {
        Self {
            site: site.into(),
            select: Selection::default(),
            heads: BTreeMap::new(),
            learning_rate: if find.is_rotation() { 0.3 } else { 0.05 },
            find,
            objective: Objective::default(),
            penalty: 0.01,
            steps: 200,
            batch: 32,
            held_out: 0.25,
            seed: 0,
            random_controls: 5,
        }
    }

    /// Which part of a site.
    pub(crate) fn select_at(&self, site: &Site) -> Selection {
        match site.layer.and_then(|layer| self.heads.get(&layer)) {
            Some(heads) => self.select.clone().with(AxisName::Head, heads.clone()),
            None => self.select.clone(),
        }
    }

    /// Checks the numbers.
    fn check(&self) -> Result<()> {
        let fail = |reason: &str| Err(Error::Alignment(reason.into()));
        match self {
            Self { steps: 0, .. } => fail("there must be at least one step"),
            Self { batch: 0, .. } => fail("a step must look at one triple at least"),
            Self { held_out, .. } if !(0. ..1.).contains(held_out) => {
                fail("the share held out must be from 0 to below 1")
            }
            Self { penalty, .. } if !penalty.is_finite() || *penalty < 0. => {
                fail("the penalty must be a number that is not negative")
            }
            Self { learning_rate: rate, .. } if !rate.is_finite() || *rate <= 0. => {
                fail("the learning rate must be a number above 0")
            }
            Self { find: Find::Subspace { dims: 0 }, .. } => fail("a subspace must have one dim at least"),
            _ => Ok(()),
        }
    }
}

/// The random numbers of one purpose.
fn generator(seed: u64, purpose: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(purpose);
    random
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn losses_of_many_rows_are_those_of_each() {
        let target = |answers: &[u32], wrong: &[u32]| Target {
            answers: answers.to_vec(),
            wrong_answers: wrong.to_vec(),
            clean: vec![],
        };
        let targets = [target(&[1], &[0]), target(&[4, 2], &[1, 3, 0]), target(&[0], &[4])];
        let targets: Vec<&Target> = targets.iter().collect();
        let logits: Vec<f32> = (0..15).map(|at| ((at * 7) % 11) as f32 / 3. - 1.).collect();
        let logits = Var::from_vec(logits, (3, 5), &Device::Cpu).unwrap();
        let weights = Tensor::new(&[1f32, -2., 0.5], &Device::Cpu).unwrap();
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for objective in [Objective::LogProbability, Objective::Logit, Objective::LogitDiff] {
            let losses = objective.losses(logits.as_tensor(), &targets).unwrap();
            let gradients = (&losses * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            let each = |row: usize| {
                let logits = logits.get(row).unwrap();
                match objective {
                    Objective::LogProbability => Metric::Loss.differentiable(&logits, targets[row]).unwrap(),
                    Objective::LogitDiff => {
                        Metric::LogitDiff.differentiable(&logits, targets[row]).unwrap().neg().unwrap()
                    }
                    Objective::Logit => {
                        let answers = Tensor::new(targets[row].answers.as_slice(), &Device::Cpu).unwrap();
                        logits.index_select(&answers, 0).unwrap().mean_all().unwrap().neg().unwrap()
                    }
                }
            };
            let expected = Tensor::stack(&[each(0), each(1), each(2)], 0).unwrap();
            let slopes = (&expected * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            let pairs = [(&losses, &expected), (gradients.get(&logits).unwrap(), slopes.get(&logits).unwrap())];
            for (found, expected) in pairs {
                let worst = numbers(found).iter().zip(numbers(expected)).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
                assert!(worst < 1e-6, "{objective:?}: {found} {expected}");
            }
            let far = target(&[1], &[5]);
            assert!(
                objective.losses(logits.as_tensor(), &[&far, &far, &far]).unwrap_err().to_string().contains("id 5")
            );
        }
    }
}
