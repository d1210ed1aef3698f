//! Reading config.json so that nothing is silently ignored: every key is used, known to be inert, or an error.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Keys which no family's logits depend on.
const INERT: &[&str] = &[
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "initializer_range",
    "model_type",
    "use_cache",
    "task_specific_params",
    "id2label",
    "label2id",
    "problem_type",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "torchscript",
    "use_bfloat16",
    "chunk_size_feed_forward",
    "tokenizer_class",
    "prefix",
    "finetuning_task",
    "gradient_checkpointing",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_autoset",
    // Settings of generation that older files carry.
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "max_length",
    "min_length",
    "num_beams",
    "num_return_sequences",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "early_stopping",
    "num_beam_groups",
    "diversity_penalty",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "suppress_tokens",
    "begin_suppress_tokens",
    "exponential_decay_length_penalty",
    "return_dict_in_generate",
    "encoder_no_repeat_ngram_size",
];

/// Keys that must have one of these values, because another would change the numbers.
const FIXED: &[(&str, &[&str])] = &[
    ("is_decoder", &["false", "true"]),
    ("is_encoder_decoder", &["false"]),
    ("add_cross_attention", &["false"]),
    ("cross_attention_hidden_size", &["null"]),
    ("pruned_heads", &["{}", "null"]),
    ("tie_encoder_decoder", &["false"]),
    ("quantization_config", &["null"]),
];

/// A config.json whose keys are taken one by one; what is left over at the end is a problem.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    keys: Map<String, Value>,
    taken: BTreeSet<String>,
    /// Keys that were asked for, with what was read or, where they are not there, assumed.
    read: Map<String, Value>,
    problems: Vec<String>,
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::read(path, error))?;
        Self::parse(path, &text)
    }

    /// Parses the text of a file.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|error| Error::read(path, error))?;
        let Value::Object(keys) = value else { return Err(Error::read(path, "it is not a JSON object")) };
        Ok(Self::new(path, keys))
    }

    /// The keys of a file; `path` is what errors name.
    pub fn new(path: &Path, keys: Map<String, Value>) -> Self {
        let (taken, read, problems) = (BTreeSet::new(), Map::new(), Vec::new());
        Self { path: path.to_path_buf(), keys, taken, read, problems }
    }

    /// The keys, numbers that may be fractions written so (`20.0`), and after them the keys that a translator asked for in
    /// vain, with the defaults that it took.
    pub fn into_explicit(self) -> Map<String, Value> {
        let mut explicit = self.keys;
        for (key, value) in self.read {
            explicit.insert(key, value);
        }
        explicit
    }

    /// Where it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The architecture's name.
    pub fn model_type(&self) -> Option<&str> {
        self.keys.get("model_type").and_then(Value::as_str)
    }

    /// The raw value of a key, without taking it.
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is there and null.
    pub fn is_null(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(Value::is_null)
    }

    /// Says that something is wrong; all problems are reported together.
    pub fn problem(&mut self, problem: impl Into<String>) {
        self.problems.push(problem.into());
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.taken.insert(key.to_string());
        self.keys.get(key).filter(|value| !value.is_null()).cloned()
    }

    fn take_as<T: Clone + Into<Value>>(
        &mut self,
        key: &str,
        default: Option<T>,
        kind: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let Some(value) = self.take(key) else {
            match &default {
                None => self.problem(format!("`{key}` is missing")),
                // A family asks before what it shares with others does.
                Some(default) if !self.keys.contains_key(key) => {
                    self.read.entry(key).or_insert(default.clone().into());
                }
                // It is there and null, which is the default.
                Some(_) => {}
            }
            return default;
        };
        let read = read(&value);
        match &read {
            Some(read) => {
                self.read.insert(key.to_string(), read.clone().into());
            }
            None => self.problem(format!("`{key}` is {value}; {kind} is needed")),
        }
        read
    }

    /// A count that must be there.
    pub fn count(&mut self, key: &str) -> usize {
        self.take_as(key, None, "a count", |value| value.as_u64().map(|n| n as usize)).unwrap_or(1)
    }

    /// A count with a default for absent or null.
    pub fn count_or(&mut self, key: &str, default: usize) -> usize {
        self.take_as(key, Some(default), "a count", |value| value.as_u64().map(|n| n as usize)).unwrap_or(default)
    }

    /// A count, if it is there.
    pub fn optional_count(&mut self, key: &str) -> Option<usize> {
        self.inert(&[key]);
        self.peek(key)?;
        Some(self.count(key))
    }

    /// A number with a default.
    pub fn number_or(&mut self, key: &str, default: f64) -> f64 {
        self.take_as(key, Some(default), "a number", Value::as_f64).unwrap_or(default)
    }

    /// A number, if it is there.
    pub fn number(&mut self, key: &str) -> Option<f64> {
        self.inert(&[key]);
        self.peek(key)?;
        Some(self.number_or(key, 1.))
    }

    /// A list of words, if it is there.
    pub fn words(&mut self, key: &str) -> Option<Vec<String>> {
        self.list(key, "a list of texts", |value| value.as_str().map(String::from))
    }

    /// A list of counts, if it is there.
    pub fn counts(&mut self, key: &str) -> Option<Vec<usize>> {
        self.list(key, "a list of counts", |value| value.as_u64().map(|n| n as usize))
    }

    fn list<T: Clone + Into<Value>>(
        &mut self,
        key: &str,
        kind: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.inert(&[key]);
        self.peek(key)?;
        self.take_as(key, None, kind, |value| value.as_array()?.iter().map(&read).collect())
    }

    /// A value of any form, if it is there.
    pub fn value(&mut self, key: &str) -> Option<Value> {
        self.take(key)
    }

    /// A switch with a default.
    pub fn switch_or(&mut self, key: &str, default: bool) -> bool {
        self.take_as(key, Some(default), "true or false", Value::as_bool).unwrap_or(default)
    }

    /// A word with a default.
    pub fn word_or(&mut self, key: &str, default: &str) -> String {
        self.take_as(key, Some(default.to_string()), "a text", |value| value.as_str().map(String::from))
            .unwrap_or_else(|| default.to_string())
    }

    /// A key whose value does not matter for this family.
    pub fn inert(&mut self, keys: &[&str]) {
        self.taken.extend(keys.iter().map(|key| key.to_string()));
    }

    /// An object's keys; `None` if absent or null.
    pub fn object(&mut self, key: &str) -> Option<Map<String, Value>> {
        let value = self.take(key)?;
        match value {
            Value::Object(keys) => Some(keys),
            other => {
                self.problem(format!("`{key}` is {other}; an object is needed"));
                None
            }
        }
    }

    /// All problems, or nothing: every key must have been taken or be known not to matter.
    pub fn finish(mut self) -> Result<()> {
        for (key, value) in &self.keys {
            if self.taken.contains(key) || INERT.contains(&key.as_str()) {
                continue;
            }
            match FIXED.iter().find(|(fixed, _)| fixed == key) {
                Some((_, allowed)) if allowed.contains(&value.to_string().as_str()) => {}
                Some((_, allowed)) => self.problems.push(format!("`{key}` is {value}; only {} is supported", allowed.join(" or "))),
                None => self.problems.push(format!(
                    "the key `{key}` (= {}) is not known and could change the numbers; if it does not, remove it from the file",
                    shortened(value)
                )),
            }
        }
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Config { path: self.path, problems: self.problems }),
        }
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
