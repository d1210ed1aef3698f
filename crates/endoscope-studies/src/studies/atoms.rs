//! Towards atoms of large language models (arXiv 2509.20784).
//!
//! Atoms are unit vectors of which states are sparse sums, under an inner product that is corrected by the inverse covariance of
//! the states, so that a linear change of the states does not matter. If no two of them are too close to each other, the sparse
//! code of a state is unique and can be found. Two things are tried: states made of known atoms and then stretched, and the
//! states of a small model.

mod states;

use endoscope_causal::statistics::{Seeds, seeds};
use endoscope_dictionary::evaluate::{FitSums, coherence};
use endoscope_dictionary::training::{Examples, InputScaling, NetworkStream, Objective, Settings, Stream, Trainer};
use endoscope_dictionary::{Config as Template, Matrix, Whitening};
use endoscope_models::Model;
use endoscope_models::views::WeightName;
use endoscope_report::{Label, Section, Table, labels};
use endoscope_train::{Recipe, generator};
use rand::seq::SliceRandom;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::finding::{CONFIDENCE, Finding, Line, Test};
use crate::lab::Lab;
use crate::study::{Outcome, Study, Untested};
use states::States;

/// Whose states are decomposed.
const ORGANISM: &str = "multiple-choice";

/// The study.
pub struct Atoms;

/// How states are made, and how dictionaries are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Dimensions of the states that are made: a power of two. There are twice as many atoms.
    #[schemars(range(min = 8, max = 512))]
    width: usize,
    /// How many atoms a state has, below the bound.
    #[schemars(range(min = 1, max = 64))]
    few: usize,
    /// How many it has, above it.
    #[schemars(range(min = 2, max = 256))]
    many: usize,
    /// How many times longer the most stretched direction is than the least.
    #[schemars(range(min = 1.0, max = 1000.0))]
    stretch: f64,
    /// Latents of each dictionary of made states, per atom.
    #[schemars(range(min = 1, max = 16))]
    latents_per_atom: usize,
    /// Updates of each dictionary.
    #[schemars(range(min = 10, max = 100_000))]
    steps: u64,
    /// States in an update.
    #[schemars(range(min = 16, max = 8192))]
    batch: usize,
    /// Latents of each dictionary of the model's states.
    #[schemars(range(min = 8, max = 65_536))]
    latents: usize,
    /// Active latents a state of the model, of both kinds of dictionary.
    #[schemars(range(min = 1, max = 64))]
    active: usize,
    /// Rows of tokens that the model's states come from.
    #[schemars(range(min = 16, max = 100_000))]
    rows: u64,
    /// Of which codes uniqueness is asked: those of so many entries.
    #[schemars(range(min = 1, max = 64))]
    code: usize,
    /// A text to read a model named by --model on; random tokens that come twice if empty.
    text: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            width: 64,
            few: 3,
            many: 24,
            stretch: 20.,
            latents_per_atom: 2,
            steps: 3000,
            batch: 512,
            latents: 256,
            active: 8,
            rows: 3000,
            code: 2,
            text: String::new(),
        }
    }
}

/// What one seed gave on states that were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Made {
    /// Mean over the atoms of the largest cosine with a dictionary's direction: with the corrected product, without it, with
    /// that of permuted dimensions, with the corrected one and too many atoms a state, of random directions.
    corrected: f64,
    plain: f64,
    permuted: f64,
    crowded: f64,
    random: f64,
    /// The largest cosine of two atoms, and up to how many a code is unique by it.
    coherence: f64,
    bound: f64,
    /// What the corrected dictionary does not explain, of whitened states.
    unexplained: f64,
}

/// What one seed gave on a model's states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Found {
    /// The share of directions that meet the condition under which a code is unique: atoms, features of a plain dictionary,
    /// neurons, random directions.
    atoms: f64,
    features: f64,
    neurons: f64,
    random: f64,
    /// What each kind of dictionary does not explain.
    atoms_unexplained: f64,
    features_unexplained: f64,
    /// Dead latents, which are not counted.
    atoms_dead: f64,
    features_dead: f64,
    /// The median over directions of the largest cosine with another.
    atoms_median: f64,
    features_median: f64,
    neurons_median: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Measured {
    made: Option<Made>,
    found: Found,
}

