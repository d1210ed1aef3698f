//! Beyond the surface: ideological depth (arXiv 2508.21448).
//!
//! Two models of one size learn the opinions of made-up persons on made-up topics, from the same prompts and with as
//! many yes to each topic. In one the opinions follow from a few values that each person holds or not (*deep*), in
//! the other they are dealt out at random and to be looked up, or refused where they are not known (*shallow*). Both
//! have a dictionary of the same site, size, sparsity and text.
//!
//! - Count: features that tell prompts on topics from prompts on neutral words, by the area under the ROC curve over
//!   words and a permutation test whose p-values are corrected for the number of features. Words, not prompts, are what
//!   is permuted: prompts on one word are not independent.
//! - Ablation: the feature that best tells who holds a value from who does not is set to zero, in all prompts on
//!   topics that touch the value.
//! - Steering: the mean difference of the vectors before `yes` and before `no`, of one half of the persons, is added
//!   for the others.

mod measure;

use std::collections::BTreeMap;

use endoscope_causal::statistics::seeds as over_seeds;
use endoscope_organisms::tasks::opinions::{NAME, Opinions};
use endoscope_report::{Label, Section, Table, labels};
use endoscope_train::Recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::finding::{CONFIDENCE, Finding, Line, Test};
use crate::lab::Lab;
use crate::study::{Outcome, Study, Untested};
use measure::{Figures, SCALES, THRESHOLDS, measured};

/// The organisms, by the ground of their opinions.
const GROUNDS: [&str; 2] = ["deep", "shallow"];
const DEEP: usize = 0;
const SHALLOW: usize = 1;
/// Which threshold and scale claims are of.
const COUNTED: usize = 1;
const STEERED: usize = 2;

/// The study.
pub struct IdeologicalDepth;

/// What is trained and tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Updates of each model.
    #[schemars(range(min = 1, max = 100_000))]
    steps: u64,
    /// How many values opinions rest on.
    #[schemars(range(min = 1, max = 8))]
    values: usize,
    /// How many latents a dictionary has.
    #[schemars(range(min = 8, max = 4096))]
    latents: usize,
    /// How many of them are active on each token.
    #[schemars(range(min = 1, max = 8))]
    active: usize,
    /// Updates of each dictionary.
    #[schemars(range(min = 1, max = 100_000))]
    updates: u64,
    /// How many permutations a p-value rests on.
    #[schemars(range(min = 100, max = 100_000))]
    permutations: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 2000, values: 3, latents: 128, active: 6, updates: 1500, permutations: 4000 }
    }
}

impl Study for IdeologicalDepth {
    const SLUG: &'static str = "ideological-depth";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "Of two public models of similar size, one has 7.3 times as many political features.",
            why: "Neither model nor its dictionary was at hand; what is tested is whether the count tells a deep \
            organism from a shallow one.",
        },
        Untested {
            claim: "Instruction prompts turn the answers of the shallower model more easily.",
            why: "The organisms follow no instructions; they are steered by vectors only.",
        },
        Untested {
            claim: "The features of the deeper model are more abstract.",
            why: "Nobody reads the features here; made-up words have no meaning to be abstract about.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config { steps: 20, latents: 32, active: 4, updates: 20, permutations: 100, ..Config::default() }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        if lab.is_given_a_model() {
            let reason = "it compares two organisms that learned the same prompts, with and without values behind \
            their opinions; a user's \
                          model has no such twin";
            return Err(Error::Unsuitable { reason: reason.into() });
        }
        let of_seed = |seed: u64| GROUNDS.map(|ground| recipe(config, ground, seed));
        let recipes = lab.seeds().iter().flat_map(|&seed| of_seed(seed)).collect::<Result<Vec<_>>>()?;
        let trained = lab.train_all(&recipes)?;
        let models: BTreeMap<u64, _> = lab.seeds().iter().copied().zip(trained.chunks(GROUNDS.len())).collect();
        let figures = lab.each_seed("dictionaries", &(config, &recipes), |seed| {
            let both = models[&seed].iter().zip(GROUNDS);
            both.map(|(model, ground)| measured(model, &world(config, ground, seed)?, config, seed))
                .collect::<Result<Vec<_>>>()
        })?;
        outcome(lab.seeds(), config, &figures)
    }
}

