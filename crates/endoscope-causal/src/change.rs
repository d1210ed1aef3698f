//! The change that a sweep moves over its grid.

use std::str::FromStr;

use candle_core::{D, Tensor};
use endoscope_net::{Array, AxisName, Captured, Change, Site, Value};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a sweep does at each point.
///
/// As JSON: `"patch"`, `{"interpolate": {"mask": M}}` and `"mean"` take their values from the runs of the pair; anything
/// else is a [`Change`] of a plan (`"zero"`, `{"scale": {"factor": 2}}` …). Where the sweep goes over directions, the words
/// `"set"`, `"add"`, `"project_onto"` and `"project_out"` are enough.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(into = "serde_json::Value", try_from = "serde_json::Value")]
pub enum SweepChange {
    /// The donor run's activation.
    #[default]
    Patch,
    /// `x + mask * (donor - x)`, of the whole vector or along orthonormal directions.
    Interpolate {
        /// 0 keeps `x`, 1 takes the donor's activation.
        mask: Value,
        /// `[direction, dim]`, as in [`Change::Interpolate`].
        along: Option<Value>,
    },
    /// The mean of the recipient run over its positions.
    Mean,
    /// A change that needs no other run.
    Change(Change),
}

/// The form with keys of the changes that read the donor run.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum FromDonor {
    Interpolate {
        mask: Value,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        along: Option<Value>,
    },
}

/// The words that are no [`Change`] by themselves.
fn word(word: &str) -> Option<SweepChange> {
    let unit = || Value::Number(1.);
    Some(match word {
        "patch" => SweepChange::Patch,
        "mean" => SweepChange::Mean,
        "set" => SweepChange::Change(Change::Set { value: unit() }),
        "add" => SweepChange::Change(Change::Add { value: unit(), scale: 1. }),
        "project_onto" => SweepChange::Change(Change::ProjectOnto { directions: unit() }),
        "project_out" => SweepChange::Change(Change::ProjectOut { directions: unit() }),
        _ => return None,
    })
}

impl TryFrom<serde_json::Value> for SweepChange {
    type Error = serde_json::Error;

    fn try_from(json: serde_json::Value) -> std::result::Result<Self, serde_json::Error> {
        if let Some(change) = json.as_str().and_then(word) {
            return Ok(change);
        }
        let own_source = |inner: &serde_json::Value| inner.get("source").is_some();
        if json.get("interpolate").is_some_and(|inner| !own_source(inner)) {
            let FromDonor::Interpolate { mask, along } = serde_json::from_value(json)?;
            return Ok(Self::Interpolate { mask, along });
        }
        serde_json::from_value(json).map(Self::Change)
    }
}

impl From<SweepChange> for serde_json::Value {
    fn from(change: SweepChange) -> Self {
        let json = match change {
            SweepChange::Patch => return "patch".into(),
            SweepChange::Mean => return "mean".into(),
            SweepChange::Interpolate { mask, along } => serde_json::to_value(FromDonor::Interpolate { mask, along }),
            SweepChange::Change(change) => serde_json::to_value(change),
        };
        // Numbers and lists of numbers: nothing in a change can fail to be written.
        json.unwrap_or_default()
    }
}

impl FromStr for SweepChange {
    type Err = Error;

    /// A word, or JSON.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let json: serde_json::Result<serde_json::Value> = match text.starts_with(['{', '"']) {
            true => serde_json::from_str(text),
            false => Ok(text.into()),
        };
        json.and_then(Self::try_from).map_err(|error| {
            Error::Sweep(format!(
                "`{text}` is no change: {error}; write patch, zero, mean, knock_out, or JSON such as \
                 {{\"scale\": {{\"factor\": 2}}}}"
            ))
        })
    }
}

impl SweepChange {
    /// Whether its values come from the donor run.
    pub(crate) fn reads_donor(&self) -> bool {
        matches!(self, Self::Patch | Self::Interpolate { .. })
    }

    /// The change of one point at a site, whose values come from `sources` (donor run, or means).
    pub(crate) fn at(&self, site: &str, sources: &Captured, row: Option<&Tensor>) -> Result<Change> {
        let source = || Ok::<Value, Error>(sources.get(site)?.clone().into());
        let change = match self {
            Self::Patch | Self::Mean => Change::Patch { source: source()? },
            Self::Interpolate { mask, along } => {
                Change::Interpolate { source: source()?, mask: mask.clone(), along: along.clone() }
            }
            Self::Change(change) => change.clone(),
        };
        let Some(row) = row else { return Ok(change) };
        let times = |value: &Value| match value {
            Value::Number(number) => Ok::<Value, Error>((row * *number)?.into()),
            Value::Array(_) | Value::File(_) => Err(Error::Sweep(
                "along directions the change's own value must be a number, which the direction is multiplied by".into(),
            )),
        };
        Ok(match change {
            Change::Set { value } => Change::Set { value: times(&value)? },
            Change::Add { value, scale } => Change::Add { value: times(&value)?, scale },
            Change::ProjectOnto { .. } => Change::ProjectOnto { directions: row.clone().into() },
            Change::ProjectOut { .. } => Change::ProjectOut { directions: row.clone().into() },
            _ => {
                return Err(Error::Sweep(
                    "the axis direction needs a change that takes a vector: set, add, project_onto or project_out"
                        .into(),
                ));
            }
        })
    }
}

