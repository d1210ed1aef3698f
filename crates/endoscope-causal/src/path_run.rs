//! Running a sweep over paths: what each sender makes of the receivers, then the rest of the network with those.

use std::ops::ControlFlow;

use candle_core::Tensor;
use endoscope_net::{AxisName, Capture, Captured, Change, Edit, Index, Plan, Resume, Run, Selection, SiteId, Sites};

use crate::error::Result;
use crate::pairs::{Computing, PairRuns, Progress, Ran, each_pair, editing};
use crate::path::{PathNorm, PathScores, PathSweep, Paths, Reading, Sender, Source};
use crate::planner::{Budget, Planner, SweepCost};
use crate::prompts::Pair;
use crate::scores::{Means, PairScores};
use crate::sweep::{Align, longest};

/// Runs a sweep over senders; `watch` hears of the progress and may end it.
///
/// [`Planner::Naive`] computes the same with two whole forward passes for each sender, in the first of which every head and
/// MLP but the sender is frozen at the recipient's values: the reference.
pub fn path_sweep(
    network: &dyn Resume,
    sweep: &PathSweep,
    pairs: &[Pair],
    planner: Planner,
    watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<PathScores> {
    longest(&[], Align::Equal, pairs)?;
    let paths = Paths::new(sweep, network.sites())?;
    let (scores, cost) = each_pair(pairs, planner, paths.sources.len(), watch, |pair, computing, cost, ran| {
        let of_pair = PathsOfPair::new(network, sweep, &paths, pair)?;
        let values = match computing {
            Computing::Planned(budget) => of_pair.planned(budget, cost, ran)?,
            Computing::Naive => of_pair.naive(cost, ran)?,
        };
        let PairRuns { clean, corrupt, base, .. } = of_pair.runs;
        // Two runs a sender.
        let mut naive = base.run.work;
        naive += base.run.work;
        Ok((PairScores { clean, corrupt, values }, naive))
    })?;
    let Means { clean, corrupt, values, normalised, spread } = Means::of(&scores, |_, _| true);
    let senders = paths.sources.iter().map(|source| source.sender).collect();
    Ok(PathScores { paths: sweep.clone(), senders, values, normalised, spread, clean, corrupt, pairs: scores, cost })
}

/// A sweep over paths on one pair.
struct PathsOfPair<'a> {
    network: &'a dyn Resume,
    sites: &'a Sites,
    sweep: &'a PathSweep,
    paths: &'a Paths,
    runs: PairRuns,
}

impl<'a> PathsOfPair<'a> {
    fn new(network: &'a dyn Resume, sweep: &'a PathSweep, paths: &'a Paths, pair: &Pair) -> Result<Self> {
        let sites = network.sites();
        let mut sources: Vec<SiteId> = paths.sources.iter().map(|source| source.site).collect();
        sources.dedup();
        let capture = |plan: Plan, ids: &[SiteId]| {
            ids.iter().fold(plan, |plan, &id| {
                match plan.captures.iter().any(|known| known.site == sites.get(id).name) {
                    true => plan,
                    false => plan.capture(Capture::new(&sites.get(id).name)),
                }
            })
        };
        let mut recipient = capture(editing(&sweep.with), &sources);
        for source in &paths.sources {
            if let Some((raw, written)) = way_out(source, sites)? {
                recipient = capture(recipient, &[raw, written]);
            }
        }
        for reading in &paths.readings {
            let received: Vec<SiteId> = reading.receivers.iter().map(|(id, _)| *id).collect();
            recipient = capture(capture(recipient, &[reading.stream]), &received);
            if sweep.norm == PathNorm::Frozen {
                recipient = capture(recipient, reading.scale.as_slice());
            }
        }
        let donor = capture(Plan::default(), &sources);
        let runs = PairRuns::new(network, network, pair, (sweep.metric, sweep.direction), recipient, donor)?;
        Ok(Self { network, sites, sweep, paths, runs })
    }

    fn name(&self, id: SiteId) -> &str {
        &self.sites.get(id).name
    }

    /// Whether what a sender writes is in the stream that a reading reads. The embedding is the whole of its stream.
    fn reaches(&self, source: &Source, reading: &Reading) -> bool {
        source.site < reading.stream || source.sender == Sender::Embedding
    }

