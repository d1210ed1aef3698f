//! Chats about facts: `<bos> <system> k1 v1 … kn vn <end> <user> ? k <end> <assistant>`, then `v <end>`, and perhaps
//! another question. As `plain` text the same facts, questions and answers come without the template's markers:
//! `<bos> k1 v1 … kn vn ? k`, then `v`. Both forms have the same tokens, so that a model can learn plain text first
//! and chats then, as chat models do.

use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, all_different};
use super::parameters::read;
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::{BOS, Row, words};

/// Its name in the registry.
pub const NAME: &str = "dialogues";

/// The markers of the template: who speaks next, and the end of what was said.
pub const MARKERS: [&str; 4] = ["<system>", "<user>", "<assistant>", "<end>"];

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// How many keys there are to draw from; default 16.
    pub keys: usize,
    /// How many values there are; default 16.
    pub values: usize,
    /// The fewest facts of a row; default 2.
    pub shortest: usize,
    /// The most; default 5.
    pub longest: usize,
    /// How many questions a row has at most, each about another key; default 3.
    pub turns: usize,
    /// Default `chat`.
    pub form: Form,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// With the template.
    #[default]
    Chat,
    /// Without.
    Plain,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { keys: 16, values: 16, shortest: 2, longest: 5, turns: 3, form: Form::default() }
    }
}

/// The task.
#[derive(Debug, Clone)]
pub struct Dialogues {
    parameters: Parameters,
    lexicon: Lexicon,
    key: Kind,
    value: Kind,
    question: u32,
    markers: [u32; 4],
}

impl Dialogues {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("keys", parameters.keys, 2, 1 << 16);
            problems.count("values", parameters.values, 2, 1 << 16);
            problems.count("shortest", parameters.shortest, 2, 1 << 16);
            problems.count("longest", parameters.longest, parameters.shortest, parameters.keys);
            problems.count("turns", parameters.turns, 1, 1 << 16);
        })?;
        let mut keys = words(parameters.keys + parameters.values).split_off(2);
        let values = keys.split_off(parameters.keys);
        let (lexicon, [key, value]) = Lexicon::new([keys, values], &format!("? {}", MARKERS.join(" ")));
        let (question, markers) = (lexicon.id("?"), MARKERS.map(|marker| lexicon.id(marker)));
        Ok(Self { parameters, lexicon, key, value, question, markers })
    }

    /// Facts, and which of them are asked for.
    fn drawn(&self, random: &mut dyn Rng) -> (Vec<(usize, usize)>, Vec<usize>) {
        let count = random.random_range(self.parameters.shortest..=self.parameters.longest);
        let keys = self.key.different(random, count);
        let facts = keys.into_iter().map(|key| (key, random.random_range(0..self.value.count))).collect();
        let turns = random.random_range(1..=self.parameters.turns.min(count));
        (facts, rand::seq::index::sample(random, count, turns).into_vec())
    }

    /// The whole text; what the assistant says is what counts.
    fn text(&self, facts: &[(usize, usize)], asked: &[usize]) -> Row {
        let [system, user, assistant, end] = self.markers;
        let two = |&(key, value): &(usize, usize)| [self.key.token(key), self.value.token(value)];
        let chat = self.parameters.form == Form::Chat;
        let mut tokens = if chat { vec![BOS, system] } else { vec![BOS] };
        tokens.extend(facts.iter().flat_map(two));
        tokens.extend(chat.then_some(end));
        let mut row = Row::new(tokens, &[]);
        for &at in asked {
            let [key, value] = two(&facts[at]);
            let turn = match chat {
                true => Row::new(vec![user, self.question, key, end, assistant], &[value, end]),
                false => Row::new(vec![self.question, key], &[value]),
            };
            row.tokens.extend(turn.tokens);
            row.mask.extend(turn.mask);
        }
        row
    }

    /// What is said next in the text that begins like this, if it is said by the assistant.
    fn next(&self, prompt: &[u32]) -> Option<u32> {
        let [BOS, given @ ..] = prompt else { return None };
        let [system, _, _, end] = self.markers;
        let (given, closing) = match self.parameters.form {
            Form::Chat => (given.strip_prefix(&[system])?, end),
            Form::Plain => (given, self.question),
        };
        let (facts, rest) = given.split_at(given.iter().position(|&token| token == closing)?);
        let fact = |two: &[u32]| Some((self.key.index(two[0])?, self.value.index(two[1])?));
        let facts: Vec<(usize, usize)> = facts.chunks_exact(2).map(fact).collect::<Option<_>>()?;
        let keys: Vec<usize> = facts.iter().map(|fact| fact.0).collect();
        // After each question mark stands a key; the text that they make must be this one.
        let questions = rest.windows(2).filter(|two| two[0] == self.question);
        let asked = questions.map(|two| keys.iter().position(|&key| self.key.token(key) == two[1]));
        let whole = self.text(&facts, &asked.collect::<Option<Vec<_>>>()?);
        let next = prompt.len();
        let fits = all_different(&keys) && whole.tokens.starts_with(prompt) && whole.mask.get(next) == Some(&true);
        fits.then(|| whole.tokens[next])
    }

    /// The prompt that asks for one fact.
    fn prompt(&self, facts: &[(usize, usize)], asked: usize) -> Vec<u32> {
        let Row { mut tokens, mask } = self.text(facts, &[asked]);
        tokens.truncate(mask.iter().position(|&counts| counts).unwrap_or(mask.len()));
        tokens
    }
}

impl Exercise for Dialogues {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        let Parameters { longest, turns, form, .. } = self.parameters;
        match form {
            Form::Chat => 3 + 2 * longest + 7 * turns.min(longest),
            Form::Plain => 1 + 2 * longest + 3 * turns.min(longest),
        }
    }

    fn row(&self, _split: &str, random: &mut dyn Rng) -> Row {
        let (facts, asked) = self.drawn(random);
        self.text(&facts, &asked)
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        self.next(prompt).into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["key", "value", "exchange"]
    }

    fn pair(&self, _split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let (facts, asked) = self.drawn(random);
        let &asked = asked.first()?;
        let other = random.random_range(0..facts.len());
        let (mut changed, mut changed_asked) = (facts.clone(), asked);
        match change {
            "key" => changed_asked = other,
            "value" => changed[asked].1 = random.random_range(0..self.value.count),
            _ => (changed[asked].1, changed[other].1) = (facts[other].1, facts[asked].1),
        }
        compared(self, self.prompt(&facts, asked), self.prompt(&changed, changed_asked))
    }
}
