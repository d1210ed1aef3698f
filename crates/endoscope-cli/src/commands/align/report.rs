//! The tables and the page of an alignment.

use anyhow::Result;
use endoscope_causal::{Aligned, Alignment, AlignmentScore, Find, FoundSite, Intervention};
use endoscope_models::Model;
use endoscope_report::{Claim, ColourScale, Label, Measured, Report, Section, Table, Verdict, labels};

/// Of a larger mask there is no picture; the file has it.
const MOST_CELLS: usize = 4096;
/// What gives the wanted answers gives at least this share of them.
const ENOUGH: f64 = 0.8;

pub fn report(model: &Model, alignment: &Alignment, aligned: &Aligned) -> Result<Report> {
    let places = format!("{}{}", alignment.site, selection(alignment));
    let mut report = Report::new(
        format!("{} of {places}", title(&alignment.find)),
        "align",
        format!(
            "An intervention on {} was trained on {} triples to give the answer wanted of each when something of its source \
             is put into its base. Found: {}.",
            model.directory.display(),
            aligned.train.len(),
            found(alignment, aligned)
        ),
    );
    report.claims.push(claim(aligned)?);
    report.sections.push(Section::Claims { heading: None });
    masks(&mut report, &alignment.find, &aligned.sites)?;
    outcomes(&mut report, aligned)?;
    let axes = [("step", labels(0..aligned.losses.len() as i64))];
    let description = "the objective that training makes small, on the triples of each step, without the penalty";
    report.tables.insert("objective".into(), Table::new(description, axes, aligned.losses.clone())?);
    report.sections.push(Section::Lines {
        heading: Some("Training".into()),
        table: "objective".into(),
        caption: "One batch a step.".into(),
        y_label: "objective".into(),
    });
    Ok(report)
}

fn title(find: &Find) -> &'static str {
    match find {
        Find::Heads { .. } => "Heads",
        Find::Neurons { .. } => "Neurons",
        Find::Directions { .. } => "Directions",
        Find::Subspace { .. } | Find::Boundless => "A subspace",
    }
}

/// ` at position -1, head 3`, or nothing.
fn selection(alignment: &Alignment) -> String {
    let axes: Vec<String> = alignment.select.0.iter().map(|(axis, index)| format!("{axis} {index}")).collect();
    if axes.is_empty() { String::new() } else { format!(" at {}", axes.join(", ")) }
}

/// What was found, in words.
fn found(alignment: &Alignment, aligned: &Aligned) -> String {
    let of = |site: &FoundSite| match (&alignment.find, site.size()) {
        (_, 0) => None,
        (Find::Subspace { .. } | Find::Boundless, size) => Some(format!("{size} dims of {}", site.site)),
        (_, size) => Some(format!("{size} of {}: {}", site.site, units(site))),
    };
    let all: usize = aligned.sites.iter().map(FoundSite::size).sum();
    let list: Vec<String> = aligned.sites.iter().filter_map(of).collect();
    if all == 0 { "nothing".into() } else { list.join("; ") }
}

/// The names of the first units that were chosen: `3`, or `3.17` for head and dim.
fn units(site: &FoundSite) -> String {
    let mask = site.mask.flatten_all().and_then(|mask| mask.to_vec1::<f32>()).unwrap_or_default();
    let width = site.entries.len().max(1);
    let name = |at: usize| match (site.heads.get(at / width), site.entries.get(at % width)) {
        (Some(head), Some(entry)) => format!("{head}.{entry}"),
        (Some(head), None) => head.to_string(),
        (None, Some(entry)) => entry.to_string(),
        (None, None) => at.to_string(),
    };
    let open: Vec<usize> = (0..mask.len()).filter(|&at| mask[at] > 0.5).collect();
    let mut names: Vec<String> = open.iter().take(20).map(|&at| name(at)).collect();
    if open.len() > names.len() {
        names.push("…".into());
    }
    names.join(", ")
}

/// The masks, rounded and as trained: one table where sites have masks of one shape, else one a site.
fn masks(report: &mut Report, find: &Find, sites: &[FoundSite]) -> Result<()> {
    let Some(first) = sites.first() else { return Ok(()) };
    if matches!(find, Find::Subspace { .. }) {
        // All of its dims are taken.
        return Ok(());
    }
    let alike = sites.iter().all(|site| site.soft.dims() == first.soft.dims());
    let groups: Vec<&[FoundSite]> = if alike { vec![sites] } else { sites.chunks(1).collect() };
    for (number, group) in groups.into_iter().enumerate() {
        if group.iter().map(|site| site.soft.elem_count()).sum::<usize>() > MOST_CELLS {
            continue;
        }
        let name = |what: &str| if number == 0 { what.to_string() } else { format!("{what}_{number}") };
        let mut axes = vec![("site", labels(group.iter().map(|site| site.site.clone())))];
        let site = &group[0];
        if !site.heads.is_empty() {
            axes.push(("head", labels(site.heads.iter().map(|&head| head as i64))));
        }
        let entries = match (site.entries.is_empty(), site.heads.is_empty()) {
            (false, _) => site.entries.iter().map(|&entry| entry as i64).collect(),
            // Of a subspace without bounds, each direction that was trained.
            (true, true) => (0..site.soft.elem_count() as i64).collect(),
            (true, false) => Vec::new(),
        };
        if !entries.is_empty() {
            axes.push((if site.along.is_some() { "direction" } else { "dim" }, labels(entries)));
        }
        let mut numbers = Vec::new();
        for site in group {
            numbers.extend(site.soft.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from));
        }
        let rounded = numbers.iter().map(|&number| f64::from(u8::from(number > 0.5))).collect();
        let table = Table::new("the mask, rounded: 1 is taken from the source", axes.clone(), rounded)?;
        report.tables.insert(name("mask"), table);
        report.tables.insert(name("soft"), Table::new("the mask as it was trained, before rounding", axes, numbers)?);
        report.sections.push(Section::HeatMap {
            heading: Some("What was found".into()),
            table: name("mask"),
            alternatives: vec![name("soft")],
            scale: ColourScale::UNIT,
            caption: "What is taken from the source.".into(),
        });
    }
    Ok(())
}

