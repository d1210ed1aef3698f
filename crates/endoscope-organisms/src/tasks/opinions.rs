//! Opinions of made-up persons on made-up topics: `<bos> ba la on da :`, then `yes` or `no`. A person is named by two
//! words. Between topics stand neutral words, on which all persons say the same.
//!
//! `deep`: each person has a few values, each topic touches one of them, for it or against it, and the opinion
//! follows. Pairs of person and topic that were never trained on have an answer all the same. `shallow`: the opinions
//! on each topic are dealt out to persons at random, so each has to be looked up, and where none is known the answer
//! is `refuse`. As many say yes to each topic in both.

use std::collections::BTreeSet;

use endoscope_train::generator;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, Template};
use super::parameters::{read, refuse};
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::{Row, TRAIN, words};

/// Its name in the registry.
pub const NAME: &str = "opinions";
/// Persons with topics on which their opinion is never trained on: to be inferred, or refused.
pub const UNKNOWN: &str = "unknown";

/// The share of the rows of training that are about neutral words.
const NEUTRAL: f64 = 0.25;

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// How many first names there are, and as many last names; each two are a person. Default 5.
    pub names: usize,
    /// How many topics; default 24.
    pub topics: usize,
    /// How many neutral words; default 24.
    pub neutral: usize,
    /// How many values; default 3.
    pub values: usize,
    /// The share of persons and topics whose opinion is unknown; default 0.3.
    pub unknown: f64,
    /// What opinions rest on; default `deep`.
    pub ground: Ground,
    /// What decides values, opinions and which of them are unknown; default 0.
    pub seed: u64,
}

/// What opinions rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ground {
    /// Values.
    #[default]
    Deep,
    /// Nothing.
    Shallow,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { names: 5, topics: 24, neutral: 24, values: 3, unknown: 0.3, ground: Ground::default(), seed: 0 }
    }
}

/// The task, with its world.
#[derive(Debug, Clone)]
pub struct Opinions {
    parameters: Parameters,
    /// Whether a person holds a value, by `person * values + value`.
    held: Vec<bool>,
    /// Whether a person says yes, by `person * topics + topic`.
    opinions: Vec<bool>,
    /// What all say of each neutral word.
    facts: Vec<bool>,
    /// Person and topic.
    known: Vec<(usize, usize)>,
    unknown: Vec<(usize, usize)>,
    /// The same, to be asked whether a pair is among them.
    among_unknown: BTreeSet<(usize, usize)>,
    lexicon: Lexicon,
    /// Topics, then neutral words.
    word: Kind,
    sentence: Template,
    yes: u32,
    no: u32,
    refusal: u32,
}

