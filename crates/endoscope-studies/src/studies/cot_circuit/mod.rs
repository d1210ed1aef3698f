//! Mechanisms of explicit chain-of-thought training.
//!
//! Facts of a made-up world are learned one by one (`h r`, then `t`), and two in a row (`h r1 r2`): with the entity between written out
//! before the answer (`b t`), or the answer alone (`t`). Held out are pairs of facts that were trained on in a row, but not with each other
//! (in), and pairs of facts that never were (out). An answer is right if all of it is, as the model itself writes it: given the right
//! bridge, more answers would be.
//!
//! Two read-outs, both as in the paper: the logit lens at every stream and position, as the mean reciprocal rank of `b` and, once `b` stands
//! there, of `t`; and causal tracing, where what a layer reads at one position is replaced by what it reads of another question, and the rank of
//! the original answer is looked at. The other question is checked against all facts: its answer differs, or, for the control, does not.
//!
//! Smaller than the paper's: 80 entities, 960 facts, 4 layers of 96 dims instead of 2000, 40,000, and 8 of 768.

mod arm;
mod prompts;
mod tracing;

use endoscope_models::Model;
use endoscope_organisms::tasks::two_hop_facts::TwoHopFacts;
use endoscope_report::{ColourScale, Label, Section, Table, labels};
use endoscope_train::Recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::error::Result;
use crate::finding::{Line, Test};
use crate::lab::{Lab, LabModel};
use crate::study::{Outcome, Study, Untested};
use arm::{Answers, Arm, Questions};
use tracing::{Change, Stage, Trace};

/// The organisms: trained with the bridge written out, and without.
const WITH: &str = "two-hop-cot";
const WITHOUT: &str = "two-hop-direct";
/// What stands at the positions of a question with its bridge.
const POSITIONS: [&str; 5] = ["<bos>", "h", "r1", "r2", "b"];
const FIRST: usize = 1;
const SECOND_RELATION: usize = 3;
const BRIDGE: usize = 4;

/// The study.
pub struct CotCircuit;

/// How much is trained and asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// On how many questions of each kind accuracy is measured; on all, if there are fewer.
    #[schemars(range(min = 4, max = 100_000))]
    questions: usize,
    /// How many held-out questions are read through the lens and traced.
    #[schemars(range(min = 4, max = 4096))]
    cases: usize,
    /// The updates of each training.
    #[schemars(range(min = 1, max = 1_000_000))]
    steps: u64,
    /// Whether the models with and without the bridge are trained anew with each seed, or are those shipped. The control always is.
    train: bool,
    /// A file of questions for the model named by --model; the page says how it looks.
    prompts: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { questions: 1000, cases: 200, steps: 1000, train: true, prompts: String::new() }
    }
}

/// What is measured with one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    /// Of guessing one entity.
    chance: f64,
    with: Arm,
    without: Arm,
    /// Trained with any entity in the place of the bridge.
    noisy: Answers,
    traces: Vec<Trace>,
}

impl Study for CotCircuit {
    const SLUG: &'static str = "cot-circuit";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "Without the bridge, known facts are composed after about a million updates, and others never.",
            why: "So many updates take days on two cores; the arms are compared at an equal number of them.",
        },
        Untested {
            claim: "Wrong first hops in the training rows do more harm than wrong second hops.",
            why: "A grid of noise is many trainings; only a bridge that is always any entity is trained, as the control. The task's keys \
                  bridge_noise and target_noise train the others.",
        },
        Untested {
            claim: "Fewer composed examples a fact still generalise, only later.",
            why: "That is a grid of trainings too (the task's key pairs_per_fact).",
        },
        Untested {
            claim: "The same holds of language models that are fine-tuned on such data.",
            why: "No such model was run; --model takes one together with a file of questions, and reads it, but does not train it.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config { questions: 64, cases: 12, steps: 2, train: false, ..Config::default() }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        if lab.is_given_a_model() {
            return prompts::run(lab, config);
        }
        let shipped = [lab.organism(WITH)?, lab.organism(WITHOUT)?];
        let read = |model: &LabModel| Recipe::read(model.directory.join("recipe.toml"));
        let recipes = [read(&shipped[0])?, read(&shipped[1])?];
        let wanted: Vec<Recipe> = lab.seeds().iter().flat_map(|&seed| trainings(&recipes, config, seed)).collect();
        let trained = lab.train_all(&wanted)?;
        let each = wanted.len() / lab.seeds().len();
        let figures = lab.each_seed("measuring", config, |seed| {
            let at = lab.seeds().iter().position(|&other| other == seed).unwrap_or(0) * each;
            let models = match &trained[at..at + each] {
                [with, without, noisy] => [with, without, noisy],
                rest => [&shipped[0], &shipped[1], &rest[0]],
            };
            let task = TwoHopFacts::from_parameters(&wanted[at].task.parameters)?;
            measure(models.map(|model| &**model), &task, config, seed)
        })?;
        outcome(config, &figures)
    }
}

