//! Bootstrap intervals: percentile, and bias-corrected and accelerated (Efron 1987; Efron and Tibshirani 1993, chapters 13
//! and 14).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use super::{below, confident, fail, finite, mean_of};
use crate::error::Result;

/// An estimate and the ends of its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// What was measured.
    pub estimate: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// How resampled statistics become an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bootstrap {
    /// Quantiles of the resampled statistics.
    Percentile,
    /// Quantiles that are moved by the statistic's bias and by how its error changes with it.
    #[default]
    Bca,
}

/// How intervals are made: by drawing the rows again, with replacement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Resampling {
    /// How often.
    pub resamples: usize,
    /// The share of such intervals that should hold the true value, between 0 and 1.
    pub confidence: f64,
    /// From what the draws come.
    pub seed: u64,
    /// How they become an interval.
    pub method: Bootstrap,
}

impl Default for Resampling {
    /// 95 % by 2,000 resamples, BCa.
    fn default() -> Self {
        Self { resamples: 2_000, confidence: 0.95, seed: 0, method: Bootstrap::default() }
    }
}

impl Resampling {
    /// The rows of each resample of `count` rows; the same for the same seed and count.
    fn rows(&self, count: usize) -> impl Iterator<Item = Vec<usize>> {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        (0..self.resamples).map(move |_| (0..count).map(|_| below(&mut generator, count)).collect())
    }

    fn check(&self, count: usize) -> Result<()> {
        confident(self.confidence)?;
        match (self.resamples, count) {
            (0, _) => fail("an interval needs at least one resample"),
            (_, 0 | 1) => fail(format!("an interval by resampling needs at least 2 rows, not {count}")),
            _ => Ok(()),
        }
    }

    /// The interval of the mean of `values`; an error where they are fewer than two or not finite.
    pub fn mean(&self, values: &[f64]) -> Result<Interval> {
        finite("value", values)?;
        self.of_rows(values.len(), |rows| rows.iter().map(|&row| values[row]).sum::<f64>() / rows.len() as f64)
    }

    /// The interval of the mean of each column; columns of one length are resampled by the same rows. One of fewer than two
    /// numbers, or with one that is not finite, has no interval.
    pub fn means(&self, columns: &[Vec<f64>]) -> Result<Vec<Option<Interval>>> {
        let mut drawn: Vec<(usize, Vec<Vec<usize>>)> = Vec::new();
        let mut intervals = Vec::with_capacity(columns.len());
        for values in columns {
            if values.len() < 2 || finite("value", values).is_err() {
                intervals.push(None);
                continue;
            }
            self.check(values.len())?;
            let known = match drawn.iter().position(|(count, _)| *count == values.len()) {
                Some(known) => known,
                None => {
                    drawn.push((values.len(), self.rows(values.len()).collect()));
                    drawn.len() - 1
                }
            };
            let (count, total) = (values.len() as f64, values.iter().sum::<f64>());
            let mean = |rows: &Vec<usize>| rows.iter().map(|&row| values[row]).sum::<f64>() / count;
            let resampled = drawn[known].1.iter().map(mean).collect();
            let left_out: Vec<f64> = values.iter().map(|value| (total - value) / (count - 1.)).collect();
            intervals.push(Some(interval_of(mean_of(values), resampled, &left_out, self.confidence, self.method)?));
        }
        Ok(intervals)
    }

    /// The interval of any statistic of `count` rows: `statistic` is given the numbers of the rows, some of them repeatedly. It
    /// may be NaN where a resample has no such statistic (an AUC without a positive row); those resamples are left out.
    pub fn of_rows(&self, count: usize, mut statistic: impl FnMut(&[usize]) -> f64) -> Result<Interval> {
        self.check(count)?;
        let all: Vec<usize> = (0..count).collect();
        let estimate = statistic(&all);
        let resampled = self.rows(count).map(|rows| statistic(&rows)).collect();
        let left_out: Vec<f64> = match self.method {
            Bootstrap::Percentile => Vec::new(),
            Bootstrap::Bca => (0..count).map(|row| statistic(&[&all[..row], &all[row + 1..]].concat())).collect(),
        };
        interval_of(estimate, resampled, &left_out, self.confidence, self.method)
    }
}

/// The interval of an estimate from its values on resamples and (for BCa) on the rows without each one of them.
///
/// Values that are NaN are left out. Where all resamples lie on one side of the estimate the bias has no size, and the
/// quantiles are those of the percentile method.
pub fn interval_of(
    estimate: f64,
    mut resampled: Vec<f64>,
    left_out: &[f64],
    confidence: f64,
    method: Bootstrap,
) -> Result<Interval> {
    confident(confidence)?;
    if estimate.is_nan() {
        return fail("there is no such number for these rows");
    }
    resampled.retain(|value| !value.is_nan());
    resampled.sort_by(f64::total_cmp);
    if resampled.is_empty() {
        return fail("no resample gives a number");
    }
    let tail = (1. - confidence) / 2.;
    let [low, high] = match method {
        Bootstrap::Percentile => [tail, 1. - tail],
        Bootstrap::Bca => levels(estimate, &resampled, left_out, tail).unwrap_or([tail, 1. - tail]),
    };
    Ok(Interval { estimate, low: quantile(&resampled, low), high: quantile(&resampled, high) })
}

