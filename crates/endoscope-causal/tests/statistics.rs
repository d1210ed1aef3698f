//! Statistics against scipy, statsmodels and scikit-learn (tools/goldens/statistics_goldens.py).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;

use endoscope_causal::statistics::*;
use serde::Deserialize;

/// All of it is computed in f64 in another order.
const TOLERANCE: f64 = 1e-10;

#[derive(Deserialize)]
struct Goldens {
    bootstraps: Vec<BootstrapCase>,
    seeds: Vec<SeedsCase>,
    permutations: Vec<PermutationCase>,
    corrections: Vec<CorrectionCase>,
    rankings: Vec<RankingCase>,
    correlations: Vec<CorrelationCase>,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("goldens/statistics.json")).unwrap()
}

fn close(name: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (found, expected) in found.iter().zip(expected) {
        let off = (found - expected).abs();
        assert!(off <= TOLERANCE * expected.abs().max(1.), "{name}: {found} is not {expected}");
    }
}

#[derive(Deserialize)]
struct BootstrapCase {
    values: Vec<f64>,
    rows: Vec<Vec<usize>>,
    confidence: f64,
    percentile: [f64; 2],
    bca: [f64; 2],
}

#[test]
fn intervals_of_the_same_resamples_are_those_of_scipy() {
    for case in goldens().bootstraps {
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let resampled: Vec<f64> =
            case.rows.iter().map(|rows| mean(rows.iter().map(|&row| case.values[row]).collect())).collect();
        let count = case.values.len();
        let left_out: Vec<f64> =
            (0..count).map(|row| mean([&case.values[..row], &case.values[row + 1..]].concat())).collect();
        for (method, expected) in [(Bootstrap::Percentile, case.percentile), (Bootstrap::Bca, case.bca)] {
            let estimate = mean(case.values.clone());
            let found = interval_of(estimate, resampled.clone(), &left_out, case.confidence, method).unwrap();
            close(&format!("{method:?} of {count}"), &[found.low, found.high], &expected);
        }
    }
}

#[derive(Deserialize)]
struct SeedsCase {
    values: Vec<f64>,
    confidence: f64,
    mean: f64,
    deviation: f64,
    interval: [f64; 2],
}

#[test]
fn seeds_are_summarised_as_scipy_does() {
    for case in goldens().seeds {
        let found = seeds(&case.values, case.confidence).unwrap();
        let expected = [case.mean, case.deviation, case.interval[0], case.interval[1]];
        close("seeds", &[found.mean, found.deviation, found.low, found.high], &expected);
        assert_eq!(found.count, case.values.len());
    }
}

#[derive(Deserialize)]
struct PermutationCase {
    a: Vec<f64>,
    b: Vec<f64>,
    p: BTreeMap<String, f64>,
}

#[test]
fn exact_tests_are_those_of_scipy() {
    let all = Permutations { count: 100_000, seed: 0 };
    for case in goldens().permutations {
        assert_eq!(case.p.len(), 6);
        for (name, expected) in &case.p {
            let (kind, alternative) = name.split_once(' ').unwrap();
            let alternative = match alternative {
                "two-sided" => Alternative::TwoSided,
                "less" => Alternative::Less,
                _ => Alternative::Greater,
            };
            let found = match kind {
                "sign_flip" => sign_flip(&case.a, alternative, all),
                _ => two_sample(&case.a, &case.b, alternative, all),
            };
            close(name, &[found.unwrap()], &[*expected]);
        }
    }
}

#[derive(Deserialize)]
struct CorrectionCase {
    p: Vec<f64>,
    holm: Vec<f64>,
    benjamini_hochberg: Vec<f64>,
}

#[test]
fn corrections_are_those_of_statsmodels() {
    for case in goldens().corrections {
        close("Holm", &holm(&case.p).unwrap(), &case.holm);
        close("Benjamini-Hochberg", &benjamini_hochberg(&case.p).unwrap(), &case.benjamini_hochberg);
    }
}

#[derive(Deserialize)]
struct RankingCase {
    scores: Vec<f64>,
    truth: Vec<bool>,
    auc: f64,
    average_precision: f64,
    thresholds: Vec<f64>,
    precision: Vec<f64>,
    recall: Vec<f64>,
}

#[test]
fn rankings_are_those_of_scikit_learn() {
    for case in goldens().rankings {
        let (scores, truth) = (&case.scores, &case.truth);
        close("AUC", &[auc(scores, truth).unwrap()], &[case.auc]);
        close("average precision", &[average_precision(scores, truth).unwrap()], &[case.average_precision]);
        let curve = precision_recall(scores, truth).unwrap();
        let of = |part: fn(&Precision) -> f64| curve.iter().map(part).collect::<Vec<_>>();
        close("thresholds", &of(|point| point.threshold), &case.thresholds);
        close("precision", &of(|point| point.precision), &case.precision);
        close("recall", &of(|point| point.recall), &case.recall);
    }
}

#[derive(Deserialize)]
struct CorrelationCase {
    a: Vec<f64>,
    b: Vec<f64>,
    pearson: f64,
    spearman: f64,
}

#[test]
fn correlations_are_those_of_scipy() {
    for case in goldens().correlations {
        close("Pearson", &[pearson(&case.a, &case.b).unwrap()], &[case.pearson]);
        close("Spearman", &[spearman(&case.a, &case.b).unwrap()], &[case.spearman]);
    }
}
