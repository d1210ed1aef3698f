//! The core of Endoscope: what an activation is called, how a part of it is chosen, and how it is read or changed.
//!
//! For whoever writes a method (sweeps, attribution, dictionaries …) or a network. Methods see only this crate, so a
//! new method works on every network and a new network with every method.
//!
//! - [`Site`] is the address of one kind of activation; a network declares all of its [`Sites`] before any run.
//! - [`Selection`] is a part of a site: batch rows, positions, heads, dims.
//! - [`Plan`] is what a run shall capture and edit: data, immutable, checked against the sites before anything runs.
//! - [`Network`] runs inputs under a plan; its forward pass hands each activation to a [`Tap`].
//! - [`Resume`] is what a sweep needs to start from a layer instead of from the tokens.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use endoscope_net::*;
//!
//! /// A network of one multiplication: outputs = 2 x (embedding of the token).
//! struct Double { sites: Sites }
//!
//! impl Network for Double {
//!     fn sites(&self) -> &Sites { &self.sites }
//!     fn run(&self, inputs: &Inputs, plan: &Plan) -> Result<Run> {
//!         let Inputs::Tokens(tokens) = inputs else { return Err(Error::Inputs("tokens are needed".into())) };
//!         let prepared = Prepared::new(&self.sites, plan)?;
//!         // One frame for all rows, or one for each where they differ in length.
//!         let rows = tokens.frames().into_iter().map(|frame| {
//!             let mut tap = Tap::new(&prepared, frame)?;
//!             let ids = tokens.ids()[frame.batch.first..][..frame.rows].concat();
//!             let embed = Tensor::from_vec(ids, (frame.rows, frame.length, 1), &Device::Cpu)?.to_dtype(DType::F32)?;
//!             let embed = tap.at(SiteId(0), embed)?;
//!             Ok(tap.finish((embed * 2.)?, Work::default()))
//!         });
//!         Run::of_rows(tokens, &prepared, rows.collect::<Result<_>>()?)
//!     }
//! }
//!
//! let embed = Site::new("hook_embed", None, Role::Embedding, vec![Axis::batch(), Axis::position(), Axis::dim(1)]);
//! let network = Double { sites: Sites::new(vec![embed], 0)? };
//! let plan = Plan::default()
//!     .edit(Edit::new("hook_embed", Change::Zero).at(AxisName::Position, Index::At(-1)))
//!     .capture(Capture::new("hook_embed"));
//! let run = network.run(&Inputs::tokens(vec![vec![3, 5]])?, &plan)?;
//! assert_eq!(run.outputs.flatten_all()?.to_vec1::<f32>()?, [6., 0.]);
//! assert_eq!(run.captured.get("hook_embed")?.flatten_all()?.to_vec1::<f32>()?, [3., 0.]);
//! # Ok::<(), Error>(())
//! ```
//!
//! Not here: any model, any method, any file format but the plan's own JSON.

#![forbid(unsafe_code)]

mod canvas;
mod change;
mod effect;
mod error;
mod features;
mod frame;
mod joining;
mod name;
mod network;
mod plan;
mod prepared;
mod selection;
mod site;
mod tap;
mod taps;
mod value;

pub use effect::Effect;
pub use error::{Error, Result};
pub use features::{FeatureChange, FeatureEdit, Features, NewActivation};
pub use frame::{Batch, Frame};
pub use network::{Base, Captured, Cost, Inputs, Network, Padding, Resume, Run, TokenRows, Work};
pub use plan::{Capture, Change, Edit, Plan};
pub use prepared::Prepared;
pub use selection::{Index, Selection};
pub use site::{Axis, AxisName, Role, Site, SiteId, Sites, Size};
pub use tap::Tap;
pub use taps::{Part, Taps};
pub use value::{Array, Value};
