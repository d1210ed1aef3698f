//! What a task is, and what its tokens are called.

use endoscope_train::Batches;

/// Stands before every sequence.
pub const BOS: u32 = 0;
/// A word that the tokenizer does not know; never in a task's data.
pub const UNKNOWN: u32 = 1;
/// The tokens that are no words, by id.
pub const SPECIAL: [&str; 2] = ["<bos>", "<unk>"];

/// A source of training data whose right answers are known.
pub trait Task: Batches {
    /// Its name in the registry.
    fn name(&self) -> &'static str;
    /// The text of each token, by id.
    fn words(&self) -> Vec<String>;
    /// For a whole sequence of this task: the token that is certain at each position given those before it, or `None`
    /// where it is not certain.
    fn answers(&self, tokens: &[u32]) -> Vec<Option<u32>>;
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
