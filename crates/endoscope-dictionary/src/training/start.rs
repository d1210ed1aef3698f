//! Where weights start.

use rand::{Rng, RngExt};

use crate::matrix::{Matrix, norm};

/// `[rows, width]`: directions drawn evenly over the sphere, of length `length`.
pub(crate) fn directions(rows: usize, width: usize, length: f32, random: &mut impl Rng) -> Vec<f32> {
    let mut values: Vec<f32> = (0..rows * width).map(|_| gaussian(random)).collect();
    for row in values.chunks_exact_mut(width.max(1)) {
        let own = norm(row);
        if own > 0. {
            row.iter_mut().for_each(|x| *x *= length / own);
        }
    }
    values
}

/// A standard normal number (Box and Muller 1958).
pub(crate) fn gaussian(random: &mut impl Rng) -> f32 {
    let (radius, angle) = (1. - random.random::<f64>(), random.random::<f64>());
    ((-2. * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
}

/// The point whose summed distance to all rows is least, by Weiszfeld's iteration from the mean (Weiszfeld 1937).
pub(crate) fn geometric_median(rows: &Matrix) -> Vec<f32> {
    const ITERATIONS: usize = 100;
    const TOLERANCE: f64 = 1e-6;
    let mut median: Vec<f64> = rows.mean().into_iter().map(f64::from).collect();
    for _ in 0..ITERATIONS {
        let mut sum = vec![0f64; median.len()];
        let mut weights = 0f64;
        for row in rows.iter() {
            let distance = row.iter().zip(&median).map(|(&x, m)| (f64::from(x) - m).powi(2)).sum::<f64>().sqrt();
            let weight = 1. / distance.max(1e-9);
            weights += weight;
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
        }
        if weights == 0. {
            break;
        }
        let next: Vec<f64> = sum.iter().map(|sum| sum / weights).collect();
        let moved = next.iter().zip(&median).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let size = next.iter().map(|x| x * x).sum::<f64>().sqrt();
        median = next;
        if moved <= TOLERANCE * size.max(1e-9) {
            break;
        }
    }
    median.into_iter().map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_median_is_not_moved_by_one_far_point() {
        let mut values = Vec::new();
        for at in 0..40 {
            let angle = at as f32 * std::f32::consts::TAU / 40.;
            values.extend([3. + angle.cos(), -1. + angle.sin()]);
        }
        values.extend([1e4, 1e4]);
        let rows = Matrix::new(41, 2, values).unwrap();
        let median = geometric_median(&rows);
        assert!((median[0] - 3.).abs() < 0.1 && (median[1] + 1.).abs() < 0.1, "{median:?}");
        assert!(rows.mean()[0] > 200.);
    }

    #[test]
    fn directions_have_their_length_and_no_common_side() {
        let rows = directions(500, 8, 0.1, &mut ChaCha8Rng::seed_from_u64(1));
        let matrix = Matrix::new(500, 8, rows).unwrap();
        assert!(matrix.norms().iter().all(|norm| (norm - 0.1).abs() < 1e-6));
        assert!(matrix.mean().iter().all(|mean| mean.abs() < 0.01));
    }
}
