//! Attention knockout: which layers bring what a prompt says at some positions to others (Geva et al. 2023, arXiv 2304.14767,
//! section 5).
//!
//! The edges from a group of key positions to a group of query positions are cut in a window of layers around each layer, and the
//! metric at the last position is read. The control cuts edges from as many other positions, drawn at random.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use endoscope_net::{AxisName, Base, Capture, Change, Edit, Index, Plan, Resume, Size};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::pairs::{PairRuns, Progress};
use crate::places::places;
use crate::planner::{Budget, Planner, SweepCost};
use crate::prompts::Pair;
use crate::statistics::shuffle;
use crate::sweep::Direction;

/// What is cut, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knockout {
    /// How many layers are cut together: those around each layer, as far as there are any.
    pub window: usize,
    /// Which heads of them.
    pub heads: KnockoutHeads,
    /// What is measured.
    pub metric: Metric,
    /// Where the positions of the control come from.
    pub seed: u64,
}

/// Which heads are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnockoutHeads {
    /// All together.
    All,
    /// Each by itself; the window is one layer then.
    Each,
}

/// A prompt, and the edges that are cut in it. Only the clean prompt of the pair is run, and its answers are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The prompt.
    pub pair: Pair,
    /// Key positions.
    pub from: Index,
    /// Query positions.
    pub to: Index,
}

/// What a knockout gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnockoutScores {
    /// What was cut.
    pub knockout: Knockout,
    /// The layers that windows lie around.
    pub layers: Vec<usize>,
    /// How many heads each has a cell for; none where they are cut together.
    pub heads: Option<usize>,
    /// Prompt by prompt.
    pub prompts: Vec<KnockoutPrompt>,
    /// What it took, the control included.
    pub cost: SweepCost,
}

/// What one prompt gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnockoutPrompt {
    /// The metric where nothing is cut.
    pub whole: f64,
    /// The metric with the edges cut, `[layer(, head)]` row-major.
    pub cut: Vec<f64>,
    /// The same with the edges from the control's positions cut; none where the prompt has not enough other positions.
    pub control: Option<Vec<f64>>,
    /// The control's positions.
    pub control_from: Vec<usize>,
}

