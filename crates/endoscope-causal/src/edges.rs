//! Scores of edges: what the metric becomes when one edge alone carries the other run's activation, exactly or estimated.
//!
//! Exactly: each edge patched in a run of its own (Conmy et al. 2023, arXiv 2304.14997). Estimated by gradients: edge attribution
//! patching, EAP (Syed et al. 2023, arXiv 2310.10348), and with integrated gradients, EAP-IG (Hanna et al. 2024, arXiv
//! 2403.17806).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use endoscope_net::{AxisName, Capture, Change, Edit, Index, Inputs, Plan, Resume, Sites};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::graph::{Edge, Graph, Reader};
use crate::metric::Metric;
use crate::pairs::{Computing, PairRuns, Progress, Ran, each_pair};
use crate::planner::{Budget, Planner, SweepCost};
use crate::prompts::Pair;
use crate::scores::{Means, PairScores};
use crate::sweep::{Align, Direction, longest};
use crate::writes::{capturing_streams, capturing_writes, first_difference, writes};

/// How many bytes the copies of the stream that heads read may take at once: of larger arrays the allocator gives every page back,
/// and clearing new ones costs as much as the arithmetic.
const COPIES: usize = 12 << 20;

/// How edges are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeMethod {
    /// Every edge patched by itself.
    Exact,
    /// `(donor write - recipient write) . gradient of the metric at the reader's input`, at the recipient run: EAP.
    Gradient,
    /// The same with the gradient averaged over inputs between the donor's embedding and the recipient's: EAP-IG. Of `steps`
    /// points the first is the donor's, and the recipient's is left out, as in the authors' code.
    IntegratedInputs {
        /// How many points.
        steps: usize,
    },
    /// The same with the gradient averaged over writes of the edge's own node (all heads of its layer together) between the
    /// donor's and the recipient's; the donor's is left out.
    IntegratedWrites {
        /// How many points.
        steps: usize,
    },
}

/// What is scored, as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeSweep {
    /// How.
    pub method: EdgeMethod,
    /// What is measured.
    pub metric: Metric,
    /// Which run gives.
    pub direction: Direction,
}

impl EdgeSweep {
    /// The logit difference of the clean run whose edges become corrupt.
    pub fn new(method: EdgeMethod) -> Self {
        Self { method, metric: Metric::LogitDiff, direction: Direction::Noise }
    }
}

/// The scores of all edges, averaged over prompt pairs.
#[derive(Debug, Clone)]
pub struct EdgeScores {
    /// What was asked.
    pub sweep: EdgeSweep,
    /// The graph, which numbers the edges.
    pub graph: Graph,
    /// What patching an edge changes of the metric of the recipient run, edge by edge.
    pub effects: Vec<f64>,
    /// Standard deviation of the effects over pairs (of the sample).
    pub spread: Vec<Option<f64>>,
    /// The metric of the clean run, averaged.
    pub clean: f64,
    /// The metric of the corrupt run, averaged.
    pub corrupt: f64,
    /// The effects of each pair.
    pub pairs: Vec<PairScores>,
    /// What it took; for estimates only the number of edges.
    pub cost: SweepCost,
}

impl EdgeScores {
    /// Each edge with its effect, the largest first (ties in the order of the network).
    pub fn ranked(&self) -> Vec<(Edge, f64)> {
        let mut ranked: Vec<(Edge, f64)> = self.graph.edges().zip(self.effects.iter().copied()).collect();
        ranked.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        ranked
    }
}

