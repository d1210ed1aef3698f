//! How well a probe does on examples that it was not fitted on, and the controls.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::{Examples, Labels, Probe, Split};
use crate::error::{Error, Result};
use crate::statistics::{Interval, Resampling, auc, normal, shuffle};

/// What a probe gave on examples that it was not fitted on. Intervals are over groups.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ProbeScores {
    /// The share of examples whose class has the largest probability.
    pub accuracy: Option<Interval>,
    /// The area under the ROC curve of the probabilities; of more than two classes the mean of each against the others.
    pub auc: Option<Interval>,
    /// 1 less the squared errors, as a share of those that the mean of all scored labels makes.
    pub r2: Option<Interval>,
}

/// What was predicted for an example that the probe was not fitted on.
enum Predictions {
    /// For each example `[class]`.
    Probabilities(Vec<Vec<f64>>),
    Numbers(Vec<f64>),
}

/// Scores a probe on the parts of a split, each by a fit of the other examples.
pub fn score(probe: &Probe, examples: &Examples, split: Split, resampling: &Resampling) -> Result<ProbeScores> {
    let classes = match examples.labels() {
        Labels::Classes { names, .. } => names.len(),
        Labels::Numbers(_) => 0,
    };
    let (mut rows, mut probabilities, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for part in split.parts(examples)? {
        let rest: Vec<usize> = (0..examples.len()).filter(|row| part.binary_search(row).is_err()).collect();
        let fitted = probe.fit(&examples.take(&rest)?)?;
        let features = examples.take(&part)?;
        match examples.labels() {
            Labels::Classes { .. } => {
                for row in fitted.probabilities(features.features())? {
                    // A class that the fit has not seen has no probability.
                    let mut all = vec![0.; classes];
                    fitted.classes.iter().zip(row).for_each(|(&class, probability)| all[class] = probability);
                    probabilities.push(all);
                }
            }
            Labels::Numbers(_) => numbers.extend(fitted.scores(features.features())?.into_iter().flatten()),
        }
        rows.extend(part);
    }
    let truth = examples.labels().take(&rows);
    let groups: Vec<usize> = rows.iter().map(|&row| examples.groups()[row]).collect();
    let predictions = match truth {
        Labels::Classes { .. } => Predictions::Probabilities(probabilities),
        Labels::Numbers(_) => Predictions::Numbers(numbers),
    };
    intervals(&predictions, &truth, &groups, resampling)
}

fn intervals(
    predictions: &Predictions,
    truth: &Labels,
    groups: &[usize],
    resampling: &Resampling,
) -> Result<ProbeScores> {
    let mut of_group: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    groups.iter().enumerate().for_each(|(row, &group)| of_group.entry(group).or_default().push(row));
    let of_group: Vec<Vec<usize>> = of_group.into_values().collect();
    // Groups are drawn, since the examples of one are not independent.
    let interval = |statistic: &dyn Fn(&[usize]) -> f64| {
        let of_rows = |groups: &[usize]| {
            statistic(&groups.iter().flat_map(|&group| &of_group[group]).copied().collect::<Vec<_>>())
        };
        let all = of_rows(&(0..of_group.len()).collect::<Vec<_>>());
        // One group, or a statistic that these examples do not have.
        match all.is_nan() || of_group.len() < 2 {
            true => Ok(None),
            false => resampling.of_rows(of_group.len(), of_rows).map(Some),
        }
    };
    match (predictions, truth) {
        (Predictions::Probabilities(probabilities), Labels::Classes { names, of }) => {
            let right: Vec<bool> = probabilities.iter().zip(of).map(|(row, &class)| largest(row) == class).collect();
            let accuracy = |rows: &[usize]| rows.iter().filter(|&&row| right[row]).count() as f64 / rows.len() as f64;
            let area = |rows: &[usize]| mean_auc(rows, probabilities, of, names.len());
            Ok(ProbeScores { accuracy: interval(&accuracy)?, auc: interval(&area)?, r2: None })
        }
        (Predictions::Numbers(found), Labels::Numbers(wanted)) => {
            let explained = |rows: &[usize]| {
                let mean = rows.iter().map(|&row| wanted[row]).sum::<f64>() / rows.len() as f64;
                let errors: f64 = rows.iter().map(|&row| (wanted[row] - found[row]).powi(2)).sum();
                let spread: f64 = rows.iter().map(|&row| (wanted[row] - mean).powi(2)).sum();
                if spread > 0. { 1. - errors / spread } else { f64::NAN }
            };
            Ok(ProbeScores { r2: interval(&explained)?, ..ProbeScores::default() })
        }
        _ => Err(Error::Probe("predictions and labels are of different kinds".into())),
    }
}

/// The first class of the largest probability.
fn largest(row: &[f64]) -> usize {
    (0..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best })
}

