//! Which steps a run keeps, and when it ends before its last.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The steps whose weights go into the series. The first weights (step 0) and the last are always among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Checkpoints {
    /// Every so many steps.
    Every {
        /// How many.
        every: u64,
    },
    /// So many steps from 1 to the last, evenly spaced in their logarithm; those that round to the same step are one.
    Log {
        /// How many.
        log: u64,
    },
    /// These.
    At(Vec<u64>),
}

impl Checkpoints {
    /// The steps of a run of `last` steps.
    pub fn steps(&self, last: u64) -> BTreeSet<u64> {
        let mut steps: BTreeSet<u64> = match self {
            Self::Every { every } => (0..=last).step_by((*every).max(1) as usize).collect(),
            Self::Log { log } => {
                let gaps = log.saturating_sub(1).max(1) as f64;
                (0..*log).map(|at| (last as f64).powf(at as f64 / gaps).round() as u64).collect()
            }
            Self::At(steps) => steps.iter().copied().collect(),
        };
        steps.extend([0, last]);
        steps.retain(|&step| step <= last);
        steps
    }

    pub(crate) fn problems(&self, last: u64) -> Option<String> {
        let wrong = match self {
            Self::Every { every: 0 } => "`every` must be at least 1".to_string(),
            Self::Log { log: 0 | 1 } => "`log` must be at least 2".to_string(),
            Self::Log { log } if *log > last.max(2) => format!("there are only {last} steps"),
            Self::At(steps) if !steps.is_sorted_by(|a, b| a < b) => "the steps must rise".to_string(),
            Self::At(steps) if steps.last().is_some_and(|&step| step > last) => format!("there are only {last} steps"),
            _ => return None,
        };
        Some(format!("`training.checkpoints`: {wrong}"))
    }
}

/// When a run is good enough. Batches are fresh in every update, so that their accuracy is that of data never seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStop {
    /// The share of certain tokens that have the largest logit, from 0 to 1.
    pub accuracy: f64,
    /// Over so many updates in a row it is reached on the mean; default 10.
    #[serde(default = "ten")]
    pub updates: u64,
}

fn ten() -> u64 {
    10
}

impl EarlyStop {
    /// Whether the accuracies of all updates so far end in a stretch that is good enough.
    pub fn is_reached(&self, accuracies: &[f32]) -> bool {
        let Some(start) = accuracies.len().checked_sub(self.updates as usize) else { return false };
        let stretch = accuracies[start..].iter();
        stretch.map(|&accuracy| f64::from(accuracy)).sum::<f64>() >= self.accuracy * self.updates as f64
    }

    pub(crate) fn problems(&self) -> Option<String> {
        let fine = (0. ..=1.).contains(&self.accuracy) && self.updates > 0;
        (!fine).then(|| "`training.early_stop`: `accuracy` lies from 0 to 1, and `updates` is at least 1".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_that_were_asked_for() {
        for (checkpoints, last, expected) in [
            (Checkpoints::Every { every: 4 }, 10, vec![0, 4, 8, 10]),
            (Checkpoints::Every { every: 5 }, 10, vec![0, 5, 10]),
            (Checkpoints::Every { every: 99 }, 10, vec![0, 10]),
            (Checkpoints::Log { log: 4 }, 1000, vec![0, 1, 10, 100, 1000]),
            (Checkpoints::Log { log: 5 }, 5, vec![0, 1, 2, 3, 5]),
            (Checkpoints::At(vec![2, 3]), 10, vec![0, 2, 3, 10]),
            (Checkpoints::At(vec![]), 10, vec![0, 10]),
        ] {
            assert_eq!(checkpoints.steps(last).into_iter().collect::<Vec<_>>(), expected, "{checkpoints:?}");
        }
    }

    #[test]
    fn a_run_is_good_enough_after_a_whole_stretch() {
        let stop = EarlyStop { accuracy: 0.75, updates: 2 };
        assert!(!stop.is_reached(&[]));
        assert!(!stop.is_reached(&[1.]));
        assert!(!stop.is_reached(&[1., 1., 0.25]));
        assert!(stop.is_reached(&[0., 0.5, 1.]));
    }
}
