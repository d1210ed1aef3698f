//! Reading features: where they are active ([`gather`]), in which words ([`contexts`]), what they write ([`logit_weights`]), as
//! files that other tools read ([`write_delphi`], [`neuronpedia`]), and in the words of a language model ([`interpret`]).

mod contexts;
mod delphi;
mod gather;
pub mod interpret;
pub mod neuronpedia;

pub use contexts::{Context, LogitWeights, contexts, logit_weights};
pub use delphi::{Activation, read_delphi, write_delphi};
pub use gather::{Example, Gather, Gathered, Record, gather};
