//! The metadata of one architecture, taken key by key; what is left over at the end is a problem, as for config.json.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::file::Value;
use crate::error::{Error, Result};

/// Keys `ARCHITECTURE.name`, of which every one must be understood: each may change the numbers.
#[derive(Debug)]
pub struct Keys<'a> {
    metadata: &'a BTreeMap<String, Value>,
    architecture: String,
    taken: BTreeSet<String>,
    problems: Vec<String>,
}

impl<'a> Keys<'a> {
    /// The keys of `architecture`.
    pub fn new(metadata: &'a BTreeMap<String, Value>, architecture: &str) -> Self {
        Self { metadata, architecture: architecture.to_string(), taken: BTreeSet::new(), problems: Vec::new() }
    }

    /// Says that something is wrong; all problems are reported together.
    pub fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    fn take(&mut self, name: &str) -> Option<(String, &'a Value)> {
        let key = format!("{}.{name}", self.architecture);
        self.taken.insert(key.clone());
        let value = self.metadata.get(&key)?;
        Some((key, value))
    }

    fn read<T>(&mut self, name: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let (key, value) = self.take(name)?;
        let read = read(value);
        if read.is_none() {
            self.problem(format!("`{key}` is {}; {kind} is needed", shown(value)));
        }
        read
    }

    /// A count, if the key is there; a list counts as one number if all layers have the same.
    pub fn count(&mut self, name: &str) -> Option<u64> {
        self.read(name, "a count, the same for every layer,", |value| match value {
            Value::Integer(count) => u64::try_from(*count).ok(),
            Value::Integers(counts) => {
                let first = *counts.first()?;
                counts.iter().all(|&count| count == first).then_some(u64::try_from(first).ok()?)
            }
            _ => None,
        })
    }

    /// A count that must be there.
    pub fn needed(&mut self, name: &str) -> u64 {
        if !self.metadata.contains_key(&format!("{}.{name}", self.architecture)) {
            self.problem(format!("`{}.{name}` is missing", self.architecture));
        }
        self.count(name).unwrap_or(1)
    }

    /// A number, if the key is there. Most are kept as f32: the shortest decimal number that it stands for is what
    /// config.json says.
    pub fn number(&mut self, name: &str) -> Option<f64> {
        self.read(name, "a number", |value| match value {
            Value::Float(number) if number.is_finite() => decimal(*number).parse().ok(),
            Value::Integer(number) => Some(*number as f64),
            _ => None,
        })
    }

    /// A switch, if the key is there.
    pub fn switch(&mut self, name: &str) -> Option<bool> {
        self.read(name, "true or false", |value| match value {
            Value::Switch(switch) => Some(*switch),
            _ => None,
        })
    }

    /// A text, if the key is there.
    pub fn text(&mut self, name: &str) -> Option<&'a str> {
        let (key, value) = self.take(name)?;
        match value {
            Value::Text(text) => Some(text),
            other => {
                self.problem(format!("`{key}` is {}; a text is needed", shown(other)));
                None
            }
        }
    }

    /// All problems, or nothing: every key of the architecture must have been taken.
    pub fn finish(mut self, path: &Path) -> Result<()> {
        let prefix = format!("{}.", self.architecture);
        for (key, value) in self.metadata {
            if key.starts_with(&prefix) && !self.taken.contains(key) {
                let value = shown(value);
                self.problems.push(format!("the key `{key}` (= {value}) is not known and could change the numbers"));
            }
        }
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Config { path: path.to_path_buf(), problems: self.problems }),
        }
    }
}

/// The shortest decimal number that stands for the same f32, or f64 where it is none.
fn decimal(number: f64) -> String {
    match number as f32 {
        single if f64::from(single) == number => single.to_string(),
        _ => number.to_string(),
    }
}

/// A value as an error shows it.
pub fn shown(value: &Value) -> String {
    let text = match value {
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => decimal(*number),
        Value::Switch(switch) => switch.to_string(),
        Value::Text(text) => format!("{text:?}"),
        Value::Integers(list) => format!("{:?}", &list[..list.len().min(8)]),
        Value::Floats(list) => format!("{:?}", &list[..list.len().min(8)]),
        Value::Texts(list) => format!("{:?}", &list[..list.len().min(2)]),
    };
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
