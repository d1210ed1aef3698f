//! How many dimensions points fill: TwoNN (Facco, d'Errico, Rodriguez and Laio 2017, "Estimating the intrinsic dimension of
//! datasets by a minimal neighborhood information", Sci. Rep. 7:12140, arXiv 1803.06992).
//!
//! Where points lie evenly on a manifold of dimension d, the ratio mu of each point's distances to its second and its first
//! neighbour has the distribution `F(mu) = 1 - mu^-d`, whatever the density (equation 5). So d is the slope of
//! `-ln(1 - F)` by `ln mu`, or the rate of the exponential distribution of `ln mu`.
//!
//! [`Points`] are measured as a whole, or around each of them; [`dimension_sites`] does so for the activations of every layer,
//! beside Gaussian points of the same covariance.
//!
//! ```
//! use candle_core::Tensor;
//! use endoscope_causal::dimension::{Points, TwoNn};
//! // A curve in three dimensions has one.
//! let at = |t: f64| vec![(3. * t).cos(), (3. * t).sin(), t];
//! let curve: Vec<Vec<f64>> = (1..400).map(|step| at((f64::from(step) * 0.618_034).fract())).collect();
//! let points = Points::new(&Tensor::new(curve, &candle_core::Device::Cpu)?)?;
//! let dimension = TwoNn::default().estimate(&points.log_ratios()?)?;
//! assert!(dimension < 2., "{dimension}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod nearest;
mod points;
mod shadow;
mod sites;
mod two_nn;

pub use points::Points;
pub use sites::{Dimension, DimensionSites, LocalDimension, SiteDimension, dimension_sites, measure};
pub use two_nn::{Fit, TwoNn};

use crate::error::{Error, Result};

fn fail<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Dimension(reason.into()))
}
