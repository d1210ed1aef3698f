//! Does circuit analysis interpretability scale? Evidence from multiple choice in Chinchilla (arXiv 2307.09458).
//!
//! How does a model say the letter of the right answer? The metric is the logit of the right letter less the mean of
//! the other three. Direct attribution finds the heads that write it: the net effect of a head is what is lost of its
//! direct contribution when its output is exchanged for that in a prompt with another right letter. What these heads
//! write is then exchanged for real; and their queries (last token), keys and values (items) are compressed to the
//! first directions of a singular value decomposition of their differences from the mean, with letters, and with labels
//! drawn at random.
//!
//! The paper's keys are those of letter tokens. Here a head's keys are taken at that token of each item (label, option,
//! or the token after either) at which it looks most, because small models may note at other tokens what large ones note
//! at letters.

mod bench;
mod questions;

use candle_core::Tensor;
use endoscope_causal::Component;
use endoscope_models::Model;
use endoscope_net::Edit;
use endoscope_organisms::tasks::multiple_choice::{ENUMERATIONS, RANDOM};
use endoscope_report::{Section, Table, labels};
use endoscope_train::generator;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::bench::{Bench, Look, Read, Reading, Written};
use self::questions::{Form, Prompt, Questions, too_few};
use crate::error::{Error, Result};
use crate::finding::{Line, Test};
use crate::lab::Lab;
use crate::shared::Head;
use crate::study::{Outcome, Study, Untested};

/// The organism.
const ORGANISM: &str = "multiple-choice";
/// Chance is a quarter. A model that is right less often than this knows no answers, so nothing can be said of how it
/// gives them.
const KNOWS: f64 = 0.5;
/// How many prompts decide how questions are written for a model, and the fewest on which anything is measured.
const FEWEST: usize = 8;
/// The ranks of the table.
const RANKS: [usize; 7] = [0, 1, 2, 3, 4, 6, 8];
/// What is compressed together in the table.
const PARTS: [(&str, &[Reading]); 5] = [
    ("queries", &[Reading::Queries]),
    ("keys", &[Reading::Keys]),
    ("values", &[Reading::Values]),
    ("queries and keys", COMPRESSED[0].1),
    ("all three", COMPRESSED[1].1),
];
/// What is compressed in the claims.
const COMPRESSED: [(&str, &[Reading]); 2] = [
    ("Queries and keys", &[Reading::Queries, Reading::Keys]),
    ("Queries, keys and values", &[Reading::Queries, Reading::Keys, Reading::Values]),
];
/// Other labels than the letters: their split of the task, and what they are.
const OTHER_LABELS: [(&str, &str); 2] = [(ENUMERATIONS, "of other enumerations"), (RANDOM, "drawn at random")];
/// What is said of each part.
const COLUMNS: [&str; 6] = ["direct", "net direct", "exchanged", "mean", "looks at items", "of this right"];

/// The study.
pub struct McqCircuit;

/// How heads and directions are chosen and tested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many prompts heads and directions are chosen on, and on how many others they are measured.
    #[schemars(range(min = 8, max = 1024))]
    prompts: usize,
    /// Which share of all heads is called the top.
    #[schemars(range(min = 0.01, max = 0.5))]
    share: f64,
    /// To how many dimensions queries and keys are compressed.
    #[schemars(range(min = 1, max = 64))]
    rank: usize,
    /// Over how many draws the controls with random heads and directions are averaged.
    #[schemars(range(min = 1, max = 64))]
    draws: usize,
    /// Whether the organism is trained anew with each seed, or is the one shipped; never a model named by --model.
    train: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { prompts: 128, share: 0.15, rank: 3, draws: 16, train: true }
    }
}

/// What is measured with one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    /// The share of prompts answered rightly.
    accuracy: f64,
    /// The top heads, and where each looks.
    top: Vec<(Head, String)>,
    /// The share of all heads' net direct effects that the top heads have; that heads at random have.
    carried: f64,
    carried_random: f64,
    /// The share of the metric that goes when what they write is exchanged for that of a prompt with another right
    /// letter; with the same, but wrong options shuffled. And the share of prompts that then get the other prompt's
    /// letter.
    lost: f64,
    lost_shuffled: f64,
    moved: f64,
    /// After each compression of [`COMPRESSED`].
    kept: Vec<Kept>,
    /// With each of [`OTHER_LABELS`], the share of prompts answered rightly.
    other_accuracies: Vec<f64>,
    /// Every head and MLP with the numbers that [`COLUMNS`] name.
    parts: Vec<(String, Vec<f64>)>,
    /// `[part][rank]`: the share of the metric that is left.
    ranks: Vec<Vec<f64>>,
}

