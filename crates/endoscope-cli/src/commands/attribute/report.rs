//! The pages of attribution.

use anyhow::Result;
use endoscope_causal::statistics::Resampling;
use endoscope_causal::{
    Circuit, Component, DirectScores, EdgeMethod, EdgeScores, Estimate, Node, Scores, circuit_to_json, statistics,
};
use endoscope_models::Model;
use endoscope_report::{ColourScale, Report, Section, Table, labels};

use crate::commands::patch;

fn counted(pairs: usize) -> String {
    format!("{pairs} prompt {}", if pairs == 1 { "pair" } else { "pairs" })
}

/// Direct attribution.
pub fn direct(model: &Model, scores: &DirectScores, top: usize) -> Result<Report> {
    let prompts = scores.prompts.len();
    let summary = format!(
        "What each part of {} adds by itself to the logit difference between right and wrong answers at the last position, past all \
         later layers, with the final norm held at its scale; over {prompts} clean {}. Contributions sum to the logit difference, \
         {:.4}.",
        model.directory.display(),
        if prompts == 1 { "prompt" } else { "prompts" },
        scores.metric
    );
    let mut report = Report::new("Direct attribution", "attribute", summary);
    let both = || scores.components.iter().zip(&scores.contributions);
    let layers = model.spec().layers;
    let heads: Vec<f64> =
        both().filter(|(part, _)| matches!(part, Component::Head { .. })).map(|(_, value)| *value).collect();
    let axes = [("layer", labels(0..layers)), ("head", labels(0..heads.len() / layers.max(1)))];
    report.tables.insert("heads".into(), Table::new("contribution of each head", axes, heads)?);
    report.sections.push(Section::HeatMap {
        heading: Some("Heads".into()),
        table: "heads".into(),
        alternatives: Vec::new(),
        scale: ColourScale::DIVERGING,
        caption: "Positive: towards the right answers.".into(),
    });
    let others: Vec<(String, f64)> = both()
        .filter(|(part, _)| !matches!(part, Component::Head { .. }))
        .map(|(part, value)| (name(part), *value))
        .collect();
    let axes = [("part", labels(others.iter().map(|(name, _)| name.clone())))];
    let values = others.iter().map(|(_, value)| *value).collect();
    report.tables.insert("parts".into(), Table::new("contribution of each other part", axes, values)?);
    report.sections.push(Section::Table {
        heading: Some("Everything else".into()),
        table: "parts".into(),
        caption:
            "The rest is what no part writes: biases of the final norm and the unembedding (and what a soft-cap bends)."
                .into(),
    });
    let streams = (0..layers).map(|layer| format!("before layer {layer}")).chain(["at the end".to_string()]);
    let axes = [("stream", labels(streams))];
    let table = Table::new("contribution of the whole residual stream", axes, scores.accumulated.clone())?;
    report.tables.insert("accumulated".into(), table);
    report.sections.push(Section::Lines {
        heading: Some("Layer by layer".into()),
        table: "accumulated".into(),
        caption: "What the stream as it is there would give if it were unembedded, with the final norm's scale.".into(),
        y_label: "logit difference".into(),
    });
    let mut neurons: Vec<(usize, usize, f64)> = scores
        .neurons
        .iter()
        .enumerate()
        .flat_map(|(layer, values)| values.iter().enumerate().map(move |(neuron, &value)| (layer, neuron, value)))
        .collect();
    neurons.sort_by(|a, b| b.2.abs().total_cmp(&a.2.abs()));
    neurons.truncate(top);
    if !neurons.is_empty() {
        let axes = [("neuron", labels(neurons.iter().map(|(layer, neuron, _)| format!("m{layer} neuron {neuron}"))))];
        let values = neurons.iter().map(|(_, _, value)| *value).collect();
        report.tables.insert("neurons".into(), Table::new("contribution of the largest neurons", axes, values)?);
        report.sections.push(Section::Table {
            heading: Some("Neurons".into()),
            table: "neurons".into(),
            caption: format!("The {} largest.", neurons.len()),
        });
    }
    Ok(report)
}

fn name(part: &Component) -> String {
    match part {
        Component::Embedding => "token embedding".into(),
        Component::PositionEmbedding => "position embedding".into(),
        Component::Head { layer, head } => Node::Head { layer: *layer, head: *head }.to_string(),
        Component::AttentionBias { layer } => format!("attention bias {layer}"),
        Component::Mlp { layer } => Node::Mlp { layer: *layer }.to_string(),
        Component::Rest => "rest".into(),
    }
}

/// Estimates of a sweep, with how well they agree with running it.
pub fn estimates(
    model: &Model,
    method: Estimate,
    found: &Scores,
    exact: Option<&Scores>,
    positions: &[String],
    resampling: &Resampling,
) -> Result<Report> {
    let mut report = patch::report(model, None, found, positions, resampling)?;
    report.verb = "attribute".into();
    let how = match method {
        Estimate::Gradient => "its gradient at the unchanged run".to_string(),
        Estimate::Integrated { steps } => format!("its gradient averaged over {steps} points on the way to the change"),
    };
    report.title = format!("{}, estimated", report.title);
    report.summary = format!(
        "{} Nothing was changed for it: every point is an estimate, from the difference of the activations and {how}.",
        report.summary
    );
    // The rows of work are those of running it.
    report.tables.shift_remove("work");
    report.sections.truncate(1);
    if let Some(exact) = exact {
        let unchanged = |scores: &Scores| match scores.sweep.direction {
            endoscope_causal::Direction::Denoise => scores.corrupt,
            endoscope_causal::Direction::Noise => scores.clean,
        };
        let effects =
            |scores: &Scores| scores.values.iter().map(|value| value - unchanged(scores)).collect::<Vec<f64>>();
        for (name, table) in patch::tables(exact, positions, resampling)?.into_iter().take(2) {
            report.tables.insert(format!("exact_{name}"), table);
        }
        let shown = if exact.normalised.iter().any(Option::is_some) { "exact_normalised" } else { "exact_scores" };
        report.sections.push(Section::HeatMap {
            heading: Some("The same, patched".into()),
            table: shown.into(),
            alternatives: Vec::new(),
            scale: ColourScale::DIVERGING,
            caption: "Each point run, not estimated.".into(),
        });
        report.sections.push(agreement(&effects(found), &effects(exact)));
    }
    Ok(report)
}

