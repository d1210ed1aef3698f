//! A product of two thin matrices, `A B`, whose norms, singular values and eigenvalues are had without forming it.
//!
//! What a head does is such a product: `W_Q W_K^T` and `W_V W_O` are `[d, d]` of rank d_head. Letters in shapes: m rows and
//! n columns of the product, r the inner axis. All of it is computed in f64.

use candle_core::{DType, Device, Tensor};
use nalgebra::DMatrix;
use nalgebra::linalg::{QR, Schur};

use crate::error::{Error, Result};
use crate::singular::{self, Decomposed};

/// How often an iteration may turn for each row of its matrix; LAPACK allows 30.
const TURNS: usize = 100;

/// How far the sums of eigenvalues may be from the traces, relative to the matrix's norm.
const CHECKED: f64 = 1e-9;

/// `A B`.
#[derive(Debug, Clone, PartialEq)]
pub struct Factored {
    /// `[m, r]`.
    left: DMatrix<f64>,
    /// `[r, n]`.
    right: DMatrix<f64>,
}

/// `U diag(values) V^T`, with `k = min(m, r, n)` values.
#[derive(Debug, Clone)]
pub struct Svd {
    /// `[m, k]`, its columns orthonormal.
    pub left: Tensor,
    /// The singular values, the largest first.
    pub values: Vec<f64>,
    /// `V` `[n, k]`, its columns orthonormal.
    pub right: Tensor,
}

/// A complex number that a matrix multiplies some vector by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Eigenvalue {
    /// Its real part.
    pub real: f64,
    /// Its imaginary part.
    pub imaginary: f64,
}

impl Eigenvalue {
    /// Its absolute value.
    pub fn magnitude(self) -> f64 {
        self.real.hypot(self.imaginary)
    }
}

impl Factored {
    /// `left` `[m, r]` times `right` `[r, n]`.
    pub fn new(left: &Tensor, right: &Tensor) -> Result<Self> {
        let (left, right) = (matrix(left)?, matrix(right)?);
        if left.ncols() != right.nrows() {
            let reason = format!("{:?} and {:?} have no common inner axis", left.shape(), right.shape());
            return Err(Error::Factored { what: "a product", reason });
        }
        Ok(Self { left, right })
    }

    /// `(m, n)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.left.nrows(), self.right.ncols())
    }

    /// r: no rank is higher.
    pub fn inner(&self) -> usize {
        self.left.ncols()
    }

    /// `B^T A^T`.
    pub fn transpose(&self) -> Self {
        Self { left: self.right.transpose(), right: self.left.transpose() }
    }

    /// The product itself, `[m, n]` in f32.
    pub fn product(&self) -> Result<Tensor> {
        tensor(&(&self.left * &self.right))
    }

    /// `[k, n]` with the norms of the product, also of any `A B C`: `R B` where `A = Q R` and Q is orthonormal.
    pub fn without_left(&self) -> Result<Tensor> {
        tensor(&(triangle(&self.left) * &self.right))
    }

    /// `[m, k]` with the norms of the product, also of any `C A B`: `A R^T` where `B^T = Q R` and Q is orthonormal.
    pub fn without_right(&self) -> Result<Tensor> {
        tensor(&(&self.left * triangle(&self.right.transpose()).transpose()))
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> f64 {
        (triangle(&self.left) * &self.right).norm()
    }

    /// The sum of the diagonal of a square product.
    pub fn trace(&self) -> Result<f64> {
        self.square("the trace")?;
        Ok(self.left.dot(&self.right.transpose()))
    }

    /// The singular values, the largest first: `min(m, r, n)`.
    pub fn singular_values(&self) -> Result<Vec<f64>> {
        let core = triangle(&self.left) * triangle(&self.right.transpose()).transpose();
        Ok(decompose(&core)?.values)
    }

    /// The singular values and vectors.
    pub fn svd(&self) -> Result<Svd> {
        let (left, right) = (QR::new(self.left.clone()), QR::new(self.right.transpose()));
        let core = decompose(&(left.r() * right.r().transpose()))?;
        Ok(Svd {
            left: tensor(&(left.q() * core.left))?,
            values: core.values,
            right: tensor(&(right.q() * core.right))?,
        })
    }

    /// The eigenvalues of a square product, the largest magnitude first: `min(m, r)`, and all others are zero.
    ///
    /// `A B` and `B A` have the same but for zeros, so the smaller of the two is decomposed.
    pub fn eigenvalues(&self) -> Result<Vec<Eigenvalue>> {
        self.square("eigenvalues")?;
        let small = match self.inner() <= self.left.nrows() {
            true => &self.right * &self.left,
            false => &self.left * &self.right,
        };
        // An iteration can stand still, as on a cyclic shift; on the same matrix plus a multiple of one it does not.
        let shifts = [0., 0.1 * small.norm()];
        let found = shifts.iter().find_map(|&shift| eigenvalues_of(&small, shift));
        let mut values = found.ok_or_else(|| no_end("eigenvalues"))?;
        values.sort_by(|a, b| {
            let other = b.magnitude().total_cmp(&a.magnitude());
            other.then(b.real.total_cmp(&a.real)).then(b.imaginary.total_cmp(&a.imaginary))
        });
        Ok(values)
    }

    fn square(&self, what: &'static str) -> Result<()> {
        match self.shape() {
            (m, n) if m == n => Ok(()),
            (m, n) => Err(Error::Factored { what, reason: format!("the product is {m} x {n} and not square") }),
        }
    }
}

