//! A batch in parts has the loss and the gradients of the whole, whatever the parts and however targets lie in them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use common::{Pairs, recipe};
use endoscope_train::{Batches, EarlyStop, LossOn, initial_model, slope};

#[test]
fn parts_add_up_to_the_whole() {
    let mut recipe = recipe();
    recipe.training.init_std = 0.3;
    recipe.training.early_stop = Some(EarlyStop { accuracy: 1., updates: 1 });
    let (decoder, parameters) = initial_model(&recipe, 12).unwrap();
    let mut batch = Pairs.batch(3, 0, 7);
    // Parts of different weight, and one row without any target.
    batch.mask[0] = vec![false; 8];
    batch.mask[5] = vec![true; 8];
    for loss in [LossOn::Certain, LossOn::Every] {
        recipe.training.loss = loss;
        recipe.training.accumulate = 1;
        let whole = slope(&decoder, &parameters.variables, &batch, &recipe.training).unwrap();
        for accumulate in [2, 3, 7] {
            recipe.training.accumulate = accumulate;
            let parts = slope(&decoder, &parameters.variables, &batch, &recipe.training).unwrap();
            assert!((whole.loss - parts.loss).abs() < 1e-6, "{} {}", whole.loss, parts.loss);
            assert_eq!(whole.answered, parts.answered);
            for (name, variable) in &parameters.variables {
                let flat = |slope: &endoscope_train::Slope| -> Vec<f32> {
                    slope.gradients.get(variable.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
                };
                let (whole, parts) = (flat(&whole), flat(&parts));
                let size = whole.iter().fold(0f32, |size, x| size.max(x.abs()));
                let largest = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
                assert!(size > 0. && largest < 1e-6, "{name}: {largest} of {size}, {accumulate} parts");
            }
        }
    }
}
