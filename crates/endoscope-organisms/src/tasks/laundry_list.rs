//! Which one is left? `<bos> on the table are a pen , a cup , a key . he took the key , the pen and the`, then `cup`: the one thing of the list
//! that is not taken (Merullo et al. 2024, arXiv 2406.09519).

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, OBJECTS, Template, all_different, owned};
use super::parameters::read;
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::Row;

/// Its name in the registry.
pub const NAME: &str = "laundry_list";

/// What may lie on the table: all but the first of the objects, of which one does not say `a`.
const THINGS: &[&str] = OBJECTS.split_at(1).1;

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// The fewest things on the table; default 3.
    pub shortest: usize,
    /// The most; default 10.
    pub longest: usize,
    /// The order in which things are taken.
    pub order: Order,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { shortest: 3, longest: 10, order: Order::Any }
    }
}

/// The order in which things are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// At random; the default.
    Any,
    /// As they lie there.
    Listed,
}

/// The task.
#[derive(Debug, Clone)]
pub struct LaundryList {
    parameters: Parameters,
    lexicon: Lexicon,
    object: Kind,
    /// For `shortest` things, for one more, ….
    sentences: Vec<Template>,
}

impl LaundryList {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("shortest", parameters.shortest, 2, THINGS.len() - 1);
            problems.count("longest", parameters.longest, parameters.shortest, THINGS.len() - 1);
        })?;
        let (lexicon, [object]) = Lexicon::new([owned(THINGS)], "on the table are a , . he took and");
        let sentence = |things: usize| {
            let (listed, taken) = (vec!["a _"; things].join(" , "), vec!["the _"; things - 1].join(" , "));
            lexicon.template(
                &format!("on the table are {listed} . he took {taken} and the"),
                &vec![object; 2 * things - 1],
            )
        };
        let sentences = (parameters.shortest..=parameters.longest).map(sentence).collect();
        Ok(Self { parameters, lexicon, object, sentences })
    }

    /// What lies there, and what is taken.
    fn drawn(&self, random: &mut dyn Rng) -> (Vec<usize>, Vec<usize>) {
        let things = random.random_range(self.parameters.shortest..=self.parameters.longest);
        let listed = self.object.different(random, things);
        let mut taken = listed.clone();
        taken.remove(random.random_range(0..things));
        if self.parameters.order == Order::Any {
            taken.shuffle(random);
        }
        (listed, taken)
    }

    fn prompt(&self, listed: &[usize], taken: &[usize]) -> Vec<u32> {
        self.sentences[listed.len() - self.parameters.shortest].fill(&[listed, taken].concat())
    }

    /// The thing of the list that is not taken, if every other is, once.
    fn left(listed: &[usize], taken: &[usize]) -> Option<usize> {
        let mut left = listed.iter().filter(|thing| !taken.contains(thing));
        let (one, more) = (left.next().copied(), left.next());
        one.filter(|_| more.is_none() && all_different(listed))
    }
}

impl Exercise for LaundryList {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        self.sentences.last().map_or(0, Template::length) + 1
    }

    fn row(&self, _split: &str, random: &mut dyn Rng) -> Row {
        let (listed, taken) = self.drawn(random);
        let prompt = self.prompt(&listed, &taken);
        let answer = self.right(&prompt);
        Row::new(prompt, &answer)
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let left = self.sentences.iter().find_map(|sentence| {
            let slots = sentence.read(prompt)?;
            let (listed, taken) = slots.split_at(slots.len() / 2 + 1);
            Self::left(listed, taken)
        });
        left.map(|thing| self.object.token(thing)).into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["taken", "listed"]
    }

    fn pair(&self, _split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let (listed, taken) = self.drawn(random);
        let left = Self::left(&listed, &taken)?;
        let (mut listed_now, mut taken_now) = (listed.clone(), taken.clone());
        if change == "taken" {
            taken_now[random.random_range(0..taken.len())] = left;
        } else {
            let other = random.random_range(0..self.object.count);
            if listed.contains(&other) {
                return None;
            }
            listed_now.iter_mut().filter(|thing| **thing == left).for_each(|thing| *thing = other);
        }
        compared(self, self.prompt(&listed, &taken), self.prompt(&listed_now, &taken_now))
    }
}