/// A matrix in f64, every number of which is finite: no decomposition ends otherwise.
fn matrix(x: &Tensor) -> Result<DMatrix<f64>> {
    let (rows, columns) = x.dims2()?;
    let values = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::Factored { what: "a product", reason: "a factor holds numbers that are not finite".into() });
    }
    Ok(DMatrix::from_row_iterator(rows, columns, values))
}

fn tensor(x: &DMatrix<f64>) -> Result<Tensor> {
    // Column after column of the transpose is row after row.
    let values = x.transpose().iter().map(|&value| value as f32).collect();
    Ok(Tensor::from_vec(values, x.shape(), &Device::Cpu)?)
}

/// `R` of `x = Q R`: `[min(m, r), r]`.
fn triangle(x: &DMatrix<f64>) -> DMatrix<f64> {
    QR::new(x.clone()).unpack_r()
}

fn decompose(core: &DMatrix<f64>) -> Result<Decomposed> {
    singular::decompose(core).ok_or_else(|| no_end("singular values"))
}

/// The eigenvalues of `x`, had from `x + shift`; nothing if there is no end, or if they are not those of `x`.
fn eigenvalues_of(x: &DMatrix<f64>, shift: f64) -> Option<Vec<Eigenvalue>> {
    if x.is_empty() {
        return Some(Vec::new());
    }
    let shifted = x + DMatrix::identity(x.nrows(), x.ncols()) * shift;
    let schur = Schur::try_new(shifted, f64::EPSILON, TURNS * x.nrows())?;
    let values = schur.complex_eigenvalues();
    let values = values.iter().map(|value| Eigenvalue { real: value.re - shift, imaginary: value.im });
    let values: Vec<Eigenvalue> = values.collect();
    // The sums of them and of their squares are the traces of x and of its square.
    let sum: f64 = values.iter().map(|value| value.real).sum();
    let squares: f64 = values.iter().map(|value| (value.real - value.imaginary) * (value.real + value.imaginary)).sum();
    let norm = x.norm();
    let right = (sum - x.trace()).abs() <= CHECKED * norm * x.nrows() as f64
        && (squares - x.dot(&x.transpose())).abs() <= CHECKED * norm * norm;
    right.then_some(values)
}

