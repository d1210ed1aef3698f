//! Corrections of p-values where many things were tested at once.

use super::fail;
use crate::error::Result;

fn sorted(p: &[f64]) -> Result<Vec<usize>> {
    if let Some(bad) = p.iter().find(|p| !(0. ..=1.).contains(*p)) {
        return fail(format!("a p-value lies between 0 and 1; {bad} does not"));
    }
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    Ok(order)
}

/// Holm 1979: those below a level are together as sure as that level says (no false one, but for that chance). In the order of `p`.
pub fn holm(p: &[f64]) -> Result<Vec<f64>> {
    let (mut corrected, mut least) = (vec![0.; p.len()], 0f64);
    for (rank, at) in sorted(p)?.into_iter().enumerate() {
        least = least.max(p[at] * (p.len() - rank) as f64).min(1.);
        corrected[at] = least;
    }
    Ok(corrected)
}

/// Benjamini and Hochberg 1995: of those below a level, that share at most is expected to be false. In the order of `p`.
pub fn benjamini_hochberg(p: &[f64]) -> Result<Vec<f64>> {
    let (mut corrected, mut most) = (vec![0.; p.len()], 1f64);
    for (rank, at) in sorted(p)?.into_iter().enumerate().rev() {
        most = most.min(p[at] * (p.len() as f64 / (rank + 1) as f64));
        corrected[at] = most;
    }
    Ok(corrected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_probability_is_an_error() {
        for bad in [-0.1, 1.5, f64::NAN] {
            assert!(holm(&[0.5, bad]).is_err() && benjamini_hochberg(&[bad]).is_err());
        }
        assert!(holm(&[]).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn corrections_keep_the_order_and_never_make_surer(p in proptest::collection::vec(0f64..=1., 1..30)) {
            let (strict, lenient) = (holm(&p).unwrap(), benjamini_hochberg(&p).unwrap());
            for a in 0..p.len() {
                prop_assert!(p[a] <= lenient[a] && lenient[a] <= strict[a] + 1e-12 && strict[a] <= 1.);
                for b in 0..p.len() {
                    if p[a] <= p[b] {
                        prop_assert!(strict[a] <= strict[b] && lenient[a] <= lenient[b]);
                    }
                }
            }
        }
    }
}
