//! Less is more: local intrinsic dimensions of contextual language models (arXiv 2506.01034).
//!
//! Of N tokens, sampled among those that differ in what comes before them, the hidden states are points. Around each the L
//! nearest others are taken, and the TwoNN estimator (Facco et al. 2017) says how many dimensions these fill; the measure is the
//! mean over points. It is followed over training: modular addition, which is first learned by heart and then in earnest
//! (grokking), and paths in a graph, of which a few are learned by heart (overfitting).
//!
//! A model named by `--model` is measured layer by layer instead, beside isotropic noise with the norms of its hidden states.

mod curves;
mod given;
mod tokens;

use endoscope_causal::statistics::{Seeds, spearman};
use endoscope_report::{Label, Section, Table, labels};
use endoscope_train::{Checkpoints, LossOn, Recipe, Shape, TaskRecipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table as Keys, Value};

use self::curves::{Controls, Curve, HELD_OUT, Moment, TRAINED, curve, fall, smoothed};
use self::tokens::Mirrors;
use crate::error::Result;
use crate::finding::{CONFIDENCE, Finding, Line, Test};
use crate::lab::Lab;
use crate::study::{Outcome, Study, Untested};

/// Its recipe is that of all trainings here, but for what is said to differ.
const ORGANISM: &str = "modular-addition";
/// The longest path in the graph of the second task, with what stands before it, is shorter.
const PATH_CONTEXT: usize = 40;

/// The study.
pub struct LocalIntrinsicDimension;

/// How models are trained and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many tokens are points (N), of each split.
    #[schemars(range(min = 10, max = 60_000))]
    points: usize,
    /// On how many nearest neighbours of each the dimension is estimated (L).
    #[schemars(range(min = 4, max = 1024))]
    neighbours: usize,
    /// How many rows of each split are drawn; tokens come from them, and losses and accuracies.
    #[schemars(range(min = 10, max = 100_000))]
    rows: u64,
    /// Over how many checkpoints curves are smoothed.
    #[schemars(range(min = 1, max = 99))]
    window: usize,
    /// The modulus of the addition.
    #[schemars(range(min = 5, max = 200))]
    modulus: usize,
    /// The share of sums that is trained on.
    #[schemars(range(min = 0.1, max = 0.9))]
    train_share: f64,
    /// Updates of each training on sums.
    #[schemars(range(min = 10, max = 100_000))]
    steps: u64,
    /// Sums in an update.
    #[schemars(range(min = 8, max = 4096))]
    batch: usize,
    /// Updates of each training on paths.
    #[schemars(range(min = 10, max = 100_000))]
    path_steps: u64,
    /// How many times a training is measured, its start not counted.
    #[schemars(range(min = 4, max = 1000))]
    checkpoints: u64,
    /// A text to measure a model named by --model on; random tokens that come twice if empty.
    text: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            points: 700,
            neighbours: 64,
            rows: 3000,
            window: 3,
            modulus: 59,
            train_share: 0.45,
            steps: 1500,
            batch: 512,
            path_steps: 1200,
            checkpoints: 30,
            text: String::new(),
        }
    }
}

/// Everything of one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Measured {
    /// Sums; the same with one point only for tokens that come after the same tokens in any order.
    sums: Curve,
    unmirrored: Curve,
    /// Noise and random weights beside the former.
    controls: Controls,
    /// Sums that belong to pairs at random.
    shuffled: Curve,
    /// One path for each pair of nodes, and many.
    paths: Curve,
    ample: Curve,
}

