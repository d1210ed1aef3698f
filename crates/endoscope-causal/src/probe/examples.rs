//! What a probe is fitted on, and how it is split.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::statistics::shuffle;

/// What a probe shall say of each example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// One of some classes.
    Classes {
        /// The name of each class.
        names: Vec<String>,
        /// The class of each example.
        of: Vec<usize>,
    },
    /// A number.
    Numbers(Vec<f64>),
}

impl Labels {
    /// How many examples have one.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes { of, .. } => of.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of some examples, in that order.
    pub fn take(&self, rows: &[usize]) -> Self {
        match self {
            Self::Classes { names, of } => {
                Self::Classes { names: names.clone(), of: rows.iter().map(|&row| of[row]).collect() }
            }
            Self::Numbers(numbers) => Self::Numbers(rows.iter().map(|&row| numbers[row]).collect()),
        }
    }
}

/// Features with their labels.
#[derive(Debug, Clone)]
pub struct Examples {
    /// `[example, feature]`, f64.
    features: Tensor,
    labels: Labels,
    /// For each example what it belongs to: examples of one group are never on both sides of a split.
    groups: Vec<usize>,
}

impl Examples {
    /// Checks that features `[example, feature]`, labels and groups fit, and that every number is finite.
    pub fn new(features: &Tensor, labels: Labels, groups: Vec<usize>) -> Result<Self> {
        let fail = |reason: String| Err(Error::Probe(reason));
        let (count, dim) = features.dims2()?;
        if labels.len() != count || groups.len() != count {
            return fail(format!("{count} examples, {} labels and {} groups do not fit", labels.len(), groups.len()));
        }
        if count == 0 || dim == 0 {
            return fail(format!("there are {count} examples of {dim} features"));
        }
        match &labels {
            Labels::Classes { names, of } => {
                if let Some(class) = of.iter().find(|&&class| class >= names.len()) {
                    return fail(format!("there is no class {class}; there are {}", names.len()));
                }
            }
            Labels::Numbers(numbers) => {
                if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
                    return fail(format!("the label of example {at} is {}", numbers[at]));
                }
            }
        }
        let features = features.to_dtype(DType::F64)?.contiguous()?;
        // A sum is finite only if every number is.
        if !features.abs()?.sum_all()?.to_scalar::<f64>()?.is_finite() {
            return fail("an activation is not finite".into());
        }
        Ok(Self { features, labels, groups })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// `[example, feature]`, f64.
    pub fn features(&self) -> &Tensor {
        &self.features
    }

    /// The labels.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// What each example belongs to.
    pub fn groups(&self) -> &[usize] {
        &self.groups
    }

    /// The same with other labels.
    pub fn with_labels(&self, labels: Labels) -> Result<Self> {
        Self::new(&self.features, labels, self.groups.clone())
    }

    /// The same with other features.
    pub fn with_features(&self, features: &Tensor) -> Result<Self> {
        Self::new(features, self.labels.clone(), self.groups.clone())
    }

    /// Some of them, in that order.
    pub fn take(&self, rows: &[usize]) -> Result<Self> {
        let index: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let index = Tensor::from_vec(index, rows.len(), self.features.device())?;
        Ok(Self {
            features: self.features.index_select(&index, 0)?,
            labels: self.labels.take(rows),
            groups: rows.iter().map(|&row| self.groups[row]).collect(),
        })
    }
}

/// Which examples a probe is fitted on, and which it is scored on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Split {
    /// So many parts, each scored by a probe of the others: every example is scored once.
    Folds {
        /// How many.
        count: usize,
        /// From what the order comes.
        seed: u64,
    },
    /// One part is scored, by a probe of the rest.
    HoldOut {
        /// The share of groups that are scored, between 0 and 1.
        share: f64,
        /// From what the order comes.
        seed: u64,
    },
}

