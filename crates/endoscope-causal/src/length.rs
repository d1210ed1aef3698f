//! Length: how well a network does a task on longer and longer inputs, how its attention spreads out meanwhile, and
//! whether attention that is sharpened with the length makes up for it.
//!
//! A softmax over n scores of bounded size cannot stay sharp as n grows; multiplying the scores by `s(n) = 1 + c log n`
//! is the known remedy (Chiang and Cholak 2022, arXiv 2202.12172, take `log n`). [`tempered`] is this as a plan,
//! [`fit`] finds `c` for each layer on a few lengths, and [`at_length`] measures with and without.

use endoscope_net::{Capture, Change, Edit, Inputs, Network, Plan, Role, Sites};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::log_softmax;

/// Rows that are run at once: the patterns of all layers are held meanwhile.
const ROWS: usize = 32;

/// A task at one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exam {
    /// What the length of an input is: how many items it has, not how many tokens.
    pub length: usize,
    /// Rows of tokens `[row][position]`, all of one length.
    pub rows: Vec<Vec<u32>>,
    /// Whether each token is asked for, given those before it.
    pub asked: Vec<Vec<bool>>,
}

/// How well a network does at one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AtLength {
    /// The length.
    pub length: usize,
    /// The share of rows of which every asked token has the largest logit. Of rows whose answers are given as they are
    /// right, which is the same as the share that a greedy continuation gets right.
    pub exact: f64,
    /// The share of asked tokens that have the largest logit.
    pub token: f64,
    /// The mean negative log probability of asked tokens, in nats.
    pub loss: f64,
    /// For each layer, the mean entropy of its heads' attention at the positions that predict an asked token, in nats.
    pub entropy: Vec<f64>,
}

impl Exam {
    fn check(&self) -> Result<()> {
        let fits = self.rows.iter().zip(&self.asked).all(|(row, asked)| row.len() == asked.len());
        let somewhere = |asked: &Vec<bool>| asked.iter().skip(1).any(|&asked| asked);
        if !fits || self.rows.len() != self.asked.len() || self.rows.is_empty() || !self.asked.iter().all(somewhere) {
            let reason = format!(
                "the rows of length {} must each say of every token whether it is asked for, and ask for one after \
                 the first",
                self.length
            );
            return Err(Error::Metric { metric: "exact match", reason });
        }
        Ok(())
    }
}

/// Runs an exam under `plan`.
pub fn at_length(network: &dyn Network, exam: &Exam, plan: &Plan) -> Result<AtLength> {
    exam.check()?;
    let patterns = of_attention(network.sites(), "hook_pattern");
    let plan = patterns.iter().fold(plan.clone(), |plan, name| plan.capture(Capture::new(name)));
    let (mut exact, mut right, mut loss, mut asked) = (0usize, 0usize, 0., 0usize);
    let mut entropy = vec![0.; patterns.len()];
    for (rows, asked_of) in exam.rows.chunks(ROWS).zip(exam.asked.chunks(ROWS)) {
        let run = network.run(&Inputs::tokens(rows.to_vec())?, &plan)?;
        let logits = run.outputs.to_vec3::<f32>()?;
        for ((row, asked_of), logits) in rows.iter().zip(asked_of).zip(&logits) {
            let mut all = true;
            for at in queries(asked_of) {
                let answer = row[at + 1] as usize;
                let (Some(&logit), logits) = (logits[at].get(answer), &logits[at]) else {
                    let reason = format!("the token {answer} is out of range");
                    return Err(Error::Metric { metric: "exact match", reason });
                };
                let on_top = logits.iter().all(|&other| other <= logit);
                all &= on_top;
                right += usize::from(on_top);
                loss -= log_softmax(logits)[answer];
                asked += 1;
            }
            exact += usize::from(all);
        }
        for (name, entropy) in patterns.iter().zip(&mut entropy) {
            // One row at a time: [head, query, key].
            for (row, asked_of) in asked_of.iter().enumerate() {
                let pattern = run.captured.get(name)?.get(row)?.to_vec3::<f32>()?;
                let heads = pattern.len() as f64;
                for query in queries(asked_of) {
                    *entropy += pattern.iter().map(|head| nats(&head[query])).sum::<f64>() / heads;
                }
            }
        }
    }
    let count = asked as f64;
    Ok(AtLength {
        length: exam.length,
        exact: exact as f64 / exam.rows.len() as f64,
        token: right as f64 / count,
        loss: loss / count,
        entropy: entropy.into_iter().map(|sum| sum / count).collect(),
    })
}