impl Study for LocalIntrinsicDimension {
    const SLUG: &'static str = "local-intrinsic-dimension";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "The mean local dimension stops falling when a model has learned what it can (dialogue state tracking).",
            why: "No task here ends on a plateau that is not the answer itself; it needs another one.",
        },
        Untested {
            claim: "Dimensions of training and validation data drift apart when a model overfits on emotion recognition.",
            why: "There are no labelled sentences offline; the claim is tested on paths in a graph.",
        },
        Untested {
            claim: "The same holds for language models of a hundred million weights and more, fine-tuned on text.",
            why: "It was not run on any; --model measures the layers of one checkpoint.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config {
            points: 40,
            neighbours: 8,
            rows: 150,
            modulus: 13,
            steps: 24,
            batch: 32,
            path_steps: 16,
            checkpoints: 4,
            ..Config::default()
        }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        if lab.is_given_a_model() {
            return given::outcome(lab, config);
        }
        let base = Recipe::read(lab.organism(ORGANISM)?.directory.join("recipe.toml"))?;
        let measured = lab.each_seed("training and measuring", config, |seed| measure(lab, &base, config, seed))?;
        outcome(lab.seeds(), config, &measured)
    }
}

fn measure(lab: &Lab<'_>, base: &Recipe, config: &Config, seed: u64) -> Result<Measured> {
    let recipes = [
        sums(base, config, false, seed),
        sums(base, config, true, seed),
        paths(base, config, 1, seed),
        paths(base, config, 50, seed),
    ];
    let models = lab.train_all(&recipes)?;
    let curve = |which: usize, mirrors: Mirrors| curve(&models[which], &recipes[which], config, mirrors, seed);
    Ok(Measured {
        sums: curve(0, Mirrors::Apart)?,
        unmirrored: curve(0, Mirrors::One)?,
        controls: Controls::of(&models[0], &recipes[0], config, seed)?,
        shuffled: curve(1, Mirrors::Apart)?,
        paths: curve(2, Mirrors::Apart)?,
        ample: curve(3, Mirrors::Apart)?,
    })
}

/// Additions, as the organism learns them.
fn sums(base: &Recipe, config: &Config, shuffled: bool, seed: u64) -> Recipe {
    let mut recipe = base.clone();
    let keys = &mut recipe.task.parameters;
    keys.insert("modulus".into(), Value::Integer(config.modulus as i64));
    keys.insert("train_share".into(), Value::Float(config.train_share));
    keys.insert("seed".into(), Value::Integer(seed as i64));
    keys.insert("shuffled".into(), Value::Boolean(shuffled));
    recipe.training.batch = config.batch;
    scheduled(recipe, config, config.steps, seed)
}

/// Paths in a graph of 60 nodes, so many for each pair of nodes that is trained on: if they are few, a small model learns them by
/// heart. Without decay of weights, which would keep it from that.
fn paths(base: &Recipe, config: &Config, walks: i64, seed: u64) -> Recipe {
    let mut recipe = base.clone();
    let keys = [("nodes", 60), ("walks", walks), ("seed", seed as i64)];
    let parameters: Keys = keys.into_iter().map(|(key, value)| (key.to_string(), Value::Integer(value))).collect();
    recipe.task = TaskRecipe { name: "path_finding".into(), parameters };
    recipe.model.context = PATH_CONTEXT;
    if let Shape::Short(keys) = &mut recipe.model.shape {
        keys.heads = 2;
    }
    (recipe.training.loss, recipe.training.weight_decay, recipe.training.batch) = (LossOn::Every, 0., 64);
    scheduled(recipe, config, config.path_steps, seed)
}

fn scheduled(mut recipe: Recipe, config: &Config, steps: u64, seed: u64) -> Recipe {
    let training = &mut recipe.training;
    (training.steps, training.seed) = (steps, seed);
    training.checkpoints = Some(Checkpoints::Every { every: (steps / config.checkpoints).max(1) });
    recipe
}

