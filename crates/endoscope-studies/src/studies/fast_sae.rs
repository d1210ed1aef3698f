//! FAST: training sparse autoencoders for instruct models (arXiv 2506.07691).
//!
//! A small model learns plain text of facts, questions and answers, and then chats about such facts, with a template.
//! Dictionaries of its middle layer see equally many vectors in equally large updates: of whole chats, one after the
//! other (FAST); of the same chats joined and cut into blocks, shuffled (the paper's BT(F)); of plain text in blocks,
//! shuffled (BT(P)). What they do not reconstruct of held-out chats is compared: on all tokens, without the first, on
//! those of the template, and on the words.
//!
//! The paper trains standard and JumpReLU dictionaries, whose sparsity comes out of the training; here the `active`
//! largest latents of each token are kept, so that all are equally sparse.

mod text;

use std::collections::BTreeMap;

use endoscope_causal::accuracy;
use endoscope_causal::statistics::seeds as over_seeds;
use endoscope_dictionary::evaluate::{FitSums, loss_recovered};
use endoscope_dictionary::training::{BiasStart, InputScaling, Objective, Settings};
use endoscope_dictionary::{Dictionary, Matrix};
use endoscope_models::Model;
use endoscope_net::Plan;
use endoscope_organisms::Row;
use endoscope_report::{Label, Section, Table, labels};
use endoscope_train::Recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::finding::{CONFIDENCE, Finding, Line, Test};
use crate::lab::Lab;
use crate::study::{Outcome, Study, Untested};
use crate::vectors::{Order, joined, trained, vectors};
use text::{Class, Texts};

/// The stream in the middle of the model.
const SITE: &str = "blocks.1.hook_resid_post";

/// What a dictionary is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    Chats,
    Plain,
    /// Chats whose markers stand in any order.
    Permuted,
    /// Documents as long as chats, of the same tokens in any order.
    Unstructured,
}

/// A dictionary: its data, and whether it sees whole rows in order or shuffled blocks.
struct Arm {
    name: &'static str,
    data: Data,
    whole: bool,
}

static ARMS: [Arm; 6] = [
    Arm { name: "FAST", data: Data::Chats, whole: true },
    Arm { name: "BT(F)", data: Data::Chats, whole: false },
    Arm { name: "BT(P)", data: Data::Plain, whole: false },
    Arm { name: "FAST, markers permuted", data: Data::Permuted, whole: true },
    Arm { name: "FAST, no structure", data: Data::Unstructured, whole: true },
    Arm { name: "BT, no structure", data: Data::Unstructured, whole: false },
];
const FAST: usize = 0;
const BLOCKS: usize = 1;
const PLAIN: usize = 2;
const PERMUTED: usize = 3;
const UNSTRUCTURED: usize = 4;
const UNSTRUCTURED_BLOCKS: usize = 5;

/// The study.
pub struct FastSae;

/// What is trained, and on how much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Updates of the model: one half on plain text, then one on chats.
    #[schemars(range(min = 2, max = 100_000))]
    steps: u64,
    /// How many chats dictionaries are trained on, again and again.
    #[schemars(range(min = 16, max = 100_000))]
    chats: usize,
    /// How many chats, and rows of plain text, they are tried on.
    #[schemars(range(min = 8, max = 10_000))]
    held_out: usize,
    /// How many latents a dictionary has.
    #[schemars(range(min = 8, max = 16_384))]
    latents: usize,
    /// How many of them are active on each token.
    #[schemars(range(min = 1, max = 64))]
    active: usize,
    /// Updates of each dictionary.
    #[schemars(range(min = 1, max = 100_000))]
    updates: u64,
    /// How many whole chats an update sees; of blocks it sees as many tokens.
    #[schemars(range(min = 1, max = 512))]
    batch: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 8000, chats: 2048, held_out: 256, latents: 256, active: 8, updates: 1500, batch: 16 }
    }
}

/// What a dictionary makes of some vectors.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Score {
    /// The squared error, summed over dimensions, averaged over tokens.
    mse: f64,
    /// The share of the variance that is not reconstructed.
    fvu: f64,
    /// Active latents a token.
    l0: f64,
}

/// What a dictionary makes of held-out text.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Scores {
    all: Score,
    /// Without the first token of each chat.
    later: Score,
    template: Score,
    words: Score,
    /// The mean squared errors of one half of the words and of the other.
    halves: [f64; 2],
    plain: Score,
    unstructured: Score,
    unstructured_later: Score,
    /// `(zero - spliced) / (zero - clean)` on chats, of the losses with zeros and reconstructions at the site.
    recovered: f64,
}

