//! A battery, as data: named measures, read from a JSON file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use endoscope_causal::Sweep;
use endoscope_causal::dimension::{DimensionSites, TwoNn};
use endoscope_causal::probe::{Features, Intercept, Probe, ProbeKind, ProbeOver, Split};
use endoscope_net::Index;
use endoscope_report::HashedFile;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Measures by name, in the order of the file.
#[derive(Debug)]
pub struct Battery {
    pub measures: Vec<Named>,
    /// The file, and those that it names.
    pub files: Vec<HashedFile>,
}

#[derive(Debug)]
pub struct Named {
    pub name: String,
    pub measure: Measure,
    /// SHA-256 of the files that it names.
    files: Vec<String>,
}

/// What is measured at every step. Paths are relative to the battery's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Measure {
    /// Loss and accuracy on the recipe's task.
    Task(OnTask),
    /// Where every head looks, on random tokens that come twice.
    Heads(Heads),
    /// The scores of a patching sweep.
    Sweep(Patching),
    /// What a linear probe reads.
    Probe(Probing),
    /// How many dimensions activations fill, on rows of the recipe's task.
    Dimension(Dimensions),
    /// The lengths of weights.
    Norms(Norms),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OnTask {
    /// Fresh rows in a batch (all of one length).
    pub rows: usize,
    /// How many batches.
    pub batches: u64,
    /// Where rows come from; the recipe's own seed if absent. Rows are never those of training.
    pub seed: Option<u64>,
}

