//! The training itself, and what is measured after it.

use std::ops::ControlFlow;

use candle_core::Tensor;
use endoscope_net::{Captured, Change, Edit, Network, Value};
use rand::seq::SliceRandom;

use super::found::{Aligned, FoundSite, Intervention, Outcome, edits, others};
use super::part::Part;
use super::rows::{Batch, batches, finite, scores, shuffled, split};
use super::triples::{Triple, check};
use super::{Alignment, generator};
use crate::error::{Error, Result};
use crate::metric::Target;
use crate::pairs::Progress;

/// What the random numbers are for; each has a stream of its own, so that more of one does not change another.
mod purpose {
    pub const SPLIT: u64 = 0;
    pub const BATCHES: u64 = 1;
    pub const TRAINING: u64 = 2;
    pub const OTHERS: u64 = 3;
    pub const SHUFFLED: u64 = 4;
}

/// Trains an alignment on some of the triples, rounds what was found, and tests it and its controls on all of them;
/// `watch` hears of the steps (those of the control with shuffled sources too) and may end it.
///
/// The sources' activations at the alignment's sites are kept throughout. A run repeats bit for bit under its seed.
pub fn align(
    network: &dyn Network,
    alignment: &Alignment,
    triples: &[Triple],
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Aligned> {
    alignment.check()?;
    check(triples)?;
    let (train, held_out) = split(triples, alignment.held_out, &mut generator(alignment.seed, purpose::SPLIT));
    let bench = Bench::new(network, alignment)?;
    let mut progress = Progress { done: 0, total: 2 * alignment.steps };
    let mut ran = || {
        progress.done += 1;
        match watch(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    };
    let (seen, unseen) = (bench.batches(triples, &train)?, bench.batches(triples, &held_out)?);
    let outcome = |intervention: Intervention, edits: &dyn Fn(&Captured) -> Vec<Edit>| -> Result<Outcome> {
        let [train, held_out] = [&seen, &unseen].map(|batches| scores(network, batches, edits));
        Ok(Outcome { intervention, train: train?, held_out: held_out? })
    };
    let (sites, losses) = bench.train(&seen, &mut ran)?;
    let mut outcomes = vec![
        outcome(Intervention::Nothing, &|_| Vec::new())?,
        outcome(Intervention::Everything, &|sources| bench.everything(sources))?,
        outcome(Intervention::Found, &|sources| edits(&sites, sources))?,
    ];
    let mut random = generator(alignment.seed, purpose::OTHERS);
    for _ in 0..alignment.random_controls {
        let others = others(&sites, alignment.find.is_rotation(), &mut random)?;
        outcomes.push(outcome(Intervention::Random, &|sources| edits(&others, sources))?);
    }
    // The same once more, where the sources tell nothing.
    let others = shuffled(triples, &mut generator(alignment.seed, purpose::SHUFFLED));
    let (seen, unseen) = (bench.batches(&others, &train)?, bench.batches(&others, &held_out)?);
    let (misled, _) = bench.train(&seen, &mut ran)?;
    let [own, other] = [&seen, &unseen].map(|batches| scores(network, batches, &|sources| edits(&misled, sources)));
    outcomes.push(Outcome { intervention: Intervention::ShuffledSources, train: own?, held_out: other? });
    Ok(Aligned { sites, losses, train, held_out, outcomes })
}

/// A network and what is sought in it.
struct Bench<'a> {
    network: &'a dyn Network,
    alignment: &'a Alignment,
    /// The full names of the sites.
    sites: Vec<String>,
}

impl<'a> Bench<'a> {
    fn new(network: &'a dyn Network, alignment: &'a Alignment) -> Result<Self> {
        let ids = network.sites().resolve(&alignment.site)?;
        let sites = ids.into_iter().map(|id| network.sites().get(id).name.clone()).collect();
        Ok(Self { network, alignment, sites })
    }

    fn batches(&self, triples: &[Triple], among: &[usize]) -> Result<Vec<Batch>> {
        let mut random = generator(self.alignment.seed, purpose::BATCHES);
        batches(self.network, &self.sites, triples, among, self.alignment.batch, &mut random)
    }

    /// The edits that take the whole selection from the source.
    fn everything(&self, sources: &Captured) -> Vec<Edit> {
        let edit = |site: &String| {
            let change = Change::Patch { source: Value::from(sources.get(site).ok()?.clone()) };
            let declared = self.network.sites();
            let select = self.alignment.select_at(declared.get(declared.resolve_one(site).ok()?));
            Some(Edit { site: site.clone(), select, change })
        };
        self.sites.iter().filter_map(edit).collect()
    }

    /// What training finds, and the objective at each step.
    fn train(&self, batches: &[Batch], ran: &mut dyn FnMut() -> Result<()>) -> Result<(Vec<FoundSite>, Vec<f64>)> {
        let alignment = self.alignment;
        let mut random = generator(alignment.seed, purpose::TRAINING);
        let declared = self.network.sites();
        let sites = self.sites.iter().map(|site| Ok(declared.get(declared.resolve_one(site)?)));
        let mut parts =
            sites.map(|site: Result<_>| Part::new(alignment, site?, &mut random)).collect::<Result<Vec<_>>>()?;
        // So that weights say how triples relate to each other, and not how large the objective is.
        let rows = || batches.iter().flat_map(|batch| &batch.rows);
        let scale = rows().count() as f64 / rows().map(|row| row.weight).sum::<f64>();
        let mut order: Vec<usize> = Vec::new();
        let mut losses = Vec::with_capacity(alignment.steps);
        for step in 0..alignment.steps {
            if order.is_empty() {
                order = (0..batches.len()).collect();
                order.shuffle(&mut random);
            }
            let Some(batch) = order.pop().map(|number| &batches[number]) else {
                return Err(Error::Alignment("there is no triple to train on".into()));
            };
            let gone = step as f64 / (alignment.steps.max(2) - 1) as f64;
            let (mut edits, mut sizes) = (Vec::new(), Vec::new());
            for part in &parts {
                let (edit, size) = part.edit(&batch.sources, gone, &mut random)?;
                edits.push(edit);
                sizes.extend(size);
            }
            let logits = batch.logits(self.network, edits)?;
            let mut total = self.objective(batch, &logits, scale)?;
            let loss = total.to_scalar::<f32>()?;
            finite(loss, step)?;
            losses.push(f64::from(loss));
            for size in sizes {
                total = (total + (size * alignment.penalty)?)?;
            }
            let gradients = total.backward()?;
            for part in &mut parts {
                part.step(&gradients, 1. - step as f64 / alignment.steps as f64)?;
            }
            ran()?;
        }
        let found = parts.iter().map(Part::found).collect::<Result<_>>()?;
        Ok((found, losses))
    }

    /// The objective of a batch, `[row, v] -> []`.
    fn objective(&self, batch: &Batch, logits: &Tensor, scale: f64) -> Result<Tensor> {
        let targets: Vec<&Target> = batch.rows.iter().map(|row| &row.target).collect();
        let weights: Vec<f32> = batch.rows.iter().map(|row| (row.weight * scale) as f32).collect();
        let losses = self.alignment.objective.losses(logits, &targets)?;
        Ok((losses * Tensor::new(weights, logits.device())?)?.mean_all()?)
    }
}