/// What is measured with one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    /// The share of the assistant's tokens in held-out chats that have the model's largest logit.
    accuracy: f64,
    /// The squared length of a first token's vector, and the mean of the others'.
    lengths: [f64; 2],
    /// In the order of the arms.
    arms: Vec<Scores>,
}

impl Study for FastSae {
    const SLUG: &'static str = "fast-sae";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "More features of FAST are interpretable: 21.1 % in the top range against 7.0 % and 10.2 % \
            (Llama3.2-3B).",
            why: "Scores of interpretability need a large language model that reads natural text.",
        },
        Untested {
            claim: "Acting on the features of special tokens improves what the model writes.",
            why: "The organism's answers are right or wrong; there is no quality of writing to improve.",
        },
        Untested {
            claim: "Standard and JumpReLU dictionaries gain alike.",
            why: "Their sparsity differs from data to data; here it is the same by construction, by keeping the \
            largest latents.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config { steps: 40, chats: 32, held_out: 16, latents: 64, active: 4, updates: 12, batch: 8 }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        if lab.is_given_a_model() {
            let reason = "it needs the plain text and the chats that the model learned from, which are made here for \
            the study's own model; \
                          `endoscope_dictionary::training` takes the chats of any model in order \
                          (`NetworkStream::sequential`) or shuffled";
            return Err(Error::Unsuitable { reason: reason.into() });
        }
        if config.chats < config.batch || config.active > config.latents {
            let reason = format!(
                "an update of {} of {} chats, with {} of {} latents active, is not possible",
                config.batch, config.chats, config.active, config.latents
            );
            return Err(Error::Unsuitable { reason });
        }
        let recipes = lab.seeds().iter().map(|&seed| recipe(config, seed)).collect::<Result<Vec<_>>>()?;
        let models: BTreeMap<u64, _> = lab.seeds().iter().copied().zip(lab.train_all(&recipes)?).collect();
        let figures =
            lab.each_seed("dictionaries", &(config, &recipes), |seed| measured(&models[&seed], config, seed))?;
        outcome(lab.seeds(), config, &figures)
    }
}

/// A model that learns plain text, and then chats.
fn recipe(config: &Config, seed: u64) -> Result<Recipe> {
    let (steps, half) = (config.steps, config.steps / 2);
    let text = format!(
        "[model]\nfamily = \"llama\"\ncontext = 48\nd_model = 64\nlayers = 3\nheads = 4\nd_mlp = 128\n\
         [task]\nname = \"mixture\"\nparts = [{{ name = \"dialogues\", form = \"plain\" }}, {{ name = \"dialogues\" \
         }}]\n\
         stages = [{{ from = 0, weights = [1, 0] }}, {{ from = {half}, weights = [0, 1] }}]\n\
         [training]\nsteps = {steps}\nbatch = 32\nseed = {seed}\nlearning_rate = 0.003\nwarmup_steps = \
         {}\ncheckpoint_every = {steps}\n",
        (steps / 10).min(100)
    );
    Ok(Recipe::parse("recipe.toml", &text)?)
}

/// Trains the dictionaries of one model, and tries them.
fn measured(model: &Model, config: &Config, seed: u64) -> Result<Figures> {
    let texts = Texts::new(config.chats, config.held_out, seed)?;
    let all = |rows: &[Vec<u32>]| joined(&vectors(&model.decoder, SITE, rows)?);
    let exams = Exams {
        chats: all(&texts.chats)?,
        classes: texts.classes(seed),
        plain: all(&texts.plain)?,
        unstructured: all(&texts.unstructured)?,
        rows: texts.chats.clone(),
    };
    let sizes: Vec<usize> = texts
        .training(Data::Chats, true)
        .chunks_exact(config.batch)
        .map(|some| some.iter().map(Vec::len).sum())
        .collect();
    let settings = settings(config, seed);
    let mut arms = Vec::new();
    for arm in &ARMS {
        let pool = all(&texts.training(arm.data, arm.whole))?;
        let order = if arm.whole { Order::AsTheyAre } else { Order::Shuffled };
        arms.push(exams.scores(model, &trained(&settings, SITE, (&pool, order), &sizes)?)?);
    }
    let square = |class: &dyn Fn(Class) -> bool| {
        let rows = exams.classes.iter().zip(exams.chats.norms()).filter(|(of, _)| class(**of));
        let squares: Vec<f64> = rows.map(|(_, norm)| f64::from(norm).powi(2)).collect();
        squares.iter().sum::<f64>() / squares.len().max(1) as f64
    };
    Ok(Figures {
        accuracy: answered(model, &texts.held_out)?,
        lengths: [square(&|class| class == Class::First), square(&|class| class != Class::First)],
        arms,
    })
}

