//! What a task is, and what its tokens are called.

use endoscope_train::Batches;

use crate::error::{Error, Result};
use crate::tasks::questions::PromptPair;

/// Stands before every sequence.
pub const BOS: u32 = 0;
/// A word that the tokenizer does not know; never in a task's data.
pub const UNKNOWN: u32 = 1;
/// The tokens that are no words, by id.
pub const SPECIAL: [&str; 2] = ["<bos>", "<unk>"];

/// The split that is trained on.
pub const TRAIN: &str = "train";

/// A sequence of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its tokens, `<bos>` first.
    pub tokens: Vec<u32>,
    /// Whether each counts in the loss (as the target of the position before).
    pub mask: Vec<bool>,
}

impl Row {
    /// A prompt and its answer, of which the answer alone is learned.
    pub fn new(prompt: Vec<u32>, answer: &[u32]) -> Self {
        let mut mask = vec![false; prompt.len()];
        mask.resize(prompt.len() + answer.len(), true);
        Self { tokens: [&prompt[..], answer].concat(), mask }
    }
}

/// A source of training data whose right answers are known.
pub trait Task: Batches + Send + Sync {
    /// Its name in the registry.
    fn name(&self) -> &'static str;
    /// The text of each token, by id.
    fn words(&self) -> Vec<String>;
    /// For a whole sequence of this task: the token that is certain at each position given those before it, or `None`
    /// where it is not certain.
    fn answers(&self, tokens: &[u32]) -> Vec<Option<u32>>;
    /// Every token that is right after `prompt`, sorted; none where the task asks nothing, or where this is none of its prompts.
    fn right(&self, prompt: &[u32]) -> Vec<u32>;
    /// The parts of its data, by name; the first is trained on.
    fn splits(&self) -> &'static [&'static str] {
        &[TRAIN]
    }
    /// Row `number` of a split; the same for the same arguments.
    fn row(&self, split: &str, seed: u64, number: u64) -> Result<Row>;
    /// What a corrupt prompt may have other than the clean one, by name.
    fn changes(&self) -> &'static [&'static str];
    /// Pair `number` of a split: a clean prompt, and the same with one change, which changes the answer.
    fn pair(&self, split: &str, change: &str, seed: u64, number: u64) -> Result<PromptPair>;
}

/// Where `name` stands among the task's splits or changes.
pub(crate) fn named(task: &'static str, what: &'static str, name: &str, known: &[&str]) -> Result<usize> {
    let fail = || Error::UnknownPart { task, what, name: name.to_string(), known: known.join(", ") };
    known.iter().position(|&each| each == name).ok_or_else(fail)
}

/// The special tokens, then `count` short words: syllables, then pairs of them.
pub fn words(count: usize) -> Vec<String> {
    SPECIAL.iter().map(|name| name.to_string()).chain((0..count).map(word)).collect()
}

fn word(index: usize) -> String {
    const CONSONANTS: &[u8] = b"bdfgjklmnprstvwz";
    const VOWELS: &[u8] = b"aeiou";
    let syllables = CONSONANTS.len() * VOWELS.len();
    let syllable = |at: usize| {
        let letters = [CONSONANTS[at % CONSONANTS.len()], VOWELS[at / CONSONANTS.len()]];
        letters.map(char::from).iter().collect::<String>()
    };
    match index / syllables {
        0 => syllable(index),
        more => word(more - 1) + &syllable(index % syllables),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_distinct() {
        let words = words(10_000);
        assert_eq!(words[..5], ["<bos>", "<unk>", "ba", "da", "fa"]);
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
    }
}
