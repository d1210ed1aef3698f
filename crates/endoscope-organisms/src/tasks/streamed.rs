//! Tasks whose rows are drawn one by one: row `number` of a split is a function of the seed and of its number alone, so that
//! data has no end and needs no room. [`Exercise`] says how one row is drawn, [`Streamed`] makes a task of it.

use endoscope_train::{Batch, Batches, generator};
use rand::Rng;

use super::questions::PromptPair;
use crate::error::{Error, Result};
use crate::task::{BOS, Row, TRAIN, Task, named};

/// How often a pair is drawn until its answers differ.
const ATTEMPTS: usize = 1000;

/// A task, as far as it differs from others. What is random comes from `random` alone.
pub trait Exercise: Send + Sync {
    /// Its name in the registry of tasks.
    fn name(&self) -> &'static str;
    /// The text of each token, by id, the special tokens first.
    fn words(&self) -> Vec<String>;
    /// The length of the longest row of any split.
    fn longest(&self) -> usize;
    /// The parts of its data, by name; the first is trained on. None is empty.
    fn splits(&self) -> &'static [&'static str] {
        &[TRAIN]
    }
    /// A row of this split.
    fn row(&self, split: &str, random: &mut dyn Rng) -> Row;
    /// Every token that is right after `prompt`, sorted; none where the task asks nothing, or where this is none of its
    /// prompts. Reads the prompt alone, so that it checks both the generator and a model.
    fn right(&self, prompt: &[u32]) -> Vec<u32>;
    /// What a corrupt prompt may have other than the clean one, by name.
    fn changes(&self) -> &'static [&'static str];
    /// A clean prompt of this split, and the same with this change; `None` if that did not change the answer.
    fn pair(&self, split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair>;
}

/// The two prompts with their right answers, less those that are right for both; `None` if either is left without.
pub(crate) fn compared(exercise: &dyn Exercise, clean: Vec<u32>, corrupt: Vec<u32>) -> Option<PromptPair> {
    let (right, wrong) = (exercise.right(&clean), exercise.right(&corrupt));
    let without = |these: &[u32], those: &[u32]| -> Vec<u32> {
        these.iter().copied().filter(|token| !those.contains(token)).collect()
    };
    let (answers, wrong_answers) = (without(&right, &wrong), without(&wrong, &right));
    let differ = !answers.is_empty() && !wrong_answers.is_empty() && clean.len() == corrupt.len();
    differ.then_some(PromptPair { clean, corrupt, answers, wrong_answers })
}

/// An exercise as a task. A row of a batch that is shorter than the longest is filled up with `<bos>`, which never counts: a
/// causal model's other positions do not see it.
pub struct Streamed<E>(pub E);

/// Whether a row or a pair is drawn: their random numbers have nothing in common.
#[derive(Debug, Clone, Copy)]
enum Drawn {
    Row = 0,
    Pair = 1,
}

/// The stream of random numbers of one row or pair.
fn stream(drawn: Drawn, split: usize, number: u64) -> u64 {
    (drawn as u64) << 63 | (split as u64) << 56 | number & ((1 << 56) - 1)
}

impl<E: Exercise> Streamed<E> {
    fn split(&self, split: &str) -> Result<usize> {
        named(self.0.name(), "split", split, self.0.splits())
    }
}

impl<E: Exercise> Batches for Streamed<E> {
    fn vocabulary(&self) -> usize {
        self.0.words().len()
    }

    fn length(&self) -> usize {
        self.0.longest()
    }

    /// Rows `step * rows`, `step * rows + 1`, … of the first split.
    fn batch(&self, seed: u64, step: u64, rows: usize) -> Batch {
        let split = self.0.splits().first().copied().unwrap_or(TRAIN);
        let first = step.wrapping_mul(rows as u64);
        let number = |row: usize| stream(Drawn::Row, 0, first.wrapping_add(row as u64));
        let drawn: Vec<Row> = (0..rows).map(|row| self.0.row(split, &mut generator(seed, number(row)))).collect();
        let longest = drawn.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
        let (mut tokens, mut mask) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for mut row in drawn {
            row.tokens.resize(longest, BOS);
            row.mask.resize(longest, false);
            tokens.push(row.tokens);
            mask.push(row.mask);
        }
        Batch { tokens, mask }
    }
}

impl<E: Exercise> Task for Streamed<E> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn words(&self) -> Vec<String> {
        self.0.words()
    }

    fn answers(&self, tokens: &[u32]) -> Vec<Option<u32>> {
        let certain = |at: usize| match self.0.right(&tokens[..at])[..] {
            [one] => Some(one),
            _ => None,
        };
        (0..tokens.len()).map(certain).collect()
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        self.0.right(prompt)
    }

    fn splits(&self) -> &'static [&'static str] {
        self.0.splits()
    }

    fn row(&self, split: &str, seed: u64, number: u64) -> Result<Row> {
        let stream = stream(Drawn::Row, self.split(split)?, number);
        Ok(self.0.row(split, &mut generator(seed, stream)))
    }

    fn changes(&self) -> &'static [&'static str] {
        self.0.changes()
    }

    fn pair(&self, split: &str, change: &str, seed: u64, number: u64) -> Result<PromptPair> {
        named(self.0.name(), "change", change, self.0.changes())?;
        let mut random = generator(seed, stream(Drawn::Pair, self.split(split)?, number));
        let found = (0..ATTEMPTS).find_map(|_| self.0.pair(split, change, &mut random));
        let nothing = || Error::NoPair { task: self.0.name(), change: change.to_string(), split: split.to_string() };
        found.ok_or_else(nothing)
    }
}
