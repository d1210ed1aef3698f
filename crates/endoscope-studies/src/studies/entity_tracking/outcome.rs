//! The claims of the study, judged, and its tables.

use endoscope_report::{Section, Table, labels};

use super::circuit::{Group, Member};
use super::prompts::Hypothesis;
use super::{Carried, Config, Figures, OfTwin};
use crate::error::Result;
use crate::finding::{Finding, Line, Test};
use crate::study::Outcome;

/// The claims judged, and the tables.
pub(super) fn outcome(config: &Config, figures: &[Figures]) -> Result<Outcome> {
    let all = |of: &dyn Fn(&Figures) -> f64| figures.iter().map(of).collect::<Vec<f64>>();
    let percent = 100. * config.share;
    let accuracy =
        |f: &Figures, group: Group, hypothesis: Hypothesis| f.of(group, hypothesis).map_or(0., |each| each.accuracy);
    // The accuracy of the one hypothesis, and of the better of the two others.
    let both = |group: Group, hypothesis: Hypothesis| {
        let others = |f: &Figures| {
            let those = Hypothesis::ALL.into_iter().filter(|other| *other != hypothesis);
            those.map(|other| accuracy(f, group, other)).fold(0., f64::max)
        };
        (all(&|f| accuracy(f, group, hypothesis)), all(&others))
    };
    let objects = both(Group::ValueFetcher, Hypothesis::Object);
    let positions = both(Group::PositionTransmitter, Hypothesis::Position);
    let mut findings = vec![
        Test {
            claim: format!("A circuit of at most {percent} % of the heads answers as well as the whole model, on prompts that it was not found on."),
            unit: "of the model's accuracy".into(),
            effect: Line::AtLeast(0.9),
            control: "as many random heads of each layer".into(),
            absent: Line::AtMost(0.4),
        }
        .judge(&all(&|f| f.alone / f.whole), &all(&|f| f.random / f.whole))?,
        Test {
            claim: "What the search finds answers the question by itself.".into(),
            unit: "of prompts".into(),
            effect: Line::AtLeast(0.5),
            control: "what the same search finds in a model that was not trained".into(),
            absent: Line::AtMost(0.1),
        }
        .judge(&all(&|f| f.alone), &all(&|f| f.untrained))?,
        Test {
            claim: "The value fetchers carry the object, and neither the label nor the position of its box.".into(),
            unit: "of pairs answered as the hypothesis says".into(),
            effect: Line::AtLeast(0.8),
            control: "the better of the hypotheses label and position".into(),
            absent: Line::AtMost(0.4),
        }
        .judge(&objects.0, &objects.1)?,
        Test {
            claim: "The mask finds that because of what the other prompt says.".into(),
            unit: "of pairs answered as the hypothesis says".into(),
            effect: Line::AtLeast(0.8),
            control: "a mask trained where each prompt has the source of another".into(),
            absent: Line::AtMost(0.4),
        }
        .judge(&objects.0, &all(&|f| f.of(Group::ValueFetcher, Hypothesis::Object).map_or(0., |each| each.shuffled)))?,
        Test {
            claim: "The position transmitters carry the position of the box, and neither its object nor its label.".into(),
            unit: "of pairs answered as the hypothesis says".into(),
            effect: Line::AtLeast(0.8),
            control: "the better of the hypotheses object and label".into(),
            absent: Line::AtMost(0.4),
        }
        .judge(&positions.0, &positions.1)?,
    ];
    findings.extend(of_fine_tuning(figures)?);
    let names = |f: &Figures| {
        f.members.iter().map(|member| format!("{}.{}", member.layer, member.head)).collect::<Vec<_>>().join(", ")
    };
    let summary = format!(
        "Path patching from the logits back, group by group, found with the seeds in order the circuits of the heads (layer.head) {}. All other heads \
         were then replaced by what they write on average at their position, over prompts of {} boxes.",
        figures.iter().map(names).collect::<Vec<_>>().join("; "),
        config.boxes
    );
    let mut outcome = Outcome { summary, findings, ..Outcome::default() };
    tables(figures, &mut outcome)?;
    Ok(outcome)
}

