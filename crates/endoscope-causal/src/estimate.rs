//! Estimates of a sweep by gradients: what each point's change would do if the metric were linear in the site.
//!
//! With the gradient of the recipient run: attribution patching (Nanda 2023; Kramár et al. 2024, arXiv 2403.00745); for a change to
//! zero it is minus gradient x input. With the gradient averaged on the way from the site's activation to the changed one: integrated
//! gradients (Sundararajan et al. 2017, arXiv 1703.01365, equation 1; for sites of a model: Marks et al. 2024, arXiv
//! 2403.19647, equation 3).

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use endoscope_net::{
    AxisName, Capture, Captured, Change, Edit, Effect, Frame, Index, Inputs, Plan, Prepared, Resume, SiteId,
};
use serde::{Deserialize, Serialize};

use crate::change::{SweepChange, mean_over_positions};
use crate::error::{Error, Result};
use crate::pairs::{PairRuns, Progress, each_pair, editing};
use crate::planner::Planner;
use crate::prompts::Pair;
use crate::run::capturing;
use crate::scores::{Means, PairScores, Scores};
use crate::sweep::{Grid, Sweep, SweepAxis, longest};

/// Which gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimate {
    /// That of the recipient run.
    Gradient,
    /// The mean over so many points, evenly between the site's activation and the changed one (midpoints); each site by itself,
    /// changed as a whole.
    Integrated {
        /// How many points.
        steps: usize,
    },
}

/// Estimates every point of a sweep: the metric of the recipient run plus `(changed - x) . gradient`, summed over what the point
/// changes. `watch` hears of the progress and may end it.
pub fn estimate(
    network: &dyn Resume,
    sweep: &Sweep,
    pairs: &[Pair],
    estimate: Estimate,
    watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Scores> {
    check(sweep, estimate)?;
    let grid = sweep.grid(network.sites(), longest(&sweep.over, sweep.align, pairs)?)?;
    let points = grid.points.len();
    let (scores, cost) = each_pair(pairs, Planner::default(), points, watch, |pair, _, _, ran| {
        let of_pair = OfPair::new(network, sweep, &grid, pair)?;
        let products = of_pair.products(estimate)?;
        let values = (0..points).map(|cell| of_pair.value(cell, &products)).collect::<Result<Vec<f64>>>()?;
        ran(points)?;
        let PairRuns { clean, corrupt, base, .. } = of_pair.runs;
        Ok((PairScores { clean, corrupt, values }, base.run.work))
    })?;
    let has = |pair: usize, cell: usize| grid.points[cell].exists(pairs[pair].clean.len());
    let means = Means::of(&scores, has);
    Ok(Scores::new(sweep.clone(), grid.axes, scores, means, cost))
}

/// Whether the changes of the points add up to the change of the whole site.
fn check(sweep: &Sweep, estimate: Estimate) -> Result<()> {
    let fail = |reason: &str| Err(Error::Sweep(reason.into()));
    let swept = |axis: AxisName| {
        sweep.over.iter().any(|&over| match over {
            SweepAxis::Position => matches!(axis, AxisName::Position | AxisName::Query),
            SweepAxis::Head => axis == AxisName::Head,
            SweepAxis::Key => axis == AxisName::Key,
            SweepAxis::Neuron => axis == AxisName::Dim,
            SweepAxis::Layer | SweepAxis::Direction | SweepAxis::Pair => false,
        })
    };
    if estimate == (Estimate::Integrated { steps: 0 }) {
        return fail("gradients are integrated over at least one step");
    }
    if sweep.over.contains(&SweepAxis::Direction) {
        return fail("points along directions are not estimated; they are cheap to run (endoscope patch)");
    }
    match &sweep.change {
        SweepChange::Change(Change::Mean { over }) if over.iter().any(|&axis| swept(axis)) => {
            fail("a mean over an axis of the sweep changes nothing at a single point")
        }
        SweepChange::Change(Change::ProjectOnto { .. } | Change::ProjectOut { .. }) if swept(AxisName::Dim) => {
            fail("a projection changes whole vectors, so neurons cannot be an axis")
        }
        _ => Ok(()),
    }
}

/// One pair, ready to be estimated.
struct OfPair<'a> {
    network: &'a dyn Resume,
    sweep: &'a Sweep,
    grid: &'a Grid,
    pair: &'a Pair,
    runs: PairRuns,
    /// What each site becomes where everything is changed.
    changed: Captured,
}

