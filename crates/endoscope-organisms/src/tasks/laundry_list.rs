//! Which one is left? `<bos> on the table are a pen , a cup , a key . he took the key , the pen and the`, then `cup`: the one thing of the list
//! that is not taken. With `asked`, all is put back and taken again in another order, and another thing is left (Merullo et al. 2024, arXiv 2406.09519).

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
    /// How often things are taken, another left each time (as often as there are things, where these are fewer); default 1.
    pub asked: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { shortest: 3, longest: 10, order: Order::Any, asked: 1 }
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
    /// For `shortest` things, for one more, …; of each with one question, with two, ….
    sentences: Vec<Vec<Template>>,
}

impl LaundryList {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("shortest", parameters.shortest, 2, THINGS.len() - 1);
            problems.count("longest", parameters.longest, parameters.shortest, THINGS.len() - 1);
            problems.count("asked", parameters.asked, 1, 1 << 16);
        })?;
        let (lexicon, [object]) = Lexicon::new([owned(THINGS)], "on the table are a , . he took and");
        let sentence = |things: usize, questions: usize| {
            let (listed, taken) = (vec!["a _"; things].join(" , "), vec!["the _"; things - 1].join(" , "));
            let taken = vec![format!(" . he took {taken} and the"); questions].join(" _");
            lexicon.template(&format!("on the table are {listed}{taken}"), &vec![object; (1 + questions) * things - 1])
        };
        let asked =
            |things: usize| (1..=parameters.asked.min(things)).map(|questions| sentence(things, questions)).collect();
        let sentences = (parameters.shortest..=parameters.longest).map(asked).collect();
        Ok(Self { parameters, lexicon, object, sentences })
    }

    /// What lies there, and what is taken, once.
    fn drawn(&self, random: &mut dyn Rng) -> (Vec<usize>, Vec<usize>) {
        let things = random.random_range(self.parameters.shortest..=self.parameters.longest);
        let listed = self.object.different(random, things);
        let left = random.random_range(0..things);
        let taken = self.taken(&listed, left, random);
        (listed, taken)
    }

    /// All but one, in the order in which they are taken.
    fn taken(&self, listed: &[usize], left: usize, random: &mut dyn Rng) -> Vec<usize> {
        let mut taken = listed.to_vec();
        taken.remove(left);
        if self.parameters.order == Order::Any {
            taken.shuffle(random);
        }
        taken
    }

    /// With as many questions as there are lists of things that are taken; all but the last are answered.
    fn prompt(&self, listed: &[usize], taken: &[Vec<usize>]) -> Vec<u32> {
        let mut slots = listed.to_vec();
        for taken in taken {
            slots.extend(taken);
            slots.extend(Self::left(listed, taken));
        }
        self.sentences[listed.len() - self.parameters.shortest][taken.len() - 1].fill(&slots)
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
        self.sentences.iter().flatten().map(Template::length).max().unwrap_or(0) + 1
    }

    fn row(&self, _split: &str, random: &mut dyn Rng) -> Row {
        let (listed, taken) = self.drawn(random);
        let last = Self::left(&listed, &taken);
        let sentences = &self.sentences[listed.len() - self.parameters.shortest];
        let mut others: Vec<usize> = (0..listed.len()).filter(|&at| Some(listed[at]) != last).collect();
        let (others, _) = others.partial_shuffle(random, sentences.len() - 1);
        let mut all: Vec<Vec<usize>> = others.iter().map(|&left| self.taken(&listed, left, random)).collect();
        all.push(taken);
        let prompt = self.prompt(&listed, &all);
        let answer = self.right(&prompt);
        let mut row = Row::new(prompt, &answer);
        sentences[..all.len() - 1].iter().for_each(|sentence| row.mask[sentence.length()] = true);
        row
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let left = self.sentences.iter().enumerate().find_map(|(more, sentences)| {
            let things = self.parameters.shortest + more;
            let slots = sentences.iter().find_map(|sentence| sentence.read(prompt))?;
            let (listed, taken) = slots.split_at(things);
            let answered = taken.chunks_exact(things);
            let asked = answered.remainder();
            let right = |all: &[usize]| Self::left(listed, &all[..things - 1]) == Some(all[things - 1]);
            if answered.into_iter().all(right) { Self::left(listed, asked) } else { None }
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
        compared(self, self.prompt(&listed, &[taken]), self.prompt(&listed_now, &[taken_now]))
    }
}
