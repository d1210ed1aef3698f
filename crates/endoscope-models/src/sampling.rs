//! Choosing the next token from its logits.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// How a token is chosen: temperature, then top-k, then top-p, in transformers' order.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 chooses the largest logit (the lowest id of equals).
    pub temperature: f64,
    /// Keep the k largest.
    pub top_k: Option<usize>,
    /// Keep the smallest set whose probability reaches p (Holtzman et al. 2019, arXiv 1904.09751).
    pub top_p: Option<f64>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0., top_k: None, top_p: None, seed: 0 }
    }
}

impl Sampling {
    /// An error if a setting makes no sense.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0. && self.temperature.is_finite()) {
            return Err(Error::Generation(format!("the temperature must be 0 or more, not {}", self.temperature)));
        }
        if self.top_k == Some(0) {
            return Err(Error::Generation("top-k must keep at least one token".into()));
        }
        if self.top_p.is_some_and(|p| !(p > 0. && p <= 1.)) {
            return Err(Error::Generation("top-p must lie above 0 and at most at 1".into()));
        }
        Ok(())
    }
}

/// A seeded stream of choices.
pub(crate) struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    pub fn new(sampling: &Sampling) -> Self {
        Self { sampling: sampling.clone(), random: ChaCha8Rng::seed_from_u64(sampling.seed) }
    }

    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|&logit| logit.is_nan() || logit == f32::INFINITY) {
            let reason = "the logits hold a NaN or an infinity: an edit of the plan may be too strong";
            return Err(Error::Generation(reason.into()));
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let larger_first = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
        if self.sampling.temperature == 0. {
            return Ok(order.into_iter().min_by(larger_first).unwrap_or(0) as u32);
        }
        order.sort_by(larger_first);
        order.truncate(self.sampling.top_k.unwrap_or(order.len()));
        let largest = f64::from(logits[order[0]]);
        let weight = |&id: &usize| ((f64::from(logits[id]) - largest) / self.sampling.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        if let Some(p) = self.sampling.top_p {
            let total: f64 = weights.iter().sum();
            let mut sum = 0.;
            // The token that crosses p is kept.
            let kept = weights.iter().position(|weight| {
                sum += weight / total;
                sum >= p
            });
            weights.truncate(kept.map_or(weights.len(), |at| at + 1));
        }
        let mut point = self.random.random::<f64>() * weights.iter().sum::<f64>();
        for (&id, weight) in order.iter().zip(&weights) {
            point -= weight;
            if point <= 0. {
                return Ok(id as u32);
            }
        }
        Ok(order[weights.len() - 1] as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(&sampling);
        let mut counts = vec![0.; logits.len()];
        for _ in 0..20000 {
            counts[sampler.choose(logits).unwrap() as usize] += 1. / 20000.;
        }
        counts
    }

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits = [0., 1., 2., -1.];
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (found, logit) in counts(Sampling { temperature: 1., ..Sampling::default() }, &logits).iter().zip(logits) {
            assert!((found - f64::from(logit).exp() / total).abs() < 0.015);
        }
        let only_two = counts(Sampling { temperature: 2., top_k: Some(2), ..Sampling::default() }, &logits);
        assert_eq!((only_two[0], only_two[3]), (0., 0.));
        assert!((only_two[2] / only_two[1] - 0.5f64.exp()).abs() < 0.1);
        // Probabilities are 0.64, 0.24, 0.09, 0.03: 0.7 needs the first two.
        let nucleus = counts(Sampling { temperature: 1., top_p: Some(0.7), ..Sampling::default() }, &logits);
        assert!(nucleus[1] > 0. && nucleus[0] == 0. && nucleus[3] == 0.);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_seeds_repeat() {
        assert_eq!(Sampler::new(&Sampling::default()).choose(&[1., 3., 3.]).unwrap(), 1);
        let sampling = Sampling { temperature: 1., seed: 7, ..Sampling::default() };
        let draw = || {
            let mut sampler = Sampler::new(&sampling);
            (0..50).map(|_| sampler.choose(&[0.; 9]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        assert!(Sampler::new(&sampling).choose(&[f32::NAN]).is_err());
        assert!(Sampler::new(&sampling).choose(&[0., f32::INFINITY]).is_err());
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for sampling in [
            Sampling { temperature: -1., ..Sampling::default() },
            Sampling { temperature: f64::NAN, ..Sampling::default() },
            Sampling { top_k: Some(0), ..Sampling::default() },
            Sampling { top_p: Some(0.), ..Sampling::default() },
            Sampling { top_p: Some(1.5), ..Sampling::default() },
        ] {
            assert!(sampling.check().is_err(), "{sampling:?}");
        }
    }
}