impl<'a> OfPair<'a> {
    fn new(network: &'a dyn Resume, sweep: &'a Sweep, grid: &'a Grid, pair: &'a Pair) -> Result<Self> {
        let sites = network.sites();
        let (recipient, donor) = capturing(sweep, grid, sites);
        let runs = PairRuns::new(network, network, pair, (sweep.metric, sweep.direction), recipient, donor)?;
        let mut changed = Captured::default();
        for &id in &grid.sites {
            let site = sites.get(id);
            let before = runs.base.run.captured.get(&site.name)?;
            let change = match sweep.change {
                SweepChange::Mean => Change::Patch { source: mean_over_positions(site, before)?.into() },
                _ => sweep.change.at(&site.name, &runs.donor, None)?,
            };
            let plan = Plan::default().edit(Edit::new(&site.name, change));
            let frame = Frame::whole(1, pair.clean.len());
            let after = match Prepared::new(sites, &plan)?.effect(id, Some(before), frame)? {
                Effect::From { value: Some(value), .. } => value,
                _ => before.clone(),
            };
            changed.insert(site.name.clone(), after);
        }
        Ok(Self { network, sweep, grid, pair, runs, changed })
    }

    /// `(changed - x) * gradient` of each site, without the batch axis.
    fn products(&self, estimate: Estimate) -> Result<Vec<Tensor>> {
        let gradients = match estimate {
            Estimate::Gradient => self.gradients(&self.grid.sites, None)?,
            Estimate::Integrated { steps } => {
                let of_site = |id: &SiteId| Ok(self.gradients(&[*id], Some(steps))?.remove(0));
                self.grid.sites.iter().map(of_site).collect::<Result<_>>()?
            }
        };
        let product = |(id, gradient): (&SiteId, Tensor)| -> Result<Tensor> {
            let site = self.network.sites().get(*id);
            let before = self.runs.base.run.captured.get(&site.name)?;
            let step = (self.changed.get(&site.name)? - before)?.squeeze(0)?;
            // A score that is masked before and after does not change, and has no gradient.
            let step = step.ne(&step)?.where_cond(&step.zeros_like()?, &step)?;
            match step.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?.is_finite() {
                true => Ok((step * gradient)?),
                false => Err(Error::Sweep(format!(
                    "`{}` becomes infinite, which no gradient says anything of; knock out at the pattern instead",
                    site.name
                ))),
            }
        };
        self.grid.sites.iter().zip(gradients).map(product).collect()
    }

    /// The gradients by some sites, without the batch axis: at the recipient run, or the mean over steps towards the changed one.
    fn gradients(&self, ids: &[SiteId], steps: Option<usize>) -> Result<Vec<Tensor>> {
        let sites = self.network.sites();
        let rows = steps.unwrap_or(1);
        let (recipient, _) = self.sweep.direction.recipient_and_donor(self.pair);
        let mut plan = editing(&self.sweep.with).outputs_at(Index::At(-1));
        for &id in ids {
            let site = sites.get(id);
            if steps.is_some() {
                let along: Vec<f32> = (0..rows).map(|row| (row as f32 + 0.5) / rows as f32).collect();
                let shape: Vec<usize> = std::iter::once(rows).chain(site.axes.iter().skip(1).map(|_| 1)).collect();
                let mask = Tensor::from_vec(along, shape, &Device::Cpu)?.into();
                let source = self.changed.get(&site.name)?.clone().into();
                plan = plan.edit(Edit::new(&site.name, Change::Interpolate { source, mask, along: None }));
            }
            plan = plan.capture(Capture::new(&site.name).with_gradient());
        }
        let run = self.network.run(&Inputs::tokens(vec![recipient.to_vec(); rows])?, &plan)?;
        let values = (0..rows).map(|row| self.runs.differentiable(&run.outputs.get(row)?.get(0)?));
        let metric = Tensor::stack(&values.collect::<Result<Vec<_>>>()?, 0)?.sum_all()?;
        let gradients = run.gradients(&metric)?;
        ids.iter().map(|&id| Ok((gradients.get(&sites.get(id).name)?.sum(0)? / rows as f64)?)).collect()
    }

    /// The estimate of one cell; NaN at a position that the pair has not.
    fn value(&self, cell: usize, products: &[Tensor]) -> Result<f64> {
        let length = self.pair.clean.len();
        let point = &self.grid.points[cell];
        if !point.exists(length) {
            return Ok(f64::NAN);
        }
        let mut total = 0.;
        for (id, product) in self.grid.sites.iter().zip(products).filter(|(id, _)| point.sites.contains(id)) {
            let site = self.network.sites().get(*id);
            let mut part = product.clone();
            for (dimension, axis) in site.axes.iter().skip(1).enumerate() {
                let size = part.dim(dimension)?;
                let (start, count) = match point.select.on(axis.name) {
                    Index::At(at) if *at < 0 => (size - at.unsigned_abs() as usize, 1),
                    Index::At(at) => (*at as usize, 1),
                    Index::Range { start, end } => {
                        (*start as usize, end.map_or(size, |end| end as usize) - *start as usize)
                    }
                    _ => (0, size),
                };
                part = part.narrow(dimension, start, count)?;
            }
            total += part.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(self.runs.unchanged() + total)
    }
}
