//! Tests by permutation: how often chance alone gives what was seen (Fisher 1935; Phipson and Smyth 2010, arXiv 1603.05766).

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{fail, finite, mean_of, shuffle};
use crate::error::Result;

/// Which difference counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alternative {
    /// Either: twice the smaller of the other two.
    TwoSided,
    /// A mean below the other.
    Less,
    /// A mean above the other.
    Greater,
}

/// How many permutations a test may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permutations {
    /// Where there are at most so many, all are taken and the test is exact; else so many are drawn.
    pub count: usize,
    /// From what they are drawn.
    pub seed: u64,
}

impl Default for Permutations {
    /// 10,000.
    fn default() -> Self {
        Self { count: 10_000, seed: 0 }
    }
}

/// The p-value of the mean of paired differences, whose signs chance would give at random.
///
/// Exact where 2^n is at most `count`; else `(1 + as extreme) / (1 + drawn)`, which is never zero.
pub fn sign_flip(differences: &[f64], alternative: Alternative, permutations: Permutations) -> Result<f64> {
    finite("difference", differences)?;
    check(differences.len(), permutations)?;
    let mut tally = Tally::new(mean_of(differences), largest(differences));
    let signed = |negative: &dyn Fn(usize) -> bool| {
        let signed = differences.iter().enumerate().map(|(at, value)| if negative(at) { -value } else { *value });
        signed.sum::<f64>() / differences.len() as f64
    };
    let all = 1usize.checked_shl(differences.len() as u32).filter(|&all| all <= permutations.count);
    if let Some(all) = all {
        (0..all).for_each(|signs| tally.add(signed(&|at| signs >> at & 1 == 1)));
        return Ok(tally.exact(alternative));
    }
    let mut generator = ChaCha8Rng::seed_from_u64(permutations.seed);
    for _ in 0..permutations.count {
        let signs: Vec<u64> = (0..differences.len().div_ceil(64)).map(|_| generator.next_u64()).collect();
        tally.add(signed(&|at| signs[at / 64] >> (at % 64) & 1 == 1));
    }
    Ok(tally.drawn(alternative))
}

/// The p-value of the difference of the means of two samples, whose division chance would make at random.
///
/// Exact where there are at most `count` divisions; else as [`sign_flip`].
pub fn two_sample(a: &[f64], b: &[f64], alternative: Alternative, permutations: Permutations) -> Result<f64> {
    finite("value", a)?;
    finite("value of the second sample", b)?;
    check(a.len().min(b.len()), permutations)?;
    let mut pooled = [a, b].concat();
    let total: f64 = pooled.iter().sum();
    let mut tally = Tally::new(mean_of(a) - mean_of(b), largest(&pooled));
    let difference = |sum: f64| sum / a.len() as f64 - (total - sum) / b.len() as f64;
    if choices(pooled.len(), a.len()).is_some_and(|all| all <= permutations.count) {
        let mut chosen: Vec<usize> = (0..a.len()).collect();
        loop {
            tally.add(difference(chosen.iter().map(|&at| pooled[at]).sum()));
            if !next_choice(&mut chosen, pooled.len()) {
                return Ok(tally.exact(alternative));
            }
        }
    }
    let mut generator = ChaCha8Rng::seed_from_u64(permutations.seed);
    for _ in 0..permutations.count {
        shuffle(&mut generator, &mut pooled);
        tally.add(difference(pooled[..a.len()].iter().sum()));
    }
    Ok(tally.drawn(alternative))
}

fn check(least: usize, permutations: Permutations) -> Result<()> {
    match (least, permutations.count) {
        (0, _) => fail("a test needs at least one value in each sample"),
        (_, 0) => fail("a test needs at least one permutation"),
        _ => Ok(()),
    }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0., |largest: f64, value| largest.max(value.abs()))
}

/// How many permutations gave at most, and at least, what was observed.
struct Tally {
    observed: f64,
    /// Sums of the same numbers in another order differ by this much and are equal all the same.
    rounding: f64,
    less: usize,
    greater: usize,
    count: usize,
}

impl Tally {
    fn new(observed: f64, scale: f64) -> Self {
        Self { observed, rounding: 1e-13 * scale, less: 0, greater: 0, count: 0 }
    }

    fn add(&mut self, value: f64) {
        self.less += usize::from(value <= self.observed + self.rounding);
        self.greater += usize::from(value >= self.observed - self.rounding);
        self.count += 1;
    }

    fn exact(&self, alternative: Alternative) -> f64 {
        self.p(alternative, 0)
    }