/// Cuts edges around every layer of every prompt; `watch` hears of the progress and may end it.
pub fn knockout(
    network: &dyn Resume,
    knockout: &Knockout,
    cuts: &[Cut],
    planner: Planner,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<KnockoutScores> {
    let layout = Layout::new(network, knockout)?;
    if cuts.is_empty() {
        return Err(Error::Sweep("there are no prompts".into()));
    }
    let mut budget = match planner {
        Planner::Planned(memory) => Some(Budget::new(memory)),
        Planner::Naive => None,
    };
    let (mut prompts, mut cost) = (Vec::new(), SweepCost::default());
    let mut progress = Progress { done: 0, total: 2 * layout.cells() * cuts.len() };
    let mut ran = |points: usize| {
        progress.done += points;
        match watch(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    };
    ran(0)?;
    for (number, cut) in cuts.iter().enumerate() {
        let fail = |reason: String| Error::Pair { pair: number, reason };
        let group = |name: &str, index: &Index| match places(index, cut.pair.clean.len()) {
            Ok(found) if found.is_empty() => Err(fail(format!("`{name}` holds no position"))),
            Ok(found) => Ok(found.into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()),
            Err(error) => Err(fail(format!("`{name}`: {error}"))),
        };
        let (from, to) = (group("from", &cut.from)?, group("to", &cut.to)?);
        let recipient = layout.sites.iter().fold(Plan::default(), |plan, site| plan.capture(Capture::new(site)));
        let pair = Pair { corrupt: cut.pair.clean.clone(), ..cut.pair.clone() };
        let runs =
            PairRuns::new(network, network, &pair, (knockout.metric, Direction::Noise), recipient, Plan::default())?;
        let seen = layout.seen(&runs.base, &to)?;
        if let Some((query, _)) = seen.iter().find(|(_, keys)| keys.iter().all(|key| from.contains(key))) {
            return Err(fail(format!(
                "position {query} sees nothing but what is cut; leave it out of `to`, or leave it something to look at"
            )));
        }
        let mut generator = ChaCha8Rng::seed_from_u64(knockout.seed.wrapping_add(number as u64));
        let control_from = control(&seen, &from, &mut generator);
        let mut groups = vec![from];
        groups.extend(control_from.clone());
        let plans: Vec<Plan> = groups.iter().flat_map(|from| layout.plans(from, &to)).collect();
        cost.add_points(plans.len(), runs.base.run.work);
        let mut values = match &mut budget {
            Some(budget) => planned(network, &runs, budget, plans, &mut cost, &mut ran)?,
            None => naive(network, &runs, plans, &mut cost, &mut ran)?,
        };
        let cells = layout.cells();
        let found = values.split_off(cells.min(values.len()));
        ran(cells - found.len())?;
        prompts.push(KnockoutPrompt {
            whole: runs.clean,
            cut: values,
            control: control_from.is_some().then_some(found),
            control_from: control_from.unwrap_or_default(),
        });
    }
    Ok(KnockoutScores { knockout: knockout.clone(), layers: layout.layers, heads: layout.heads, prompts, cost })
}

fn planned(
    network: &dyn Resume,
    runs: &PairRuns,
    budget: &mut Budget,
    plans: Vec<Plan>,
    cost: &mut SweepCost,
    ran: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let mut values = vec![runs.unchanged(); plans.len()];
    let batches = budget.batches(network, &runs.base, plans.into_iter().map(|plan| runs.read(plan)).collect())?;
    batches.count(cost);
    ran(batches.idle.len())?;
    batches.run(network, &runs.base, |numbers, found| {
        for (&number, run) in numbers.iter().zip(&found) {
            cost.work += run.work;
            values[number] = runs.value_of_read(run)?;
        }
        ran(numbers.len())
    })?;
    Ok(values)
}

fn naive(
    network: &dyn Resume,
    runs: &PairRuns,
    plans: Vec<Plan>,
    cost: &mut SweepCost,
    ran: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<f64>> {
    let one = |plan: Plan| {
        let run = network.run(&runs.base.inputs, &plan.outputs_at(Index::At(-1)))?;
        cost.computed += 1;
        cost.batches += 1;
        cost.work += run.work;
        ran(1)?;
        runs.value(&run)
    };
    plans.into_iter().map(one).collect()
}

/// What is cut around each layer.
struct Layout {
    window: usize,
    layers: Vec<usize>,
    /// The attention scores of each layer.
    sites: Vec<String>,
    heads: Option<usize>,
}

impl Layout {
    fn new(network: &dyn Resume, knockout: &Knockout) -> Result<Self> {
        let Knockout { window, heads, .. } = *knockout;
        if window == 0 {
            return Err(Error::Sweep("a window holds at least one layer".into()));
        }
        if heads == KnockoutHeads::Each && window != 1 {
            return Err(Error::Sweep(format!(
                "heads of different layers have nothing to do with each other: for each head the window is 1, not {window}"
            )));
        }
        let sites = network.sites();
        let ids = sites.resolve("attn_scores")?;
        let count = |id| {
            let site = sites.get(id);
            site.axis(AxisName::Head).map(|axis| site.axes[axis].size)
        };
        let heads = match (heads, count(ids[0])) {
            (KnockoutHeads::All, _) => None,
            (KnockoutHeads::Each, Some(Size::Fixed(count))) => Some(count),
            (KnockoutHeads::Each, _) => {
                return Err(Error::Sweep(format!("`{}` has no heads", sites.get(ids[0]).name)));
            }
        };
        let of = |id| (sites.get(id).layer, sites.get(id).name.clone());
        let (layers, sites) = ids.into_iter().map(of).filter_map(|(layer, name)| Some((layer?, name))).unzip();
        Ok(Self { window, layers, sites, heads })
    }

    fn cells(&self) -> usize {
        self.layers.len() * self.heads.unwrap_or(1)
    }

    /// The plan of each cell.
    fn plans(&self, from: &[usize], to: &[usize]) -> Vec<Plan> {
        let index = |places: &[usize]| Index::List(places.iter().map(|&at| at as i64).collect());
        let edit = |site: &String| {
            let edit = Edit::new(site, Change::KnockOut);
            edit.at(AxisName::Query, index(to)).at(AxisName::Key, index(from))
        };
        let mut plans = Vec::with_capacity(self.cells());
        for centre in 0..self.sites.len() {
            let start = centre.saturating_sub((self.window - 1) / 2);
            let end = centre.saturating_add(self.window / 2 + 1).min(self.sites.len());
            let window: Vec<Edit> = self.sites[start..end].iter().map(edit).collect();
            let of_head = |head: Option<usize>| match head {
                None => window.clone(),
                Some(head) => {
                    window.iter().map(|edit| edit.clone().at(AxisName::Head, Index::At(head as i64))).collect()
                }
            };
            let heads: Vec<Option<usize>> = self.heads.map_or(vec![None], |count| (0..count).map(Some).collect());
            plans.extend(heads.into_iter().map(|head| Plan { edits: of_head(head), ..Plan::default() }));
        }
        plans
    }

    /// The different sets of keys that each of the queries sees somewhere.
    fn seen(&self, base: &Base, to: &[usize]) -> Result<BTreeSet<(usize, Vec<usize>)>> {
        let mut seen = BTreeSet::new();
        for site in &self.sites {
            for scores in base.run.captured.get(site)?.squeeze(0)?.to_vec3::<f32>()? {
                for &query in to {
                    let keys = scores[query].iter().enumerate().filter(|(_, score)| **score > f32::NEG_INFINITY);
                    seen.insert((query, keys.map(|(key, _)| key).collect()));
                }
            }
        }
        Ok(seen)
    }
}

/// As many other positions as are cut, seen by some query, and such that every query keeps something to look at.
fn control(seen: &BTreeSet<(usize, Vec<usize>)>, cut: &[usize], generator: &mut ChaCha8Rng) -> Option<Vec<usize>> {
    let visible: BTreeSet<usize> = seen.iter().flat_map(|(_, keys)| keys.iter().copied()).collect();
    // What no query sees is no edge; of the group itself neither.
    let wanted = cut.iter().filter(|at| visible.contains(at)).count();
    let mut others: Vec<usize> = visible.into_iter().filter(|at| !cut.contains(at)).collect();
    shuffle(generator, &mut others);
    let mut chosen: Vec<usize> = Vec::new();
    for at in others {
        let leaves = |keys: &Vec<usize>| keys.iter().any(|key| *key != at && !chosen.contains(key));
        if chosen.len() < wanted && seen.iter().all(|(_, keys)| leaves(keys)) {
            chosen.push(at);
        }
    }
    chosen.sort_unstable();
    (chosen.len() == wanted && wanted > 0).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_around_their_layer_and_end_with_the_network() {
        let layout = |window: usize, heads: Option<usize>| Layout {
            window,
            layers: (0..4).collect(),
            sites: (0..4).map(|layer| format!("{layer}")).collect(),
            heads,
        };
        let sites = |window: usize| -> Vec<String> {
            let of = |plan: Plan| plan.edits.iter().map(|edit| edit.site.clone()).collect::<String>();
            layout(window, None).plans(&[0], &[3]).into_iter().map(of).collect()
        };
        assert_eq!(sites(1), ["0", "1", "2", "3"]);
        assert_eq!(sites(2), ["01", "12", "23", "3"]);
        assert_eq!(sites(3), ["01", "012", "123", "23"]);
        assert_eq!(sites(usize::MAX), ["0123"; 4]);
        let each = layout(1, Some(2)).plans(&[0, 1], &[3]);
        assert_eq!(each.len(), 8);
        assert_eq!(each[5].edits[0].select.on(AxisName::Head), &Index::At(1));
        assert_eq!(each[5].edits[0].select.on(AxisName::Key), &Index::List(vec![0, 1]));
    }

    #[test]
    fn the_control_is_another_group_of_the_same_size_that_leaves_something() {
        let seen = |to: &[usize]| to.iter().map(|&query| (query, (0..=query).collect())).collect::<BTreeSet<_>>();
        let drawn =
            |from: &[usize], to: &[usize], seed: u64| control(&seen(to), from, &mut ChaCha8Rng::seed_from_u64(seed));
        let mut found = BTreeSet::new();
        for seed in 0..40 {
            let chosen = drawn(&[1, 2], &[5], seed).unwrap();
            assert!(chosen.len() == 2 && chosen.iter().all(|at| [0, 3, 4, 5].contains(at)));
            found.insert(chosen);
        }
        assert_eq!(found.len(), 6);
        // Query 1 must keep one of its two keys.
        for seed in 0..20 {
            assert!(drawn(&[3, 4], &[1, 5], seed).is_none_or(|chosen| !(chosen.contains(&0) && chosen.contains(&1))));
        }
        assert_eq!(drawn(&[0, 1, 2, 3], &[5], 0), None);
        // A group that no query sees has no control.
        assert_eq!(drawn(&[4], &[2], 0), None);
    }
}
