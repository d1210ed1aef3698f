//! Metrics: from logits at the last position to one number.

use candle_core::Tensor;
use endoscope_net::Index;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::prompts::Answers;

/// What is measured on the logits of the last position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Mean logit of the answers less the mean logit of the wrong answers.
    LogitDiff,
    /// Total probability of the answers.
    Probability,
    /// Kullback-Leibler divergence from the clean run's distribution, KL(clean || this), in nats.
    Kl,
    /// Minus the logarithm of the total probability of the answers, in nats.
    Loss,
    /// How many tokens have a larger logit than the best answer (0 = the answer is on top).
    Rank,
    /// 1 if no token has a larger logit than the best answer, else 0.
    Accuracy,
}

/// What a metric compares with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Target {
    /// Ids of the right answers.
    pub answers: Vec<u32>,
    /// Ids of the wrong answers.
    pub wrong_answers: Vec<u32>,
    /// Logits of the clean run.
    pub clean: Vec<f32>,
}

impl Target {
    /// The same target for logits of which only `columns` are there.
    pub fn among(&self, columns: &Index) -> Result<Self> {
        let Index::List(columns) = columns else { return Ok(self.clone()) };
        let place = |id: &u32| {
            let found = columns.iter().position(|&column| column == i64::from(*id)).map(|at| at as u32);
            let reason = || format!("the token id {id} is not among the columns read");
            found.ok_or_else(|| Error::Metric { metric: "of some columns", reason: reason() })
        };
        let places = |ids: &[u32]| ids.iter().map(place).collect::<Result<Vec<u32>>>();
        let clean =
            columns.iter().filter_map(|&column| self.clean.get(usize::try_from(column).ok()?).copied()).collect();
        Ok(Self { answers: places(&self.answers)?, wrong_answers: places(&self.wrong_answers)?, clean })
    }
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::LogitDiff, Self::Probability, Self::Kl, Self::Loss, Self::Rank, Self::Accuracy];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::LogitDiff => "logit_diff",
            Self::Probability => "probability",
            Self::Kl => "kl",
            Self::Loss => "loss",
            Self::Rank => "rank",
            Self::Accuracy => "accuracy",
        }
    }

    /// How much worse than `from` the value `to` is: towards less of the behaviour, or further from the clean run.
    pub fn damage(self, from: f64, to: f64) -> f64 {
        match self {
            Self::LogitDiff | Self::Probability | Self::Accuracy => from - to,
            Self::Kl | Self::Loss | Self::Rank => to - from,
        }
    }

    /// The answers that it needs.
    pub fn needs(self) -> Answers {
        match self {
            Self::LogitDiff => Answers::RightAndWrong,
            Self::Probability | Self::Loss | Self::Rank | Self::Accuracy => Answers::Right,
            Self::Kl => Answers::None,
        }
    }

    /// The logits that it reads, each once: some tokens', or all.
    pub fn columns(self, target: &Target) -> Index {
        if self != Self::LogitDiff {
            return Index::All;
        }
        let mut columns: Vec<i64> = Vec::new();
        for &id in target.answers.iter().chain(&target.wrong_answers) {
            if !columns.contains(&i64::from(id)) {
                columns.push(i64::from(id));
            }
        }
        Index::List(columns)
    }

    /// Whether what it compares with is there, for `count` logits.
    pub(crate) fn check(self, target: &Target, count: usize) -> Result<()> {
        let fail = |reason: String| Err(Error::Metric { metric: self.name(), reason });
        let mut ids = target.answers.iter().chain(&target.wrong_answers);
        if let Some(id) = ids.find(|&&id| id as usize >= count) {
            return fail(format!("the answer's token id {id} is out of range: there are {count} logits"));
        }
        let needed = self.needs();
        if needed != Answers::None && target.answers.is_empty() {
            return fail("the answer is missing".into());
        }
        if needed == Answers::RightAndWrong && target.wrong_answers.is_empty() {
            return fail("the wrong answer is missing".into());
        }
        if self == Self::Kl && target.clean.len() != count {
            return fail("the clean run's logits are missing".into());
        }
        Ok(())
    }

    /// The number for one row of logits, computed in f64.
    pub fn value(self, logits: &[f32], target: &Target) -> Result<f64> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::Metric { metric: self.name(), reason: "the logits hold a NaN".into() });
        }
        self.check(target, logits.len())?;
        let logit = |&id: &u32| f64::from(logits[id as usize]);
        match self {
            Self::LogitDiff => {
                let mean = |ids: &[u32]| ids.iter().map(logit).sum::<f64>() / ids.len() as f64;
                Ok(mean(&target.answers) - mean(&target.wrong_answers))
            }
            Self::Probability | Self::Loss => {
                let answers: Vec<f64> = target.answers.iter().map(logit).collect();
                let log_probability = log_sum_exp(answers) - log_sum_exp(logits.iter().map(|&l| f64::from(l)));
                Ok(if self == Self::Loss { -log_probability } else { log_probability.exp() })
            }
            Self::Rank | Self::Accuracy => {
                let best = target.answers.iter().map(logit).fold(f64::NEG_INFINITY, f64::max);
                let larger = logits.iter().filter(|&&logit| f64::from(logit) > best).count();
                Ok(if self == Self::Rank { larger as f64 } else { f64::from(u8::from(larger == 0)) })
            }
            Self::Kl => {
                let pairs = log_softmax(&target.clean).into_iter().zip(log_softmax(logits));
                Ok(pairs.map(|(p, q)| p.exp() * (p - q)).sum())
            }
        }
    }

    /// The same as a tensor `[v] -> []` with a gradient. A rank and an accuracy have none.
    pub fn differentiable(self, logits: &Tensor, target: &Target) -> Result<Tensor> {
        self.check(target, logits.dims1()?)?;
        let device = logits.device();
        let chosen = |ids: &[u32]| -> Result<Tensor> { Ok(logits.index_select(&Tensor::new(ids, device)?, 0)?) };
        match self {
            Self::LogitDiff => Ok((chosen(&target.answers)?.mean_all()? - chosen(&target.wrong_answers)?.mean_all()?)?),
            Self::Probability | Self::Loss => {
                let log_probability = (chosen(&target.answers)?.log_sum_exp(0)? - logits.log_sum_exp(0)?)?;
                Ok(if self == Self::Loss { log_probability.neg()? } else { log_probability.exp()? })
            }
            Self::Kl => {
                let clean = Tensor::new(target.clean.as_slice(), device)?;
                let log_p = clean.broadcast_sub(&clean.log_sum_exp(0)?)?;
                let log_q = logits.broadcast_sub(&logits.log_sum_exp(0)?)?;
                Ok((log_p.exp()? * (log_p - log_q)?)?.sum_all()?)
            }
            Self::Rank | Self::Accuracy => {
                Err(Error::Metric { metric: self.name(), reason: "it counts tokens, so it has no gradient".into() })
            }
        }
    }
}

