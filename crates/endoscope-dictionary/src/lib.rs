//! Dictionaries: sparse autoencoders, transcoders and crosscoders, that write an activation as few directions out of many.
//!
//! For whoever decomposes activations into features, or acts on them. A [`Dictionary`] encodes, decodes and says what it
//! read and lost; start reading there.
//!
//! ```
//! use endoscope_dictionary::{Activation, Config, Dictionary, Matrix, Weights};
//!
//! let eye = Matrix::new(2, 2, vec![1., 0., 0., 1.])?;
//! let weights = Weights {
//!     encoder: eye.clone(),
//!     encoder_bias: vec![0., -0.5],
//!     decoder: eye,
//!     decoder_bias: vec![0., 0.],
//!     ..Weights::default()
//! };
//! let config = Config { activation: Activation::Relu, ..Config::default() };
//! let dictionary = Dictionary::new(config, weights)?;
//! let codes = dictionary.encode(&Matrix::new(1, 2, vec![-3., 2.])?)?;
//! assert_eq!(codes.latents.row(0), (&[1][..], &[1.5][..]));
//! assert_eq!(dictionary.decode(&codes).values(), [0., 1.5]);
//! # Ok::<(), endoscope_dictionary::Error>(())
//! ```
//!
//! Not here: reading activations from a corpus (endoscope-harvest), running a model, any printing.

#![forbid(unsafe_code)]

pub mod attribution;
pub mod certificate;
mod config;
mod cross_layer;
mod dictionary;
mod error;
pub mod evaluate;
pub mod features;
pub mod formats;
mod matrix;
mod normalization;
mod steering;
pub mod toy;
pub mod training;
mod whitening;

pub use config::{Activation, Config, Normalization};
pub use cross_layer::CrossLayerTranscoder;
pub use dictionary::{Codes, Dictionary, Magnitude, Weights};
pub use endoscope_kernels::sparse::SparseRows;
pub use error::{Error, Result};
pub use matrix::{Matrix, norm};
pub use steering::site_width;
pub use whitening::Whitening;
