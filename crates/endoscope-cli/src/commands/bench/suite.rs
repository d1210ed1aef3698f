//! All works in turns, so that a slow moment meets all of them, as a table or as one JSON document.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use endoscope_models::Depth;
use serde_json::{Value, json};

use super::model;
use super::work::{Amount, Limit, Prepared, Work};
use crate::output::Output;
use crate::progress;

/// What was measured of one work.
struct Row {
    work: Work,
    name: String,
    amount: Amount,
    /// Seconds of each repetition.
    samples: Vec<f64>,
}

/// What the machine gives at most, for each second.
struct Machine {
    flop: f64,
    read_bytes: f64,
    copy_bytes: f64,
}

pub fn run(directory: Option<&Path>, only: &[Work], repeats: usize, depth: Depth, output: &mut Output) -> Result<()> {
    let wanted = |work: &Work| only.is_empty() || only.contains(work);
    let works: Vec<Work> = Work::value_variants()
        .iter()
        .copied()
        .filter(|work| !Work::MACHINE.contains(work) && wanted(work))
        // A model made in memory cannot be opened: left out unless it was asked for, which is an error.
        .filter(|work| *work != Work::Open || directory.is_some() || !only.is_empty())
        .collect();
    // Before any time is spent on measuring.
    let mut others = Vec::new();
    for &work in works.iter().filter(|work| !work.runs_model()) {
        others.push(work.prepare(directory, work.usual_size(), depth)?);
    }
    let opened = match works.iter().any(|work| work.runs_model()) {
        true => Some(model::open(directory, depth)?),
        false => None,
    };
    let mut rows = {
        let size = Work::Gemm.usual_size();
        let limits = Work::MACHINE.into_iter().map(|work| work.prepare(directory, size, depth));
        in_turns(limits.collect::<Result<_>>()?, repeats, "the machine")?
    };
    let rate = |at: usize| rows[at].amount.count / median(&rows[at].samples);
    let machine = Machine { flop: rate(0), read_bytes: rate(1), copy_bytes: rate(2) };
    let mut prepared = Vec::new();
    if let Some(model) = &opened {
        for &work in works.iter().filter(|work| work.runs_model()) {
            for size in work.sizes(model.spec().context) {
                prepared.push(work.prepare_on(model, size)?);
            }
        }
    }
    prepared.extend(others);
    rows.extend(in_turns(prepared, repeats, "measuring")?);
    output.document(&json!({
        "model": opened.as_ref().map(|_| model::name(directory)),
        "parameters": opened.as_ref().map(|model| model.parameters),
        "threads": rayon::current_num_threads(),
        "repeats": repeats,
        "machine": {
            "gemm_flop_per_s": machine.flop,
            "read_bytes_per_s": machine.read_bytes,
            "copy_bytes_per_s": machine.copy_bytes,
        },
        "works": rows.iter().map(|row| row.document(&machine)).collect::<Vec<_>>(),
        "plan_overhead": plan_overhead(&rows),
    }))?;
    if let Some(opened) = &opened {
        output.line(&format!("{}: {} parameters", model::name(directory), opened.parameters))?;
    }
    output.line(&format!("{} threads, medians of {repeats} in turns\n", rayon::current_num_threads()))?;
    output.text(&table(&rows, &machine))
}