fn settings(config: &Config, seed: u64) -> Settings {
    Settings {
        objective: Objective::TopK { k: config.active, dead: 1., by_decoder_norm: true },
        latents: config.latents,
        steps: config.updates,
        learning_rate: 2e-3,
        warmup_steps: config.updates / 20,
        decay_steps: config.updates / 4,
        normalization: InputScaling::ExpectedAverageOnlyIn,
        bias_start: BiasStart::Mean,
        dead_after_steps: config.updates / 10,
        seed,
        ..Settings::default()
    }
}

/// Held-out text.
struct Exams {
    chats: Matrix,
    /// What each token of the chats is.
    classes: Vec<Class>,
    plain: Matrix,
    unstructured: Matrix,
    /// The chats as tokens.
    rows: Vec<Vec<u32>>,
}

/// On how many chats the loss is measured.
const SPLICED: usize = 64;

impl Exams {
    fn scores(&self, model: &Model, dictionary: &Dictionary) -> Result<Scores> {
        let of = |class: &dyn Fn(Class) -> bool| {
            let rows = (0..self.chats.rows()).filter(|&at| class(self.classes[at]));
            score(dictionary, &self.chats.select(rows))
        };
        let half = |which: bool| Ok::<f64, Error>(of(&|class| class == Class::Word(which))?.mse);
        // Documents without structure are as long as the chats, so that their first tokens stand where theirs do.
        let later = (0..self.unstructured.rows()).filter(|&at| self.classes[at] != Class::First);
        let mut rows: Vec<Vec<u32>> = self.rows.iter().take(SPLICED).cloned().collect();
        rows.sort_by_key(Vec::len);
        Ok(Scores {
            all: of(&|_| true)?,
            later: of(&|class| class != Class::First)?,
            template: of(&|class| class == Class::Template)?,
            words: of(&|class| matches!(class, Class::Word(_)))?,
            halves: [half(true)?, half(false)?],
            plain: score(dictionary, &self.plain)?,
            unstructured: score(dictionary, &self.unstructured)?,
            unstructured_later: score(dictionary, &self.unstructured.select(later))?,
            recovered: loss_recovered(&model.decoder, dictionary, &rows)?.recovered,
        })
    }
}

fn score(dictionary: &Dictionary, vectors: &Matrix) -> Result<Score> {
    let mut sums = FitSums::default();
    sums.add(dictionary, vectors, None)?;
    let fit = sums.finish()?;
    Ok(Score { mse: fit.mse, fvu: fit.fvu, l0: fit.l0 })
}

/// The share of the tokens that count which have the largest logit.
fn answered(model: &Model, rows: &[Row]) -> Result<f64> {
    let (mut right, mut count) = (0., 0.);
    for row in rows.iter().take(SPLICED) {
        let answers = row.tokens.iter().zip(&row.mask).map(|(&token, &counts)| counts.then_some(token)).collect();
        let found = accuracy(&model.decoder, std::slice::from_ref(&row.tokens), &[answers], &Plan::default())?;
        right += found.top * found.count as f64;
        count += found.count as f64;
    }
    Ok(right / count)
}

