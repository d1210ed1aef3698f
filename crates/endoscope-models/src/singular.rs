//! Singular values by one-sided Jacobi rotations (Hestenes 1958): slow for large matrices, accurate and without surprises
//! for the small cores of [`crate::factored`]. nalgebra's own decomposition gives wrong values for some singular matrices.

use nalgebra::DMatrix;

/// How often all pairs of columns are visited; a dozen visits are many.
const SWEEPS: usize = 100;

/// `U diag(values) V^T` of a matrix `[p, q]`, with `k = min(p, q)` values, the largest first.
pub(crate) struct Decomposed {
    /// `[p, k]`, its columns orthonormal.
    pub left: DMatrix<f64>,
    pub values: Vec<f64>,
    /// `V` `[q, k]`, its columns orthonormal.
    pub right: DMatrix<f64>,
}

/// Turns columns in pairs until all are orthogonal; nothing if they never are.
pub(crate) fn decompose(x: &DMatrix<f64>) -> Option<Decomposed> {
    if x.nrows() < x.ncols() {
        let Decomposed { left, values, right } = decompose(&x.transpose())?;
        return Some(Decomposed { left: right, values, right: left });
    }
    // Of size one, so that no square is beyond what f64 holds.
    let scale = x.amax();
    let mut columns = if scale == 0. { x.clone() } else { x / scale };
    let count = x.ncols();
    let mut right = DMatrix::identity(count, count);
    for _ in 0..SWEEPS {
        let mut turned = false;
        for first in 0..count {
            for second in first + 1..count {
                turned |= make_orthogonal(&mut columns, &mut right, first, second);
            }
        }
        if !turned {
            return Some(sorted(&columns, scale, &right));
        }
    }
    None
}

/// Turns two columns in their plane so that their product vanishes; whether that was needed.
fn make_orthogonal(columns: &mut DMatrix<f64>, right: &mut DMatrix<f64>, first: usize, second: usize) -> bool {
    let (a, b) = (columns.column(first), columns.column(second));
    let (squares, product) = ((a.norm_squared(), b.norm_squared()), a.dot(&b));
    let rounding = f64::EPSILON * columns.nrows() as f64 * squares.0.sqrt() * squares.1.sqrt();
    if product.abs() <= rounding.max(f64::MIN_POSITIVE / f64::EPSILON) {
        return false;
    }
    let cotangent = (squares.1 - squares.0) / (2. * product);
    let tangent = cotangent.signum() / (cotangent.abs() + cotangent.hypot(1.));
    let cosine = 1. / tangent.hypot(1.);
    for matrix in [columns, right] {
        turn(matrix, first, second, cosine, cosine * tangent);
    }
    true
}

fn turn(x: &mut DMatrix<f64>, first: usize, second: usize, cosine: f64, sine: f64) {
    let rows = x.nrows();
    let (before, after) = x.as_mut_slice().split_at_mut(second * rows);
    for (a, b) in before[first * rows..].iter_mut().zip(&mut after[..rows]).take(rows) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

fn sorted(columns: &DMatrix<f64>, scale: f64, right: &DMatrix<f64>) -> Decomposed {
    let norms: Vec<f64> = columns.column_iter().map(|column| column.norm()).collect();
    let mut order: Vec<usize> = (0..norms.len()).collect();
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
    let largest = order.first().map_or(0., |&at| norms[at]);
    let mut left = DMatrix::zeros(columns.nrows(), order.len());
    for (to, &from) in order.iter().enumerate() {
        let direction = match norms[from] > f64::EPSILON * largest {
            true => columns.column(from) / norms[from],
            // A value that is zero or rounding has any direction that is left.
            false => another_direction(&left.columns(0, to).into_owned()),
        };
        left.set_column(to, &direction);
    }
    let values = order.iter().map(|&at| norms[at] * scale).collect();
    Decomposed { left, values, right: right.select_columns(&order) }
}

/// A vector of norm one that is orthogonal to the orthonormal columns of `basis`: what is left of some axis.
fn another_direction(basis: &DMatrix<f64>) -> nalgebra::DVector<f64> {
    let rows = basis.nrows();
    // Of every axis `1 - |row|^2` is left.
    let left = |row: usize| 1. - basis.row(row).norm_squared();
    let axis = (0..rows).max_by(|&a, &b| left(a).total_cmp(&left(b))).unwrap_or(0);
    let mut direction = nalgebra::DVector::zeros(rows);
    if let Some(entry) = direction.get_mut(axis) {
        *entry = 1.;
    }
    // Twice, since once leaves rounding.
    for _ in 0..2 {
        direction -= basis * (basis.transpose() * &direction);
        direction.normalize_mut();
    }
    direction
}
