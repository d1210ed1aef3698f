//! Plans: what a run shall capture and edit, as data.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::features::FeatureEdit;
use crate::selection::{Index, Selection};
use crate::site::AxisName;
use crate::value::Value;

/// A list of edits and captures: an immutable value handed to a run.
///
/// Edits at one site are made in the order of the list. A capture sees what the rest of the network reads, that is
/// after the edits.
///
/// ```
/// # use endoscope_net::*;
/// let plan: Plan = serde_json::from_str(r#"{
///     "captures": [{"site": "resid_post.*", "select": {"position": -1}}],
///     "edits": [
///         {"site": "z.1", "select": {"head": 3}, "change": "zero"},
///         {"site": "resid_pre.2", "select": {"position": "-1.."}, "change": {"add": {"value": 0.5, "scale": 4}}}
///     ]
/// }"#)?;
/// assert_eq!(plan.edits.len(), 2);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What to keep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captures: Vec<Capture>,
    /// What to change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<Edit>,
    /// The positions whose outputs are read; a network need not compute the others.
    #[serde(default, skip_serializing_if = "is_all")]
    pub outputs: Index,
    /// The entries of the outputs' last axis that are read (token ids), in this order; likewise.
    #[serde(default, skip_serializing_if = "is_all")]
    pub columns: Index,
}

fn is_all(index: &Index) -> bool {
    *index == Index::All
}

/// A site (or a pattern that stands for several) whose activation is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// A name, shorthand or glob.
    pub site: String,
    /// Which part of it.
    #[serde(default, skip_serializing_if = "Selection::is_everything")]
    pub select: Selection,
    /// Whether [`crate::Run::gradients`] shall be able to give the gradient of a metric with respect to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gradient: bool,
}

/// One change to a selection of a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// A name, shorthand or glob.
    pub site: String,
    /// Which part of it.
    #[serde(default, skip_serializing_if = "Selection::is_everything")]
    pub select: Selection,
    /// What is done to it.
    pub change: Change,
}

/// What an edit does to the chosen cells `x`.
///
/// A `value` is broadcast to the shape of the selection; a `source` has the shape of the whole site (batch may be 1) and
/// the same selection is read from it, by absolute position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// `value`.
    Set {
        /// What to write.
        value: Value,
    },
    /// `x + scale * value`.
    Add {
        /// What to add.
        value: Value,
        /// How much of it.
        #[serde(default = "one")]
        scale: f64,
    },
    /// `factor * x`.
    Scale {
        /// The factor.
        factor: f64,
    },
    /// `0`.
    Zero,
    /// The mean of the chosen cells over these axes of the same run (for the mean of a data set, `set` it).
    Mean {
        /// Axes to average over.
        over: Vec<AxisName>,
    },
    /// The same cells of another run.
    Patch {
        /// That run's activation of the whole site.
        source: Value,
    },
    /// `(1 - mask) * x + mask * source`, that is `x + mask * (source - x)`; along directions `D` only in their span:
    /// `x + D^T (mask * D (source - x))`.
    Interpolate {
        /// Another run's activation of the whole site.
        source: Value,
        /// 0 keeps `x`, 1 takes the source. Along directions its last axis is `direction` instead of `dim`.
        mask: Value,
        /// `D`, `[direction, dim]`, whose rows must be orthonormal (to 1e-3).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        along: Option<Value>,
    },
    /// The projection of `x` onto the span of the directions.
    ProjectOnto {
        /// `[direction, dim]` or `[dim]`; need not be orthogonal or of unit length.
        directions: Value,
    },
    /// `x` less its projection onto the span of the directions.
    ProjectOut {
        /// `[direction, dim]` or `[dim]`; need not be orthogonal or of unit length.
        directions: Value,
    },
    /// Attention edges cut: at `hook_attn_scores` minus infinity (the remaining weights are renormalised), at
    /// `hook_pattern` zero (they are not).
    KnockOut,
    /// Features of a dictionary changed.
    Features(FeatureEdit),
}

fn one() -> f64 {
    1.
}

impl Plan {
    /// This plan with one more capture.
    pub fn capture(mut self, capture: Capture) -> Self {
        self.captures.push(capture);
        self
    }

    /// This plan with one more edit.
    pub fn edit(mut self, edit: Edit) -> Self {
        self.edits.push(edit);
        self
    }

    /// This plan reading outputs at `index` only.
    pub fn outputs_at(mut self, index: Index) -> Self {
        self.outputs = index;
        self
    }

    /// This plan reading only `index` of the outputs' last axis.
    pub fn columns_at(mut self, index: Index) -> Self {
        self.columns = index;
        self
    }

