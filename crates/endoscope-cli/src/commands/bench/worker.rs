//! The worker of a script: for each line on standard input, the work once and one line of JSON.

use std::io::BufRead;
use std::path::Path;

use anyhow::Result;
use endoscope_models::Depth;
use serde_json::json;

use super::model;
use super::work::{Limit, Prepared, Size, Work};
use crate::output::Output;

pub fn run(directory: Option<&Path>, work: Work, size: Size, depth: Depth) -> Result<()> {
    match work.runs_model() {
        true => answer(work.prepare_on(&model::open(directory, depth)?, size)?),
        false => answer(work.prepare(directory, size, depth)?),
    }
}

fn answer(mut prepared: Prepared) -> Result<()> {
    let (flop, bytes) = match prepared.amount.limit {
        Limit::Gemm { flop } => (Some(flop), None),
        Limit::Read { bytes } => (None, Some(bytes)),
        Limit::Unknown => (None, None),
    };
    for line in std::io::stdin().lock().lines() {
        line?;
        let document = json!({
            "work": prepared.work.name(),
            "seconds": (prepared.once)()?,
            "count": prepared.amount.count,
            "unit": prepared.amount.unit,
            "flop": flop,
            "bytes": bytes,
        });
        // One document a line: whoever asked waits for it. The same with and without --json.
        Output::new(false).line(&document.to_string())?;
    }
    Ok(())
}
