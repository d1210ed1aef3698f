//! The tables and the page of a knockout.

use anyhow::Result;
use endoscope_causal::statistics::{Alternative, Interval, Permutations, Resampling, holm, sign_flip};
use endoscope_causal::{KnockoutPrompt, KnockoutScores};
use endoscope_models::{Model, NamedPositions};
use endoscope_report::{Claim, ColourScale, Label, Measured, Report, Section, Table, Verdict, labels};

use crate::commands::patch::push_cost;

/// One measure of every cell; missing where there is none.
type Column = Vec<Option<f64>>;

/// The measures of every cell, over prompts.
struct Measures {
    /// The metric's mean change where the edges are cut.
    change: Column,
    change_intervals: Vec<Option<Interval>>,
    /// The same for the control.
    control: Column,
    control_intervals: Vec<Option<Interval>>,
    /// The metric's mean where the edges are cut.
    cut: Column,
    /// The mean of the change as a share of the metric where nothing is cut.
    relative: Column,
    /// Of cut against control, corrected.
    p: Column,
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

impl Measures {
    fn of(prompts: &[KnockoutPrompt], resampling: &Resampling) -> Result<Self> {
        let cells = prompts.first().map_or(0, |prompt| prompt.cut.len());
        let columns = |of: &dyn Fn(&KnockoutPrompt, usize) -> Option<f64>| -> Vec<Vec<f64>> {
            (0..cells).map(|cell| prompts.iter().filter_map(|prompt| of(prompt, cell)).collect()).collect()
        };
        let means = |columns: &[Vec<f64>]| columns.iter().map(|column| mean(column)).collect();
        let change = columns(&|prompt, cell| Some(prompt.cut[cell] - prompt.whole));
        let control = columns(&|prompt, cell| Some(prompt.control.as_ref()?[cell] - prompt.whole));
        let positive = prompts.iter().all(|prompt| prompt.whole > 0.);
        let relative =
            |prompt: &KnockoutPrompt, cell: usize| positive.then(|| (prompt.cut[cell] - prompt.whole) / prompt.whole);
        let differences = columns(&|prompt, cell| Some(prompt.cut[cell] - prompt.control.as_ref()?[cell]));
        let permutations = Permutations { seed: resampling.seed, ..Permutations::default() };
        // One prompt cannot be told from chance.
        let testable = differences.iter().all(|column| column.len() > 1);
        let p = match testable && cells > 0 {
            true => {
                let p = differences.iter().map(|column| sign_flip(column, Alternative::TwoSided, permutations));
                holm(&p.collect::<Result<Vec<_>, _>>()?)?.into_iter().map(Some).collect()
            }
            false => vec![None; cells],
        };
        Ok(Self {
            change_intervals: resampling.means(&change)?,
            change: means(&change),
            control_intervals: resampling.means(&control)?,
            control: means(&control),
            cut: means(&columns(&|prompt, cell| Some(prompt.cut[cell]))),
            relative: means(&columns(&relative)),
            p,
        })
    }
}

/// The page of a knockout.
pub fn report(
    model: &Model,
    scores: &KnockoutScores,
    from: &NamedPositions,
    to: &NamedPositions,
    resampling: &Resampling,
) -> Result<Report> {
    let metric = scores.knockout.metric.name();
    let measures = Measures::of(&scores.prompts, resampling)?;
    let whole = mean(&scores.prompts.iter().map(|prompt| prompt.whole).collect::<Vec<_>>()).unwrap_or(f64::NAN);
    let largest = (0..measures.change.len())
        .max_by(|&a, &b| {
            let size = |cell: usize| measures.change[cell].map_or(0., f64::abs);
            size(a).total_cmp(&size(b)).then(b.cmp(&a))
        })
        .unwrap_or(0);
    let place = match scores.heads {
        None => format!("around layer {}", scores.layers[largest]),
        Some(heads) => format!("of head {}.{}", scores.layers[largest / heads], largest % heads),
    };
    let (count, window) = (scores.prompts.len(), scores.knockout.window);
    let summary = format!(
        "Attention edges from {from} to {to} were cut in {}, {window} layer{} at a time, over {count} prompt{}. {metric} is \
         {whole:.4} on average where nothing is cut; it changes most where edges {place} are cut: by {}, and by {} where edges from as \
         many other positions are cut there.",
        model.directory.display(),
        if window == 1 { "" } else { "s" },
        if count == 1 { "" } else { "s" },
        shown(measures.change[largest], measures.change_intervals[largest]),
        shown(measures.control[largest], measures.control_intervals[largest]),
    );
    let mut report = Report::new(format!("Edges from {from} to {to}"), "knockout", summary);
    let cells = axes(scores);
    let sure = format!("{}% interval", 100. * resampling.confidence);
    match scores.heads {
        None => {
            let mut lines = vec![("series", labels(["cut", "control"]))];
            lines.extend(cells.clone());
            let values = [measures.change.clone(), measures.control.clone()].concat();
            let described = format!("change of {metric} where edges are cut, mean over prompts");
            report.tables.insert("curves".into(), Table::with_missing(described, lines, values)?);
            report.sections.push(Section::Lines {
                heading: Some("Where the edges are needed".into()),
                table: "curves".into(),
                caption: "Control: edges from as many other positions, drawn at random.".into(),
                y_label: format!("change of {metric}"),
            });
        }
        Some(_) => {
            for (name, what, column) in [
                ("change", "where the head's edges are cut", &measures.change),
                ("control", "where its edges from as many other positions are cut", &measures.control),
            ] {
                let described = format!("change of {metric} {what}, mean over prompts");
                report.tables.insert(name.into(), Table::with_missing(described, cells.clone(), column.clone())?);
            }
            report.sections.push(Section::HeatMap {
                heading: Some("Which heads' edges are needed".into()),
                table: "change".into(),
                alternatives: vec!["control".into()],
                scale: ColourScale::DIVERGING,
                caption: "Control: edges from as many other positions, drawn at random.".into(),
            });
        }
    }
    report.tables.insert("measures".into(), table(&measures, cells, metric, &sure)?);
    report.sections.push(Section::Table {
        heading: Some("All measures".into()),
        table: "measures".into(),
        caption: format!(
            "Ends of the {sure} over prompts; p: that cut and control differ by chance (signs flipped prompt by prompt), \
             corrected for all cells by Holm."
        ),
    });
    push_cost(&mut report, &scores.cost)?;
    if let (Some(found), Some(control)) = (measures.change_intervals[largest], measures.control_intervals[largest]) {
        let apart = found.high < control.low || control.high < found.low;
        report.claims.push(Claim::new(
            format!(
                "Cutting the edges {place} changes {metric} (of {} places the largest change).",
                measures.change.len()
            ),
            Measured::Number { value: found.estimate, unit: metric.into(), interval: Some([found.low, found.high]) },
            format!("edges from as many other positions: {}", shown(Some(control.estimate), Some(control))),
            if apart { Verdict::Shown } else { Verdict::NotShown },
        )?);
    }
    Ok(report)
}

fn shown(value: Option<f64>, interval: Option<Interval>) -> String {
    match (value, interval) {
        (Some(value), Some(found)) => format!("{value:.4} ({:.4} to {:.4})", found.low, found.high),
        (Some(value), None) => format!("{value:.4}"),
        (None, _) => "an unknown amount (there are not enough other positions)".into(),
    }
}

fn axes(scores: &KnockoutScores) -> Vec<(&'static str, Vec<Label>)> {
    let mut axes = vec![("layer", labels(scores.layers.iter().copied()))];
    axes.extend(scores.heads.map(|count| ("head", labels(0..count))));
    axes
}

fn table(measures: &Measures, mut axes: Vec<(&'static str, Vec<Label>)>, metric: &str, sure: &str) -> Result<Table> {
    let ends = |intervals: &[Option<Interval>]| -> [Column; 2] {
        let of = |end: fn(Interval) -> f64| intervals.iter().map(|found| found.map(end)).collect();
        [of(|found| found.low), of(|found| found.high)]
    };
    let [low, high] = ends(&measures.change_intervals);
    let [control_low, control_high] = ends(&measures.control_intervals);
    let columns = [
        ("cut", measures.cut.clone()),
        ("change", measures.change.clone()),
        ("low", low),
        ("high", high),
        ("relative", measures.relative.clone()),
        ("control", measures.control.clone()),
        ("control low", control_low),
        ("control high", control_high),
        ("p", measures.p.clone()),
    ];
    axes.push(("measure", labels(columns.iter().map(|(name, _)| *name))));
    let cells = measures.change.len();
    let values = (0..cells).flat_map(|cell| columns.iter().map(move |(_, column)| column[cell])).collect();
    let described =
        format!("{metric} where edges are cut, its change from where nothing is, and the {sure} of the change");
    Ok(Table::with_missing(described, axes, values)?)
}