/// The claims that need the twin; none without it.
fn of_fine_tuning(figures: &[Figures]) -> Result<Vec<Finding>> {
    let twins: Option<Vec<&OfTwin>> = figures.iter().map(|f| f.twin.as_ref()).collect();
    let Some(twins) = twins else { return Ok(Vec::new()) };
    let with = |of: fn(&Figures, &OfTwin) -> f64| {
        figures.iter().zip(&twins).map(|(f, twin)| of(f, twin)).collect::<Vec<f64>>()
    };
    // The group that closes the most of the gap, and what its place does when it comes from elsewhere.
    let best = |which: usize| {
        let of = |twin: &&OfTwin| {
            let best = twin.recovered.iter().max_by(|a, b| a.1[0].total_cmp(&b.1[0]));
            best.map_or(0., |(_, gains)| gains[which])
        };
        twins.iter().map(of).collect::<Vec<f64>>()
    };
    Ok(vec![
        Test {
            claim:
                "The base model's circuit alone, in the fine-tuned model, is at least as good as the whole base model."
                    .into(),
            unit: "of accuracy above the whole base model's".into(),
            effect: Line::AtLeast(0.),
            control: "as many random heads of each layer, in the fine-tuned model".into(),
            absent: Line::AtMost(-0.2),
        }
        .judge(&with(|f, twin| twin.alone - f.whole), &with(|f, twin| twin.random - f.whole))?,
        Test {
            claim:
                "One group, taken from the fine-tuned model into the base model, closes half of the gap between them."
                    .into(),
            unit: "of the gap closed".into(),
            effect: Line::AtLeast(0.5),
            control: "the same group of a model that was not trained".into(),
            absent: Line::AtMost(0.1),
        }
        .judge(&best(0), &best(1))?,
    ])
}

/// What else the reader should see, of the first seed.
fn tables(figures: &[Figures], outcome: &mut Outcome) -> Result<()> {
    let Some(first) = figures.first() else { return Ok(()) };
    let groups = || labels(Group::ALL.map(Group::name));
    let mut add = |name: &str, table: Table, heading: &str, caption: &str| {
        outcome.tables.insert(name.into(), table);
        let (heading, table, caption) = (Some(heading.to_string()), name.to_string(), caption.to_string());
        outcome.sections.push(Section::Table { heading, table, caption });
    };
    if !first.members.is_empty() {
        let name = |member: &Member| format!("{}.{} {}", member.layer, member.head, member.group.name());
        let axes = [("head", labels(first.members.iter().map(name))), ("figure", labels(["effect", "cost"]))];
        let values =
            first.members.iter().zip(&first.minimal).flat_map(|(member, &cost)| [member.effect, cost]).collect();
        let table = Table::new(
            "the circuit's heads: effect of the direct path, and accuracy that the circuit loses without the head",
            axes,
            values,
        )?;
        let caption = format!(
            "{} of {} heads, with the first seed. The whole model answers {:.3} of the prompts, the circuit alone {:.3}, as many random heads {:.3}.",
            first.heads, first.all_heads, first.whole, first.alone, first.random
        );
        add("circuit", table, "The circuit", &caption);
    }
    let axes = [("group", groups()), ("accuracy", labels(["circuit without", "model without"]))];
    let values = first.without.iter().flat_map(|(_, both)| *both).collect();
    let table = Table::new("accuracy without a group, of the circuit and of the model", axes, values)?;
    add("completeness", table, "Without each group", "A circuit is complete if the two are alike. First seed.");
    let axes = [
        ("group", groups()),
        ("hypothesis", labels(Hypothesis::ALL.map(Hypothesis::name))),
        ("figure", labels(["accuracy", "heads", "shuffled"])),
    ];
    let mean = |of: &dyn Fn(&Carried) -> f64, at: usize| {
        figures.iter().map(|f| of(&f.carried[at])).sum::<f64>() / figures.len() as f64
    };
    let values = (0..first.carried.len())
        .flat_map(|at| {
            [mean(&|each| each.accuracy, at), mean(&|each| each.heads as f64, at), mean(&|each| each.shuffled, at)]
        })
        .collect();
    let table = Table::new(
        "share of unseen pairs answered as a hypothesis says, with the rounded mask; its heads; the same after training on shuffled sources",
        axes,
        values,
    )?;
    add("carried", table, "What each group carries", "Mean over seeds.");
    if let Some(twin) = &first.twin {
        let axes = [("group", groups()), ("taken from", labels(["twin", "untrained"]))];
        let mean = |at: usize, which: usize| {
            let of = |f: &Figures| f.twin.as_ref().map_or(0., |twin| twin.recovered[at].1[which]);
            figures.iter().map(of).sum::<f64>() / figures.len() as f64
        };
        let values = (0..Group::ALL.len()).flat_map(|at| [mean(at, 0), mean(at, 1)]).collect();
        let table = Table::new("share of the gap between base and twin that a group closes", axes, values)?;
        let caption = format!(
            "Mean over seeds. With the first, the twin answers {:.3} of the prompts, and the base's circuit alone in the twin {:.3}.",
            twin.whole, twin.alone
        );
        add("recovered", table, "Where the improvement is", &caption);
    }
    Ok(())
}