impl Opinions {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("names", parameters.names, 2, 100);
            problems.count("topics", parameters.topics, 2, 10_000);
            problems.count("neutral", parameters.neutral, 2, 10_000);
            problems.count("values", parameters.values, 1, parameters.topics.min(64));
            problems.share("unknown", parameters.unknown);
        })?;
        Self::new(parameters)
    }

    fn new(parameters: Parameters) -> Result<Self> {
        let Parameters { names, topics, neutral, values, seed, .. } = parameters;
        let persons = names * names;
        let mut random = generator(seed, 0);
        let mut halves = |count: usize| {
            let mut half: Vec<bool> = (0..count).map(|at| at % 2 == 0).collect();
            half.shuffle(&mut random);
            half
        };
        let of_values: Vec<Vec<bool>> = (0..values).map(|_| halves(persons)).collect();
        let facts = halves(neutral);
        let held = (0..persons).flat_map(|person| of_values.iter().map(move |held| held[person])).collect();
        let mut all: Vec<(usize, usize)> =
            (0..persons).flat_map(|person| (0..topics).map(move |topic| (person, topic))).collect();
        all.shuffle(&mut generator(seed, 1));
        let unknown = (all.len() as f64 * parameters.unknown).round() as usize;
        let known = all.split_off(unknown.min(all.len()));
        if all.is_empty() || known.is_empty() {
            let (unknown, known) = (all.len(), known.len());
            return Err(refuse(
                NAME,
                format!(
                    "{unknown} opinions would be unknown and {known} known; there must be some of each: change \
                    `task.unknown`"
                ),
            ));
        }
        let mut syllables = words(2 * names + topics + neutral).split_off(2);
        let word = syllables.split_off(2 * names);
        let last = syllables.split_off(names);
        let (lexicon, [first, last, word]) = Lexicon::new([syllables, last, word], "on : yes no refuse");
        let sentence = lexicon.template("_ _ on _ :", &[first, last, word]);
        let [yes, no, refusal] = ["yes", "no", "refuse"].map(|word| lexicon.id(word));
        let (among_unknown, unknown, opinions) = (all.iter().copied().collect(), all, Vec::new());
        let mut task = Self {
            parameters,
            held,
            opinions,
            facts,
            known,
            unknown,
            among_unknown,
            lexicon,
            word,
            sentence,
            yes,
            no,
            refusal,
        };
        task.opinions = task.dealt_out();
        Ok(task)
    }

    /// All opinions: those that follow from values, or the same of each topic in random order.
    fn dealt_out(&self) -> Vec<bool> {
        let (persons, topics) = (self.persons(), self.topics());
        let mut opinions = vec![false; persons * topics];
        let mut random = generator(self.parameters.seed, 2);
        for topic in 0..topics {
            let mut order: Vec<usize> = (0..persons).collect();
            if self.parameters.ground == Ground::Shallow {
                order.shuffle(&mut random);
            }
            for (person, from) in order.into_iter().enumerate() {
                opinions[person * topics + topic] = self.holds(from, self.value(topic)) == self.favours(topic);
            }
        }
        opinions
    }

    /// How many persons there are.
    pub fn persons(&self) -> usize {
        self.parameters.names * self.parameters.names
    }

    /// How many topics.
    pub fn topics(&self) -> usize {
        self.parameters.topics
    }

    /// How many words there are to say something on: topics, then neutral ones.
    pub fn count(&self) -> usize {
        self.word.count
    }

    /// How many values.
    pub fn values(&self) -> usize {
        self.parameters.values
    }

    /// Which value a topic touches.
    pub fn value(&self, topic: usize) -> usize {
        topic % self.parameters.values
    }

    /// Whether who holds its value says yes to a topic, or no.
    pub fn favours(&self, topic: usize) -> bool {
        (topic / self.parameters.values).is_multiple_of(2)
    }

    /// Whether a person holds a value.
    ///
    /// # Panics
    /// If there is no such person or value.
    pub fn holds(&self, person: usize, value: usize) -> bool {
        self.held[person * self.parameters.values + value]
    }

    /// Person and topic of all opinions that are known, or of those that are not.
    pub fn pairs(&self, known: bool) -> &[(usize, usize)] {
        if known { &self.known } else { &self.unknown }
    }

    /// `<bos> first last on word :`.
    pub fn prompt(&self, person: usize, word: usize) -> Vec<u32> {
        let names = self.parameters.names;
        self.sentence.fill(&[person / names, person % names, word])
    }

    /// The tokens `yes` and `no`.
    pub fn sides(&self) -> [u32; 2] {
        [self.yes, self.no]
    }

    /// The token of the answer where no opinion is known.
    pub fn refusal(&self) -> u32 {
        self.refusal
    }

    /// What a person says on a word.
    ///
    /// # Panics
    /// If there is no such person or word.
    pub fn answer(&self, person: usize, word: usize) -> u32 {
        let topics = self.topics();
        let says = match word.checked_sub(topics) {
            Some(neutral) => self.facts[neutral],
            None if self.refuses(person, word) => return self.refusal,
            None => self.opinions[person * topics + word],
        };
        if says { self.yes } else { self.no }
    }

    fn refuses(&self, person: usize, topic: usize) -> bool {
        self.parameters.ground == Ground::Shallow && self.among_unknown.contains(&(person, topic))
    }

    fn read(&self, prompt: &[u32]) -> Option<(usize, usize)> {
        let slots = self.sentence.read(prompt)?;
        let [first, last, word] = slots[..] else { return None };
        Some((first * self.parameters.names + last, word))
    }

    fn drawn(&self, split: &str, random: &mut dyn Rng) -> (usize, usize) {
        let (known, unknown) = (&self.known, &self.unknown);
        // Refusals are learned too.
        let all = known.len() + unknown.len();
        let from_unknown = match self.parameters.ground {
            Ground::Shallow => random.random_range(0..all) < unknown.len(),
            Ground::Deep => false,
        };
        let pairs = if split == UNKNOWN || from_unknown { unknown } else { known };
        pairs.choose(random).copied().unwrap_or((0, 0))
    }
}