/// The share of the metric that is left after a compression.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    /// To the first directions; to random ones; to the mean alone.
    best: f64,
    random: f64,
    mean: f64,
    /// To the first, on the half of the prompts where they were found.
    again: f64,
    /// To the first, with each of [`OTHER_LABELS`].
    other_labels: Vec<f64>,
}

impl Study for McqCircuit {
    const SLUG: &'static str = "mcq-circuit";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "The same holds in a model of 70 billion weights.",
            why: "Such a model does not run here; --model takes any that answers such questions.",
        },
        Untested {
            claim: "Early layers gather the right option's content at the last token, and later heads turn it into a letter.",
            why: "Only what is written at the last token is traced, not the path of the content to it.",
        },
        Untested {
            claim: "The directions mean the place of an item in an enumeration.",
            why: "It is measured whether labels at random are served by the same directions, not what else the directions mean.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config { prompts: 16, draws: 3, train: false, ..Config::default() }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        let figures = lab.each_model((ORGANISM, config.train), "measuring", config, |model, seed| {
            measure(model, config, seed, Choice::Best)
        })?;
        outcome(config, &figures)
    }
}

/// Whether the heads with most effect are taken and the directions in which most lies, or, in tests, those with least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Best,
    #[cfg(test)]
    Worst,
}

/// Everything of one model and seed.
fn measure(model: &Model, config: &Config, seed: u64, choice: Choice) -> Result<Figures> {
    let questions = Questions::new(model)?;
    let form = form(model, &questions, seed)?;
    let prompts = questions.letters(form, seed, 2 * config.prompts)?;
    if prompts.len() < 2 * FEWEST {
        return Err(too_few("questions", prompts.len(), 2 * FEWEST));
    }
    // On one half heads and directions are chosen, on the other they are measured.
    let (chosen_on, measured_on) = prompts.split_at(prompts.len() / 2);
    let (chosen_on, test) = (Bench::new(&model.decoder, chosen_on)?, Bench::new(&model.decoder, measured_on)?);

    let found = chosen_on.direct(&chosen_on.donors(seed))?;
    let donors = test.donors(seed);
    let measured = test.direct(&donors)?;
    let (direct, net) = (mean(&measured.clean), measured.net(0..test.prompts.len()));
    let top = top(&found.components, &found.net(0..chosen_on.prompts.len()), config.share, choice);
    let effect = |heads: &[Head]| carried(&measured.components, &net, heads);

    let parts: Vec<Component> = top.iter().map(|&Head { layer, head }| Component::Head { layer, head }).collect();
    let exchanged: Vec<Edit> =
        test.written(&parts)?.iter().map(|written| written.put_of(&donors)).collect::<Result<_>>()?;
    let shuffled: Vec<Edit> = test.written_shuffled(&parts)?.iter().map(Written::put).collect();
    let after = test.answers(exchanged.clone())?.chosen;
    let moved = after.iter().zip(&donors).filter(|(chosen, donor)| **chosen == test.prompts[**donor].right).count();

    let looks = chosen_on.looks()?;
    let reads = |reading: &[Reading]| -> Result<Vec<Read>> {
        let all = reading.iter().map(|&reading| chosen_on.reads(&top, &looks, reading)).collect::<Result<Vec<_>>>()?;
        Ok(all.into_iter().flatten().collect())
    };
    let best = |rank: usize| move |read: &Read| read.directions(rank, choice == Choice::Best);
    let mut figures = Figures {
        accuracy: test.accuracy()?,
        carried: effect(&top),
        carried_random: 0.,
        lost: 1. - test.kept(exchanged)?,
        lost_shuffled: 1. - test.kept(shuffled)?,
        moved: moved as f64 / test.prompts.len() as f64,
        kept: Vec::new(),
        other_accuracies: Vec::new(),
        parts: described(&test, &measured.components, [&direct, &net], &donors, &looks)?,
        top: top.iter().map(|&head| (head, looks[head.layer][head.head].class().to_string())).collect(),
        ranks: Vec::new(),
    };
    let mut others = Vec::new();
    for (split, what) in OTHER_LABELS {
        let prompts = questions.labelled(form, split, (seed, test.prompts.len()), &test.prompts[0])?;
        if prompts.len() < FEWEST {
            return Err(too_few(&format!("questions with labels {what}"), prompts.len(), FEWEST));
        }
        others.push(prompts);
    }
    let others = others.iter().map(|prompts| Bench::new(&model.decoder, prompts)).collect::<Result<Vec<_>>>()?;
    figures.other_accuracies = others.iter().map(Bench::accuracy).collect::<Result<_>>()?;
    let all: Vec<Head> = heads(&measured.components).map(|(_, head)| head).collect();
    let draws = config.draws as f64;
    for draw in 0..config.draws as u64 {
        let at_random = rand::seq::index::sample(&mut generator(seed, (1 << 34) + draw), all.len(), top.len());
        figures.carried_random += effect(&at_random.into_iter().map(|at| all[at]).collect::<Vec<_>>()) / draws;
    }
    for (_, parts) in COMPRESSED {
        let reads = reads(parts)?;
        let compressed = edits(&reads, best(config.rank))?;
        let mut random = 0.;
        for draw in 0..config.draws as u64 {
            random += test.kept(edits(&reads, |read| read.random(config.rank, seed, draw))?)? / draws;
        }
        figures.kept.push(Kept {
            best: test.kept(compressed.clone())?,
            random,
            mean: test.kept(edits(&reads, best(0))?)?,
            again: chosen_on.kept(compressed.clone())?,
            other_labels: others.iter().map(|other| other.kept(compressed.clone())).collect::<Result<_>>()?,
        });
    }
    for (_, parts) in PARTS {
        let reads = reads(parts)?;
        let of_rank = |rank: usize| test.kept(edits(&reads, best(rank))?);
        figures.ranks.push(RANKS.into_iter().map(of_rank).collect::<Result<_>>()?);
    }
    Ok(figures)
}

