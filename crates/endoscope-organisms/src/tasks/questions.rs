//! Tasks that ask one question: a prompt, and the one word that answers it. Each gives training data as every task does,
//! and pairs of prompts whose answers differ, for methods that exchange activations between them.

use endoscope_train::{Batch, Batches, generator};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::task::{Row, Task, named};

/// Streams of random numbers for pairs are counted from here, so that they share nothing with batches.
pub(crate) const PAIRS: u64 = 1 << 63;

/// The change that leaves nothing but the length as it was.
pub const EVERYTHING: &str = "everything";

/// A question with one right answer.
pub trait Question: Send + Sync {
    /// Its name in the registry of tasks.
    fn name(&self) -> &'static str;
    /// The text of each token, by id, the special tokens first.
    fn words(&self) -> Vec<String>;
    /// How many items a prompt may have: the fewest and the most. The length of a prompt depends on nothing else.
    fn items(&self) -> (usize, usize);
    /// The length of a prompt with so many items, `<bos>` included.
    fn length(&self, items: usize) -> usize;
    /// The nearest number of items that a prompt may have.
    fn within(&self, items: usize) -> usize {
        let (fewest, most) = self.items();
        items.clamp(fewest, most)
    }
    /// A random prompt with so many items (or the nearest number that it may have).
    fn prompt(&self, random: &mut dyn Rng, items: usize) -> Vec<u32>;
    /// The answer by the definition of the task, `None` if this is none of its prompts. Reads the prompt alone, so that
    /// it checks both the generator and a model.
    fn answer(&self, prompt: &[u32]) -> Option<u32>;
}

/// Two prompts of one length whose answers differ. As JSON it is an entry of a prompt file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptPair {
    /// A prompt.
    pub clean: Vec<u32>,
    /// Another of the same length: drawn independently, or the clean one with one change.
    pub corrupt: Vec<u32>,
    /// The answers to the clean prompt that are none to the corrupt one; where a question has one answer, that.
    pub answers: Vec<u32>,
    /// The answers to the corrupt prompt that are none to the clean one.
    pub wrong_answers: Vec<u32>,
}

/// `count` pairs of prompts; the same for the same arguments. Their lengths differ from pair to pair.
pub fn pairs(question: &dyn Question, seed: u64, count: usize) -> Vec<PromptPair> {
    (0..count as u64).map(|number| pair(question, &mut generator(seed, PAIRS + number))).collect()
}

fn pair(question: &dyn Question, random: &mut dyn Rng) -> PromptPair {
    let (fewest, most) = question.items();
    let items = random.random_range(fewest..=most);
    let (clean, answer) = asked(question, random, items);
    loop {
        let (corrupt, wrong) = asked(question, random, items);
        if wrong != answer {
            return PromptPair { clean, corrupt, answers: vec![answer], wrong_answers: vec![wrong] };
        }
    }
}

/// A prompt and its answer.
fn asked(question: &dyn Question, random: &mut dyn Rng, items: usize) -> (Vec<u32>, u32) {
    loop {
        let prompt = question.prompt(random, items);
        if let Some(answer) = question.answer(&prompt) {
            return (prompt, answer);
        }
    }
}

/// A question as a task: sequences are prompts, each with its answer as the last token, which alone is certain.
pub struct Asked<Q>(pub Q);

impl<Q: Question> Batches for Asked<Q> {
    fn vocabulary(&self) -> usize {
        self.0.words().len()
    }

    fn length(&self) -> usize {
        self.0.length(self.0.items().1) + 1
    }

    fn batch(&self, seed: u64, step: u64, rows: usize) -> Batch {
        let mut random = generator(seed, step);
        let (fewest, most) = self.0.items();
        let items = random.random_range(fewest..=most);
        let sequence = |_| {
            let (mut tokens, answer) = asked(&self.0, &mut random, items);
            tokens.push(answer);
            tokens
        };
        let tokens: Vec<Vec<u32>> = (0..rows).map(sequence).collect();
        let mask = tokens.iter().map(|row| self.answers(row).iter().map(Option::is_some).collect()).collect();
        Batch { tokens, mask }
    }
}