/// Errors of one arm in those of another, both with each seed.
fn findings(figures: &[Figures]) -> Result<Vec<Finding>> {
    let times = |(more, less): (usize, usize), of: &dyn Fn(&Scores) -> f64| -> Vec<f64> {
        figures.iter().map(|each| of(&each.arms[more]) / of(&each.arms[less])).collect()
    };
    let test = |claim: &str, unit: &str, effect: f64, control: &str, absent: f64| Test {
        claim: claim.into(),
        unit: unit.into(),
        effect: Line::AtLeast(effect),
        control: control.into(),
        absent: Line::AtMost(absent),
    };
    let unstructured = (UNSTRUCTURED_BLOCKS, UNSTRUCTURED);
    let beside =
        |more: &[f64], less: &[f64]| more.iter().zip(less).map(|(more, less)| more / less).collect::<Vec<f64>>();
    Ok(vec![
        test(
            "A dictionary trained on whole chats in order reconstructs chats better than one trained on blocks of the \
            same chats.",
            "times its mean squared error",
            1.1,
            "the same of documents without structure, whole against blocks",
            1.05,
        )
        .judge(&times((BLOCKS, FAST), &|s| s.all.mse), &times(unstructured, &|s| s.unstructured.mse))?
        .paper("0.6468 against 5.1985 and 1.5096 (Qwen2.5-7B-Instruct, abstract)"),
        test(
            "So it does without the first token of each chat.",
            "times its mean squared error",
            1.1,
            "the same of documents without structure, whole against blocks",
            1.05,
        )
        .judge(&times((BLOCKS, FAST), &|s| s.later.mse), &times(unstructured, &|s| s.unstructured_later.mse))?,
        test(
            "One trained on blocks of chats reconstructs chats better than one trained on blocks of plain text.",
            "times its mean squared error",
            1.5,
            "the same two on plain text",
            1.,
        )
        .judge(&times((PLAIN, BLOCKS), &|s| s.all.mse), &times((PLAIN, BLOCKS), &|s| s.plain.mse))?,
        test(
            "Whole chats in order gain on the tokens of the template.",
            "times the mean squared error there, in blocks",
            1.1,
            "whole chats in order whose markers stand in any order",
            1.,
        )
        .judge(&times((BLOCKS, FAST), &|s| s.template.mse), &times((BLOCKS, PERMUTED), &|s| s.template.mse))?,
        test(
            "They gain most on the tokens of the template.",
            "times what they gain on words",
            1.1,
            "what they gain on one half of the words, in what they gain on the other",
            1.05,
        )
        .judge(
            &beside(&times((BLOCKS, FAST), &|s| s.template.mse), &times((BLOCKS, FAST), &|s| s.words.mse)),
            &beside(&times((BLOCKS, FAST), &|s| s.halves[0]), &times((BLOCKS, FAST), &|s| s.halves[1])),
        )?,
    ])
}

/// What is tabled of an arm.
type Column = (&'static str, fn(&Scores) -> f64);
const COLUMNS: [Column; 10] = [
    ("MSE", |s| s.all.mse),
    ("MSE, without first token", |s| s.later.mse),
    ("MSE, template", |s| s.template.mse),
    ("MSE, words", |s| s.words.mse),
    ("FVU", |s| s.all.fvu),
    ("FVU, without first token", |s| s.later.fvu),
    ("FVU, template", |s| s.template.fvu),
    ("L0", |s| s.all.l0),
    ("loss recovered", |s| s.recovered),
    ("MSE, plain text", |s| s.plain.mse),
];

fn outcome(numbers: &[u64], config: &Config, figures: &[Figures]) -> Result<Outcome> {
    let spread = |of: &dyn Fn(&Figures) -> f64| -> Result<String> {
        let seeds = over_seeds(&figures.iter().map(of).collect::<Vec<f64>>(), CONFIDENCE)?;
        Ok(format!("{:.3} ({:.3} to {:.3})", seeds.mean, seeds.low, seeds.high))
    };
    let error = |arm: usize| spread(&move |each| each.arms[arm].all.mse);
    let summary = format!(
        "Of held-out chats, dictionaries with {} active latents leave a mean squared error of {} when trained on \
        whole chats in order, {} on \
         shuffled blocks of the same chats, and {} on blocks of plain text. The model answers {} of the questions \
         rightly. A first token's \
         vector has a squared length of {}, others of {}.",
        config.active,
        error(FAST)?,
        error(BLOCKS)?,
        error(PLAIN)?,
        spread(&|each| each.accuracy)?,
        spread(&|each| each.lengths[0])?,
        spread(&|each| each.lengths[1])?,
    );
    let mut outcome = Outcome { summary, findings: findings(figures)?, ..Outcome::default() };
    let values =
        figures.iter().flat_map(|each| each.arms.iter().flat_map(|arm| COLUMNS.iter().map(move |(_, of)| of(arm))));
    let axes = [
        ("seed", numbers.iter().map(|seed| Label::Text(seed.to_string())).collect()),
        ("dictionary", labels(ARMS.iter().map(|arm| arm.name))),
        ("figure", labels(COLUMNS.iter().map(|column| column.0))),
    ];
    let table = Table::new("what dictionaries make of held-out chats", axes, values.collect())?;
    outcome.tables.insert("reconstruction".into(), table);
    outcome.sections.push(Section::Table {
        heading: Some("Every dictionary".into()),
        table: "reconstruction".into(),
        caption: "MSE is summed over dimensions; FVU is the share of the variance that is not reconstructed, of the \
        same tokens."
            .into(),
    });
    Ok(outcome)
}

#[cfg(test)]
mod tests;
