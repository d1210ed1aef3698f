//! Running circuits: each reader reads what the kept edges carry now, and what the others carry when ablated.
//!
//! The network is gone through half a layer at a time. What a half reads is put together from the writes of the nodes before it,
//! which the circuit itself has made; then that half alone is run ([`endoscope_net::Resume`] computes nothing else). So a
//! circuit costs one forward pass, many run together, and a change of a late edge costs the upper layers only.

use candle_core::Tensor;
use endoscope_net::{Capture, Captured, Change, Edit, Index, Plan, Resume, SiteId, Sites};
use serde::{Deserialize, Serialize};

use crate::circuit::Circuit;
use crate::error::{Error, Result};
use crate::graph::{Graph, Part, Reader};
use crate::metric::Metric;
use crate::pairs::PairRuns;
use crate::prompts::Pair;
use crate::sweep::{Align, Direction, longest};
use crate::writes::{capturing_streams, capturing_writes, head_factors, writes};

/// What edges outside a circuit carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ablation {
    /// What the node writes in the corrupt run (resampling).
    #[default]
    Patch,
    /// Nothing.
    Zero,
    /// What the node writes on average over the corrupt prompts, at each position; all of one length.
    Mean,
}

/// Circuits of a network on prompt pairs, ready to be run.
pub struct CircuitRuns<'a> {
    network: &'a dyn Resume,
    /// The graph of the network.
    pub graph: Graph,
    /// What is measured.
    pub metric: Metric,
    pairs: Vec<OfPair>,
}

/// One pair.
struct OfPair {
    runs: PairRuns,
    factors: Vec<f64>,
    /// What each block of nodes writes when it is ablated: `[node, position dim]`.
    ablated: Vec<Tensor>,
    /// What the clean run writes less that.
    clean: Vec<Tensor>,
    /// What each stage reads when everything is ablated: `[position, dim]`.
    streams: Vec<Tensor>,
    positions: usize,
}

/// A circuit on its way: what each block of nodes has written, less what it writes when it is ablated.
type Written = Vec<Tensor>;

/// Half a layer, or the end: what is run at once. Stage 2l is the attention of layer l, 2l + 1 its MLP; the last one is the
/// unembedding. Block 0 of nodes is the input, and block t + 1 is what stage t writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stage(usize);

impl<'a> CircuitRuns<'a> {
    /// Runs the clean and the corrupt prompt of every pair.
    pub fn new(network: &'a dyn Resume, pairs: &[Pair], metric: Metric, ablation: Ablation) -> Result<Self> {
        longest(&[], Align::Equal, pairs)?;
        let sites = network.sites();
        let graph = Graph::new(sites)?;
        let mut both = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let recipient = capturing_streams(capturing_writes(Plan::default(), sites), sites);
            let donor = capturing_writes(Plan::default(), sites);
            let runs = PairRuns::new(network, network, pair, (metric, Direction::Noise), recipient, donor)?;
            let ablated = match ablation {
                Ablation::Patch | Ablation::Mean => writes(&graph, &runs.donor)?,
                Ablation::Zero => writes(&graph, &runs.base.run.captured)?.zeros_like()?,
            };
            both.push((runs, ablated));
        }
        if ablation == Ablation::Mean {
            let all: Vec<&Tensor> = both.iter().map(|(_, ablated)| ablated).collect();
            if let Some(other) = all.iter().find(|other| other.dims() != all[0].dims()) {
                return Err(Error::Circuit(format!(
                    "a mean at each position needs corrupt prompts of one length, not of {} and {} tokens",
                    all[0].dim(1)?,
                    other.dim(1)?
                )));
            }
            let mean = Tensor::stack(&all, 0)?.mean(0)?;
            both.iter_mut().for_each(|(_, ablated)| *ablated = mean.clone());
        }
        let pairs = both.into_iter().map(|(runs, ablated)| OfPair::new(&graph, runs, &ablated));
        let pairs = pairs.collect::<Result<_>>()?;
        Ok(Self { network, graph, metric, pairs })
    }

    /// The metric of the whole network, averaged over pairs.
    pub fn whole(&self) -> f64 {
        self.mean(|pair| pair.runs.clean)
    }

    fn mean(&self, of: impl Fn(&OfPair) -> f64) -> f64 {
        self.pairs.iter().map(of).sum::<f64>() / self.pairs.len() as f64
    }

    /// The metric of each circuit, averaged over pairs.
    pub fn values(&self, circuits: &[Circuit]) -> Result<Vec<f64>> {
        let of_pairs = self.of_pairs(circuits)?;
        Ok(of_pairs.into_iter().map(|values| values.iter().sum::<f64>() / values.len() as f64).collect())
    }

    /// The metric of each circuit on each pair: `[circuit][pair]`.
    pub fn of_pairs(&self, circuits: &[Circuit]) -> Result<Vec<Vec<f64>>> {
        self.starting_at(Stage(0), circuits)
    }

    /// The same of circuits that keep every edge below the reader of this number.
    pub(crate) fn values_above(&self, reader: usize, circuits: &[Circuit]) -> Result<Vec<f64>> {
        let of_pairs = self.starting_at(Stage::of(&self.graph, reader), circuits)?;
        Ok(of_pairs.into_iter().map(|values| values.iter().sum::<f64>() / values.len() as f64).collect())
    }

    fn starting_at(&self, first: Stage, circuits: &[Circuit]) -> Result<Vec<Vec<f64>>> {
        if let Some(circuit) = circuits.iter().find(|circuit| circuit.size() != self.graph.len()) {
            return Err(Error::Circuit(format!(
                "a circuit of a graph of {} edges is not one of this network, which has {}",
                circuit.size(),
                self.graph.len()
            )));
        }
        let mut values = vec![Vec::with_capacity(self.pairs.len()); circuits.len()];
        for pair in &self.pairs {
            // What a circuit holds: the writes, twice, and the copies that the heads of a layer read.
            let numbers = (2 * self.graph.nodes().len() + 6 * self.graph.heads) * pair.positions * self.graph.d_model;
            let together = ((1usize << 28) / numbers.max(1)).max(1);
            for (start, circuits) in (0..circuits.len()).step_by(together).zip(circuits.chunks(together)) {
                let found = pair.run(self.network, &self.graph, first, circuits)?;
                found.into_iter().enumerate().for_each(|(at, value)| values[start + at].push(value));
            }
        }
        Ok(values)
    }
}