fn no_end(what: &'static str) -> Error {
    Error::Factored { what, reason: "the iteration does not converge on these numbers".into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn random(rows: usize, columns: usize) -> impl Strategy<Value = Tensor> {
        proptest::collection::vec(-2f32..2., rows * columns)
            .prop_map(move |values| Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap())
    }

    /// Factors `[m, r]` and `[r, n]`, wide and thin, with zeros in the second where `deficient`.
    fn factors() -> impl Strategy<Value = Factored> {
        (1usize..9, 1usize..9, 1usize..9, any::<bool>()).prop_flat_map(|(m, r, n, deficient)| {
            (random(m, r), random(r, n)).prop_map(move |(left, right)| {
                let right = if deficient { (right.zeros_like().unwrap() + 1.).unwrap() } else { right };
                Factored::new(&left, &right).unwrap()
            })
        })
    }

    fn square() -> impl Strategy<Value = Factored> {
        (1usize..9, 1usize..9).prop_flat_map(|(m, r)| {
            (random(m, r), random(r, m)).prop_map(|(left, right)| Factored::new(&left, &right).unwrap())
        })
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-5 * (1. + a.abs().max(b.abs()))
    }

    fn norm(x: &Tensor) -> f64 {
        f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
    }

    fn apart(a: &Tensor, b: &Tensor) -> f64 {
        norm(&(a - b).unwrap())
    }

    proptest! {
        #[test]
        fn the_decomposition_is_the_product(factored in factors()) {
            let Svd { left, values, right } = factored.svd().unwrap();
            let product = factored.product().unwrap();
            let diagonal = Tensor::from_iter(values.iter().map(|&value| value as f32), &Device::Cpu).unwrap();
            let again = left.broadcast_mul(&diagonal).unwrap().matmul(&right.t().unwrap()).unwrap();
            prop_assert!(apart(&again, &product) <= 1e-4 * (1. + norm(&product)));
            for vectors in [&left, &right] {
                let own = vectors.t().unwrap().matmul(vectors).unwrap();
                prop_assert!(apart(&own, &Tensor::eye(values.len(), DType::F32, &Device::Cpu).unwrap()) < 1e-4);
            }
            let (m, n) = factored.shape();
            prop_assert_eq!(values.len(), m.min(n).min(factored.inner()));
            prop_assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
            let alone = factored.singular_values().unwrap();
            prop_assert!(values.iter().zip(alone).all(|(&a, b)| close(a, b)));
        }

        #[test]
        fn norms_are_those_of_the_product(factored in factors(), other in random(5, 3)) {
            let product = factored.product().unwrap();
            prop_assert!(close(factored.norm(), norm(&product)));
            prop_assert!(close(factored.transpose().norm(), norm(&product)));
            let squares: f64 = factored.singular_values().unwrap().iter().map(|value| value * value).sum();
            prop_assert!(close(squares.sqrt(), norm(&product)));
            // Also in longer products, on either side.
            let (m, n) = factored.shape();
            let before = other.flatten_all().unwrap().narrow(0, 0, m.min(n)).unwrap();
            let before = before.reshape((1, m.min(n))).unwrap();
            if m <= n {
                let short = before.matmul(&factored.without_right().unwrap()).unwrap();
                prop_assert!(close(norm(&short), norm(&before.matmul(&product).unwrap())));
            } else {
                let after = before.t().unwrap();
                let short = factored.without_left().unwrap().matmul(&after).unwrap();
                prop_assert!(close(norm(&short), norm(&product.matmul(&after).unwrap())));
            }
        }

        #[test]
        fn eigenvalues_sum_to_the_traces_of_powers(factored in square()) {
            let values = factored.eigenvalues().unwrap();
            let product = matrix(&factored.product().unwrap()).unwrap();
            let sum: f64 = values.iter().map(|value| value.real).sum();
            prop_assert!(close(sum, factored.trace().unwrap()));
            prop_assert!(close(sum, product.trace()));
            prop_assert!(values.iter().map(|value| value.imaginary).sum::<f64>().abs() < 1e-6);
            let squares: f64 = values.iter().map(|value| value.real.powi(2) - value.imaginary.powi(2)).sum();
            let second = (&product * &product).trace();
            prop_assert!((squares - second).abs() <= 1e-4 * (1. + product.norm_squared()));
        }
    }

    fn tensor_of(rows: &[&[f32]]) -> Tensor {
        Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn turns_and_shifts_have_complex_eigenvalues() {
        let one = |size| Tensor::eye(size, DType::F32, &Device::Cpu).unwrap();
        let turn = Factored::new(&tensor_of(&[&[0., -1.], &[1., 0.]]), &one(2)).unwrap().eigenvalues().unwrap();
        assert!(close(turn[0].imaginary, 1.) && close(turn[1].imaginary, -1.) && close(turn[0].real, 0.), "{turn:?}");
        // The cyclic shift, on which iterations without exceptional shifts stand still: roots of one.
        for size in 2..12 {
            let mut shift = vec![0f32; size * size];
            (0..size).for_each(|row| shift[row * size + (row + 1) % size] = 1.);
            let shift = Tensor::from_vec(shift, (size, size), &Device::Cpu).unwrap();
            let values = Factored::new(&shift, &one(size)).unwrap().eigenvalues().unwrap();
            assert!(values.iter().all(|value| close(value.magnitude(), 1.)), "{size}: {values:?}");
            let sum: f64 = values.iter().map(|value| value.real).sum();
            assert!(sum.abs() < 1e-6, "{size}: {values:?}");
        }
        let zero = Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap();
        let none = Factored::new(&zero, &zero).unwrap();
        assert!(none.eigenvalues().unwrap().iter().all(|value| value.magnitude() == 0.));
        assert!(none.singular_values().unwrap().iter().all(|&value| value == 0.));
    }

    #[test]
    fn nearly_singular_cores_have_their_values() {
        // nalgebra 0.35 gives 3.43 for this one.
        let left = tensor_of(&[&[1.1425391, -1.7625669, 1.3579298], &[0., -0.21380727, -1.1938941]]);
        let right = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
        let values = Factored::new(&left, &right).unwrap().singular_values().unwrap();
        // The product has four equal columns: the sums of the rows.
        let expected = 2. * f64::hypot(1.1425391 - 1.7625669 + 1.3579298, -0.21380727 - 1.1938941);
        assert!(close(values[0], expected) && values[1] < 1e-12, "{values:?} {expected}");
    }

    #[test]
    fn what_cannot_be_computed_is_said() {
        let a = tensor_of(&[&[1., 2.]]);
        let error = |result: Result<Factored>| result.unwrap_err().to_string();
        assert!(error(Factored::new(&a, &a)).contains("no common inner axis"));
        let odd = tensor_of(&[&[f32::NAN, 2.]]);
        assert!(error(Factored::new(&odd, &a.t().unwrap())).contains("not finite"));
        let wide = Factored::new(&tensor_of(&[&[1.]]), &a).unwrap();
        assert!(wide.eigenvalues().unwrap_err().to_string().contains("1 x 2 and not square"));
        assert!(wide.trace().is_err());
        // The largest numbers that weights can be.
        let huge = tensor_of(&[&[f32::MAX, f32::MAX], &[f32::MAX, -f32::MAX]]);
        let huge = Factored::new(&huge, &huge).unwrap();
        assert!(huge.norm().is_finite());
        assert!(huge.eigenvalues().is_ok() && huge.singular_values().is_ok());
    }
}