impl Study for Atoms {
    const SLUG: &'static str = "atoms";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "Over all layers of Gemma 2 and Llama 3.1, atoms reconstruct states by 99.9 %, and more than 99.8 % of them meet \
                    the condition of uniqueness.",
            why: "These models are not here; the shares are those of the abstract, and the settings behind them were not read.",
        },
        Untested {
            claim: "Larger dictionaries recover more atoms.",
            why: "One size is trained; --set latents=… trains another.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config {
            width: 16,
            few: 2,
            many: 8,
            steps: 200,
            batch: 64,
            latents: 48,
            active: 4,
            rows: 120,
            ..Config::default()
        }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        if !config.width.is_power_of_two() {
            return Err(Error::Unsuitable { reason: format!("width = {} is no power of two", config.width) });
        }
        let model = lab.model(ORGANISM)?;
        let given = lab.is_given_a_model();
        let measured = lab.each_seed("training dictionaries", config, |seed| {
            let made = (!given).then(|| made(config, seed)).transpose()?;
            Ok(Measured { made, found: found(&model, given, config, seed)? })
        })?;
        outcome(lab.seeds(), config, &measured)
    }
}

fn directions(rows: usize, width: usize, seed: u64, stream: u64) -> Result<Matrix> {
    Ok(Matrix::from_tensor(&crate::shared::noise((rows, width), seed, stream)?)?)
}

/// A threshold autoencoder, as it ends.
fn trained(
    config: &Config,
    latents: usize,
    active: usize,
    seed: u64,
    mut batch: impl FnMut(u64) -> Result<Matrix>,
) -> Result<Trainer> {
    let settings = Settings {
        // A threshold that all latents share while `active` a state are aimed at; the trained dictionary is a JumpReLU one.
        objective: Objective::BatchTopK {
            k: active as f64,
            dead: 1.,
            by_decoder_norm: true,
            threshold_rate: 0.02,
            widths: Vec::new(),
        },
        latents,
        steps: config.steps,
        batch: config.batch,
        learning_rate: 2e-3,
        decay_steps: config.steps / 4,
        dead_after_steps: 150,
        normalization: InputScaling::ExpectedAverageOnlyIn,
        seed,
        ..Settings::default()
    };
    let sample = Examples { input: batch(0)?, target: None };
    let mut trainer = Trainer::new(settings, Template::default(), &sample)?;
    while !trainer.is_finished() {
        trainer.update(&Examples { input: batch(trainer.steps() + 1)?, target: None })?;
    }
    Ok(trainer)
}

fn made(config: &Config, seed: u64) -> Result<Made> {
    let states = States::new(config, seed)?;
    let latents = config.latents_per_atom * states.atoms.rows();
    let sample = (20 * config.width).max(4000);
    let whitening = |active: usize| -> Result<Whitening> { Ok(Whitening::of(&states.draw(0, sample, active)?)?) };
    // What a dictionary of changed states recovers; `change` is a map of states, `undo` its inverse for directions.
    let recovered = |active: usize, whitening: Option<&Whitening>| -> Result<(f64, f64)> {
        let change = |x: Matrix| match whitening {
            Some(whitening) => whitening.apply(&x),
            None => Ok(x),
        };
        let draw = |number: u64| Ok(change(states.draw(number + 1, config.batch, active)?)?);
        let trainer = trained(config, latents, active, seed, draw)?;
        let dictionary = trainer.dictionary()?;
        let mut fit = FitSums::default();
        fit.add(&dictionary, &change(states.draw(u64::from(u32::MAX), 2000, active)?)?, None)?;
        let living: Vec<usize> = (0..latents).filter(|&latent| fit.fired()[latent] > 0).collect();
        let mut rows = dictionary.weights().decoder.select(living);
        if let Some(whitening) = whitening {
            rows = whitening.back(&rows)?;
        }
        let unexplained = fit.finish()?.fvu;
        Ok((if rows.rows() == 0 { 0. } else { states.recovered(&rows)? }, unexplained))
    };
    let straight = whitening(config.few)?;
    let permuted = {
        let mut order: Vec<usize> = (0..config.width).collect();
        order.shuffle(&mut generator(seed, 77));
        let shuffled =
            |matrix: &Matrix| matrix.select(order.iter().copied()).transposed().select(order.iter().copied());
        Whitening {
            mean: straight.mean.clone(),
            matrix: shuffled(&straight.matrix),
            inverse: shuffled(&straight.inverse),
        }
    };
    let (corrected, unexplained) = recovered(config.few, Some(&straight))?;
    let atoms = coherence(&states.atoms, config.few)?;
    Ok(Made {
        corrected,
        unexplained,
        plain: recovered(config.few, None)?.0,
        permuted: recovered(config.few, Some(&permuted))?.0,
        crowded: recovered(config.many, Some(&whitening(config.many)?))?.0,
        random: states.recovered(&directions(latents, config.width, seed, 5)?)?,
        coherence: atoms.coherence,
        bound: (1. + 1. / atoms.coherence) / 2.,
    })
}

