//! Fused operations for f32 on the CPU, behind candle's `CustomOp`, forward and backward together.
//!
//! For whoever writes a network: each function means what candle's composed operations mean, takes any dtype, device
//! and stride (what is not f32 on the CPU is composed), and can be differentiated once.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use endoscope_kernels::{Centre, activation::gated_silu, norm, softmax};
//!
//! let x = Tensor::new(&[[1f32, 2., 3.], [4., 5., 9.]], &Device::Cpu)?;
//! let weight = Tensor::new(&[1f32, 1., 1.], &Device::Cpu)?;
//! let normalized = norm(&x, &weight, None, Centre::Mean, 1e-5)?;
//! let pattern = softmax(&gated_silu(&normalized, &x)?)?;
//! assert_eq!(pattern.dims(), [2, 3]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! The same input gives the same bits on any processor and any number of threads: see `simd.rs` for how. A NaN makes
//! its row NaN. Each kernel's file holds its meaning, the fast loops, the composed fallback, and the tests that both
//! agree; `benches/` measures them against candle.
//!
//! Not here: matrix products (candle's), anything that knows a model.

#![deny(unsafe_code)]

pub mod activation;
pub mod attention;
mod bias;
mod cross_entropy;
mod matrix;
mod norm;
mod packing;
mod simd;
mod soft_cap;
mod softmax;
pub mod sparse;
mod storage;
#[cfg(test)]
mod testing;
mod tile;
mod top_k;

pub use bias::add_bias;
pub use cross_entropy::cross_entropy;
pub use matrix::PackedMatrix;
pub use norm::{Centre, norm, norm_normalize, norm_scale};
pub use packing::Precision;
pub use soft_cap::soft_cap;
pub use softmax::softmax;
pub use top_k::{top_k, top_k_of_row};
