//! Linear probes: what can be read from an activation along a direction (Alain and Bengio 2017, arXiv 1610.01644), with the
//! controls that tell a direction from what a probe can learn by itself (Hewitt and Liang 2019, arXiv 1909.03368).
//!
//! A probe is data ([`Probe`]), fitted on [`Examples`]; [`score`] fits it on some of them and scores it on the others, and
//! [`probe_sites`] does so for the activations of every layer.

mod examples;
mod fit;
mod fitted;
mod scoring;
mod sites;

use serde::{Deserialize, Serialize};

pub use examples::{Examples, Labels, Split};
pub use fitted::Fitted;
pub use scoring::{ProbeScores, random_features, score, shuffled_labels};
pub(crate) use sites::activations;
pub use sites::{ControlTypes, ProbeOver, ProbeRow, ProbeSites, Probed, probe_sites};

/// A probe, as data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is fitted.
    pub kind: ProbeKind,
    /// Whether features are brought to one scale first.
    pub features: Features,
    /// Whether a bias is fitted besides (of a mass-mean probe there is always one).
    pub intercept: Intercept,
}

/// What a probe fits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ProbeKind {
    /// Logistic regression; of more than two classes the multinomial one, with a direction for each.
    Logistic {
        /// Half of it times the squared weights is added to the loss summed over rows: scikit-learn's `1 / C`.
        l2: f64,
    },
    /// Least squares of numbers; scikit-learn's `Ridge`.
    Ridge {
        /// Times the squared weights, added to the squared errors summed over rows: scikit-learn's `alpha`.
        l2: f64,
    },
    /// The difference of the two classes' means, split half-way between them (Marks and Tegmark 2023, arXiv 2310.06824, section
    /// 5.1, which centres the data instead; the same where the classes are of one size).
    MassMean,
}

impl ProbeKind {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logistic { .. } => "logistic",
            Self::Ridge { .. } => "ridge",
            Self::MassMean => "mass_mean",
        }
    }
}

/// What is done to features before a fit. Directions and biases are those of the activations in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Features {
    /// Nothing.
    Raw,
    /// Each has mean 0 and deviation 1 over the rows that the probe is fitted on; one that is constant stays 0.
    Standardised,
}

/// Whether a bias is fitted. It is never penalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intercept {
    /// It is.
    Fitted,
    /// It is zero (of standardised features: at their mean).
    None,
}
