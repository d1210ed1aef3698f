//! Path patching: the direct paths from senders to receivers (Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al.
//! 2023, arXiv 2304.05969).
//!
//! A receiver reads the residual stream: the recipient's, plus what one sender writes in the donor run less what it writes in
//! the recipient run. Everything else on the way is as in the recipient run, so that only the direct path through the
//! residual stream is open. The rest of the network then runs with the receivers as they became.

use endoscope_net::{Edit, Index, SiteId, Sites};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::planner::SweepCost;
use crate::scores::{self, PairScores};
use crate::statistics::{Interval, Resampling};
use crate::sweep::Direction;

/// A sweep over senders, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathSweep {
    /// Sites that write to the residual stream: `heads` (or `result.3`), `mlps` (or `mlp_out.3`), `embed`.
    pub from: Vec<String>,
    /// What they reach, taken together.
    pub to: Vec<Receiver>,
    /// The positions at which senders write; all of them by default.
    #[serde(default)]
    pub positions: Index,
    /// What becomes of the norm through which a receiver reads.
    #[serde(default)]
    pub norm: PathNorm,
    /// What is measured.
    pub metric: Metric,
    /// Which run gives.
    pub direction: Direction,
    /// Edits made in the recipient run and at every point as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<Edit>,
}

impl PathSweep {
    /// All senders to some receivers: logit difference, clean into corrupt.
    pub fn new(to: impl Into<Vec<Receiver>>) -> Self {
        Self {
            from: vec!["heads".into(), "mlps".into(), "embed".into()],
            to: to.into(),
            positions: Index::All,
            norm: PathNorm::Recomputed,
            metric: Metric::LogitDiff,
            direction: Direction::Denoise,
            with: Vec::new(),
        }
    }
}

/// The norm between the residual stream and a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathNorm {
    /// Computed from the changed stream.
    #[default]
    Recomputed,
    /// Scaled as in the recipient run: a receiver's input is linear in what the sender writes.
    Frozen,
}

/// What reads the residual stream: `q.9[6]`, `k.9[6,7]`, `v.9`, `attn_in.3`, `mlp_in.5`, `final` (or `resid_post.11`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Receiver {
    /// Its site: a name, shorthand or glob, or `final`.
    pub site: String,
    /// Which of its heads.
    pub heads: Index,
}

impl std::fmt::Display for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.heads {
            Index::All => f.write_str(&self.site),
            heads => write!(f, "{}[{heads}]", self.site),
        }
    }
}

impl From<Receiver> for String {
    fn from(receiver: Receiver) -> Self {
        receiver.to_string()
    }
}

impl TryFrom<String> for Receiver {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl std::str::FromStr for Receiver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let (site, heads) = match text.strip_suffix(']').and_then(|rest| rest.rsplit_once('[')) {
            Some((site, heads)) => (site, heads.parse()?),
            None => (text, Index::All),
        };
        Ok(Self { site: site.to_string(), heads })
    }
}

/// A part of the network that writes to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sender {
    /// One attention head.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number in the layer.
        head: usize,
    },
    /// One MLP.
    Mlp {
        /// Its layer.
        layer: usize,
    },
    /// Token and position embedding together.
    Embedding,
}

/// The scores of senders, averaged over prompt pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathScores {
    /// The sweep.
    pub paths: PathSweep,
    /// The senders, in the order of the network.
    pub senders: Vec<Sender>,
    /// The metric, sender by sender.
    pub values: Vec<f64>,
    /// `(value - corrupt) / (clean - corrupt)`. None where clean and corrupt do not differ.
    pub normalised: Vec<Option<f64>>,
    /// Standard deviation of the metric over pairs (of the sample).
    pub spread: Vec<Option<f64>>,
    /// The metric of the clean run, averaged.
    pub clean: f64,
    /// The metric of the corrupt run, averaged.
    pub corrupt: f64,
    /// The values of each pair.
    pub pairs: Vec<PairScores>,
    /// What it took. A naive run would be two whole forward passes for each sender.
    pub cost: SweepCost,
}

impl PathScores {
    /// The interval of each value, by drawing the pairs again; none where there is only one.
    pub fn intervals(&self, resampling: &Resampling) -> Result<Vec<Option<Interval>>> {
        scores::intervals(&self.pairs, &self.spread, resampling)
    }
}

/// A sender with the site that its write is read from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub sender: Sender,
    pub site: SiteId,
}

/// Receivers that read the stream at one place, each with its heads.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// Where the stream is read.
    pub stream: SiteId,
    /// The scale of the norm in between, if there is one.
    pub scale: Option<SiteId>,
    /// What is received; nothing for the final residual stream, which is unembedded.
    pub receivers: Vec<(SiteId, Index)>,
}

/// A sweep over paths laid out for a network.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub sources: Vec<Source>,
    pub readings: Vec<Reading>,
}

