//! Who gets it? `<bos> when mary and john went to the store , john gave a drink to`, then `mary`: the one of two persons who is
//! not the giver (Wang et al. 2022, arXiv 2211.00593). In half of the rows the receiver is named first (ABBA), in half second
//! (BABA).

use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, Template, owned};
use super::parameters::read;
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::Row;

/// Its name in the registry.
pub const NAME: &str = "indirect_object";

/// The persons.
pub const NAMES: [&str; 40] = [
    "mary", "john", "anna", "peter", "laura", "david", "julia", "simon", "clara", "martin", "emma", "paul", "sarah",
    "thomas", "helen", "frank", "alice", "george", "nina", "robert", "susan", "james", "lucy", "henry", "maria",
    "daniel", "rosa", "walter", "ellen", "victor", "grace", "oscar", "irene", "philip", "vera", "albert", "judith",
    "leon", "agnes", "kevin",
];
/// The places.
pub const PLACES: [&str; 8] = ["store", "park", "school", "station", "beach", "museum", "garden", "office"];
/// What is given.
pub const GIFTS: [&str; 8] = ["drink", "ring", "book", "ball", "ticket", "letter", "basket", "flower"];

/// The sentences: two names, a place, a name, a gift.
const SENTENCES: [&str; 4] = [
    "when _ and _ went to the _ , _ gave a _ to",
    "while _ and _ were at the _ , _ passed a _ to",
    "then , _ and _ met at the _ , and _ handed a _ to",
    "after _ and _ had left the _ , _ decided to give a _ to",
];

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// How many persons there are; default all 40.
    pub names: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { names: NAMES.len() }
    }
}

/// The task.
#[derive(Debug, Clone)]
pub struct IndirectObject {
    lexicon: Lexicon,
    name: Kind,
    place: Kind,
    gift: Kind,
    sentences: Vec<Template>,
}

/// The five words of a sentence; `first` and `second` are the persons in their order, `giver` is one of them.
#[derive(Debug, Clone, Copy)]
struct Words {
    first: usize,
    second: usize,
    place: usize,
    giver: usize,
    gift: usize,
}

impl IndirectObject {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let Parameters { names } = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("names", parameters.names, 5, NAMES.len());
        })?;
        let others = SENTENCES.join(" ").replace('_', "");
        let (lexicon, [name, place, gift]) =
            Lexicon::new([owned(&NAMES[..names]), owned(&PLACES), owned(&GIFTS)], &others);
        let sentence = |text: &&str| lexicon.template(text, &[name, name, place, name, gift]);
        let sentences = SENTENCES.iter().map(sentence).collect();
        Ok(Self { lexicon, name, place, gift, sentences })
    }

    fn drawn(&self, random: &mut dyn Rng) -> (usize, Words) {
        let names = self.name.different(random, 2);
        let words = Words {
            first: names[0],
            second: names[1],
            place: random.random_range(0..self.place.count),
            giver: names[random.random_range(0..2)],
            gift: random.random_range(0..self.gift.count),
        };
        (random.random_range(0..self.sentences.len()), words)
    }

    fn prompt(&self, sentence: usize, words: Words) -> Vec<u32> {
        let Words { first, second, place, giver, gift } = words;
        self.sentences[sentence].fill(&[first, second, place, giver, gift])
    }
}

impl Exercise for IndirectObject {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        self.sentences.iter().map(Template::length).max().unwrap_or(0) + 1
    }

    fn row(&self, _split: &str, random: &mut dyn Rng) -> Row {
        let (sentence, words) = self.drawn(random);
        let prompt = self.prompt(sentence, words);
        let answer = self.right(&prompt);
        Row::new(prompt, &answer)
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let slots = self.sentences.iter().find_map(|sentence| sentence.read(prompt));
        let receiver = match slots.as_deref() {
            Some(&[first, second, _, giver, _]) if giver == first && first != second => Some(second),
            Some(&[first, second, _, giver, _]) if giver == second && first != second => Some(first),
            _ => None,
        };
        receiver.map(|receiver| self.name.token(receiver)).into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["giver", "receiver", "names", "three_names"]
    }

    /// Sentence, place and gift stay.
    fn pair(&self, _split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let (sentence, words) = self.drawn(random);
        let Words { first, second, giver, .. } = words;
        let receiver = if giver == first { second } else { first };
        let others = self.name.different(random, 3);
        if others.iter().any(|other| [first, second].contains(other)) {
            return None;
        }
        let renamed = |giver_now: usize, receiver_now: usize| {
            let (first, second) = if giver == first { (giver_now, receiver_now) } else { (receiver_now, giver_now) };
            Words { first, second, giver: giver_now, ..words }
        };
        let corrupt = match change {
            "giver" => Words { giver: receiver, ..words },
            "receiver" => renamed(giver, others[0]),
            "names" => renamed(others[0], others[1]),
            _ => Words { giver: others[2], ..renamed(others[0], others[1]) },
        };
        let (clean, corrupt) = (self.prompt(sentence, words), self.prompt(sentence, corrupt));
        if change == "three_names" {
            // The corrupt prompt has no answer; what the clean one must not be given is the giver (Wang et al. 2022).
            let answers = self.right(&clean);
            return Some(PromptPair { clean, corrupt, answers, wrong_answers: vec![self.name.token(giver)] });
        }
        compared(self, clean, corrupt)
    }
}
