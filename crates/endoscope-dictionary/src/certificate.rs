//! Whether a dictionary belongs to a network: it is run on real activations, and where it explains them badly, or something
//! near explains them much better, that is said.
//!
//! A file can be whole and still be wrong: made for another site, with its inputs normalised in another way, with a matrix
//! that lies the other way round, with a decoder bias that is missing or wrongly subtracted. All of these run without an error. Each is
//! tried here in turn on the same activations, alone; what leaves less than half of the variance unexplained that the dictionary
//! as it is leaves, is a cause.

use std::collections::BTreeMap;

use endoscope_net::{AxisName, Capture, Inputs, Network, Plan};
use serde::Serialize;

use crate::config::{Config, Normalization};
use crate::dictionary::{Dictionary, Weights};
use crate::error::{Error, Result};
use crate::evaluate::splice::{batches, capturing, vectors_at};
use crate::evaluate::{Fit, FitSums, activations};
use crate::matrix::Matrix;
use crate::steering::site_width;

/// On how many vectors alternatives are tried.
const SAMPLE: usize = 512;
/// What share of the unexplained variance a better alternative may leave.
const BETTER: f64 = 0.5;
/// How many causes are named.
const MOST_CAUSES: usize = 8;
/// Below this nothing is looked for: what is left is rounding, or no matter.
const GOOD: f64 = 0.01;

/// What figures pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Allowed {
    /// The largest fraction of variance unexplained.
    pub fvu: f64,
    /// The fewest and most active latents a vector; by default half a latent, and one for each dimension read.
    pub l0: Option<(f64, f64)>,
    /// The first position of a row that counts.
    pub from_position: usize,
}

impl Default for Allowed {
    fn default() -> Self {
        Self { fvu: 0.5, l0: None, from_position: 0 }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Certificate {
    /// Whether nothing is wrong.
    pub passed: bool,
    /// The sites it reads.
    pub sites: Vec<String>,
    /// The site it writes, where that is another.
    pub output_site: Option<String>,
    /// What it makes of the activations; none if it does not fit its sites.
    pub fit: Option<Fit>,
    /// The mean length of the vectors that it reads.
    pub input_length: Option<f64>,
    /// What is out of range.
    pub failures: Vec<String>,
    /// What explains the activations much better, the best first.
    pub causes: Vec<Cause>,
    /// What was allowed.
    pub allowed: Allowed,
}

/// A change under which a dictionary explains much more.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cause {
    /// What was changed.
    pub kind: CauseKind,
    /// In a sentence.
    pub says: String,
    /// The fraction of variance unexplained with it.
    pub fvu: f64,
    /// Active latents a vector with it.
    pub l0: f64,
}

/// The changes that are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// Another site of the same width is read, or written.
    Site,
    /// Inputs are normalised in another way, or scaled.
    Normalization,
    /// A matrix lies the other way round in its file.
    Transposed,
    /// The decoder's bias is subtracted from inputs, or not; or it is missing.
    DecoderBias,
}

/// Vectors that are read, and those that should be written where they are others.
type Pairs = (Matrix, Option<Matrix>);

/// Runs `rows` of tokens and measures what `dictionary` makes of its sites there.
pub fn certify(
    network: &dyn Network,
    dictionary: &Dictionary,
    rows: &[Vec<u32>],
    allowed: Allowed,
) -> Result<Certificate> {
    let config = dictionary.config();
    if config.sites.is_empty() || config.output_site.as_deref() == Some("") {
        return Err(Error::Config("its files do not say which site it reads or writes: name it".into()));
    }
    let mut found = Certificate {
        passed: false,
        sites: config.sites.clone(),
        output_site: config.output_site.clone(),
        fit: None,
        input_length: None,
        failures: misfits(network, dictionary)?,
        causes: Vec::new(),
        allowed,
    };
    let others = other_sites(network, dictionary, rows, allowed.from_position)?;
    if found.failures.is_empty() {
        let (fit, length, sample) = measure(network, dictionary, rows, allowed.from_position)?;
        found.failures = out_of_range(dictionary, &fit, allowed);
        found.causes = causes(dictionary, &sample, &others)?;
        (found.fit, found.input_length) = (Some(fit), Some(length));
    } else if let [_] = config.sites.as_slice() {
        found.causes = elsewhere(dictionary, None, &others, f64::INFINITY)?;
        found.causes.retain(|cause| cause.fvu <= allowed.fvu);
    }
    found.causes.sort_by(|a, b| a.fvu.total_cmp(&b.fvu));
    // What is far behind the best is not the cause.
    let best = found.causes.first().map_or(0., |cause| cause.fvu);
    found.causes.retain(|cause| cause.fvu * BETTER <= best);
    found.causes.truncate(MOST_CAUSES);
    found.passed = found.failures.is_empty() && found.causes.is_empty();
    Ok(found)
}

