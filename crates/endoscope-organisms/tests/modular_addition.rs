//! What is known of the organism `modular-addition`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::f64::consts::TAU;
use std::path::PathBuf;

use endoscope_models::{Decoder, Model};
use endoscope_net::{Index, Inputs, Network, Plan};
use endoscope_organisms::tasks::modular_addition::{ModularAddition, TEST};
use endoscope_organisms::{BOS, Exercise};
use endoscope_train::{Recipe, initial_model};

const P: usize = 59;
/// How many frequencies MODEL.md names, and which.
const FREQUENCIES: [usize; 6] = [23, 9, 19, 29, 11, 25];

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms/modular-addition")
}

struct Found {
    /// The share of sums that are not trained on and rightly answered.
    accuracy: f64,
    /// Frequencies with their share of the variance of the embedding, the largest first.
    embedding: Vec<(usize, f64)>,
    /// The share of the variance of the logits that `cos(w (a + b - c))` explains, of all frequencies: that of k is at k - 1.
    logits: Vec<f64>,
}

fn measure(decoder: &Decoder, embedding: &[Vec<f32>], task: &ModularAddition) -> Found {
    let word = |text: String| task.words().iter().position(|word| *word == text).unwrap() as u32;
    let numbers: Vec<u32> = (0..P).map(|number| word(number.to_string())).collect();
    let (plus, equals) = (word("+".into()), word("=".into()));
    let prompt = |pair: usize| vec![BOS, numbers[pair / P], plus, numbers[pair % P], equals];
    let inputs = Inputs::tokens((0..P * P).map(prompt).collect::<Vec<_>>()).unwrap();
    let outputs = decoder.run(&inputs, &Plan::default().outputs_at(Index::At(-1))).unwrap().outputs;
    let logits = outputs.squeeze(1).unwrap().to_vec2::<f32>().unwrap();
    // [pair][number]
    let mut logits: Vec<Vec<f64>> =
        logits.iter().map(|logits| numbers.iter().map(|&token| f64::from(logits[token as usize])).collect()).collect();
    let best = |pair: usize| (0..P).max_by(|&a, &b| logits[pair][a].total_cmp(&logits[pair][b])).unwrap();
    let held_out: Vec<(usize, usize)> = task.operands(TEST).collect();
    assert_eq!(held_out.len(), 2089);
    let right = held_out.iter().filter(|(a, b)| best(a * P + b) == (a + b) % P).count();
    for logits in &mut logits {
        let mean = logits.iter().sum::<f64>() / P as f64;
        logits.iter_mut().for_each(|logit| *logit -= mean);
    }
    for number in 0..P {
        let mean = logits.iter().map(|logits| logits[number]).sum::<f64>() / (P * P) as f64;
        logits.iter_mut().for_each(|logits| logits[number] -= mean);
    }
    let all: f64 = logits.iter().flatten().map(|logit| logit * logit).sum();
    let explained = |frequency: usize| {
        // Cosines of different frequencies are orthogonal over all pairs and numbers.
        let wave: Vec<f64> = (0..P).map(|turn| (TAU * (frequency * turn) as f64 / P as f64).cos()).collect();
        let (mut product, mut square) = (0., 0.);
        for (pair, logits) in logits.iter().enumerate() {
            for (number, logit) in logits.iter().enumerate() {
                let wave = wave[(pair / P + pair % P + P - number) % P];
                product += wave * logit;
                square += wave * wave;
            }
        }
        product * product / square / all
    };
    Found {
        accuracy: right as f64 / held_out.len() as f64,
        embedding: spectrum(&numbers.iter().map(|&token| embedding[token as usize].clone()).collect::<Vec<_>>()),
        logits: (1..=P / 2).map(explained).collect(),
    }
}

/// Of rows in a circle: each frequency with its share of their variance, the largest first.
fn spectrum(rows: &[Vec<f32>]) -> Vec<(usize, f64)> {
    let power = |frequency: usize| {
        let mut power = 0.;
        for column in 0..rows[0].len() {
            let (mut even, mut odd) = (0., 0.);
            for (number, row) in rows.iter().enumerate() {
                let angle = TAU * (frequency * number) as f64 / P as f64;
                even += f64::from(row[column]) * angle.cos();
                odd += f64::from(row[column]) * angle.sin();
            }
            power += even * even + odd * odd;
        }
        power
    };
    let powers: Vec<(usize, f64)> = (1..=P / 2).map(|frequency| (frequency, power(frequency))).collect();
    let all: f64 = powers.iter().map(|(_, power)| power).sum();
    let mut shares: Vec<(usize, f64)> = powers.into_iter().map(|(frequency, power)| (frequency, power / all)).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    shares
}

#[test]
fn it_adds_by_waves_of_six_frequencies_and_a_model_before_training_does_not() {
    let recipe = Recipe::read(directory().join("recipe.toml")).unwrap();
    let task = ModularAddition::from_parameters(&recipe.task.parameters).unwrap();
    let file = directory().join("model.safetensors");
    let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
    let embedding = |tensor: &candle_core::Tensor| tensor.to_vec2::<f32>().unwrap();
    let trained =
        measure(&Model::open(directory()).unwrap().decoder, &embedding(&tensors["transformer.wte.weight"]), &task);
    let (decoder, parameters) = initial_model(&recipe, task.words().len()).unwrap();
    let untrained = measure(&decoder, &embedding(parameters.variables["transformer.wte.weight"].as_tensor()), &task);
    let explained = |found: &Found| FREQUENCIES.iter().map(|frequency| found.logits[frequency - 1]).sum::<f64>();
    let strongest = |found: &Found| found.embedding[..6].iter().map(|(_, share)| share).sum::<f64>();
    for (name, found) in [("trained", &trained), ("untrained", &untrained)] {
        println!(
            "{name}: accuracy {:.4}, embedding {:.4} in {:.3?}, logits {:.4} of {:.4}",
            found.accuracy,
            strongest(found),
            &found.embedding[..6],
            explained(found),
            found.logits.iter().sum::<f64>()
        );
    }
    assert!(trained.accuracy >= 0.999, "MODEL.md says 1.000");
    assert_eq!(trained.embedding[..6].iter().map(|(frequency, _)| *frequency).collect::<Vec<_>>(), FREQUENCIES);
    assert!((strongest(&trained) - 0.737).abs() < 0.001);
    assert!((explained(&trained) - 0.957).abs() < 0.001);
    let others = trained.logits.iter().sum::<f64>() - explained(&trained);
    assert!(others < 0.001, "{others}");
    assert!(untrained.accuracy < 0.05 && strongest(&untrained) < 0.3 && explained(&untrained) < 0.001);
}
