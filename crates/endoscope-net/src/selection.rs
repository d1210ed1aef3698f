//! Selections: which part of a site. And frames: which part of the sequence a forward pass is computing.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::frame::{Extent, Frame, entries};
use crate::site::{AxisName, Site, Size};

/// Which entries of one axis.
///
/// As JSON and on the command line: `"all"`, `"last"`, `"generated"`, a number, a list of numbers, or a half-open range
/// `"2..5"`, `"2.."`, `"..5"`, `"-1.."`. Negative numbers count from the end; **for positions the end is the end of the
/// prompt**, also while a model generates: `-1` is always the prompt's last token, `"-1.."` is that token and everything
/// generated after it, `"all"` is every prompt and generated position. Thus an index means the same position whether
/// the sequence is computed at once or token by token with a cache.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "IndexText", try_from = "IndexText")]
pub enum Index {
    /// Every entry.
    #[default]
    All,
    /// One entry; negative counts from the end.
    At(i64),
    /// These entries, in this order.
    List(Vec<i64>),
    /// From `start` up to and without `end` (to the end where there is none).
    Range {
        /// First entry.
        start: i64,
        /// One past the last entry.
        end: Option<i64>,
    },
    /// The positions after the prompt.
    Generated,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "an index is a whole number, a list of them, or a text like \"all\" or \"2..5\"")]
enum IndexText {
    Number(i64),
    List(Vec<i64>),
    Text(String),
}

impl From<Index> for IndexText {
    fn from(index: Index) -> Self {
        match index {
            Index::At(at) => Self::Number(at),
            Index::List(list) => Self::List(list),
            other => Self::Text(other.to_string()),
        }
    }
}

impl TryFrom<IndexText> for Index {
    type Error = Error;
    fn try_from(text: IndexText) -> Result<Self> {
        match text {
            IndexText::Number(at) => Ok(Self::At(at)),
            IndexText::List(list) => Ok(Self::List(list)),
            IndexText::Text(text) => text.parse(),
        }
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Generated => f.write_str("generated"),
            Self::At(at) => write!(f, "{at}"),
            Self::List(list) => f.write_str(&list.iter().map(i64::to_string).collect::<Vec<_>>().join(",")),
            Self::Range { start, end: Some(end) } => write!(f, "{start}..{end}"),
            Self::Range { start, end: None } => write!(f, "{start}.."),
        }
    }
}

impl FromStr for Index {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::BadIndex(text.to_string());
        let number = |part: &str| part.trim().parse::<i64>().map_err(|_| bad());
        match text.trim() {
            "all" | ".." => Ok(Self::All),
            "last" => Ok(Self::At(-1)),
            "generated" => Ok(Self::Generated),
            text => match text.split_once("..") {
                Some((start, end)) => Ok(Self::Range {
                    start: if start.is_empty() { 0 } else { number(start)? },
                    end: if end.is_empty() { None } else { Some(number(end)?) },
                }),
                None if text.contains(',') => Ok(Self::List(text.split(',').map(number).collect::<Result<_>>()?)),
                None => Ok(Self::At(number(text)?)),
            },
        }
    }
}

/// A part of a site: an [`Index`] for some of its axes, everything on the others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selection(pub BTreeMap<AxisName, Index>);

impl Selection {
    /// Whether the whole site is meant.
    pub fn is_everything(&self) -> bool {
        self.0.values().all(|index| *index == Index::All)
    }

    /// This selection with `axis` narrowed to `index`.
    pub fn with(mut self, axis: AxisName, index: Index) -> Self {
        self.0.insert(axis, index);
        self
    }

    /// The index on `axis`.
    pub fn on(&self, axis: AxisName) -> &Index {
        self.0.get(&axis).unwrap_or(&Index::All)
    }

    /// Checks everything that is known without inputs: the axes exist, fixed sizes hold the indices.
    pub(crate) fn check(&self, site: &Site) -> Result<()> {
        for (&axis, index) in &self.0 {
            let Some(dimension) = site.axis(axis) else {
                return Err(Error::NoSuchAxis { site: site.name.clone(), axis, axes: site.axes_text() });
            };
            if let Size::Fixed(size) = site.axes[dimension].size {
                entries(site, axis, index, Extent::fixed(size))?;
            } else if *index == Index::Generated && axis == AxisName::Batch {
                return Err(Error::BadIndex("generated, for the batch".into()));
            }
        }
        Ok(())
    }

    /// The chosen entries per dimension of a tensor of shape `dims` computed in `frame`.
    pub(crate) fn grid(&self, site: &Site, frame: &Frame, dims: &[usize]) -> Result<Grid> {
        let mut axes = Vec::with_capacity(dims.len());
        for (axis, &length) in site.axes.iter().zip(dims) {
            let index = self.on(axis.name);
            let chosen = match index {
                Index::All => None,
                index => Some(entries(site, axis.name, index, frame.extent(axis.name, length))?),
            };
            // A selection that happens to be everything in order costs nothing.
            axes.push(chosen.filter(|list| list.len() != length || list.iter().enumerate().any(|(i, &at)| i != at)));
        }
        Ok(Grid { axes, dims: dims.to_vec() })
    }
}

