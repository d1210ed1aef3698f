//! Correlation: of numbers, and of their ranks.

use super::{fail, finite, mean_of, ranks};
use crate::error::Result;

/// Pearson's coefficient, from -1 to 1; an error where a list has no spread.
pub fn pearson(a: &[f64], b: &[f64]) -> Result<f64> {
    finite("value", a)?;
    finite("value of the second list", b)?;
    if a.len() != b.len() || a.len() < 2 {
        return fail(format!(
            "a correlation needs two lists of one length, at least 2; not {} and {}",
            a.len(),
            b.len()
        ));
    }
    let centred = |list: &[f64]| {
        let mean = mean_of(list);
        list.iter().map(|value| value - mean).collect::<Vec<f64>>()
    };
    let (a, b) = (centred(a), centred(b));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = product(&a, &a).sqrt() * product(&b, &b).sqrt();
    match scale > 0. {
        true => Ok((product(&a, &b) / scale).clamp(-1., 1.)),
        false => fail("one of the lists has one value only, so there is no correlation"),
    }
}

/// Spearman's coefficient: Pearson's of the ranks, equal values sharing theirs.
pub fn spearman(a: &[f64], b: &[f64]) -> Result<f64> {
    finite("value", a)?;
    finite("value of the second list", b)?;
    pearson(&ranks(a), &ranks(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_that_do_not_fit_are_an_error() {
        assert!(pearson(&[1., 2.], &[1.]).unwrap_err().to_string().contains("not 2 and 1"));
        assert!(pearson(&[1., 1.], &[1., 2.]).unwrap_err().to_string().contains("one value only"));
        assert!(spearman(&[1., f64::NAN], &[1., 2.]).is_err());
    }

    proptest! {
        #[test]
        fn a_rising_function_changes_no_rank(rows in proptest::collection::vec((-5f64..5., -5f64..5.), 3..30)) {
            let (a, b): (Vec<f64>, Vec<f64>) = rows.into_iter().unzip();
            let risen: Vec<f64> = a.iter().map(|value| value.exp()).collect();
            let (found, same) = (spearman(&a, &b).unwrap(), spearman(&risen, &b).unwrap());
            prop_assert!((found - same).abs() < 1e-12);
            prop_assert!((spearman(&a, &risen).unwrap() - 1.).abs() < 1e-12);
            let (found, turned) = (pearson(&a, &b).unwrap(), pearson(&a, &b.iter().map(|b| -2. * b).collect::<Vec<_>>()).unwrap());
            prop_assert!((found + turned).abs() < 1e-9 && found.abs() <= 1.);
        }
    }
}
