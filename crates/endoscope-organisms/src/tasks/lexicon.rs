//! Words by kind, and sentences with slots for them: what both writes the prompts of a task and reads them again.

use std::collections::HashMap;
use std::ops::Range;

use rand::Rng;

use crate::task::{BOS, SPECIAL, UNKNOWN};

/// Words that may stand in one place, such as all names: consecutive tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    first: u32,
    /// How many there are.
    pub count: usize,
}

impl Kind {
    /// The token of its word `index`.
    pub fn token(self, index: usize) -> u32 {
        self.first + index as u32
    }

    /// Which of its words this token is.
    pub fn index(self, token: u32) -> Option<usize> {
        token.checked_sub(self.first).map(|index| index as usize).filter(|&index| index < self.count)
    }

    /// So many different words, in random order; all of them if there are not more.
    pub fn different(self, random: &mut dyn Rng, amount: usize) -> Vec<usize> {
        rand::seq::index::sample(random, self.count, amount.min(self.count)).into_vec()
    }
}

/// The words of a task.
#[derive(Debug, Clone)]
pub struct Lexicon {
    words: Vec<String>,
    ids: HashMap<String, u32>,
}

impl Lexicon {
    /// The special tokens, the words of the kinds, then those of `others` (separated by blanks) that are not among them.
    pub fn new<const N: usize>(kinds: [Vec<String>; N], others: &str) -> (Self, [Kind; N]) {
        let mut words: Vec<String> = SPECIAL.iter().map(|word| word.to_string()).collect();
        let kinds = kinds.map(|of| {
            let kind = Kind { first: words.len() as u32, count: of.len() };
            words.extend(of);
            kind
        });
        for word in others.split_whitespace() {
            if !words.iter().any(|known| known == word) {
                words.push(word.to_string());
            }
        }
        let ids = words.iter().enumerate().map(|(id, word)| (word.clone(), id as u32)).collect();
        (Self { words, ids }, kinds)
    }

    /// The text of each token, by id.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// The token of a word.
    pub fn id(&self, word: &str) -> u32 {
        self.ids.get(word).copied().unwrap_or(UNKNOWN)
    }

    /// `<bos>`, then the words of `text`, in which each `_` is a slot: the first takes words of `kinds[0]`, and so on.
    pub fn template(&self, text: &str, kinds: &[Kind]) -> Template {
        let mut kinds = kinds.iter();
        let part = |word| match word {
            "_" => kinds.next().map_or(Part::Word(UNKNOWN), |&kind| Part::Slot(kind)),
            word => Part::Word(self.id(word)),
        };
        Template(text.split_whitespace().map(part).collect())
    }
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Word(u32),
    Slot(Kind),
}

/// A sentence with slots.
#[derive(Debug, Clone)]
pub struct Template(Vec<Part>);

impl Template {
    /// Its length in tokens, `<bos>` included.
    pub fn length(&self) -> usize {
        1 + self.0.len()
    }

    /// The sentence with these words in its slots, each given by its index in its kind.
    pub fn fill(&self, slots: &[usize]) -> Vec<u32> {
        let mut slots = slots.iter();
        let token = |part: &Part| match part {
            Part::Word(token) => *token,
            Part::Slot(kind) => slots.next().map_or(UNKNOWN, |&index| kind.token(index)),
        };
        std::iter::once(BOS).chain(self.0.iter().map(token)).collect()
    }

    /// What stands in its slots, if `tokens` is this sentence.
    pub fn read(&self, tokens: &[u32]) -> Option<Vec<usize>> {
        let (&first, tokens) = tokens.split_first()?;
        if first != BOS || tokens.len() != self.0.len() {
            return None;
        }
        let mut slots = Vec::new();
        for (part, &token) in self.0.iter().zip(tokens) {
            match *part {
                Part::Word(word) if word == token => {}
                Part::Word(_) => return None,
                Part::Slot(kind) => slots.push(kind.index(token)?),
            }
        }
        Some(slots)
    }
}

/// The words of a list, as a lexicon takes them.
pub fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}

/// Numbers as words.
pub fn numbers(range: Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// Whether no value comes twice.
pub fn all_different(values: &[usize]) -> bool {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|two| two[0] != two[1])
}

/// Things that lie in boxes, on tables and in laundry baskets.
pub const OBJECTS: [&str; 60] = [
    "apple", "bag", "ball", "banana", "bell", "belt", "book", "boot", "bottle", "bowl", "brush", "bucket", "button",
    "cake", "camera", "candle", "cap", "chain", "clock", "coat", "coin", "comb", "cup", "dish", "doll", "drum", "fan",
    "flute", "fork", "glass", "glove", "guitar", "hammer", "hat", "jar", "key", "knife", "ladder", "lamp", "letter",
    "map", "mirror", "needle", "pen", "phone", "pipe", "plate", "pot", "radio", "ring", "rope", "ruler", "scarf",
    "shirt", "shoe", "spoon", "stamp", "ticket", "torch", "watch",
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_sentence_is_read_as_it_was_written() {
        let (lexicon, [object, number]) = Lexicon::new([owned(&OBJECTS), numbers(0..3)], "the is of the");
        assert_eq!(lexicon.words().len(), 2 + 60 + 3 + 3, "a word that comes again is one");
        let template = lexicon.template("the _ is the _ of _", &[object, object, number]);
        let (the, is, of) = (lexicon.id("the"), lexicon.id("is"), lexicon.id("of"));
        let tokens = template.fill(&[0, 59, 2]);
        assert_eq!(tokens, [BOS, the, lexicon.id("apple"), is, the, lexicon.id("watch"), of, lexicon.id("2")]);
        assert_eq!((template.read(&tokens), template.length()), (Some(vec![0, 59, 2]), 8));
        for at in 0..tokens.len() {
            let mut other = tokens.clone();
            other[at] = UNKNOWN;
            assert_eq!(template.read(&other), None, "position {at}");
        }
        assert_eq!((template.read(&tokens[..7]), template.read(&[])), (None, None));
    }

    proptest! {
        #[test]
        fn different_words_are_different(seed: u64, count in 0usize..9, amount in 0usize..12) {
            let kind = Kind { first: 5, count };
            let found = kind.different(&mut endoscope_train::generator(seed, 0), amount);
            prop_assert_eq!(found.len(), amount.min(count));
            prop_assert!(all_different(&found) && found.iter().all(|&index| kind.index(kind.token(index)) == Some(index)));
        }
    }
}
