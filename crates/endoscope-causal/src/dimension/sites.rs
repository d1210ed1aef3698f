//! The dimension of the activations of every layer of a network, beside that of Gaussian points.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use endoscope_net::{AxisName, Index, Network, Site};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::{Fit, Points, TwoNn, fail};
use crate::error::{Error, Result};
use crate::pairs::Progress;
use crate::places::places;
use crate::probe::{ProbeRow, activations};
use crate::statistics::{Interval, Resampling, shuffle};

/// What is measured, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DimensionSites {
    /// A kind of site (`resid_post`), a glob, or one site: a vector at each position, or one for each head (taken together).
    pub site: String,
    /// The positions of each row whose activations are points.
    pub positions: Index,
    /// No more points than this, drawn by the seed. Dimensions of different numbers of points must not be compared.
    pub points: usize,
    /// The estimator of local dimensions; those of all points are given by both fits.
    pub two_nn: TwoNn,
    /// How many neighbours local dimensions are estimated on; none are where this is missing.
    pub neighbours: Option<usize>,
}

/// The dimension of some points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dimension {
    /// How many points, each once.
    pub points: usize,
    /// How many more were equal to one of them.
    pub duplicates: usize,
    /// Of all points, by the fit of a line.
    pub linear: Interval,
    /// Of all points, by the largest likelihood.
    pub likelihood: Interval,
    /// Around each point.
    pub local: Option<LocalDimension>,
}

/// The dimension around each point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalDimension {
    /// Its mean over the points that have one.
    pub mean: Interval,
    /// Of each point; none where all neighbours' ratios are one.
    pub of: Vec<Option<f64>>,
}

/// What the activations of one site gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteDimension {
    /// The site's full name.
    pub site: String,
    /// Its layer.
    pub layer: Option<usize>,
    /// The activations.
    pub found: Dimension,
    /// For each point its row and its position.
    pub places: Vec<(usize, usize)>,
    /// Gaussian points of the same covariance: what linear structure alone gives, with the estimator's bias at this number of
    /// points. The bias is large: of points that fill many dimensions TwoNN finds too few.
    pub control: Dimension,
}