    /// The observed division is one of those that chance might have drawn.
    fn drawn(&self, alternative: Alternative) -> f64 {
        self.p(alternative, 1)
    }

    fn p(&self, alternative: Alternative, own: usize) -> f64 {
        let share = |extreme: usize| (extreme + own) as f64 / (self.count + own) as f64;
        match alternative {
            Alternative::Less => share(self.less),
            Alternative::Greater => share(self.greater),
            Alternative::TwoSided => (2. * share(self.less.min(self.greater))).min(1.),
        }
    }
}

/// How many ways there are to choose `chosen` of `all`; `None` where there are too many to count.
fn choices(all: usize, chosen: usize) -> Option<usize> {
    let chosen = chosen.min(all - chosen);
    (0..chosen).try_fold(1usize, |ways, at| Some(ways.checked_mul(all - at)? / (at + 1)))
}

/// The next choice of ascending numbers below `all`; whether there was one.
fn next_choice(chosen: &mut [usize], all: usize) -> bool {
    let count = chosen.len();
    let Some(at) = (0..count).rev().find(|&at| chosen[at] + count - at < all) else { return false };
    let start = chosen[at] + 1;
    chosen[at..].iter_mut().enumerate().for_each(|(offset, number)| *number = start + offset);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_choice_comes_once() {
        let (mut chosen, mut seen) = (vec![0, 1, 2], std::collections::BTreeSet::new());
        loop {
            assert!(seen.insert(chosen.clone()));
            if !next_choice(&mut chosen, 6) {
                break;
            }
        }
        assert_eq!((seen.len(), choices(6, 3), choices(100, 50)), (20, Some(20), None));
    }

    #[test]
    fn drawn_permutations_agree_with_all_of_them() {
        let a: Vec<f64> = (0..9).map(|at| f64::from(at * 7 % 5) - 1.2).collect();
        let b: Vec<f64> = (0..8).map(|at| f64::from(at * 3 % 7) - 2.).collect();
        for alternative in [Alternative::TwoSided, Alternative::Less, Alternative::Greater] {
            let some = Permutations { count: 20_000, seed: 5 };
            let all = Permutations { count: 1 << 20, seed: 0 };
            // 2^9 flips are few enough to be exact even here; repeat the values so that they are not.
            let long = [&a[..], &a[..]].concat();
            let (drawn, exact) =
                (sign_flip(&long, alternative, some).unwrap(), sign_flip(&long, alternative, all).unwrap());
            assert!(drawn != exact && (drawn - exact).abs() < 0.02, "{drawn} {exact}");
            let drawn = two_sample(&a, &b, alternative, some).unwrap();
            let exact = two_sample(&a, &b, alternative, all).unwrap();
            assert!(drawn != exact && (drawn - exact).abs() < 0.02, "{drawn} {exact}");
        }
    }

    #[test]
    fn chance_alone_is_seldom_significant() {
        let mut generator = ChaCha8Rng::seed_from_u64(2);
        let found = (0..400).filter(|&seed| {
            let values: Vec<f64> = (0..14).map(|_| super::super::below(&mut generator, 2001) as f64 - 1000.).collect();
            sign_flip(&values, Alternative::TwoSided, Permutations { count: 200, seed }).unwrap() <= 0.1
        });
        let share = found.count() as f64 / 400.;
        assert!((0.05..0.15).contains(&share), "{share}");
    }

    #[test]
    fn nothing_cannot_be_tested() {
        let usual = Permutations::default();
        assert!(sign_flip(&[], Alternative::Less, usual).is_err());
        assert!(two_sample(&[1.], &[], Alternative::Less, usual).is_err());
        assert!(sign_flip(&[1.], Alternative::Less, Permutations { count: 0, seed: 0 }).is_err());
        assert!(two_sample(&[1., f64::NAN], &[1.], Alternative::Less, usual).is_err());
    }

    proptest! {
        #[test]
        fn a_p_value_is_one_and_turns_with_the_sign(values in proptest::collection::vec(-5f64..5., 1..40)) {
            let turned: Vec<f64> = values.iter().map(|value| -value).collect();
            let p = |values: &[f64], alternative| sign_flip(values, alternative, Permutations { count: 300, seed: 1 }).unwrap();
            for alternative in [Alternative::TwoSided, Alternative::Less, Alternative::Greater] {
                let p = p(&values, alternative);
                prop_assert!(p > 0. && p <= 1.);
            }
            prop_assert_eq!(p(&values, Alternative::Less), p(&turned, Alternative::Greater));
        }
    }
}
