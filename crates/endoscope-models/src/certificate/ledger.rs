//! What is written down while checks run: for each assertion the worst figure, and where it was.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::{Assertion, Check, Verdict};
use crate::error::Result;

/// How many notes one check keeps.
const NOTES: usize = 20;

/// The figures so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The prompt that is being checked.
    pub prompt: Option<usize>,
    entries: BTreeMap<Assertion, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    comparisons: usize,
    worst: Option<Worst>,
    failed: bool,
    notes: Vec<String>,
    more: usize,
}

#[derive(Debug)]
struct Worst {
    figure: f64,
    tolerance: f64,
    site: String,
    prompt: Option<usize>,
}

impl Worst {
    /// How far it is out, or how near to being so.
    fn excess(&self) -> f64 {
        match self.tolerance > 0. {
            true => self.figure / self.tolerance,
            false => self.figure,
        }
    }
}

impl Ledger {
    /// A figure, which should be at most the assertion's tolerance.
    pub fn measure(&mut self, assertion: Assertion, site: &str, figure: f64) {
        self.measure_within(assertion, site, figure, assertion.tolerance());
    }

    /// A figure, which should be at most `tolerance`; one that is not a number is too large.
    pub fn measure_within(&mut self, assertion: Assertion, site: &str, figure: f64, tolerance: f64) {
        let figure = if figure.is_nan() { f64::INFINITY } else { figure };
        let worst = Worst { figure, tolerance, site: site.to_string(), prompt: self.prompt };
        let entry = self.entries.entry(assertion).or_default();
        entry.comparisons += 1;
        entry.failed |= figure > tolerance;
        if entry.worst.as_ref().is_none_or(|before| worst.excess() > before.excess()) {
            entry.worst = Some(worst);
        }
    }

    /// The difference between two activations over the largest value of the second.
    pub fn compare(&mut self, assertion: Assertion, site: &str, found: &Tensor, expected: &Tensor) -> Result<()> {
        if found.dims() != expected.dims() {
            let shapes = format!("{site} has shape {:?}, and {:?} is expected", found.dims(), expected.dims());
            self.fail(assertion, shapes);
            return Ok(());
        }
        let (difference, largest) = difference(found, expected)?;
        let figure = if difference == 0. { 0. } else { difference / largest };
        self.measure(assertion, site, figure);
        Ok(())
    }

    /// The assertion does not hold.
    pub fn fail(&mut self, assertion: Assertion, why: String) {
        self.note(assertion, why);
        self.entries.entry(assertion).or_default().failed = true;
    }

    /// Something else to be said.
    pub fn note(&mut self, assertion: Assertion, note: String) {
        let entry = self.entries.entry(assertion).or_default();
        match entry.notes.len() < NOTES {
            _ if entry.notes.contains(&note) => {}
            true => entry.notes.push(note),
            false => entry.more += 1,
        }
    }

    /// Every check.
    pub fn finish(mut self) -> Vec<Check> {
        Assertion::ALL.map(|assertion| self.entries.remove(&assertion).unwrap_or_default().check(assertion)).into()
    }
}

impl Entry {
    fn check(self, assertion: Assertion) -> Check {
        let Self { comparisons, worst, failed, mut notes, more } = self;
        if more > 0 {
            notes.push(format!("… and {more} more"));
        }
        let verdict = match (failed, comparisons) {
            (true, _) => Verdict::Failed,
            (false, 0) => Verdict::NotApplicable,
            (false, _) => Verdict::Passed,
        };
        if verdict == Verdict::NotApplicable && notes.is_empty() {
            notes.push("the model has nothing of this kind".into());
        }
        let tolerance = worst.as_ref().map_or(assertion.tolerance(), |worst| worst.tolerance);
        let site = worst.as_ref().map(|worst| worst.site.clone()).filter(|site| !site.is_empty());
        Check {
            name: assertion,
            asserts: assertion.says(),
            verdict,
            worst: worst.as_ref().map(|worst| worst.figure),
            tolerance,
            site,
            prompt: worst.and_then(|worst| worst.prompt),
            comparisons,
            notes,
        }
    }
}

/// The numbers of a tensor.
pub(super) fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

/// The largest difference, and the largest finite value of the second. Equal infinities differ by nothing, whatever else is
/// not finite by infinity.
pub(super) fn difference(found: &Tensor, expected: &Tensor) -> Result<(f64, f64)> {
    let (mut worst, mut largest) = (0f64, 0f64);
    for (found, expected) in numbers(found)?.into_iter().zip(numbers(expected)?) {
        if expected.is_finite() {
            largest = largest.max(expected.abs());
        }
        worst = match found - expected {
            _ if found == expected => worst,
            difference if difference.is_finite() => worst.max(difference.abs()),
            _ => f64::INFINITY,
        };
    }
    Ok((worst, largest))
}

/// How many bits patterns differ.
pub(super) fn differing(found: &Tensor, expected: &Tensor) -> Result<f64> {
    if found.dims() != expected.dims() {
        return Ok(f64::INFINITY);
    }
    let bits = |x: &Tensor| -> Result<Vec<f32>> { Ok(x.flatten_all()?.to_vec1()?) };
    let pairs = bits(found)?.into_iter().zip(bits(expected)?);
    Ok(pairs.filter(|(found, expected)| found.to_bits() != expected.to_bits()).count() as f64)
}
