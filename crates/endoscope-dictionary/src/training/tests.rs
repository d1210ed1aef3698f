//! Updates compared with SAELens's, and gradients with differences of losses.

use serde::Deserialize;
use std::collections::BTreeMap;

use super::parameter::Parameter;
use super::settings::{InputScaling, Objective, Penalty, Settings};
use super::trainer::{Examples, Trainer};
use crate::config::Config;
use crate::matrix::Matrix;

/// What tools/goldens/saelens_training.py wrote of one dictionary.
#[derive(Deserialize)]
struct Golden {
    name: String,
    batches: Vec<f32>,
    start: BTreeMap<String, Vec<f32>>,
    end: BTreeMap<String, Vec<f32>>,
    losses: Vec<f64>,
    running_threshold: Option<f64>,
}

const WIDTH: usize = 6;
const LATENTS: usize = 10;
const ROWS: usize = 16;
const STEPS: usize = 4;

fn jump(penalty: Penalty, through_input: bool) -> Objective {
    Objective::JumpRelu { l0: 0.3, penalty, threshold: 0.1, bandwidth: 0.4, through_input, pre_activation: 0. }
}

fn settings(name: &str) -> Settings {
    let batchtopk = |widths: &[usize]| Objective::BatchTopK {
        k: 2.5,
        dead: 1.,
        by_decoder_norm: true,
        threshold_rate: 0.01,
        widths: widths.to_vec(),
    };
    let (objective, normalization) = match name {
        "standard" => (Objective::Standard { l1: 0.3 }, InputScaling::None),
        "standard, layer norm" => (Objective::Standard { l1: 0.3 }, InputScaling::LayerNorm),
        "standard, constant norm, bias not subtracted" => {
            (Objective::Standard { l1: 0.3 }, InputScaling::ConstantNormRescale)
        }
        "gated" => (Objective::Gated { l1: 0.3 }, InputScaling::None),
        "topk" => (Objective::TopK { k: 3, dead: 1., by_decoder_norm: true }, InputScaling::None),
        "topk, lengths not compared" => {
            (Objective::TopK { k: 3, dead: 1., by_decoder_norm: false }, InputScaling::None)
        }
        "batchtopk" => (batchtopk(&[]), InputScaling::None),
        "matryoshka" => (batchtopk(&[3, 6, LATENTS]), InputScaling::None),
        "jumprelu" => (jump(Penalty::Step, false), InputScaling::None),
        "jumprelu, through input" => (jump(Penalty::Step, true), InputScaling::None),
        "jumprelu, quadratic" => (jump(Penalty::Quadratic { target: 2. }, false), InputScaling::None),
        "jumprelu, tanh" => (jump(Penalty::Tanh { scale: 4. }, true), InputScaling::None),
        "jumprelu, pre-activations of the dead" => {
            let (l0, penalty, threshold, bandwidth, through_input) = (0.3, Penalty::Step, 0.1, 0.4, false);
            let objective =
                Objective::JumpRelu { l0, penalty, threshold, bandwidth, through_input, pre_activation: 0.2 };
            (objective, InputScaling::None)
        }
        other => panic!("no settings for {other}"),
    };
    Settings {
        objective,
        normalization,
        latents: LATENTS,
        steps: STEPS as u64,
        batch: ROWS,
        learning_rate: 0.01,
        apply_b_dec_to_input: name != "standard, constant norm, bias not subtracted",
        ..Settings::default()
    }
}

fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    Matrix::new(rows, columns, values.to_vec()).unwrap().transposed().values().to_vec()
}