/// Atoms and features of a layer in the middle, at equally many active latents.
fn found(model: &Model, given: bool, config: &Config, seed: u64) -> Result<Found> {
    let layer = model.spec().layers / 2;
    let template = Template { sites: vec![format!("blocks.{layer}.hook_resid_post")], ..Template::default() };
    let rows = rows(model, given, config, seed)?;
    let mut stream = NetworkStream::new(&model.decoder, &template, &rows)?;
    (stream.seed, stream.from_position) = (seed, 1);
    if stream.vectors() < config.batch {
        let reason = format!("{} states are fewer than a batch of {}", stream.vectors(), config.batch);
        return Err(Error::Unsuitable { reason });
    }
    let mut sample: Vec<Matrix> = Vec::new();
    while sample.iter().map(Matrix::rows).sum::<usize>() < (10 * model.spec().d_model).max(2000) {
        sample.push(stream.batch(sample.len() as u64, config.batch)?.input);
    }
    let joined = sample.iter().flat_map(|part| part.values().iter().copied()).collect();
    let sample = Matrix::new(sample.iter().map(Matrix::rows).sum(), model.spec().d_model, joined)?;
    let whitening = Whitening::of(&sample)?;
    let mut of_kind = |whitening: Option<&Whitening>| -> Result<(Matrix, f64, f64)> {
        let change = |x: Matrix| match whitening {
            Some(whitening) => whitening.apply(&x),
            None => Ok(x),
        };
        let trainer = trained(config, config.latents, config.active, seed, |number| {
            Ok(change(stream.batch(number, config.batch)?.input)?)
        })?;
        let dictionary = trainer.dictionary()?;
        let mut fit = FitSums::default();
        fit.add(&dictionary, &change(sample.clone())?, None)?;
        let living: Vec<usize> = (0..config.latents).filter(|&latent| fit.fired()[latent] > 0).collect();
        let dead = 1. - living.len() as f64 / config.latents as f64;
        // Of whitened states, so that the product is the corrected one.
        Ok((dictionary.weights().decoder.select(living), fit.finish()?.fvu, dead))
    };
    let (atoms, atoms_unexplained, atoms_dead) = of_kind(Some(&whitening))?;
    let (features, features_unexplained, features_dead) = of_kind(None)?;
    // What each neuron of the layer writes to the stream: the rows of W_out.
    let neurons = model.decoder.weight(WeightName::parse(&format!("W_out.{layer}"))?)?;
    let neurons = Matrix::from_tensor(&neurons)?;
    let random = directions(atoms.rows().max(2), model.spec().d_model, seed, 6)?;
    let of = |rows: &Matrix| -> Result<(f64, f64)> {
        if rows.rows() < 2 {
            return Err(Error::Unsuitable { reason: "a dictionary has fewer than two living latents".into() });
        }
        let mut found = coherence(rows, config.code)?;
        found.of_each.sort_by(f32::total_cmp);
        Ok((found.unique, f64::from(found.of_each[found.of_each.len() / 2])))
    };
    let ((atoms, atoms_median), (features, features_median), (neurons, neurons_median)) =
        (of(&atoms)?, of(&features)?, of(&neurons)?);
    Ok(Found {
        atoms,
        features,
        neurons,
        random: of(&random)?.0,
        atoms_unexplained,
        features_unexplained,
        atoms_dead,
        features_dead,
        atoms_median,
        features_median,
        neurons_median,
    })
}

/// Rows of the organism's task, of one length; of a model that the user named, of the text or of random tokens.
fn rows(model: &Model, given: bool, config: &Config, seed: u64) -> Result<Vec<Vec<u32>>> {
    if given {
        return crate::shared::read_rows(model, &config.text, config.rows as usize, seed);
    }
    let recipe = Recipe::read(model.directory.join("recipe.toml"))?;
    let task = endoscope_organisms::task(&recipe.task.name, &recipe.task.parameters)?;
    let split = task.splits().first().copied().unwrap_or(endoscope_organisms::TRAIN);
    let rows = (0..config.rows).map(|number| Ok(task.row(split, seed, number)?.tokens)).collect::<Result<Vec<_>>>()?;
    let mut lengths = std::collections::BTreeMap::<usize, usize>::new();
    rows.iter().for_each(|row| *lengths.entry(row.len()).or_default() += 1);
    let most = lengths.into_iter().max_by_key(|&(_, count)| count).map_or(0, |(length, _)| length);
    Ok(rows.into_iter().filter(|row| row.len() == most).collect())
}

