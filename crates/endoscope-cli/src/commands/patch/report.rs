//! The tables and the page of a sweep.

use anyhow::Result;
use endoscope_causal::statistics::Resampling;
use endoscope_causal::{Align, Direction, ScoreAxis, Scores, Sweep, SweepAxis, SweepChange, SweepCost};
use endoscope_models::Model;
use endoscope_net::Work;
use endoscope_report::{ColourScale, Label, Report, Section, Table, labels};
use serde_json::json;

use crate::intervals::ends;
use crate::memory;

/// The tables of a sweep: `scores` (the metric itself), `normalised`, and where there are several pairs `spread` and the ends
/// `low` and `high` of the scores' intervals.
pub fn tables(scores: &Scores, positions: &[String], resampling: &Resampling) -> Result<Vec<(String, Table)>> {
    let axes = || scores.axes.iter().map(|axis| (axis.axis.name(), axis_labels(axis, positions)));
    let metric = scores.sweep.metric.name();
    let order: String = scores.axes.iter().map(|axis| format!("[{}]", axis.axis.name())).collect();
    let normalised =
        format!("(score - corrupt) / (clean - corrupt): 0 = as the corrupt run, 1 = as the clean run; values{order}");
    let mut tables = vec![
        (
            "scores".to_string(),
            Table::new(format!("{metric}, mean over prompt pairs; values{order}"), axes(), scores.values.clone())?,
        ),
        ("normalised".to_string(), Table::with_missing(normalised, axes(), scores.normalised.clone())?),
    ];
    if scores.pairs.len() > 1 {
        let description = format!("standard deviation of {metric} over prompt pairs; values{order}");
        tables.push(("spread".to_string(), Table::with_missing(description, axes(), scores.spread.clone())?));
        let what = format!("the mean of {metric} over prompt pairs");
        for (name, description, values) in ends(&what, resampling.confidence, &scores.intervals(resampling)?) {
            tables.push((
                name.to_string(),
                Table::with_missing(format!("{description}; values{order}"), axes(), values)?,
            ));
        }
    }
    Ok(tables)
}

fn axis_labels(axis: &ScoreAxis, positions: &[String]) -> Vec<Label> {
    let label = |&value: &i64| match axis.axis {
        SweepAxis::Position | SweepAxis::Key => {
            let token = usize::try_from(value).ok().and_then(|at| positions.get(at));
            Label::Text(token.cloned().unwrap_or_else(|| value.to_string()))
        }
        SweepAxis::Neuron => Label::Text(format!("{value}..{}", value + axis.width as i64)),
        SweepAxis::Layer | SweepAxis::Head | SweepAxis::Direction | SweepAxis::Pair => Label::Index(value),
    };
    axis.values.iter().map(label).collect()
}

/// The heat map of a sweep.
pub fn heat_map(heading: &str, scores: &Scores, tables: &[(String, Table)], caption: &str) -> Section {
    let usable = scores.normalised.iter().any(Option::is_some);
    let first = if usable { 1 } else { 0 };
    let others = (0..tables.len()).filter(|&at| at != first);
    Section::HeatMap {
        heading: Some(heading.to_string()),
        table: tables[first].0.clone(),
        alternatives: others.map(|at| tables[at].0.clone()).collect(),
        scale: ColourScale::DIVERGING,
        caption: caption.to_string(),
    }
}

