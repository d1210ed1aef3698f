//! Labelled prompts: one JSON object a line.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use endoscope_causal::Encode;
use endoscope_causal::probe::{Labels, ProbeRow};
use endoscope_models::{Model, NamedPositions, PromptTokens};
use endoscope_report::HashedFile;
use serde::Deserialize;
use serde_json::Value;

use crate::input::{BosArguments, ModelEncoder};

/// A data set as tokens.
pub struct Data {
    pub rows: Vec<ProbeRow>,
    pub labels: Labels,
    pub notes: Vec<String>,
    pub file: HashedFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: Option<String>,
    tokens: Option<Vec<u32>>,
    label: Value,
    group: Option<Value>,
}

/// What labels are read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Classes,
    Numbers,
}

impl Data {
    pub fn read(
        model: &Model,
        path: &Path,
        positions: &NamedPositions,
        wanted: Wanted,
        bos: BosArguments,
    ) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the data {}", path.display()))?;
        let file = HashedFile::of("data", path, text.as_bytes());
        let encoder = ModelEncoder::new(model, bos.bos());
        let (mut rows, mut labels, mut groups) = (Vec::new(), Vec::new(), HashMap::new());
        for (number, line) in text.trim_start_matches('\u{FEFF}').lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let place = || format!("{}, line {}", path.display(), number + 1);
            let line: Line = serde_json::from_str(line).with_context(place)?;
            let tokens = match (line.text, line.tokens) {
                (Some(text), None) => encoder.prompt(&text).map_err(anyhow::Error::msg).with_context(place)?,
                (None, Some(tokens)) if !tokens.is_empty() => tokens,
                (None, Some(_)) => bail!("{}: `tokens` is empty", place()),
                _ => bail!("{}: it needs either `text` or `tokens`", place()),
            };
            let shown: Vec<String> = tokens.iter().map(|&id| model.label(id)).collect();
            let prompt = PromptTokens { labels: &shown, messages: &[] };
            let positions = positions.resolve(&prompt).with_context(place)?;
            // Equal prompts must not stand on both sides of a split, whatever else is known of them.
            let key = line.group.map_or_else(|| format!("{tokens:?}"), |group| format!("group {group}"));
            let next = groups.len();
            let group = *groups.entry(key).or_insert(next);
            rows.push(ProbeRow { tokens, positions, group });
            labels.push(line.label);
        }
        if rows.is_empty() {
            bail!("{} holds no rows", path.display());
        }
        let labels = match wanted {
            Wanted::Classes => classes(&labels)?,
            Wanted::Numbers => numbers(&labels)?,
        };
        Ok(Self { rows, labels, notes: encoder.note().into_iter().collect(), file })
    }
}

/// The classes in order: numbers by their size, anything else by its text.
fn classes(labels: &[Value]) -> Result<Labels> {
    let name = |label: &Value| match label {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(label.to_string()),
        _ => bail!("the label {label} is neither a text, nor a number, nor true or false"),
    };
    let written = labels.iter().map(name).collect::<Result<Vec<String>>>()?;
    let mut names = written.clone();
    let size = |name: &String| name.parse::<f64>().ok().filter(|size| size.is_finite());
    match written.iter().all(|name| size(name).is_some()) {
        true => names.sort_by(|a, b| size(a).partial_cmp(&size(b)).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(b))),
        false => names.sort(),
    }
    names.dedup();
    if names.len() < 2 {
        bail!("every label is {}; a probe needs two kinds", names[0]);
    }
    let of = written.iter().map(|label| names.iter().position(|name| name == label).unwrap_or(0)).collect();
    Ok(Labels::Classes { names, of })
}

fn numbers(labels: &[Value]) -> Result<Labels> {
    let number =
        |label: &Value| label.as_f64().with_context(|| format!("the label {label} is no number, as ridge needs"));
    Ok(Labels::Numbers(labels.iter().map(number).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_are_put_in_order() {
        let check = |labels: &[Value], expected: &[&str], of: &[usize]| {
            let Labels::Classes { names, of: found } = classes(labels).unwrap() else { panic!("classes") };
            assert_eq!((names, found.as_slice()), (expected.iter().map(ToString::to_string).collect(), of));
        };
        check(&[json!(10), json!(9), json!(10)], &["9", "10"], &[1, 0, 1]);
        check(&[json!(true), json!(false)], &["false", "true"], &[1, 0]);
        check(&[json!("b"), json!("a"), json!("10")], &["10", "a", "b"], &[2, 1, 0]);
        assert!(classes(&[json!("a"), json!("a")]).unwrap_err().to_string().contains("two kinds"));
        assert!(classes(&[json!("a"), json!([1])]).is_err());
        assert!(numbers(&[json!(1.5), json!("2")]).unwrap_err().to_string().contains("is no number"));
    }
}
