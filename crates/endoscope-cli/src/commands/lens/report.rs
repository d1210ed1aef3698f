//! The tables and pages of a reading, and of a lens that was made.

use anyhow::Result;
use endoscope_causal::lens::{Cell, Kind, Lens, Loss, Reading};
use endoscope_models::Model;
use endoscope_report::{ColourScale, Label, Report, Section, Table, labels};
use serde_json::{Value, json};

use crate::input::Prompt;

/// `resid_post.3` for `blocks.3.hook_resid_post`.
fn short(stream: &str) -> String {
    let parts = stream.strip_prefix("blocks.").and_then(|rest| rest.split_once(".hook_"));
    parts.map_or_else(|| stream.to_string(), |(layer, kind)| format!("{kind}.{layer}"))
}

/// The page of a reading: tokens by probability, and how far each stream is from the model's own word.
pub fn reading(model: &Model, lens: &Lens, prompt: &Prompt, reading: &Reading, target: Option<u32>) -> Result<Report> {
    let how = match lens.kind {
        Kind::Logit => "as it is (logit lens)",
        Kind::Tuned => "through its trained translator (tuned lens)",
        Kind::Jacobian => "through its averaged Jacobian (Jacobian lens)",
    };
    let target_text = match target {
        Some(id) => format!("The target is {:?} at every position.", model.label(id)),
        None => "The target at each position is the model's own most probable token.".to_string(),
    };
    let summary = format!(
        "Each residual stream of {} was read {how} by the final norm and the unembedding. The last row is what the model \
         itself says. {target_text}",
        model.directory.display()
    );
    let mut report = Report::new("What each layer would say", "lens", summary);
    let streams: Vec<Label> = labels(reading.streams.iter().map(|stream| short(stream)));
    // Where some positions are left out, a token alone would not say which one it is.
    let whole = reading.positions.len() == prompt.ids.len();
    let place = |&position: &usize| match whole {
        true => prompt.labels[position].clone(),
        false => format!("{position} {}", prompt.labels[position]),
    };
    let positions: Vec<Label> = labels(reading.positions.iter().map(place));
    let axes = || [("stream", streams.clone()), ("position", positions.clone())];
    let cells = || reading.cells.iter().flatten();
    let table =
        |description: &str, value: fn(&Cell) -> f64| Table::new(description, axes(), cells().map(value).collect());
    let best = |cell: &Cell| cell.top.first().map_or(f64::NAN, |best| best.probability);
    let best_text = |cell: &Cell| cell.top.first().map_or_else(String::new, |best| model.label(best.token));
    let top = table("probability of the most probable token", best)?.with_texts(cells().map(best_text).collect())?;
    report.tables.insert("top".into(), top);
    report.tables.insert("probability".into(), table("probability of the target", |cell| cell.probability)?);
    report.tables.insert("rank".into(), table("tokens more probable than the target", |cell| cell.rank as f64)?);
    report.tables.insert("kl".into(), table("KL(model || lens) in nats", |cell| cell.kl)?);
    report.tables.insert("entropy".into(), table("entropy in nats", |cell| cell.entropy)?);
    report.tables.insert("candidates".into(), candidates(model, reading, streams, positions)?);
    report.sections.push(Section::HeatMap {
        heading: Some("The most probable next token".into()),
        table: "top".into(),
        alternatives: vec!["probability".into(), "rank".into()],
        scale: ColourScale::UNIT,
        caption: "What would come after each token if the model ended there, coloured by its probability.".into(),
    });
    report.sections.push(Section::HeatMap {
        heading: Some("How far from the model's own word".into()),
        table: "kl".into(),
        alternatives: vec!["entropy".into()],
        scale: ColourScale::SEQUENTIAL,
        caption: "The divergence of each stream's distribution from the model's own.".into(),
    });
    // Of many positions, the tables and the JSON have them.
    if reading.positions.len() == 1 {
        report.sections.push(Section::HeatMap {
            heading: Some("The candidates".into()),
            table: "candidates".into(),
            alternatives: Vec::new(),
            scale: ColourScale::UNIT,
            caption: "The most probable tokens of each stream, from the first place on.".into(),
        });
    }
    Ok(report)
}

/// The most probable tokens of every cell.
fn candidates(model: &Model, reading: &Reading, streams: Vec<Label>, positions: Vec<Label>) -> Result<Table> {
    let places = reading.cells.iter().flatten().map(|cell| cell.top.len()).min().unwrap_or(0);
    let (mut values, mut texts) = (Vec::new(), Vec::new());
    for position in 0..positions.len() {
        for cell in reading.cells.iter().map(|row| &row[position]) {
            values.extend(cell.top.iter().take(places).map(|candidate| candidate.probability));
            texts.extend(cell.top.iter().take(places).map(|candidate| model.label(candidate.token)));
        }
    }
    let axes = [("position", positions), ("stream", streams), ("place", labels(1..=places))];
    Ok(Table::new("probability of the token at each place", axes, values)?.with_texts(texts)?)
}

/// A reading as JSON.
pub fn document(model: &Model, lens: &Lens, prompt: &Prompt, reading: &Reading) -> Value {
    let token = |id: u32| json!({"id": id, "text": model.label(id)});
    let position = |(&position, &target): (&usize, &u32)| json!({"position": position, "token": token(prompt.ids[position]), "target": token(target)});
    let cell = |cell: &Cell| {
        let top = cell.top.iter().map(|candidate| {
            json!({"id": candidate.token, "text": model.label(candidate.token), "probability": candidate.probability})
        });
        json!({
            "top": top.collect::<Vec<_>>(),
            "rank": cell.rank,
            "probability": cell.probability,
            "entropy": cell.entropy,
            "kl": cell.kl,
        })
    };
    let row = |cells: &Vec<Cell>| cells.iter().map(cell).collect::<Vec<_>>();
    json!({
        "lens": lens.kind,
        "tokens": prompt.ids,
        "prepended": prompt.prepended,
        "streams": reading.streams,
        "positions": reading.positions.iter().zip(&reading.targets).map(position).collect::<Vec<_>>(),
        "cells": reading.cells.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The page of a lens that was made from `seen` rows and measured on `unseen` others.
pub fn losses(
    model: &Model,
    lens: &Lens,
    (seen, unseen): (usize, usize),
    before: &[Loss],
    after: &[Loss],
) -> Result<Report> {
    let name = lens.kind.name();
    let summary = format!(
        "A {name} lens of {} was made from {seen} rows and measured on {unseen} others, beside the logit lens, which reads \
         each stream as it is.",
        model.directory.display()
    );
    let mut report = Report::new(format!("A {name} lens"), "lens", summary);
    let streams: Vec<Label> = labels(after.iter().map(|loss| short(&loss.stream)));
    let table = |description: &str, value: fn(&Loss) -> f64| {
        let values = before.iter().zip(after).flat_map(|(before, after)| [value(before), value(after)]).collect();
        Table::new(description, [("stream", streams.clone()), ("lens", labels(["logit", name]))], values)
    };
    report.tables.insert("kl".into(), table("KL(model || lens) in nats, mean over positions", |loss| loss.kl)?);
    let agreement = "share of positions at which lens and model put the same token on top";
    report.tables.insert("agreement".into(), table(agreement, |loss| loss.agreement)?);
    for (heading, table, caption) in [
        ("How far from the model's own word", "kl", "KL(model || lens) in nats, mean over all positions held out."),
        ("How often the same token is on top", "agreement", "Share of all positions held out."),
    ] {
        report.sections.push(Section::Table {
            heading: Some(heading.into()),
            table: table.into(),
            caption: caption.into(),
        });
    }
    Ok(report)
}
