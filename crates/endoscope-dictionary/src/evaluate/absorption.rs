//! Feature absorption: a latent that stands for a concept stays silent where a more special latent has taken the concept over
//! (Chanin et al. 2024, arXiv 2409.14507).

use serde::{Deserialize, Serialize};

use super::sparse_probing::{Halves, accuracy, by_difference, columns, says};
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, norm};

/// How much of a concept is absorbed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Absorption {
    /// The latents that stand for the concept: the most telling one, and further ones as long as each raises the F1 of a probe
    /// on them by more than [`SPLIT`].
    pub main: Vec<usize>,
    /// The F1 of a probe on them, on rows that it was not fitted on.
    pub main_f1: f64,
    /// The accuracy of a probe on the activations, likewise.
    pub probe_accuracy: f64,
    /// How many rows of the concept the probe finds, among those scored.
    pub found: usize,
    /// The share of them on which no main latent is active and one other writes at least [`SHARE`] of the activation's
    /// projection onto the probe, along a direction of a cosine of at least [`COSINE`] with it.
    pub absorbed: f64,
    /// The latents that absorbed, the most frequent first, with how many rows each.
    pub absorbing: Vec<(usize, usize)>,
}

/// What another main latent must add to the F1.
pub const SPLIT: f64 = 0.03;
/// What an absorbing latent must write of the projection onto the probe.
pub const SHARE: f32 = 0.4;
/// The least cosine of an absorbing latent's direction with the probe.
pub const COSINE: f32 = 0.025;
/// The most main latents.
const MOST: usize = 10;

/// How much of the concept that `labels` say is absorbed. Contributions are projections of what latents write onto the direction
/// of a logistic probe on the activations (not effects on a model's output, by which the paper measures them).
pub fn absorption(dictionary: &Dictionary, activations: &Matrix, labels: &[bool], seed: u64) -> Result<Absorption> {
    if labels.len() != activations.rows() {
        let reason = format!("{} labels are not those of {} vectors", labels.len(), activations.rows());
        return Err(Error::Measure(reason));
    }
    if !dictionary.is_autoencoder() {
        return Err(Error::Measure("absorption is of dictionaries that write what they read".into()));
    }
    let halves = Halves::new(labels, seed)?;
    let codes = dictionary.encode(activations)?;
    let order = by_difference(&codes.latents, labels, &halves.fitted);
    let (mut main, mut main_f1) = (Vec::new(), 0.);
    for count in 1..=MOST.min(order.len()) {
        let f1 = f1(&columns(&codes.latents, &order[..count]), labels, &halves)?;
        if count > 1 && f1 <= main_f1 + SPLIT {
            break;
        }
        (main, main_f1) = (order[..count].to_vec(), f1);
    }
    let (probe_accuracy, probe) = accuracy(activations, labels, &halves)?;
    let direction: Vec<f32> = probe.directions[0].iter().map(|&x| x as f32).collect();
    let length = norm(&direction);
    if length == 0. {
        return Err(Error::Measure("the probe has no direction".into()));
    }
    let along = |vector: &[f32]| vector.iter().zip(&direction).map(|(x, w)| x * w).sum::<f32>() / length;
    let (mut found, mut absorbing) = (0, std::collections::BTreeMap::<usize, usize>::new());
    for &row in halves.scored.iter().filter(|&&row| labels[row] && says(&probe, activations.row(row))) {
        found += 1;
        let (columns, values) = codes.latents.row(row);
        if columns.iter().any(|&at| main.contains(&(at as usize))) {
            continue;
        }
        let whole = along(activations.row(row));
        let mut best: Option<(usize, f32)> = None;
        for (&at, &value) in columns.iter().zip(values) {
            let writes = dictionary.direction(at as usize)?;
            let (part, size) = (along(&writes), norm(&writes));
            let contribution = value * part * codes.scale_of_row(row);
            if size > 0. && part / size >= COSINE && best.is_none_or(|(_, most)| contribution > most) {
                best = Some((at as usize, contribution));
            }
        }
        if let Some((latent, _)) = best.filter(|&(_, most)| whole > 0. && most >= SHARE * whole) {
            *absorbing.entry(latent).or_default() += 1;
        }
    }
    let mut absorbing: Vec<(usize, usize)> = absorbing.into_iter().collect();
    absorbing.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let rows: usize = absorbing.iter().map(|(_, rows)| rows).sum();
    let absorbed = rows as f64 / found.max(1) as f64;
    Ok(Absorption { main, main_f1, probe_accuracy, found, absorbed, absorbing })
}