impl Stage {
    fn of(graph: &Graph, reader: usize) -> Self {
        match graph.readers()[reader] {
            Reader::Head { layer, .. } => Self(2 * layer),
            Reader::Mlp { layer } => Self(2 * layer + 1),
            Reader::Logits => Self(2 * graph.layers),
        }
    }

    /// The numbers of its readers.
    fn readers(self, graph: &Graph) -> std::ops::Range<usize> {
        let attention = graph.heads + 2 * graph.kv_heads;
        let start = self.0 / 2 * (attention + 1);
        match self.0 {
            end if end == 2 * graph.layers => start..start + 1,
            half if half % 2 == 0 => start..start + attention,
            _ => start + attention..start + attention + 1,
        }
    }

    /// How many blocks of nodes it reads.
    fn blocks(self, graph: &Graph) -> usize {
        match self.0 % 2 == 1 && graph.parallel {
            true => self.0,
            false => self.0 + 1,
        }
    }
}

impl OfPair {
    fn new(graph: &Graph, runs: PairRuns, ablated: &Tensor) -> Result<Self> {
        let captured = &runs.base.run.captured;
        let clean = writes(graph, captured)?;
        let (_, positions, width) = clean.dims3()?;
        let difference = (&clean - ablated)?;
        let per_layer = graph.heads + 1;
        let of_layer = |layer: usize| {
            let first = 1 + layer * per_layer;
            [first..first + graph.heads, first + graph.heads..first + per_layer]
        };
        let blocks: Vec<std::ops::Range<usize>> =
            std::iter::once(0..1).chain((0..graph.layers).flat_map(of_layer)).collect();
        let cut = |x: &Tensor| -> Result<Vec<Tensor>> {
            let block = |block: &std::ops::Range<usize>| Ok(x.narrow(0, block.start, block.len())?.flatten_from(1)?);
            blocks.iter().map(block).collect()
        };
        let (ablated, clean) = (cut(ablated)?, cut(&difference)?);
        let mut streams = Vec::with_capacity(2 * graph.layers + 1);
        for stage in 0..=2 * graph.layers {
            let reader = graph.readers()[Stage(stage).readers(graph).start];
            let mut stream = captured.get(&graph.stream_of(reader))?.squeeze(0)?;
            for block in &clean[..Stage(stage).blocks(graph)] {
                stream = (stream - block.sum(0)?.reshape((positions, width))?)?;
            }
            streams.push(stream);
        }
        let factors = head_factors(graph, captured)?;
        Ok(Self { runs, factors, ablated, clean, streams, positions })
    }