impl<Q: Question> Task for Asked<Q> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn words(&self) -> Vec<String> {
        self.0.words()
    }

    fn answers(&self, tokens: &[u32]) -> Vec<Option<u32>> {
        let last = tokens.len().saturating_sub(1);
        (0..tokens.len()).map(|at| (at == last).then(|| self.0.answer(&tokens[..at])).flatten()).collect()
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        self.0.answer(prompt).into_iter().collect()
    }

    fn row(&self, split: &str, seed: u64, number: u64) -> Result<Row> {
        named(self.0.name(), "split", split, self.splits())?;
        let mut random = generator(seed, number);
        let (fewest, most) = self.0.items();
        let items = random.random_range(fewest..=most);
        let (prompt, answer) = asked(&self.0, &mut random, items);
        Ok(Row::new(prompt, &[answer]))
    }

    fn changes(&self) -> &'static [&'static str] {
        &[EVERYTHING]
    }

    fn pair(&self, split: &str, change: &str, seed: u64, number: u64) -> Result<PromptPair> {
        named(self.0.name(), "split", split, self.splits())?;
        named(self.0.name(), "change", change, self.changes())?;
        Ok(pair(&self.0, &mut generator(seed, PAIRS.wrapping_add(number))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::BOS;
    use crate::tasks::count_modulo_three::CountModuloThree;
    use crate::tasks::two_hop_lookup::TwoHopLookup;
    use crate::tasks::what_followed::WhatFollowed;
    use proptest::prelude::*;

    fn check(question: impl Question, seed: u64, step: u64) -> std::result::Result<(), TestCaseError> {
        let (words, (fewest, most)) = (question.words(), question.items());
        let pairs = pairs(&question, seed, 8);
        prop_assert_eq!(&pairs, &super::pairs(&question, seed, 8));
        prop_assert_eq!(&pairs[..5], &super::pairs(&question, seed, 5)[..], "fewer pairs are the first of more");
        for pair in &pairs {
            prop_assert_eq!(pair.clean.len(), pair.corrupt.len());
            prop_assert!((fewest..=most).any(|items| question.length(items) == pair.clean.len()));
            prop_assert!(pair.clean.iter().chain(&pair.corrupt).all(|&id| (id as usize) < words.len()));
            prop_assert_eq!((pair.clean[0], pair.corrupt[0]), (BOS, BOS));
            prop_assert_eq!(&pair.answers, &[question.answer(&pair.clean).unwrap()]);
            prop_assert_eq!(&pair.wrong_answers, &[question.answer(&pair.corrupt).unwrap()]);
            prop_assert_ne!(&pair.answers, &pair.wrong_answers);
        }
        for items in [0, usize::MAX] {
            let prompt = question.prompt(&mut generator(seed, step), items);
            prop_assert_eq!(prompt.len(), question.length(question.within(items)));
            prop_assert!(question.answer(&prompt).is_some());
        }
        let task = Asked(question);
        let batch = task.batch(seed, step, 4);
        prop_assert_eq!(&batch, &task.batch(seed, step, 4));
        for (tokens, mask) in batch.tokens.iter().zip(&batch.mask) {
            let last = tokens.len() - 1;
            prop_assert!(tokens.len() <= task.length());
            let counted: Vec<usize> = (0..tokens.len()).filter(|&at| mask[at]).collect();
            prop_assert_eq!(counted, vec![last]);
            prop_assert_eq!(task.answers(tokens)[last], Some(tokens[last]));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn pairs_and_batches_are_what_they_say(seed: u64, step in 0u64..1000) {
            check(WhatFollowed, seed, step)?;
            check(CountModuloThree, seed, step)?;
            check(TwoHopLookup, seed, step)?;
        }
    }

    fn answer(question: &dyn Question, text: &str) -> Option<String> {
        let words = question.words();
        let id = |word: &str| words.iter().position(|known| known == word).unwrap() as u32;
        question.answer(&text.split(' ').map(id).collect::<Vec<_>>()).map(|id| words[id as usize].clone())
    }

    #[test]
    fn the_answers_are_those_that_a_reader_would_give() {
        for (question, rows) in [
            (
                &WhatFollowed as &dyn Question,
                &[
                    ("<bos> ba da fa ga da", Some("fa")),
                    ("<bos> ba da fa ga ba", Some("da")),
                    ("<bos> ba da fa ga ga", Some("ga")),
                    ("<bos> ba da fa da ga da", None),
                    ("<bos> ba da fa", None),
                    ("<bos>", None),
                    ("<bos> <bos>", None),
                ][..],
            ),
            (
                &CountModuloThree,
                &[
                    ("<bos> fig lime fig plum fig date count fig =", Some("zero")),
                    ("<bos> fig lime fig plum fig date count lime =", Some("one")),
                    ("<bos> fig lime fig plum pear date count fig =", Some("two")),
                    ("<bos> fig fig fig fig pear date count fig =", Some("one")),
                    ("<bos> fig lime fig plum pear date count grape =", Some("zero")),
                    ("<bos> fig fig fig fig fig date count fig =", None),
                    ("<bos> fig lime fig plum pear date count one =", None),
                    ("<bos> fig lime fig plum pear date count fig", None),
                ],
            ),
            (
                &TwoHopLookup,
                &[
                    ("<bos> anna rome boris lyon clara berlin country annie", Some("italy")),
                    ("<bos> anna rome boris lyon clara berlin size annie", Some("capital")),
                    ("<bos> anna rome boris lyon clara berlin country bo", Some("france")),
                    ("<bos> anna rome boris lyon clara berlin size bo", Some("town")),
                    ("<bos> anna munich boris seville clara milan country annie", Some("germany")),
                    ("<bos> anna munich boris seville clara milan country bo", Some("spain")),
                    ("<bos> anna rome boris lyon clara berlin country dave", None),
                    ("<bos> anna rome anna lyon clara berlin country annie", None),
                    ("<bos> anna rome boris lyon clara berlin country anna", None),
                    ("<bos> anna rome boris lyon clara country annie", None),
                ],
            ),
        ] {
            for &(text, expect) in rows {
                assert_eq!(answer(question, text).as_deref(), expect, "{text}");
            }
        }
    }
}
