//! Every trainable tensor has the gradient that finite differences of the loss give.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use candle_core::{DType, Device, Tensor};
use endoscope_models::rotary::Rotary;
use endoscope_models::{Activation, AttentionScale, Biases, Decoder, Family, Mlp, Norm, Positions, Spec};
use endoscope_net::{Inputs, Network, Plan};
use endoscope_train::{Batch, Parameters, cross_entropy, generator};
use rand::RngExt;

/// Half the distance between the two losses of a difference. With weights around 0.3 the error of the formula
/// (of its square) and that of f32 logits (of 1e-6 / STEP) are both below a hundredth of a typical slope.
const STEP: f64 = 4e-3;
/// Slopes may differ by this fraction of the tensor's gradient, or by the noise of f32.
const RELATIVE: f64 = 0.02;
const NOISE: f64 = 2e-4;

fn gpt2(tied: bool) -> Spec {
    Spec {
        vocabulary: 11,
        context: 8,
        d_model: 8,
        layers: 2,
        heads: 2,
        kv_heads: 2,
        d_head: 4,
        d_mlp: 12,
        norm: Norm::LayerNorm,
        epsilon: 1e-5,
        positions: Positions::Learned,
        mlp: Mlp::Plain,
        activation: Activation::GeluTanh,
        biases: Biases { qkv: true, attention_out: true, mlp: true },
        tied,
        ..Spec::default()
    }
}

fn llama(biases: Biases, tied: bool) -> Spec {
    Spec {
        heads: 4,
        kv_heads: 2,
        norm: Norm::RmsNorm,
        epsilon: 1e-6,
        positions: Positions::rotary(Rotary::plain(100., 4)),
        mlp: Mlp::Gated,
        activation: Activation::Silu,
        biases,
        ..gpt2(tied)
    }
}

fn batch() -> Batch {
    let mut random = generator(5, 0);
    let tokens = (0..3).map(|_| (0..7).map(|_| random.random_range(0..11)).collect()).collect();
    let mask = (0..3).map(|_| (0..7).map(|_| random.random_range(0..3) > 0).collect()).collect();
    Batch { tokens, mask }
}

/// The loss with its sums in f64, so that a small difference is not lost.
fn exact_loss(decoder: &Decoder, batch: &Batch) -> f64 {
    let logits = decoder.run(&Inputs::tokens(batch.tokens.clone()).unwrap(), &Plan::default()).unwrap().outputs;
    cross_entropy(&logits.detach().to_dtype(DType::F64).unwrap(), batch).unwrap().to_scalar().unwrap()
}

fn check(family: Family, spec: Spec) {
    let mut parameters = Parameters::new(family, &spec, 3, 0.4);
    let decoder = Decoder::new(spec.clone(), family.weights(&spec, &mut parameters).unwrap()).unwrap();
    let mut random = generator(1, 0);
    // Away from the special points 0 and 1 of biases and norms.
    for variable in parameters.variables.values().filter(|variable| variable.rank() == 1) {
        let noise: Vec<f32> = (0..variable.elem_count()).map(|_| random.random_range(-0.3..0.3)).collect();
        let noise = Tensor::from_vec(noise, variable.shape(), &Device::Cpu).unwrap();
        variable.set(&(variable.as_tensor() + noise).unwrap().detach()).unwrap();
    }
    let batch = batch();
    let logits = decoder.run(&Inputs::tokens(batch.tokens.clone()).unwrap(), &Plan::default()).unwrap().outputs;
    let loss = cross_entropy(&logits, &batch).unwrap();
    assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - exact_loss(&decoder, &batch)).abs() < 1e-5);
    let gradients = loss.backward().unwrap();
    for (name, variable) in &parameters.variables {
        let gradient = gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has no gradient"));
        let gradient: Vec<f64> = gradient.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
        let start: Vec<f32> = variable.flatten_all().unwrap().to_vec1().unwrap();
        let length = norm(&gradient);
        assert!(length > 1e-3, "{name}: the gradient is {length}");
        let count = gradient.len();
        let largest = (0..count).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs())).unwrap();
        let entry = |at: usize| (0..count).map(|i| f64::from(u8::from(i == at))).collect::<Vec<f64>>();
        let mut directions = vec![gradient.iter().map(|g| g / length).collect(), entry(largest)];
        for _ in 0..3 {
            let random_direction: Vec<f64> = (0..count).map(|_| random.random_range(-1.0..1.0)).collect();
            let size = norm(&random_direction);
            directions.push(random_direction.iter().map(|x| x / size).collect());
            directions.push(entry(random.random_range(0..count)));
        }
        for direction in directions {
            let at = |distance: f64| {
                let moved = start.iter().zip(&direction).map(|(&x, d)| (f64::from(x) + distance * d) as f32).collect();
                let moved: Vec<f32> = moved;
                variable.set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu).unwrap()).unwrap();
                exact_loss(&decoder, &batch)
            };
            let measured = (at(STEP) - at(-STEP)) / (2. * STEP);
            let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let tolerance = RELATIVE * length + NOISE;
            assert!(
                (measured - expected).abs() < tolerance,
                "{name}: slope {measured} by differences, {expected} by the gradient (tolerance {tolerance})"
            );
        }
        variable.set(&Tensor::from_vec(start, variable.shape(), &Device::Cpu).unwrap()).unwrap();
    }
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn gpt2_tied() {
    check(Family::Gpt2, gpt2(true));
}

#[test]
fn gpt2_untied_with_other_switches() {
    let attention_scale = AttentionScale::InverseSqrtHeadByLayer;
    check(Family::Gpt2, Spec { attention_scale, activation: Activation::GeluErf, ..gpt2(false) });
}

#[test]
fn llama_with_grouped_heads() {
    check(Family::Llama, llama(Biases { qkv: false, attention_out: false, mlp: false }, false));
}

#[test]
fn llama_with_biases_and_tied() {
    check(Family::Llama, llama(Biases { qkv: true, attention_out: true, mlp: true }, true));
}

#[test]
fn smollm3_without_positions() {
    let positions = Positions::Rotary { kinds: vec![Rotary::plain(100., 4)], layers: vec![None; 2] };
    check(Family::SmolLm3, Spec { positions, ..llama(Biases::default(), false) });
}