/// Sites that are not as wide as the dictionary has it.
fn misfits(network: &dyn Network, dictionary: &Dictionary) -> Result<Vec<String>> {
    let config = dictionary.config();
    let parts = config.sites.len();
    let mut wanted: Vec<(&str, usize, &str)> =
        config.sites.iter().map(|site| (site.as_str(), dictionary.d_in() / parts, "reads")).collect();
    wanted.extend(config.output_site.as_deref().map(|site| (site, dictionary.d_out(), "writes")));
    let mut misfits = Vec::new();
    for (name, width, does) in wanted {
        let site = network.sites().get(network.sites().resolve_one(name)?);
        let own = site_width(site);
        if own != width {
            misfits.push(format!("{} has {own} dimensions, and the dictionary {does} {width}", site.name));
        }
    }
    Ok(misfits)
}

/// All figures, the mean length of inputs, and the first vectors.
fn measure(
    network: &dyn Network,
    dictionary: &Dictionary,
    rows: &[Vec<u32>],
    from: usize,
) -> Result<(Fit, f64, Pairs)> {
    let (mut sums, mut length, mut count) = (FitSums::default(), 0., 0);
    let mut kept: Vec<Pairs> = Vec::new();
    for rows in batches(rows) {
        let run = network.run(&Inputs::tokens(rows.to_vec())?, &capturing(dictionary))?;
        let (input, target) = activations(network, dictionary, &run)?;
        let (input, target) = (later(&input, rows, from), target.map(|target| later(&target, rows, from)));
        sums.add(dictionary, &input, target.as_ref())?;
        length += input.norms().iter().map(|&norm| f64::from(norm)).sum::<f64>();
        if count < SAMPLE {
            kept.push((first(&input, SAMPLE - count), target.map(|target| first(&target, SAMPLE - count))));
        }
        count += input.rows();
    }
    let inputs = joined(kept.iter().map(|(input, _)| input))?;
    let targets = kept.iter().map(|(_, target)| target.as_ref()).collect::<Option<Vec<_>>>();
    let targets = targets.map(|targets| joined(targets.into_iter())).transpose()?;
    Ok((sums.finish()?, length / count.max(1) as f64, (inputs, targets)))
}

/// The vectors of positions from `from` on, of rows of equal length.
fn later(vectors: &Matrix, rows: &[Vec<u32>], from: usize) -> Matrix {
    let length = rows.first().map_or(1, Vec::len).max(1);
    if from == 0 { vectors.clone() } else { vectors.select((0..vectors.rows()).filter(|at| at % length >= from)) }
}

fn first(matrix: &Matrix, rows: usize) -> Matrix {
    matrix.select(0..rows.min(matrix.rows()))
}

/// Matrices of one width, one under the other.
fn joined<'a>(parts: impl Iterator<Item = &'a Matrix>) -> Result<Matrix> {
    let (mut rows, mut columns, mut values) = (0, 0, Vec::new());
    for part in parts {
        rows += part.rows();
        columns = part.columns();
        values.extend_from_slice(part.values());
    }
    Matrix::new(rows, columns, values)
}

/// What of the figures is not allowed.
fn out_of_range(dictionary: &Dictionary, fit: &Fit, allowed: Allowed) -> Vec<String> {
    let mut failures = Vec::new();
    if fit.fvu.is_nan() || fit.fvu > allowed.fvu {
        failures.push(format!("it leaves {:.3} of the variance unexplained; {} is allowed", fit.fvu, allowed.fvu));
    }
    let (least, most) = allowed.l0.unwrap_or((0.5, dictionary.d_in() as f64));
    if !(least..=most).contains(&fit.l0) {
        failures.push(format!("it has {:.1} active latents a vector; {least} to {most} are allowed", fit.l0));
    }
    failures
}

