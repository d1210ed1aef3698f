//! Probes of the activations of every layer of a network.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use candle_core::{DType, Tensor};
use endoscope_net::{AxisName, Capture, Index, Inputs, Network, Plan, Site};
use serde::{Deserialize, Serialize};

use super::{Examples, Fitted, Labels, Probe, ProbeScores, Split, random_features, score, shuffled_labels};
use crate::error::{Error, Result};
use crate::pairs::Progress;
use crate::places::places;
use crate::statistics::Resampling;

/// Prompts of one length and the same positions that run together.
const BATCH: usize = 32;

/// What is probed, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSites {
    /// A kind of site (`resid_post`), a glob, or one site: a vector at each position, or one for each head.
    pub site: String,
    /// What gets a probe of its own.
    pub over: ProbeOver,
    /// The probe.
    pub probe: Probe,
    /// What it is fitted and scored on.
    pub split: Split,
    /// What keeps one label in the control of shuffled labels.
    pub control_types: ControlTypes,
}

/// What gets a probe of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeOver {
    /// Each layer; of a site with heads, all of them together.
    Layer,
    /// Each head of each layer.
    LayerAndHead,
}

/// What keeps its label together when labels are shuffled ([`shuffled_labels`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlTypes {
    /// A row, whose positions keep one label.
    Rows,
    /// A token, wherever it is what stands at the position that is probed (the control task of Hewitt and Liang).
    Tokens,
}

/// A prompt of a data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The positions that are probed; each is one example.
    pub positions: Index,
    /// What it belongs to: rows of one group are never on both sides of a split.
    pub group: usize,
}

/// What a probe of one site (or one head of it) gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    /// The site's full name.
    pub site: String,
    /// Its layer.
    pub layer: Option<usize>,
    /// The head, if each has a probe of its own.
    pub head: Option<usize>,
    /// The probe on examples that it was not fitted on.
    pub scores: ProbeScores,
    /// The same with shuffled labels.
    pub shuffled: ProbeScores,
    /// The same with features that know nothing; one for all sites of one shape.
    pub random: ProbeScores,
    /// The probe fitted on all examples.
    pub fitted: Fitted,
}

/// Probes a site of every layer: `labels[i]` is what is read from row i. `watch` hears of rows run and probes fitted, and may end it.
///
/// Everything drawn at random for the controls comes from the seed of `resampling`.
pub fn probe_sites(
    network: &dyn Network,
    asked: &ProbeSites,
    rows: &[ProbeRow],
    labels: &Labels,
    resampling: &Resampling,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Probed>> {
    if rows.len() != labels.len() {
        return Err(Error::Probe(format!("{} rows and {} labels do not fit", rows.len(), labels.len())));
    }
    let sites = network.sites();
    let sites: Vec<&Site> = sites.resolve(&asked.site)?.into_iter().map(|id| sites.get(id)).collect();
    let heads = sites.iter().map(|site| heads(site, asked.over)).collect::<Result<Vec<_>>>()?;
    // The examples: each position of each row.
    let mut examples: Vec<(usize, usize)> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let named = |error: Error| Error::Probe(format!("row {number}: {error}"));
        examples.extend(places(&row.positions, row.tokens.len()).map_err(named)?.into_iter().map(|at| (number, at)));
    }
    let total = rows.len() + heads.iter().map(Vec::len).sum::<usize>();
    let mut tell = |done: usize| match watch(Progress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    };
    tell(0)?;
    let activations = activations(network, &sites, rows, &mut tell)?;
    let of_row: Vec<usize> = examples.iter().map(|&(row, _)| row).collect();
    let labels = labels.take(&of_row);
    let groups: Vec<usize> = of_row.iter().map(|&row| rows[row].group).collect();
    let types = match asked.control_types {
        ControlTypes::Rows => of_row,
        ControlTypes::Tokens => examples.iter().map(|&(row, at)| rows[row].tokens[at] as usize).collect(),
    };
    let shuffled = shuffled_labels(&labels, &types, resampling.seed)?;
    let scored = |examples: &Examples| score(&asked.probe, examples, asked.split, resampling);
    let (mut probed, mut random, mut done) = (Vec::new(), HashMap::new(), rows.len());
    for ((site, heads), features) in sites.into_iter().zip(heads).zip(activations) {
        for head in heads {
            let own = match head {
                Some(head) => features.get_on_dim(1, head)?,
                None => features.flatten_from(1)?,
            };
            let own = Examples::new(&own, labels.clone(), groups.clone())?;
            let dim = own.features().dim(1)?;
            if let std::collections::hash_map::Entry::Vacant(entry) = random.entry(dim) {
                let features = random_features(own.len(), dim, resampling.seed)?;
                entry.insert(scored(&own.with_features(&features)?)?);
            }
            probed.push(Probed {
                site: site.name.clone(),
                layer: site.layer,
                head,
                scores: scored(&own)?,
                // A control that cannot be fitted (one label only) has no score.
                shuffled: scored(&own.with_labels(shuffled.clone())?).unwrap_or_default(),
                random: random[&dim],
                fitted: asked.probe.fit(&own)?,
            });
            done += 1;
            tell(done)?;
        }
    }
    Ok(probed)
}