#[test]
fn updates_are_those_of_saelens() {
    let goldens: Vec<Golden> = serde_json::from_str(include_str!("../../tests/goldens/saelens_training.json")).unwrap();
    assert_eq!(goldens.len(), 13);
    for golden in goldens {
        let examples = |step: usize| {
            let values = golden.batches[step * ROWS * WIDTH..(step + 1) * ROWS * WIDTH].to_vec();
            Examples { input: Matrix::new(ROWS, WIDTH, values).unwrap(), target: None }
        };
        let mut trainer = Trainer::new(settings(&golden.name), Config::default(), &examples(0)).unwrap();
        let start = |name: &str| golden.start[name].clone();
        trainer.encoder = Parameter::new(transposed(&start("W_enc"), WIDTH));
        trainer.decoder = Parameter::new(start("W_dec"));
        trainer.decoder_bias = Parameter::new(start("b_dec"));
        trainer.encoder_bias =
            Parameter::new(golden.start.get("b_enc").unwrap_or_else(|| &golden.start["b_gate"]).clone());
        trainer.threshold = golden.start.get("threshold").map(|threshold| Parameter::new(threshold.clone()));
        if let Some(rescale) = golden.start.get("r_mag") {
            trainer.magnitude = Some((Parameter::new(rescale.clone()), Parameter::new(start("b_mag"))));
        }
        if ["topk", "matryoshka", "of the dead"].iter().any(|part| golden.name.contains(part)) {
            [2, 5, 7].iter().for_each(|&latent: &usize| trainer.idle[latent] = 5000);
        }
        for (step, &loss) in golden.losses.iter().enumerate() {
            let progress = trainer.update(&examples(step)).unwrap();
            let name = &golden.name;
            assert!(
                (progress.loss - loss).abs() < 2e-5 * loss.abs(),
                "{name}, {step}: {} is not {loss}",
                progress.loss
            );
        }
        let mut arrays = vec![
            ("W_enc", transposed(&trainer.encoder.values, LATENTS)),
            ("W_dec", trainer.decoder.values.clone()),
            ("b_dec", trainer.decoder_bias.values.clone()),
            (if trainer.magnitude.is_some() { "b_gate" } else { "b_enc" }, trainer.encoder_bias.values.clone()),
        ];
        arrays.extend(trainer.threshold.iter().map(|threshold| ("threshold", threshold.values.clone())));
        if let Some((rescale, bias)) = &trainer.magnitude {
            arrays.extend([("r_mag", rescale.values.clone()), ("b_mag", bias.values.clone())]);
        }
        assert_eq!(arrays.len(), golden.end.len(), "{}", golden.name);
        for (name, found) in arrays {
            for (at, (found, expected)) in found.iter().zip(&golden.end[name]).enumerate() {
                let case = &golden.name;
                assert!((found - expected).abs() < 1e-4, "{case}, {name}[{at}]: {found} is not {expected}");
            }
        }
        if let Some(expected) = golden.running_threshold {
            let found = trainer.running_threshold;
            assert!((found - expected).abs() < 1e-5, "{}: {found} is not {expected}", golden.name);
        }
    }
}

fn numbers(rows: usize, columns: usize, seed: usize) -> Matrix {
    let value = |at: usize| ((((at + 13 * seed) * 7919) % 1009) as f32 / 1009. - 0.4) * 2.;
    Matrix::new(rows, columns, (0..rows * columns).map(value).collect()).unwrap()
}

/// The loss of a batch does not change by more than the gradient says, for what SAELens does not train: a transcoder with a
/// skip connection, and a crosscoder, whose decoder blocks are penalised each by its own length.
#[test]
fn losses_change_as_gradients_say() {
    let transcoder = Settings {
        objective: Objective::Standard { l1: 0.2 },
        latents: 8,
        apply_b_dec_to_input: false,
        skip: true,
        ..Settings::default()
    };
    let crosscoder = Settings { objective: Objective::Standard { l1: 0.2 }, latents: 8, ..Settings::default() };
    let two_sites = Config { sites: vec!["a".into(), "b".into()], ..Config::default() };
    for (settings, template, target) in [
        (transcoder, Config { output_site: Some("out".into()), ..Config::default() }, Some(numbers(12, 5, 2))),
        (crosscoder, two_sites, None),
    ] {
        // With a rate this small an update is a step of that size along the sign of each gradient.
        let rate = 2e-4;
        let settings = Settings { learning_rate: rate, clip: None, epsilon: 1e-30, steps: 9, ..settings };
        let examples = Examples { input: numbers(12, 6, 1), target };
        let mut trainer = Trainer::new(settings, template, &examples).unwrap();
        trainer.encoder.values = numbers(8, 6, 3).values().to_vec();
        trainer.decoder.values = numbers(8, trainer.d_out, 4).values().to_vec();
        let before = trainer.clone();
        let loss = trainer.update(&examples).unwrap().loss;
        type Part = fn(&mut Trainer) -> Option<&mut Parameter>;
        let parts: [(&str, Part); 5] = [
            ("encoder", |trainer| Some(&mut trainer.encoder)),
            ("decoder", |trainer| Some(&mut trainer.decoder)),
            ("encoder bias", |trainer| Some(&mut trainer.encoder_bias)),
            ("decoder bias", |trainer| Some(&mut trainer.decoder_bias)),
            ("skip", |trainer| trainer.skip.as_mut()),
        ];
        for (name, part) in parts {
            let Some(updated) = part(&mut trainer) else { continue };
            let gradient: Vec<f32> = updated.first.iter().map(|first| first / 0.1).collect();
            for (at, &expected) in gradient.iter().enumerate().step_by(3) {
                let moved = |by: f32| {
                    let mut other = before.clone();
                    part(&mut other).unwrap().values[at] += by;
                    other.update(&examples).unwrap().loss
                };
                let size = 1e-3;
                let found = ((moved(size) - moved(-size)) / f64::from(2. * size)) as f32;
                assert!(
                    (found - expected).abs() < 2e-2 * (1. + expected.abs()),
                    "{name}[{at}]: {found}, not {expected}"
                );
            }
        }
        assert!(trainer.update(&examples).unwrap().loss < loss);
    }
}

