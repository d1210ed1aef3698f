//! What single latents know of a label (Gurnee et al. 2023, arXiv 2305.01610; as an evaluation of dictionaries Gao et al. 2024).

use candle_core::{Device, Tensor};
use endoscope_causal::probe::{Examples, Features, Fitted, Intercept, Labels, Probe, ProbeKind};
use endoscope_kernels::sparse::SparseRows;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::matrix::Matrix;

/// How well a few latents tell two classes apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SparseProbe {
    /// How many latents.
    pub k: usize,
    /// Which: those whose mean activation differs most between the classes, on the rows that are fitted on.
    pub latents: Vec<usize>,
    /// The accuracy of a logistic probe on them, on rows that it was not fitted on.
    pub accuracy: f64,
    /// That of a probe on the activations themselves.
    pub dense_accuracy: f64,
    /// The share of the more frequent class.
    pub majority: f64,
}

/// One row in this many is scored and not fitted on.
const HELD_OUT: usize = 4;

/// Rows to fit on, and rows to score on.
pub(super) struct Halves {
    pub fitted: Vec<usize>,
    pub scored: Vec<usize>,
}

impl Halves {
    pub fn new(labels: &[bool], seed: u64) -> Result<Self> {
        let mut rows: Vec<usize> = (0..labels.len()).collect();
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let (scored, fitted) = rows.split_at(rows.len() / HELD_OUT);
        let both = |rows: &[usize]| rows.iter().any(|&row| labels[row]) && rows.iter().any(|&row| !labels[row]);
        match both(scored) && both(fitted) {
            true => Ok(Self { fitted: fitted.to_vec(), scored: scored.to_vec() }),
            false => Err(Error::Measure(
                "both classes must be among the rows that are fitted on and those that are scored".into(),
            )),
        }
    }
}

/// Latents by how much their mean activation differs between the classes on `rows`, the most first.
pub(super) fn by_difference(latents: &SparseRows, labels: &[bool], rows: &[usize]) -> Vec<usize> {
    let mut difference = vec![0f64; latents.width()];
    let of = |class: bool| rows.iter().filter(|&&row| labels[row] == class).count().max(1) as f64;
    let (yes, no) = (1. / of(true), -1. / of(false));
    for &row in rows {
        let (columns, values) = latents.row(row);
        let weight = if labels[row] { yes } else { no };
        columns.iter().zip(values).for_each(|(&at, &value)| difference[at as usize] += weight * f64::from(value));
    }
    let mut order: Vec<usize> = (0..difference.len()).collect();
    order.sort_by(|&a, &b| difference[b].abs().total_cmp(&difference[a].abs()).then(a.cmp(&b)));
    order
}

/// A logistic probe on `features`, `[rows, n]`.
pub(super) fn fit(features: &Matrix, labels: &[bool]) -> Result<Fitted> {
    let probe =
        Probe { kind: ProbeKind::Logistic { l2: 1. }, features: Features::Standardised, intercept: Intercept::Fitted };
    let rows = features.rows();
    let tensor = Tensor::from_slice(features.values(), (rows, features.columns()), &Device::Cpu)?;
    let names = vec!["no".to_string(), "yes".to_string()];
    let classes = Labels::Classes { names, of: labels.iter().map(|&yes| usize::from(yes)).collect() };
    let measure = |error: endoscope_causal::Error| Error::Measure(error.to_string());
    let examples = Examples::new(&tensor, classes, (0..rows).collect()).map_err(measure)?;
    probe.fit(&examples).map_err(measure)
}

/// Whether the probe says yes.
pub(super) fn says(probe: &Fitted, features: &[f32]) -> bool {
    let score: f64 = probe.directions[0].iter().zip(features).map(|(w, &x)| w * f64::from(x)).sum();
    score + probe.biases[0] > 0.
}

pub(super) fn accuracy(features: &Matrix, labels: &[bool], halves: &Halves) -> Result<(f64, Fitted)> {
    let own: Vec<bool> = halves.fitted.iter().map(|&row| labels[row]).collect();
    let probe = fit(&features.select(halves.fitted.iter().copied()), &own)?;
    let right = halves.scored.iter().filter(|&&row| says(&probe, features.row(row)) == labels[row]).count();
    Ok((right as f64 / halves.scored.len() as f64, probe))
}

/// The activations of some latents, `[rows, latents]`.
pub(super) fn columns(latents: &SparseRows, wanted: &[usize]) -> Matrix {
    let mut features = Matrix::zeros(latents.rows(), wanted.len());
    for row in 0..latents.rows() {
        let (columns, values) = latents.row(row);
        for (feature, &latent) in features.row_mut(row).iter_mut().zip(wanted) {
            *feature = columns.binary_search(&(latent as u32)).map_or(0., |at| values[at]);
        }
    }
    features
}

/// How well the `k` most telling latents tell two classes apart, for each of `ks`, and how well the activations do.
pub fn sparse_probing(
    dictionary: &Dictionary,
    activations: &Matrix,
    labels: &[bool],
    ks: &[usize],
    seed: u64,
) -> Result<Vec<SparseProbe>> {
    if labels.len() != activations.rows() {
        let reason = format!("{} labels are not those of {} vectors", labels.len(), activations.rows());
        return Err(Error::Measure(reason));
    }
    let halves = Halves::new(labels, seed)?;
    let latents = dictionary.encode(activations)?.latents;
    let order = by_difference(&latents, labels, &halves.fitted);
    let (dense_accuracy, _) = accuracy(activations, labels, &halves)?;
    let yes = halves.scored.iter().filter(|&&row| labels[row]).count() as f64 / halves.scored.len() as f64;
    ks.iter()
        .map(|&k| {
            let chosen = order[..k.min(order.len())].to_vec();
            let (accuracy, _) = accuracy(&columns(&latents, &chosen), labels, &halves)?;
            Ok(SparseProbe { k, latents: chosen, accuracy, dense_accuracy, majority: yes.max(1. - yes) })
        })
        .collect()
}