/// The heads that get a probe of their own, or one for the whole site.
fn heads(site: &Site, over: ProbeOver) -> Result<Vec<Option<usize>>> {
    let axes: Vec<AxisName> = site.axes.iter().map(|axis| axis.name).collect();
    let heads = match axes.as_slice() {
        [AxisName::Batch, AxisName::Position, AxisName::Dim] => None,
        [AxisName::Batch, AxisName::Position, AxisName::Head, AxisName::Dim] => Some(site.axes[2].size),
        _ => {
            let reason = format!("`{}` has no vector at each position; its axes are {}", site.name, site.axes_text());
            return Err(Error::Probe(reason));
        }
    };
    match (over, heads) {
        (ProbeOver::Layer, _) => Ok(vec![None]),
        (ProbeOver::LayerAndHead, Some(endoscope_net::Size::Fixed(count))) => Ok((0..count).map(Some).collect()),
        (ProbeOver::LayerAndHead, _) => Err(Error::Probe(format!("`{}` has no heads to go over", site.name))),
    }
}

/// For each site the activations of all examples, `[example, (head,) dim]`, in the order of the rows and their positions.
pub(crate) fn activations(
    network: &dyn Network,
    sites: &[&Site],
    rows: &[ProbeRow],
    tell: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<Tensor>> {
    let mut alike: BTreeMap<(usize, Vec<usize>), Vec<usize>> = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        let length = row.tokens.len();
        let places = places(&row.positions, length)?;
        if !places.is_empty() {
            alike.entry((length, places)).or_default().push(number);
        }
    }
    if alike.is_empty() {
        return Err(Error::Probe("no position of any row is probed".into()));
    }
    let mut pieces: Vec<Vec<(usize, Tensor)>> = vec![Vec::new(); sites.len()];
    let mut done = 0;
    for ((_, places), numbers) in alike {
        let at = Index::List(places.iter().map(|&place| place as i64).collect());
        // Nothing reads the outputs.
        let plan = sites.iter().fold(Plan::default().outputs_at(Index::At(-1)), |plan, site| {
            plan.capture(Capture::new(&site.name).at(AxisName::Position, at.clone()))
        });
        for batch in numbers.chunks(BATCH) {
            let tokens = batch.iter().map(|&number| rows[number].tokens.clone()).collect();
            let run = network.run(&Inputs::tokens(tokens)?, &plan)?;
            for (site, pieces) in sites.iter().zip(&mut pieces) {
                let captured = run.captured.get(&site.name)?.to_dtype(DType::F32)?;
                for (row, &number) in batch.iter().enumerate() {
                    pieces.push((number, captured.get(row)?));
                }
            }
            done += batch.len();
            tell(done)?;
        }
    }
    let joined = |mut pieces: Vec<(usize, Tensor)>| {
        pieces.sort_by_key(|(number, _)| *number);
        let pieces: Vec<Tensor> = pieces.into_iter().map(|(_, piece)| piece).collect();
        Ok(Tensor::cat(&pieces, 0)?)
    };
    pieces.into_iter().map(joined).collect()
}