/// Scores every edge; `watch` hears of the progress and may end it.
///
/// [`Planner::Naive`] computes exact scores with a whole forward pass for each edge: the reference.
pub fn edge_scores(
    network: &dyn Resume,
    sweep: &EdgeSweep,
    pairs: &[Pair],
    planner: Planner,
    watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<EdgeScores> {
    longest(&[], Align::Equal, pairs)?;
    if let EdgeMethod::IntegratedInputs { steps: 0 } | EdgeMethod::IntegratedWrites { steps: 0 } = sweep.method {
        return Err(Error::Circuit("gradients are integrated over at least one step".into()));
    }
    let graph = Graph::new(network.sites())?;
    let (scores, cost) = each_pair(pairs, planner, graph.len(), watch, |pair, computing, cost, ran| {
        let of_pair = EdgesOfPair::new(network, sweep, &graph, pair)?;
        let values = match sweep.method {
            EdgeMethod::Exact => of_pair.exact(computing, cost, ran)?,
            method => {
                let effects = of_pair.estimated(method)?;
                ran(effects.len())?;
                effects
            }
        };
        let PairRuns { clean, corrupt, base, .. } = of_pair.runs;
        Ok((PairScores { clean, corrupt, values }, base.run.work))
    })?;
    let Means { clean, corrupt, values: effects, spread, .. } = Means::of(&scores, |_, _| true);
    Ok(EdgeScores { sweep: *sweep, graph, effects, spread, clean, corrupt, pairs: scores, cost })
}

/// One pair, ready to be scored.
struct EdgesOfPair<'a> {
    network: &'a dyn Resume,
    sites: &'a Sites,
    graph: &'a Graph,
    pair: &'a Pair,
    direction: Direction,
    runs: PairRuns,
    /// What each node writes in the donor run less what it writes in the recipient run: `[node, position, dim]`.
    difference: Tensor,
}

impl<'a> EdgesOfPair<'a> {
    fn new(network: &'a dyn Resume, sweep: &EdgeSweep, graph: &'a Graph, pair: &'a Pair) -> Result<Self> {
        let sites = network.sites();
        let donor = capturing_writes(Plan::default(), sites);
        let recipient = capturing_streams(donor.clone(), sites);
        let runs = PairRuns::new(network, network, pair, (sweep.metric, sweep.direction), recipient, donor)?;
        let difference = (writes(graph, &runs.donor)? - writes(graph, &runs.base.run.captured)?)?;
        Ok(Self { network, sites, graph, pair, direction: sweep.direction, runs, difference })
    }

    /// The plan that patches an edge alone; none if the two runs write the same there. `moved` holds streams with one node's write
    /// as in the donor run, which the edges into all readers of a stream share.
    fn patched(
        &self,
        to: Reader,
        node: usize,
        first: usize,
        moved: &mut HashMap<(String, usize), Tensor>,
    ) -> Result<Option<Plan>> {
        let (_, positions, width) = self.difference.dims3()?;
        if first == positions {
            return Ok(None);
        }
        let stream = self.graph.stream_of(to);
        let captured = self.runs.base.run.captured.get(&stream)?;
        let moved = match moved.entry((stream, node)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(empty) => empty.insert((captured + self.difference.narrow(0, node, 1)?)?),
        };
        let (id, head) = to.site(self.sites)?;
        let site = self.sites.get(id);
        let at = Index::Range { start: first as i64, end: None };
        let patch = |source: Tensor| {
            Edit::new(&site.name, Change::Patch { source: source.into() }).at(AxisName::Position, at.clone())
        };
        let edit = match head {
            None => patch(moved.clone()),
            Some(head) => {
                let heads = site.fixed_size() / width;
                let copies = moved.unsqueeze(2)?.broadcast_as((1, positions, heads, width))?;
                patch(copies).at(AxisName::Head, Index::At(head as i64))
            }
        };
        Ok(Some(Plan::default().edit(edit)))
    }

