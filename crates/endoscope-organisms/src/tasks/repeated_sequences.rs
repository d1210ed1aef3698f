//! A random sequence, then the same sequence again: what an induction head is for (Elhage et al. 2021; Olsson et al. 2022,
//! arXiv 2209.11895). A sequence is `<bos> r r` with `r` of `n` random words. In the second copy every word but the
//! first is certain. `n` differs from batch to batch, so that no fixed distance predicts the answer.

use endoscope_train::{Batch, Batches, generator};
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::Deserialize;
use toml::Table;

use crate::error::Result;
use crate::task::{BOS, Row, SPECIAL, Task, named, words};
use crate::tasks::parameters::{Problems, read};
use crate::tasks::questions::{EVERYTHING, PAIRS, PromptPair};

/// Its name in the registry.
pub const NAME: &str = "repeated_sequences";

/// The task with its parameters, which are the keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepeatedSequences {
    /// How many words there are to draw from.
    pub words: usize,
    /// The shortest `n`.
    pub shortest: usize,
    /// The longest `n`.
    pub longest: usize,
    /// Whether the words of `r` are all different (then the word before decides the answer); default true.
    #[serde(default = "yes")]
    pub distinct: bool,
}

fn yes() -> bool {
    true
}

impl RepeatedSequences {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        read(NAME, parameters, Self::problems)
    }

    fn problems(&self, problems: &mut Problems) {
        let &Self { words, shortest, longest, distinct } = self;
        problems.count("words", words, 2, 1 << 20);
        problems.count("shortest", shortest, 2, 1 << 20);
        problems.count("longest", longest, shortest, 1 << 20);
        if distinct && longest > words {
            problems.push(format!("`task.longest` is {longest}, but there are only {words} different `task.words`"));
        }
    }

    /// `rows` sequences whose repeated part has `n` words; the same for the same arguments.
    pub fn sequences(&self, seed: u64, step: u64, rows: usize, n: usize) -> Vec<Vec<u32>> {
        let mut random = generator(seed, step);
        (0..rows).map(|_| self.sequence(&mut random, n)).collect()
    }

    fn sequence(&self, random: &mut impl rand::Rng, n: usize) -> Vec<u32> {
        let (first, count) = (SPECIAL.len() as u32, self.words as u32);
        let repeated: Vec<u32> = if self.distinct {
            let mut all: Vec<u32> = (first..first + count).collect();
            all.partial_shuffle(random, n).0.to_vec()
        } else {
            (0..n).map(|_| random.random_range(first..first + count)).collect()
        };
        [&[BOS][..], &repeated, &repeated].concat()
    }
}

impl Batches for RepeatedSequences {
    fn vocabulary(&self) -> usize {
        SPECIAL.len() + self.words
    }

    fn length(&self) -> usize {
        1 + 2 * self.longest
    }

    fn batch(&self, seed: u64, step: u64, rows: usize) -> Batch {
        let mut random = generator(seed, step);
        let n = random.random_range(self.shortest..=self.longest);
        let tokens: Vec<Vec<u32>> = (0..rows).map(|_| self.sequence(&mut random, n)).collect();
        let mask = tokens.iter().map(|row| self.answers(row).iter().map(Option::is_some).collect()).collect();
        Batch { tokens, mask }
    }
}