/// How each intervention fares, on each desideratum, trained on and held out.
fn outcomes(report: &mut Report, aligned: &Aligned) -> Result<()> {
    let mut drawn = 0;
    let names = aligned.outcomes.iter().map(|outcome| match outcome.intervention {
        Intervention::Random => {
            drawn += 1;
            format!("random {drawn}")
        }
        other => other.name().replace('_', " "),
    });
    let names: Vec<Label> = labels(names);
    let Some(first) = aligned.outcomes.first() else { return Ok(()) };
    let named = |when: &str, scores: &[AlignmentScore]| {
        let name = |score: &AlignmentScore| match score.desideratum.as_str() {
            "" => format!("{when} ({})", score.triples),
            name => format!("{name}, {when} ({})", score.triples),
        };
        scores.iter().map(name).collect::<Vec<_>>()
    };
    let columns = labels([named("trained on", &first.train), named("held out", &first.held_out)].concat());
    let values = |of: &dyn Fn(&AlignmentScore) -> Option<f64>| -> Vec<Option<f64>> {
        aligned.outcomes.iter().flat_map(|outcome| outcome.train.iter().chain(&outcome.held_out)).map(of).collect()
    };
    let tables = [
        (
            "accuracy",
            "share of triples whose wanted answer has the largest logit",
            values(&|score| Some(score.accuracy)),
        ),
        ("loss", "minus the log of the wanted answers' probability, in nats, mean", values(&|score| Some(score.loss))),
        (
            "logit_diff",
            "mean logit of the wanted answers less that of the wrong ones",
            values(&|score| score.logit_diff),
        ),
    ];
    for (name, description, values) in tables {
        if values.iter().all(Option::is_none) {
            continue;
        }
        let axes = [("put_in", names.clone()), ("triples", columns.clone())];
        report.tables.insert(name.into(), Table::with_missing(description, axes, values)?);
    }
    report.sections.push(Section::Table {
        heading: Some("What it does".into()),
        table: "accuracy".into(),
        caption: "Share of triples with the wanted answer on top, when this is put into the base: nothing, everything that was \
                  selected, what was found, others of the same size, and what the same training finds (and then does) where \
                  each triple has another's source."
            .into(),
    });
    Ok(())
}

/// That what was found gives the wanted answers where the controls do not.
fn claim(aligned: &Aligned) -> Result<Claim> {
    let accuracy = |intervention| aligned.accuracy(intervention);
    let value = accuracy(Intervention::Found).unwrap_or(f64::NAN);
    let count = if aligned.held_out.is_empty() { aligned.train.len() } else { aligned.held_out.len() };
    let [low, high] = wilson(value, count);
    let controls = [
        ("nothing put in", accuracy(Intervention::Nothing)),
        ("the best of the others of the same size", accuracy(Intervention::Random)),
        ("trained on shuffled sources", accuracy(Intervention::ShuffledSources)),
    ];
    let best = controls.iter().filter_map(|(_, accuracy)| *accuracy).fold(0., f64::max);
    let text = controls.iter().filter_map(|(name, accuracy)| accuracy.map(|accuracy| format!("{name}: {accuracy:.3}")));
    let verdict = match value {
        value if low > best && value >= ENOUGH => Verdict::Shown,
        value if value > best => Verdict::Partly,
        _ => Verdict::NotShown,
    };
    let whose = if aligned.held_out.is_empty() { "trained on (none was held out)" } else { "held out" };
    Ok(Claim::new(
        format!(
            "Taken from the source, what was found gives the wanted answers of the {count} {} {whose}.",
            if count == 1 { "triple" } else { "triples" }
        ),
        Measured::Number { value, unit: "interchange-intervention accuracy".into(), interval: Some([low, high]) },
        text.collect::<Vec<_>>().join("; "),
        verdict,
    )?)
}

/// The 95% interval of a share (Wilson 1927).
fn wilson(share: f64, count: usize) -> [f64; 2] {
    let (n, z) = (count as f64, 1.959_964);
    let middle = (share + z * z / (2. * n)) / (1. + z * z / n);
    let reach = z / (1. + z * z / n) * (share * (1. - share) / n + z * z / (4. * n * n)).sqrt();
    [(middle - reach).max(0.), (middle + reach).min(1.)]
}

#[cfg(test)]
mod tests {
    use super::wilson;

    #[test]
    fn intervals_are_wilsons() {
        // Of 9 in 10 and of none in 20.
        for (share, count, expected) in [(0.9, 10, [0.5958, 0.9821]), (0., 20, [0., 0.1611])] {
            let found = wilson(share, count);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?}");
        }
    }
}
