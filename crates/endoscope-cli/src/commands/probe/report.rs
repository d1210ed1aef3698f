//! The tables and the page of probes.

use anyhow::{Context, Result};
use endoscope_causal::probe::{ControlTypes, Labels, ProbeOver, ProbeScores, ProbeSites, Probed, Split};
use endoscope_causal::statistics::Interval;
use endoscope_models::Model;
use endoscope_report::{Claim, ColourScale, Label, Measured, Report, Section, Table, Verdict, labels};

use super::data::Data;

type Of = fn(&ProbeScores) -> Option<Interval>;

/// What probes of these labels are compared by.
fn main_score(labels: &Labels) -> (&'static str, Of) {
    match labels {
        Labels::Classes { .. } => ("accuracy", |scores| scores.accuracy),
        Labels::Numbers(_) => ("r2", |scores| scores.r2),
    }
}

/// The page of probes.
pub fn report(model: &Model, asked: &ProbeSites, data: &Data, probed: &[Probed], confidence: f64) -> Result<Report> {
    let (name, of) = main_score(&data.labels);
    let estimate = |scores: &ProbeScores| of(scores).map(|interval| interval.estimate);
    // Of equal ones the first.
    let scored = probed.iter().rev().filter(|probed| estimate(&probed.scores).is_some());
    let best = scored
        .max_by(|a, b| estimate(&a.scores).unwrap_or(f64::NAN).total_cmp(&estimate(&b.scores).unwrap_or(f64::NAN)))
        .with_context(|| format!("no probe has a score: there is no {name} of these examples"))?;
    let place = place(best);
    let kind = asked.probe.kind.name();
    let split = match asked.split {
        Split::Folds { count, .. } => format!("each of {count} parts scored by a probe of the others"),
        Split::HoldOut { share, .. } => format!("{}% of the rows scored by a probe of the rest", 100. * share),
    };
    let summary = format!(
        "A {kind} probe reads {} from {} of {}, {split}; {} rows. {}It does best at {place}: {name} {}, with shuffled labels {}, on \
         random features of the same shape {}.",
        read(&data.labels),
        asked.site,
        model.directory.display(),
        data.rows.len(),
        frequent(&data.labels),
        shown(of(&best.scores)),
        shown(of(&best.shuffled)),
        shown(of(&best.random)),
    );
    let mut report = Report::new(format!("What {} says", asked.site), "probe", summary);
    figure(&mut report, asked, probed, name, of, confidence)?;
    report.tables.insert("probes".into(), measures(asked, probed, &data.labels, confidence)?);
    report.sections.push(Section::Table {
        heading: Some("All scores".into()),
        table: "probes".into(),
        caption: "Selectivity is the score less that of the control with shuffled labels.".into(),
    });
    report.claims.push(claim(best, &place, name, of, probed.len(), asked.control_types)?);
    report.sections.push(Section::Claims { heading: Some("What was shown, and what the controls gave".into()) });
    Ok(report)
}

fn place(probed: &Probed) -> String {
    match (probed.layer, probed.head) {
        (Some(layer), Some(head)) => format!("head {layer}.{head}"),
        (Some(layer), None) => format!("layer {layer}"),
        (None, _) => probed.site.clone(),
    }
}

fn read(labels: &Labels) -> String {
    match labels {
        Labels::Classes { names, .. } => format!("which of {} holds", names.join(", ")),
        Labels::Numbers(_) => "a number".into(),
    }
}

/// What saying the most frequent class would give.
fn frequent(labels: &Labels) -> String {
    let Labels::Classes { names, of } = labels else { return String::new() };
    let most = (0..names.len()).map(|class| of.iter().filter(|&&of| of == class).count()).max().unwrap_or(0);
    format!("Always saying the most frequent label would be right in {:.3}. ", most as f64 / of.len() as f64)
}

fn shown(interval: Option<Interval>) -> String {
    interval.map_or("missing".into(), |found| format!("{:.3} ({:.3} to {:.3})", found.estimate, found.low, found.high))
}

/// The axes of what is probed: layers, and heads.
fn axes(asked: &ProbeSites, probed: &[Probed]) -> Vec<(&'static str, Vec<Label>)> {
    let mut layers: Vec<Label> =
        probed.iter().map(|probed| probed.layer.map_or_else(|| probed.site.clone().into(), Label::from)).collect();
    layers.dedup();
    match asked.over {
        ProbeOver::Layer => vec![("layer", layers)],
        ProbeOver::LayerAndHead => {
            let heads = probed.len() / layers.len();
            vec![("layer", layers), ("head", labels(0..heads))]
        }
    }
}

