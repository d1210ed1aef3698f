//! Accuracy where the right answers are known.

use endoscope_net::{Inputs, Network, Plan};

use crate::error::{Error, Result};

/// How well a network predicts the tokens that are certain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// The share of certain tokens that have the largest logit, from 0 to 1.
    pub top: f64,
    /// The mean probability given to them.
    pub probability: f64,
    /// How many there were.
    pub count: usize,
}

/// Runs `rows` under `plan`; `answers[row][position]` is the token that is certain at a position given those before it.
pub fn accuracy(
    network: &dyn Network,
    rows: &[Vec<u32>],
    answers: &[Vec<Option<u32>>],
    plan: &Plan,
) -> Result<Accuracy> {
    let logits = network.run(&Inputs::tokens(rows.to_vec())?, plan)?.outputs.to_vec3::<f32>()?;
    let (mut right, mut probability, mut count) = (0usize, 0., 0usize);
    for (row, answers) in logits.iter().zip(answers) {
        // The logits at a position are about the next one.
        for (logits, answer) in row.iter().zip(answers.iter().skip(1)) {
            let Some(answer) = answer else { continue };
            let Some(&logit) = logits.get(*answer as usize) else {
                return Err(Error::Metric {
                    metric: "accuracy",
                    reason: format!("the answer {answer} is out of range"),
                });
            };
            count += 1;
            right += usize::from(logits.iter().all(|&other| other <= logit));
            let total: f64 = logits.iter().map(|&other| f64::from(other - logit).exp()).sum();
            probability += 1. / total;
        }
    }
    if count == 0 {
        return Err(Error::Metric { metric: "accuracy", reason: "no position has a certain answer".into() });
    }
    Ok(Accuracy { top: right as f64 / count as f64, probability: probability / count as f64, count })
}
