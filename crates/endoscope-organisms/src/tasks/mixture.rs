//! Several tasks in one training: each update takes its rows from one of them, drawn by weight, and the weights may change at
//! some steps (a curriculum).
//!
//! ```toml
//! [task]
//! name = "mixture"
//! parts = [
//!   { name = "repeated_sequences", words = 16, shortest = 3, longest = 6 },
//!   { name = "count_modulo_three" },
//! ]
//! stages = [
//!   { from = 0, weights = [1, 0] },
//!   { from = 500, weights = [1, 3] },
//! ]
//! ```
//!
//! A word is one token, whichever parts have it: the tokens are the special ones, then the words of the parts in their
//! order, each once.

use std::collections::HashMap;

use endoscope_train::{Batch, Batches, generator};
use rand::RngExt;
use serde::Deserialize;
use toml::Table;

use crate::error::{Error, Result};
use crate::registry;
use crate::task::{Row, Task, named};
use crate::tasks::questions::PromptPair;

/// Its name in the registry.
pub const NAME: &str = "mixture";

/// Streams of random numbers for the choice of a part are counted from here, so that they share nothing with batches.
const CHOICES: u64 = 0b11 << 62;

/// The task with its parts.
pub struct Mixture {
    parts: Vec<Part>,
    /// In the order of their steps, the first from step 0.
    stages: Vec<Stage>,
    words: Vec<String>,
}

struct Part {
    task: Box<dyn Task>,
    /// Its token -> the mixture's.
    tokens: Vec<u32>,
}

/// From which step on the parts have which weights.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    from: u64,
    weights: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    parts: Vec<Named>,
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    parameters: Table,
}

impl Mixture {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let fail = |problems| Error::Parameters { task: NAME, problems };
        let read: std::result::Result<Parameters, toml::de::Error> = parameters.clone().try_into();
        let Parameters { parts, stages } = read.map_err(|error| fail(vec![error.message().to_string()]))?;
        let problems = problems(&parts, &stages);
        if !problems.is_empty() {
            return Err(fail(problems));
        }
        let mut words: Vec<String> = Vec::new();
        let mut ids: HashMap<String, u32> = HashMap::new();
        let mut made = Vec::new();
        for Named { name, parameters } in parts {
            let task = registry::task(&name, &parameters)?;
            let id = |word: String| {
                *ids.entry(word.clone()).or_insert_with(|| {
                    words.push(word);
                    words.len() as u32 - 1
                })
            };
            let tokens = task.words().into_iter().map(id).collect();
            made.push(Part { task, tokens });
        }
        Ok(Self { parts: made, stages, words })
    }

    /// Each part by its name, with the words of the whole mixture: a second part of one name is `NAME 2`.
    pub fn parts(parameters: &Table) -> Result<Vec<(String, Self)>> {
        let count = Self::from_parameters(parameters)?.parts.len();
        let mut parts: Vec<(String, Self)> = Vec::new();
        for number in 0..count {
            let mut alone = Self::from_parameters(parameters)?;
            let weights = (0..count).map(|part| f64::from(u8::from(part == number))).collect();
            alone.stages = vec![Stage { from: 0, weights }];
            let name = alone.parts[number].task.name();
            let before = alone.parts[..number].iter().filter(|part| part.task.name() == name).count();
            let name = if before == 0 { name.to_string() } else { format!("{name} {}", before + 1) };
            parts.push((name, alone));
        }
        Ok(parts)
    }

    /// The parts that some stage has.
    fn used(&self) -> impl Iterator<Item = &Part> {
        let weighs = |part: usize| self.stages.iter().any(|stage| stage.weights[part] > 0.);
        self.parts.iter().enumerate().filter(move |(number, _)| weighs(*number)).map(|(_, part)| part)
    }

    /// The part that the update of a step trains on.
    fn part(&self, seed: u64, step: u64) -> &Part {
        let stage = self.stages.iter().rev().find(|stage| stage.from <= step).unwrap_or(&self.stages[0]);
        let all: f64 = stage.weights.iter().sum();
        let mut left = generator(seed, CHOICES.wrapping_add(step)).random::<f64>() * all;
        let drawn = self.parts.iter().zip(&stage.weights).filter(|(_, weight)| **weight > 0.).find(|(_, weight)| {
            left -= **weight;
            left < 0.
        });
        // Rounding may leave a little: the last part that has a weight.
        let last = || self.parts.iter().zip(&stage.weights).rfind(|(_, weight)| **weight > 0.);
        drawn.or_else(last).map_or(&self.parts[0], |(part, _)| part)
    }
}