/// The chosen entries of a tensor, per dimension; none = all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grid {
    pub axes: Vec<Option<Vec<usize>>>,
    pub dims: Vec<usize>,
}

impl Grid {
    pub fn is_full(&self) -> bool {
        self.axes.iter().all(Option::is_none)
    }

    /// The shape of what is chosen.
    pub fn shape(&self) -> Vec<usize> {
        self.axes.iter().zip(&self.dims).map(|(axis, &dim)| axis.as_ref().map_or(dim, Vec::len)).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.shape().contains(&0)
    }

    /// Calls `visit` with the flat offset of each chosen cell, in row-major order of the selection.
    pub fn for_each_offset(&self, mut visit: impl FnMut(usize)) {
        if self.is_empty() {
            return;
        }
        let shape = self.shape();
        let mut strides = vec![1; self.dims.len()];
        for dimension in (0..self.dims.len().saturating_sub(1)).rev() {
            strides[dimension] = strides[dimension + 1] * self.dims[dimension + 1];
        }
        let entry = |dimension: usize, at: usize| self.axes[dimension].as_ref().map_or(at, |list| list[at]);
        let mut at = vec![0; shape.len()];
        loop {
            let offset = (0..shape.len()).map(|d| entry(d, at[d]) * strides[d]).sum();
            visit(offset);
            let Some(dimension) = (0..shape.len()).rev().find(|&d| at[d] + 1 < shape[d]) else { return };
            at[dimension] += 1;
            at[dimension + 1..].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::{Axis, Role};

    fn site() -> Site {
        Site::new("x", None, Role::Residual, vec![Axis::batch(), Axis::position(), Axis::dim(4)])
    }

    fn positions(text: &str, frame: Frame) -> Result<Vec<usize>> {
        let selection = Selection::default().with(AxisName::Position, text.parse()?);
        let grid = selection.grid(&site(), &frame, &[frame.rows, frame.length, 4])?;
        Ok(grid.axes[1].clone().unwrap_or_else(|| (0..frame.length).collect()))
    }

    #[test]
    fn indices_over_a_whole_sequence() {
        let frame = Frame::whole(1, 5);
        for (text, expected) in [
            ("all", vec![0, 1, 2, 3, 4]),
            ("-1", vec![4]),
            ("last", vec![4]),
            ("2", vec![2]),
            ("3,1", vec![3, 1]),
            ("1..3", vec![1, 2]),
            ("-2..", vec![3, 4]),
            ("..2", vec![0, 1]),
            ("2..2", vec![]),
            ("generated", vec![]),
        ] {
            assert_eq!(positions(text, frame).unwrap(), expected, "{text}");
        }
        for text in ["5", "-6", "1,5", "1..7", "1,1", "1,-4"] {
            assert!(positions(text, frame).is_err(), "{text}");
        }
    }

    #[test]
    fn an_index_means_the_same_position_with_and_without_a_cache() {
        let total = 9;
        for text in ["all", "-1", "0", "7", "-2..", "2..8", "generated", "6,1,8", "5.."] {
            let whole = Frame { length: total, grows: true, ..Frame::whole(1, 5) };
            let mut at_once = positions(text, whole).unwrap();
            at_once.sort();
            let mut pieces = positions(text, Frame { length: 5, ..whole }).unwrap();
            pieces.sort();
            for offset in 5..total {
                let step = positions(text, Frame { offset, length: 1, ..whole }).unwrap();
                pieces.extend(step.into_iter().map(|at| at + offset));
            }
            assert_eq!(at_once, pieces, "{text}");
        }
    }

    #[test]
    fn json_forms() {
        for (json, index) in [
            ("3", Index::At(3)),
            ("-1", Index::At(-1)),
            ("[1,2]", Index::List(vec![1, 2])),
            ("\"all\"", Index::All),
            ("\"2..5\"", Index::Range { start: 2, end: Some(5) }),
            ("\"-1..\"", Index::Range { start: -1, end: None }),
            ("\"generated\"", Index::Generated),
        ] {
            assert_eq!(serde_json::from_str::<Index>(json).unwrap(), index);
            assert_eq!(serde_json::to_string(&index).unwrap(), json);
        }
        assert!(serde_json::from_str::<Index>("\"first\"").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,20}") {
            if let Ok(index) = text.parse::<Index>() {
                let _ = Selection::default().with(AxisName::Position, index).grid(&site(), &Frame::whole(2, 3), &[2, 3, 4]);
            }
        }

        #[test]
        fn offsets_are_the_row_major_cells(a in proptest::collection::vec(0usize..4, 0..4), b in proptest::collection::vec(0usize..3, 0..3)) {
            let grid = Grid { axes: vec![Some(a.clone()), None, Some(b.clone())], dims: vec![4, 2, 3] };
            let mut found = Vec::new();
            grid.for_each_offset(|offset| found.push(offset));
            let mut expected = Vec::new();
            for &i in &a { for j in 0..2 { for &k in &b { expected.push((i * 2 + j) * 3 + k) } } }
            proptest::prop_assert_eq!(found, expected);
        }
    }
}