fn outcome(seeds: &[u64], config: &Config, measured: &[Measured]) -> Result<Outcome> {
    let findings = findings(config, measured)?;
    let spread = |of: &dyn Fn(&Measured) -> f64| -> Result<Seeds> {
        Ok(endoscope_causal::statistics::seeds(&measured.iter().map(of).collect::<Vec<_>>(), CONFIDENCE)?)
    };
    let lead = spread(&|of| of.sums.lead(config))?;
    let known = spread(&|of| of.sums.step(of.sums.known(HELD_OUT)))?;
    let at_end = spread(&|of| of.sums.moments.last().map_or(0., |moment| moment.accuracy[HELD_OUT]))?;
    let summary = format!(
        "The mean dimension around {} tokens, each on its {} nearest neighbours, was followed over trainings. The largest drop on \
         held-out sums comes {:.0} steps ({:.0} to {:.0}) before half of them are answered rightly, which is after {:.0} ({:.0} to \
         {:.0}) steps; at the end {:.2} ({:.2} to {:.2}) of them are.",
        config.points,
        config.neighbours,
        lead.mean,
        lead.low,
        lead.high,
        known.mean,
        known.low,
        known.high,
        at_end.mean,
        at_end.low,
        at_end.high,
    );
    let mut outcome = Outcome { summary, findings, ..Outcome::default() };
    for &(name, heading, of) in CURVES {
        outcome.tables.insert(name.into(), table(seeds, &measured.iter().map(of).collect::<Vec<_>>())?);
        if let Some(first) = measured.first() {
            let Controls { noise, untrained } = &first.controls;
            let controls = [("isotropic noise", noise.as_slice()), ("random weights", untrained.as_slice())];
            let controls = if name == "sums" { &controls[..] } else { &controls[..0] };
            let (lines, name) = (lines(of(first), controls)?, format!("{name}-dimension"));
            outcome.tables.insert(name.clone(), lines);
            outcome.sections.push(Section::Lines {
                heading: Some(heading.into()),
                table: name,
                caption:
                    "Mean local dimension over training, with the first seed; the tables have all seeds, and losses."
                        .into(),
                y_label: "dimensions".into(),
            });
        }
    }
    Ok(outcome)
}

/// Table, heading, and which curve.
type Shown = (&'static str, &'static str, fn(&Measured) -> &Curve);
const CURVES: &[Shown] = &[
    ("sums", "Sums: learned by heart, then in earnest", |of| &of.sums),
    ("shuffled", "Sums that belong to pairs at random", |of| &of.shuffled),
    ("unmirrored", "Sums, one point for a + b and b + a", |of| &of.unmirrored),
    ("paths", "Paths: one for each pair, learned by heart", |of| &of.paths),
    ("ample", "Paths: fifty for each pair", |of| &of.ample),
];

