//! Rows of numbers: activations, and the weights of a dictionary.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A matrix of f32, row after row.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

/// A matrix as a file may hold it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl TryFrom<Unchecked> for Matrix {
    type Error = Error;
    fn try_from(Unchecked { rows, columns, values }: Unchecked) -> Result<Self> {
        Self::new(rows, columns, values)
    }
}

impl Matrix {
    /// From `rows * columns` values, row after row.
    pub fn new(rows: usize, columns: usize, values: Vec<f32>) -> Result<Self> {
        match rows.checked_mul(columns) == Some(values.len()) {
            true => Ok(Self { rows, columns, values }),
            false => {
                let reason = format!("{} numbers are no {rows} rows of {columns}", values.len());
                Err(Error::Activations(reason))
            }
        }
    }

    /// All zero.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.; rows * columns] }
    }

    /// The vectors along the last axis of a tensor: `[…, columns]`.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let columns = tensor.dims().last().copied().unwrap_or(1);
        let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Self::new(tensor.elem_count() / columns.max(1), columns, values)
    }

    /// As a tensor `[rows, columns]`.
    pub fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.values, (self.rows, self.columns), &Device::Cpu)?)
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// The same, to be changed.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.columns..][..self.columns]
    }

    /// Each row.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        (0..self.rows).map(|row| self.row(row))
    }

    /// These rows, in this order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        let mut values = Vec::new();
        let mut count = 0;
        for row in rows {
            values.extend_from_slice(self.row(row));
            count += 1;
        }
        Self { rows: count, columns: self.columns, values }
    }

    /// Rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        let mut values = vec![0.; self.values.len()];
        // Square blocks, so that neither side is read or written far apart.
        const BLOCK: usize = 32;
        for top in (0..self.rows).step_by(BLOCK) {
            for left in (0..self.columns).step_by(BLOCK) {
                for row in top..(top + BLOCK).min(self.rows) {
                    for column in left..(left + BLOCK).min(self.columns) {
                        values[column * self.rows + row] = self.values[row * self.columns + column];
                    }
                }
            }
        }
        Self { rows: self.columns, columns: self.rows, values }
    }

    /// The product with `other`'s rows as columns: `[rows, n] · [m, n]ᵀ -> [rows, m]`.
    pub fn times_transposed(&self, other: &Self) -> Result<Self> {
        let product = Self::from_tensor(&self.tensor()?.matmul(&other.tensor()?.t()?)?)?;
        Ok(product)
    }

    /// The length of each row.
    pub fn norms(&self) -> Vec<f32> {
        self.iter().map(norm).collect()
    }

    /// The mean row, in f64.
    pub fn mean(&self) -> Vec<f32> {
        let mut sums = vec![0f64; self.columns];
        for row in self.iter() {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        sums.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }

    /// Errors unless rows have `columns` finite values.
    pub fn check(&self, columns: usize) -> Result<()> {
        if self.columns != columns {
            let reason = format!("they have {} dimensions, the dictionary reads {columns}", self.columns);
            return Err(Error::Activations(reason));
        }
        match self.values.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let (row, column) = (at / columns.max(1), at % columns.max(1));
                let reason = format!("row {row} holds {} in dimension {column}", self.values[at]);
                Err(Error::Activations(reason))
            }
        }
    }
}

/// The length of a vector, summed in f64.
pub fn norm(vector: &[f32]) -> f32 {
    vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_twice_changes_nothing() {
        let matrix = Matrix::new(37, 70, (0..37 * 70).map(|x| x as f32).collect()).unwrap();
        let transposed = matrix.transposed();
        assert_eq!((transposed.rows(), transposed.columns(), transposed.row(69)[36]), (70, 37, 37. * 70. - 1.));
        assert_eq!(transposed.transposed(), matrix);
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let matrix = Matrix::new(2, 2, vec![0., 1., f32::NAN, 2.]).unwrap();
        let error = matrix.check(2).unwrap_err().to_string();
        assert!(error.contains("row 1 holds NaN in dimension 0"), "{error}");
        assert!(matrix.check(3).unwrap_err().to_string().contains("have 2 dimensions, the dictionary reads 3"));
        assert!(Matrix::new(2, 2, vec![0.; 3]).is_err());
    }

    #[test]
    fn means_and_norms() {
        let matrix = Matrix::new(2, 2, vec![3., 4., 1., 0.]).unwrap();
        assert_eq!((matrix.norms(), matrix.mean()), (vec![5., 1.], vec![2., 2.]));
        assert_eq!(matrix.times_transposed(&matrix).unwrap().values(), [25., 3., 3., 1.]);
        assert_eq!(matrix.select([1]).values(), [1., 0.]);
    }
}