fn findings(config: &Config, measured: &[Measured]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let made: Option<Vec<&Made>> = measured.iter().map(|each| each.made.as_ref()).collect();
    if let Some(made) = made {
        let all = |of: fn(&Made) -> f64| made.iter().map(|made| of(made)).collect::<Vec<f64>>();
        let (few, many) = (config.few, config.many);
        findings.push(
            Test {
                claim: format!(
                    "With the corrected product, a threshold autoencoder finds the atoms of stretched states of {few} atoms each."
                ),
                unit: "mean over the atoms of the largest cosine with a direction found".into(),
                effect: Line::AtLeast(0.95),
                control: "as many random directions".into(),
                absent: Line::AtMost(0.85),
            }
            .judge(&all(|made| made.corrected), &all(|made| made.random))?,
        );
        findings.push(
            Test {
                claim: "The corrected product is what does it: without it, atoms are found less well.".into(),
                unit: "more of that cosine than without correction".into(),
                effect: Line::AtLeast(0.1),
                control: "what a correction by the covariance of permuted dimensions gains over none".into(),
                absent: Line::AtMost(0.05),
            }
            .judge(&all(|made| made.corrected - made.plain), &all(|made| made.permuted - made.plain))?,
        );
        findings.push(
            Test {
                claim: format!("Atoms are found where a state has few of them ({few}), below the bound, and not where it has {many}."),
                unit: "mean over the atoms of the largest cosine with a direction found".into(),
                effect: Line::AtLeast(0.95),
                control: format!("states of {many} atoms each, above the bound"),
                absent: Line::AtMost(0.9),
            }
            .judge(&all(|made| made.corrected), &all(|made| made.crowded))?,
        );
    }
    let all = |of: fn(&Found) -> f64| measured.iter().map(|each| of(&each.found)).collect::<Vec<f64>>();
    findings.push(
        Test {
            claim: format!(
                "Of the model's atoms, more meet the condition under which a code of {} is unique than of the features of a plain \
                 dictionary with as many active latents.",
                config.code
            ),
            unit: "more of the directions".into(),
            effect: Line::AtLeast(0.1),
            control: "as many random directions in place of the atoms".into(),
            absent: Line::AtMost(0.05),
        }
        .judge(&all(|found| found.atoms - found.features), &all(|found| found.random - found.features))?
        .paper("99.8 % of atoms, 68.2 % of features"),
    );
    findings.push(
        Test {
            claim: "And of those features, more than of neurons.".into(),
            unit: "more of the directions".into(),
            effect: Line::AtLeast(0.1),
            control: "as many random directions in place of the features".into(),
            absent: Line::AtMost(0.05),
        }
        .judge(&all(|found| found.features - found.neurons), &all(|found| found.random - found.neurons))?
        .paper("68.2 % of features, 0.5 % of neurons"),
    );
    Ok(findings)
}

