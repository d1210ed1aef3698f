//! Head detectors: where each head looks on repeated random tokens (Elhage et al. 2021; Olsson et al. 2022,
//! arXiv 2209.11895).

use endoscope_net::{Capture, Inputs, Network, Plan, Role};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Average attention of one head to three places. Each is between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeadScore {
    /// Its layer.
    pub layer: usize,
    /// Its number in the layer.
    pub head: usize,
    /// To the token before.
    pub previous_token: f64,
    /// From a repeated token to its first occurrence.
    pub duplicate_token: f64,
    /// From a repeated token to the token after its first occurrence.
    pub induction: f64,
}

/// Scores every head on rows that hold `prefix` tokens (a BOS, say) and then the same `period` tokens twice.
pub fn head_scores(network: &dyn Network, rows: &[Vec<u32>], prefix: usize, period: usize) -> Result<Vec<HeadScore>> {
    let length = prefix + 2 * period;
    if period < 2 {
        return Err(Error::Sweep(format!("repeated sequences need a period of at least 2, not {period}")));
    }
    for row in rows {
        let repeats = row.len() == length && row[prefix..prefix + period] == row[prefix + period..];
        if !repeats {
            return Err(Error::Sweep(format!(
                "head detectors need rows of {prefix} + 2 x {period} tokens that repeat"
            )));
        }
    }
    let patterns: Vec<(usize, String)> = network
        .sites()
        .iter()
        .filter(|site| site.role == Role::Attention && site.name.ends_with("hook_pattern"))
        .filter_map(|site| Some((site.layer?, site.name.clone())))
        .collect();
    let plan = patterns.iter().fold(Plan::default(), |plan, (_, name)| plan.capture(Capture::new(name)));
    let run = network.run(&Inputs::tokens(rows.to_vec())?, &plan)?;
    let mut scores = Vec::new();
    for (layer, name) in &patterns {
        let pattern = run.captured.get(name)?.mean(0)?.to_vec3::<f32>()?;
        for (head, attention) in pattern.iter().enumerate() {
            let mean = |queries: std::ops::Range<usize>, back: usize| {
                let count = queries.len() as f64;
                queries.map(|query| f64::from(attention[query][query - back])).sum::<f64>() / count
            };
            scores.push(HeadScore {
                layer: *layer,
                head,
                previous_token: mean(prefix + 1..length, 1),
                duplicate_token: mean(prefix + period..length, period),
                induction: mean(prefix + period..length, period - 1),
            });
        }
    }
    Ok(scores)
}
