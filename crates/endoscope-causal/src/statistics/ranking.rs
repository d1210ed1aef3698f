//! How well scores find what is true: the area under the ROC curve, precision and recall.

use serde::{Deserialize, Serialize};

use super::{fail, finite, ranks};
use crate::error::Result;

/// Checks that each score has its truth and that both kinds are there; how many are true.
fn check(scores: &[f64], truth: &[bool]) -> Result<usize> {
    finite("score", scores)?;
    if scores.len() != truth.len() {
        return fail(format!("{} scores and {} truths do not fit", scores.len(), truth.len()));
    }
    let positive = truth.iter().filter(|&&truth| truth).count();
    match positive == 0 || positive == truth.len() {
        true => fail(format!("of {} entries {positive} are true; both kinds are needed", truth.len())),
        false => Ok(positive),
    }
}

/// The probability that something true has a larger score than something false; equal ones count half.
pub fn auc(scores: &[f64], truth: &[bool]) -> Result<f64> {
    let positive = check(scores, truth)? as f64;
    let of_true: f64 = ranks(scores).iter().zip(truth).filter(|(_, truth)| **truth).map(|(rank, _)| rank).sum();
    Ok((of_true - positive * (positive + 1.) / 2.) / (positive * (scores.len() as f64 - positive)))
}

/// What taking every score from a threshold on gives.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Precision {
    /// The least score that is taken.
    pub threshold: f64,
    /// The share of what is taken that is true.
    pub precision: f64,
    /// The share of what is true that is taken.
    pub recall: f64,
}

/// Precision and recall at each threshold, the strictest first, until everything is taken.
pub fn precision_recall(scores: &[f64], truth: &[bool]) -> Result<Vec<Precision>> {
    let positive = check(scores, truth)? as f64;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let (mut taken, mut right) = (0., 0.);
    let curve = order.chunk_by(|&a, &b| scores[a] == scores[b]).map(|tied| {
        taken += tied.len() as f64;
        right += tied.iter().filter(|&&at| truth[at]).count() as f64;
        Precision { threshold: scores[tied[0]], precision: right / taken, recall: right / positive }
    });
    Ok(curve.collect())
}

/// The mean of the precisions, each weighted by what its threshold adds to the recall.
pub fn average_precision(scores: &[f64], truth: &[bool]) -> Result<f64> {
    let mut before = 0.;
    let steps = precision_recall(scores, truth)?.into_iter().map(|point| {
        let added = point.recall - before;
        before = point.recall;
        added * point.precision
    });
    Ok(steps.sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_cannot_be_ranked_is_an_error() {
        for (scores, truth, part) in [
            (&[1., 2.][..], &[true][..], "2 scores and 1 truths"),
            (&[1., 2.], &[true, true], "2 are true; both kinds"),
            (&[], &[], "both kinds"),
            (&[1., f64::NAN], &[true, false], "score 1 is NaN"),
        ] {
            for error in [auc(scores, truth).unwrap_err(), average_precision(scores, truth).unwrap_err()] {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
    }

    proptest! {
        #[test]
        fn reversed_scores_have_the_rest_of_the_area(rows in proptest::collection::vec((-3i32..3, any::<bool>()), 2..40)) {
            let (scores, truth): (Vec<f64>, Vec<bool>) = rows.into_iter().map(|(score, truth)| (f64::from(score), truth)).unzip();
            prop_assume!(truth.contains(&true) && truth.contains(&false));
            let turned: Vec<f64> = scores.iter().map(|score| -score).collect();
            let opposite: Vec<bool> = truth.iter().map(|truth| !truth).collect();
            let area = auc(&scores, &truth).unwrap();
            prop_assert!((area + auc(&turned, &truth).unwrap() - 1.).abs() < 1e-12);
            prop_assert!((area + auc(&scores, &opposite).unwrap() - 1.).abs() < 1e-12);
            let curve = precision_recall(&scores, &truth).unwrap();
            prop_assert_eq!(curve.last().unwrap().recall, 1.);
            prop_assert!(curve.windows(2).all(|two| two[0].recall <= two[1].recall && two[0].threshold > two[1].threshold));
        }
    }
}