/// Each work once, uncounted, then `repeats` times in turns.
fn in_turns(mut works: Vec<Prepared>, repeats: usize, what: &'static str) -> Result<Vec<Row>> {
    let bar = progress::bar(((repeats + 1) * works.len()) as u64, what);
    let mut samples: Vec<Vec<f64>> = vec![Vec::with_capacity(repeats); works.len()];
    for repetition in 0..=repeats {
        for (prepared, samples) in works.iter_mut().zip(&mut samples) {
            let seconds = (prepared.once)()?;
            if repetition > 0 {
                samples.push(seconds);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let row = |(prepared, samples): (Prepared, Vec<f64>)| Row {
        work: prepared.work,
        name: prepared.name,
        amount: prepared.amount,
        samples,
    };
    Ok(works.into_iter().zip(samples).map(row).collect())
}

impl Row {
    /// How much of the machine's limit it reaches, and whose limit that is.
    fn share(&self, machine: &Machine) -> Option<(&'static str, f64)> {
        let seconds = median(&self.samples);
        match self.amount.limit {
            Limit::Gemm { flop } => Some(("gemm", flop / seconds / machine.flop)),
            Limit::Read { bytes } => Some(("read", bytes / seconds / machine.read_bytes)),
            Limit::Unknown => None,
        }
    }

    fn document(&self, machine: &Machine) -> Value {
        let (least, most) = ends(&self.samples);
        let share = self.share(machine);
        json!({
            "work": self.work.name(),
            "name": self.name,
            "seconds": {"median": median(&self.samples), "least": least, "most": most, "samples": self.samples},
            "rate": self.amount.count / median(&self.samples),
            "unit": self.amount.unit,
            "limit": share.map(|(limit, _)| limit),
            "share": share.map(|(_, share)| share),
        })
    }
}

/// How much longer a decoded token takes with the plan than without: the median over repetitions, each compared with its own.
fn plan_overhead(rows: &[Row]) -> Option<f64> {
    let samples = |work: Work| rows.iter().find(|row| row.work == work).map(|row| &row.samples);
    let (plain, planned) = (samples(Work::Decode)?, samples(Work::DecodePlan)?);
    Some(median(&plain.iter().zip(planned).map(|(plain, planned)| planned / plain - 1.).collect::<Vec<_>>()))
}

fn table(rows: &[Row], machine: &Machine) -> String {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let mut text =
        format!("{:width$}  {:>10}  {:>10}  {:>10}  {:>15}  share\n", "", "median ms", "least", "most", "rate");
    for row in rows {
        let (least, most) = ends(&row.samples);
        let [middle, least, most] = [median(&row.samples), least, most].map(|seconds| format!("{:.2}", 1e3 * seconds));
        let rate = scaled(row.amount.count / median(&row.samples), row.amount.unit);
        let share =
            row.share(machine).map_or(String::new(), |(limit, share)| format!("  {:.0}% of {limit}", 1e2 * share));
        text += &format!("{:width$}  {middle:>10}  {least:>10}  {most:>10}  {rate:>15}{share}\n", row.name);
    }
    if let Some(overhead) = plan_overhead(rows) {
        text += &format!("\nThe plan costs {:+.1}% of a decoded token.\n", 1e2 * overhead);
    }
    text
}

/// 3.7e11 FLOP -> 370.0 GFLOP/s; small rates as they are.
fn scaled(rate: f64, unit: &str) -> String {
    match unit {
        "FLOP" | "B" => format!("{:.1} G{unit}/s", rate / 1e9),
        unit => format!("{rate:.1} {unit}/s"),
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.,
    }
}

fn ends(samples: &[f64]) -> (f64, f64) {
    samples.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), &x| (least.min(x), most.max(x)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[3., 1., 2.]), 2.);
        assert_eq!(median(&[4., 1., 3., 2.]), 2.5);
        assert_eq!(ends(&[3., 1., 2.]), (1., 3.));
    }

    #[test]
    fn shares_and_overhead_follow_from_the_samples() {
        let machine = Machine { flop: 100., read_bytes: 50., copy_bytes: 1. };
        let row = |work, limit, samples: &[f64]| Row {
            work,
            name: String::new(),
            amount: Amount { limit, ..Amount::counting(1., "tokens") },
            samples: samples.to_vec(),
        };
        let rows = [
            row(Work::Forward, Limit::Gemm { flop: 40. }, &[2., 0.5, 0.8]),
            row(Work::Decode, Limit::Read { bytes: 5. }, &[1., 2., 4.]),
            row(Work::DecodePlan, Limit::Read { bytes: 5. }, &[1.1, 2.4, 4.]),
            row(Work::Sweep, Limit::Unknown, &[1.]),
        ];
        assert_eq!(rows[0].share(&machine), Some(("gemm", 0.5)));
        assert_eq!(rows[1].share(&machine), Some(("read", 0.05)));
        assert_eq!(rows[3].share(&machine), None);
        assert!((plan_overhead(&rows).unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(plan_overhead(&rows[..2]), None);
    }
}
