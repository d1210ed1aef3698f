//! The planner: from the plans of a sweep's points to the batches that compute them.
//!
//! The network knows what a plan costs and shares the base run's work ([`endoscope_net::Resume`]). What is left to decide is
//! here: which points are the same, what need not run at all, what fits into memory together, and how much of the
//! outputs is read. [`Planner::Naive`] runs one whole forward pass per point: the reference.

use std::ops::Range;

use endoscope_net::{Base, Cost, Plan, Resume, Run, Work};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// How a sweep is computed.
#[derive(Debug, Clone, Copy)]
pub enum Planner<'a> {
    /// The least work known, in batches that fit into memory.
    Planned(Memory<'a>),
    /// One whole forward pass per point.
    Naive,
}

/// How many bytes of activations one batch may take. A point that needs more runs alone.
#[derive(Clone, Copy)]
pub enum Memory<'a> {
    /// So many.
    Batch(u64),
    /// What this says, asked once: after the base and donor runs of the longest pair, given what the costliest point needs.
    Ask(&'a dyn Fn(u64) -> Result<u64>),
}

impl std::fmt::Debug for Memory<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Batch(bytes) => write!(f, "Batch({bytes})"),
            Self::Ask(_) => f.write_str("Ask"),
        }
    }
}

impl Planner<'_> {
    /// Batches of at most so many bytes of activations.
    pub fn within(bytes: u64) -> Self {
        Self::Planned(Memory::Batch(bytes))
    }
}

impl Default for Planner<'_> {
    fn default() -> Self {
        Self::within(1 << 30)
    }
}

/// What a sweep costs besides the base and donor runs of each pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SweepCost {
    /// Points of the grid, for all pairs.
    pub points: u64,
    /// Points that are run: not those that equal another one or change nothing.
    pub computed: u64,
    /// Batches that they run in.
    pub batches: u64,
    /// Bytes of activations of the largest batch.
    pub batch_bytes: u64,
    /// Rows computed.
    pub work: Work,
    /// Rows that one whole forward pass per point computes.
    pub naive: Work,
}

impl SweepCost {
    /// Counts points whose naive run costs as much as `base` each.
    pub(crate) fn add_points(&mut self, points: usize, base: Work) {
        self.points += points as u64;
        self.naive += times(points, base);
    }

    pub(crate) fn add_batch(&mut self, costs: &[Cost]) {
        self.computed += costs.len() as u64;
        self.batches += 1;
        self.batch_bytes = self.batch_bytes.max(costs.iter().map(|cost| cost.bytes).sum());
    }
}

/// The work of `count` runs.
pub(crate) fn times(count: usize, Work { attention, mlp, unembedding }: Work) -> Work {
    let count = count as u64;
    Work { attention: count * attention, mlp: count * mlp, unembedding: count * unembedding }
}

/// The budget of a sweep, once it is known.
pub(crate) struct Budget<'a> {
    memory: Memory<'a>,
    known: Option<u64>,
}

impl<'a> Budget<'a> {
    pub fn new(memory: Memory<'a>) -> Self {
        Self { memory, known: None }
    }

    /// The budget; `costs` are those of the first plans that want to run.
    fn get(&mut self, costs: &[Cost]) -> Result<u64> {
        let budget = match (self.known, self.memory) {
            (Some(known), _) => known,
            (None, Memory::Batch(bytes)) => bytes,
            (None, Memory::Ask(ask)) => ask(costs.iter().map(|cost| cost.bytes).max().unwrap_or(0))?,
        };
        self.known = Some(budget);
        Ok(budget)
    }

    /// The batches of plans in their order, and those plans that change nothing left out: their value is the base's.
    pub fn batches(&mut self, network: &dyn Resume, base: &Base, plans: Vec<Plan>) -> Result<Batches> {
        let costs = network.costs(base, &plans)?;
        let (mut running, mut idle) = (Batches::default(), Vec::new());
        for (number, (plan, cost)) in plans.into_iter().zip(costs).enumerate() {
            match cost.work.rows() {
                0 => idle.push(number),
                _ => {
                    running.numbers.push(number);
                    running.plans.push(plan);
                    running.costs.push(cost);
                }
            }
        }
        running.idle = idle;
        if !running.costs.is_empty() {
            running.ranges = ranges(&running.costs, self.get(&running.costs)?);
        }
        Ok(running)
    }
}

/// Plans in batches.
#[derive(Default)]
pub(crate) struct Batches {
    /// The numbers of the plans that change nothing.
    pub idle: Vec<usize>,
    numbers: Vec<usize>,
    plans: Vec<Plan>,
    costs: Vec<Cost>,
    ranges: Vec<Range<usize>>,
}

impl Batches {
    /// What they cost.
    pub fn count(&self, cost: &mut SweepCost) {
        self.ranges.iter().for_each(|range| cost.add_batch(&self.costs[range.clone()]));
    }

    /// The rows that they will compute.
    pub fn work(&self) -> Work {
        let mut work = Work::default();
        self.costs.iter().for_each(|cost| work += cost.work);
        work
    }

    /// Runs them batch by batch; `done` is given each batch's plan numbers and runs.
    pub fn run(
        &self,
        network: &dyn Resume,
        base: &Base,
        mut done: impl FnMut(&[usize], Vec<Run>) -> Result<()>,
    ) -> Result<()> {
        for range in &self.ranges {
            let runs = network.branches(base, &self.plans[range.clone()])?;
            done(&self.numbers[range.clone()], runs)?;
        }
        Ok(())
    }
}

/// Cuts a list where its costs would exceed the budget.
fn ranges(costs: &[Cost], budget: u64) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut held = 0u64;
    for (at, cost) in costs.iter().enumerate() {
        let together = held.saturating_add(cost.bytes);
        match ranges.last_mut() {
            Some(range) if together <= budget => {
                range.end = at + 1;
                held = together;
            }
            _ => {
                ranges.push(at..at + 1);
                held = cost.bytes;
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_cut_at_the_budget_and_a_point_above_it_runs_alone() {
        let costs = [3, 4, 3, 20, 1, 9, 1].map(|bytes| Cost { bytes, ..Cost::default() });
        assert_eq!(ranges(&costs, 10), [0..3, 3..4, 4..6, 6..7]);
        assert_eq!(ranges(&costs, 0).len(), 7);
        assert_eq!(ranges(&costs, u64::MAX).as_slice(), std::slice::from_ref(&(0..7)));
        assert!(ranges(&[], 10).is_empty());
    }
}