/// Of two classes the area of the second; of more the mean over those that some rows have and others have not.
fn mean_auc(rows: &[usize], probabilities: &[Vec<f64>], of: &[usize], classes: usize) -> f64 {
    let first = if classes == 2 { 1 } else { 0 };
    let areas: Vec<f64> = (first..classes)
        .filter_map(|class| {
            let scores: Vec<f64> = rows.iter().map(|&row| probabilities[row][class]).collect();
            let truth: Vec<bool> = rows.iter().map(|&row| of[row] == class).collect();
            auc(&scores, &truth).ok()
        })
        .collect();
    areas.iter().sum::<f64>() / areas.len() as f64
}

/// The control task of Hewitt and Liang: every type keeps one label wherever it occurs, but which one is drawn at random (the
/// labels of the types are dealt out anew). `types[i]` is the type of example i: its group, or the word that it is about.
///
/// A probe that does well on it has learned the types by heart; what it does better on the true labels is its selectivity.
pub fn shuffled_labels(labels: &Labels, types: &[usize], seed: u64) -> Result<Labels> {
    if types.len() != labels.len() {
        return Err(Error::Probe(format!("{} types and {} labels do not fit", types.len(), labels.len())));
    }
    // The first example of each type.
    let mut number_of: HashMap<usize, usize> = HashMap::new();
    let mut first = Vec::new();
    for (row, &kind) in types.iter().enumerate() {
        number_of.entry(kind).or_insert_with(|| {
            first.push(row);
            first.len() - 1
        });
    }
    shuffle(&mut ChaCha8Rng::seed_from_u64(seed), &mut first);
    let rows: Vec<usize> = types.iter().map(|kind| first[number_of[kind]]).collect();
    Ok(labels.take(&rows))
}

