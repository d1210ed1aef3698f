//! Times updates of a TopK dictionary on random vectors: `training_speed D_IN LATENTS K BATCH STEPS [MULTIPLIED]` prints JSON.
//! `bench/dictionary_training.py` runs it beside SAELens.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use endoscope_dictionary::training::{Examples, InputScaling, Objective, Settings, Trainer};
use endoscope_dictionary::{Config, Matrix};
use endoscope_kernels::{PackedMatrix, Precision};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers = std::env::args().skip(1).map(|text| text.parse::<usize>()).collect::<Result<Vec<_>, _>>()?;
    let &[d_in, latents, k, batch, steps] = numbers.as_slice() else {
        return Err("training_speed D_IN LATENTS K BATCH STEPS".into());
    };
    let examples = |number: usize| {
        let value = |at: usize| {
            let mixed = (at as u64 ^ (number as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1u64 << 23) as f32 - 1.
        };
        Matrix::new(batch, d_in, (0..batch * d_in).map(value).collect()).map(|input| Examples { input, target: None })
    };
    let settings = Settings {
        objective: Objective::TopK { k, dead: 1., by_decoder_norm: true },
        latents,
        batch,
        steps: steps as u64 + 1,
        normalization: InputScaling::None,
        ..Settings::default()
    };
    let mut trainer = Trainer::new(settings, Config::default(), &examples(0)?)?;
    let mut seconds = Vec::new();
    for step in 0..=steps {
        let examples = examples(step)?;
        let start = Instant::now();
        trainer.update(&examples)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    // The machine's own speed at the encoder's product.
    let weight = PackedMatrix::pack(d_in, latents, Precision::F32, |row, column| (row ^ column) as f32);
    let rows = batch.min(512);
    let x = examples(0)?.input.select(0..rows);
    let bias = vec![0.; latents];
    let mut product = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        weight.product_of_rows(x.values(), &bias)?;
        product = product.min(start.elapsed().as_secs_f64());
    }
    let gemm = 2. * (rows * d_in * latents) as f64 / product;
    println!("{{\"seconds\": {:?}, \"gemm_flops\": {gemm}}}", &seconds[1..]);
    Ok(())
}