    /// The metric of each circuit, from a stage on before which all edges are kept.
    fn run(&self, network: &dyn Resume, graph: &Graph, first: Stage, circuits: &[Circuit]) -> Result<Vec<f64>> {
        let sites = network.sites();
        let known = first.blocks(graph).max(first.0 + 1);
        let mut written: Vec<Written> = vec![self.clean[..known].to_vec(); circuits.len()];
        let end = Stage(2 * graph.layers);
        for stage in (first.0..end.0).map(Stage) {
            let plans = circuits.iter().zip(&written).map(|(circuit, written)| {
                let plan = self.reading(sites, graph, stage, circuit, written)?;
                Ok(plan.capture(Capture::new(stage.writes(sites)?)).outputs_at(Index::List(Vec::new())))
            });
            let runs = network.branches(&self.runs.base, &plans.collect::<Result<Vec<_>>>()?)?;
            for (written, run) in written.iter_mut().zip(runs) {
                written.push(self.wrote(sites, stage, &run.captured)?);
            }
        }
        let plans = circuits
            .iter()
            .zip(&written)
            .map(|(circuit, written)| Ok(self.runs.read(self.reading(sites, graph, end, circuit, written)?)));
        let runs = network.branches(&self.runs.base, &plans.collect::<Result<Vec<_>>>()?)?;
        runs.iter().map(|run| self.runs.value_of_read(run)).collect()
    }

    /// What the readers of a stage read in a circuit, as edits.
    fn reading(
        &self,
        sites: &Sites,
        graph: &Graph,
        stage: Stage,
        circuit: &Circuit,
        written: &Written,
    ) -> Result<Plan> {
        let readers = stage.readers(graph);
        let (positions, width) = (self.positions, graph.d_model);
        let nodes = graph.edges_into(readers.start).len();
        let written = Tensor::cat(&written[..stage.blocks(graph)], 0)?;
        let kept: Vec<f32> = readers
            .clone()
            .flat_map(|reader| graph.edges_into(reader))
            .map(|edge| f32::from(u8::from(circuit.keeps(edge))))
            .collect();
        let kept = Tensor::from_vec(kept, (readers.len(), nodes), written.device())?;
        let read = kept.matmul(&written)?.reshape((readers.len(), positions, width))?;
        let read = read.broadcast_add(&self.streams[stage.0])?;
        let mut plan = Plan::default();
        let mut at = 0;
        for (reader, count) in parts(graph, stage) {
            let (id, head) = reader.site(sites)?;
            let own = read.narrow(0, at, count)?;
            let source = match head {
                Some(_) => own.transpose(0, 1)?.contiguous()?.unsqueeze(0)?,
                None => own,
            };
            plan = plan.edit(Edit::new(&sites.get(id).name, Change::Patch { source: source.into() }));
            at += count;
        }
        Ok(plan)
    }

    /// What a stage wrote, less what it writes when it is ablated: `[node, position dim]`.
    fn wrote(&self, sites: &Sites, stage: Stage, captured: &Captured) -> Result<Tensor> {
        let found = captured.get(&stage.writes(sites)?)?.squeeze(0)?;
        let found = match found.rank() {
            3 => (found.transpose(0, 1)?.contiguous()? * self.factors[stage.0 / 2])?,
            _ => found.unsqueeze(0)?,
        };
        Ok((found.flatten_from(1)? - &self.ablated[stage.0 + 1])?)
    }
}

/// The readers of a stage that share a site: the first of them, and how many.
fn parts(graph: &Graph, stage: Stage) -> Vec<(Reader, usize)> {
    let layer = stage.0 / 2;
    match stage.0 {
        end if end == 2 * graph.layers => vec![(Reader::Logits, 1)],
        half if half % 2 == 1 => vec![(Reader::Mlp { layer }, 1)],
        _ => Part::ALL
            .into_iter()
            .map(|part| {
                let count = if part == Part::Query { graph.heads } else { graph.kv_heads };
                (Reader::Head { layer, head: 0, part }, count)
            })
            .collect(),
    }
}

impl Stage {
    /// The site of what it writes.
    fn writes(self, sites: &Sites) -> Result<String> {
        let layer = self.0 / 2;
        let site: SiteId = match self.0 % 2 {
            0 => sites.resolve_one(&format!("blocks.{layer}.attn.hook_result"))?,
            _ => sites.resolve_one(&format!("blocks.{layer}.hook_mlp_out"))?,
        };
        Ok(sites.get(site).name.clone())
    }
}
