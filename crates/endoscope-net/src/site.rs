//! Sites: the addresses of activations, declared by a network before any run.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::name;

/// The name of one axis of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AxisName {
    /// Rows of the batch.
    Batch,
    /// Positions of the sequence.
    Position,
    /// Attention heads (key/value heads for `k` and `v`).
    Head,
    /// Query positions of an attention matrix.
    Query,
    /// Key positions of an attention matrix.
    Key,
    /// The last axis of a vector: dims of the residual stream or of a head, neurons of an MLP, words of the vocabulary.
    #[serde(alias = "neuron")]
    Dim,
}

impl fmt::Display for AxisName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Batch => "batch",
            Self::Position => "position",
            Self::Head => "head",
            Self::Query => "query",
            Self::Key => "key",
            Self::Dim => "dim",
        })
    }
}

/// How long an axis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// Known from the network alone.
    Fixed(usize),
    /// As many as the inputs have (rows or positions).
    Input,
}

/// One axis of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// Its name.
    pub name: AxisName,
    /// Its length.
    pub size: Size,
}

impl Axis {
    /// Rows of the batch.
    pub fn batch() -> Self {
        Self { name: AxisName::Batch, size: Size::Input }
    }
    /// Positions of the sequence.
    pub fn position() -> Self {
        Self { name: AxisName::Position, size: Size::Input }
    }
    /// `count` heads.
    pub fn head(count: usize) -> Self {
        Self { name: AxisName::Head, size: Size::Fixed(count) }
    }
    /// Query positions.
    pub fn query() -> Self {
        Self { name: AxisName::Query, size: Size::Input }
    }
    /// Key positions.
    pub fn key() -> Self {
        Self { name: AxisName::Key, size: Size::Input }
    }
    /// A vector of `size`.
    pub fn dim(size: usize) -> Self {
        Self { name: AxisName::Dim, size: Size::Fixed(size) }
    }
}

/// What part an activation plays in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What enters the residual stream first.
    Embedding,
    /// The residual stream itself.
    Residual,
    /// Inside or at the output of a normalisation.
    Norm,
    /// Inside attention.
    Attention,
    /// Inside an MLP.
    Mlp,
    /// Added to the residual stream.
    Write,
    /// The outputs.
    Output,
}

/// The index of a site in [`Sites`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub usize);

/// The address of one kind of activation: what, and in which layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The full name, TransformerLens's hook name: `blocks.3.attn.hook_z`.
    pub name: String,
    /// The layer, from 0; none for sites before and after the layers.
    pub layer: Option<usize>,
    /// What part it plays.
    pub role: Role,
    /// Its axes in the order of the tensor's dimensions.
    pub axes: Vec<Axis>,
}

impl Site {
    /// A site; `layer` must agree with the name.
    pub fn new(name: impl Into<String>, layer: Option<usize>, role: Role, axes: Vec<Axis>) -> Self {
        Self { name: name.into(), layer, role, axes }
    }

    /// The dimension of the axis `name`, if the site has it.
    pub fn axis(&self, name: AxisName) -> Option<usize> {
        self.axes.iter().position(|axis| axis.name == name)
    }

    /// The axis that carries positions: `position`, or `query` for attention matrices.
    pub fn position_axis(&self) -> Option<AxisName> {
        [AxisName::Position, AxisName::Query].into_iter().find(|&name| self.axis(name).is_some())
    }

    /// How many numbers it has where each axis of the inputs is of length 1: those of one position of one row.
    pub fn fixed_size(&self) -> usize {
        let size = |axis: &Axis| match axis.size {
            Size::Fixed(size) => size,
            Size::Input => 1,
        };
        self.axes.iter().map(size).product()
    }

    /// The axes as text: `batch, position, head=8, dim=8`.
    pub fn axes_text(&self) -> String {
        let axis = |axis: &Axis| match axis.size {
            Size::Fixed(size) => format!("{}={size}", axis.name),
            Size::Input => axis.name.to_string(),
        };
        self.axes.iter().map(axis).collect::<Vec<_>>().join(", ")
    }
}

/// All sites of a network, in the order of the mathematics.
#[derive(Debug, Clone)]
pub struct Sites {
    all: Vec<Site>,
    by_name: HashMap<String, SiteId>,
    layers: usize,
}

impl Sites {
    /// The sites of a network of `layers` layers; an error if two have the same name.
    pub fn new(all: Vec<Site>, layers: usize) -> Result<Self> {
        let mut by_name = HashMap::with_capacity(all.len());
        for (index, site) in all.iter().enumerate() {
            if by_name.insert(site.name.clone(), SiteId(index)).is_some() {
                return Err(Error::DuplicateSite(site.name.clone()));
            }
        }
        Ok(Self { all, by_name, layers })
    }

    /// The number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// All sites in the order of the mathematics.
    pub fn iter(&self) -> impl Iterator<Item = &Site> {
        self.all.iter()
    }

    /// How many sites there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The site of an id of this network.
    pub fn get(&self, id: SiteId) -> &Site {
        &self.all[id.0]
    }

    /// The sites that a name, shorthand or glob stands for, in the order of the mathematics; at least one.
    ///
    /// Accepted: full names, globs over them (`blocks.*.attn.hook_z`), `z.3`, `z.-1`, `z` (every layer), and the forms
    /// of TransformerLens's `get_act_name` (`k6`, `k6a`, `scale4ln1`, `pre5`).
    pub fn resolve(&self, pattern: &str) -> Result<Vec<SiteId>> {
        match self.by_name.get(pattern) {
            Some(&id) => Ok(vec![id]),
            None => name::resolve(&self.all, self.layers, pattern),
        }
    }

    /// The one site that a name or shorthand stands for.
    pub fn resolve_one(&self, pattern: &str) -> Result<SiteId> {
        let ids = self.resolve(pattern)?;
        match ids.as_slice() {
            [id] => Ok(*id),
            many => Err(Error::UnknownSite {
                pattern: format!("{pattern} (one site is needed, this stands for {})", many.len()),
                nearest: many.iter().take(3).map(|&id| self.get(id).name.clone()).collect(),
            }),
        }
    }
}