/// The harmonic mean of precision and recall of a probe, on the rows that are scored.
fn f1(features: &Matrix, labels: &[bool], halves: &Halves) -> Result<f64> {
    let (_, probe) = accuracy(features, labels, halves)?;
    let (mut both, mut said, mut are) = (0., 0., 0.);
    for &row in &halves.scored {
        let says = says(&probe, features.row(row));
        both += f64::from(u8::from(says && labels[row]));
        said += f64::from(u8::from(says));
        are += f64::from(u8::from(labels[row]));
    }
    Ok(if said + are > 0. { 2. * both / (said + are) } else { 0. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::dictionary::Weights;
    use crate::evaluate::sparse_probing;

    /// A concept along the first axis, which half of its examples have together with a special one along the second. The
    /// dictionary of `absorbed` has a latent for "concept but not special" and one for both together.
    fn example(absorbed: bool) -> (Dictionary, Matrix, Vec<bool>) {
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for at in 0..400usize {
            let (concept, special) = (at % 2 == 0, at % 4 == 0);
            let noise = ((at * 37) % 11) as f32 * 1e-3;
            values.extend([f32::from(u8::from(concept)) + noise, f32::from(u8::from(special)), 1. - noise]);
            labels.push(concept);
        }
        let encoder = match absorbed {
            true => vec![1., -1., 0., 0., 1., 0., 0., 0., 1.],
            false => vec![1., 0., 0., 0., 1., 0., 0., 0., 1.],
        };
        let decoder = match absorbed {
            true => vec![1., 0., 0., 1., 1., 0., 0., 0., 1.],
            false => vec![1., 0., 0., 0., 1., 0., 0., 0., 1.],
        };
        let weights = Weights {
            encoder: Matrix::new(3, 3, encoder).unwrap(),
            encoder_bias: vec![-0.1, -0.1, 0.],
            decoder: Matrix::new(3, 3, decoder).unwrap(),
            decoder_bias: vec![0.; 3],
            ..Weights::default()
        };
        (Dictionary::new(Config::default(), weights).unwrap(), Matrix::new(400, 3, values).unwrap(), labels)
    }

    #[test]
    fn what_a_special_latent_took_over_is_found() {
        let (dictionary, x, labels) = example(false);
        let none = absorption(&dictionary, &x, &labels, 1).unwrap();
        assert_eq!((none.main.as_slice(), none.absorbed), (&[0][..], 0.), "{none:?}");
        let (dictionary, x, labels) = example(true);
        let some = absorption(&dictionary, &x, &labels, 1).unwrap();
        // Two latents stand for the concept together; with one of them as the only main latent the other is seen to absorb.
        assert!(some.main.contains(&0), "{some:?}");
        let probed = sparse_probing(&dictionary, &x, &labels, &[1, 2], 1).unwrap();
        assert!(probed[0].accuracy < 0.9 && probed[1].accuracy > 0.95, "{probed:?}");
        assert!(probed[0].dense_accuracy > 0.95);
    }

    #[test]
    fn one_class_cannot_be_told_apart() {
        let (dictionary, x, _) = example(false);
        assert!(absorption(&dictionary, &x, &vec![true; 400], 1).is_err());
        assert!(sparse_probing(&dictionary, &x, &[true], &[1], 1).is_err());
    }
}