    fn exact(&self, computing: &mut Computing, cost: &mut SweepCost, ran: Ran) -> Result<Vec<f64>> {
        let nodes = self.graph.nodes().len();
        let first = (0..nodes).map(|node| first_difference(&self.difference.narrow(0, node, 1)?));
        let first = first.collect::<Result<Vec<_>>>()?;
        let mut effects = vec![0.; self.graph.len()];
        let unchanged = self.runs.unchanged();
        // Reader by reader, so that only the plans of one are held, and only the streams of one layer.
        let mut moved = HashMap::new();
        for (reader, &to) in self.graph.readers().iter().enumerate() {
            let edges = self.graph.edges_into(reader);
            let (mut plans, mut numbers) = (Vec::new(), Vec::new());
            moved.retain(|(stream, _), _| *stream == self.graph.stream_of(to));
            for (node, number) in edges.clone().enumerate() {
                if let Some(plan) = self.patched(to, node, first[node], &mut moved)? {
                    plans.push(plan);
                    numbers.push(number);
                }
            }
            match computing {
                Computing::Planned(budget) => self.planned(plans, &numbers, budget, cost, &mut effects)?,
                Computing::Naive => {
                    for (plan, number) in plans.into_iter().zip(numbers) {
                        let run = self.network.run(&self.runs.base.inputs, &plan.outputs_at(Index::At(-1)))?;
                        effects[number] = self.runs.value(&run)? - unchanged;
                        cost.computed += 1;
                        cost.batches += 1;
                        cost.work += run.work;
                    }
                }
            }
            ran(edges.len())?;
        }
        Ok(effects)
    }