fn figure(
    report: &mut Report,
    asked: &ProbeSites,
    probed: &[Probed],
    name: &str,
    of: Of,
    confidence: f64,
) -> Result<()> {
    type Which = fn(&Probed) -> &ProbeScores;
    let series: [(&str, Which); 3] = [
        ("probe", |probed| &probed.scores),
        ("shuffled labels", |probed| &probed.shuffled),
        ("random features", |probed| &probed.random),
    ];
    let column = |which: Which| probed.iter().map(move |probed| of(which(probed)).map(|interval| interval.estimate));
    let description = format!("{name} on examples that the probe was not fitted on");
    match asked.over {
        ProbeOver::Layer => {
            let mut lines = vec![("series", labels(series.map(|(name, _)| name)))];
            lines.extend(axes(asked, probed));
            let values = series.into_iter().flat_map(|(_, which)| column(which)).collect();
            report.tables.insert("curves".into(), Table::with_missing(description, lines, values)?);
            report.sections.push(Section::Lines {
                heading: Some("What each layer says".into()),
                table: "curves".into(),
                caption: format!(
                    "The probe, and the same probe where there is nothing to find. The {}% intervals are in the table below.",
                    100. * confidence
                ),
                y_label: name.into(),
            });
        }
        ProbeOver::LayerAndHead => {
            for (at, (series, which)) in series.into_iter().enumerate() {
                let table = ["probe", "shuffled", "random"][at];
                let description = format!("{description}: {series}");
                let table_of = Table::with_missing(description, axes(asked, probed), column(which).collect())?;
                report.tables.insert(table.into(), table_of);
            }
            report.sections.push(Section::HeatMap {
                heading: Some("What each head says".into()),
                table: "probe".into(),
                alternatives: vec!["shuffled".into(), "random".into()],
                scale: ColourScale::UNIT,
                caption: format!("{name} of each head's probe, and of the same probe where there is nothing to find."),
            });
        }
    }
    Ok(())
}

/// Every score with its interval.
fn measures(asked: &ProbeSites, probed: &[Probed], labels_of: &Labels, confidence: f64) -> Result<Table> {
    let (name, of) = main_score(labels_of);
    let mut scores = vec![(name, of)];
    if matches!(labels_of, Labels::Classes { .. }) {
        scores.push(("auc", |scores: &ProbeScores| scores.auc));
    }
    let mut names: Vec<String> =
        scores.iter().flat_map(|(name, _)| [name.to_string(), format!("{name} low"), format!("{name} high")]).collect();
    names.extend(["shuffled labels", "random features", "selectivity"].map(String::from));
    let row = |probed: &Probed| {
        let ends = |found: Option<Interval>| {
            [found.map(|found| found.estimate), found.map(|found| found.low), found.map(|found| found.high)]
        };
        let mut row: Vec<Option<f64>> = scores.iter().flat_map(|(_, of)| ends(of(&probed.scores))).collect();
        let [found, shuffled, random] =
            [&probed.scores, &probed.shuffled, &probed.random].map(|scores| ends(of(scores))[0]);
        row.extend([shuffled, random, found.zip(shuffled).map(|(found, shuffled)| found - shuffled)]);
        row
    };
    let values = probed.iter().flat_map(row).collect();
    let mut all = axes(asked, probed);
    all.push(("measure", labels(names)));
    let description =
        format!("scores on examples not fitted on, with {}% intervals over groups of rows", 100. * confidence);
    Ok(Table::with_missing(description, all, values)?)
}

fn claim(best: &Probed, place: &str, name: &str, of: Of, of_how_many: usize, types: ControlTypes) -> Result<Claim> {
    let found = of(&best.scores).context("the best probe has no score")?;
    let clear = |control: Option<Interval>| control.is_none_or(|control| control.high < found.low);
    let types = match types {
        ControlTypes::Rows => "labels shuffled over rows",
        ControlTypes::Tokens => "labels shuffled over tokens",
    };
    Ok(Claim::new(
        format!("A direction at {place} tells the labels apart (the best of {of_how_many}, chosen by this figure)."),
        Measured::Number { value: found.estimate, unit: name.into(), interval: Some([found.low, found.high]) },
        format!("{types}: {}; random features: {}", shown(of(&best.shuffled)), shown(of(&best.random))),
        if clear(of(&best.shuffled)) && clear(of(&best.random)) { Verdict::Shown } else { Verdict::NotShown },
    )?)
}
