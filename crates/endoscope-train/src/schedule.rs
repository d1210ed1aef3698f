//! The learning rate over a run.

use std::f64::consts::PI;

use crate::recipe::TrainingRecipe;

/// The learning rate of step `step` (from 0): a linear rise over `warmup_steps`, then half a cosine down to
/// `final_learning_rate` of the peak (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts).
pub fn learning_rate(training: &TrainingRecipe, step: u64) -> f64 {
    let &TrainingRecipe { learning_rate: peak, warmup_steps, final_learning_rate: fraction, steps, .. } = training;
    if step < warmup_steps {
        return peak * (step + 1) as f64 / warmup_steps as f64;
    }
    let done = (step - warmup_steps) as f64 / (steps - warmup_steps).max(1) as f64;
    peak * (fraction + (1. - fraction) * (1. + (PI * done).cos()) / 2.)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_to_the_final_fraction() {
        let training = TrainingRecipe {
            steps: 110,
            learning_rate: 2.,
            warmup_steps: 10,
            final_learning_rate: 0.1,
            ..TrainingRecipe::default()
        };
        for (step, expected) in [(0, 0.2), (4, 1.), (9, 2.), (10, 2.), (60, 1.1), (110, 0.2)] {
            let found = learning_rate(&training, step);
            assert!((found - expected).abs() < 1e-12, "step {step}: {found}, not {expected}");
        }
    }
}