/// The first vectors of every site that is as wide as what the dictionary reads or writes.
fn other_sites(
    network: &dyn Network,
    dictionary: &Dictionary,
    rows: &[Vec<u32>],
    from: usize,
) -> Result<BTreeMap<String, Matrix>> {
    if dictionary.config().sites.len() > 1 {
        return Ok(BTreeMap::new());
    }
    let widths = [dictionary.d_in(), dictionary.d_out()];
    let by_position =
        |site: &&endoscope_net::Site| site.axis(AxisName::Position).is_some() && site.axis(AxisName::Query).is_none();
    let candidates = network.sites().iter().filter(by_position).filter(|site| widths.contains(&site_width(site)));
    let names: Vec<&str> = candidates.map(|site| site.name.as_str()).collect();
    let plan = names.iter().fold(Plan::default(), |plan, name| plan.capture(Capture::new(*name)));
    let mut kept: BTreeMap<String, Vec<Matrix>> = BTreeMap::new();
    let mut count = 0;
    for rows in batches(rows) {
        if count >= SAMPLE {
            break;
        }
        let run = network.run(&Inputs::tokens(rows.to_vec())?, &plan)?;
        for name in &names {
            let vectors = later(&Matrix::from_tensor(&vectors_at(network, &run, name)?)?, rows, from);
            kept.entry(name.to_string()).or_default().push(first(&vectors, SAMPLE - count));
        }
        count += rows.iter().map(|row| row.len().saturating_sub(from)).sum::<usize>();
    }
    kept.into_iter().map(|(name, parts)| Ok((name, joined(parts.iter())?))).collect()
}

fn fit(dictionary: &Dictionary, input: &Matrix, target: Option<&Matrix>) -> Result<Fit> {
    let mut sums = FitSums::default();
    sums.add(dictionary, input, target)?;
    sums.finish()
}

/// Everything that is tried where the dictionary fits its sites.
fn causes(dictionary: &Dictionary, sample: &Pairs, others: &BTreeMap<String, Matrix>) -> Result<Vec<Cause>> {
    let (input, target) = (&sample.0, sample.1.as_ref());
    let Ok(own) = fit(dictionary, input, target) else { return Ok(Vec::new()) };
    if own.fvu <= GOOD {
        return Ok(Vec::new());
    }
    let most = if own.fvu.is_finite() { own.fvu * BETTER } else { f64::INFINITY };
    let mut causes = elsewhere(dictionary, Some(sample), others, most)?;
    for (kind, says, config, weights) in changed(dictionary, input, target)? {
        let Ok(changed) = Dictionary::new(config, weights) else { continue };
        causes.extend(cause(kind, says, fit(&changed, input, target), most));
    }
    Ok(causes)
}

/// A cause, if it leaves less than `most`.
fn cause(kind: CauseKind, says: String, fit: Result<Fit>, most: f64) -> Option<Cause> {
    // What cannot be measured (a site that does not vary) is no better.
    let fit = fit.ok().filter(|fit| fit.fvu < most && fit.l0 > 0.)?;
    Some(Cause { kind, says, fvu: fit.fvu, l0: fit.l0 })
}

/// Other sites, one at a time.
fn elsewhere(
    dictionary: &Dictionary,
    sample: Option<&Pairs>,
    others: &BTreeMap<String, Matrix>,
    most: f64,
) -> Result<Vec<Cause>> {
    let mut causes = Vec::new();
    let transcoder = dictionary.config().output_site.is_some();
    for (name, vectors) in others {
        let says = |does: &str| format!("it belongs to another site: {does} {name}");
        let (reads, writes) = (vectors.columns() == dictionary.d_in(), vectors.columns() == dictionary.d_out());
        match sample {
            _ if !transcoder => {
                let fit = if reads { fit(dictionary, vectors, None) } else { continue };
                causes.extend(cause(CauseKind::Site, says("it reads"), fit, most));
            }
            Some((input, Some(target))) => {
                if reads {
                    let fit = fit(dictionary, vectors, Some(target));
                    causes.extend(cause(CauseKind::Site, says("it reads"), fit, most));
                }
                if writes {
                    let fit = fit(dictionary, input, Some(vectors));
                    causes.extend(cause(CauseKind::Site, says("it writes"), fit, most));
                }
            }
            _ => {}
        }
    }
    Ok(causes)
}

type Change = (CauseKind, String, Config, Weights);