/// The page of a sweep.
pub fn report(
    model: &Model,
    donor: Option<&Model>,
    scores: &Scores,
    positions: &[String],
    resampling: &Resampling,
) -> Result<Report> {
    let Sweep { site, metric, direction, change, .. } = &scores.sweep;
    let (from, into, patched, other) = match direction {
        Direction::Denoise => {
            ("clean", "corrupt", "1 where the patch alone restores the clean behaviour", "1 as the clean run")
        }
        Direction::Noise => {
            ("corrupt", "clean", "0 where the patch alone breaks the clean behaviour", "0 as the corrupt run")
        }
    };
    let done = match change {
        SweepChange::Patch => {
            let whose = donor.map_or(String::new(), |donor| format!(" of {}", donor.directory.display()));
            format!("Activations of {site} from the {from} run{whose} were put into the {into} run")
        }
        other => format!(
            "{site} was changed ({}) in the {into} run",
            serde_json::to_value(other)?.to_string().trim_matches('"')
        ),
    };
    let meaning = if *change == SweepChange::Patch { patched } else { other };
    let pairs = scores.pairs.len();
    let summary = format!(
        "{done} of {}, one place at a time, over {pairs} prompt {}. Measured at the last position: {} is {:.4} on the clean \
         run and {:.4} on the corrupt one.",
        model.directory.display(),
        if pairs == 1 { "pair" } else { "pairs" },
        metric.name(),
        scores.clean,
        scores.corrupt
    );
    let axes: Vec<&str> = scores.axes.iter().map(|axis| axis.axis.name()).collect();
    let verb = if *change == SweepChange::Patch { "Patching" } else { "Changing" };
    let mut report = Report::new(format!("{verb} {site} over {}", axes.join(" x ")), "patch", summary);
    let tables = tables(scores, positions, resampling)?;
    let shown = match scores.normalised.iter().any(Option::is_some) {
        true => format!("Normalised score: {meaning}."),
        false => format!("The {} itself: clean and corrupt do not differ, so there is no scale.", metric.name()),
    };
    let labels = match scores.sweep.align {
        Align::Equal => "Position labels are tokens of the first clean prompt.",
        Align::First | Align::Last => {
            "Prompts differ in length: each position is averaged over the pairs that have it; negative ones count from the end."
        }
    };
    let caption = format!("{shown} {labels}");
    report.sections.push(heat_map("Where the difference lies", scores, &tables, &caption));
    report.tables.extend(tables);
    push_cost(&mut report, &scores.cost)?;
    Ok(report)
}

/// The rows of work, planned and naive, as a table and a sentence.
pub fn push_cost(report: &mut Report, cost: &SweepCost) -> Result<()> {
    let parts = ["attention", "mlp", "unembedding"];
    let values =
        [cost.work, cost.naive].map(|work| [work.attention, work.mlp, work.unembedding].map(|rows| rows as f64));
    let axes = [("rows", labels(["computed", "naive"])), ("part", labels(parts))];
    let description = "rows of work: positions passed through a part of the network";
    report.tables.insert("work".into(), Table::new(description, axes, values.concat())?);
    let body = format!(
        "{} of {} points were run, in {}; the others equal one of them or change nothing. {}",
        cost.computed,
        cost.points,
        counted(cost.batches, "batch", "batches"),
        rows(cost)
    );
    report.sections.push(Section::Text { heading: Some("What it took".into()), body });
    Ok(())
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn rows(cost: &SweepCost) -> String {
    let (planned, naive) = (cost.work.rows(), cost.naive.rows());
    let times = match planned {
        0 => String::new(),
        _ => format!(", {:.1} times as many", naive as f64 / planned as f64),
    };
    format!(
        "Rows of work (a position through attention, MLP or unembedding): {planned}; one whole forward pass a point: {naive}{times}."
    )
}

/// What `--explain` says.
pub fn cost_text(cost: &SweepCost) -> String {
    let mut text = format!(
        "{:<24}{:>16}\n{:<24}{:>16}\n{:<24}{:>16}\n{:<24}{:>16}\n\n",
        "points of the grid",
        cost.points,
        "points computed",
        cost.computed,
        "batches",
        cost.batches,
        "largest batch",
        memory::shown(cost.batch_bytes)
    );
    text += &format!("{:<24}{:>16}{:>16}{:>10}\n", "rows of work", "this sweep", "naive", "ratio");
    let (work, naive) = (cost.work, cost.naive);
    for (name, rows, whole) in [
        ("attention", work.attention, naive.attention),
        ("mlp", work.mlp, naive.mlp),
        ("unembedding", work.unembedding, naive.unembedding),
        ("total", work.rows(), naive.rows()),
    ] {
        let ratio = if rows == 0 { "-".into() } else { format!("{:.1}", whole as f64 / rows as f64) };
        text += &format!("{name:<24}{rows:>16}{whole:>16}{ratio:>10}\n");
    }
    text + "\nBesides, the two runs of each pair, one whole forward pass each.\n"
}

/// The same as JSON.
pub fn cost_document(cost: &SweepCost) -> serde_json::Value {
    let work = |work: Work| json!({"attention": work.attention, "mlp": work.mlp, "unembedding": work.unembedding, "total": work.rows()});
    let rows = cost.work.rows();
    json!({
        "points": cost.points,
        "computed": cost.computed,
        "batches": cost.batches,
        "batch_bytes": cost.batch_bytes,
        "work": work(cost.work),
        "naive": work(cost.naive),
        "ratio": (rows > 0).then(|| cost.naive.rows() as f64 / rows as f64),
    })
}