fn findings(config: &Config, measured: &[Measured]) -> Result<Vec<Finding>> {
    let all = |of: &dyn Fn(&Measured) -> f64| measured.iter().map(of).collect::<Vec<f64>>();
    let fell = |curve: &Curve| curve.fall_before(curve.moments.len(), config);
    let fell_of = |values: &[f64]| fall(&smoothed(values, config.window));
    let losses = |curve: &Curve| curve.of(|moment| moment.loss[HELD_OUT]);
    let correlations = |of: fn(&Measured) -> Vec<f64>| -> Result<Vec<f64>> {
        measured.iter().map(|each| Ok(spearman(&of(each), &losses(&each.sums))?)).collect()
    };
    // Before half of the held-out sums are known.
    let fallen_early =
        |of: fn(&Measured) -> &Curve| all(&|each| of(each).fall_before(each.sums.known(HELD_OUT), config));
    let test = |claim: &str, unit: &str, effect: f64, control: &str, absent: f64| Test {
        claim: claim.into(),
        unit: unit.into(),
        effect: Line::AtLeast(effect),
        control: control.into(),
        absent: Line::AtMost(absent),
    };
    let fallen = all(&|of| fell(&of.sums));
    Ok(vec![
        test(
            "While sums known by heart become understood, the mean local dimension of held-out tokens falls by half or more.",
            "of its peak",
            0.5,
            "the same model on sums that belong to pairs at random, which it learns by heart only",
            0.25,
        )
        .judge(&fallen, &all(&|of| fell(&of.shuffled)))?,
        test(
            "So large a fall is not what the estimator finds in anything.",
            "of its peak",
            0.5,
            "the larger fall of isotropic noise with the norms of each step and of fresh random weights for each step",
            0.25,
        )
        .judge(&fallen, &all(&|of| fell_of(&of.controls.noise).max(fell_of(&of.controls.untrained))))?,
        test(
            "It has fallen by a quarter or more before half of the held-out sums are answered rightly.",
            "of its peak until then",
            0.25,
            "the same steps of the model on sums that belong to pairs at random",
            0.15,
        )
        .judge(&fallen_early(|of| &of.sums), &fallen_early(|of| &of.shuffled))?,
        test(
            "That is so without sums that mirror each other, too: of a + b and b + a one is a token.",
            "of its peak until then",
            0.25,
            "the same steps of the model on sums that belong to pairs at random",
            0.15,
        )
        .judge(&fallen_early(|of| &of.unmirrored), &fallen_early(|of| &of.shuffled))?,
        test(
            "Over training, the dimension of held-out tokens goes along with their loss.",
            "(Spearman)",
            0.6,
            "isotropic noise with the norms of each step",
            0.4,
        )
        .judge(
            &correlations(|of| of.sums.of(|moment| moment.dimension[HELD_OUT]))?,
            &correlations(|of| of.controls.noise.clone())?,
        )?,
        test(
            "Where few paths are learned by heart, trained and held-out tokens drift apart after the held-out loss was lowest.",
            "of the trained tokens' dimension",
            0.1,
            "the same with fifty times as many paths",
            0.08,
        )
        .judge(&all(&|of| of.paths.widening(config)), &all(&|of| of.ample.widening(config)))?,
    ])
}

/// What is tabled of a step.
type Column = (&'static str, fn(&Moment) -> f64);
const COLUMNS: &[Column] = &[
    ("dimension, trained", |moment| moment.dimension[TRAINED]),
    ("dimension, held out", |moment| moment.dimension[HELD_OUT]),
    ("loss, trained", |moment| moment.loss[TRAINED]),
    ("loss, held out", |moment| moment.loss[HELD_OUT]),
    ("accuracy, trained", |moment| moment.accuracy[TRAINED]),
    ("accuracy, held out", |moment| moment.accuracy[HELD_OUT]),
];
/// Which of these are dimensions.
const DIMENSIONS: usize = 2;

/// Every number of a curve with each seed `[seed, figure, step]`.
fn table(seeds: &[u64], curves: &[&Curve]) -> Result<Table> {
    let numbers = |of: &Column| curves.iter().map(|curve| curve.of(of.1)).collect::<Vec<_>>();
    let columns: Vec<_> = COLUMNS.iter().map(numbers).collect();
    let values = (0..curves.len()).flat_map(|seed| columns.iter().flat_map(move |of| of[seed].clone())).collect();
    let axes = [
        ("seed", seeds.iter().map(|seed| Label::Text(seed.to_string())).collect()),
        ("figure", labels(COLUMNS.iter().map(|column| column.0))),
        ("step", steps(curves.first().copied())),
    ];
    Ok(Table::new("what was measured at each step with each seed", axes, values)?)
}

/// Dimensions `[figure, step]`: those of a curve, and others by name.
fn lines(curve: &Curve, others: &[(&str, &[f64])]) -> Result<Table> {
    let columns = &COLUMNS[..DIMENSIONS];
    let values = columns.iter().flat_map(|of| curve.of(of.1)).chain(others.iter().flat_map(|other| other.1.to_vec()));
    let names = columns.iter().map(|column| column.0).chain(others.iter().map(|other| other.0));
    let axes = [("figure", labels(names)), ("step", steps(Some(curve)))];
    Ok(Table::new("mean local dimension", axes, values.collect())?)
}

fn steps(curve: Option<&Curve>) -> Vec<Label> {
    labels(curve.iter().flat_map(|curve| &curve.moments).map(|moment| moment.step))
}

#[cfg(test)]
mod tests;