/// The positions that predict an asked token.
fn queries(asked: &[bool]) -> impl Iterator<Item = usize> + '_ {
    (1..asked.len()).filter(|&at| asked[at]).map(|at| at - 1)
}

/// The entropy of weights that sum to 1; 0 log 0 is 0.
fn nats(weights: &[f32]) -> f64 {
    let some = weights.iter().map(|&weight| f64::from(weight)).filter(|weight| *weight > 0.);
    some.map(|weight| -weight * weight.ln()).sum()
}

/// The names of this site of all layers, in order.
fn of_attention(sites: &Sites, kind: &str) -> Vec<String> {
    let wanted = sites.iter().filter(|site| site.role == Role::Attention && site.name.ends_with(kind));
    wanted.map(|site| site.name.clone()).collect()
}

/// The plan that multiplies the attention scores of each layer with attention by its one of `factors`; a layer whose
/// factor is 1 is left as it is.
pub fn scaled(sites: &Sites, factors: &[f64]) -> Result<Plan> {
    let scores = of_attention(sites, "hook_attn_scores");
    if scores.len() != factors.len() {
        let (layers, given) = (scores.len(), factors.len());
        return Err(Error::Sweep(format!(
            "a network of {layers} layers with attention needs as many factors of its scores, not {given}"
        )));
    }
    let changed = scores.into_iter().zip(factors).filter(|(_, factor)| **factor != 1.);
    Ok(changed.fold(Plan::default(), |plan, (site, &factor)| plan.edit(Edit::new(site, Change::Scale { factor }))))
}

/// The factors `1 + c_l log(length)` of the `coefficients` `c_l`, one a layer.
pub fn tempering(coefficients: &[f64], length: usize) -> Vec<f64> {
    let log = (length.max(1) as f64).ln();
    coefficients.iter().map(|coefficient| 1. + coefficient * log).collect()
}

/// The plan that multiplies the attention scores of layer l by `1 + c_l log(length)`.
pub fn tempered(sites: &Sites, coefficients: &[f64], length: usize) -> Result<Plan> {
    scaled(sites, &tempering(coefficients, length))
}

/// The coefficients `c_l` of [`tempered`] with the least mean loss on `exams`, among those of `grid` for each layer; of
/// equals the first.
///
/// One layer after the other is set to its best value while the others stay, beginning with 0 everywhere, until a round
/// changes nothing or after `rounds`. `grid` should hold 0, which is no change.
pub fn fit(network: &dyn Network, exams: &[Exam], grid: &[f64], rounds: usize) -> Result<Vec<f64>> {
    if exams.is_empty() || grid.is_empty() || grid.iter().any(|value| !value.is_finite()) {
        return Err(Error::Sweep(
            "coefficients of log n are fitted on at least one length, among finite numbers".into(),
        ));
    }
    let loss = |coefficients: &[f64]| -> Result<f64> {
        let mut sum = 0.;
        for exam in exams {
            sum += at_length(network, exam, &tempered(network.sites(), coefficients, exam.length)?)?.loss;
        }
        Ok(sum / exams.len() as f64)
    };
    let mut found = vec![0.; of_attention(network.sites(), "hook_attn_scores").len()];
    let mut least = loss(&found)?;
    for _ in 0..rounds {
        let before = found.clone();
        for layer in 0..found.len() {
            for &value in grid.iter().filter(|&&value| value != before[layer]) {
                let mut tried = found.clone();
                tried[layer] = value;
                let reached = loss(&tried)?;
                if reached < least {
                    (least, found) = (reached, tried);
                }
            }
        }
        if found == before {
            break;
        }
    }
    Ok(found)
}
