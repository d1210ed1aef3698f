//! Boxes in the tokens of a model: prompts in pairs, and what is to come out if a part of the model carries one thing
//! or another.

use endoscope_causal::{Metric, Pair, Target};
use endoscope_models::{Bos, Model};
use endoscope_net::{Capture, Captured, Index, Inputs, Network, Plan};
use endoscope_organisms::tasks::entity_tracking::EntityTracking;
use endoscope_organisms::tasks::questions::EVERYTHING;
use endoscope_organisms::{SPECIAL, Streamed, TRAIN, Task, words};
use endoscope_train::generator;
use rand::Rng;
use rand::seq::index::sample;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Of so many pairs for each that is wanted, one must be written in one token a word.
const ATTEMPTS: u64 = 8;
/// Words of the organism's pairs: what the labels and the objects are called there.
const LABELS: usize = 32;
const OBJECTS: usize = 32;

/// How what is in which box is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Label and object, label and object, …, `?` and a label: the organism's, of the task key_value_recall.
    Pairs,
    /// `the apple is in box F , … . box F contains the`, as in the paper.
    Sentences,
}

impl Form {
    /// How many tokens the question has, with what separates it from the facts.
    fn question(self) -> usize {
        match self {
            Self::Pairs => 2,
            Self::Sentences => 5,
        }
    }
}

/// What a part of the model may carry of the box that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hypothesis {
    /// The object in it.
    Object,
    /// Its label.
    Label,
    /// Where it stands among the boxes.
    Position,
}

impl Hypothesis {
    pub const ALL: [Self; 3] = [Self::Object, Self::Label, Self::Position];

    pub fn name(self) -> &'static str {
        ["object", "label", "position"][self as usize]
    }
}

/// A part of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Region {
    /// The sentences that say what is in which box.
    Facts,
    /// The question, but for its last token.
    Question,
    /// The last token, after which the answer comes.
    End,
}

impl Region {
    pub const ALL: [Self; 3] = [Self::Facts, Self::Question, Self::End];

    /// Its positions.
    pub fn index(self, form: Form) -> Index {
        let question = form.question() as i64;
        match self {
            Self::Facts => Index::Range { start: 0, end: Some(-question) },
            Self::Question => Index::Range { start: -question, end: Some(-1) },
            Self::End => Index::At(-1),
        }
    }

    /// The region of a position of a prompt of `length` tokens.
    pub fn of(position: usize, length: usize, form: Form) -> Self {
        match length - position {
            1 => Self::End,
            left if left <= form.question() => Self::Question,
            _ => Self::Facts,
        }
    }
}

/// A prompt, another of the same labels in another order with other objects, and what the first should answer if a part
/// of the model that carries a thing is taken from the second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scene {
    pub pair: Pair,
    /// In the order of [`Hypothesis::ALL`].
    pub wanted: [u32; 3],
}

impl Scene {
    /// The other prompt with its own answer.
    pub fn swapped(&self) -> Self {
        let Pair { clean, corrupt, answers, wrong_answers } = self.pair.clone();
        Self {
            pair: Pair { clean: corrupt, corrupt: clean, answers: wrong_answers, wrong_answers: answers },
            ..self.clone()
        }
    }
}

/// A scene in words: both prompts, what each hypothesis wants, and the answer.
struct Words {
    clean: Vec<String>,
    corrupt: Vec<String>,
    four: [String; 4],
}

/// Where scenes come from.
pub struct Prompts<'a> {
    model: &'a Model,
    task: Streamed<EntityTracking>,
    boxes: usize,
    form: Form,
}

impl<'a> Prompts<'a> {
    pub fn new(model: &'a Model, boxes: usize, form: Form) -> Result<Self> {
        let parameters: toml::Table = [("boxes".to_string(), toml::Value::Integer(boxes as i64))].into_iter().collect();
        Ok(Self { model, task: Streamed(EntityTracking::from_parameters(&parameters)?), boxes, form })
    }

    /// So many scenes, from the number `first` of the seed's on. Only those whose every word is one token of the model.
    pub fn draw(&self, seed: u64, first: u64, count: usize) -> Result<Vec<Scene>> {
        let mut scenes = Vec::with_capacity(count);
        let all = ATTEMPTS * count as u64;
        for number in first..first + all {
            if scenes.len() == count {
                return Ok(scenes);
            }
            if let Some(words) = self.words(seed, number)? {
                scenes.extend(self.scene(&words)?);
            }
        }
        if scenes.len() == count {
            return Ok(scenes);
        }
        let example = self.words(seed, first)?.map(|words| words.clean[..6.min(words.clean.len())].join(" "));
        Err(Error::Unsuitable {
            reason: format!(
                "its tokenizer writes only {} of {all} prompts such as “{} …” in one known token a word, as masks and means by position \
                 need; {count} are needed",
                scenes.len(),
                example.unwrap_or_default(),
            ),
        })
    }

    fn words(&self, seed: u64, number: u64) -> Result<Option<Words>> {
        match self.form {
            Form::Pairs => Ok(self.pairs(generator(seed, number))),
            Form::Sentences => {
                let pair = self.task.pair(TRAIN, EVERYTHING, seed, number)?;
                let wanted = self.task.0.desiderata(&pair.clean, &pair.corrupt);
                let words = self.task.words();
                let text =
                    |tokens: &[u32]| tokens.iter().map(|&token| words[token as usize].clone()).collect::<Vec<_>>();
                Ok(wanted.and_then(|wanted| {
                    let four = text(&[wanted.object, wanted.label?, wanted.position, *pair.answers.first()?]);
                    Some(Words {
                        clean: text(&pair.clean[1..]),
                        corrupt: text(&pair.corrupt[1..]),
                        four: four.try_into().ok()?,
                    })
                }))
            }
        }
    }