/// The way to write questions in which the model is right most often.
fn form(model: &Model, questions: &Questions<'_>, seed: u64) -> Result<Form> {
    let mut best: Option<(f64, Form)> = None;
    for form in Form::ALL {
        let prompts: Vec<Prompt> = questions.letters(form, seed, 4 * FEWEST)?;
        if prompts.len() >= FEWEST {
            let accuracy = Bench::new(&model.decoder, &prompts)?.accuracy()?;
            if best.is_none_or(|(other, _)| accuracy > other) {
                best = Some((accuracy, form));
            }
        }
    }
    match best {
        Some((accuracy, form)) if accuracy >= KNOWS => Ok(form),
        Some((accuracy, _)) => Err(Error::Unsuitable {
            reason: format!(
                "of questions with four options it answers {accuracy:.2} rightly, however they are written; chance is 0.25, and at least \
                 {KNOWS} must be right"
            ),
        }),
        None => Err(too_few("questions", 0, FEWEST)),
    }
}

/// The heads among the parts, each with its place.
fn heads(parts: &[Component]) -> impl Iterator<Item = (usize, Head)> {
    parts.iter().enumerate().filter_map(|(at, part)| match *part {
        Component::Head { layer, head } => Some((at, Head { layer, head })),
        _ => None,
    })
}

/// The share of all heads that has the highest scores, at least one.
fn top(parts: &[Component], scores: &[f64], share: f64, choice: Choice) -> Vec<Head> {
    let mut all: Vec<(usize, Head)> = heads(parts).collect();
    all.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]));
    if choice != Choice::Best {
        all.reverse();
    }
    let count = ((all.len() as f64 * share) as usize).max(1);
    all.into_iter().take(count).map(|(_, head)| head).collect()
}

/// What share of the sizes of all heads' effects is that of these.
fn carried(parts: &[Component], effects: &[f64], these: &[Head]) -> f64 {
    let of_these: f64 = heads(parts).filter(|(_, head)| these.contains(head)).map(|(at, _)| effects[at]).sum();
    let all: f64 = heads(parts).map(|(at, _)| effects[at].abs()).sum();
    if all > 0. { of_these / all } else { 0. }
}

/// The mean of each column.
fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    let column = |at: usize| rows.iter().map(|row| row[at]).sum::<f64>() / rows.len() as f64;
    (0..rows.first().map_or(0, Vec::len)).map(column).collect()
}

