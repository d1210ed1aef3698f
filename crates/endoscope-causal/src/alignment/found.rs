//! What an alignment found, and how it fares.

use candle_core::{DType, Device, Tensor};
use endoscope_net::{Captured, Change, Edit, Selection, Value};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::rotation;
use crate::error::Result;

/// What was found at one site.
#[derive(Debug, Clone)]
pub struct FoundSite {
    /// Its full name.
    pub site: String,
    /// Which part of it is changed.
    pub select: Selection,
    /// The heads that the mask has entries for; empty where it has no axis of heads.
    pub heads: Vec<usize>,
    /// The dims, or the given directions, that the mask has entries for; empty where it has no such axis.
    pub entries: Vec<usize>,
    /// The mask before it was rounded; its axes are `head` and `dim` or `direction`, as far as it has them.
    pub soft: Tensor,
    /// The mask, of zeros and ones. It broadcasts over the selection.
    pub mask: Tensor,
    /// `[direction, dim]`, orthonormal rows: what the mask's last axis goes over, where it goes over directions.
    pub along: Option<Tensor>,
}

impl FoundSite {
    /// How many units were chosen.
    pub fn size(&self) -> usize {
        self.open().into_iter().filter(|&open| open).count()
    }

    /// Which units were chosen, row-major.
    fn open(&self) -> Vec<bool> {
        let numbers = self.mask.flatten_all().and_then(|mask| mask.to_vec1::<f32>());
        numbers.unwrap_or_default().into_iter().map(|number| number > 0.5).collect()
    }

    /// The edit that takes of a source what was found; none if that is nothing.
    pub fn edit(&self, source: Value) -> Option<Edit> {
        let along = self.along.clone().map(Value::from);
        let change = Change::Interpolate { source, mask: self.mask.clone().into(), along };
        (self.size() > 0).then(|| Edit { site: self.site.clone(), select: self.select.clone(), change })
    }
}

/// The edits at all sites, from the activations of a source run.
pub(crate) fn edits(sites: &[FoundSite], sources: &Captured) -> Vec<Edit> {
    let edit = |site: &FoundSite| site.edit(sources.get(&site.site).ok()?.clone().into());
    sites.iter().filter_map(edit).collect()
}

/// Others of the same size: as many units of all, evenly drawn; or as many evenly drawn directions.
pub(crate) fn others(sites: &[FoundSite], rotated: bool, random: &mut ChaCha8Rng) -> Result<Vec<FoundSite>> {
    if rotated {
        let other = |site: &FoundSite| -> Result<FoundSite> {
            let along = site.along.as_ref().map(|along| rotation::random(along.dim(0)?, along.dim(1)?, random));
            Ok(FoundSite { along: along.transpose()?, ..site.clone() })
        };
        return sites.iter().map(other).collect();
    }
    let chosen: Vec<bool> = sites.iter().flat_map(FoundSite::open).collect();
    let mut other = chosen.clone();
    // What was found is no control of itself; where nothing else has its size there is no other.
    for _ in 0..100 {
        other.shuffle(random);
        if other != chosen {
            break;
        }
    }
    let mut rest = other.into_iter();
    let other = |site: &FoundSite| -> Result<FoundSite> {
        let mask: Vec<f32> = rest.by_ref().take(site.mask.elem_count()).map(|open| f32::from(u8::from(open))).collect();
        let mask = Tensor::from_vec(mask, site.mask.shape(), &Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(FoundSite { mask, ..site.clone() })
    };
    sites.iter().map(other).collect()
}

/// What is put into the base run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intervention {
    /// Nothing.
    Nothing,
    /// Everything that was selected.
    Everything,
    /// What was found.
    Found,
    /// Another of the same size, drawn at random: a control.
    Random,
    /// What the same training finds, and what it does, where each triple has the source of another: a control.
    ShuffledSources,
}

impl Intervention {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Everything => "everything",
            Self::Found => "found",
            Self::Random => "random",
            Self::ShuffledSources => "shuffled_sources",
        }
    }
}

/// How the wanted answers of one desideratum fare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlignmentScore {
    /// Its name.
    pub desideratum: String,
    /// How many triples it has.
    pub triples: usize,
    /// The share of triples in which no token has a larger logit than the best wanted answer. Under what was found this is the
    /// interchange-intervention accuracy (IIA).
    pub accuracy: f64,
    /// Minus the log of the wanted answers' total probability, in nats, mean over triples.
    pub loss: f64,
    /// Mean logit of the wanted answers less that of the wrong ones, mean over triples; none where a triple has no wrong answers.
    pub logit_diff: Option<f64>,
}

/// How an intervention fares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which.
    pub intervention: Intervention,
    /// On the triples that were trained on, for each desideratum.
    pub train: Vec<AlignmentScore>,
    /// On those held out.
    pub held_out: Vec<AlignmentScore>,
}

/// What [`super::align`] gives.
#[derive(Debug, Clone)]
pub struct Aligned {
    /// What was found, site by site.
    pub sites: Vec<FoundSite>,
    /// The objective at each step (on its batch, weighted, without the penalty).
    pub losses: Vec<f64>,
    /// The numbers of the triples that were trained on.
    pub train: Vec<usize>,
    /// The numbers of those held out.
    pub held_out: Vec<usize>,
    /// Nothing, everything, what was found, and the controls.
    pub outcomes: Vec<Outcome>,
}

impl Aligned {
    /// The accuracy of an intervention over all desiderata, held out if anything was (each triple counts once). Where there
    /// are several of its kind, the best.
    pub fn accuracy(&self, intervention: Intervention) -> Option<f64> {
        let those = self.outcomes.iter().filter(|outcome| outcome.intervention == intervention);
        let of = |outcome: &Outcome| {
            let scores = if outcome.held_out.is_empty() { &outcome.train } else { &outcome.held_out };
            let right: f64 = scores.iter().map(|score| score.accuracy * score.triples as f64).sum();
            right / scores.iter().map(|score| score.triples).sum::<usize>() as f64
        };
        those.map(of).max_by(f64::total_cmp)
    }
}
