//! Running a sweep, or saying what it would cost.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use endoscope_net::{AxisName, Capture, Captured, Change, Edit, Index, Network, Plan, Resume, SiteId, Sites};

use crate::change::{Directions, SweepChange, mean_over_positions};
use crate::error::{Error, Result};
use crate::pairs::{Computing, PairRuns, Progress, Ran, each_pair, editing};
use crate::planner::{Budget, Planner, SweepCost, times};
use crate::prompts::Pair;
use crate::scores::{Means, PairScores, Scores};
use crate::sweep::{Grid, Point, Sweep, longest};

/// Runs a sweep over pairs; `watch` hears of the progress and may end it.
pub fn sweep(
    network: &dyn Resume,
    sweep: &Sweep,
    pairs: &[Pair],
    planner: Planner,
    watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Scores> {
    sweep_across(network, network, sweep, pairs, planner, watch)
}

/// The same with the donor runs of another network: cross-model activation patching (CMAP; Prakash et al. 2024, arXiv
/// 2402.14811, section 6).
///
/// `donor` must have the changed sites in the same shapes and as many logits; that the tokens mean the same in both is for
/// the caller to know. Whatever else is said of the donor run (its metric, KL from it) is then said of `donor`'s.
pub fn sweep_across(
    network: &dyn Resume,
    donor: &dyn Network,
    sweep: &Sweep,
    pairs: &[Pair],
    planner: Planner,
    watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Scores> {
    let grid = sweep.grid(network.sites(), longest(&sweep.over, sweep.align, pairs)?)?;
    check_donor(network.sites(), donor.sites(), &grid.sites)?;
    let (scores, cost) = each_pair(pairs, planner, grid.points.len(), watch, |pair, computing, cost, ran| {
        let laid_out = LaidOut::new(network, donor, sweep, &grid, pair)?;
        let values = match computing {
            Computing::Planned(budget) => laid_out.planned(network, budget, cost, ran)?,
            Computing::Naive => laid_out.naive(network, cost, ran)?,
        };
        let PairRuns { clean, corrupt, base, .. } = laid_out.runs;
        Ok((PairScores { clean, corrupt, values }, base.run.work))
    })?;
    let has = |pair: usize, cell: usize| grid.points[cell].exists(pairs[pair].clean.len());
    let means = Means::of(&scores, has);
    Ok(Scores::new(sweep.clone(), grid.axes, scores, means, cost))
}

/// What a sweep would cost: only the base and donor run of each pair are run.
pub fn explain(network: &dyn Resume, sweep: &Sweep, pairs: &[Pair], planner: Planner) -> Result<SweepCost> {
    explain_across(network, network, sweep, pairs, planner)
}

/// What [`sweep_across`] would cost.
pub fn explain_across(
    network: &dyn Resume,
    donor: &dyn Network,
    sweep: &Sweep,
    pairs: &[Pair],
    planner: Planner,
) -> Result<SweepCost> {
    let grid = sweep.grid(network.sites(), longest(&sweep.over, sweep.align, pairs)?)?;
    check_donor(network.sites(), donor.sites(), &grid.sites)?;
    let watch = |_| ControlFlow::Continue(());
    let (_, cost) = each_pair(pairs, planner, grid.points.len(), watch, |pair, computing, cost, _| {
        let laid_out = LaidOut::new(network, donor, sweep, &grid, pair)?;
        let PairRuns { clean, corrupt, base, .. } = &laid_out.runs;
        match computing {
            Computing::Planned(budget) => {
                let batches = budget.batches(network, base, laid_out.plans()?)?;
                batches.count(cost);
                cost.work += batches.work();
            }
            Computing::Naive => {
                let possible = laid_out.possible.len();
                cost.computed += possible as u64;
                cost.batches += possible as u64;
                cost.work += times(possible, base.run.work);
            }
        }
        Ok((PairScores { clean: *clean, corrupt: *corrupt, values: Vec::new() }, base.run.work))
    })?;
    Ok(cost)
}

/// Whether another network has the sites that are changed, in the same shapes.
fn check_donor(own: &Sites, donors: &Sites, changed: &[SiteId]) -> Result<()> {
    for site in changed.iter().map(|&id| own.get(id)) {
        match donors.iter().find(|donor| donor.name == site.name) {
            None => return Err(Error::Donor(format!("it has no site `{}`", site.name))),
            Some(donor) if donor.axes != site.axes => {
                let (its, ours) = (donor.axes_text(), site.axes_text());
                return Err(Error::Donor(format!("its `{}` has the axes {its}, not {ours}", site.name)));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The plans of the recipient's and the donor's run: what a sweep changes is captured, of the donor only if it is read.
pub(crate) fn capturing(sweep: &Sweep, grid: &Grid, sites: &Sites) -> (Plan, Plan) {
    let capture = |plan: Plan, &id: &SiteId| plan.capture(Capture::new(&sites.get(id).name));
    let donor = match sweep.change.reads_donor() {
        true => grid.sites.iter().fold(Plan::default(), capture),
        false => Plan::default(),
    };
    (grid.sites.iter().fold(editing(&sweep.with), capture), donor)
}

/// A sweep over one pair, ready to run.
struct LaidOut<'a> {
    sweep: &'a Sweep,
    sites: &'a Sites,
    directions: Option<&'a Directions>,
    runs: PairRuns,
    /// Where the moved change takes its values from.
    sources: Captured,
    points: usize,
    /// The points whose change can be made.
    possible: Vec<&'a Point>,
}

impl<'a> LaidOut<'a> {
    fn new(
        network: &'a dyn Resume,
        donor_network: &dyn Network,
        sweep: &'a Sweep,
        grid: &'a Grid,
        pair: &Pair,
    ) -> Result<Self> {
        let sites = network.sites();
        let (recipient, donor) = capturing(sweep, grid, sites);
        let runs = PairRuns::new(network, donor_network, pair, (sweep.metric, sweep.direction), recipient, donor)?;
        let base = &runs.base.run.captured;
        let sources = match sweep.change {
            SweepChange::Mean => {
                let mut means = Captured::default();
                for &id in &grid.sites {
                    let site = sites.get(id);
                    means.insert(site.name.clone(), mean_over_positions(site, base.get(&site.name)?)?);
                }
                means
            }
            _ => runs.donor.clone(),
        };
        let cuts = match &sweep.change {
            SweepChange::Change(Change::KnockOut) => OnlyKeys::of(sites, grid, base)?,
            _ => OnlyKeys::default(),
        };
        let length = pair.clean.len();
        let possible: Vec<&Point> =
            grid.points.iter().filter(|point| point.exists(length) && !cuts.cut_by(point, length)).collect();
        if possible.is_empty() && grid.points.iter().all(|point| cuts.cut_by(point, length)) {
            return Err(Error::Sweep(format!(
                "every point knocks out all keys of some query; go over key (and position), or knock out at the pattern \
                 instead of `{}`",
                sweep.site
            )));
        }
        let directions = grid.directions.as_ref();
        Ok(Self { sweep, sites, directions, runs, sources, points: grid.points.len(), possible })
    }

    /// The plan of a point, reading every output.
    fn plan(&self, point: &Point) -> Result<Plan> {
        let mut plan = editing(&self.sweep.with);
        let row = match (point.direction, self.directions) {
            (Some(number), Some(directions)) => directions.row(number),
            _ => None,
        };
        for &id in &point.sites {
            let name = &self.sites.get(id).name;
            let change = self.sweep.change.at(name, &self.sources, row)?;
            plan.edits.push(Edit { site: name.clone(), select: point.select.clone(), change });
        }
        Ok(plan)
    }

    /// The points that are the same, in the order in which they run.
    fn groups(&self) -> Vec<Vec<&'a Point>> {
        let mut groups: BTreeMap<((usize, usize), usize), Vec<&Point>> = BTreeMap::new();
        for point in &self.possible {
            groups.entry((point.order, point.same)).or_default().push(point);
        }
        groups.into_values().collect()
    }

    /// A plan for each group, reading what the metric needs.
    fn plans(&self) -> Result<Vec<Plan>> {
        let plan = |group: Vec<&'a Point>| Ok(self.runs.read(self.plan(group[0])?));
        self.groups().into_iter().map(plan).collect()
    }

    fn planned(&self, network: &dyn Resume, budget: &mut Budget, cost: &mut SweepCost, ran: Ran) -> Result<Vec<f64>> {
        let groups = self.groups();
        let batches = budget.batches(network, &self.runs.base, self.plans()?)?;
        batches.count(cost);
        let mut values = vec![f64::NAN; self.points];
        let mut fill = |number: usize, value: f64| {
            groups[number].iter().for_each(|point| values[point.cell] = value);
            groups[number].len()
        };
        // What is not possible is done, too.
        let mut done = self.points - self.possible.len();
        done += batches.idle.iter().map(|&number| fill(number, self.runs.unchanged())).sum::<usize>();
        if done > 0 {
            ran(done)?;
        }
        batches.run(network, &self.runs.base, |numbers, runs| {
            let mut done = 0;
            for (&number, run) in numbers.iter().zip(runs) {
                cost.work += run.work;
                done += fill(number, self.runs.value_of_read(&run)?);
            }
            ran(done)
        })?;
        Ok(values)
    }

    fn naive(&self, network: &dyn Resume, cost: &mut SweepCost, ran: Ran) -> Result<Vec<f64>> {
        let mut values = vec![f64::NAN; self.points];
        let impossible = self.points - self.possible.len();
        if impossible > 0 {
            ran(impossible)?;
        }
        for point in &self.possible {
            let run = network.run(&self.runs.base.inputs, &self.plan(point)?.outputs_at(Index::At(-1)))?;
            values[point.cell] = self.runs.value(&run)?;
            cost.computed += 1;
            cost.batches += 1;
            cost.work += run.work;
            ran(1)?;
        }
        Ok(values)
    }
}

/// The queries of attention scores that see one key only, which cannot be knocked out: a softmax over nothing is no number.
#[derive(Default)]
struct OnlyKeys {
    /// Whether attention scores are cut at all.
    scores: bool,
    /// Site, head, query, and that key.
    found: Vec<(SiteId, [usize; 3])>,
}

impl OnlyKeys {
    fn of(sites: &Sites, grid: &Grid, base: &Captured) -> Result<Self> {
        let (mut scores, mut found) = (false, Vec::new());
        for &id in &grid.sites {
            let site = sites.get(id);
            if !site.name.ends_with("hook_attn_scores") {
                continue;
            }
            scores = true;
            for (head, queries) in base.get(&site.name)?.squeeze(0)?.to_vec3::<f32>()?.into_iter().enumerate() {
                for (query, keys) in queries.into_iter().enumerate() {
                    let mut seen = (0..keys.len()).filter(|&key| keys[key] > f32::NEG_INFINITY);
                    if let (Some(key), None) = (seen.next(), seen.next()) {
                        found.push((id, [head, query, key]));
                    }
                }
            }
        }
        Ok(Self { scores, found })
    }

    /// Whether the point knocks out one of them, or all keys of a query.
    fn cut_by(&self, point: &Point, length: usize) -> bool {
        if self.scores && *point.select.on(AxisName::Key) == Index::All {
            return true;
        }
        let chosen = |axis: AxisName, at: usize| match point.select.on(axis) {
            Index::At(only) if *only < 0 && axis != AxisName::Head => *only + length as i64 == at as i64,
            Index::At(only) => *only == at as i64,
            _ => true,
        };
        let axes = [AxisName::Head, AxisName::Query, AxisName::Key];
        let cut = |at: &[usize; 3]| axes.into_iter().zip(at).all(|(axis, &at)| chosen(axis, at));
        self.found.iter().any(|(site, at)| point.sites.contains(site) && cut(at))
    }
}
