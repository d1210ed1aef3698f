//! Keys and their values, then keys alone: `<bos> k1 v1 … kn vn ? k`, then the value of `k`; after it comes the next key that is
//! asked for, and so on. Recall by association (Arora et al. 2023, arXiv 2312.04927).

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
pub const NAME: &str = "key_value_recall";

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// How many keys there are to draw from; default 32.
    pub keys: usize,
    /// How many values there are; default 32.
    pub values: usize,
    /// The fewest keys of a row; default 4.
    pub shortest: usize,
    /// The most; default 12.
    pub longest: usize,
    /// How many of them are asked for, one after the other (all, where a row has fewer); default 1.
    pub asked: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { keys: 32, values: 32, shortest: 4, longest: 12, asked: 1 }
    }
}

/// The task.
#[derive(Debug, Clone)]
pub struct KeyValueRecall {
    parameters: Parameters,
    lexicon: Lexicon,
    key: Kind,
    value: Kind,
    question: u32,
}

impl KeyValueRecall {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("keys", parameters.keys, 2, 1 << 16);
            problems.count("values", parameters.values, 2, 1 << 16);
            problems.count("shortest", parameters.shortest, 2, 1 << 16);
            problems.count("longest", parameters.longest, parameters.shortest, parameters.keys);
            problems.count("asked", parameters.asked, 1, 1 << 16);
        })?;
        let mut keys = words(parameters.keys + parameters.values).split_off(2);
        let values = keys.split_off(parameters.keys);
        let (lexicon, [key, value]) = Lexicon::new([keys, values], "?");
        let question = lexicon.id("?");
        Ok(Self { parameters, lexicon, key, value, question })
    }

    /// Keys with their values, and the keys that are asked for.
    fn drawn(&self, random: &mut dyn Rng) -> (Vec<(usize, usize)>, Vec<usize>) {
        let count = random.random_range(self.parameters.shortest..=self.parameters.longest);
        let keys = self.key.different(random, count);
        let pairs = keys.into_iter().map(|key| (key, random.random_range(0..self.value.count))).collect();
        let asked = rand::seq::index::sample(random, count, self.parameters.asked.min(count));
        (pairs, asked.into_vec())
    }

    /// The prompt that ends with the last key that is asked for, and the answer.
    fn prompt(&self, pairs: &[(usize, usize)], asked: &[usize]) -> (Vec<u32>, Vec<u32>) {
        let two = |&(key, value): &(usize, usize)| [self.key.token(key), self.value.token(value)];
        let mut prompt = vec![BOS];
        prompt.extend(pairs.iter().flat_map(two));
        prompt.push(self.question);
        prompt.extend(asked.iter().flat_map(|&at| two(&pairs[at])));
        let answer = prompt.pop();
        (prompt, answer.into_iter().collect())
    }
}

impl Exercise for KeyValueRecall {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        let Parameters { longest, asked, .. } = self.parameters;
        2 + 2 * longest + 2 * asked.min(longest)
    }

    fn row(&self, _split: &str, random: &mut dyn Rng) -> Row {
        let (pairs, asked) = self.drawn(random);
        let (prompt, answer) = self.prompt(&pairs, &asked);
        let mut row = Row::new(prompt, &answer);
        for value in (0..asked.len()).map(|number| 2 + 2 * pairs.len() + 2 * number + 1) {
            row.mask[value] = true;
        }
        row
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let value = || {
            let [BOS, given @ ..] = prompt else { return None };
            let end = given.iter().position(|&token| token == self.question)?;
            let (pairs, asked) = (&given[..end], &given[end + 1..]);
            let keys: Vec<usize> =
                pairs.iter().step_by(2).map(|&token| self.key.index(token)).collect::<Option<_>>()?;
            let values: Vec<usize> =
                pairs.iter().skip(1).step_by(2).map(|&token| self.value.index(token)).collect::<Option<_>>()?;
            // A key is asked for at every other place, and each answer before must be right.
            if keys.len() != values.len() || !all_different(&keys) || asked.len() % 2 == 0 {
                return None;
            }
            let value_of = |&token: &u32| {
                let at = keys.iter().position(|&key| self.key.token(key) == token)?;
                Some(self.value.token(values[at]))
            };
            if !asked.chunks_exact(2).all(|two| value_of(&two[0]) == Some(two[1])) {
                return None;
            }
            value_of(asked.last()?)
        };
        value().into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["key", "value", "exchange"]
    }

    fn pair(&self, _split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let (pairs, asked) = self.drawn(random);
        // One question: with the answers to others before, a change would have to be made in them too.
        let &[asked, ..] = &asked[..] else { return None };
        let other = random.random_range(0..pairs.len());
        let (mut changed, mut changed_asked) = (pairs.clone(), asked);
        match change {
            "key" => changed_asked = other,
            "value" => changed[asked].1 = random.random_range(0..self.value.count),
            _ => (changed[asked].1, changed[other].1) = (pairs[other].1, pairs[asked].1),
        }
        compared(self, self.prompt(&pairs, &[asked]).0, self.prompt(&changed, &[changed_asked]).0)
    }
}
