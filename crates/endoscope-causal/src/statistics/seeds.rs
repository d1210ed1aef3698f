//! What several runs with other seeds say together.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::{confident, fail, finite, mean_of};
use crate::error::{Error, Result};

/// The summary of one number measured with several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Seeds {
    /// How many seeds.
    pub count: usize,
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the sample.
    pub deviation: f64,
    /// The lower end of the interval of the mean.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// Mean, deviation, and the interval of the mean by Student's t: mean ± t(count - 1) deviation / √count. At least two values.
pub fn seeds(values: &[f64], confidence: f64) -> Result<Seeds> {
    confident(confidence)?;
    finite("value", values)?;
    if values.len() < 2 {
        return fail(format!("an interval over seeds needs at least 2, not {}", values.len()));
    }
    let (count, mean) = (values.len() as f64, mean_of(values));
    let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.)).sqrt();
    let student = StudentsT::new(0., 1., count - 1.).map_err(|error| Error::Statistics(error.to_string()))?;
    let reach = student.inverse_cdf((1. + confidence) / 2.) * deviation / count.sqrt();
    Ok(Seeds { count: values.len(), mean, deviation, low: mean - reach, high: mean + reach })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_no_width_and_one_value_has_no_interval() {
        let found = seeds(&[0.25; 4], 0.95).unwrap();
        assert_eq!((found.mean, found.deviation, found.low, found.high), (0.25, 0., 0.25, 0.25));
        assert!(seeds(&[1.], 0.95).unwrap_err().to_string().contains("at least 2, not 1"));
        assert!(seeds(&[1., f64::NAN], 0.95).unwrap_err().to_string().contains("value 1 is NaN"));
        assert!(seeds(&[1., 2.], 1.).is_err());
    }
}
