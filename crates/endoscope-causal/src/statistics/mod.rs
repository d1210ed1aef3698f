//! Statistics: intervals, tests, corrections, rankings and correlations.
//!
//! For whoever measures something on several prompts or seeds and says how sure it is. Plain numbers go in and come out: no
//! network, no tensor. What is drawn at random is drawn from a seed, and repeats bit for bit.
//!
//! ```
//! use endoscope_causal::statistics::{Resampling, holm, seeds, sign_flip, Alternative, Permutations};
//! let drops = [0.31, 0.28, 0.40, 0.12, 0.35, 0.22, 0.30, 0.27];
//! let interval = Resampling::default().mean(&drops)?;
//! assert!(interval.low > 0.2 && interval.low < interval.estimate && interval.estimate < interval.high);
//! let p = sign_flip(&drops, Alternative::TwoSided, Permutations::default())?;
//! assert_eq!(p, 2. / 256.); // all signs as they are, or all turned, of 2^8
//! assert_eq!(holm(&[p, 0.5])?, [2. * p, 0.5]);
//! assert!(seeds(&[0.91, 0.94, 0.92], 0.95)?.low > 0.85);
//! # Ok::<(), endoscope_causal::Error>(())
//! ```

mod bootstrap;
mod correction;
mod correlation;
mod permutation;
mod ranking;
mod seeds;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

pub use bootstrap::{Bootstrap, Interval, Resampling, interval_of};
pub use correction::{benjamini_hochberg, holm};
pub use correlation::{pearson, spearman};
pub use permutation::{Alternative, Permutations, sign_flip, two_sample};
pub use ranking::{Precision, auc, average_precision, precision_recall};
pub use seeds::{Seeds, seeds};

use crate::error::{Error, Result};

fn fail<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Statistics(reason.into()))
}

/// Refuses numbers that are not finite.
fn finite(name: &str, values: &[f64]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => fail(format!("{name} {at} is {}", values[at])),
        None => Ok(()),
    }
}

fn confident(confidence: f64) -> Result<()> {
    match confidence > 0. && confidence < 1. {
        true => Ok(()),
        false => fail(format!("a confidence lies between 0 and 1, as in 0.95; not {confidence}")),
    }
}

fn mean_of(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// A number below `bound`, each equally likely: Lemire 2019 (arXiv 1805.10941), whose multiplication maps 64 random bits; those
/// that would favour some number are drawn again.
pub(crate) fn below(generator: &mut ChaCha8Rng, bound: usize) -> usize {
    let bound = (bound as u64).max(1);
    let refused = bound.wrapping_neg() % bound;
    loop {
        let wide = u128::from(generator.next_u64()) * u128::from(bound);
        if (wide as u64) >= refused {
            return (wide >> 64) as usize;
        }
    }
}

/// A standard normal number (Box and Muller 1958).
pub(crate) fn normal(generator: &mut ChaCha8Rng) -> f64 {
    // In (0, 1]: 53 bits, and never zero.
    let mut uniform = || ((generator.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    (-2. * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
}

/// Puts a list into an order of which each is equally likely (Fisher and Yates).
pub(crate) fn shuffle<T>(generator: &mut ChaCha8Rng, list: &mut [T]) {
    for at in (1..list.len()).rev() {
        list.swap(at, below(generator, at + 1));
    }
}

/// The rank of each number from 1; numbers that are equal share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.; values.len()];
    let mut before = 0;
    // -0 and 0 sort apart and are equal all the same; they are neighbours.
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        tied.iter().for_each(|&at| ranks[at] = before as f64 + (tied.len() + 1) as f64 / 2.);
        before += tied.len();
    }
    ranks
}