fn problems(parts: &[Named], stages: &[Stage]) -> Vec<String> {
    let mut problems = Vec::new();
    if parts.is_empty() {
        problems.push("`task.parts` is empty".to_string());
    }
    if parts.iter().any(|part| part.name == NAME) {
        problems.push("`task.parts`: a mixture is no part of a mixture; name its parts".to_string());
    }
    if stages.first().is_none_or(|stage| stage.from != 0) {
        problems.push("`task.stages` must begin with one from step 0".to_string());
    }
    if !stages.is_sorted_by(|a, b| a.from < b.from) {
        problems.push("`task.stages`: their steps `from` must rise".to_string());
    }
    for Stage { from, weights } in stages {
        let fine = weights.iter().all(|weight| *weight >= 0. && weight.is_finite());
        if weights.len() != parts.len() || !fine || weights.iter().all(|weight| *weight == 0.) {
            let count = parts.len();
            problems.push(format!(
                "`task.stages`: the weights {weights:?} from step {from} must be {count} numbers from 0 up, not all 0"
            ));
        }
    }
    problems
}

impl Batches for Mixture {
    fn vocabulary(&self) -> usize {
        self.words.len()
    }

    fn length(&self) -> usize {
        self.parts.iter().map(|part| part.task.length()).max().unwrap_or(0)
    }

    fn batch(&self, seed: u64, step: u64, rows: usize) -> Batch {
        let part = self.part(seed, step);
        let Batch { tokens, mask } = part.task.batch(seed, step, rows);
        let row = |row: Vec<u32>| row.into_iter().map(|token| part.shared(token)).collect();
        Batch { tokens: tokens.into_iter().map(row).collect(), mask }
    }
}

impl Task for Mixture {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.words.clone()
    }

    /// Those of the first part that has all these words and whose certain tokens are those that stand there.
    fn answers(&self, tokens: &[u32]) -> Vec<Option<u32>> {
        let of_part = |part: &Part| {
            let own = part.own(tokens)?;
            let answers = part.task.answers(&own);
            let certain = answers.iter().any(Option::is_some);
            let agree = answers.iter().zip(&own).all(|(answer, own)| answer.is_none_or(|answer| answer == *own));
            let shared = |answer: Option<u32>| answer.map(|answer| part.shared(answer));
            (certain && agree).then(|| answers.into_iter().map(shared).collect())
        };
        self.used().find_map(of_part).unwrap_or_else(|| vec![None; tokens.len()])
    }

    /// Those of the first part for which this is a prompt.
    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let of_part = |part: &Part| {
            let mut right: Vec<u32> =
                part.task.right(&part.own(prompt)?).into_iter().map(|token| part.shared(token)).collect();
            right.sort();
            (!right.is_empty()).then_some(right)
        };
        self.used().find_map(of_part).unwrap_or_default()
    }

    /// A row of the part that the update of that number trains on.
    fn row(&self, split: &str, seed: u64, number: u64) -> Result<Row> {
        named(NAME, "split", split, self.splits())?;
        let part = self.part(seed, number);
        let Row { tokens, mask } = part.task.row(part.task.splits()[0], seed, number)?;
        Ok(Row { tokens: tokens.into_iter().map(|token| part.shared(token)).collect(), mask })
    }

    /// None: pairs are asked of its parts.
    fn changes(&self) -> &'static [&'static str] {
        &[]
    }

    fn pair(&self, split: &str, change: &str, _: u64, _: u64) -> Result<PromptPair> {
        named(NAME, "split", split, self.splits())?;
        named(NAME, "change", change, self.changes())?;
        Err(Error::UnknownPart { task: NAME, what: "change", name: change.to_string(), known: String::new() })
    }
}

impl Part {
    /// The part's own tokens; none if it has not all these words.
    fn own(&self, tokens: &[u32]) -> Option<Vec<u32>> {
        let own = |token: &u32| self.tokens.iter().position(|other| other == token).map(|own| own as u32);
        tokens.iter().map(own).collect()
    }