/// The dictionary with one thing different.
fn changed(dictionary: &Dictionary, input: &Matrix, target: Option<&Matrix>) -> Result<Vec<Change>> {
    let (config, weights) = (dictionary.config(), dictionary.weights());
    let mut changes: Vec<Change> = Vec::new();
    for normalization in [Normalization::None, Normalization::ConstantNormRescale, Normalization::LayerNorm] {
        if normalization != config.normalization {
            let says = format!("its inputs should be normalised as `{}` says", normalization.name());
            let config = Config { normalization, ..config.clone() };
            changes.push((CauseKind::Normalization, says, config, weights.clone()));
        }
    }
    let length = input.norms().iter().map(|&norm| f64::from(norm)).sum::<f64>() / input.rows().max(1) as f64;
    let factor = ((input.columns() as f64).sqrt() / length) as f32;
    if target.is_none() && factor.is_finite() && factor > 0. {
        let mut scaled = weights.clone();
        scaled.fold_input_scale(factor);
        let says =
            format!("it was trained on inputs of mean length √d, {factor} times these, and that factor is missing");
        changes.push((CauseKind::Normalization, says, config.clone(), scaled));
    }
    let mut other = |name: &str, weights: Weights| {
        let says = format!("its {name} lies the other way round in the file");
        changes.push((CauseKind::Transposed, says, config.clone(), weights));
    };
    // Formats store either matrix in either way. Of a square matrix both mistakes are the same.
    let (encoders, decoders) = (turned(&weights.encoder)?, turned(&weights.decoder)?);
    for encoder in &encoders {
        other("encoder (W_enc)", Weights { encoder: encoder.clone(), ..weights.clone() });
    }
    for decoder in &decoders {
        other("decoder (W_dec)", Weights { decoder: decoder.clone(), ..weights.clone() });
    }
    for (encoder, decoder) in encoders.iter().zip(decoders.iter().rev()) {
        let both = Weights { encoder: encoder.clone(), decoder: decoder.clone(), ..weights.clone() };
        other("encoder and decoder (W_enc, W_dec)", both);
    }
    if let Some(skip) = weights.skip.as_ref().filter(|skip| skip.rows() == skip.columns()) {
        other("skip connection (W_skip)", Weights { skip: Some(skip.transposed()), ..weights.clone() });
    }
    let square = weights.decoder.columns() == weights.encoder.columns();
    let flipped = Config { apply_b_dec_to_input: !config.apply_b_dec_to_input, ..config.clone() };
    if square {
        let says = format!("`apply_b_dec_to_input` should be {}", flipped.apply_b_dec_to_input);
        changes.push((CauseKind::DecoderBias, says, flipped.clone(), weights.clone()));
    }
    if weights.decoder_bias.iter().all(|&bias| bias == 0.) && config.normalization == Normalization::None {
        let filled = Weights { decoder_bias: target.unwrap_or(input).mean(), ..weights.clone() };
        for config in [config.clone(), flipped].into_iter().take(if square { 2 } else { 1 }) {
            let says = "its decoder's bias (b_dec) is missing: with the mean vector in its place it explains more";
            changes.push((CauseKind::DecoderBias, says.into(), config, filled.clone()));
        }
    }
    Ok(changes)
}

/// What a matrix was meant to be if its file holds it under the shape of its transpose: read row after row, or (where a format
/// stores the transpose) column after column.
fn turned(matrix: &Matrix) -> Result<Vec<Matrix>> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let by_rows = Matrix::new(rows, columns, matrix.transposed().values().to_vec())?;
    if rows == columns {
        return Ok(vec![by_rows]);
    }
    Ok(vec![by_rows, Matrix::new(columns, rows, matrix.values().to_vec())?.transposed()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_under_its_transposes_shape_is_turned_back() {
        let meant = Matrix::new(2, 3, (0..6).map(|x| x as f32).collect()).unwrap();
        // Its transpose written as [3, 2] and read as [2, 3]; itself written and read as [3, 2], and transposed.
        let read = Matrix::new(2, 3, meant.transposed().values().to_vec()).unwrap();
        assert_eq!(turned(&read).unwrap()[1], meant);
        let read = Matrix::new(3, 2, meant.values().to_vec()).unwrap().transposed();
        assert_eq!(turned(&read).unwrap()[0], meant);
        assert_eq!(turned(&Matrix::zeros(4, 4)).unwrap().len(), 1);
    }
}
