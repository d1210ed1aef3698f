//! The page of a battery: a table step x measure, a figure of lines over steps for each kind of number, and what is missing.

use anyhow::{Result, bail};
use endoscope_report::{Report, Section, Table, labels};
use endoscope_train::Series;
use indexmap::IndexMap;

use super::battery::{Battery, Measure};
use super::measuring::Found;

/// One column of the table: a line of a figure.
#[derive(Default)]
struct Column {
    /// By step; missing where there is no number.
    values: Vec<Option<f64>>,
}

pub fn report(series: &Series, battery: &Battery, found: &[Vec<Found>]) -> Result<Report> {
    let steps: Vec<u64> = series.entries.iter().map(|entry| entry.step).collect();
    let count = steps.len();
    // Measure -> figure -> line -> column, in the order in which they were found.
    let mut figures: IndexMap<(usize, String), IndexMap<String, Column>> = IndexMap::new();
    // Measure and reason -> the steps.
    let mut missing: IndexMap<(String, String), Vec<u64>> = IndexMap::new();
    for (at, found) in found.iter().enumerate() {
        for (number, (named, found)) in battery.measures.iter().zip(found).enumerate() {
            let numbers = match found {
                Ok(numbers) => numbers,
                Err(reason) => {
                    missing.entry((named.name.clone(), reason.clone())).or_default().push(steps[at]);
                    continue;
                }
            };
            for found in numbers {
                let column = figures.entry((number, found.figure.clone())).or_default();
                let column = column.entry(found.line.clone()).or_default();
                column.values.resize(count, None);
                match &found.value {
                    Ok(value) => column.values[at] = Some(*value),
                    Err(reason) => {
                        let name = column_name(&named.name, &found.figure, &found.line);
                        missing.entry((name, reason.clone())).or_default().push(steps[at]);
                    }
                }
            }
        }
    }
    let reasons: Vec<String> = missing
        .iter()
        .map(|((what, reason), at)| format!("{what}, at {} of {count} steps ({}): {reason}", at.len(), shown(at)))
        .collect();
    if figures.values().flat_map(IndexMap::values).all(|column| column.values.iter().all(Option::is_none)) {
        bail!("nothing could be measured:\n  - {}", reasons.join("\n  - "));
    }
    let loss: Vec<Option<f64>> = series.entries.iter().map(|entry| entry.loss.map(f64::from)).collect();
    let mut names = vec!["training loss".to_string()];
    let mut columns: Vec<&[Option<f64>]> = vec![&loss];
    for (number, named) in battery.measures.iter().enumerate() {
        let own = figures.iter().filter(|((of, _), _)| *of == number);
        for ((_, figure), lines) in own {
            for (line, column) in lines {
                names.push(column_name(&named.name, figure, line));
                columns.push(&column.values);
            }
        }
    }
    // A measure that failed at every step is a column, too.
    let nothing = vec![None; count];
    for (number, named) in battery.measures.iter().enumerate() {
        if !figures.keys().any(|(of, _)| *of == number) {
            names.push(named.name.clone());
            columns.push(&nothing);
        }
    }
    let cells = (0..count).flat_map(|at| columns.iter().map(move |column| column[at])).collect();
    let all = Table::with_missing(
        "every number at every step",
        [("step", labels(steps.iter().copied())), ("measure", labels(names.iter().map(String::as_str)))],
        cells,
    )?;
    let gaps = all.values().iter().filter(|value| value.is_none()).count() - usize::from(loss[0].is_none());
    let summary = format!(
        "{count} checkpoints of {}, from step {} to {}, under {} measures: {} numbers at each{}.",
        series.directory.display(),
        steps[0],
        steps[count - 1],
        battery.measures.len(),
        names.len() - 1,
        if gaps == 0 { ", none missing".into() } else { format!("; {gaps} cells are missing, see below why") }
    );
    let mut report = Report::new("Training, measured", "train", summary);
    let step_axis = || ("step", labels(steps.iter().copied()));
    let training =
        Table::with_missing("loss of the update that made the step, in nats a token", [step_axis()], loss.clone())?;
    report.tables.insert("training".into(), training);
    report.sections.push(lines_section("Training loss", "training", "nats", "The loss of single batches of training."));
    for ((number, figure), lines) in &figures {
        let named = &battery.measures[*number];
        let (unit, caption) = meaning(&named.measure, figure);
        let table_name = format!("{}-{}", named.name, figure.replace(' ', "_"));
        let axes = [("line", labels(lines.keys().map(String::as_str))), step_axis()];
        let values: Vec<Option<f64>> = lines.values().flat_map(|column| column.values.clone()).collect();
        let table = match lines.len() {
            1 if lines.contains_key("") => Table::with_missing(caption, [step_axis()], values)?,
            _ => Table::with_missing(caption, axes, values)?,
        };
        report.tables.insert(table_name.clone(), table);
        report.sections.push(lines_section(&format!("{}: {figure}", named.name), &table_name, unit, caption));
    }
    if !reasons.is_empty() {
        let body = reasons.join("\n\n");
        report.sections.push(Section::Text { heading: Some("What is missing, and why".into()), body });
    }
    report.tables.insert("battery".into(), all);
    Ok(report)
}

fn column_name(measure: &str, figure: &str, line: &str) -> String {
    if line.is_empty() { format!("{measure} {figure}") } else { format!("{measure} {figure}, {line}") }
}

fn lines_section(heading: &str, table: &str, unit: &str, caption: &str) -> Section {
    Section::Lines { heading: Some(heading.into()), table: table.into(), caption: caption.into(), y_label: unit.into() }
}

/// The unit of a figure, and what it shows.
fn meaning(measure: &Measure, figure: &str) -> (&'static str, &'static str) {
    match (measure, figure) {
        (Measure::Task(_), "loss") => {
            ("nats", "mean loss of what the task counts, in rows drawn apart from those of training, in nats")
        }
        (Measure::Task(_), _) => (
            "share",
            "share of what the task asks that has a right token on top, in rows drawn apart from those of training",
        ),
        (Measure::Heads(_), _) => ("share", "mean share of attention to this place, on random tokens that come twice"),
        (Measure::Sweep(_), _) => ("score", "score of the change: 0 = as corrupt, 1 = as clean"),
        (Measure::Probe(_), "accuracy") => ("share", "share of examples, held out, whose class the probe gives"),
        (Measure::Probe(_), "r2") => ("R²", "share of the variance of labels, held out, that the probe explains"),
        (Measure::Probe(_), _) => ("score", "control: the same with shuffled labels"),
        (Measure::Dimension(_), "dimension") => ("dimensions", "TwoNN of all points: how many dimensions they fill"),
        (Measure::Dimension(_), "local dimension") => ("dimensions", "mean over points of TwoNN on their neighbours"),
        (Measure::Dimension(_), _) => {
            ("dimensions", "the same of Gaussian points with their covariance: what is linear about them, and no more")
        }
        (Measure::Norms(_), _) => ("length", "Euclidean length of all numbers of a weight"),
    }
}

/// Some steps, not too many.
fn shown(steps: &[u64]) -> String {
    let first = steps.iter().take(8).map(u64::to_string).collect::<Vec<_>>().join(", ");
    if steps.len() > 8 { format!("{first} …") } else { first }
}