    /// The mixture's token of one of the part's.
    fn shared(&self, own: u32) -> u32 {
        self.tokens[own as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{SPECIAL, UNKNOWN};

    const PARTS: &str = r#"parts = [
        { name = "repeated_sequences", words = 12, shortest = 3, longest = 6 },
        { name = "count_modulo_three" },
        { name = "what_followed" },
    ]"#;

    fn mixture(stages: &str) -> Result<Mixture> {
        Mixture::from_parameters(&toml::from_str(&format!("{PARTS}\nstages = {stages}")).unwrap())
    }

    #[test]
    fn each_word_is_one_token_and_answers_are_those_of_the_part() {
        let mixture = mixture("[{ from = 0, weights = [1, 1, 1] }]").unwrap();
        let words = mixture.words();
        assert_eq!(words[..SPECIAL.len()], SPECIAL);
        let different: std::collections::BTreeSet<&String> = words.iter().collect();
        assert_eq!(different.len(), words.len());
        assert_eq!(mixture.vocabulary(), words.len());
        for step in 0..60 {
            let batch = mixture.batch(7, step, 3);
            assert_eq!(batch, mixture.batch(7, step, 3));
            for (tokens, mask) in batch.tokens.iter().zip(&batch.mask) {
                assert!(tokens.len() <= mixture.length());
                assert!(tokens.iter().all(|&token| (token as usize) < words.len() && token != UNKNOWN));
                for (at, answer) in mixture.answers(tokens).into_iter().enumerate() {
                    assert_eq!(answer, mask[at].then(|| tokens[at]), "{tokens:?}");
                }
                let row = mixture.row("train", 7, step).unwrap();
                assert_eq!((row.tokens.len(), row.tokens[0]), (row.mask.len(), 0));
            }
        }
    }

    #[test]
    fn parts_come_as_often_as_their_weights_say_in_each_stage() {
        let mixture = mixture("[{ from = 0, weights = [1, 3, 0] }, { from = 4000, weights = [0, 0, 2] }]").unwrap();
        let counted = mixture.words().iter().position(|word| word == "count").unwrap() as u32;
        let counts = |steps: std::ops::Range<u64>| {
            steps.filter(|&step| mixture.batch(3, step, 1).tokens[0].contains(&counted)).count()
        };
        // 3 in 4, within four standard deviations of the binomial distribution.
        assert!((counts(0..4000) as f64 / 4000. - 0.75).abs() < 4. * (0.75f64 * 0.25 / 4000.).sqrt());
        assert_eq!(counts(4000..4500), 0);
        let last = mixture.batch(3, 4000, 2);
        assert!(last.mask.iter().all(|mask| mask.iter().filter(|&&certain| certain).count() == 1), "a question");
    }

    #[test]
    fn a_part_alone_keeps_the_words_of_all() {
        let text =
            PARTS.replace("what_followed", "count_modulo_three") + "\nstages = [{ from = 0, weights = [1, 0, 0] }]";
        let parameters = toml::from_str(&text).unwrap();
        let parts = Mixture::parts(&parameters).unwrap();
        let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["repeated_sequences", "count_modulo_three", "count_modulo_three 2"]);
        let counted = parts[0].1.words().iter().position(|word| word == "count").unwrap() as u32;
        for (number, (_, part)) in parts.iter().enumerate() {
            assert_eq!(part.words(), parts[0].1.words());
            let asks = |step: u64| part.batch(1, step, 1).tokens[0].contains(&counted);
            assert!((0..20).all(|step| asks(step) == (number > 0)));
            for step in 0..20 {
                let Row { tokens, mask } = part.row("train", 1, step).unwrap();
                let certain = (0..tokens.len()).filter(|&at| mask[at]);
                certain.for_each(|at| assert_eq!(part.right(&tokens[..at]), [tokens[at]]));
            }
            assert!(part.pair("train", "anything", 1, 0).is_err() && part.row("test", 1, 0).is_err());
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (stages, what) in [
            ("[]", "step 0"),
            ("[{ from = 1, weights = [1, 1, 1] }]", "step 0"),
            ("[{ from = 0, weights = [1, 1] }]", "3 numbers"),
            ("[{ from = 0, weights = [0, 0, 0] }]", "not all 0"),
            ("[{ from = 0, weights = [1, -1, 1] }]", "from 0 up"),
            ("[{ from = 0, weights = [1, nan, 1] }]", "from 0 up"),
            ("[{ from = 0, weights = [1, 1, 1] }, { from = 0, weights = [1, 1, 1] }]", "must rise"),
            ("[{ from = 0, weight = [1, 1, 1] }]", "weight"),
        ] {
            let error = mixture(stages).err().unwrap().to_string();
            assert!(error.contains(what), "{stages}: {error}");
        }
        let nested = r#"parts = [{ name = "mixture" }]
            stages = [{ from = 0, weights = [1] }]"#;
        assert!(Mixture::from_parameters(&toml::from_str(nested).unwrap()).is_err());
        let unknown = nested.replace("mixture", "juggling");
        let error = Mixture::from_parameters(&toml::from_str(&unknown).unwrap()).err().unwrap();
        assert!(matches!(error, Error::UnknownTask { .. }), "{error}");
    }
}
