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
        let heads = pattern.iter().enumerate();
        scores.extend(heads.map(|(head, attention)| score(*layer, head, attention, prefix, period)));
    }
    Ok(scores)
}

/// The score of one head from its pattern `[query][key]`, of `prefix + 2 * period` queries.
fn score(layer: usize, head: usize, attention: &[Vec<f32>], prefix: usize, period: usize) -> HeadScore {
    let length = prefix + 2 * period;
    let mean = |queries: std::ops::Range<usize>, back: usize| {
        let count = queries.len() as f64;
        queries.map(|query| f64::from(attention[query][query - back])).sum::<f64>() / count
    };
    HeadScore {
        layer,
        head,
        previous_token: mean(prefix + 1..length, 1),
        duplicate_token: mean(prefix + period..length, period),
        induction: mean(prefix + period..length, period - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head that always looks `back` positions back, or at position 0 where there is nothing.
    fn looking(back: usize, prefix: usize, period: usize) -> HeadScore {
        let length = prefix + 2 * period;
        let row = |query: usize| {
            let key = query.saturating_sub(back);
            (0..length).map(|at| f32::from(u8::from(at == key))).collect()
        };
        let pattern: Vec<Vec<f32>> = (0..length).map(row).collect();
        score(1, 2, &pattern, prefix, period)
    }

    #[test]
    fn hand_made_patterns_score_as_they_look() {
        for prefix in [0, 1, 3] {
            let period = 4;
            let parts = |score: HeadScore| [score.previous_token, score.duplicate_token, score.induction];
            assert_eq!(parts(looking(1, prefix, period)), [1., 0., 0.]);
            assert_eq!(parts(looking(period, prefix, period))[1..], [1., 0.]);
            assert_eq!(parts(looking(period - 1, prefix, period))[1..], [0., 1.]);
            assert_eq!(parts(looking(0, prefix, period)), [0., 0., 0.]);
        }
        // With a period of 2 the token after the first occurrence is the one before.
        assert_eq!((looking(1, 1, 2).previous_token, looking(1, 1, 2).induction), (1., 1.));
        let score = looking(1, 1, 4);
        assert_eq!((score.layer, score.head), (1, 2));
    }

    #[test]
    fn attention_that_is_spread_is_averaged() {
        // Uniform over what is visible: query q gives 1 / (q + 1) to each key.
        let uniform =
            |query: usize| (0..4).map(|key| if key <= query { 1. / (query + 1) as f32 } else { 0. }).collect();
        let pattern: Vec<Vec<f32>> = (0..4).map(uniform).collect();
        let found = score(0, 0, &pattern, 0, 2);
        assert!((found.previous_token - (1. / 2. + 1. / 3. + 1. / 4.) / 3.).abs() < 1e-6);
        assert!((found.induction - (1. / 3. + 1. / 4.) / 2.).abs() < 1e-6);
        assert_eq!(found.induction, found.duplicate_token);
    }
}
