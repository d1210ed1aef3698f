//! Addition modulo `p`: `<bos> a + b =`, then `c` with `c = a + b` modulo `p`. All `p * p` sums are divided into those that are
//! trained on and those that are not, so that one can see when a model that has learned the former by heart begins to give the
//! latter: grokking (Power et al. 2022, arXiv 2201.02177; Nanda et al. 2023, arXiv 2301.05217).

use endoscope_train::generator;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, Template, numbers};
use super::parameters::{read, refuse};
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::{Row, TRAIN};

/// Its name in the registry.
pub const NAME: &str = "modular_addition";
/// The sums that are not trained on.
pub const TEST: &str = "test";

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// The modulus `p`; default 97.
    pub modulus: usize,
    /// The share of all sums that is trained on; default 0.4.
    pub train_share: f64,
    /// Whether the sums are given to pairs of numbers at random: then there is nothing to be understood, which is the
    /// control; default false.
    pub shuffled: bool,
    /// What decides which sums are trained on (and how they are shuffled); default 0.
    pub seed: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { modulus: 97, train_share: 0.4, shuffled: false, seed: 0 }
    }
}

/// The task.
#[derive(Debug, Clone)]
pub struct ModularAddition {
    modulus: usize,
    /// `c` of `a * modulus + b`.
    sums: Vec<usize>,
    /// `a * modulus + b` of the sums that are trained on, then of the others.
    order: Vec<usize>,
    /// How many are trained on.
    trained: usize,
    /// Whether `a * modulus + b` is trained on.
    is_trained: Vec<bool>,
    lexicon: Lexicon,
    number: Kind,
    sum: Template,
}

impl ModularAddition {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("modulus", parameters.modulus, 2, 1000);
            problems.share("train_share", parameters.train_share);
        })?;
        Self::new(&parameters)
    }

    fn new(&Parameters { modulus, train_share, shuffled, seed }: &Parameters) -> Result<Self> {
        let all = modulus * modulus;
        let mut order: Vec<usize> = (0..all).collect();
        order.shuffle(&mut generator(seed, 0));
        let trained = (all as f64 * train_share).round() as usize;
        if trained == 0 || trained == all {
            let problem = format!("`task.train_share` is {train_share}: of {all} sums, {trained} would be trained on");
            return Err(refuse(NAME, problem + "; some must be, and some must not"));
        }
        let mut sums: Vec<usize> = (0..all).map(|pair| (pair / modulus + pair % modulus) % modulus).collect();
        if shuffled {
            sums.shuffle(&mut generator(seed, 1));
        }
        let mut is_trained = vec![false; all];
        order[..trained].iter().for_each(|&pair| is_trained[pair] = true);
        let (lexicon, [number]) = Lexicon::new([numbers(0..modulus)], "+ =");
        let sum = lexicon.template("_ + _ =", &[number, number]);
        Ok(Self { modulus, sums, order, trained, is_trained, lexicon, number, sum })
    }

    /// All pairs of numbers of a split, each once, in random order.
    pub fn operands(&self, split: &str) -> impl Iterator<Item = (usize, usize)> {
        self.codes(split).iter().map(|pair| (pair / self.modulus, pair % self.modulus))
    }

    /// What `a` and `b` make, as the task has it; `None` if either is not below the modulus.
    pub fn sum(&self, a: usize, b: usize) -> Option<usize> {
        (a < self.modulus && b < self.modulus).then(|| self.sums[a * self.modulus + b])
    }

    fn codes(&self, split: &str) -> &[usize] {
        let (trained, others) = self.order.split_at(self.trained);
        if split == TEST { others } else { trained }
    }

    fn drawn(&self, split: &str, random: &mut dyn Rng) -> (usize, usize) {
        let codes = self.codes(split);
        let pair = codes[random.random_range(0..codes.len())];
        (pair / self.modulus, pair % self.modulus)
    }
}

impl Exercise for ModularAddition {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        self.sum.length() + 1
    }

    fn splits(&self) -> &'static [&'static str] {
        &[TRAIN, TEST]
    }

    fn row(&self, split: &str, random: &mut dyn Rng) -> Row {
        let (a, b) = self.drawn(split, random);
        let prompt = self.sum.fill(&[a, b]);
        let answer = self.right(&prompt);
        Row::new(prompt, &answer)
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let sum = |slots: Vec<usize>| self.sum(slots[0], slots[1]);
        self.sum.read(prompt).and_then(sum).map(|sum| self.number.token(sum)).into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["first", "second"]
    }

    /// Both prompts are of the split.
    fn pair(&self, split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let (a, b) = self.drawn(split, random);
        let other = random.random_range(0..self.modulus);
        let (c, d) = if change == "first" { (other, b) } else { (a, other) };
        let trained = self.is_trained[c * self.modulus + d];
        if trained != (split == TRAIN) {
            return None;
        }
        compared(self, self.sum.fill(&[a, b]), self.sum.fill(&[c, d]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn made(text: &str) -> Result<ModularAddition> {
        ModularAddition::from_parameters(&toml::from_str(text).unwrap())
    }

    #[test]
    fn every_sum_is_in_one_split() {
        for (modulus, share, trained) in [(97, 0.3, 2823), (5, 0.5, 13), (2, 0.25, 1)] {
            let task = made(&format!("modulus = {modulus}\ntrain_share = {share}")).unwrap();
            let [train, test] = [TRAIN, TEST].map(|split| task.operands(split).collect::<BTreeSet<_>>());
            assert_eq!((train.len(), train.len() + test.len()), (trained, modulus * modulus));
            assert!(train.is_disjoint(&test));
            assert!(train.iter().chain(&test).all(|&(a, b)| task.sum(a, b) == Some((a + b) % modulus)));
            let other = made(&format!("modulus = {modulus}\ntrain_share = {share}\nseed = 3")).unwrap();
            assert!(modulus == 2 || other.operands(TRAIN).collect::<BTreeSet<_>>() != train);
        }
    }

    #[test]
    fn shuffled_sums_are_the_same_sums_elsewhere() {
        let (task, shuffled) = (made("modulus = 31").unwrap(), made("modulus = 31\nshuffled = true").unwrap());
        let right = (0..task.sums.len()).filter(|&pair| task.sums[pair] == shuffled.sums[pair]).count();
        assert!(right < 100, "{right} of 961, by chance 31");
        assert_eq!(task.order, shuffled.order);
        let sorted = |mut sums: Vec<usize>| {
            sums.sort_unstable();
            sums
        };
        assert_eq!(sorted(task.sums), sorted(shuffled.sums));
    }

    #[test]
    fn what_leaves_a_split_empty_is_refused() {
        for (text, key) in [
            ("modulus = 1", "task.modulus"),
            ("train_share = 1.0", "task.train_share"),
            ("train_share = 0.00001", "task.train_share"),
            ("train_share = nan", "task.train_share"),
            ("module = 7", "module"),
        ] {
            let error = made(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