/// The mean of a captured site over its positions, in the shape of the whole site.
pub(crate) fn mean_over_positions(site: &Site, activation: &Tensor) -> Result<Tensor> {
    let Some(dimension) = site.axis(AxisName::Position) else {
        return Err(Error::Sweep(format!(
            "`{}` has no mean over positions; its axes are {}",
            site.name,
            site.axes_text()
        )));
    };
    Ok(activation.mean_keepdim(dimension)?.broadcast_as(activation.shape())?.contiguous()?)
}

/// The rows of a matrix of directions.
#[derive(Debug, Clone)]
pub(crate) struct Directions {
    rows: Vec<Tensor>,
    /// For each row the first row that equals it bit for bit.
    first_equal: Vec<usize>,
}

impl Directions {
    pub fn new(value: &Value) -> Result<Self> {
        let fail = |found: String| Error::Sweep(format!("directions are an array [direction, dim], not {found}"));
        let tensor = match value {
            Value::Array(Array(tensor)) => tensor,
            Value::Number(number) => return Err(fail(format!("the number {number}"))),
            Value::File(file) => return Err(endoscope_net::Error::NotLoaded(file.file.clone()).into()),
        };
        let matrix = match tensor.rank() {
            1 => tensor.unsqueeze(0)?,
            2 if tensor.elem_count() > 0 => tensor.clone(),
            _ => return Err(fail(format!("one of shape {:?}", tensor.dims()))),
        };
        let mut seen = std::collections::HashMap::new();
        let mut first_equal = Vec::new();
        for (number, row) in matrix.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?.into_iter().enumerate() {
            let bits: Vec<u32> = row.into_iter().map(f32::to_bits).collect();
            first_equal.push(*seen.entry(bits).or_insert(number));
        }
        let rows = (0..matrix.dim(0)?).map(|row| matrix.get(row)).collect::<candle_core::Result<_>>()?;
        Ok(Self { rows, first_equal })
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn dim(&self) -> usize {
        self.rows.first().and_then(|row| row.dim(D::Minus1).ok()).unwrap_or(0)
    }

    pub fn row(&self, number: usize) -> Option<&Tensor> {
        self.rows.get(number)
    }

    pub fn first_equal(&self, number: usize) -> usize {
        self.first_equal.get(number).copied().unwrap_or(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_json_are_read_and_survive_json() {
        for (text, json) in [
            ("patch", r#""patch""#),
            (" mean ", r#""mean""#),
            ("zero", r#""zero""#),
            ("knock_out", r#""knock_out""#),
            (r#"{"interpolate": {"mask": 0.5}}"#, r#"{"interpolate":{"mask":0.5}}"#),
            (
                r#"{"interpolate": {"mask": 1, "along": {"shape": [1, 2], "data": [0, 1]}}}"#,
                r#"{"interpolate":{"mask":1.0,"along":{"shape":[1,2],"data":[0.0,1.0]}}}"#,
            ),
            (r#"{"scale": {"factor": 2}}"#, r#"{"scale":{"factor":2.0}}"#),
            ("add", r#"{"add":{"scale":1.0,"value":1.0}}"#),
            ("project_out", r#"{"project_out":{"directions":1.0}}"#),
            (r#"{"mean": {"over": ["head"]}}"#, r#"{"mean":{"over":["head"]}}"#),
        ] {
            let change: SweepChange = text.parse().unwrap();
            assert_eq!(
                serde_json::to_value(&change).unwrap(),
                serde_json::from_str::<serde_json::Value>(json).unwrap()
            );
            assert_eq!(serde_json::from_str::<SweepChange>(json).unwrap(), change);
        }
    }

    #[test]
    fn what_is_no_change_is_said() {
        for (text, part) in [
            ("", "write patch, zero"),
            ("zeroed", "unknown variant `zeroed`"),
            ("{", "EOF"),
            (r#"{"scale": {"by": 2}}"#, "unknown field `by`"),
            (r#"{"interpolate": {"masks": 2}}"#, "unknown field `masks`"),
            (r#"{"interpolate": 3}"#, "interpolate"),
        ] {
            let error = text.parse::<SweepChange>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
