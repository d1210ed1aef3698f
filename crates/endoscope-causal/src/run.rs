//! Running a sweep.

use std::ops::ControlFlow;

use endoscope_net::{Capture, Captured, Change, Edit, Index, Inputs, Plan, Resume, Run, Sites};

use crate::error::{Error, Result};
use crate::metric::Target;
use crate::planner::{Planner, batches, rows_at_once};
use crate::prompts::Pair;
use crate::sweep::{Direction, Grid, PairScores, Point, Scores, Sweep, common_length};

/// How far a sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Points done.
    pub done: usize,
    /// Points in all.
    pub total: usize,
}

/// Runs a sweep over pairs; `watch` hears of the progress and may end it.
pub fn sweep(
    network: &dyn Resume,
    sweep: &Sweep,
    pairs: &[Pair],
    planner: Planner,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Scores> {
    common_length(sweep, pairs)?;
    let mut scores = Vec::with_capacity(pairs.len());
    let mut axes = Vec::new();
    let mut progress = Progress { done: 0, total: 0 };
    for (number, pair) in pairs.iter().enumerate() {
        let grid = sweep.grid(network.sites(), pair.clean.len())?;
        progress.total = grid.points.len() * pairs.len();
        let mut ran = |points: usize| -> Result<()> {
            progress.done += points;
            match watch(progress) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Interrupted),
            }
        };
        ran(0)?;
        scores.push(one_pair(network, sweep, &grid, pair, planner, &mut ran).map_err(|error| match error {
            Error::Metric { metric, reason } => Error::Pair { pair: number, reason: format!("{metric}: {reason}") },
            other => other,
        })?);
        axes = grid.axes;
    }
    Ok(Scores::new(sweep.clone(), axes, scores))
}

fn one_pair(
    network: &dyn Resume,
    sweep: &Sweep,
    grid: &Grid,
    pair: &Pair,
    planner: Planner,
    ran: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<PairScores> {
    let sites = network.sites();
    let mut capture = Plan::default().outputs_at(Index::At(-1));
    for &id in &grid.sites {
        capture = capture.capture(Capture::new(&sites.get(id).name));
    }
    let plain = Plan::default().outputs_at(Index::At(-1));
    let inputs = |tokens: &[u32]| Inputs::tokens(vec![tokens.to_vec()]);
    let (recipient, donor) = match sweep.direction {
        Direction::Denoise => (&pair.corrupt, &pair.clean),
        Direction::Noise => (&pair.clean, &pair.corrupt),
    };
    let base = network.base(&inputs(recipient)?, &plain)?;
    let donor = network.run(&inputs(donor)?, &capture)?;
    let (clean_run, corrupt_run) = match sweep.direction {
        Direction::Denoise => (&donor, &base.run),
        Direction::Noise => (&base.run, &donor),
    };
    let target = Target {
        answers: pair.answers.clone(),
        wrong_answers: pair.wrong_answers.clone(),
        clean: rows(clean_run)?.remove(0),
    };
    let value = |logits: &[f32]| sweep.metric.value(logits, &target);
    let clean = value(&target.clean)?;
    let corrupt = value(&rows(corrupt_run)?.remove(0))?;
    let mut values = vec![f64::NAN; grid.points.len()];
    match planner {
        Planner::Planned { memory } => {
            let at_once = rows_at_once(sites, pair.clean.len(), memory);
            for batch in batches(&grid.points, at_once) {
                let plans: Vec<Plan> = batch
                    .points
                    .iter()
                    .map(|point| patch(plain.clone(), sites, &donor.captured, point))
                    .collect::<Result<_>>()?;
                for (point, run) in batch.points.iter().zip(network.branches(&base, &plans)?) {
                    values[point.cell] = value(&rows(&run)?[0])?;
                }
                ran(batch.points.len())?;
            }
        }
        Planner::Naive => {
            for point in &grid.points {
                let plan = patch(plain.clone(), sites, &donor.captured, point)?;
                let run = network.run(&base.inputs, &plan)?;
                values[point.cell] = value(&rows(&run)?[0])?;
                ran(1)?;
            }
        }
    }
    Ok(PairScores { clean, corrupt, values })
}

/// `plan` with the patch of one point.
fn patch(mut plan: Plan, sites: &Sites, donor: &Captured, point: &Point) -> Result<Plan> {
    for &id in &point.sites {
        let name = &sites.get(id).name;
        let mut edit = Edit::new(name, Change::Patch { source: donor.get(name)?.clone().into() });
        edit.select = point.select.clone();
        plan = plan.edit(edit);
    }
    Ok(plan)
}

/// The logits of each row at the last position.
fn rows(run: &Run) -> Result<Vec<Vec<f32>>> {
    let (_, positions, _) = run.outputs.dims3()?;
    Ok(run.outputs.narrow(1, positions - 1, 1)?.squeeze(1)?.to_vec2()?)
}
