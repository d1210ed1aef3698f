//! One update of a small model: forward and backward pass, AdamW.

use std::time::Instant;

use anyhow::Result;
use endoscope_models::{Decoder, Family};
use endoscope_train::{
    AdamW, Batch, ModelRecipe, Parameters, Recipe, Shape, ShortKeys, TaskRecipe, TrainingRecipe, initial_model, slope,
};

use super::cost;
use super::model::{INIT_STD, SEED};
use super::work::{Amount, Limit, Prepared, Size, Work, random_rows};

/// GPT-2's kind, small enough that an update takes less than a second on two cores.
const MODEL: ModelRecipe = ModelRecipe { family: Family::Gpt2, context: 128, shape: Shape::Short(SHORT) };
const SHORT: ShortKeys = ShortKeys {
    d_model: 256,
    layers: 4,
    heads: 4,
    kv_heads: None,
    d_head: None,
    d_mlp: 1024,
    activation: None,
    tied: None,
    attention_bias: None,
    mlp_bias: None,
    rotary_base: None,
    positions: None,
};
const VOCABULARY: usize = 1024;

/// An update on a batch of random tokens, without clipping; the same batch each time.
pub fn step(size: Size) -> Result<Prepared<'static>> {
    let Size { batch, length } = size;
    let recipe = Recipe {
        model: MODEL,
        task: TaskRecipe { name: "bench".into(), parameters: Default::default() },
        training: TrainingRecipe { batch, seed: SEED, init_std: INIT_STD, ..TrainingRecipe::default() },
    };
    let (decoder, parameters) = initial_model(&recipe, VOCABULARY)?;
    let flop = cost::training_flop(&decoder.spec, batch, length);
    let mut optimizer = AdamW::new(&parameters.variables);
    let data = Batch { tokens: random_rows(VOCABULARY, size), mask: vec![vec![true; length]; batch] };
    let once = move || {
        let start = Instant::now();
        update(&decoder, &parameters, &mut optimizer, &data, &recipe.training)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let amount = Amount { limit: Limit::Gemm { flop }, ..Amount::counting((batch * length) as f64, "tokens") };
    let name = format!("training step, {} layers of {}, {batch}x{length}", SHORT.layers, SHORT.d_model);
    Ok(Prepared::new(Work::Train, name, amount, once))
}

fn update(
    decoder: &Decoder,
    parameters: &Parameters,
    optimizer: &mut AdamW,
    data: &Batch,
    training: &TrainingRecipe,
) -> Result<()> {
    let gradients = slope(decoder, &parameters.variables, data, training)?.gradients;
    optimizer.update(&parameters.variables, &gradients, 1., training.learning_rate, training)?;
    Ok(())
}
