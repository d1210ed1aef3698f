//! From ratios of distances to a dimension.

use serde::{Deserialize, Serialize};

use super::fail;
use crate::error::Result;

/// How ratios become a dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// The slope of the line through the origin and `(ln mu_(i), -ln(1 - i / N))`, by least squares (Facco et al. 2017, section
    /// "Methods").
    #[default]
    Linear,
    /// `(k - 1) / (Σ ln mu_(i) + (N - k) ln mu_(k))` over the k smallest of N: the unbiased form of the largest likelihood where it
    /// is known of the others only that they are larger (Epstein and Sobel 1953); with none left out `(N - 1) / Σ ln mu`
    /// (Denti et al. 2022, arXiv 2104.13832).
    Likelihood,
}

/// The estimator, as data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TwoNn {
    /// From ratios to a dimension.
    pub fit: Fit,
    /// The share of ratios that is left out, the largest ones, from 0 and below 1: they come from points that lie far from others,
    /// where the density is not even. A line is never fitted to the very largest, whose `1 - F` is zero.
    pub discarded: f64,
}

impl Default for TwoNn {
    /// A line through the smallest nine tenths, as in the paper.
    fn default() -> Self {
        Self { fit: Fit::Linear, discarded: 0.1 }
    }
}

impl TwoNn {
    /// The dimension from `ln(r2 / r1)` of each point, in any order.
    ///
    /// An error where a logarithm is negative or not finite, where fewer than two are left, and where all that are left are
    /// zero (each point is as far from its second neighbour as from its first, as on a lattice: no dimension is finite).
    pub fn estimate(&self, log_ratios: &[f64]) -> Result<f64> {
        self.check()?;
        if let Some(at) = log_ratios.iter().position(|log| !(log.is_finite() && *log >= 0.)) {
            return fail(format!("the logarithm of ratio {at} is {}", log_ratios[at]));
        }
        let mut sorted = log_ratios.to_vec();
        sorted.sort_by(f64::total_cmp);
        match self.of_sorted(&sorted) {
            Some(dimension) => Ok(dimension),
            None if self.kept(sorted.len()) < 2 => {
                fail(format!("of {} ratios {} are left; it needs two", sorted.len(), self.kept(sorted.len())))
            }
            None => fail("every point is as far from its second neighbour as from its first"),
        }
    }

    /// The same of logarithms that are in order; nothing where there is no dimension.
    pub(super) fn of_sorted(&self, logs: &[f64]) -> Option<f64> {
        let (count, kept) = (logs.len(), self.kept(logs.len()));
        let largest = *logs.get(kept.checked_sub(1)?)?;
        if kept < 2 || largest <= 0. {
            return None;
        }
        Some(match self.fit {
            Fit::Linear => {
                let (mut products, mut squares) = (0., 0.);
                for (at, log) in logs[..kept].iter().enumerate() {
                    products -= log * (1. - (at + 1) as f64 / count as f64).ln();
                    squares += log * log;
                }
                products / squares
            }
            Fit::Likelihood => {
                let sum: f64 = logs[..kept].iter().sum();
                (kept - 1) as f64 / (sum + (count - kept) as f64 * largest)
            }
        })
    }

    /// How many of so many ratios are fitted.
    fn kept(&self, count: usize) -> usize {
        let kept = (count as f64 * (1. - self.discarded)) as usize;
        match self.fit {
            Fit::Linear => kept.min(count.saturating_sub(1)),
            Fit::Likelihood => kept,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        match (0. ..1.).contains(&self.discarded) {
            true => Ok(()),
            false => fail(format!("the share left out lies from 0 to below 1; {} does not", self.discarded)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_on_the_line_have_its_slope() {
        // F(mu) = 1 - mu^-7 exactly, but for the last, whose 1 - F is zero.
        let logs: Vec<f64> = (1..=50).map(|at| -(1. - f64::from(at).min(49.5) / 50.).ln() / 7.).collect();
        for discarded in [0., 0.1, 0.5] {
            let found = TwoNn { discarded, ..TwoNn::default() }.estimate(&logs).unwrap();
            assert!((found - 7.).abs() < 1e-12, "{found}");
        }
        let likelihood = TwoNn { fit: Fit::Likelihood, discarded: 0. };
        assert!((likelihood.estimate(&[0.5, 0.25, 0.25]).unwrap() - 2.).abs() < 1e-12);
        // One of three is known to be larger than 0.25 only: 1 / (0.5 + 0.25).
        let censored = TwoNn { discarded: 0.3, ..likelihood };
        assert!((censored.estimate(&[0.5, 0.25, 0.25]).unwrap() - 1. / 0.75).abs() < 1e-12);
    }

    #[test]
    fn what_has_no_dimension_is_an_error() {
        let check = |two_nn: TwoNn, logs: &[f64], part: &str| {
            let error = two_nn.estimate(logs).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let usual = TwoNn::default();
        check(usual, &[], "it needs two");
        check(usual, &[1., 2.], "it needs two");
        check(usual, &[0.; 20], "as far from its second");
        check(usual, &[1., f64::NAN, 1.], "ratio 1 is NaN");
        check(usual, &[1., 1., f64::INFINITY], "ratio 2 is inf");
        check(usual, &[1., -1., 1.], "ratio 1 is -1");
        for discarded in [-0.1, 1., f64::NAN] {
            check(TwoNn { discarded, ..usual }, &[1., 2., 3.], "below 1");
        }
        check(TwoNn { fit: Fit::Likelihood, discarded: 0.9 }, &[1., 2., 3.], "0 are left");
    }
}