    /// Replaces every file that the plan names by its tensor. Paths are relative to `base`, the folder of the plan. Dictionaries
    /// are loaded by [`Plan::load_features`].
    pub fn load(mut self, base: &Path) -> Result<Self> {
        for edit in &mut self.edits {
            let site = edit.site.clone();
            for (_, value) in edit.change.values_mut() {
                value.load(base, &site)?;
            }
        }
        Ok(self)
    }

    /// Hands every edit of features, with its site, to `load`, which puts the dictionary there.
    pub fn load_features<E>(
        mut self,
        mut load: impl FnMut(&str, &mut FeatureEdit) -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        for edit in &mut self.edits {
            if let Change::Features(features) = &mut edit.change {
                load(&edit.site, features)?;
            }
        }
        Ok(self)
    }
}

impl Capture {
    /// Everything at `site`.
    pub fn new(site: impl Into<String>) -> Self {
        Self { site: site.into(), select: Selection::default(), gradient: false }
    }

    /// Only `index` on `axis`.
    pub fn at(mut self, axis: AxisName, index: Index) -> Self {
        self.select = self.select.with(axis, index);
        self
    }

    /// Also the gradient of a metric with respect to it.
    pub fn with_gradient(mut self) -> Self {
        self.gradient = true;
        self
    }
}

impl Edit {
    /// A change of everything at `site`.
    pub fn new(site: impl Into<String>, change: Change) -> Self {
        Self { site: site.into(), select: Selection::default(), change }
    }

    /// Only `index` on `axis`.
    pub fn at(mut self, axis: AxisName, index: Index) -> Self {
        self.select = self.select.with(axis, index);
        self
    }
}

impl Change {
    /// The arrays of this change with their names.
    pub(crate) fn values(&self) -> Vec<(&'static str, &Value)> {
        match self {
            Self::Set { value } | Self::Add { value, .. } => vec![("value", value)],
            Self::Patch { source } => vec![("source", source)],
            Self::Interpolate { source, mask, along } => {
                let along = along.iter().map(|along| ("along", along));
                [("source", source), ("mask", mask)].into_iter().chain(along).collect()
            }
            Self::ProjectOnto { directions } | Self::ProjectOut { directions } => vec![("directions", directions)],
            Self::Scale { .. } | Self::Zero | Self::Mean { .. } | Self::KnockOut | Self::Features(_) => vec![],
        }
    }

    fn values_mut(&mut self) -> Vec<(&'static str, &mut Value)> {
        match self {
            Self::Set { value } | Self::Add { value, .. } => vec![("value", value)],
            Self::Patch { source } => vec![("source", source)],
            Self::Interpolate { source, mask, along } => {
                let along = along.iter_mut().map(|along| ("along", along));
                [("source", source), ("mask", mask)].into_iter().chain(along).collect()
            }
            Self::ProjectOnto { directions } | Self::ProjectOut { directions } => vec![("directions", directions)],
            Self::Scale { .. } | Self::Zero | Self::Mean { .. } | Self::KnockOut | Self::Features(_) => vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn a_plan_survives_json() {
        let array = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap();
        let plan = Plan::default()
            .capture(Capture::new("z.*").at(AxisName::Head, Index::List(vec![0, 2])).with_gradient())
            .edit(Edit::new("resid_pre.1", Change::Add { value: array.clone().into(), scale: 2. }))
            .edit(Edit::new("z.0", Change::Zero).at(AxisName::Position, Index::Range { start: -1, end: None }))
            .edit(Edit::new("attn_scores.0", Change::KnockOut))
            .edit(Edit::new(
                "mlp_out.0",
                Change::Interpolate { source: array.clone().into(), mask: 0.5.into(), along: None },
            ))
            .edit(Edit::new(
                "mlp_out.0",
                Change::Interpolate { source: array.clone().into(), mask: 1.0.into(), along: Some(array.into()) },
            ))
            .outputs_at(Index::At(-1))
            .columns_at(Index::List(vec![7, 3]));
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan, "{json}");
        assert_eq!(serde_json::to_string(&Plan::default()).unwrap(), "{}");
    }

    #[test]
    fn a_typo_in_a_plan_is_an_error() {
        for json in [
            r#"{"edit": []}"#,
            r#"{"edits": [{"site": "z.0", "change": "zeroed"}]}"#,
            r#"{"edits": [{"site": "z.0", "selection": {}, "change": "zero"}]}"#,
            r#"{"edits": [{"site": "z.0", "select": {"heads": 1}, "change": "zero"}]}"#,
            r#"{"edits": [{"site": "z.0", "change": {"add": {"value": 1, "factor": 2}}}]}"#,
            r#"{"edits": [{"site": "z.0", "change": {"set": {"value": {"shape": [3], "data": [1]}}}}]}"#,
        ] {
            assert!(serde_json::from_str::<Plan>(json).is_err(), "{json}");
        }
    }
}