    /// What each sender of one site writes in the donor run less what it writes in the recipient run: `[1, position, dim]`.
    fn differences(&self, sources: &[usize], budget: &mut Budget, cost: &mut SweepCost) -> Result<Vec<Tensor>> {
        let sources: Vec<&Source> = sources.iter().map(|&number| &self.paths.sources[number]).collect();
        let Some(first) = sources.first() else { return Ok(Vec::new()) };
        let base = &self.runs.base;
        let Some((raw, written)) = way_out(first, self.sites)? else {
            return sources.into_iter().map(|source| self.difference(source)).collect();
        };
        let written = self.name(written);
        let before = base.run.captured.get(written)?;
        if same_bits(base.run.captured.get(self.name(raw))?, before)? {
            return sources.into_iter().map(|source| self.difference(source)).collect();
        }
        // A norm, a factor or an edit lies between what the heads give and what is written: each head goes through it.
        let nothing = || self.with(Vec::new()).outputs_at(Index::List(Vec::new())).capture(Capture::new(written));
        let plans = sources.iter().map(|source| {
            let mut plan = nothing();
            plan.edits.push(self.donor_edit(source)?);
            Ok(plan)
        });
        let batches = budget.batches(self.network, base, plans.collect::<Result<_>>()?)?;
        batches.count(cost);
        let mut differences = vec![before.zeros_like()?; sources.len()];
        batches.run(self.network, base, |plans, runs| {
            for (&plan, run) in plans.iter().zip(runs) {
                cost.work += run.work;
                differences[plan] = (run.captured.get(written)? - before)?;
            }
            Ok(())
        })?;
        Ok(differences)
    }

    /// The same of one sender that writes directly to the stream.
    fn difference(&self, source: &Source) -> Result<Tensor> {
        let name = self.name(source.site);
        let (donor, recipient) = (self.runs.donor.get(name)?, self.runs.base.run.captured.get(name)?);
        Ok(match source.sender {
            Sender::Head { head, .. } => (donor.narrow(2, head, 1)? - recipient.narrow(2, head, 1)?)?.squeeze(2)?,
            Sender::Mlp { .. } | Sender::Embedding => (donor - recipient)?,
        })
    }

    /// The stream of a reading with the difference added, its norm as it shall be.
    fn reading_edits(&self, reading: &Reading, difference: &Tensor) -> Result<Vec<Edit>> {
        // As a source the difference is read at the sender's positions; as a value it would be broadcast to them.
        let stream = self.name(reading.stream);
        let moved = (self.runs.base.run.captured.get(stream)? + difference)?;
        let patch = Edit::new(stream, Change::Patch { source: moved.into() });
        let mut edits = vec![patch.at(AxisName::Position, self.sweep.positions.clone())];
        edits.extend(self.frozen_norm(reading)?);
        Ok(edits)
    }

    /// The norm of a reading kept as in the recipient run, if that is asked for and there is one.
    fn frozen_norm(&self, reading: &Reading) -> Result<Option<Edit>> {
        let scale = reading.scale.filter(|_| self.sweep.norm == PathNorm::Frozen);
        scale.map(|scale| self.frozen(self.name(scale))).transpose()
    }

    /// A site kept as in the recipient run.
    fn frozen(&self, name: &str) -> Result<Edit> {
        let source = self.runs.base.run.captured.get(name)?.clone().into();
        Ok(Edit::new(name, Change::Patch { source }))
    }

    /// The edit that gives a receiver what it received.
    fn received(&self, (id, heads): &(SiteId, Index), captured: &Captured) -> Result<Edit> {
        let name = self.name(*id);
        let select = match heads {
            Index::All => Selection::default(),
            heads => Selection::default().with(AxisName::Head, heads.clone()),
        };
        Ok(Edit { site: name.into(), select, change: Change::Patch { source: captured.get(name)?.clone().into() } })
    }

    fn with(&self, edits: Vec<Edit>) -> Plan {
        let mut plan = editing(&self.sweep.with);
        plan.edits.extend(edits);
        plan
    }

    /// The plan whose captures are what a reading's receivers read; no output is read.
    fn receiving(&self, reading: &Reading, edits: Vec<Edit>) -> Plan {
        let mut plan = self.with(edits).outputs_at(Index::List(Vec::new()));
        for (id, _) in &reading.receivers {
            if plan.captures.iter().all(|known| known.site != self.name(*id)) {
                plan = plan.capture(Capture::new(self.name(*id)));
            }
        }
        plan
    }