/// How well estimates agree with exact effects.
fn agreement(estimated: &[f64], exact: &[f64]) -> Section {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (estimated, exact) in estimated.iter().zip(exact).filter(|(a, b)| a.is_finite() && b.is_finite()) {
        a.push(*estimated);
        b.push(*exact);
    }
    let said = |found: endoscope_causal::Result<f64>| match found {
        Ok(found) => format!("{found:.4}"),
        Err(_) => "not defined (no spread)".into(),
    };
    let largest = b.iter().fold(0f64, |largest, exact| largest.max(exact.abs()));
    let apart = a.iter().zip(&b).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()));
    let body = format!(
        "Correlation of estimated with exact effects, over {}: {} (Pearson), {} (Spearman, of ranks). The largest exact effect is {largest:.4}, the largest \
         error of an estimate {apart:.4}.",
        a.len(),
        said(statistics::pearson(&a, &b)),
        said(statistics::spearman(&a, &b))
    );
    Section::Text { heading: Some("Agreement with exact patching".into()), body }
}

/// The scores of edges.
pub fn edges(
    model: &Model,
    found: &EdgeScores,
    exact: Option<&EdgeScores>,
    top: usize,
    resampling: &Resampling,
) -> Result<Report> {
    let how = match found.sweep.method {
        EdgeMethod::Exact => "Every edge was patched by itself".to_string(),
        EdgeMethod::Gradient => {
            "Every edge's effect was estimated by the gradient of the unchanged run (EAP)".to_string()
        }
        EdgeMethod::IntegratedInputs { steps } => {
            format!("Every edge's effect was estimated by gradients at {steps} inputs between the two prompts (EAP-IG)")
        }
        EdgeMethod::IntegratedWrites { steps } => {
            format!("Every edge's effect was estimated by gradients at {steps} writes of its node between the two runs")
        }
    };
    let metric = found.sweep.metric.name();
    let summary = format!(
        "{how} in {}: {} edges, {}. The metric is {metric} at the last position, {:.4} on the clean run and {:.4} on the corrupt \
         one; an effect is what the edge alone changes of it.",
        model.directory.display(),
        found.graph.len(),
        counted(found.pairs.len()),
        found.clean,
        found.corrupt
    );
    let mut report = Report::new("Edges", "attribute", summary);
    let ranked: Vec<_> = found.ranked().into_iter().take(top).collect();
    let numbers =
        ranked.iter().map(|(edge, _)| found.graph.number(*edge)).collect::<endoscope_causal::Result<Vec<_>>>()?;
    let mut columns: Vec<(&str, Vec<Option<f64>>)> =
        vec![("effect", ranked.iter().map(|(_, effect)| Some(*effect)).collect())];
    if found.pairs.len() > 1 {
        let of_edge = |&number: &usize| found.pairs.iter().map(|pair| pair.values[number]).collect::<Vec<f64>>();
        let intervals = resampling.means(&numbers.iter().map(of_edge).collect::<Vec<_>>())?;
        columns.push(("low", intervals.iter().map(|interval| interval.map(|interval| interval.low)).collect()));
        columns.push(("high", intervals.iter().map(|interval| interval.map(|interval| interval.high)).collect()));
    }
    if let Some(exact) = exact {
        columns.push(("exact", numbers.iter().map(|&number| Some(exact.effects[number])).collect()));
    }
    let count = ranked.len();
    let rows = (0..count).flat_map(|at| columns.iter().map(move |(_, values)| values[at]));
    let axes = [
        ("edge", labels(ranked.iter().map(|(edge, _)| edge.to_string()))),
        ("change", labels(columns.iter().map(|(name, _)| *name))),
    ];
    let described = format!(
        "change of {metric}, mean over prompt pairs, and the ends of its {}% interval (BCa bootstrap over pairs)",
        100. * resampling.confidence
    );
    let table = Table::with_missing(described, axes, rows.collect())?;
    report.tables.insert("edges".into(), table);
    report.sections.push(Section::Table {
        heading: Some("The largest".into()),
        table: "edges".into(),
        caption: format!("{count} of {} edges; all of them are in edges.json, in EAP-IG's format.", found.graph.len()),
    });
    if let Some(exact) = exact {
        report.sections.push(agreement(&found.effects, &exact.effects));
    }
    Ok(report)
}

/// All edges with their scores, as a circuit file that keeps every edge.
pub fn edge_document(found: &EdgeScores) -> serde_json::Value {
    circuit_to_json(&found.graph, &Circuit::full(&found.graph), Some(&found.effects))
}