/// The edits that compress all of these to the directions chosen for each.
fn edits(reads: &[Read], directions: impl Fn(&Read) -> Result<Option<Tensor>>) -> Result<Vec<Edit>> {
    let of = |read: &Read| read.compress(directions(read)?.as_ref());
    Ok(reads.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// What [`COLUMNS`] say of each head and MLP.
fn described(
    test: &Bench<'_>,
    components: &[Component],
    [direct, net]: [&[f64]; 2],
    donors: &[usize],
    looks: &[Vec<Look>],
) -> Result<Vec<(String, Vec<f64>)>> {
    let is_part = |part: &Component| matches!(part, Component::Head { .. } | Component::Mlp { .. });
    let parts: Vec<(usize, Component)> =
        components.iter().copied().enumerate().filter(|(_, part)| is_part(part)).collect();
    let written = test.written(&parts.iter().map(|(_, part)| *part).collect::<Vec<_>>())?;
    let lost = |edit: Edit| -> Result<f64> { Ok(test.whole - test.answers(vec![edit])?.metric) };
    let describe = |((at, part), written): (&(usize, Component), &Written)| -> Result<(String, Vec<f64>)> {
        let (name, look) = match *part {
            Component::Head { layer, head } => {
                let Look { items, right, .. } = looks[layer][head];
                (Head { layer, head }.to_string(), [items, right])
            }
            Component::Mlp { layer } => (format!("MLP {layer}"), [0.; 2]),
            _ => (String::new(), [0.; 2]),
        };
        let [exchanged, averaged] = [lost(written.put_of(donors)?)?, lost(written.put_mean()?)?];
        Ok((name, [&[direct[*at], net[*at], exchanged, averaged], &look[..]].concat()))
    };
    parts.iter().zip(&written).map(describe).collect()
}

fn outcome(config: &Config, figures: &[Figures]) -> Result<Outcome> {
    let all = |of: fn(&Figures) -> f64| figures.iter().map(of).collect::<Vec<f64>>();
    let Config { rank, share, .. } = config;
    let percent = 100. * share;
    let mut findings = vec![
        Test {
            claim: format!("{percent:.0} % of the heads carry at least 80 % of what heads write directly into the answer."),
            unit: "of all heads' net direct effects".into(),
            effect: Line::AtLeast(0.8),
            control: "as many heads at random".into(),
            absent: Line::AtMost(0.5),
        }
        .judge(&all(|f| f.carried), &all(|f| f.carried_random))?,
        Test {
            claim: "What these heads write at the last token decides the letter: exchanged for that of a prompt with another right letter, it takes \
                    away 80 % of the metric."
                .into(),
            unit: "of the metric lost".into(),
            effect: Line::AtLeast(0.8),
            control: "exchanged for that of the same prompt with its wrong options shuffled".into(),
            absent: Line::AtMost(0.1),
        }
        .judge(&all(|f| f.lost), &all(|f| f.lost_shuffled))?,
    ];
    let compressed = |at: usize, of: fn(&Kept) -> f64| figures.iter().map(|f| of(&f.kept[at])).collect::<Vec<f64>>();
    for (at, (what, _)) in COMPRESSED.into_iter().enumerate() {
        let test = Test {
            claim: format!("{what} of these heads, compressed to {rank} dimensions, keep 95 % of the metric."),
            unit: "of the metric left".into(),
            effect: Line::AtLeast(0.95),
            control: "compressed to as many random dimensions".into(),
            absent: Line::AtMost(0.8),
        };
        findings.push(test.judge(&compressed(at, |kept| kept.best), &compressed(at, |kept| kept.random))?);
    }
    let mut other_accuracies = String::new();
    for (number, (_, what)) in OTHER_LABELS.into_iter().enumerate() {
        let accuracies: Vec<f64> = figures.iter().map(|f| f.other_accuracies[number]).collect();
        let known = accuracies.iter().all(|accuracy| *accuracy >= KNOWS);
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        other_accuracies += &format!(", {mean:.3} with labels {what}");
        other_accuracies += if known { "" } else { " (too few to say how these are answered)" };
        if known {
            let all_three = || figures.iter().map(|f| &f.kept[1]);
            let less: Vec<f64> = all_three().map(|kept| kept.best - kept.other_labels[number]).collect();
            let again: Vec<f64> = all_three().map(|kept| (kept.best - kept.again).abs()).collect();
            let test = Test {
                claim: format!("With labels {what} the same compression of all three keeps less."),
                unit: "of the metric less".into(),
                effect: Line::AtLeast(0.05),
                control: "other prompts with letters".into(),
                absent: Line::AtMost(0.03),
            };
            findings.push(test.judge(&less, &again)?);
        }
    }
    let looking =
        |f: &Figures| f.top.iter().map(|(head, class)| format!("{head} ({class})")).collect::<Vec<_>>().join(", ");
    let average = |of: fn(&Figures) -> f64| figures.iter().map(of).sum::<f64>() / figures.len() as f64;
    let summary = format!(
        "{:.3} of the questions with letters are answered rightly{other_accuracies}. The top heads, and what they \
         look at from the last token, with the seeds in order: {}. Exchanged, they give the other prompt's letter in \
         {:.3} of prompts. With the queries and keys of these heads at their mean, {:.3} of the metric is left; with the values too, \
         {:.3}.",
        average(|f| f.accuracy),
        figures.iter().map(looking).collect::<Vec<_>>().join("; "),
        average(|f| f.moved),
        average(|f| f.kept[0].mean),
        average(|f| f.kept[1].mean),
    );
    let mut outcome = Outcome { summary, findings, ..Outcome::default() };
    let Some(first) = figures.first() else { return Ok(outcome) };
    let axes = [("part", labels(first.parts.iter().map(|(name, _)| name.clone()))), ("figure", labels(COLUMNS))];
    let numbers = first.parts.iter().flat_map(|(_, numbers)| numbers.clone()).collect();
    outcome
        .tables
        .insert("parts".into(), Table::new("logits, and shares of attention from the last token", axes, numbers)?);
    let axes =
        [("what", labels(PARTS.map(|(name, _)| name))), ("rank", labels(RANKS)), ("seed", labels(1..=figures.len()))];
    let of_seeds = |part: usize, rank: usize| figures.iter().map(move |f| f.ranks[part][rank]);
    let ranks = (0..PARTS.len()).flat_map(|part| (0..RANKS.len()).flat_map(move |rank| of_seeds(part, rank))).collect();
    outcome.tables.insert("ranks".into(), Table::new("share of the metric that is left", axes, ranks)?);
    let section = |heading: &str, table: &str, caption: &str| Section::Table {
        heading: Some(heading.into()),
        table: table.into(),
        caption: caption.into(),
    };
    outcome.sections = vec![
        section(
            "Who writes the letter",
            "parts",
            "With the first seed: each part's direct contribution; how much more it is than that of a prompt with another right letter; what is lost of the \
             metric when the part's output at the last token is exchanged for that, or for its mean; and how much a head looks at the items, and of this at \
             the right one.",
        ),
        section(
            "How few dimensions suffice",
            "ranks",
            "Compressed to the first directions of the differences from the mean, for all top heads together.",
        ),
    ];
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Level;
    use endoscope_report::Verdict;
    use endoscope_train::Recipe;

    fn verdicts(choice: Choice) -> Vec<Verdict> {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let model = lab.model(ORGANISM).unwrap();
        let config = McqCircuit::smoke();
        let figures: Vec<Figures> =
            lab.seeds().iter().map(|&seed| measure(&model, &config, seed, choice).unwrap()).collect();
        let outcome = outcome(&config, &figures).unwrap();
        outcome.findings.iter().map(|finding| finding.verdict()).collect()
    }

    #[test]
    fn claims_fall_where_the_effect_is_taken_away() {
        let found = verdicts(Choice::Best);
        // The one that 16 prompts suffice for.
        assert_eq!(found[3], Verdict::Shown, "{found:?}");
        let without = verdicts(Choice::Worst);
        assert!(without.iter().all(|verdict| *verdict == Verdict::NotShown), "{without:?}");
    }

    #[test]
    fn the_top_is_a_share_of_the_heads_and_what_they_carry_is_counted_against_all() {
        let parts: Vec<Component> =
            (0..8).map(|head| Component::Head { layer: 0, head }).chain([Component::Mlp { layer: 0 }]).collect();
        let scores = [0., 3., -1., 2., 0., 0., 0., 0., 9.];
        let top = top(&parts, &scores, 0.25, Choice::Best);
        assert_eq!(top, [Head { layer: 0, head: 1 }, Head { layer: 0, head: 3 }]);
        assert!((carried(&parts, &scores, &top) - 5. / 6.).abs() < 1e-12);
    }

    #[test]
    fn a_model_at_chance_is_refused() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let mut recipe = Recipe::read(lab.organism(ORGANISM).unwrap().directory.join("recipe.toml")).unwrap();
        (recipe.training.steps, recipe.training.warmup_steps) = (1, 0);
        let model = lab.trained(&recipe).unwrap();
        let error = measure(&model, &McqCircuit::smoke(), 1, Choice::Best).unwrap_err();
        assert!(matches!(&error, Error::Unsuitable { reason } if reason.contains("chance is 0.25")), "{error}");
        // One that repeats syllables knows none of the words.
        let model = lab.organism("induction").unwrap();
        let error = measure(&model, &McqCircuit::smoke(), 1, Choice::Best).unwrap_err();
        assert!(matches!(&error, Error::Unsuitable { .. }), "{error}");
    }
}