/// Features that know nothing: `[examples, dim]` of independent normal numbers.
pub fn random_features(count: usize, dim: usize, seed: u64) -> Result<Tensor> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let numbers: Vec<f64> = (0..count * dim).map(|_| normal(&mut generator)).collect();
    Ok(Tensor::from_vec(numbers, (count, dim), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Features, Intercept, ProbeKind};

    fn probe(kind: ProbeKind) -> Probe {
        Probe { kind, features: Features::Standardised, intercept: Intercept::Fitted }
    }

    fn few() -> Resampling {
        Resampling { resamples: 200, ..Resampling::default() }
    }

    const FOLDS: Split = Split::Folds { count: 4, seed: 1 };

    /// Random features of which the first two say the class (of three) or the number.
    fn examples(numbers: bool) -> Examples {
        let features = random_features(90, 6, 3).unwrap();
        let rows = features.to_vec2::<f64>().unwrap();
        let labels = match numbers {
            true => Labels::Numbers(rows.iter().map(|row| 3. * row[0] - row[1] + 0.1 * row[2]).collect()),
            false => {
                let class = |row: &Vec<f64>| if row[0] > 0.3 { 2 } else { usize::from(row[1] > 0.) };
                Labels::Classes { names: ["a", "b", "c"].map(Into::into).into(), of: rows.iter().map(class).collect() }
            }
        };
        Examples::new(&features, labels, (0..90).collect()).unwrap()
    }

    #[test]
    fn what_is_linear_is_found_and_the_controls_find_nothing() {
        let logistic = probe(ProbeKind::Logistic { l2: 0.1 });
        let all = examples(false);
        let types: Vec<usize> = (0..90).collect();
        let shuffled = all.with_labels(shuffled_labels(all.labels(), &types, 5).unwrap()).unwrap();
        let random = all.with_features(&random_features(90, 6, 9).unwrap()).unwrap();
        let accuracy = |examples: &Examples| score(&logistic, examples, FOLDS, &few()).unwrap().accuracy.unwrap();
        let (found, shuffled, random) = (accuracy(&all), accuracy(&shuffled), accuracy(&random));
        assert!(found.estimate > 0.85 && found.low > 0.75, "{found:?}");
        assert!(shuffled.high < found.low && random.high < found.low, "{shuffled:?} {random:?}");
        let area = score(&logistic, &all, FOLDS, &few()).unwrap().auc.unwrap();
        assert!(area.estimate > 0.9 && area.high <= 1.);
        let ridge = score(&probe(ProbeKind::Ridge { l2: 0.1 }), &examples(true), FOLDS, &few()).unwrap();
        assert!(ridge.r2.unwrap().estimate > 0.98 && ridge.accuracy.is_none());
    }

    #[test]
    fn a_control_task_is_learned_by_heart_where_types_return() {
        // Six types, each with a feature of its own, seen many times: any labelling of them is linear.
        let types: Vec<usize> = (0..60).map(|row| row % 6).collect();
        let one_hot: Vec<f64> =
            types.iter().flat_map(|&kind| (0..6).map(move |at| f64::from(u8::from(at == kind)))).collect();
        let of: Vec<usize> = types.iter().map(|kind| kind % 2).collect();
        let labels = Labels::Classes { names: vec!["even".into(), "odd".into()], of };
        let features = Tensor::from_vec(one_hot, (60, 6), &Device::Cpu).unwrap();
        let all = Examples::new(&features, labels, (0..60).collect()).unwrap();
        let accuracy = |types: &[usize]| {
            let control = all.with_labels(shuffled_labels(all.labels(), types, 2).unwrap()).unwrap();
            score(&probe(ProbeKind::Logistic { l2: 0.01 }), &control, FOLDS, &few()).unwrap().accuracy.unwrap().estimate
        };
        assert_eq!(accuracy(&types), 1.);
        assert!(accuracy(&(0..60).collect::<Vec<_>>()) < 0.75);
    }

    #[test]
    fn shuffling_keeps_types_together_and_the_labels_of_types() {
        let labels = Labels::Numbers((0..30).map(|row| f64::from(row / 3)).collect());
        let types: Vec<usize> = (0..30).map(|row| row / 3).collect();
        let Labels::Numbers(found) = shuffled_labels(&labels, &types, 7).unwrap() else { panic!("numbers") };
        assert!(found.chunks(3).all(|type_of| type_of[0] == type_of[1] && type_of[1] == type_of[2]));
        let mut sorted = found.clone();
        sorted.sort_by(f64::total_cmp);
        assert_eq!(Labels::Numbers(sorted), labels);
        assert_ne!(Labels::Numbers(found), labels);
        assert!(shuffled_labels(&labels, &types[1..], 7).is_err());
    }

    #[test]
    fn the_area_of_several_classes_is_that_of_scikit_learn() {
        #[derive(Deserialize)]
        struct Goldens {
            cases: Vec<Case>,
        }
        #[derive(Deserialize)]
        struct Case {
            labels: Vec<f64>,
            #[serde(default)]
            probabilities: Vec<Vec<f64>>,
            auc: Option<f64>,
        }
        let goldens: Goldens = serde_json::from_str(include_str!("../../tests/goldens/probes.json")).unwrap();
        let of_several: Vec<Case> = goldens.cases.into_iter().filter(|case| case.auc.is_some()).collect();
        assert_eq!(of_several.len(), 12);
        for Case { labels, probabilities, auc } in of_several {
            let of: Vec<usize> = labels.iter().map(|&label| label as usize).collect();
            let found = mean_auc(&(0..of.len()).collect::<Vec<_>>(), &probabilities, &of, 3);
            assert!((found - auc.unwrap()).abs() < 1e-10);
        }
    }

    #[test]
    fn random_features_are_standard_normal() {
        let features = random_features(200, 50, 11).unwrap();
        let all = features.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let mean = all.iter().sum::<f64>() / 1e4;
        let square = all.iter().map(|x| x * x).sum::<f64>() / 1e4;
        let beyond = all.iter().filter(|x| x.abs() > 1.96).count() as f64 / 1e4;
        assert!(mean.abs() < 0.04 && (square - 1.).abs() < 0.05 && (beyond - 0.05).abs() < 0.01);
    }

    #[test]
    fn probes_and_labels_must_fit() {
        let check = |kind: ProbeKind, examples: &Examples, part: &str| {
            let error = probe(kind).fit(examples).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let (classes, numbers) = (examples(false), examples(true));
        check(ProbeKind::Ridge { l2: 1. }, &classes, "needs numbers");
        check(ProbeKind::Logistic { l2: 1. }, &numbers, "needs classes");
        check(ProbeKind::MassMean, &classes, "two classes apart, not 3");
        for l2 in [0., -1., f64::NAN, f64::INFINITY] {
            check(ProbeKind::Logistic { l2 }, &classes, "positive number");
        }
        check(ProbeKind::Ridge { l2: -1. }, &numbers, "from 0 on");
        let one = classes.with_labels(Labels::Classes { names: vec!["a".into()], of: vec![0; 90] }).unwrap();
        check(ProbeKind::Logistic { l2: 1. }, &one, "one label");
    }
}