/// The keys of the task.
fn keys(config: &Config, ground: &str, seed: u64) -> toml::Table {
    let seed = i64::try_from(seed).unwrap_or(i64::MAX);
    let keys: [(&str, toml::Value); 3] =
        [("ground", ground.into()), ("values", (config.values as i64).into()), ("seed", seed.into())];
    keys.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

fn world(config: &Config, ground: &str, seed: u64) -> Result<Opinions> {
    Ok(Opinions::from_parameters(&keys(config, ground, seed))?)
}

fn recipe(config: &Config, ground: &str, seed: u64) -> Result<Recipe> {
    let steps = config.steps;
    let text = format!(
        "[model]\nfamily = \"llama\"\ncontext = 8\nd_model = 64\nlayers = 2\nheads = 4\nd_mlp = 192\n\
         [task]\nname = \"{NAME}\"\n\
         [training]\nsteps = {steps}\nbatch = 128\nseed = {seed}\nlearning_rate = 0.003\nwarmup_steps = \
         {}\nweight_decay = 0.1\n\
         checkpoint_every = {steps}\n",
        (steps / 10).min(100)
    );
    let mut recipe = Recipe::parse("recipe.toml", &text)?;
    recipe.task.parameters = keys(config, ground, seed);
    Ok(recipe)
}

/// The two organisms of each seed, in the order of [`GROUNDS`].
fn findings(figures: &[Vec<Figures>]) -> Result<Vec<Finding>> {
    let of = |ground: usize, figure: &dyn Fn(&Figures) -> f64| -> Vec<f64> {
        figures.iter().map(|both| figure(&both[ground])).collect()
    };
    let both = |figure: &dyn Fn(&Figures, &Figures) -> f64| -> Vec<f64> {
        figures.iter().map(|both| figure(&both[DEEP], &both[SHALLOW])).collect()
    };
    let test = |claim: &str, unit: &str, effect: f64, control: &str, absent: f64| Test {
        claim: claim.into(),
        unit: unit.into(),
        effect: Line::AtLeast(effect),
        control: control.into(),
        absent: Line::AtMost(absent),
    };
    // Where the shallow model has none, as if it had one.
    let times = |deep: &[usize], shallow: &[usize]| deep[COUNTED] as f64 / shallow[COUNTED].max(1) as f64;
    Ok(vec![
        test(
            "The deep model's dictionary has at least twice as many features of topics as the shallow model's.",
            "times as many features",
            2.,
            "dictionaries of random weights",
            1.5,
        )
        .judge(
            &both(&|deep, shallow| times(&deep.count, &shallow.count)),
            &both(&|deep, shallow| times(&deep.untrained, &shallow.untrained)),
        )?
        .paper("7.3 times (abstract)"),
        test(
            "What is counted are features of topics.",
            "of the deep model's features",
            0.03,
            "the same with topics and neutral words exchanged at random",
            0.01,
        )
        .judge(&of(DEEP, &|f| f.share(&f.count)), &of(DEEP, &|f| f.share(&f.shuffled)))?,
        test(
            "Without the feature that tells who holds a value, the deep model's answers on the topics that touch it \
            shift to the other side.",
            "of these answers lose half of their margin or turn",
            0.6,
            "the same in the shallow model",
            0.2,
        )
        .judge(&of(DEEP, &|f| f.ablated.shifted), &of(SHALLOW, &|f| f.ablated.shifted))?,
        test(
            "It is that feature that does it.",
            "of these answers lose half of their margin or turn",
            0.6,
            "the features of the same model that are about as active there",
            0.2,
        )
        .judge(&of(DEEP, &|f| f.ablated.shifted), &of(DEEP, &|f| f.matched.shifted))?,
        test(
            "The shallow model refuses instead.",
            "of these answers become a refusal",
            0.2,
            "the same in the deep model",
            0.05,
        )
        .judge(&of(SHALLOW, &|f| f.ablated.refused), &of(DEEP, &|f| f.ablated.refused))?,
        test(
            "The deep model is steered less easily.",
            "more of the shallow model's answers go where they were sent",
            0.1,
            "random vectors of the same length",
            0.05,
        )
        .judge(
            &both(&|deep, shallow| shallow.steered[STEERED] - deep.steered[STEERED]),
            &both(&|deep, shallow| shallow.random[STEERED] - deep.random[STEERED]),
        )?,
    ])
}

/// What is tabled of an organism.
type Column = (&'static str, fn(&Figures) -> f64);
const COLUMNS: [Column; 12] = [
    ("known answers right", |f| f.known),
    ("unknown answers right", |f| f.unknown),
    ("FVU", |f| f.fvu),
    ("L0", |f| f.l0),
    ("AUC of value features", |f| f.ablated.auc),
    ("shifted without them", |f| f.ablated.shifted),
    ("turned without them", |f| f.ablated.turned),
    ("refused without them", |f| f.ablated.refused),
    ("shifted, matched features", |f| f.matched.shifted),
    ("turned, matched features", |f| f.matched.turned),
    ("refused, matched features", |f| f.matched.refused),
    ("length of the steering vector", |f| f.length),
];

fn outcome(numbers: &[u64], config: &Config, figures: &[Vec<Figures>]) -> Result<Outcome> {
    let spread = |ground: usize, of: &dyn Fn(&Figures) -> f64| -> Result<String> {
        let seeds = over_seeds(&figures.iter().map(|both| of(&both[ground])).collect::<Vec<f64>>(), CONFIDENCE)?;
        Ok(format!("{:.3} ({:.3} to {:.3})", seeds.mean, seeds.low, seeds.high))
    };
    let summary = format!(
        "Dictionaries of {} latents, {} of them active on each token. Of known opinions the deep model gives {} \
        rightly and the shallow one {}; of those never \
         trained on the deep model infers {} rightly. Features with an area of at least {} under the ROC curve: {} in \
         the deep model, {} in the shallow one.",
        config.latents,
        config.active,
        spread(DEEP, &|f| f.known)?,
        spread(SHALLOW, &|f| f.known)?,
        spread(DEEP, &|f| f.unknown)?,
        THRESHOLDS[COUNTED],
        spread(DEEP, &|f| f.count[COUNTED] as f64)?,
        spread(SHALLOW, &|f| f.count[COUNTED] as f64)?,
    );
    let mut outcome = Outcome { summary, findings: findings(figures)?, ..Outcome::default() };
    let mut add =
        |name: &str, (heading, caption): (&str, &str), axis: (&str, Vec<Label>), of: &dyn Fn(&Figures) -> Vec<f64>| {
            let values = figures.iter().flat_map(|both| both.iter().flat_map(of)).collect();
            let axes = [
                ("seed", numbers.iter().map(|seed| Label::Text(seed.to_string())).collect()),
                ("model", labels(GROUNDS)),
                axis,
            ];
            outcome.tables.insert(name.into(), Table::new(heading.to_lowercase(), axes, values)?);
            let (heading, caption, table) = (Some(heading.into()), caption.into(), name.into());
            outcome.sections.push(Section::Table { heading, table, caption });
            Ok::<(), Error>(())
        };
    let columns = labels(COLUMNS.iter().map(|column| column.0));
    add(
        "organisms",
        (
            "Both organisms",
            "Of topics but for the FVU and L0, which are of all words. Right answers to unknown ones are refusals in \
            the shallow model.",
        ),
        ("figure", columns),
        &|each| COLUMNS.iter().map(|(_, of)| of(each)).collect(),
    )?;
    let kinds = ["counted", "topics shuffled", "random weights"];
    let counts: Vec<String> =
        kinds.iter().flat_map(|kind| THRESHOLDS.map(|threshold| format!("{kind}, {threshold}"))).collect();
    add(
        "counts",
        (
            "Features by threshold",
            "How many features tell topics from neutral words with at least this area under the ROC curve, and a \
            corrected p-value below 0.05.",
        ),
        ("threshold", labels(counts.iter().map(String::as_str))),
        &|each| {
            [&each.count, &each.shuffled, &each.untrained].into_iter().flatten().map(|&count| count as f64).collect()
        },
    )?;
    let scales: Vec<String> =
        ["steered", "random"].iter().flat_map(|kind| SCALES.map(|scale| format!("{kind}, {scale}"))).collect();
    add(
        "steering",
        (
            "Steering by multiples of the difference of means",
            "The share of answers that go to the other side, of the persons from whom the vector was not made.",
        ),
        ("multiple", labels(scales.iter().map(String::as_str))),
        &|each| [each.steered.as_slice(), &each.random].concat(),
    )?;
    Ok(outcome)
}

#[cfg(test)]
mod tests;