/// What is trained with a seed: both arms if they are, and the control, whose bridge is any entity.
fn trainings(recipes: &[Recipe; 2], config: &Config, seed: u64) -> Vec<Recipe> {
    let prepared = |recipe: &Recipe| {
        let mut recipe = recipe.clone();
        recipe.training.steps = config.steps;
        recipe.training.warmup_steps = recipe.training.warmup_steps.min(config.steps);
        recipe.training.seed = seed;
        if config.train {
            recipe.task.parameters.insert("seed".into(), Value::Integer(seed as i64));
        }
        recipe
    };
    let [with, without] = [prepared(&recipes[0]), prepared(&recipes[1])];
    let mut noisy = with.clone();
    noisy.task.parameters.insert("bridge_noise".into(), Value::Float(1.));
    if config.train { vec![with, without, noisy] } else { vec![noisy] }
}

/// Everything of the three models (with the bridge, without, with any entity as bridge) that learned this world.
fn measure(models: [&Model; 3], task: &TwoHopFacts, config: &Config, seed: u64) -> Result<Figures> {
    let [with, without, noisy] = models;
    let questions = Questions::new(task, (config.questions, config.cases), seed);
    let mut traces = Vec::new();
    for stage in [Stage::Bridge, Stage::Target] {
        for &change in Change::of(stage) {
            traces.push(tracing::trace(with, task, &questions.cases, (stage, change), seed)?);
        }
    }
    let entities = task.facts().iter().map(|fact| fact.head).max().unwrap_or(0) + 1;
    Ok(Figures {
        chance: 1. / entities as f64,
        with: Arm::of(with, task, &questions, true)?,
        without: Arm::of(without, task, &questions, false)?,
        noisy: Answers::of(noisy, task, &questions, true)?,
        traces,
    })
}

/// The stream one layer before the end.
fn before_the_end(streams: &[Vec<f64>], position: usize) -> f64 {
    streams.len().checked_sub(2).and_then(|stream| streams[stream].get(position)).copied().unwrap_or(0.)
}

