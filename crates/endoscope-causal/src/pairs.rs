//! What sweeps of every kind do with prompt pairs: the two runs of each, and each pair once.

use std::collections::HashMap;
use std::ops::ControlFlow;

use candle_core::Tensor;
use endoscope_net::{Base, Captured, Edit, Index, Inputs, Network, Plan, Resume, Run, Work};

use crate::error::{Error, Result};
use crate::metric::{Metric, Target};
use crate::planner::{Budget, Planner, SweepCost};
use crate::prompts::Pair;
use crate::scores::PairScores;
use crate::sweep::Direction;

/// How far a sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Points done.
    pub done: usize,
    /// Points in all.
    pub total: usize,
}

/// Hears how many more points are done.
pub(crate) type Ran<'a> = &'a mut dyn FnMut(usize) -> Result<()>;

/// How the points of a pair are computed.
pub(crate) enum Computing<'a> {
    Planned(Budget<'a>),
    Naive,
}

/// Computes every pair, longest first, so that the memory left is asked for when most is held; equal pairs once, unless the
/// planner is naive. `one` gives the scores of a pair and the work of its base run.
pub(crate) fn each_pair(
    pairs: &[Pair],
    planner: Planner,
    points: usize,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
    mut one: impl FnMut(&Pair, &mut Computing, &mut SweepCost, Ran) -> Result<(PairScores, Work)>,
) -> Result<(Vec<PairScores>, SweepCost)> {
    let mut computing = match planner {
        Planner::Planned(memory) => Computing::Planned(Budget::new(memory)),
        Planner::Naive => Computing::Naive,
    };
    let mut progress = Progress { done: 0, total: points * pairs.len() };
    let mut ran = |points: usize| -> Result<()> {
        progress.done += points;
        match watch(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    };
    ran(0)?;
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|&number| std::cmp::Reverse(pairs[number].clean.len()));
    let mut cost = SweepCost::default();
    let mut scores = vec![None; pairs.len()];
    let mut known: HashMap<&Pair, (usize, Work)> = HashMap::new();
    for number in order {
        let pair = &pairs[number];
        let repeated = known.get(pair).filter(|_| matches!(computing, Computing::Planned(_))).copied();
        let base = match repeated {
            Some((same, base)) => {
                scores[number] = scores[same].clone();
                ran(points)?;
                base
            }
            None => {
                let named = |error| match error {
                    Error::Metric { metric, reason } => {
                        Error::Pair { pair: number, reason: format!("{metric}: {reason}") }
                    }
                    other => other,
                };
                let (own, base) = one(pair, &mut computing, &mut cost, &mut ran).map_err(named)?;
                scores[number] = Some(own);
                base
            }
        };
        known.insert(pair, (number, base));
        cost.add_points(points, base);
    }
    Ok((scores.into_iter().flatten().collect(), cost))
}

/// The two runs of a pair, and what the metric says of them.
pub(crate) struct PairRuns {
    /// The run that points change.
    pub base: Base,
    /// What was captured of the run that gives.
    pub donor: Captured,
    /// The metric of the clean run.
    pub clean: f64,
    /// The metric of the corrupt run.
    pub corrupt: f64,
    metric: Metric,
    target: Target,
    columns: Index,
    among: Target,
    direction: Direction,
}

impl PairRuns {
    /// Runs the recipient in `network` and the donor in `giver`, each under its plan, reading the last position.
    pub fn new(
        network: &dyn Resume,
        giver: &dyn Network,
        pair: &Pair,
        (metric, direction): (Metric, Direction),
        recipient: Plan,
        donor: Plan,
    ) -> Result<Self> {
        let inputs = |tokens: &[u32]| Inputs::tokens(vec![tokens.to_vec()]);
        let (recipient_ids, donor_ids) = direction.recipient_and_donor(pair);
        let base = network.base(&inputs(recipient_ids)?, &recipient.outputs_at(Index::At(-1)))?;
        let donor = giver.run(&inputs(donor_ids)?, &donor.outputs_at(Index::At(-1)))?;
        let logits = |run: &Run| run.outputs.dims().last().copied().unwrap_or(0);
        if logits(&base.run) != logits(&donor) {
            return Err(Error::Donor(format!(
                "it has {} logits, the network that is changed has {}",
                logits(&donor),
                logits(&base.run)
            )));
        }
        let (clean_run, corrupt_run) = match direction {
            Direction::Denoise => (&donor, &base.run),
            Direction::Noise => (&base.run, &donor),
        };
        let target = Target {
            answers: pair.answers.clone(),
            wrong_answers: pair.wrong_answers.clone(),
            clean: last_logits(clean_run)?,
        };
        let clean = metric.value(&target.clean, &target)?;
        let corrupt = metric.value(&last_logits(corrupt_run)?, &target)?;
        let columns = metric.columns(&target);
        let among = target.among(&columns)?;
        Ok(Self { base, donor: donor.captured, clean, corrupt, metric, target, columns, among, direction })
    }

    /// The metric of the recipient run: of every point that changes nothing.
    pub fn unchanged(&self) -> f64 {
        match self.direction {
            Direction::Denoise => self.corrupt,
            Direction::Noise => self.clean,
        }
    }

    /// The metric of a run that read every logit of the last position.
    pub fn value(&self, run: &Run) -> Result<f64> {
        self.metric.value(&last_logits(run)?, &self.target)
    }

    /// The same of logits `[v]` that have a gradient.
    pub fn differentiable(&self, logits: &Tensor) -> Result<Tensor> {
        self.metric.differentiable(logits, &self.target)
    }

    /// `plan` reading of the last position only what the metric needs; its value is [`Self::value_of_read`].
    pub fn read(&self, plan: Plan) -> Plan {
        plan.outputs_at(Index::At(-1)).columns_at(self.columns.clone())
    }

    /// The metric of a run that read what [`Self::read`] says.
    pub fn value_of_read(&self, run: &Run) -> Result<f64> {
        self.metric.value(&last_logits(run)?, &self.among)
    }
}

/// A plan of these edits.
pub(crate) fn editing(edits: &[Edit]) -> Plan {
    Plan { edits: edits.to_vec(), ..Plan::default() }
}

/// The logits read at the last position.
fn last_logits(run: &Run) -> Result<Vec<f32>> {
    let (_, positions, _) = run.outputs.dims3()?;
    Ok(run.outputs.narrow(1, positions.saturating_sub(1), 1)?.flatten_all()?.to_vec1()?)
}