    fn planned(
        &self,
        plans: Vec<Plan>,
        numbers: &[usize],
        budget: &mut Budget,
        cost: &mut SweepCost,
        effects: &mut [f64],
    ) -> Result<()> {
        let (_, positions, width) = self.difference.dims3()?;
        let together = (COPIES / (4 * self.graph.heads * positions * width)).max(8);
        let mut plans = plans.into_iter().map(|plan| self.runs.read(plan));
        for numbers in numbers.chunks(together) {
            let some = plans.by_ref().take(together).collect();
            let batches = budget.batches(self.network, &self.runs.base, some)?;
            batches.count(cost);
            batches.run(self.network, &self.runs.base, |plans, runs| {
                for (&plan, run) in plans.iter().zip(runs) {
                    cost.work += run.work;
                    effects[numbers[plan]] = self.runs.value_of_read(&run)? - self.runs.unchanged();
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn estimated(&self, method: EdgeMethod) -> Result<Vec<f64>> {
        let nodes = self.graph.nodes().len();
        match method {
            EdgeMethod::Exact | EdgeMethod::Gradient => {
                self.products(&self.gradients(1, &|_| Ok(Vec::new()))?, 0..nodes)
            }
            EdgeMethod::IntegratedInputs { steps } => {
                let donor = |at: usize| 1. - at as f32 / steps as f32;
                let site = "blocks.0.hook_resid_pre";
                let gradients =
                    self.gradients(steps, &|rows| Ok(vec![self.between(site, rows.map(donor).collect())?]))?;
                self.products(&gradients, 0..nodes)
            }
            EdgeMethod::IntegratedWrites { steps } => {
                let donor = |at: usize| 1. - (at + 1) as f32 / steps as f32;
                let heads = self.graph.heads;
                let mut groups = vec![("blocks.0.hook_resid_pre".to_string(), 0..1)];
                for layer in 0..self.graph.layers {
                    let first = 1 + layer * (heads + 1);
                    groups.push((format!("blocks.{layer}.attn.hook_result"), first..first + heads));
                    groups.push((format!("blocks.{layer}.hook_mlp_out"), first + heads..first + heads + 1));
                }
                let mut effects = vec![0.; self.graph.len()];
                for (site, nodes) in groups {
                    let edits =
                        |rows: std::ops::Range<usize>| Ok(vec![self.between(&site, rows.map(donor).collect())?]);
                    let own = self.products(&self.gradients(steps, &edits)?, nodes)?;
                    effects.iter_mut().zip(own).for_each(|(effect, own)| *effect += own);
                }
                Ok(effects)
            }
        }
    }

    /// A site between the recipient run (0) and the donor run (1), each row of a batch somewhere else.
    fn between(&self, site: &str, donor: Vec<f32>) -> Result<Edit> {
        let axes = self.sites.get(self.sites.resolve_one(site)?).axes.len();
        let shape: Vec<usize> = std::iter::once(donor.len()).chain(std::iter::repeat_n(1, axes - 1)).collect();
        let mask = Tensor::from_vec(donor, shape, &Device::Cpu)?.into();
        let source = self.runs.donor.get(site)?.clone().into();
        Ok(Edit::new(site, Change::Interpolate { source, mask, along: None }))
    }

    /// The mean over `rows` runs of the recipient's tokens of the metric's gradients by what each reader reads:
    /// `[reader, position dim]`. `edits` says what is done in a part of the rows.
    fn gradients(&self, rows: usize, edits: &dyn Fn(std::ops::Range<usize>) -> Result<Vec<Edit>>) -> Result<Tensor> {
        let (_, positions, width) = self.difference.dims3()?;
        let (layers, readers) = (self.graph.layers, self.graph.readers().len());
        // As many rows at once as have their gradients in a quarter of a gigabyte.
        let together = ((1 << 26) / (readers * positions * width).max(1)).clamp(1, rows);
        let last = format!("blocks.{}.hook_resid_post", layers - 1);
        let kinds = ["hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_input"];
        let mut names: Vec<String> =
            (0..layers).flat_map(|layer| kinds.map(|kind| format!("blocks.{layer}.{kind}"))).collect();
        names.push(last);
        let (recipient, _) = self.direction.recipient_and_donor(self.pair);
        let mut total: Option<Tensor> = None;
        for start in (0..rows).step_by(together) {
            let those = start..(start + together).min(rows);
            let count = those.len();
            let mut plan = Plan { edits: edits(those)?, ..Plan::default() }.outputs_at(Index::At(-1));
            plan = names.iter().fold(plan, |plan, name| plan.capture(Capture::new(name).with_gradient()));
            let run = self.network.run(&Inputs::tokens(vec![recipient.to_vec(); count])?, &plan)?;
            let mut metric: Option<Tensor> = None;
            for row in 0..count {
                let value = self.runs.differentiable(&run.outputs.get(row)?.get(0)?)?;
                metric = Some(match metric {
                    Some(sum) => (sum + value)?,
                    None => value,
                });
            }
            let Some(metric) = metric else { continue };
            let gradients = run.gradients(&metric)?;
            let by_reader = names.iter().map(|name| -> Result<Tensor> {
                let gradient = gradients.get(name)?.sum(0)?;
                let gradient = if gradient.rank() == 3 {
                    gradient.transpose(0, 1)?.contiguous()?
                } else {
                    gradient.unsqueeze(0)?
                };
                Ok(gradient.reshape((gradient.dim(0)?, positions * width))?)
            });
            let part = Tensor::cat(&by_reader.collect::<Result<Vec<_>>>()?, 0)?;
            total = Some(match total {
                Some(total) => (total + part)?,
                None => part,
            });
        }
        match total {
            Some(total) => Ok((total / rows as f64)?),
            None => crate::writes::zeros(&[readers, positions * width]),
        }
    }

    /// `difference . gradient` of every edge from `nodes`; 0 for the others.
    fn products(&self, gradients: &Tensor, nodes: std::ops::Range<usize>) -> Result<Vec<f64>> {
        let differences = self.difference.narrow(0, nodes.start, nodes.len())?.flatten_from(1)?;
        let products = gradients.matmul(&differences.t()?)?.to_vec2::<f32>()?;
        let mut effects = vec![0.; self.graph.len()];
        for (reader, products) in products.into_iter().enumerate() {
            let edges = self.graph.edges_into(reader);
            for (node, product) in nodes.clone().zip(products).take_while(|(node, _)| *node < edges.len()) {
                effects[edges.start + node] = f64::from(product);
            }
        }
        Ok(effects)
    }
}
