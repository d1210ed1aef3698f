//! Every measure at every step, each once: what was measured before is read from the series' own folder.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use endoscope_models::Model;
use endoscope_report::{HashedFile, RunDirectory, Started};
use endoscope_train::{Recipe, Series};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::battery::{Battery, Named};
use super::measures::{Checkpoint, Number};
use super::report;
use crate::output::Output;
use crate::progress;
use crate::provenance::of_program;

/// The folder of a series that holds what was measured, one file a measure, one line a checkpoint.
const MEASURED: &str = "measured";

/// What a measure gave at a step, or why it failed.
pub type Found = Result<Vec<Number>, String>;

/// A line of the file of a measure.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The hash of the weights.
    checkpoint: String,
    numbers: Vec<Number>,
}

/// Measures a series into the run directory `out`.
pub fn run(series: &Series, battery: &Battery, out: &Path, started: Started, output: &mut Output) -> Result<()> {
    let recipe_path = series.recipe();
    let recipe = Recipe::read(&recipe_path)?;
    // Before the work, so that an existing directory is found out at once.
    let directory = RunDirectory::create(out)?;
    let mut known =
        battery.measures.iter().map(|named| Known::read(series, named, &recipe)).collect::<Result<Vec<_>>>()?;
    let bar = progress::bar((series.entries.len() * known.len()) as u64, "measuring");
    let (mut found, mut made): (Vec<Vec<Found>>, usize) = (Vec::new(), 0);
    for entry in &series.entries {
        let mut at_step = Vec::new();
        let mut opened = None;
        for (named, known) in battery.measures.iter().zip(&mut known) {
            let numbers = match known.numbers.get(&entry.hash) {
                Some(numbers) => Ok(numbers.clone()),
                None => {
                    if opened.is_none() {
                        opened = Some(open(series, entry.step)?);
                    }
                    let Some((model, tensors)) = &opened else { bail!("step {} cannot be opened", entry.step) };
                    made += 1;
                    let checkpoint = Checkpoint { recipe: &recipe, model, tensors };
                    let numbers = named.measure.of(&checkpoint).map_err(|error| format!("{error:#}"));
                    if let Ok(numbers) = &numbers {
                        known.add(&entry.hash, numbers)?;
                    }
                    numbers
                }
            };
            at_step.push(numbers);
            bar.inc(1);
        }
        found.push(at_step);
    }
    bar.finish_and_clear();
    let report = report::report(series, battery, &found)?;
    let mut provenance = of_program(&started);
    provenance.files.push(HashedFile::read("recipe", &recipe_path)?);
    provenance.files.push(HashedFile::read("series", series.directory.join("index.jsonl"))?);
    provenance.files.extend(battery.files.iter().cloned());
    let measures: serde_json::Map<String, serde_json::Value> = battery
        .measures
        .iter()
        .map(|named| Ok((named.name.clone(), serde_json::to_value(&named.measure)?)))
        .collect::<Result<_>>()?;
    let plan = json!({"verb": "train", "series": series.directory.to_string_lossy(), "battery": measures});
    directory.write_json("plan.json", &plan)?;
    directory.write_provenance(&provenance)?;
    directory.write_report(&report, &provenance)?;
    let path = directory.finish()?;
    output.document(&report)?;
    output.report(&report)?;
    let all = series.entries.len() * battery.measures.len();
    output.line(&format!(
        "\n{made} of {all} measurements were made now, the others before; written to {} (open report.html)",
        path.display()
    ))
}

/// The model of a step, and its weights by their names.
fn open(series: &Series, step: u64) -> Result<(Model, HashMap<String, candle_core::Tensor>)> {
    Ok((series.model(step)?, series.tensors(step)?))
}

/// What is known of one measure: its results by the hash of the weights.
struct Known {
    path: PathBuf,
    numbers: HashMap<String, Vec<Number>>,
}

impl Known {
    fn read(series: &Series, named: &Named, recipe: &Recipe) -> Result<Self> {
        let folder = series.directory.join(MEASURED);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
        let path = folder.join(format!("{}.jsonl", named.hash(&recipe.to_toml()?)?));
        let mut numbers = HashMap::new();
        if path.exists() {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            // A line that a kill cut off is measured again.
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
            numbers.extend(lines.map(|line| (line.checkpoint, line.numbers)));
        }
        Ok(Self { path, numbers })
    }

    fn add(&mut self, checkpoint: &str, numbers: &[Number]) -> Result<()> {
        let line = Line { checkpoint: checkpoint.to_string(), numbers: numbers.to_vec() };
        // A break before it, too: the line before may have been cut off.
        let text = format!("\n{}\n", serde_json::to_string(&line)?);
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.numbers.insert(line.checkpoint, line.numbers);
        Ok(())
    }
}
