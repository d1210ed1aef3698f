//! What a report shows besides its claims: accuracy by degree, the averages of the views, both views beside the truth.

use endoscope_causal::lens::TokenViews;
use endoscope_report::{ColourScale, Section, Table, labels};
use indexmap::IndexMap;

use super::known::Known;
use super::measure::{Behaviour, InWeights, mean};
use super::{Figures, JoinedPair};
use crate::error::Result;
use crate::study::Outcome;

/// How many nodes of a graph are drawn, and how many pairs listed.
const SHOWN: usize = 40;
const LISTED: usize = 200;

/// Accuracy by degree and seed.
pub(super) fn by_degree(outcome: &mut Outcome, behaviours: &[&Behaviour]) -> Result<()> {
    let names = ["0", "1", "2", "3 or more"];
    let seeds = || labels(1..=behaviours.len() as i64);
    let cells = |of: fn((usize, Option<f64>)) -> Option<f64>| -> Vec<Option<f64>> {
        let cells = (0..4).flat_map(|degree| behaviours.iter().map(move |behaviour| behaviour.degrees[degree]));
        cells.map(of).collect()
    };
    let axes = || [("degree", labels(names)), ("seed", seeds())];
    let share = Table::with_missing("share of right paths between pairs not trained on", axes(), cells(|cell| cell.1))?;
    let count = Table::with_missing("pairs not trained on", axes(), cells(|cell| Some(cell.0 as f64)))?;
    outcome.tables.insert("accuracy_by_degree".into(), share);
    outcome.tables.insert("pairs_by_degree".into(), count);
    let section = |heading: &str, table: &str, caption: &str| Section::Table {
        heading: Some(heading.into()),
        table: table.into(),
        caption: caption.into(),
    };
    outcome.sections.push(section(
        "By degree",
        "accuracy_by_degree",
        "Degree 0: the source was seen on a path to the target; 1: a node after it was; 2: one after that.",
    ));
    outcome.sections.push(section("How many pairs", "pairs_by_degree", "Seeds in their order."));
    Ok(())
}

/// The averages of the reachability view, of the model and its controls, over all seeds.
pub(super) fn means(outcome: &mut Outcome, figures: &[Figures]) -> Result<()> {
    let models: [fn(&Figures) -> &InWeights; 3] = [|f| &f.weights, |f| &f.weights_shuffled, |f| &f.weights_of_edges];
    let cell = |model: fn(&Figures) -> &InWeights, group: usize| {
        figures
            .iter()
            .map(|f| model(f).means[group])
            .collect::<Option<Vec<f64>>>()
            .and_then(|all| mean(all.into_iter()))
    };
    let values = models.into_iter().flat_map(|model| (0..3).map(move |group| cell(model, group))).collect();
    let axes = [
        ("trained on", labels(["paths", "paths with any target", "single edges"])),
        ("node", labels(["seen on the way", "could be on the way", "cannot be"])),
    ];
    outcome.tables.insert(
        "reachability_means".into(),
        Table::with_missing("mean logit that a target gives nodes", axes, values)?,
    );
    outcome.sections.push(Section::Table {
        heading: Some("What a target says of nodes".into()),
        table: "reachability_means".into(),
        caption: "Means of the reachability view over cells and seeds, less what all targets say of a node alike."
            .into(),
    });
    Ok(())
}

/// The pairs that need paths joined, of the first seed.
pub(super) fn listed(outcome: &mut Outcome, known: &Known, joined: &[JoinedPair]) -> Result<()> {
    let shown = &joined[..joined.len().min(LISTED)];
    let names =
        shown.iter().map(|(source, target, ..)| format!("{} to {}", known.names[*source], known.names[*target]));
    let axes = [("pair", labels(names)), ("figure", labels(["degree", "share of right paths"]))];
    let values = shown.iter().flat_map(|&(_, _, degree, right)| [degree as f64, right]).collect();
    outcome
        .tables
        .insert("joined_pairs".into(), Table::new("pairs that can only be found by joining paths", axes, values)?);
    outcome.sections.push(Section::Table {
        heading: Some("Pairs reachable only by joining paths".into()),
        table: "joined_pairs".into(),
        caption: format!("With the first seed; {} of {}.", shown.len(), joined.len()),
    });
    Ok(())
}

/// Both views of the first nodes, beside what is true.
pub(super) fn drawn(outcome: &mut Outcome, known: &Known, views: &TokenViews, whose: &str) -> Result<()> {
    let shown = known.names.len().min(SHOWN);
    let cells = |of: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..shown)
            .flat_map(|row| (0..shown).map(move |column| (row, column)))
            .map(|(row, column)| of(row, column))
            .collect()
    };
    let truth = |holds: bool| f64::from(u8::from(holds));
    let names = || labels(known.names[..shown].iter().map(String::as_str));
    let add = |tables: &mut IndexMap<String, Table>,
               name: &str,
               what: &str,
               axes: [&str; 2],
               values: Vec<f64>|
     -> Result<()> {
        let axes = axes.map(|axis| (axis.to_string(), names()));
        tables.insert(name.into(), Table::new(what, axes, values)?);
        Ok(())
    };
    let (from_to, target_node) = (["from", "to"], ["target", "node"]);
    let tables = &mut outcome.tables;
    add(
        tables,
        "adjacency_view",
        "logit that a node gives the next",
        from_to,
        cells(&|from, to| views.at_hand[from][to]),
    )?;
    add(
        tables,
        "edges",
        "whether there is an edge",
        from_to,
        cells(&|from, to| truth(known.graph.adjacency.holds(from, to))),
    )?;
    add(
        tables,
        "reachability_view",
        "logit that a target gives a node",
        target_node,
        cells(&|target, node| views.looked_at[target][node]),
    )?;
    let seen = |target: usize, node: usize| {
        let group = [known.graph.seen_reachability.holds(target, node), known.graph.reachability.holds(node, target)];
        truth(group[0]) + truth(group[0] || group[1])
    };
    add(tables, "on_the_way", "2 if seen on the way, 1 if it only could be", target_node, cells(&seen))?;
    let section = |heading: &str, table: &str, other: &str, caption: String| Section::HeatMap {
        heading: Some(heading.into()),
        table: table.into(),
        alternatives: vec![other.into()],
        scale: ColourScale::SEQUENTIAL,
        caption,
    };
    outcome.sections.push(section(
        "Which node follows which",
        "adjacency_view",
        "edges",
        format!("The weights {whose}, the first {shown} nodes; the other table has the edges."),
    ));
    outcome.sections.push(section(
        "Which node is on the way",
        "reachability_view",
        "on_the_way",
        format!(
            "The weights {whose}, the first {shown} nodes; the other table has what was seen and what only could be."
        ),
    ));
    Ok(())
}