fn outcome(numbers: &[u64], config: &Config, measured: &[Measured]) -> Result<Outcome> {
    let spread = |values: Vec<f64>| -> Result<Seeds> { Ok(seeds(&values, CONFIDENCE)?) };
    let atoms = spread(measured.iter().map(|each| each.found.atoms).collect())?;
    let features = spread(measured.iter().map(|each| each.found.features).collect())?;
    let mut summary = format!(
        "Of the directions found in a model's states, {:.3} ({:.3} to {:.3}) of the atoms and {:.3} ({:.3} to {:.3}) of a plain \
         dictionary's features meet the condition under which a code of {} entries is unique.",
        atoms.mean, atoms.low, atoms.high, features.mean, features.low, features.high, config.code
    );
    let made: Vec<&Made> = measured.iter().filter_map(|each| each.made.as_ref()).collect();
    if let Some(first) = made.first() {
        let corrected = spread(made.iter().map(|made| made.corrected).collect())?;
        let plain = spread(made.iter().map(|made| made.plain).collect())?;
        summary = format!(
            "Known atoms of stretched states were found to a mean cosine of {:.3} ({:.3} to {:.3}) with the corrected product and \
             {:.3} ({:.3} to {:.3}) without; their coherence of {:.3} makes codes of up to {:.1} unique. {summary}",
            corrected.mean,
            corrected.low,
            corrected.high,
            plain.mean,
            plain.low,
            plain.high,
            first.coherence,
            first.bound
        );
    }
    let mut outcome = Outcome { summary, findings: findings(config, measured)?, ..Outcome::default() };
    let seeds: Vec<Label> = numbers.iter().map(|seed| Label::Text(seed.to_string())).collect();
    type OfMade = fn(&Made) -> f64;
    if !made.is_empty() {
        let figures: [(&str, OfMade); 8] = [
            ("corrected", |made| made.corrected),
            ("plain", |made| made.plain),
            ("permuted", |made| made.permuted),
            ("crowded", |made| made.crowded),
            ("random", |made| made.random),
            ("coherence of the atoms", |made| made.coherence),
            ("bound", |made| made.bound),
            ("unexplained", |made| made.unexplained),
        ];
        let values = made.iter().flat_map(|made| figures.iter().map(move |(_, of)| of(made))).collect();
        let axes = [("seed", seeds.clone()), ("figure", labels(figures.iter().map(|(name, _)| *name)))];
        outcome.tables.insert("made".into(), Table::new("atoms of states that were made", axes, values)?);
        outcome.sections.push(Section::Table {
            heading: Some("States of known atoms".into()),
            table: "made".into(),
            caption: "The mean over the atoms of the largest cosine with a direction found, the stretch taken back."
                .into(),
        });
    }
    type OfFound = fn(&Found) -> f64;
    let figures: [(&str, OfFound); 11] = [
        ("atoms", |found| found.atoms),
        ("features", |found| found.features),
        ("neurons", |found| found.neurons),
        ("random", |found| found.random),
        ("atoms, unexplained", |found| found.atoms_unexplained),
        ("features, unexplained", |found| found.features_unexplained),
        ("atoms, dead", |found| found.atoms_dead),
        ("features, dead", |found| found.features_dead),
        ("atoms, median nearest", |found| found.atoms_median),
        ("features, median nearest", |found| found.features_median),
        ("neurons, median nearest", |found| found.neurons_median),
    ];
    let values = measured.iter().flat_map(|each| figures.iter().map(move |(_, of)| of(&each.found))).collect();
    let axes = [("seed", seeds), ("figure", labels(figures.iter().map(|(name, _)| *name)))];
    outcome.tables.insert("found".into(), Table::new("directions in a model's states", axes, values)?);
    outcome.sections.push(Section::Table {
        heading: Some("A model's states".into()),
        table: "found".into(),
        caption: "The share of directions whose nearest neighbour is far enough for codes to be unique; what dictionaries do not \
                  explain, of whitened states for atoms and of states as they are for features; dead latents, which are left out; \
                  the median of the largest cosine with another direction."
            .into(),
    });
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use endoscope_report::Verdict;

    #[test]
    fn atoms_are_as_far_apart_as_was_said_and_the_stretch_can_be_taken_back() {
        let config = Config { width: 16, ..Config::default() };
        let states = States::new(&config, 3).unwrap();
        assert!((coherence(&states.atoms, 1).unwrap().coherence - 0.25).abs() < 1e-5);
        assert!(states.atoms.norms().iter().all(|norm| (norm - 1.).abs() < 1e-5));
        let there = states.atoms.times_transposed(&states.stretched.transposed()).unwrap();
        assert!((states.recovered(&there).unwrap() - 1.).abs() < 1e-5);
        assert!(states.recovered(&states.atoms).unwrap() < 0.99, "stretched atoms are other directions");
        let x = states.draw(0, 5000, 2).unwrap();
        let eigen = Whitening::of(&x).unwrap();
        let spread = eigen.inverse.norms();
        assert!(spread.iter().all(|x| x.is_finite()));
    }

    /// The verdict is that of the figures, and falls with the effect.
    #[test]
    fn without_an_effect_nothing_is_shown() {
        let made = Made {
            corrected: 0.99,
            plain: 0.8,
            permuted: 0.8,
            crowded: 0.7,
            random: 0.5,
            coherence: 0.125,
            bound: 4.5,
            unexplained: 0.01,
        };
        let found = Found {
            atoms: 0.9,
            features: 0.6,
            neurons: 0.1,
            random: 0.1,
            atoms_unexplained: 0.1,
            features_unexplained: 0.1,
            atoms_dead: 0.,
            features_dead: 0.,
            atoms_median: 0.2,
            features_median: 0.4,
            neurons_median: 0.6,
        };
        let with = |made: Made, found: Found| {
            let one = Measured { made: Some(made), found };
            findings(&Config::default(), &vec![one; 3]).unwrap()
        };
        let shown = with(made.clone(), found.clone());
        assert!(shown.iter().all(|finding| finding.verdict() == Verdict::Shown), "{shown:?}");
        let none = with(Made { corrected: 0.8, ..made }, Found { atoms: 0.6, features: 0.1, neurons: 0.1, ..found });
        assert!(
            none.iter().enumerate().all(|(at, finding)| at == 3 || finding.verdict() == Verdict::NotShown),
            "{none:?}"
        );
    }
}
