//! How good a dictionary is: what it explains and with how few latents ([`fit`](fit::FitSums)), what the network loses when it
//! is put in the place of activations ([`loss_recovered`]), how its directions lie to each other and to another dictionary's
//! ([`similarity`]), and what single latents know of labels ([`sparse_probing`], [`absorption`]).

mod absorption;
mod fit;
mod similarity;
mod sparse_probing;
pub(crate) mod splice;

pub use absorption::{Absorption, absorption};
pub use fit::{Fit, FitSums, HISTOGRAM_EDGES};
pub use similarity::{Coherence, Matched, coherence, largest_cosines, matched};
pub use sparse_probing::{SparseProbe, sparse_probing};
pub use splice::{LossRecovered, activations, loss_recovered};
