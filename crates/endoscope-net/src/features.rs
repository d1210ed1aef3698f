//! Changes of a dictionary's features, as data; what a dictionary is, the crate of dictionaries knows.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Some features of a dictionary changed: vectors are encoded, the features changed, and the difference that makes to what is
/// decoded is added, so that what the dictionary does not explain stays as it was.
///
/// ```
/// # use endoscope_net::*;
/// let edit: Edit = serde_json::from_str(r#"{"site": "resid_post.3", "change": {"features": {
///     "dictionary": "dictionary", "change": [{"feature": 7, "set": 5.0}, {"feature": 9, "scale": 0.0}]
/// }}}"#)?;
/// assert!(matches!(edit.change, Change::Features(_)));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureEdit {
    /// The dictionary's directory, relative to the plan's own file.
    pub dictionary: PathBuf,
    /// What is changed, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub change: Vec<FeatureChange>,
    /// Whether what the dictionary does not explain is left out: the vectors become what is decoded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_error: bool,
    /// The dictionary itself, once it is loaded.
    #[serde(skip)]
    pub loaded: Option<Arc<dyn Features>>,
}

impl PartialEq for FeatureEdit {
    fn eq(&self, other: &Self) -> bool {
        let Self { dictionary, change, without_error, loaded: _ } = self;
        (dictionary, change, without_error) == (&other.dictionary, &other.change, &other.without_error)
    }
}

/// What becomes of one feature's activation `f`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureChange {
    /// Its number.
    pub feature: usize,
    /// How.
    #[serde(flatten)]
    pub to: NewActivation,
}

/// What an activation becomes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewActivation {
    /// This number (a clamp).
    Set(f64),
    /// `f + x`, whether it was active or not.
    Add(f64),
    /// `x f`: 0 ablates it.
    Scale(f64),
}

impl NewActivation {
    /// What `f` becomes.
    pub fn of(self, f: f64) -> f64 {
        match self {
            Self::Set(x) => x,
            Self::Add(x) => f + x,
            Self::Scale(x) => x * f,
        }
    }
}

/// A dictionary as edits see it.
pub trait Features: std::fmt::Debug + Send + Sync {
    /// How many dimensions its vectors have.
    fn width(&self) -> usize;
    /// Errors if a change is of a feature that it does not have, or cannot be made.
    fn check(&self, edit: &FeatureEdit) -> std::result::Result<(), String>;
    /// What `edit` makes of vectors, `[rows, width]` of f32.
    fn edited(&self, vectors: &Tensor, edit: &FeatureEdit) -> Result<Tensor>;
}
