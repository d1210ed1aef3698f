//! The settings of a file: a JSON object of which each key is taken by its kind, and what nobody takes is kept.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// More than any configuration needs.
const LONGEST: u64 = 16 << 20;

/// A configuration of which some keys are already taken.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    path: PathBuf,
    values: Map<String, Value>,
}

/// The text of a small file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let file = std::fs::File::open(path).map_err(|error| Error::file(path, error))?;
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(|error| Error::file(path, error))?;
    match text.len() as u64 > LONGEST {
        true => Err(Error::file(path, format!("it has more than {LONGEST} bytes, too many for a configuration"))),
        false => Ok(text),
    }
}

impl Settings {
    /// Of a JSON file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(values)) => Ok(Self::new(path, values)),
            Ok(_) => Err(Error::file(path, "it is not a JSON object")),
            Err(error) => Err(Error::file(path, format!("it is not JSON: {error}"))),
        }
    }

    /// Of values that come from `path`.
    pub fn new(path: &Path, values: Map<String, Value>) -> Self {
        Self { path: path.to_path_buf(), values }
    }

    /// Gives a key another name, unless it has that one too.
    pub fn rename(&mut self, old: &str, new: &str) {
        if let Some(value) = self.values.shift_remove(old) {
            self.values.entry(new).or_insert(value);
        }
    }

    /// Says a key anew.
    pub fn set(&mut self, key: &str, value: Value) {
        self.values.insert(key.to_string(), value);
    }

    /// A value as it is; none where it is null.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.values.shift_remove(key).filter(|value| !value.is_null())
    }

    /// The same, which stays.
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A number of things.
    pub fn count(&mut self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| {
            let whole = value.as_f64().filter(|x| x.fract() == 0. && (0. ..9e15).contains(x));
            value.as_u64().or(whole.map(|x| x as u64)).and_then(|count| usize::try_from(count).ok())
        })
    }

    /// A number.
    pub fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// True or false.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a text", |value| value.as_str().map(str::to_string))
    }

    /// Several texts.
    pub fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>> {
        self.typed(key, "a list of texts", |value| {
            value.as_array()?.iter().map(|text| text.as_str().map(str::to_string)).collect()
        })
    }

    /// Settings within these.
    pub fn object(&mut self, key: &str) -> Result<Option<Settings>> {
        let path = self.path.clone();
        let object = self.typed(key, "an object", |value| value.as_object().cloned())?;
        Ok(object.map(|values| Self { path, values }))
    }

    /// Whatever was not taken.
    pub fn rest(self) -> Map<String, Value> {
        self.values
    }

    /// That the file is not what it should be.
    pub fn fail(&self, reason: impl std::fmt::Display) -> Error {
        Error::file(&self.path, reason)
    }

    /// That the file asks for what is not here.
    pub fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { path: self.path.clone(), what: what.into() }
    }

    fn typed<T>(&mut self, key: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.fail(format!("`{key}` is {value} and should be {kind}"))),
        }
    }
}
