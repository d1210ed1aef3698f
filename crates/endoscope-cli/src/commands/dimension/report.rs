//! The tables and the page of dimensions.

use anyhow::Result;
use endoscope_causal::dimension::{Dimension, DimensionSites, Fit, SiteDimension};
use endoscope_causal::statistics::Interval;
use endoscope_models::Model;
use endoscope_report::{Claim, Label, Measured, Report, Section, Table, Verdict, labels};

/// The dimension that layers are compared by: around points if that was asked for, else of all of them.
fn main_figure(found: &Dimension, fit: Fit) -> Interval {
    match (&found.local, fit) {
        (Some(local), _) => local.mean,
        (None, Fit::Linear) => found.linear,
        (None, Fit::Likelihood) => found.likelihood,
    }
}

fn place(site: &SiteDimension) -> String {
    site.layer.map_or_else(|| site.site.clone(), |layer| format!("layer {layer}"))
}

fn shown(interval: Interval) -> String {
    format!("{:.2} ({:.2} to {:.2})", interval.estimate, interval.low, interval.high)
}

/// The page of dimensions.
pub fn report(
    model: &Model,
    asked: &DimensionSites,
    found: &[SiteDimension],
    rows: usize,
    confidence: f64,
) -> Result<Report> {
    let fit = asked.two_nn.fit;
    let figure = |site: &SiteDimension| main_figure(&site.found, fit);
    let what = match asked.neighbours {
        Some(neighbours) => format!("mean dimension around each point, on its {neighbours} nearest neighbours"),
        None => "dimension of all points".to_string(),
    };
    let of_each: Vec<String> = found.iter().map(|site| format!("{} {}", place(site), shown(figure(site)))).collect();
    let counts: Vec<usize> = found.iter().map(|site| site.found.points).collect();
    let (fewest, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    let points = match fewest == most {
        true => format!("{most} points"),
        false => format!("{fewest} to {most} points (equal activations are one), so that layers compare badly"),
    };
    let summary = format!(
        "How many dimensions the activations of {} in {} fill, by TwoNN: {rows} rows, {points}. The {what}: {}.",
        asked.site,
        model.directory.display(),
        of_each.join("; ")
    );
    let mut report = Report::new(format!("The dimension of {}", asked.site), "dimension", summary);
    let layers: Vec<Label> =
        found.iter().map(|site| site.layer.map_or_else(|| site.site.clone().into(), Label::from)).collect();
    report.tables.insert("curves".into(), curves(asked, found, layers.clone())?);
    report.sections.push(Section::Lines {
        heading: Some("Dimension by layer".into()),
        table: "curves".into(),
        caption: "The activations, and as many Gaussian points of the same covariance. What lies below these is more than linear: \
                  clusters, or a curved surface."
            .into(),
        y_label: "dimension".into(),
    });
    report.tables.insert("dimensions".into(), measures(found, layers, confidence)?);
    report.sections.push(Section::Table {
        heading: Some("All figures".into()),
        table: "dimensions".into(),
        caption: "TwoNN finds too few dimensions where points are few for what they fill, the more so the more dimensions there \
                  are; the Gaussian points say how far. Compare figures of equally many points."
            .into(),
    });
    report.claims.push(claim(found, &what, fit)?);
    report.sections.push(Section::Claims { heading: Some("What was shown, and what the control gave".into()) });
    Ok(report)
}

fn curves(asked: &DimensionSites, found: &[SiteDimension], layers: Vec<Label>) -> Result<Table> {
    type Of = fn(&Dimension) -> Option<f64>;
    let all: Of = match asked.two_nn.fit {
        Fit::Linear => |found| Some(found.linear.estimate),
        Fit::Likelihood => |found| Some(found.likelihood.estimate),
    };
    let mut kinds: Vec<(&str, Of)> = vec![("all points", all)];
    if asked.neighbours.is_some() {
        kinds.insert(0, ("around points", |found| found.local.as_ref().map(|local| local.mean.estimate)));
    }
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for (name, of) in kinds {
        names.extend([name.to_string(), format!("{name}, Gaussian")]);
        values.extend(found.iter().map(|site| of(&site.found)));
        values.extend(found.iter().map(|site| of(&site.control)));
    }
    let axes = [("series", labels(names)), ("layer", layers)];
    Ok(Table::with_missing("dimension by TwoNN", axes, values)?)
}

/// Every figure with its interval.
fn measures(found: &[SiteDimension], layers: Vec<Label>, confidence: f64) -> Result<Table> {
    let local = found.iter().any(|site| site.found.local.is_some());
    let mut kinds = vec!["linear", "likelihood"];
    kinds.extend(local.then_some("local"));
    let mut names = vec!["points".to_string(), "duplicates".to_string()];
    for control in ["", "Gaussian "] {
        for kind in &kinds {
            names.extend(["", " low", " high"].map(|end| format!("{control}{kind}{end}")));
        }
    }
    let row = |site: &SiteDimension| {
        let mut row = vec![site.found.points as f64, site.found.duplicates as f64];
        for found in [&site.found, &site.control] {
            let local = found.local.as_ref().map(|local| local.mean);
            let intervals = [Some(found.linear), Some(found.likelihood), local];
            row.extend(intervals.into_iter().flatten().flat_map(|found| [found.estimate, found.low, found.high]));
        }
        row
    };
    let axes = [("layer", layers), ("measure", labels(names))];
    let description = format!("dimension by TwoNN, with {}% intervals over rows (BCa bootstrap)", 100. * confidence);
    Ok(Table::new(description, axes, found.iter().flat_map(row).collect())?)
}

fn claim(found: &[SiteDimension], what: &str, fit: Fit) -> Result<Claim> {
    let figures = |site: &SiteDimension| (main_figure(&site.found, fit), main_figure(&site.control, fit));
    let below = found.iter().filter(|site| {
        let (found, control) = figures(site);
        found.high < control.low
    });
    let below = below.count();
    let ratio = |(found, control): (Interval, Interval)| format!("{:.2} of {:.2}", found.estimate, control.estimate);
    let each: Vec<String> = found.iter().map(|site| format!("{} {}", place(site), ratio(figures(site)))).collect();
    Ok(Claim::new(
        "Activations fill fewer dimensions than Gaussian points of the same covariance: more than linear structure.",
        Measured::Text(format!("in {below} of {} layers, the intervals apart ({what})", found.len())),
        format!("dimension, and that of the Gaussian points: {}", each.join("; ")),
        match below {
            0 => Verdict::NotShown,
            some if some == found.len() => Verdict::Shown,
            _ => Verdict::Partly,
        },
    )?)
}