    /// The same labels in another order, other objects, another question; none if two hypotheses want the same.
    fn pairs(&self, mut random: impl Rng) -> Option<Words> {
        let words = words(LABELS + OBJECTS).split_off(SPECIAL.len());
        let (labels, objects) = words.split_at(LABELS);
        let mut some = |of: usize| sample(&mut random, of, self.boxes.min(of)).into_vec();
        let (first, order) = (some(LABELS), some(self.boxes.min(LABELS)));
        let second: Vec<usize> = order.iter().map(|&at| first[at]).collect();
        let (here, there) = (some(OBJECTS), some(OBJECTS));
        let (asked, other) = (some(first.len())[0], some(first.len())[0]);
        let prompt = |of: &[usize], things: &[usize], asked: usize| -> Vec<String> {
            let facts = of.iter().zip(things).flat_map(|(&label, &thing)| [&labels[label], &objects[thing]]);
            facts.cloned().chain(["?".to_string(), labels[of[asked]].clone()]).collect()
        };
        let labelled = first.iter().position(|&label| label == second[other])?;
        let four = [there[other], here[labelled], here[other], here[asked]];
        let differ = (1..4).all(|at| !four[..at].contains(&four[at]));
        differ.then(|| Words {
            clean: prompt(&first, &here, asked),
            corrupt: prompt(&second, &there, other),
            four: four.map(|thing| objects[thing].clone()),
        })
    }

    fn scene(&self, words: &Words) -> Result<Option<Scene>> {
        let (Some(clean), Some(corrupt)) = (self.encode(&words.clean)?, self.encode(&words.corrupt)?) else {
            return Ok(None);
        };
        // The model's token of a word, read where the word stands.
        let token = |word: &String| {
            let read = |prompt: &[String], tokens: &[u32]| {
                let at = prompt.iter().rposition(|other| other == word)?;
                tokens.get(tokens.len() - (prompt.len() - at)).copied()
            };
            read(&words.clean, &clean).or_else(|| read(&words.corrupt, &corrupt))
        };
        let tokens: Option<Vec<u32>> = words.four.iter().map(token).collect();
        let Some([object, label, position, answer]) = tokens.and_then(|tokens| <[u32; 4]>::try_from(tokens).ok())
        else {
            return Ok(None);
        };
        // Words that the tokenizer does not know are all one token.
        let all = [object, label, position, answer];
        if (1..4).any(|at| all[..at].contains(&all[at])) {
            return Ok(None);
        }
        let pair = Pair { clean, corrupt, answers: vec![answer], wrong_answers: vec![object] };
        Ok(Some(Scene { pair, wanted: [object, label, position] }))
    }

    /// The prompt in the model's tokens; none if they are not one a word.
    fn encode(&self, words: &[String]) -> Result<Option<Vec<u32>>> {
        let encoded = self.model.tokenizer()?.encode(&words.join(" "), Bos::AsConfigured)?;
        let before = usize::from(encoded.prepended.is_some());
        Ok((encoded.ids.len() == before + words.len()).then_some(encoded.ids))
    }
}

/// Prompts with their answers, ready to be run together.
pub struct Asked {
    inputs: Inputs,
    answers: Vec<u32>,
    pub length: usize,
    pub form: Form,
}

impl Asked {
    /// The clean prompts.
    pub fn new(scenes: &[Scene], form: Form) -> Result<Self> {
        let rows: Vec<Vec<u32>> = scenes.iter().map(|scene| scene.pair.clean.clone()).collect();
        let length = rows.first().map_or(0, Vec::len);
        let answers = scenes.iter().flat_map(|scene| scene.pair.answers.first().copied()).collect();
        Ok(Self { inputs: Inputs::tokens(rows)?, answers, length, form })
    }

    /// Whether each prompt is answered rightly under a plan.
    pub fn right(&self, network: &dyn Network, plan: &Plan) -> Result<Vec<bool>> {
        let outputs = network.run(&self.inputs, &plan.clone().outputs_at(Index::At(-1)))?.outputs;
        let (_, positions, _) = outputs.dims3()?;
        let logits = outputs.narrow(1, positions.saturating_sub(1), 1)?.squeeze(1)?.to_vec2::<f32>()?;
        let right = |(logits, &answer): (&Vec<f32>, &u32)| -> Result<bool> {
            let target = Target { answers: vec![answer], ..Target::default() };
            Ok(Metric::Accuracy.value(logits, &target)? > 0.5)
        };
        logits.iter().zip(&self.answers).map(right).collect()
    }

    /// The share that is answered rightly.
    pub fn accuracy(&self, network: &dyn Network, plan: &Plan) -> Result<f64> {
        let right = self.right(network, plan)?;
        Ok(right.iter().filter(|&&right| right).count() as f64 / right.len() as f64)
    }

    /// What every head writes, before its output matrix: `z` of each layer.
    pub fn written(&self, network: &dyn Network) -> Result<Captured> {
        let plan = Plan::default().capture(Capture::new("z")).outputs_at(Index::List(Vec::new()));
        Ok(network.run(&self.inputs, &plan)?.captured)
    }

    /// The mean of that over the prompts, at each position.
    pub fn mean_written(&self, network: &dyn Network) -> Result<Captured> {
        let mut means = Captured::default();
        for (site, written) in self.written(network)?.iter() {
            means.insert(site.to_string(), written.mean_keepdim(0)?);
        }
        Ok(means)
    }
}
