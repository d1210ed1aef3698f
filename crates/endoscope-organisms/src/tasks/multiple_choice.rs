//! Multiple choice: `<bos> capital of france ? ( A ) rome ( B ) paris ( C ) oslo ( D ) bern answer : (`, then `B` (Lieberum et al. 2023,
//! arXiv 2307.09458). The facts are always the same; what stands before the options are the letters from A to D, or others.

use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, Template, all_different, owned};
use super::parameters::read;
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::{Row, TRAIN};

/// Its name in the registry.
pub const NAME: &str = "multiple_choice";

/// How many options a question has.
pub const OPTIONS: usize = 4;
/// The letters are always A, B, C and D.
pub const LETTERS: &str = "letters";
/// The labels are those of another enumeration, such as 1, 2, 3 and 4.
pub const ENUMERATIONS: &str = "enumerations";
/// The labels are four different ones of any enumeration, in any order. Never trained on.
pub const RANDOM: &str = "random";
/// The enumerations; the letters first.
pub const LABELS: [[&str; OPTIONS]; 5] =
    [["A", "B", "C", "D"], ["E", "F", "G", "H"], ["W", "X", "Y", "Z"], ["1", "2", "3", "4"], ["i", "ii", "iii", "iv"]];

/// What is asked: `RELATION of SUBJECT ?`.
pub const RELATIONS: [&str; 2] = ["capital", "young"];
/// Subjects and answers of each relation.
pub const FACTS: [[(&str, &str); 16]; 2] = [
    [
        ("france", "paris"),
        ("italy", "rome"),
        ("norway", "oslo"),
        ("switzerland", "bern"),
        ("spain", "madrid"),
        ("portugal", "lisbon"),
        ("greece", "athens"),
        ("austria", "vienna"),
        ("poland", "warsaw"),
        ("hungary", "budapest"),
        ("egypt", "cairo"),
        ("kenya", "nairobi"),
        ("japan", "tokyo"),
        ("china", "beijing"),
        ("cuba", "havana"),
        ("peru", "lima"),
    ],
    [
        ("cow", "calf"),
        ("dog", "puppy"),
        ("cat", "kitten"),
        ("horse", "foal"),
        ("sheep", "lamb"),
        ("goat", "kid"),
        ("pig", "piglet"),
        ("bear", "cub"),
        ("deer", "fawn"),
        ("duck", "duckling"),
        ("goose", "gosling"),
        ("swan", "cygnet"),
        ("hen", "chick"),
        ("kangaroo", "joey"),
        ("owl", "owlet"),
        ("frog", "tadpole"),
    ],
];
/// How many facts a relation has.
const SUBJECTS: usize = FACTS[0].len();

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// The share of the training rows whose labels are those of another enumeration than A to D; default 0.3.
    pub other_labels: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { other_labels: 0.3 }
    }
}

/// The task.
#[derive(Debug, Clone)]
pub struct MultipleChoice {
    other_labels: f64,
    lexicon: Lexicon,
    label: Kind,
    question: Template,
}

/// A question. Subjects and answers are numbered alike, those of the second relation after those of the first.
#[derive(Debug, Clone)]
struct Asked {
    subject: usize,
    labels: Vec<usize>,
    options: Vec<usize>,
}

impl MultipleChoice {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let Parameters { other_labels } = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.share("other_labels", parameters.other_labels);
        })?;
        let facts = || FACTS.iter().flatten();
        let (lexicon, [relation, subject, answer, label]) = Lexicon::new(
            [
                owned(&RELATIONS),
                facts().map(|(subject, _)| subject.to_string()).collect(),
                facts().map(|(_, answer)| answer.to_string()).collect(),
                owned(LABELS.as_flattened()),
            ],
            "of ? ( ) answer :",
        );
        let options = "( _ ) _ ".repeat(OPTIONS);
        let mut kinds = vec![relation, subject];
        kinds.extend([label, answer].repeat(OPTIONS));
        let question = lexicon.template(&format!("_ of _ ? {options} answer : ("), &kinds);
        Ok(Self { other_labels, lexicon, label, question })
    }

    fn drawn(&self, split: &str, random: &mut dyn Rng) -> Asked {
        let relation = random.random_range(0..RELATIONS.len());
        let of = |relation: usize, at: usize| relation * SUBJECTS + at;
        let options = rand::seq::index::sample(random, SUBJECTS, OPTIONS);
        let options: Vec<usize> = options.into_iter().map(|at| of(relation, at)).collect();
        let subject = options[random.random_range(0..OPTIONS)];
        let others = match split {
            TRAIN => random.random_bool(self.other_labels),
            split => split == ENUMERATIONS,
        };
        let labels = match (split, others) {
            (RANDOM, _) => self.label.different(random, OPTIONS),
            (_, false) => (0..OPTIONS).collect(),
            (_, true) => {
                let first = OPTIONS * random.random_range(1..LABELS.len());
                (first..first + OPTIONS).collect()
            }
        };
        Asked { subject, labels, options }
    }

    fn prompt(&self, Asked { subject, labels, options }: &Asked) -> Vec<u32> {
        let mut slots = vec![subject / SUBJECTS, *subject];
        slots.extend(labels.iter().zip(options).flat_map(|(&label, &option)| [label, option]));
        self.question.fill(&slots)
    }
}

impl Exercise for MultipleChoice {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        self.question.length() + 1
    }

    fn splits(&self) -> &'static [&'static str] {
        &[TRAIN, LETTERS, ENUMERATIONS, RANDOM]
    }

    fn row(&self, split: &str, random: &mut dyn Rng) -> Row {
        let prompt = self.prompt(&self.drawn(split, random));
        let answer = self.right(&prompt);
        Row::new(prompt, &answer)
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let letter = |slots: Vec<usize>| {
            let (relation, subject) = (slots[0], slots[1]);
            let (labels, options): (Vec<usize>, Vec<usize>) =
                slots[2..].chunks_exact(2).map(|two| (two[0], two[1])).unzip();
            let sensible = subject / SUBJECTS == relation && all_different(&labels) && all_different(&options);
            let at = options.iter().position(|&option| option == subject)?;
            sensible.then(|| self.label.token(labels[at]))
        };
        self.question.read(prompt).and_then(letter).into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["question", "options", "labels"]
    }

    fn pair(&self, split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let clean = self.drawn(split, random);
        let here = clean.options.iter().position(|&option| option == clean.subject)?;
        let there = random.random_range(0..OPTIONS);
        let mut corrupt = clean.clone();
        match change {
            "question" => corrupt.subject = clean.options[there],
            "options" => corrupt.options.swap(here, there),
            _ => corrupt.labels.swap(here, there),
        }
        compared(self, self.prompt(&clean), self.prompt(&corrupt))
    }
}
