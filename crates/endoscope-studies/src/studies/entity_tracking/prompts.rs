//! Boxes in the tokens of a model: prompts in pairs, and what is to come out if a part of the model carries one thing or another.

use endoscope_causal::{Metric, Pair, Target};
use endoscope_models::{Bos, Model};
use endoscope_net::{Capture, Captured, Index, Inputs, Network, Plan};
use endoscope_organisms::tasks::entity_tracking::EntityTracking;
use endoscope_organisms::tasks::questions::EVERYTHING;
use endoscope_organisms::{PromptPair, Streamed, TRAIN, Task};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How many tokens the question has, from the full stop before it: `. box F contains the`.
const QUESTION: i64 = 5;
/// Of so many pairs for each that is wanted, one must be written in one token a word.
const ATTEMPTS: u64 = 8;

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
    pub fn index(self) -> Index {
        match self {
            Self::Facts => Index::Range { start: 0, end: Some(-QUESTION) },
            Self::Question => Index::Range { start: -QUESTION, end: Some(-1) },
            Self::End => Index::At(-1),
        }
    }

    /// The region of a position of a prompt of `length` tokens.
    pub fn of(position: usize, length: usize) -> Self {
        match length - position {
            1 => Self::End,
            left if left <= QUESTION as usize => Self::Question,
            _ => Self::Facts,
        }
    }
}

/// A prompt, another of the same labels in another order with other objects, and what the first should answer if a part of the
/// model that carries a thing is taken from the second.
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
        Self { pair: Pair { clean: corrupt, corrupt: clean, answers: wrong_answers, wrong_answers: answers }, ..self.clone() }
    }
}

/// Where scenes come from.
pub struct Prompts<'a> {
    model: &'a Model,
    task: Streamed<EntityTracking>,
    words: Vec<String>,
}

impl<'a> Prompts<'a> {
    pub fn new(model: &'a Model, boxes: usize) -> Result<Self> {
        let parameters: toml::Table = [("boxes".to_string(), toml::Value::Integer(boxes as i64))].into_iter().collect();
        let task = Streamed(EntityTracking::from_parameters(&parameters)?);
        Ok(Self { model, words: task.words(), task })
    }

    /// So many scenes, from the number `first` of the seed's on. Only those whose every word is one token of the model.
    pub fn draw(&self, seed: u64, first: u64, count: usize) -> Result<Vec<Scene>> {
        let mut scenes = Vec::with_capacity(count);
        for number in first..first + ATTEMPTS * count as u64 {
            if scenes.len() == count {
                break;
            }
            scenes.extend(self.scene(&self.task.pair(TRAIN, EVERYTHING, seed, number)?)?);
        }
        match scenes.len() == count {
            true => Ok(scenes),
            false => Err(Error::Unsuitable {
                reason: format!(
                    "its tokenizer writes only {} of {} prompts such as “{} …” in one known token a word, as the masks and means by \
                     position need; {count} are needed",
                    scenes.len(),
                    ATTEMPTS * count as u64,
                    self.text(&self.task.row(TRAIN, seed, first)?.tokens[..7]),
                ),
            }),
        }
    }

    fn scene(&self, pair: &PromptPair) -> Result<Option<Scene>> {
        let (Some(clean), Some(corrupt)) = (self.encode(&pair.clean)?, self.encode(&pair.corrupt)?) else {
            return Ok(None);
        };
        let Some(wanted) = self.task.0.desiderata(&pair.clean, &pair.corrupt) else { return Ok(None) };
        // The model's token of a word, read where the word stands.
        let token = |word: u32| {
            let read = |prompt: &[u32], tokens: &[u32]| {
                let at = prompt.iter().rposition(|&other| other == word)?;
                tokens.get(tokens.len() - (prompt.len() - at)).copied()
            };
            read(&pair.clean, &clean).or_else(|| read(&pair.corrupt, &corrupt))
        };
        let words = [Some(wanted.object), wanted.label, Some(wanted.position), pair.answers.first().copied()];
        let tokens: Option<Vec<u32>> = words.into_iter().map(|word| token(word?)).collect();
        let Some([object, label, position, answer]) = tokens.and_then(|tokens| <[u32; 4]>::try_from(tokens).ok()) else {
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

    fn text(&self, tokens: &[u32]) -> String {
        tokens[1..].iter().map(|&token| self.words[token as usize].as_str()).collect::<Vec<_>>().join(" ")
    }

    /// The prompt in the model's tokens; none if they are not one a word.
    fn encode(&self, prompt: &[u32]) -> Result<Option<Vec<u32>>> {
        let encoded = self.model.tokenizer()?.encode(&self.text(prompt), Bos::AsConfigured)?;
        let before = usize::from(encoded.prepended.is_some());
        Ok((encoded.ids.len() == before + prompt.len() - 1).then_some(encoded.ids))
    }
}

/// Prompts with their answers, ready to be run together.
pub struct Asked {
    inputs: Inputs,
    answers: Vec<u32>,
    pub length: usize,
}

impl Asked {
    /// The clean prompts.
    pub fn new(scenes: &[Scene]) -> Result<Self> {
        let rows: Vec<Vec<u32>> = scenes.iter().map(|scene| scene.pair.clean.clone()).collect();
        let length = rows.first().map_or(0, Vec::len);
        let answers = scenes.iter().flat_map(|scene| scene.pair.answers.first().copied()).collect();
        Ok(Self { inputs: Inputs::tokens(rows)?, answers, length })
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
