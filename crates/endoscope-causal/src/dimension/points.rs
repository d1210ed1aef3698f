//! Points whose dimension is estimated: what they must be, and what is measured on them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use candle_core::{DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use super::fail;
use super::nearest::{Neighbour, each_nearest};
use super::two_nn::TwoNn;
use crate::error::Result;
use crate::statistics::normal;

/// Random numbers that are held at once for Gaussian points.
const DRAWN: usize = 16 << 20;

/// Points in f32, all different.
///
/// A ratio of distances has no meaning where the first distance is zero. So of points that are equal in every number only the
/// first is kept, and the others are counted; then no distance is zero.
#[derive(Debug, Clone)]
pub struct Points {
    /// `[point, dim]`, row after row.
    values: Vec<f32>,
    dim: usize,
    /// Which of those given each is.
    numbers: Vec<usize>,
    given: usize,
}

impl Points {
    /// From `[point, dim]`; an error where a number is not finite (in f32), or fewer than three different points are left.
    pub fn new(points: &Tensor) -> Result<Self> {
        let (given, dim) = points.dims2()?;
        let all = points.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = all.iter().position(|value| !value.is_finite()) {
            return fail(format!("number {} of point {} is {}", at % dim, at / dim, all[at]));
        }
        let row = |number: usize| &all[number * dim..(number + 1) * dim];
        let hash = |number: usize| {
            let mut hasher = DefaultHasher::new();
            // Minus zero is zero.
            row(number).iter().for_each(|value| hasher.write_u32((value + 0.).to_bits()));
            hasher.finish()
        };
        let hashes: Vec<u64> = (0..given).into_par_iter().map(hash).collect();
        let (mut seen, mut numbers) = (HashMap::<u64, Vec<usize>>::new(), Vec::new());
        for (number, hash) in hashes.into_iter().enumerate() {
            let alike = seen.entry(hash).or_default();
            if !alike.iter().any(|&other| row(other) == row(number)) {
                alike.push(number);
                numbers.push(number);
            }
        }
        let values = match numbers.len() == given {
            true => all,
            false => numbers.iter().flat_map(|&number| row(number)).copied().collect(),
        };
        match numbers.len() {
            0..3 => {
                fail(format!("of {given} points of dimension {dim} {} are different; it needs three", numbers.len()))
            }
            _ => Ok(Self { values, dim, numbers, given }),
        }
    }

    /// How many there are, each once.
    pub fn count(&self) -> usize {
        self.numbers.len()
    }

    /// How many of those given were equal to another and left out.
    pub fn duplicates(&self) -> usize {
        self.given - self.count()
    }

    /// Which of those given each is, in order.
    pub fn numbers(&self) -> &[usize] {
        &self.numbers
    }

    /// `ln(r2 / r1)` of each point: of its distances to its second and its first neighbour.
    pub fn log_ratios(&self) -> Result<Vec<f64>> {
        log_ratios(&self.values, self.dim)
    }

    /// The dimension around each point: [`TwoNn`] on its `neighbours` nearest neighbours (without itself) as points of their
    /// own, as scikit-dimension's `fit_pw` does; none where [`TwoNn::estimate`] has none.
    pub fn local(&self, neighbours: usize, two_nn: &TwoNn) -> Result<Vec<Option<f64>>> {
        two_nn.check()?;
        if neighbours < 3 || neighbours >= self.count() {
            let count = self.count();
            return fail(format!("{neighbours} neighbours of {count} points: it needs 3 at least, and a point more"));
        }
        each_nearest(&self.values, self.dim, neighbours, |near| {
            let row = |near: &Neighbour| &self.values[near.point * self.dim..(near.point + 1) * self.dim];
            let mut logs = log_ratios(&near.iter().map(row).collect::<Vec<_>>().concat(), self.dim)?;
            logs.sort_by(f64::total_cmp);
            Ok(two_nn.of_sorted(&logs))
        })
    }

    /// As many independent Gaussian points with the covariance of these: whatever is linear about them is the same, and nothing
    /// else is.
    ///
    /// Each is `Σ_i g_i (x_i - mean) / sqrt(N - 1)` with standard normal `g_i`.
    pub fn gaussian(&self, seed: u64) -> Result<Self> {
        let (count, dim) = (self.count(), self.dim);
        let mut mean = vec![0f64; dim];
        for point in self.values.chunks(dim) {
            mean.iter_mut().zip(point).for_each(|(mean, &value)| *mean += f64::from(value) / count as f64);
        }
        let from_mean = |(at, &value): (usize, &f32)| (f64::from(value) - mean[at % dim]) as f32;
        let deviations: Vec<f32> = self.values.iter().enumerate().map(from_mean).collect();
        let deviations = Tensor::from_vec(deviations, (count, dim), &Device::Cpu)?;
        let scale = 1. / ((count - 1) as f64).sqrt();
        let mut blocks = Vec::new();
        let rows: Vec<u64> = (0..count as u64).collect();
        for rows in rows.chunks((DRAWN / count).max(1)) {
            // A stream for each point, so that threads change nothing.
            let draws = |&row: &u64| {
                let mut generator = ChaCha8Rng::seed_from_u64(seed);
                generator.set_stream(row);
                (0..count).map(|_| (normal(&mut generator) * scale) as f32).collect::<Vec<f32>>()
            };
            let drawn: Vec<f32> = rows.par_iter().flat_map_iter(draws).collect();
            blocks.push(Tensor::from_vec(drawn, (rows.len(), count), &Device::Cpu)?.matmul(&deviations)?);
        }
        Self::new(&Tensor::cat(&blocks, 0)?)
    }

    /// As many points in independent directions, each as likely as any other, and each as long as one of these: noise without any
    /// structure, whose dimension says only what the estimator makes of so many points in so many dimensions.
    pub fn isotropic(&self, seed: u64) -> Result<Self> {
        let length = |point: &[f64]| point.iter().map(|value| value * value).sum::<f64>().sqrt();
        // A stream for each point, as above.
        let noise = |(number, point): (usize, &[f32])| {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            generator.set_stream(number as u64);
            let direction: Vec<f64> = point.iter().map(|_| normal(&mut generator)).collect();
            let own: Vec<f64> = point.iter().map(|&value| f64::from(value)).collect();
            let scale = length(&own) / length(&direction);
            direction.into_iter().map(move |value| (value * scale) as f32)
        };
        let values: Vec<f32> = self.values.chunks(self.dim).enumerate().flat_map(noise).collect();
        Self::new(&Tensor::from_vec(values, (self.count(), self.dim), &Device::Cpu)?)
    }
}

fn log_ratios(points: &[f32], dim: usize) -> Result<Vec<f64>> {
    each_nearest(points, dim, 2, |near| Ok((near[1].squared_distance / near[0].squared_distance).ln() / 2.))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isotropic_noise_is_as_long_as_the_points() {
        let values = Tensor::new(&[[3f32, 4., 0.], [0., 0., -2.], [0., 0., 0.], [1., 2., 2.]], &Device::Cpu).unwrap();
        let noise = Points::new(&values).unwrap().isotropic(7).unwrap();
        let norm = |point: &[f32]| point.iter().map(|value| value * value).sum::<f32>().sqrt();
        for (point, expected) in noise.values.chunks(3).zip([5., 2., 0., 3.]) {
            assert!((norm(point) - expected).abs() < 1e-5, "{point:?}");
        }
        assert_ne!(noise.values[..3], [3., 4., 0.]);
    }
}
