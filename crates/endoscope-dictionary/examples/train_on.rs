//! Trains a dictionary on the vectors of a file: `train_on VECTORS.safetensors SETTINGS.json OUT.safetensors`. The file holds
//! `activations`, f32 `[rows, width]`, whose rows are seen in order, again from the first when they end; the settings are those
//! of [`endoscope_dictionary::training::Settings`]. `bench/dictionary_quality.py` runs it beside SAELens.

#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::time::Instant;

use endoscope_dictionary::training::{Examples, Settings, Trainer};
use endoscope_dictionary::{Config, Matrix};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [vectors, settings, out] = arguments.as_slice() else {
        return Err("train_on VECTORS.safetensors SETTINGS.json OUT.safetensors".into());
    };
    let settings: Settings = serde_json::from_str(&std::fs::read_to_string(settings)?)?;
    let tensors = candle_core::safetensors::load(vectors, &candle_core::Device::Cpu)?;
    let vectors = Matrix::from_tensor(tensors.get("activations").ok_or("there is no tensor `activations`")?)?;
    let batch = |step: u64| {
        let first = step as usize * settings.batch;
        let rows = (first..first + settings.batch).map(|row| row % vectors.rows());
        Examples { input: vectors.select(rows), target: None }
    };
    let mut trainer = Trainer::new(settings.clone(), Config::default(), &batch(0))?;
    let start = Instant::now();
    let mut last = None;
    while !trainer.is_finished() {
        last = Some(trainer.update(&batch(trainer.steps()))?);
    }
    let seconds = start.elapsed().as_secs_f64();
    let dictionary = trainer.dictionary()?;
    let weights = dictionary.weights();
    let vector = |values: &[f32]| candle_core::Tensor::new(values, &candle_core::Device::Cpu);
    let mut arrays = HashMap::from([
        ("W_enc", weights.encoder.tensor()?.t()?.contiguous()?),
        ("W_dec", weights.decoder.tensor()?),
        ("b_enc", vector(&weights.encoder_bias)?),
        ("b_dec", vector(&weights.decoder_bias)?),
    ]);
    if let Some(threshold) = &weights.threshold {
        arrays.insert("threshold", vector(threshold)?);
    }
    if let Some(magnitude) = &weights.magnitude {
        arrays.insert("r_mag", vector(&magnitude.rescale)?);
        arrays.insert("b_mag", vector(&magnitude.bias)?);
    }
    candle_core::safetensors::save(&arrays, out)?;
    println!("{}", serde_json::json!({"seconds": seconds, "last": last}));
    Ok(())
}
