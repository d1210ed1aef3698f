//! How sure the numbers of a verb are: options that every verb with intervals has.

use clap::Args;
use endoscope_causal::statistics::{Interval, Resampling};

#[derive(Debug, Clone, Copy, Args)]
pub struct IntervalArguments {
    /// The share of intervals that should hold the true value.
    #[arg(long, value_name = "SHARE", default_value_t = 0.95, value_parser = share)]
    pub confidence: f64,
    /// Where everything that is drawn at random comes from.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,
}

impl IntervalArguments {
    pub fn resampling(self) -> Resampling {
        Resampling { confidence: self.confidence, seed: self.seed, ..Resampling::default() }
    }
}

/// A number between 0 and 1, neither of them.
pub fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "it is no number".to_string())?;
    match share > 0. && share < 1. {
        true => Ok(share),
        false => Err("it lies between 0 and 1, as 0.95 does".into()),
    }
}

/// The tables `low` and `high` of intervals: their names, descriptions and values.
pub fn ends(
    what: &str,
    confidence: f64,
    intervals: &[Option<Interval>],
) -> [(&'static str, String, Vec<Option<f64>>); 2] {
    type End = fn(Interval) -> f64;
    let of = |end: End| intervals.iter().map(|interval| interval.map(end)).collect();
    let ends: [(&str, &str, End); 2] = [("low", "lower", |found| found.low), ("high", "upper", |found| found.high)];
    ends.map(|(name, end, of_interval)| {
        (name, format!("{end} end of the {}% interval of {what} (BCa bootstrap)", 100. * confidence), of(of_interval))
    })
}