impl Paths {
    pub fn new(sweep: &PathSweep, sites: &Sites) -> Result<Self> {
        let embedding = sites.resolve_one("resid_pre.0")?;
        let mut readings: Vec<Reading> = Vec::new();
        for receiver in &sweep.to {
            for reading in readings_of(receiver, sites)? {
                match readings.iter_mut().find(|known| known.stream == reading.stream) {
                    Some(known) => known.receivers.extend(reading.receivers),
                    None => readings.push(reading),
                }
            }
        }
        if readings.is_empty() {
            return Err(Error::Sweep("paths need at least one receiver, such as q.1[0], mlp_in.1 or final".into()));
        }
        if readings.len() > 1 && readings.iter().any(|reading| reading.receivers.is_empty()) {
            let reason =
                "the final residual stream holds everything, so beside it no receiver has an effect; name it alone";
            return Err(Error::Sweep(reason.into()));
        }
        let mut sources: Vec<Source> = Vec::new();
        for from in &sweep.from {
            for source in sources_of(from, sites, embedding)? {
                if sources.iter().all(|known| known.sender != source.sender) {
                    sources.push(source);
                }
            }
        }
        // Heads of one site stay in their order.
        sources.sort_by_key(|source| source.site);
        match sources.is_empty() {
            true => Err(Error::Sweep("paths need senders: heads, mlps, embed".into())),
            false => Ok(Self { sources, readings }),
        }
    }
}

/// `mlp_in` of `blocks.3.hook_mlp_in`.
fn short(name: &str) -> &str {
    name.rsplit_once("hook_").map_or(name, |(_, short)| short)
}

fn readings_of(receiver: &Receiver, sites: &Sites) -> Result<Vec<Reading>> {
    let last = sites.layers().saturating_sub(1);
    let ids = match receiver.site.as_str() {
        "final" => vec![sites.resolve_one(&format!("resid_post.{last}"))?],
        site => sites.resolve(site)?,
    };
    let reading = |id: SiteId| -> Result<Reading> {
        let site = sites.get(id);
        let layer = site.layer.unwrap_or(0);
        let cannot = || {
            Error::Sweep(format!(
                "`{}` receives no path; paths end at q, k and v (of heads: q.1[0]), attn_in, mlp_in and final",
                site.name
            ))
        };
        let at = |name: String| sites.resolve_one(&name);
        // None where only what is written is normalised.
        let norm = |name: &str| at(format!("blocks.{layer}.{name}.hook_scale")).ok();
        let (stream, scale) = match short(&site.name) {
            "q" | "k" | "v" | "attn_in" => (at(format!("resid_pre.{layer}"))?, norm("ln1")),
            // Where attention and MLP are parallel, both read the same stream, and may share its norm.
            "mlp_in" => match at(format!("resid_mid.{layer}")) {
                Ok(middle) => (middle, norm("ln2")),
                Err(_) => (at(format!("resid_pre.{layer}"))?, norm("ln2").or_else(|| norm("ln1"))),
            },
            "resid_post" if layer == last => (id, Some(at("ln_final.hook_scale".into())?)),
            _ => return Err(cannot()),
        };
        if receiver.heads != Index::All && site.axis(endoscope_net::AxisName::Head).is_none() {
            return Err(Error::Sweep(format!("`{}` has no heads, so `{receiver}` cannot be received", site.name)));
        }
        let receivers = if stream == id { Vec::new() } else { vec![(id, receiver.heads.clone())] };
        Ok(Reading { stream, scale, receivers })
    };
    ids.into_iter().map(reading).collect()
}

fn sources_of(from: &str, sites: &Sites, embedding: SiteId) -> Result<Vec<Source>> {
    let pattern = match from.trim() {
        "heads" => "result",
        "mlps" => "mlp_out",
        "embed" => return Ok(vec![Source { sender: Sender::Embedding, site: embedding }]),
        site => site,
    };
    let mut sources = Vec::new();
    for id in sites.resolve(pattern)? {
        let site = sites.get(id);
        let layer = site.layer.unwrap_or(0);
        match short(&site.name) {
            "result" => {
                let heads = site.axes.iter().find_map(|axis| match (axis.name, axis.size) {
                    (endoscope_net::AxisName::Head, endoscope_net::Size::Fixed(heads)) => Some(heads),
                    _ => None,
                });
                let head = |head| Source { sender: Sender::Head { layer, head }, site: id };
                sources.extend((0..heads.unwrap_or(0)).map(head));
            }
            "mlp_out" => sources.push(Source { sender: Sender::Mlp { layer }, site: id }),
            _ => {
                return Err(Error::Sweep(format!(
                    "`{}` is no sender; senders are heads (result), mlps (mlp_out) and embed",
                    site.name
                )));
            }
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_are_read_and_written() {
        for (text, site, heads) in [
            ("q.9[6]", "q.9", Index::At(6)),
            (" k.9[6,7] ", "k.9", Index::List(vec![6, 7])),
            ("v.1[0..2]", "v.1", Index::Range { start: 0, end: Some(2) }),
            ("mlp_in.5", "mlp_in.5", Index::All),
            ("final", "final", Index::All),
        ] {
            let receiver: Receiver = text.parse().unwrap();
            assert_eq!((receiver.site.as_str(), &receiver.heads), (site, &heads));
            assert_eq!(receiver.to_string(), text.trim());
        }
        assert!("q.9[x]".parse::<Receiver>().is_err());
    }
}
