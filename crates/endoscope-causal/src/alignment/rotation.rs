//! Rotations: matrices with orthonormal rows, and steps that keep them so.
//!
//! The matrix itself is what is trained. A step follows the part of the gradient that lies in the tangent space of
//! the matrices with orthonormal rows, and is followed by a retraction: the Q of a QR decomposition (Absil, Mahony and
//! Sepulchre 2008, "Optimization Algorithms on Matrix Manifolds", equations 3.35 and 4.8). Against a product of Householder
//! reflections or a Cayley transform this puts nothing between the numbers that are trained and the intervention, and its
//! orthogonality does not wear off: it is restored in f64 after each step.

use candle_core::{Device, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// `count` orthonormal rows `[count, dim]`, evenly distributed over all such matrices; at most `dim`.
pub(crate) fn random(count: usize, dim: usize, random: &mut ChaCha8Rng) -> Result<Tensor> {
    // Box-Muller: the direction of a normal vector is even over the sphere.
    let mut normal = || {
        let (u, v) = (1. - random.random::<f64>(), random.random::<f64>());
        (-2. * u.ln()).sqrt() * (2. * std::f64::consts::PI * v).cos()
    };
    let rows = (0..count).map(|_| (0..dim).map(|_| normal()).collect()).collect();
    orthonormal(rows, dim)
}

/// The nearest step back to orthonormal rows `[row, dim]`: each row less its part in those before it, at length 1.
pub(crate) fn retract(matrix: &Tensor) -> Result<Tensor> {
    let dim = matrix.dim(1)?;
    orthonormal(matrix.to_dtype(candle_core::DType::F64)?.to_vec2::<f64>()?, dim)
}

/// Gram-Schmidt in f64, and once more where little of a row is left: then it was not enough.
fn orthonormal(mut rows: Vec<Vec<f64>>, dim: usize) -> Result<Tensor> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for at in 0..rows.len() {
        let (before, rest) = rows.split_at_mut(at);
        let row = &mut rest[0];
        let whole = dot(row, row).sqrt();
        let mut left = whole;
        for _ in 0..2 {
            let most = left;
            for known in before.iter() {
                let along = dot(known, row);
                row.iter_mut().zip(known).for_each(|(x, known)| *x -= along * known);
            }
            left = dot(row, row).sqrt();
            if left > 0.5 * most {
                break;
            }
        }
        if !left.is_finite() || left <= 1e-9 * whole {
            return Err(Error::Alignment(format!(
                "row {at} of the rotation has collapsed; try a smaller learning rate"
            )));
        }
        row.iter_mut().for_each(|x| *x /= left);
    }
    let data: Vec<f32> = rows.concat().into_iter().map(|x| x as f32).collect();
    Ok(Tensor::from_vec(data, (rows.len(), dim), &Device::Cpu)?)
}

/// The part of a gradient in the tangent space at `rotation`: `G - sym(G R^T) R`. `[row, dim]`
pub(crate) fn tangent(gradient: &Tensor, rotation: &Tensor) -> Result<Tensor> {
    let products = gradient.matmul(&rotation.t()?)?;
    let symmetric = ((&products + products.t()?)? * 0.5)?;
    Ok((gradient - symmetric.matmul(rotation)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alignment::generator;

    /// How far `R R^T` is from the identity.
    fn off(rotation: &Tensor) -> f32 {
        let rows = rotation.dim(0).unwrap();
        let products = rotation.matmul(&rotation.t().unwrap()).unwrap();
        let identity = Tensor::eye(rows, candle_core::DType::F32, &Device::Cpu).unwrap();
        (products - identity).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    #[test]
    fn rows_are_orthonormal_from_the_start_and_after_many_steps() {
        for (count, dim) in [(1, 1), (1, 5), (3, 8), (32, 32), (17, 64)] {
            let mut draw = generator(3, 0);
            let mut rotation = random(count, dim, &mut draw).unwrap();
            for step in 0..50 {
                assert!(off(&rotation) < 1e-5, "{count} of {dim}, step {step}: {}", off(&rotation));
                let push = random(count, dim, &mut draw).unwrap();
                let push = tangent(&push, &rotation).unwrap();
                // A tangent moves no length to first order: R P^T + P R^T = 0.
                let turned = rotation.matmul(&push.t().unwrap()).unwrap();
                let symmetric = (&turned + turned.t().unwrap()).unwrap().abs().unwrap();
                assert!(symmetric.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
                rotation = retract(&(rotation + (push * 0.3).unwrap()).unwrap()).unwrap();
            }
        }
    }

    #[test]
    fn a_retraction_keeps_what_is_orthonormal_and_refuses_what_has_collapsed() {
        let rotation = random(4, 9, &mut generator(1, 0)).unwrap();
        let again = retract(&rotation).unwrap();
        let change = (&again - &rotation).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(change < 1e-6);
        for rows in [[[1f32, 0.], [2., 0.]], [[0., 0.], [0., 1.]], [[f32::NAN, 0.], [0., 1.]]] {
            assert!(retract(&Tensor::new(&rows, &Device::Cpu).unwrap()).is_err());
        }
    }
}