/// The logarithms of the probabilities, in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let total = log_sum_exp(logits.iter().map(|&logit| f64::from(logit)));
    logits.iter().map(|&logit| f64::from(logit) - total).collect()
}

fn log_sum_exp(numbers: impl IntoIterator<Item = f64> + Clone) -> f64 {
    let largest = numbers.clone().into_iter().fold(f64::NEG_INFINITY, f64::max);
    largest + numbers.into_iter().map(|number| (number - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[derive(Deserialize)]
    struct Case {
        clean: Vec<f32>,
        corrupt: Vec<f32>,
        answers: Vec<u32>,
        wrong_answers: Vec<u32>,
        of_clean: std::collections::BTreeMap<String, f64>,
        of_corrupt: std::collections::BTreeMap<String, f64>,
    }

    fn cases() -> Vec<Case> {
        #[derive(Deserialize)]
        struct File {
            cases: Vec<Case>,
        }
        serde_json::from_str::<File>(include_str!("../tests/goldens/metrics.json")).unwrap().cases
    }

    #[test]
    fn values_equal_an_independent_f64_computation() {
        for case in cases() {
            let target = Target { answers: case.answers, wrong_answers: case.wrong_answers, clean: case.clean.clone() };
            for metric in Metric::ALL {
                for (logits, golden) in [(&case.clean, &case.of_clean), (&case.corrupt, &case.of_corrupt)] {
                    let found = metric.value(logits, &target).unwrap();
                    let expected = match metric {
                        Metric::Accuracy => f64::from(u8::from(golden["rank"] == 0.)),
                        _ => golden[metric.name()],
                    };
                    assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.), "{metric:?}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences_of_the_values() {
        for case in cases() {
            let target = Target { answers: case.answers, wrong_answers: case.wrong_answers, clean: case.clean };
            for metric in [Metric::LogitDiff, Metric::Probability, Metric::Kl, Metric::Loss] {
                let logits = Var::new(case.corrupt.as_slice(), &Device::Cpu).unwrap();
                let value = metric.differentiable(logits.as_tensor(), &target).unwrap();
                assert!(
                    (f64::from(value.to_scalar::<f32>().unwrap()) - metric.value(&case.corrupt, &target).unwrap())
                        .abs()
                        < 1e-4
                );
                let gradients = value.backward().unwrap();
                let gradient = gradients.get(&logits).unwrap().to_vec1::<f32>().unwrap();
                for (id, gradient) in gradient.into_iter().enumerate() {
                    let at = |step: f32| {
                        let mut moved = case.corrupt.clone();
                        moved[id] += step;
                        metric.value(&moved, &target).unwrap()
                    };
                    let slope = (at(0.01) - at(-0.01)) / 0.02;
                    assert!((f64::from(gradient) - slope).abs() < 1e-3, "{metric:?} {id}: {gradient} {slope}");
                }
            }
        }
    }

    #[test]
    fn the_columns_read_are_enough() {
        let logits = [0.5, -1., 2., 0.25, 3.];
        let target = Target { answers: vec![4, 1], wrong_answers: vec![2, 4], clean: logits.to_vec() };
        for metric in Metric::ALL {
            let columns = metric.columns(&target);
            let read: Vec<f32> = match &columns {
                Index::List(list) => list.iter().map(|&id| logits[id as usize]).collect(),
                _ => logits.to_vec(),
            };
            let found = metric.value(&read, &target.among(&columns).unwrap()).unwrap();
            assert_eq!(found, metric.value(&logits, &target).unwrap(), "{metric:?}");
        }
        assert_eq!(Metric::LogitDiff.columns(&target), Index::List(vec![4, 1, 2]));
        assert!(target.among(&Index::List(vec![4])).is_err());
    }

    #[test]
    fn no_gradient_of_what_is_missing() {
        let logits = Tensor::zeros(10, candle_core::DType::F32, &Device::Cpu).unwrap();
        let right = Target { answers: vec![3], ..Target::default() };
        for (metric, target, part) in [
            (Metric::LogitDiff, Target::default(), "the answer is missing"),
            (Metric::LogitDiff, right.clone(), "the wrong answer is missing"),
            (Metric::Probability, Target::default(), "the answer is missing"),
            (Metric::Loss, Target { answers: vec![10], ..Target::default() }, "id 10 is out of range"),
            (Metric::Kl, right.clone(), "clean run's logits"),
            (Metric::Rank, right.clone(), "no gradient"),
            (Metric::Accuracy, right, "no gradient"),
        ] {
            let error = metric.differentiable(&logits, &target).unwrap_err().to_string();
            assert!(error.contains(part), "{metric:?}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_computed_is_an_error() {
        let target = Target { answers: vec![9], ..Target::default() };
        assert!(Metric::Rank.value(&[0., 1.], &target).unwrap_err().to_string().contains("id 9 is out of range"));
        assert!(Metric::Loss.value(&[0.; 10], &Target::default()).is_err());
        assert!(Metric::LogitDiff.value(&[0.; 10], &target).is_err());
        assert!(Metric::Kl.value(&[0.; 10], &target).is_err());
        assert!(Metric::Loss.value(&[f32::NAN; 10], &target).unwrap_err().to_string().contains("NaN"));
    }
}