/// Directions that are known, of which few are in each vector.
fn known(rows: usize, seed: u64) -> (Matrix, Matrix) {
    use rand::{RngExt, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(99);
    let truth = Matrix::new(24, 16, super::start::directions(24, 16, 1., &mut random)).unwrap();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut vectors = Matrix::zeros(rows, 16);
    for row in 0..rows {
        for latent in 0..24 {
            if random.random::<f32>() < 0.07 {
                let size = 0.5 + random.random::<f32>();
                vectors.row_mut(row).iter_mut().zip(truth.row(latent)).for_each(|(x, d)| *x += size * d);
            }
        }
    }
    (vectors, truth)
}

/// The mean over the true directions of the largest cosine with a decoder row.
fn recovered(trainer: &Trainer, truth: &Matrix) -> f32 {
    let dictionary = trainer.dictionary().unwrap();
    let decoder = &dictionary.weights().decoder;
    let norms = dictionary.decoder_norms();
    let products = truth.times_transposed(decoder).unwrap();
    let best = products.iter().map(|row| row.iter().zip(norms).map(|(p, n)| p / n.max(1e-9)).fold(-1., f32::max));
    best.sum::<f32>() / truth.rows() as f32
}

#[test]
fn every_objective_finds_known_directions() {
    let base = Settings {
        latents: 32,
        steps: 1500,
        batch: 256,
        learning_rate: 3e-3,
        decay_steps: 300,
        dead_after_steps: 100,
        seed: 3,
        ..Settings::default()
    };
    let batchtopk = |widths: Vec<usize>| Objective::BatchTopK {
        k: 1.7,
        dead: 1.,
        by_decoder_norm: true,
        threshold_rate: 0.01,
        widths,
    };
    for (objective, settings) in [
        (Objective::Standard { l1: 0.3 }, Settings { resample_every: Some(300), ..base.clone() }),
        (Objective::Gated { l1: 0.3 }, Settings { unit_decoder: true, ..base.clone() }),
        (Objective::TopK { k: 2, dead: 1., by_decoder_norm: true }, base.clone()),
        (batchtopk(Vec::new()), base.clone()),
        (batchtopk(vec![12]), base.clone()),
        (jump(Penalty::Step, true), Settings { sparsity_warmup_steps: 200, ..base.clone() }),
    ] {
        let objective = match objective {
            Objective::JumpRelu { penalty, threshold, through_input, .. } => {
                Objective::JumpRelu { l0: 0.1, penalty, threshold, bandwidth: 0.1, through_input, pre_activation: 0. }
            }
            other => other,
        };
        let settings = Settings { objective, ..settings };
        let (sample, truth) = known(256, 0);
        let mut trainer =
            Trainer::new(settings.clone(), Config::default(), &Examples { input: sample, target: None }).unwrap();
        let before = recovered(&trainer, &truth);
        let mut last = None;
        for step in 0..settings.steps {
            let (input, _) = known(settings.batch, step + 1);
            last = Some(trainer.update(&Examples { input, target: None }).unwrap());
        }
        let (after, last) = (recovered(&trainer, &truth), last.unwrap());
        assert!(before < 0.65 && after > 0.9, "{:?}: {before} to {after}, {last:?}", settings.objective);
        assert!(last.fvu < 0.2 && last.l0 < 6., "{:?}: {last:?}", settings.objective);
        // The finished dictionary gives on fresh vectors what training promised.
        let (fresh, _) = known(512, 1_000_000);
        let dictionary = trainer.dictionary().unwrap();
        let codes = dictionary.encode(&fresh).unwrap();
        let back = dictionary.decode(&codes);
        let square = |a: &Matrix, b: &[f32]| -> f64 {
            a.iter().map(|row| row.iter().zip(b).map(|(x, m)| f64::from(x - m).powi(2)).sum::<f64>()).sum()
        };
        let error: f64 = back.values().iter().zip(fresh.values()).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let fvu = error / square(&fresh, &fresh.mean());
        assert!(fvu < 0.25, "{:?}: {fvu}", settings.objective);
    }
}

#[test]
fn wrong_batches_are_errors() {
    let examples = Examples { input: numbers(4, 6, 1), target: None };
    let settings = Settings { latents: 64, steps: 2, ..Settings::default() };
    let mut trainer = Trainer::new(settings.clone(), Config::default(), &examples).unwrap();
    let narrow = Examples { input: numbers(4, 5, 1), target: None };
    assert!(trainer.update(&narrow).unwrap_err().to_string().contains("5 dimensions"));
    let mut broken = examples.clone();
    broken.input.values_mut()[7] = f32::INFINITY;
    assert!(trainer.update(&broken).unwrap_err().to_string().contains("row 1 holds inf in dimension 1"));
    let empty = Examples { input: Matrix::zeros(0, 6), target: None };
    assert!(trainer.update(&empty).is_err());
    let target = Some(numbers(3, 6, 1));
    let settings = Settings { apply_b_dec_to_input: false, ..settings };
    assert!(Trainer::new(settings, Config::default(), &Examples { target, ..examples }).is_err());
}