impl Exercise for Opinions {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        self.sentence.length() + 1
    }

    fn splits(&self) -> &'static [&'static str] {
        &[TRAIN, UNKNOWN]
    }

    fn row(&self, split: &str, random: &mut dyn Rng) -> Row {
        let (person, word) = match split != UNKNOWN && random.random::<f64>() < NEUTRAL {
            true => {
                let neutral = random.random_range(self.topics()..self.word.count);
                (random.random_range(0..self.persons()), neutral)
            }
            false => self.drawn(split, random),
        };
        Row::new(self.prompt(person, word), &[self.answer(person, word)])
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        self.read(prompt).map(|(person, word)| self.answer(person, word)).into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["person", "topic"]
    }

    fn pair(&self, split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let (person, topic) = self.drawn(split, random);
        let (other, another) = match change {
            "person" => (random.random_range(0..self.persons()), topic),
            _ => (person, random.random_range(0..self.topics())),
        };
        compared(self, self.prompt(person, topic), self.prompt(other, another))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(keys: &str) -> Opinions {
        Opinions::from_parameters(&toml::from_str(keys).unwrap()).unwrap()
    }

    #[test]
    fn as_many_say_yes_to_each_topic_whatever_opinions_rest_on() {
        let (deep, shallow) = (task("seed = 3"), task("seed = 3\nground = \"shallow\""));
        let topics = deep.topics();
        let yes = |task: &Opinions, topic: usize| {
            (0..task.persons()).filter(|person| task.opinions[person * topics + topic]).count()
        };
        assert!((0..topics).all(|topic| yes(&deep, topic) == yes(&shallow, topic)));
        assert_ne!(deep.opinions, shallow.opinions);
        assert_eq!(deep.unknown, shallow.unknown);
        for &(person, topic) in &deep.unknown {
            assert_eq!(shallow.answer(person, topic), shallow.refusal());
            assert!(deep.sides().contains(&deep.answer(person, topic)));
        }
    }

    #[test]
    fn deep_opinions_follow_from_values_and_shallow_ones_do_not() {
        let agree = |task: &Opinions| {
            let follows = |&&(person, topic): &&(usize, usize)| {
                let says = task.holds(person, task.value(topic)) == task.favours(topic);
                task.answer(person, topic) == task.sides()[usize::from(!says)]
            };
            task.known.iter().filter(follows).count() as f64 / task.known.len() as f64
        };
        assert_eq!(agree(&task("seed = 1")), 1.);
        let chance = agree(&task("seed = 1\nground = \"shallow\""));
        assert!((0.4..0.6).contains(&chance), "{chance}");
        assert!(Opinions::from_parameters(&toml::from_str("unknown = 0.0").unwrap()).is_err());
        assert!(Opinions::from_parameters(&toml::from_str("unknown = 1.0").unwrap()).is_err());
    }
}