impl Split {
    /// The examples scored together, part by part. Groups stay whole, and are dealt out label by label, so that classes are as
    /// frequent in each part as in all.
    pub fn parts(self, examples: &Examples) -> Result<Vec<Vec<usize>>> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (row, &group) in examples.groups.iter().enumerate() {
            groups.entry(group).or_default().push(row);
        }
        let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
        let (Self::Folds { seed, .. } | Self::HoldOut { seed, .. }) = self;
        shuffle(&mut ChaCha8Rng::seed_from_u64(seed), &mut groups);
        if let Labels::Classes { of, .. } = &examples.labels {
            groups.sort_by_key(|rows| of[rows[0]]);
        }
        // The part that each group falls to, if it is scored at all.
        let (count, part): (usize, Box<dyn Fn(usize) -> Option<usize>>) = match self {
            Self::Folds { count, .. } => {
                if count < 2 || count > groups.len() {
                    let reason = "so many folds need at least 2, and a group for each";
                    return Err(Error::Probe(format!("{count} folds of {} groups: {reason}", groups.len())));
                }
                (count, Box::new(move |group| Some(group % count)))
            }
            Self::HoldOut { share, .. } => {
                if !(share > 0. && share < 1.) {
                    return Err(Error::Probe(format!("the share held out lies between 0 and 1; {share} does not")));
                }
                // Evenly spread: as often as the running share passes a whole number (from one half on).
                let passed = move |group: usize| (group as f64 * share + 0.5).floor();
                (1, Box::new(move |group| (passed(group + 1) > passed(group)).then_some(0)))
            }
        };
        let mut parts = vec![Vec::new(); count];
        for (number, rows) in groups.iter().enumerate() {
            if let Some(part) = part(number) {
                parts[part].extend(rows);
            }
        }
        if let Some(part) = parts.iter().find(|part| part.is_empty() || part.len() == examples.len()) {
            return Err(Error::Probe(format!(
                "of {} examples in {} groups {} would be scored, and the rest fitted; give more examples or another split",
                examples.len(),
                groups.len(),
                part.len()
            )));
        }
        parts.iter_mut().for_each(|part| part.sort_unstable());
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use proptest::prelude::*;

    fn examples(of: Vec<usize>, groups: Vec<usize>) -> Examples {
        let features = Tensor::zeros((of.len(), 2), DType::F32, &Device::Cpu).unwrap();
        let names = vec!["no".into(), "yes".into(), "perhaps".into()];
        Examples::new(&features, Labels::Classes { names, of }, groups).unwrap()
    }

    #[test]
    fn classes_are_spread_over_the_parts() {
        let all = examples((0..40).map(|row| row % 4 / 3).collect(), (0..40).collect());
        for part in (Split::Folds { count: 5, seed: 3 }).parts(&all).unwrap() {
            assert_eq!((part.len(), part.iter().filter(|&&row| row % 4 == 3).count()), (8, 2));
        }
        let held = Split::HoldOut { share: 0.25, seed: 3 }.parts(&all).unwrap();
        assert_eq!((held.len(), held[0].len()), (1, 10));
        assert!((2..=3).contains(&held[0].iter().filter(|&&row| row % 4 == 3).count()));
        let other = Split::HoldOut { share: 0.25, seed: 4 }.parts(&all).unwrap();
        assert_ne!(held, other);
    }

    #[test]
    fn what_cannot_be_split_or_does_not_fit_is_an_error() {
        let all = examples(vec![0, 1, 0], vec![0, 0, 1]);
        for split in [
            Split::Folds { count: 1, seed: 0 },
            Split::Folds { count: 3, seed: 0 },
            Split::HoldOut { share: 0., seed: 0 },
            Split::HoldOut { share: f64::NAN, seed: 0 },
            Split::HoldOut { share: 0.01, seed: 0 },
        ] {
            assert!(split.parts(&all).is_err(), "{split:?}");
        }
        let features = Tensor::new(&[[1f32, f32::NAN]], &Device::Cpu).unwrap();
        let numbers = |numbers: &[f64]| Labels::Numbers(numbers.to_vec());
        assert!(Examples::new(&features, numbers(&[1.]), vec![0]).unwrap_err().to_string().contains("not finite"));
        let features = features.zeros_like().unwrap();
        assert!(Examples::new(&features, numbers(&[1., 2.]), vec![0]).unwrap_err().to_string().contains("do not fit"));
        assert!(Examples::new(&features, numbers(&[f64::NAN]), vec![0]).unwrap_err().to_string().contains("is NaN"));
        let classes = Labels::Classes { names: vec!["a".into()], of: vec![1] };
        assert!(Examples::new(&features, classes, vec![0]).unwrap_err().to_string().contains("no class 1"));
    }

    proptest! {
        #[test]
        fn groups_stay_whole_and_folds_score_each_example_once(
            rows in proptest::collection::vec((0usize..3, 0usize..12), 6..60),
            count in 2usize..5,
            seed in 0u64..50,
        ) {
            let (of, groups): (Vec<usize>, Vec<usize>) = rows.into_iter().unzip();
            let all = examples(of, groups.clone());
            let Ok(parts) = (Split::Folds { count, seed }).parts(&all) else { return Ok(()) };
            let mut scored: Vec<usize> = parts.concat();
            scored.sort_unstable();
            prop_assert_eq!(scored, (0..groups.len()).collect::<Vec<_>>());
            for (number, part) in parts.iter().enumerate() {
                for other in &parts[number + 1..] {
                    prop_assert!(part.iter().all(|&row| other.iter().all(|&other| groups[row] != groups[other])));
                }
            }
        }
    }
}