impl Task for RepeatedSequences {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        words(self.words)
    }

    fn answers(&self, tokens: &[u32]) -> Vec<Option<u32>> {
        let n = tokens.len().saturating_sub(1) / 2;
        // The first word of the second copy comes without warning.
        (0..tokens.len()).map(|at| (at >= n + 2).then(|| tokens[at - n])).collect()
    }

    /// For each `n` for which the prompt can be `<bos> r` and the beginning of `r`, the next word of `r`.
    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let [BOS, given @ ..] = prompt else { return Vec::new() };
        let next = |n: usize| {
            let (r, again) = given.split_at_checked(n)?;
            let begun = !again.is_empty() && r.starts_with(again);
            if begun { r.get(again.len()).copied() } else { None }
        };
        let mut right: Vec<u32> = (self.shortest..=self.longest).filter_map(next).collect();
        right.sort_unstable();
        right.dedup();
        right
    }

    /// Its `n` is its own; in a batch all rows have the same.
    fn row(&self, split: &str, seed: u64, number: u64) -> Result<Row> {
        named(NAME, "split", split, self.splits())?;
        let mut random = generator(seed, number);
        let n = random.random_range(self.shortest..=self.longest);
        let tokens = self.sequence(&mut random, n);
        let mask = self.answers(&tokens).iter().map(Option::is_some).collect();
        Ok(Row { tokens, mask })
    }

    fn changes(&self) -> &'static [&'static str] {
        &[EVERYTHING]
    }

    fn pair(&self, split: &str, change: &str, seed: u64, number: u64) -> Result<PromptPair> {
        named(NAME, "split", split, self.splits())?;
        named(NAME, "change", change, self.changes())?;
        let mut random = generator(seed, PAIRS.wrapping_add(number));
        let n = random.random_range(self.shortest..=self.longest);
        let asked = random.random_range(n + 2..=2 * n);
        let mut prompt = || {
            let mut tokens = self.sequence(&mut random, n);
            tokens.truncate(asked + 1);
            let answer = tokens.pop();
            (tokens, answer.into_iter().collect::<Vec<u32>>())
        };
        let (clean, answers) = prompt();
        loop {
            let (corrupt, wrong_answers) = prompt();
            if wrong_answers != answers {
                return Ok(PromptPair { clean, corrupt, answers, wrong_answers });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_second_half_repeats_the_first(
            seed: u64, step in 0u64..1000, words in 8usize..40, shortest in 2usize..5, more in 0usize..4, distinct: bool,
        ) {
            let task = RepeatedSequences { words, shortest, longest: shortest + more, distinct };
            let batch = task.batch(seed, step, 3);
            prop_assert_eq!(&batch, &task.batch(seed, step, 3));
            prop_assert!(batch.tokens != task.batch(seed, step + 1, 3).tokens || words < 10);
            for (tokens, mask) in batch.tokens.iter().zip(&batch.mask) {
                let n = (tokens.len() - 1) / 2;
                prop_assert!((task.shortest..=task.longest).contains(&n) && tokens.len() <= task.length());
                prop_assert_eq!(tokens[0], BOS);
                prop_assert_eq!(&tokens[1..=n], &tokens[n + 1..]);
                prop_assert!(tokens[1..].iter().all(|&id| id >= 2 && (id as usize) < task.vocabulary()));
                if distinct {
                    let different: std::collections::BTreeSet<_> = tokens[1..=n].iter().collect();
                    prop_assert_eq!(different.len(), n);
                }
                for (at, answer) in task.answers(tokens).into_iter().enumerate() {
                    prop_assert_eq!(answer.is_some(), mask[at]);
                    prop_assert!(answer.is_none_or(|answer| answer == tokens[at]));
                }
                prop_assert_eq!(mask.iter().filter(|&&counts| counts).count(), n - 1);
            }
        }
    }

    #[test]
    fn wrong_parameters_are_named() {
        let make = |text: &str| RepeatedSequences::from_parameters(&toml::from_str(text).unwrap());
        assert!(make("words = 9\nshortest = 2\nlongest = 9").is_ok());
        for (text, key) in [
            ("words = 9\nshortest = 2\nlongest = 10", "task.longest"),
            ("words = 9\nshortest = 1\nlongest = 9", "task.shortest"),
            ("words = 0\nshortest = 2\nlongest = 2\ndistinct = false", "task.words"),
            ("words = 9\nshortest = 2\nlongest = 9\nlonger = 3", "longer"),
            ("words = 9\nshortest = 2", "longest"),
        ] {
            let error = make(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