/// The levels of the quantiles of BCa: Efron and Tibshirani 1993, equation 14.10.
fn levels(estimate: f64, resampled: &[f64], left_out: &[f64], tail: f64) -> Option<[f64; 2]> {
    let normal = Normal::standard();
    let count = |keep: &dyn Fn(f64) -> bool| resampled.iter().filter(|&&value| keep(value)).count() as f64;
    // What equals the estimate counts half.
    let below = (count(&|value| value < estimate) + count(&|value| value <= estimate)) / 2.;
    let bias = normal.inverse_cdf(below / resampled.len() as f64);
    let left_out: Vec<f64> = left_out.iter().copied().filter(|value| !value.is_nan()).collect();
    let mean = mean_of(&left_out);
    let power = |exponent: i32| left_out.iter().map(|value| (mean - value).powi(exponent)).sum::<f64>();
    let acceleration = power(3) / (6. * power(2).powf(1.5));
    let level = |quantile: f64| {
        let moved = bias + quantile;
        normal.cdf(bias + moved / (1. - acceleration * moved))
    };
    let levels = [level(normal.inverse_cdf(tail)), level(normal.inverse_cdf(1. - tail))];
    (bias.is_finite() && levels.iter().all(|level| level.is_finite())).then_some(levels)
}

/// Between the sorted values, in proportion (the seventh definition of Hyndman and Fan 1996).
fn quantile(sorted: &[f64], level: f64) -> f64 {
    let at = level.clamp(0., 1.) * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    if low == high { low } else { low + (high - low) * at.fract() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let values: Vec<f64> = (0..20).map(|at| f64::from(at * at % 17)).collect();
        let with = |seed: u64| Resampling { seed, ..Resampling::default() }.mean(&values).unwrap();
        assert_eq!(with(3), with(3));
        assert_ne!(with(3), with(4));
    }

    #[test]
    fn many_columns_are_as_each_alone() {
        let columns = vec![vec![1., 2., 4., 8.], vec![0.5, -1., 3.], vec![1., f64::NAN], vec![7.]];
        for method in [Bootstrap::Percentile, Bootstrap::Bca] {
            let resampling = Resampling { resamples: 100, method, ..Resampling::default() };
            let found = resampling.means(&columns).unwrap();
            for (column, found) in columns.iter().zip(&found).take(2) {
                let (found, alone) = (found.unwrap(), resampling.mean(column).unwrap());
                assert_eq!(found.estimate, alone.estimate);
                assert!((found.low - alone.low).abs() < 1e-9 && (found.high - alone.high).abs() < 1e-9);
            }
            assert_eq!(found[2..], [None, None]);
        }
    }

    #[test]
    fn an_interval_covers_as_often_as_it_says() {
        // 300 samples of 25 uniform numbers, whose true mean is 1/2.
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let resampling = Resampling { resamples: 400, confidence: 0.9, ..Resampling::default() };
        let covered = (0..300).filter(|_| {
            let values: Vec<f64> = (0..25).map(|_| below(&mut generator, 1_000_001) as f64 / 1e6).collect();
            let interval = resampling.mean(&values).unwrap();
            interval.low <= 0.5 && 0.5 <= interval.high
        });
        let share = covered.count() as f64 / 300.;
        assert!((0.84..=0.95).contains(&share), "{share}");
    }

    #[test]
    fn resamples_without_the_statistic_are_left_out() {
        let resampling = Resampling::default();
        // Half of the resamples of two rows hold both.
        let both = |rows: &[usize]| if rows.len() == 2 && rows[0] != rows[1] { 3. } else { f64::NAN };
        let interval = resampling.of_rows(2, both).unwrap();
        assert_eq!((interval.low, interval.high), (3., 3.));
        assert!(resampling.of_rows(2, |_| f64::NAN).is_err());
    }

    #[test]
    fn what_cannot_be_resampled_is_an_error() {
        let check = |resampling: Resampling, values: &[f64], part: &str| {
            let error = resampling.mean(values).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let usual = Resampling::default();
        check(usual, &[], "at least 2 rows");
        check(usual, &[1.], "at least 2 rows");
        check(usual, &[1., f64::INFINITY], "value 1 is inf");
        check(Resampling { resamples: 0, ..usual }, &[1., 2.], "at least one resample");
        for confidence in [0., 1., -3., f64::NAN] {
            check(Resampling { confidence, ..usual }, &[1., 2.], "between 0 and 1");
        }
    }

    proptest! {
        #[test]
        fn the_interval_of_a_mean_holds_it(
            values in proptest::collection::vec(-1e3..1e3, 3..20),
            seed in 0u64..1000,
            percentile in any::<bool>(),
        ) {
            let method = if percentile { Bootstrap::Percentile } else { Bootstrap::Bca };
            let found = Resampling { seed, method, ..Resampling::default() }.mean(&values).unwrap();
            prop_assert!(found.low <= found.estimate + 1e-9 && found.estimate <= found.high + 1e-9, "{found:?}");
            let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), &x| (a.min(x), b.max(x)));
            prop_assert!(least - 1e-9 <= found.low && found.high <= most + 1e-9);
        }

        #[test]
        fn more_confidence_is_wider(values in proptest::collection::vec(-1e3..1e3, 3..12)) {
            let with = |confidence: f64| Resampling { confidence, ..Resampling::default() }.mean(&values).unwrap();
            let (narrow, wide) = (with(0.5), with(0.95));
            prop_assert!(wide.low <= narrow.low && narrow.high <= wide.high);
        }
    }
}
