//! Outputs: which activations are kept of a site, for each token or once for each sequence.

use std::sync::Arc;

use endoscope_net::{AxisName, Network, Site, Size};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::manifest::{OutputRecord, Per};

/// A site and what is kept of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The full name of the site.
    pub site: String,
    /// What is kept.
    pub reduction: Reduction,
}

/// What is kept of a site's activations `[position, dim]` in one sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Reduction {
    /// A row for each token.
    Tokens,
    /// One row: the mean over the tokens that are kept.
    Mean,
    /// One row: that of the last token that is kept.
    Last,
    /// A row for each token: its scores by a probe.
    Probe(ProbeScores),
    /// A row for each token: features of a dictionary.
    Features(Features),
}

/// Scores of rows that somebody else computes: the features of a dictionary, which this crate does not know.
pub trait Scores: std::fmt::Debug + Send + Sync {
    /// How many numbers a row has that is read.
    fn reads(&self) -> usize;
    /// How many scores it gets.
    fn width(&self) -> usize;
    /// What tells these scores from others.
    fn sha256(&self) -> String;
    /// The scores of rows one after the other, as many for each as [`Scores::width`] says; NaN where there are none.
    fn of(&self, rows: &[f32]) -> Vec<f32>;
}

/// Features of a dictionary, as [`Scores`].
#[derive(Debug, Clone)]
pub struct Features(pub Arc<dyn Scores>);

impl PartialEq for Features {
    fn eq(&self, other: &Self) -> bool {
        self.0.sha256() == other.0.sha256()
    }
}

/// The directions of a probe: the score of an activation x is `direction · x + bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeScores {
    /// `[direction][dim]`
    pub directions: Vec<Vec<f32>>,
    /// One for each direction.
    pub biases: Vec<f32>,
}

impl Reduction {
    /// The name in `harvest.json`, and after the site's name in that of the output.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Mean => "mean",
            Self::Last => "last",
            Self::Probe(_) => "probe",
            Self::Features(_) => "features",
        }
    }

    /// Whether it gives a row for each token or one for each sequence.
    pub fn per(&self) -> Per {
        match self {
            Self::Tokens | Self::Probe(_) | Self::Features(_) => Per::Token,
            Self::Mean | Self::Last => Per::Sequence,
        }
    }

    /// Reduces the kept rows of a sequence, each of `width` numbers: `[kept, width] -> [rows, reduced width]`, at least one kept.
    pub(crate) fn of(&self, kept: &[&[f32]]) -> Vec<f32> {
        match self {
            Self::Tokens => kept.concat(),
            Self::Last => kept.last().map_or(Vec::new(), |row| row.to_vec()),
            Self::Mean => {
                let mut sums = vec![0f64; kept.first().map_or(0, |row| row.len())];
                for row in kept {
                    sums.iter_mut().zip(*row).for_each(|(sum, &number)| *sum += f64::from(number));
                }
                sums.into_iter().map(|sum| (sum / kept.len() as f64) as f32).collect()
            }
            Self::Probe(ProbeScores { directions, biases }) => {
                let mut scores = Vec::with_capacity(kept.len() * directions.len());
                for row in kept {
                    for (direction, &bias) in directions.iter().zip(biases) {
                        let products = row.iter().zip(direction).map(|(&x, &weight)| f64::from(x) * f64::from(weight));
                        scores.push((products.sum::<f64>() + f64::from(bias)) as f32);
                    }
                }
                scores
            }
            Self::Features(Features(features)) => features.of(&kept.concat()),
        }
    }
}

impl Output {
    /// Checks that the network has the site, and that it is rows of numbers; as it stands in `harvest.json`.
    pub(crate) fn record(&self, network: &dyn Network) -> Result<OutputRecord> {
        let site = network.sites().get(network.sites().resolve_one(&self.site)?);
        let width = width(site)?;
        let mut record = OutputRecord {
            name: format!("{}.{}", site.name, self.reduction.name()),
            site: site.name.clone(),
            reduction: self.reduction.name().into(),
            per: self.reduction.per(),
            width,
            sha256: None,
        };
        match &self.reduction {
            Reduction::Tokens => record.name = site.name.clone(),
            Reduction::Mean | Reduction::Last => {}
            Reduction::Probe(ProbeScores { directions, biases }) => {
                let whole = !directions.is_empty() && directions.len() == biases.len();
                if !whole || directions.iter().any(|direction| direction.len() != width) {
                    let lengths: Vec<usize> = directions.iter().map(Vec::len).collect();
                    let reason = format!(
                        "its activations have {width} numbers, the probe has {} biases and directions of {lengths:?}",
                        biases.len()
                    );
                    return Err(Error::Site { site: site.name.clone(), reason });
                }
                let numbers = directions.iter().flatten().chain(biases).flat_map(|number| number.to_le_bytes());
                record.sha256 = Some(crate::hex(&Sha256::digest(numbers.collect::<Vec<u8>>())));
                record.width = directions.len();
            }
            Reduction::Features(Features(features)) => {
                if features.reads() != width {
                    let reads = features.reads();
                    let reason = format!("its activations have {width} numbers, the dictionary reads {reads}");
                    return Err(Error::Site { site: site.name.clone(), reason });
                }
                record.sha256 = Some(features.sha256());
                record.width = features.width();
            }
        }
        Ok(record)
    }
}

/// How many numbers a site has at one position; heads lie one after the other, as SAELens reshapes `hook_z`.
fn width(site: &Site) -> Result<usize> {
    let fixed = |axis: &endoscope_net::Axis| matches!(axis.size, Size::Fixed(_));
    let rows = match site.axes.as_slice() {
        [batch, position, rest @ ..] => {
            batch.name == AxisName::Batch
                && position.name == AxisName::Position
                && !rest.is_empty()
                && rest.iter().all(fixed)
        }
        _ => false,
    };
    match rows && site.fixed_size() > 0 {
        true => Ok(site.fixed_size()),
        false => {
            let reason = format!("it has no row of numbers at each position; its axes are {}", site.axes_text());
            Err(Error::Site { site: site.name.clone(), reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_of_rows() {
        let kept: [&[f32]; 3] = [&[1., 2.], &[3., 5.], &[8., 2.]];
        assert_eq!(Reduction::Tokens.of(&kept), [1., 2., 3., 5., 8., 2.]);
        assert_eq!(Reduction::Mean.of(&kept), [4., 3.]);
        assert_eq!(Reduction::Last.of(&kept), [8., 2.]);
        let probe = ProbeScores { directions: vec![vec![1., -1.], vec![0., 2.]], biases: vec![0.5, -1.] };
        assert_eq!(Reduction::Probe(probe).of(&kept), [-0.5, 3., -1.5, 9., 6.5, 3.]);
    }
}