    fn planned(&self, budget: &mut Budget, cost: &mut SweepCost, ran: Ran) -> Result<Vec<f64>> {
        let base = &self.runs.base;
        let mut values = vec![self.runs.unchanged(); self.paths.sources.len()];
        // Each layer's senders at once: what their receivers received must be held until the second run.
        for sources in self.by_site() {
            let mut finals: Vec<(usize, Vec<Edit>)> = Vec::new();
            let (mut first, mut of) = (Vec::new(), Vec::new());
            let differences = self.differences(&sources, budget, cost)?;
            for (&number, difference) in sources.iter().zip(&differences) {
                let source = &self.paths.sources[number];
                for reading in self.paths.readings.iter().filter(|reading| self.reaches(source, reading)) {
                    let edits = self.reading_edits(reading, difference)?;
                    match reading.receivers.is_empty() {
                        true => finals.push((number, edits)),
                        false => {
                            first.push(self.receiving(reading, edits));
                            of.push((number, reading));
                        }
                    }
                }
            }
            let batches = budget.batches(self.network, base, first)?;
            batches.count(cost);
            batches.run(self.network, base, |plans, runs| {
                for (&plan, run) in plans.iter().zip(runs) {
                    cost.work += run.work;
                    let (number, reading) = of[plan];
                    let edits = reading.receivers.iter().map(|receiver| self.received(receiver, &run.captured));
                    let edits = edits.collect::<Result<Vec<_>>>()?;
                    match finals.iter_mut().find(|(known, _)| *known == number) {
                        Some((_, known)) => known.extend(edits),
                        None => finals.push((number, edits)),
                    }
                }
                Ok(())
            })?;
            let plans = finals.iter().map(|(_, edits)| self.runs.read(self.with(edits.clone()))).collect();
            let batches = budget.batches(self.network, base, plans)?;
            batches.count(cost);
            batches.run(self.network, base, |plans, runs| {
                for (&plan, run) in plans.iter().zip(runs) {
                    cost.work += run.work;
                    values[finals[plan].0] = self.runs.value_of_read(&run)?;
                }
                Ok(())
            })?;
            ran(sources.len())?;
        }
        Ok(values)
    }

    /// The numbers of the senders of each site.
    fn by_site(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (number, source) in self.paths.sources.iter().enumerate() {
            match groups.last_mut() {
                Some(group) if self.paths.sources[group[0]].site == source.site => group.push(number),
                _ => groups.push(vec![number]),
            }
        }
        groups
    }

    /// The definition, word for word: the sender as in the donor run, everything else on the way frozen.
    fn naive(&self, cost: &mut SweepCost, ran: Ran) -> Result<Vec<f64>> {
        let everything = Plan::default().capture(Capture::new("result")).capture(Capture::new("mlp_out"));
        let everything = Plan { edits: self.sweep.with.clone(), ..everything };
        let frozen = self.network.run(&self.runs.base.inputs, &everything)?.captured;
        let mut values = Vec::new();
        for source in &self.paths.sources {
            let (mut value, mut edits) = (self.runs.unchanged(), Vec::new());
            for reading in &self.paths.readings {
                let mut plan = self.with(Vec::new());
                // The embedding is before everything that is frozen.
                let own = self.donor_edit(source)?;
                if source.sender == Sender::Embedding {
                    plan.edits.push(own.clone());
                }
                for (name, activation) in frozen.iter() {
                    if self.sites.resolve_one(name)? < reading.stream {
                        plan.edits.push(Edit::new(name, Change::Patch { source: activation.clone().into() }));
                    }
                }
                if source.sender != Sender::Embedding && self.reaches(source, reading) {
                    plan.edits.push(own);
                }
                plan.edits.extend(self.frozen_norm(reading)?);
                for (id, _) in &reading.receivers {
                    plan = plan.capture(Capture::new(self.name(*id)));
                }
                let run = self.whole(plan, cost)?;
                match reading.receivers.is_empty() {
                    true => value = self.runs.value(&run)?,
                    false => {
                        for receiver in &reading.receivers {
                            edits.push(self.received(receiver, &run.captured)?);
                        }
                    }
                }
            }
            if !edits.is_empty() {
                value = self.runs.value(&self.whole(self.with(edits), cost)?)?;
            }
            cost.computed += 1;
            values.push(value);
            ran(1)?;
        }
        Ok(values)
    }

    /// A sender's write as in the donor run.
    fn donor_edit(&self, source: &Source) -> Result<Edit> {
        let name = self.name(source.site);
        let patch = Change::Patch { source: self.runs.donor.get(name)?.clone().into() };
        let edit = Edit::new(name, patch).at(AxisName::Position, self.sweep.positions.clone());
        Ok(match source.sender {
            Sender::Head { head, .. } => edit.at(AxisName::Head, Index::At(head as i64)),
            _ => edit,
        })
    }

    fn whole(&self, plan: Plan, cost: &mut SweepCost) -> Result<Run> {
        let run = self.network.run(&self.runs.base.inputs, &plan.outputs_at(Index::At(-1)))?;
        cost.work += run.work;
        cost.batches += 1;
        Ok(run)
    }
}

/// What the heads of a layer put out together, and what of it is added to the stream.
fn way_out(source: &Source, sites: &Sites) -> Result<Option<(SiteId, SiteId)>> {
    Ok(match source.sender {
        Sender::Head { layer, .. } => Some((
            sites.resolve_one(&format!("attn_out_raw.{layer}"))?,
            sites.resolve_one(&format!("attn_out.{layer}"))?,
        )),
        Sender::Mlp { .. } | Sender::Embedding => None,
    })
}

fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool> {
    let bits = |x: &Tensor| -> Result<Vec<u32>> {
        Ok(x.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    };
    Ok(bits(a)? == bits(b)?)
}