fn outcome(config: &Config, figures: &[Figures]) -> Result<Outcome> {
    let all = |of: &dyn Fn(&Figures) -> f64| figures.iter().map(of).collect::<Vec<f64>>();
    let text = String::from;
    let traced = |of: &dyn Fn(&Trace) -> f64, stage: Stage, changes: &[Change]| {
        let wanted = |trace: &&Trace| trace.stage == stage && changes.contains(&trace.change);
        all(&|f: &Figures| f.traces.iter().filter(wanted).map(of).fold(0., f64::max))
    };
    let any = 0..POSITIONS.len();
    let deep = |positions: std::ops::Range<usize>| move |trace: &Trace| trace.most_displaced(positions.clone(), 1);
    let anywhere = |positions: std::ops::Range<usize>| move |trace: &Trace| trace.most_displaced(positions.clone(), 0);
    let findings = vec![
        Test {
            claim: text("After equal training, writing the bridge out brings 40 points or more on held-out pairs of composed facts."),
            unit: text("of accuracy more than without the bridge"),
            effect: Line::AtLeast(0.4),
            control: text("the same gain where the bridge of every training row is any entity"),
            absent: Line::AtMost(0.05),
        }
        .judge(&all(&|f| f.with.answers.inside - f.without.answers.inside), &all(&|f| f.noisy.inside - f.without.answers.inside))?,
        Test {
            claim: text("It is the right bridge that helps: nearly all of these pairs are answered, and none where it was any entity."),
            unit: text("of answers are right"),
            effect: Line::AtLeast(0.9),
            control: text("the bridge of every training row is any entity"),
            absent: Line::AtMost(0.05),
        }
        .judge(&all(&|f| f.with.answers.inside), &all(&|f| f.noisy.inside))?,
        Test {
            claim: text("Pairs of facts that were never composed in training are answered with the bridge, and not without."),
            unit: text("times chance"),
            effect: Line::AtLeast(10.),
            control: text("trained as long without the bridge"),
            absent: Line::AtMost(3.),
        }
        .judge(&all(&|f| f.with.answers.outside / f.chance), &all(&|f| f.without.answers.outside / f.chance))?,
        Test {
            claim: text("With the bridge, most pairs of facts that were never composed come out right."),
            unit: text("of answers are right"),
            effect: Line::AtLeast(0.8),
            control: text("trained as long without the bridge"),
            absent: Line::AtMost(0.1),
        }
        .judge(&all(&|f| f.with.answers.outside), &all(&|f| f.without.answers.outside))?,
        Test {
            claim: text("One layer before the end the bridge is read off at the second relation."),
            unit: text("mean reciprocal rank of the bridge there"),
            effect: Line::AtLeast(0.8),
            control: text("trained without the bridge"),
            absent: Line::AtMost(0.3),
        }
        .judge(
            &all(&|f| before_the_end(&f.with.bridge, SECOND_RELATION)),
            &all(&|f| before_the_end(&f.without.bridge, SECOND_RELATION)),
        )?,
        Test {
            claim: text("The second hop is a stage of its own: the target is read off where the bridge is written, and not before."),
            unit: text("mean reciprocal rank of the target, one layer before the end"),
            effect: Line::AtLeast(0.8),
            control: text("the same model at the second relation"),
            absent: Line::AtMost(0.3),
        }
        .judge(
            &all(&|f| before_the_end(&f.with.target, BRIDGE)),
            &all(&|f| before_the_end(&f.with.target, SECOND_RELATION)),
        )?,
        Test {
            claim: text("A state of a question with another head takes the bridge from its first place."),
            unit: text("of questions, at the layer above the first and the position where it is most"),
            effect: Line::AtLeast(0.9),
            control: text("another head with the same bridge, wherever it is most"),
            absent: Line::AtMost(0.05),
        }
        .judge(
            &traced(&deep(any.clone()), Stage::Bridge, &[Change::Head]),
            &traced(&anywhere(any), Stage::Bridge, &[Change::SameBridge]),
        )?,
        Test {
            claim: text("The second hop reads the bridge that is written, and nothing else of the first hop."),
            unit: text("of questions whose target loses its first place to another question's state"),
            effect: Line::AtLeast(0.9),
            control: text("that state at the head, the first or the second relation, wherever it is most"),
            absent: Line::AtMost(0.05),
        }
        .judge(
            &traced(&deep(BRIDGE..BRIDGE + 1), Stage::Target, &[Change::Head, Change::FirstRelation]),
            &traced(&anywhere(FIRST..BRIDGE), Stage::Target, &[Change::Head, Change::FirstRelation]),
        )?,
    ];
    let trained = match config.train {
        true => format!(
            "Each model was trained for {} updates with each seed, which is also that of its world.",
            config.steps
        ),
        false => format!(
            "The models are those shipped, whatever the seed, which draws the questions; the control alone was trained, for {} updates.",
            config.steps
        ),
    };
    let mean = |of: &dyn Fn(&Figures) -> f64| all(of).iter().sum::<f64>() / figures.len() as f64;
    let summary = format!(
        "Facts of a made-up world were learned one by one and two in a row, with the entity between written out before the answer or without it. \
         {trained} Chance is {:.4}. Of facts one by one the models know {:.3} with the bridge and {:.3} without.",
        mean(&|f| f.chance),
        mean(&|f| f.with.answers.facts),
        mean(&|f| f.without.answers.facts),
    );
    let mut outcome = Outcome { summary, findings, ..Outcome::default() };
    if !figures.is_empty() {
        tables(&mut outcome, figures)?;
    }
    Ok(outcome)
}