impl Default for OnTask {
    fn default() -> Self {
        Self { rows: 32, batches: 4, seed: None }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heads {
    pub rows: usize,
    /// After how many tokens they come again, as `endoscope heads --period`.
    pub period: usize,
    pub seed: u64,
    /// The places, as `endoscope heads` names them.
    pub looks: Vec<String>,
}

impl Default for Heads {
    fn default() -> Self {
        let looks = ["previous token", "induction"].map(str::to_string).to_vec();
        Self { rows: 8, period: 12, seed: 0, looks }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patching {
    pub prompts: PathBuf,
    /// As in the plan.json of `endoscope patch`.
    pub sweep: Sweep,
    /// The cells, each as its values on the axes of `sweep.over`; all if absent.
    pub cells: Option<Vec<Vec<i64>>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probing {
    /// As the DATA.jsonl of `endoscope probe`.
    pub data: PathBuf,
    #[serde(default = "resid_post")]
    pub site: String,
    #[serde(default = "layer")]
    pub over: ProbeOver,
    #[serde(default = "last")]
    pub positions: String,
    #[serde(default = "logistic")]
    pub probe: Probe,
    #[serde(default = "five_folds")]
    pub split: Split,
}

fn resid_post() -> String {
    "resid_post".into()
}

fn layer() -> ProbeOver {
    ProbeOver::Layer
}

fn last() -> String {
    "last".into()
}

fn logistic() -> Probe {
    Probe { kind: ProbeKind::Logistic { l2: 1. }, features: Features::Standardised, intercept: Intercept::Fitted }
}

fn five_folds() -> Split {
    Split::Folds { count: 5, seed: 0 }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dimensions {
    /// Rows of each split.
    pub rows: u64,
    /// The splits of the task; all if there are none.
    pub splits: Vec<String>,
    /// Where rows, and which of their positions are points, come from; the recipe's own seed if absent.
    pub seed: Option<u64>,
    /// As in the plan.json of `endoscope dimension`.
    pub site: String,
    pub positions: Index,
    pub points: usize,
    pub neighbours: Option<usize>,
    pub two_nn: TwoNn,
}

impl Default for Dimensions {
    fn default() -> Self {
        Self {
            rows: 256,
            splits: Vec::new(),
            seed: None,
            site: resid_post(),
            positions: Index::All,
            points: 1000,
            neighbours: Some(32),
            two_nn: TwoNn::default(),
        }
    }
}

impl Dimensions {
    /// What is measured on rows.
    pub fn asked(&self) -> DimensionSites {
        let Self { site, positions, points, neighbours, two_nn, .. } = self.clone();
        DimensionSites { site, positions, points, two_nn, neighbours }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Norms {
    /// Parts of the names of the weights that are wanted; all if there are none.
    pub tensors: Vec<String>,
}

impl Battery {
    /// Reads a battery and hashes the files that it names.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the battery {}", path.display()))?;
        let named: Map<String, Value> = serde_json::from_str(&text).with_context(|| {
            format!("{} is no battery: measures by name, as {{\"task\": {{\"kind\": \"task\"}}}}", path.display())
        })?;
        if named.is_empty() {
            bail!("{} holds no measure", path.display());
        }
        let base = path.parent().unwrap_or(Path::new(""));
        let mut battery = Self { measures: Vec::new(), files: vec![HashedFile::of("battery", path, text.as_bytes())] };
        for (name, measure) in named {
            let place = || format!("{}, measure `{name}`", path.display());
            check_name(&name, &battery.measures).with_context(place)?;
            let mut measure: Measure = serde_json::from_value(measure).with_context(place)?;
            measure.check().with_context(place)?;
            let mut files = Vec::new();
            match &mut measure {
                Measure::Sweep(patching) => {
                    patching.sweep = patching.sweep.clone().load(base).with_context(place)?;
                    patching.prompts = base.join(&patching.prompts);
                    files.push(HashedFile::read("prompts", &patching.prompts).with_context(place)?);
                }
                Measure::Probe(probing) => {
                    probing.data = base.join(&probing.data);
                    files.push(HashedFile::read("data", &probing.data).with_context(place)?);
                }
                Measure::Task(_) | Measure::Heads(_) | Measure::Dimension(_) | Measure::Norms(_) => {}
            }
            let hashes = files.iter().map(|file| file.sha256.clone()).collect();
            battery.files.extend(files);
            battery.measures.push(Named { name, measure, files: hashes });
        }
        Ok(battery)
    }
}

impl Named {
    /// SHA-256 of everything but the weights that the result depends on.
    pub fn hash(&self, recipe: &str) -> Result<String> {
        let mut measure = serde_json::to_value(&self.measure)?;
        // Where a file lies does not matter, what is in it does.
        for path in ["prompts", "data"] {
            measure.as_object_mut().map(|measure| measure.remove(path));
        }
        let recipe = matches!(self.measure, Measure::Task(_) | Measure::Dimension(_)).then_some(recipe);
        let all = json!([env!("CARGO_PKG_VERSION"), measure, self.files, recipe]);
        Ok(HashedFile::of("measure", "", all.to_string().as_bytes()).sha256)
    }
}

/// Names become those of tables and files.
fn check_name(name: &str, before: &[Named]) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > 40 || !name.chars().all(allowed) || name.starts_with('-') {
        bail!("a name is at most 40 letters, digits, `_` and `-`");
    }
    if ["battery", "training"].contains(&name.to_lowercase().as_str()) {
        bail!("this name is taken by what is in every report");
    }
    if before.iter().any(|other| other.name.eq_ignore_ascii_case(name)) {
        bail!("another measure has this name but for upper and lower case");
    }
    Ok(())
}

impl Measure {
    /// What makes no sense whatever the model.
    fn check(&self) -> Result<()> {
        match self {
            Self::Task(task) if task.rows == 0 || task.batches == 0 => bail!("no rows leave nothing to measure"),
            Self::Dimension(dimensions) if dimensions.rows == 0 => bail!("no rows leave nothing to measure"),
            Self::Heads(heads) if heads.rows == 0 || heads.looks.is_empty() => bail!("nothing is looked at"),
            Self::Sweep(Patching { cells: Some(cells), .. }) if cells.is_empty() => bail!("no cell is named"),
            Self::Sweep(Patching { cells: Some(cells), sweep, .. }) => {
                match cells.iter().find(|cell| cell.len() != sweep.over.len()) {
                    Some(cell) => bail!("the cell {cell:?} needs a value on each of {} axes", sweep.over.len()),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Battery> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("battery.json");
        std::fs::write(&path, text)?;
        std::fs::write(directory.path().join("pairs.json"), "[]")?;
        Battery::read(&path)
    }

    #[test]
    fn defaults_are_filled_and_mistakes_are_named() {
        let battery = read(r#"{"b": {"kind": "task"}, "a": {"kind": "norms"}}"#).unwrap();
        assert_eq!(battery.measures.iter().map(|named| named.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        for (text, what) in [
            ("{}", "no measure"),
            ("[]", "no battery"),
            (r#"{"a": {"kind": "tsak"}}"#, "unknown variant `tsak`"),
            (r#"{"a": {"kind": "task", "row": 3}}"#, "unknown field `row`"),
            (r#"{"a": {"kind": "task", "rows": 0}}"#, "measure `a`"),
            (r#"{"a": {"kind": "dimension", "rows": 0}}"#, "measure `a`"),
            (r#"{"a b": {"kind": "task"}}"#, "letters"),
            (r#"{"Battery": {"kind": "task"}}"#, "taken"),
            (r#"{"a": {"kind": "task"}, "A": {"kind": "norms"}}"#, "upper and lower"),
            (r#"{"a": {"kind": "probe", "data": "missing.jsonl"}}"#, "missing.jsonl"),
            (
                r#"{"a": {"kind": "sweep", "prompts": "pairs.json", "cells": [[1]], "sweep":
                   {"site": "z", "over": ["layer", "head"], "metric": "logit_diff", "direction": "denoise"}}}"#,
                "each of 2 axes",
            ),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn the_hash_is_of_what_the_result_depends_on() {
        let hash = |text: &str, recipe: &str| read(text).unwrap().measures[0].hash(recipe).unwrap();
        let task = hash(r#"{"a": {"kind": "task"}}"#, "one");
        assert_eq!(task, hash(r#"{"other": {"kind": "task", "rows": 32}}"#, "one"));
        assert_ne!(task, hash(r#"{"a": {"kind": "task", "rows": 31}}"#, "one"));
        assert_ne!(task, hash(r#"{"a": {"kind": "task"}}"#, "two"));
        let dimension = r#"{"a": {"kind": "dimension"}}"#;
        assert_ne!(hash(dimension, "one"), hash(dimension, "two"));
        let norms = r#"{"a": {"kind": "norms"}}"#;
        assert_eq!(hash(norms, "one"), hash(norms, "two"));
    }
}
