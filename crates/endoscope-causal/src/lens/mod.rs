//! Lenses: what a network would say if it ended at some layer.
//!
//! The residual stream after each layer is mapped to where the last layer's would be, and read by the network's own final
//! norm and unembedding. Three maps of a stream `h`, a column vector:
//!
//! | lens | the map | from |
//! | --- | --- | --- |
//! | [`Kind::Logit`] | `h` | nostalgebraist 2020, "interpreting GPT: the logit lens" |
//! | [`Kind::Tuned`] | `h + A h + b`, trained ([`tuned::train`]) | Belrose et al. 2023, arXiv 2303.08112 |
//! | [`Kind::Jacobian`] | `J h`, measured ([`jacobian::average`]) | the mean of `d last / d h` |
//!
//! [`read`] gives the table of layers and positions; [`losses`] says how far a lens is from the network on many rows.
//! The unembedding is reached through the engine: the last residual stream of a base run is set to the mapped stream, which
//! costs the final norm and the unembedding and no layer at all.
//!
//! ```no_run
//! use endoscope_causal::lens::{self, Ask, Lens, Streams};
//! # fn network() -> Box<dyn endoscope_net::Resume> { unimplemented!() }
//! let network = network();
//! let reading = lens::read(&*network, &Lens::logit(), &[1, 7, 4], &Ask::default(), Streams::Layers)?;
//! println!("{} nats at the first layer", reading.cells[0][0].kl);
//! # Ok::<(), endoscope_causal::Error>(())
//! ```

mod file;
pub mod jacobian;
mod readout;
mod rows;
mod token_views;
pub mod tuned;

use candle_core::{DType, Tensor};
use endoscope_net::{AxisName, Network, Site, Sites, Size};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub use readout::{Ask, Candidate, Cell, Loss, Reading, ReciprocalRanks, losses, read, reciprocal_ranks};
pub use rows::{repeated_rows, split};
pub use token_views::{TokenViews, token_views};

/// What a lens maps by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing: the stream as it is.
    Logit,
    /// A trained affine translator.
    Tuned,
    /// The averaged Jacobian of the last residual stream.
    Jacobian,
}

impl Kind {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Logit => "logit",
            Self::Tuned => "tuned",
            Self::Jacobian => "jacobian",
        }
    }
}

/// Which residual streams are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Streams {
    /// What the first layer reads, and what each layer leaves.
    #[default]
    Layers,
    /// Those between attention and MLP as well, where a layer has one.
    Halves,
}

impl Streams {
    /// Full names in the order of the mathematics; the last is the stream that the unembedding reads.
    pub fn of(self, sites: &Sites) -> Result<Vec<String>> {
        let wanted = |site: &&Site| match site.name.rsplit_once("hook_").map(|(_, kind)| kind) {
            Some("resid_pre") => site.layer == Some(0),
            Some("resid_mid") => self == Self::Halves,
            Some("resid_post") => true,
            _ => false,
        };
        let names: Vec<String> = sites.iter().filter(wanted).map(|site| site.name.clone()).collect();
        match names.last() {
            Some(last) if last.ends_with("hook_resid_post") => Ok(names),
            _ => Err(Error::Lens("the network has no residual stream after its layers (hook_resid_post)".into())),
        }
    }
}

/// The map of one residual stream.
#[derive(Debug, Clone)]
pub struct Translator {
    /// The site, by its full name.
    pub site: String,
    /// `A` or `J`: `[to, from]`, as it multiplies a column vector.
    pub matrix: Tensor,
    /// `b` `[to]`, where there is one.
    pub bias: Option<Tensor>,
}

/// A lens.
#[derive(Debug, Clone)]
pub struct Lens {
    /// What it maps by.
    pub kind: Kind,
    /// The streams that it can read, in the order of the mathematics; none of a logit lens, which reads all.
    pub translators: Vec<Translator>,
    /// How it was made: settings, rows, whatever its maker knows of the model.
    pub made: serde_json::Map<String, serde_json::Value>,
}

impl Lens {
    /// The logit lens: every stream as it is.
    pub fn logit() -> Self {
        Self { kind: Kind::Logit, translators: Vec::new(), made: serde_json::Map::new() }
    }

    /// The streams that it reads in this network, the last residual stream included, which every lens leaves as it is.
    ///
    /// `streams` is what a logit lens reads; the others read those that they were made for, and fail where the
    /// network has no such stream, or one of another size.
    pub fn streams(&self, sites: &Sites, streams: Streams) -> Result<Vec<String>> {
        let all = streams.of(sites)?;
        let Some(last) = all.last().cloned() else { return Ok(all) };
        if self.kind == Kind::Logit {
            return Ok(all);
        }
        for Translator { site, matrix, bias } in &self.translators {
            let found = sites.iter().find(|each| each.name == *site).and_then(dim);
            let Some(d_model) = found else {
                return Err(Error::Lens(format!("it was made for a stream `{site}`, which this network has not")));
            };
            let fits = matrix.dims() == [d_model, d_model] && bias.as_ref().is_none_or(|bias| bias.dims() == [d_model]);
            if !fits {
                return Err(Error::Lens(format!(
                    "its map of `{site}` is {:?}, but that stream has {d_model} dims, so it is another model's",
                    matrix.dims()
                )));
            }
        }
        let own = self.translators.iter().map(|translator| translator.site.clone());
        Ok(own.filter(|site| *site != last).chain([last.clone()]).collect())
    }

    /// Rows of a stream where the last layer's would be: `[n, d] -> [n, d]`. A stream that it has no map of stays as it is.
    pub fn translated(&self, site: &str, rows: &Tensor) -> Result<Tensor> {
        let Some(translator) = self.translators.iter().find(|translator| translator.site == site) else {
            return Ok(rows.clone());
        };
        let mapped = rows.matmul(&translator.matrix.t()?)?;
        let mapped = match &translator.bias {
            Some(bias) => mapped.broadcast_add(bias)?,
            None => mapped,
        };
        Ok(if self.kind == Kind::Tuned { (rows + mapped)? } else { mapped })
    }
}

/// How many dims a stream has.
fn dim(site: &Site) -> Option<usize> {
    match site.axes.last()? {
        endoscope_net::Axis { name: AxisName::Dim, size: Size::Fixed(size) } => Some(*size),
        _ => None,
    }
}

/// The streams that a lens is made for, and the last one with its size.
fn to_make(network: &dyn Network, streams: Streams) -> Result<(Vec<String>, String, usize)> {
    let mut names = streams.of(network.sites())?;
    let last = names.pop().ok_or_else(|| Error::Lens("the network has no residual stream".into()))?;
    let site = network.sites().get(network.sites().resolve_one(&last)?);
    let d_model = dim(site).ok_or_else(|| Error::Lens(format!("`{last}` is no vector")))?;
    Ok((names, last, d_model))
}

/// Whether every number is finite.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    let numbers = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(numbers.iter().all(|number| number.is_finite()))
}