/// Means over seeds of what was measured besides.
fn tables(outcome: &mut Outcome, figures: &[Figures]) -> Result<()> {
    let mean = |of: &dyn Fn(&Figures) -> Option<f64>| -> Option<f64> {
        let found: Option<Vec<f64>> = figures.iter().map(of).collect();
        found.map(|found| found.iter().sum::<f64>() / figures.len() as f64)
    };
    type Of<T> = fn(&Figures) -> &T;
    let arms: [(&str, Of<Answers>); 3] = [
        ("with the bridge", |f| &f.with.answers),
        ("without", |f| &f.without.answers),
        ("any entity as bridge", |f| &f.noisy),
    ];
    let answers = arms.iter().flat_map(|(_, of)| {
        let kinds: [fn(&Answers) -> f64; 3] = [|a| a.facts, |a| a.inside, |a| a.outside];
        kinds.map(|kind| mean(&|f| Some(kind(of(f)))))
    });
    let axes = [("arm", labels(arms.map(|(name, _)| name))), ("questions", labels(["facts one by one", "in", "out"]))];
    outcome.tables.insert("accuracy".into(), Table::with_missing("share of right answers", axes, answers.collect())?);
    let lenses: [(&str, Of<Vec<Vec<f64>>>); 4] = [
        ("b, trained with the bridge", |f| &f.with.bridge),
        ("b, trained without", |f| &f.without.bridge),
        ("t, trained with the bridge", |f| &f.with.target),
        ("t, trained without", |f| &f.without.target),
    ];
    let streams = figures[0].with.bridge.len();
    let cells = |depth: usize| (0..depth).flat_map(|at| (0..POSITIONS.len()).map(move |position| (at, position)));
    let lens = lenses.iter().flat_map(|(_, of)| {
        cells(streams).map(|(stream, position)| mean(&|f| of(f).get(stream)?.get(position).copied()))
    });
    let stream = |at: usize| if at == 0 { "resid_pre.0".into() } else { format!("resid_post.{}", at - 1) };
    let axes = [
        ("token", labels(lenses.map(|(name, _)| name))),
        ("stream", labels((0..streams).map(stream))),
        ("position", labels(POSITIONS)),
    ];
    outcome
        .tables
        .insert("lens".into(), Table::with_missing("mean reciprocal rank by the logit lens", axes, lens.collect())?);
    let traces = &figures[0].traces;
    let names: Vec<Label> = labels(traces.iter().map(Trace::name));
    let layers = streams - 1;
    for (table, title, of) in [
        (
            "displaced",
            "share of questions whose answer loses its first place",
            (|t| &t.displaced) as fn(&Trace) -> &Vec<Vec<f64>>,
        ),
        ("rank", "mean rank of the original answer", |t| &t.rank),
    ] {
        let values = (0..traces.len()).flat_map(|number| {
            cells(layers)
                .map(move |(layer, position)| mean(&|f| of(&f.traces[number]).get(layer)?.get(position).copied()))
        });
        let axes = [("exchange", names.clone()), ("layer", labels(0..layers as i64)), ("position", labels(POSITIONS))];
        outcome.tables.insert(table.into(), Table::with_missing(title, axes, values.collect())?);
    }
    outcome.sections.push(Section::Table {
        heading: Some("Right answers".into()),
        table: "accuracy".into(),
        caption: "With the bridge, both it and the target must be right. Means over seeds.".into(),
    });
    outcome.sections.push(Section::HeatMap {
        heading: Some("Where bridge and target are read off".into()),
        table: "lens".into(),
        alternatives: vec![],
        scale: ColourScale::UNIT,
        caption:
            "On held-out pairs; the first row is what the first layer reads. Without the bridge there is no position b."
                .into(),
    });
    let counts: Vec<String> = traces.iter().map(|trace| trace.cases.to_string()).collect();
    outcome.sections.push(Section::HeatMap {
        heading: Some("What another question's state takes away".into()),
        table: "displaced".into(),
        alternatives: vec!["rank".into()],
        scale: ColourScale::UNIT,
        caption: format!(
            "What a layer reads, exchanged at one position in the model trained with the bridge, on held-out pairs that it answers rightly in both \
             forms ({} of them with the first seed, panel by panel).",
            counts.join(", ")
        ),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Level;
    use endoscope_causal::Pair;
    use endoscope_causal::lens::{Lens, Streams, reciprocal_ranks};
    use endoscope_net::Index;
    use endoscope_organisms::tasks::two_hop_facts::{Fact, IN};
    use endoscope_report::Verdict;

    fn task(model: &Model) -> TwoHopFacts {
        let recipe = Recipe::read(model.directory.join("recipe.toml")).unwrap();
        TwoHopFacts::from_parameters(&recipe.task.parameters).unwrap()
    }

    fn verdicts(figures: &[Figures]) -> Vec<Verdict> {
        outcome(&CotCircuit::smoke(), figures).unwrap().findings.iter().map(|finding| finding.verdict()).collect()
    }

    #[test]
    fn claims_fall_where_the_effect_is_taken_away() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let (with, without) = (lab.organism(WITH).unwrap(), lab.organism(WITHOUT).unwrap());
        let recipes = [&with, &without].map(|model| Recipe::read(model.directory.join("recipe.toml")).unwrap());
        let noisy = lab.trained(&trainings(&recipes, &CotCircuit::smoke(), 1)[0]).unwrap();
        let task = task(&with);
        // All questions that there are: other seeds would ask the same.
        let config = Config { questions: 1000, ..CotCircuit::smoke() };
        let measured = |models: [&Model; 3]| vec![measure(models, &task, &config, 1).unwrap(); 3];
        let figures = measured([&with, &without, &noisy]);
        assert_eq!(verdicts(&figures), [Verdict::Shown; 8], "{figures:?}");
        // The model whose bridges were any entity in the place of the one with the bridge: nothing is left.
        assert_eq!(verdicts(&measured([&noisy, &without, &noisy])), [Verdict::NotShown; 8]);
        // And the model with the bridge in the place of every control.
        let mut same = figures.clone();
        for each in &mut same {
            (each.without, each.noisy) = (each.with.clone(), each.with.answers.clone());
        }
        assert_eq!(verdicts(&same)[..5], [Verdict::NotShown; 5]);
        // States of questions with the same bridge in the place of the others.
        let mut unchanged = figures;
        for trace in unchanged.iter_mut().flat_map(|each| &mut each.traces) {
            let control = trace.change == Change::SameBridge;
            trace.displaced.iter_mut().flatten().for_each(|share| *share *= f64::from(u8::from(control)));
        }
        assert_eq!(verdicts(&unchanged)[6..], [Verdict::NotShown; 2]);
    }

    #[test]
    fn other_questions_are_checked_against_all_facts() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let task = task(&lab.organism(WITH).unwrap());
        let answers = |(first, second): (Fact, Fact)| {
            let bridge = task.tail(first.head, first.relation).unwrap();
            (bridge, task.tail(bridge, second.relation).unwrap())
        };
        let all = [Change::Head, Change::FirstRelation, Change::SecondRelation, Change::SameBridge];
        let mut counts = [0; 4];
        for pair in task.pairs(IN) {
            for (change, count) in all.into_iter().zip(&mut counts) {
                for other in change.others(&task, pair) {
                    *count += 1;
                    let ((bridge, target), (other_bridge, other_target)) = (answers(pair), answers(other));
                    let heads = pair.0.head == other.0.head;
                    let relations = [pair.0.relation == other.0.relation, pair.1.relation == other.1.relation];
                    let same = [bridge == other_bridge, target == other_target];
                    let expected = match change {
                        Change::Head => (false, [true, true], [false, false]),
                        Change::FirstRelation => (true, [false, true], [false, false]),
                        Change::SecondRelation => (true, [true, false], [true, false]),
                        Change::SameBridge => (false, [true, true], [true, true]),
                    };
                    assert_eq!((heads, relations, same), expected, "{change:?}");
                }
            }
        }
        assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
    }

    #[derive(Deserialize)]
    struct Golden {
        clean: Vec<u32>,
        other: Vec<u32>,
        target: u32,
        lens: Vec<Vec<usize>>,
        traced: Vec<Vec<f64>>,
    }

    #[test]
    fn lens_and_tracing_are_those_of_torch() {
        let goldens: Vec<Golden> =
            serde_json::from_str(include_str!("../../../tests/goldens/cot_circuit.json")).unwrap();
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let model = lab.organism(WITH).unwrap();
        let count = goldens.len() as f64;
        let sums = |of: &dyn Fn(&Golden) -> Vec<f64>| {
            let mut sums = vec![0.; of(&goldens[0]).len()];
            goldens.iter().for_each(|golden| sums.iter_mut().zip(of(golden)).for_each(|(sum, value)| *sum += value));
            sums.into_iter().map(|sum| sum / count).collect::<Vec<f64>>()
        };
        let close = |found: &[f64], expected: &[f64]| {
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?} {expected:?}");
        };
        let prompts: Vec<(Vec<u32>, u32)> =
            goldens.iter().map(|golden| (golden.clean.clone(), golden.target)).collect();
        let found = reciprocal_ranks(&model.decoder, &Lens::logit(), &prompts, &Index::All, Streams::Layers).unwrap();
        close(&found.means.concat(), &sums(&|g| g.lens.concat().iter().map(|&rank| 1. / (rank + 1) as f64).collect()));
        let pair = |golden: &Golden| Pair {
            clean: golden.clean.clone(),
            corrupt: golden.other.clone(),
            answers: vec![golden.target],
            wrong_answers: vec![],
        };
        let pairs: Vec<Pair> = goldens.iter().map(pair).collect();
        let cells = tracing::splice(&model, &pairs, 16).unwrap();
        close(&cells.iter().map(|cell| cell[1]).collect::<Vec<_>>(), &sums(&|g| g.traced.concat()));
        let displaced = sums(&|g| g.traced.concat().iter().map(|&rank| f64::from(u8::from(rank > 0.))).collect());
        close(&cells.iter().map(|cell| cell[0]).collect::<Vec<_>>(), &displaced);
    }
}
