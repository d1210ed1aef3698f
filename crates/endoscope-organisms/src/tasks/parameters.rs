//! The keys of `[task]`: read, checked, every problem reported at once.

use serde::de::DeserializeOwned;
use toml::Table;

use crate::error::{Error, Result};

/// The parameters of `task` from its keys, checked with `problems`.
pub fn read<P: DeserializeOwned>(
    task: &'static str,
    parameters: &Table,
    problems: impl Fn(&P, &mut Problems),
) -> Result<P> {
    let fail = |problems| Error::Parameters { task, problems };
    let read: std::result::Result<P, toml::de::Error> = parameters.clone().try_into();
    // What is wrong, then, on a line of its own, the key.
    let read = read.map_err(|error| fail(vec![error.to_string().trim().replace('\n', " ")]))?;
    let mut found = Problems(Vec::new());
    problems(&read, &mut found);
    if found.0.is_empty() { Ok(read) } else { Err(fail(found.0)) }
}

/// A task that cannot be made although each of its keys is fine.
pub fn refuse(task: &'static str, problem: String) -> Error {
    Error::Parameters { task, problems: vec![problem] }
}

/// What was found.
pub struct Problems(Vec<String>);

impl Problems {
    /// `key` must be from `least` to `most`.
    pub fn count(&mut self, key: &str, value: usize, least: usize, most: usize) {
        if !(least..=most).contains(&value) {
            self.0.push(format!("`task.{key}` is {value}; it must be from {least} to {most}"));
        }
    }

    /// Something else that is wrong.
    pub fn push(&mut self, problem: String) {
        self.0.push(problem);
    }

    /// `key` must be a share: from 0 to 1.
    pub fn share(&mut self, key: &str, value: f64) {
        if !(0. ..=1.).contains(&value) {
            self.0.push(format!("`task.{key}` is {value}; it must be from 0 to 1"));
        }
    }
}
