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

use endoscope_net::{Selection, Value};
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

    /// The loss of one triple, `[v] -> []`.
    pub(crate) fn loss(self, logits: &candle_core::Tensor, target: &Target) -> Result<candle_core::Tensor> {
        match self {
            Self::LogProbability => Metric::Loss.differentiable(logits, target),
            Self::Logit => {
                let answers = candle_core::Tensor::new(target.answers.as_slice(), logits.device())?;
                Ok(logits.index_select(&answers, 0)?.mean_all()?.neg()?)
            }
            Self::LogitDiff => Ok(Metric::LogitDiff.differentiable(logits, target)?.neg()?),
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