/// Estimates the dimension of a site in every layer on rows of tokens. `watch` hears of rows run and of clouds of points measured,
/// and may end it.
///
/// A causal network computes the same wherever the tokens up to a position are the same, but for rounding, which would look like
/// two points very near each other. So of such positions only the first is a point. Intervals draw rows again (with what was
/// measured on them: neighbours stay those of all points); of a single row, points.
pub fn dimension_sites(
    network: &dyn Network,
    asked: &DimensionSites,
    rows: &[Vec<u32>],
    resampling: &Resampling,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<SiteDimension>> {
    asked.two_nn.check()?;
    let sites = network.sites();
    let sites: Vec<&Site> = sites.resolve(&asked.site)?.into_iter().map(|id| sites.get(id)).collect();
    for site in &sites {
        let axes: Vec<AxisName> = site.axes.iter().map(|axis| axis.name).collect();
        if !matches!(
            axes.as_slice(),
            [AxisName::Batch, AxisName::Position, AxisName::Dim]
                | [AxisName::Batch, AxisName::Position, AxisName::Head, AxisName::Dim]
        ) {
            return fail(format!("`{}` has no vector at each position; its axes are {}", site.name, site.axes_text()));
        }
    }
    let places = sampled(rows, &asked.positions, asked.points, resampling.seed)?;
    let mut read: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
    places.iter().for_each(|&(row, position)| read.entry(row).or_default().push(position as i64));
    let read: Vec<ProbeRow> = read
        .into_iter()
        .map(|(row, list)| ProbeRow { tokens: rows[row].clone(), positions: Index::List(list), group: row })
        .collect();
    let total = read.len() + 2 * sites.len();
    let mut tell = |done: usize| match watch(Progress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    };
    tell(0)?;
    let activations = activations(network, &sites, &read, &mut tell)?;
    let groups: Vec<usize> = places.iter().map(|&(row, _)| row).collect();
    let alone: Vec<usize> = (0..places.len()).collect();
    let (mut found, mut done) = (Vec::new(), read.len());
    for (site, activations) in sites.into_iter().zip(activations) {
        let named = |error: Error| match error {
            Error::Dimension(reason) => Error::Dimension(format!("{}: {reason}", site.name)),
            other => other,
        };
        let points = Points::new(&activations.flatten_from(1)?).map_err(named)?;
        let own = measure(&points, &groups, &asked.two_nn, asked.neighbours, resampling).map_err(named)?;
        tell(done + 1)?;
        let gaussian = points.gaussian(resampling.seed)?;
        let control = measure(&gaussian, &alone, &asked.two_nn, asked.neighbours, resampling).map_err(named)?;
        done += 2;
        tell(done)?;
        let places = points.numbers().iter().map(|&number| places[number]).collect();
        found.push(SiteDimension { site: site.name.clone(), layer: site.layer, found: own, places, control });
    }
    Ok(found)
}

/// The dimension of points, with intervals that draw groups again: `groups[i]` is what the i-th of the points given belongs to.
/// Where there is one group only, each point is drawn by itself.
pub fn measure(
    points: &Points,
    groups: &[usize],
    two_nn: &TwoNn,
    neighbours: Option<usize>,
    resampling: &Resampling,
) -> Result<Dimension> {
    if let Some(&number) = points.numbers().iter().find(|&&number| number >= groups.len()) {
        return fail(format!("point {number} has no group; there are {}", groups.len()));
    }
    let groups = members(points.numbers().iter().map(|&number| groups[number]));
    let logs = points.log_ratios()?;
    let of_all = |fit: Fit| -> Result<Interval> {
        let two_nn = TwoNn { fit, ..*two_nn };
        // So that what cannot be estimated is said in its own words.
        two_nn.estimate(&logs)?;
        let mut order: Vec<usize> = (0..logs.len()).collect();
        order.sort_by(|&a, &b| logs[a].total_cmp(&logs[b]));
        let mut times = vec![0usize; logs.len()];
        resampling.of_rows(groups.len(), |drawn| {
            times.fill(0);
            drawn.iter().flat_map(|&group| &groups[group]).for_each(|&point| times[point] += 1);
            let again = order.iter().flat_map(|&point| std::iter::repeat_n(logs[point], times[point]));
            two_nn.of_sorted(&again.collect::<Vec<f64>>()).unwrap_or(f64::NAN)
        })
    };
    let local = match neighbours {
        None => None,
        Some(neighbours) => {
            let of = points.local(neighbours, two_nn)?;
            if of.iter().all(Option::is_none) {
                return fail("around every point each is as far from its second neighbour as from its first");
            }
            let mean = resampling.of_rows(groups.len(), |drawn| {
                let values = drawn.iter().flat_map(|&group| &groups[group]).filter_map(|&point| of[point]);
                let (count, sum) = values.fold((0usize, 0.), |(count, sum), value| (count + 1, sum + value));
                sum / count as f64
            })?;
            Some(LocalDimension { mean, of })
        }
    };
    Ok(Dimension {
        points: points.count(),
        duplicates: points.duplicates(),
        linear: of_all(Fit::Linear)?,
        likelihood: of_all(Fit::Likelihood)?,
        local,
    })
}

/// The members of each group, or each member by itself where there is one group only.
fn members(groups: impl Iterator<Item = usize>) -> Vec<Vec<usize>> {
    let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    groups.enumerate().for_each(|(member, group)| found.entry(group).or_default().push(member));
    let found: Vec<Vec<usize>> = found.into_values().collect();
    match found.as_slice() {
        [only] => only.iter().map(|&member| vec![member]).collect(),
        _ => found,
    }
}

/// Row and position of each point, in order: of the positions asked for those with tokens before them that no other has, and of
/// these no more than `most`.
fn sampled(rows: &[Vec<u32>], positions: &Index, most: usize, seed: u64) -> Result<Vec<(usize, usize)>> {
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    for (number, row) in rows.iter().enumerate() {
        let named = |error: Error| Error::Dimension(format!("row {number}: {error}"));
        let places: HashSet<usize> = places(positions, row.len()).map_err(named)?.into_iter().collect();
        let mut places: Vec<usize> = places.into_iter().collect();
        places.sort_unstable();
        found.extend(places.into_iter().filter(|&at| seen.insert(&row[..=at])).map(|at| (number, at)));
    }
    if found.len() > most {
        shuffle(&mut ChaCha8Rng::seed_from_u64(seed), &mut found);
        found.truncate(most);
        found.sort_unstable();
    }
    match found.len() {
        0..3 => {
            fail(format!("{} positions that differ in what they have read are points; it needs three", found.len()))
        }
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_read_the_same_is_one_point() {
        let rows = [vec![1, 5, 6], vec![1, 5, 7], vec![1, 6, 7], vec![1, 5]];
        let all = sampled(&rows, &Index::All, 99, 0).unwrap();
        assert_eq!(all, [(0, 0), (0, 1), (0, 2), (1, 2), (2, 1), (2, 2)]);
        let few = sampled(&rows, &Index::All, 4, 0).unwrap();
        assert!(few.len() == 4 && few.is_sorted() && few.iter().all(|place| all.contains(place)));
        assert_ne!(few, sampled(&rows, &Index::All, 4, 3).unwrap());
        assert!(sampled(&rows, &Index::At(0), 99, 0).unwrap_err().to_string().contains("1 positions"));
        assert!(sampled(&rows, &Index::At(2), 99, 0).unwrap_err().to_string().contains("row 3"));
    }

    #[test]
    fn one_group_is_drawn_point_by_point() {
        assert_eq!(members([4, 2, 4].into_iter()), [vec![1], vec![0, 2]]);
        assert_eq!(members([4, 4].into_iter()), [vec![0], vec![1]]);
    }
}
