//! ALPINE: planning as path finding (Wang et al. 2024, arXiv 2405.09220).
//!
//! A small decoder is trained on paths of one graph without circles, each written after its source and target, and
//! asked for paths between pairs that it was not trained on. Its weights are read as two matrices
//! ([`endoscope_causal::lens::token_views`]): which node follows which, and which node lies on the way to which target.
//! The second holds what training paths showed, and nothing that could only be inferred by joining two of them; so
//! pairs fail that need it. A simplified model, of which this can be proved, is checked by itself.

mod known;
mod measure;
mod shown;
mod simplified;

use std::collections::BTreeMap;
use std::path::Path;

use endoscope_causal::lens::token_views;
use endoscope_models::Model;
use endoscope_organisms::tasks::path_finding::PathFinding;
use endoscope_organisms::{Exercise, Streamed, Task};
use endoscope_train::Recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::known::Known;
use self::measure::{Asking, Behaviour, InWeights, answers, attention_on_target, mean};
use self::shown::{by_degree, drawn, listed, means};
use self::simplified::{Exactness, exactness};
use crate::error::{Error, Result};
use crate::finding::{Finding, Line, Test};
use crate::lab::Lab;
use crate::study::{Outcome, Study, Untested};

/// Trained on the graph of 100 nodes.
const ORGANISM: &str = "paths";
/// A model that finds fewer of the paths that need nothing joined cannot do the task.
const FINDS: f64 = 0.1;
/// What the model and its two controls are trained on, as the task calls it.
const DATA: [&str; 3] = ["walks", "shuffled_targets", "edges"];

/// The study.
pub struct AlpinePathPlanning;

/// How models are trained and what they are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether models are trained on a graph of each seed, or the organism shipped is taken. Not for a model named by
    /// --model.
    train: bool,
    /// How many nodes the graphs have that models are trained on.
    #[schemars(range(min = 10, max = 200))]
    nodes: usize,
    /// How many updates a training has.
    #[schemars(range(min = 1, max = 100_000))]
    steps: u64,
    /// How many updates the control has that sees paths of one edge only, of which there are few.
    #[schemars(range(min = 1, max = 100_000))]
    edge_steps: u64,
    /// How many pairs of each degree are asked for at most.
    #[schemars(range(min = 1, max = 100_000))]
    pairs: usize,
    /// How many answers are sampled for each pair, at temperature 1.
    #[schemars(range(min = 1, max = 1000))]
    samples: usize,
    /// On how many paths attention is measured.
    #[schemars(range(min = 1, max = 4096))]
    rows: usize,
    /// How many nodes the simplified model has.
    #[schemars(range(min = 5, max = 40))]
    simplified_nodes: usize,
    /// For --model: a file with the graph, each line a path that was seen in training, or an edge; by default the graph
    /// of the model's recipe.
    graph: String,
    /// For --model: how a path is asked for.
    prompt: String,
    /// For --model: the text at which an answer ends.
    stop: String,
    /// How many tokens an answer has at most.
    #[schemars(range(min = 2, max = 1024))]
    longest: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            train: true,
            nodes: 100,
            steps: 10_000,
            edge_steps: 1000,
            pairs: 100_000,
            samples: 4,
            rows: 128,
            simplified_nodes: 20,
            graph: String::new(),
            prompt: "{source} {target}".into(),
            stop: "end".into(),
            longest: 40,
        }
    }
}

/// What is measured with one seed, of a model that was trained on paths and of its controls.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    behaviour: Behaviour,
    behaviour_of_edges: Behaviour,
    attention: f64,
    attention_shuffled: f64,
    weights: InWeights,
    weights_shuffled: InWeights,
    weights_of_edges: InWeights,
}

/// What is measured with one seed of a user's model.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct GivenFigures {
    behaviour: Behaviour,
    weights: Option<InWeights>,
    /// Pairs that need paths joined.
    joined: Vec<JoinedPair>,
}

/// Source, target, degree, and the share of right answers.
type JoinedPair = (usize, usize, usize, f64);

impl Study for AlpinePathPlanning {
    const SLUG: &'static str = "alpine-path-planning";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "Accuracy depends on the width beside the number of nodes: with a width of 120 it falls at 300 \
             nodes and more.",
            why: "Graphs of that size take longer than a study may; `--set nodes=200` is the largest that is \
             possible here.",
        },
        Untested {
            claim: "More heads and layers hardly change it.",
            why: "The read-outs of the weights are exact for one layer only, and each further size would be trained \
             anew with every seed.",
        },
        Untested {
            claim: "The same is found in Blocksworld.",
            why: "Its states and moves are no task of ours yet; `--model` with `--set graph=FILE` takes a model \
             that was trained on any graph.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config {
            train: false,
            steps: 20,
            edge_steps: 20,
            pairs: 20,
            samples: 1,
            rows: 16,
            simplified_nodes: 20,
            longest: 24,
            ..Config::default()
        }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        if lab.is_given_a_model() {
            return given(lab, config);
        }
        let organism = lab.organism(ORGANISM)?;
        let recipe = Recipe::read(organism.directory.join("recipe.toml"))?;
        let figures = if config.train {
            let mut recipes = Vec::new();
            for &seed in lab.seeds() {
                for data in DATA {
                    recipes.push(recipe_of_seed(&recipe, config, seed, data)?);
                }
            }
            let models = lab.train_all(&recipes)?;
            let trained: BTreeMap<u64, _> =
                lab.seeds().iter().copied().zip(models.chunks(DATA.len()).zip(recipes.chunks(DATA.len()))).collect();
            lab.each_seed("measuring", config, |seed| match trained.get(&seed) {
                Some(([paths, shuffled, edges], [recipe, ..])) => {
                    measured([paths, shuffled, edges], &task_of(recipe)?, config, seed)
                }
                _ => Err(Error::Stopped),
            })?
        } else {
            // One graph, whatever the seed: that of the organism, on which its controls are trained.
            let controls = lab.train_all(&[on_data(&recipe, config, DATA[1]), on_data(&recipe, config, DATA[2])])?;
            let task = task_of(&recipe)?;
            lab.each_seed("measuring", config, |seed| {
                measured([&organism, &controls[0], &controls[1]], &task, config, seed)
            })?
        };
        let exact = lab
            .each_seed("simplified model", &config.simplified_nodes, |seed| exactness(config.simplified_nodes, seed))?;
        let mut outcome = outcome(&figures, &exact)?;
        let known = Known::of_task(&task_of(&recipe)?);
        if let Some(tokens) = known.tokens(&organism)? {
            drawn(&mut outcome, &known, &token_views(&organism.decoder, &tokens)?, "of the organism shipped")?;
        }
        Ok(outcome)
    }
}

// ---- models and graphs ----

/// The recipe with other training data, and as many updates as the settings say.
fn on_data(recipe: &Recipe, config: &Config, data: &str) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.task.parameters.insert("data".into(), data.into());
    recipe.training.steps = if data == DATA[2] { config.edge_steps } else { config.steps };
    recipe.training.warmup_steps = recipe.training.steps / 20;
    recipe
}

/// The same on a graph of the seed, from initial weights of the seed.
fn recipe_of_seed(recipe: &Recipe, config: &Config, seed: u64, data: &str) -> Result<Recipe> {
    let mut recipe = on_data(recipe, config, data);
    let parameters = &mut recipe.task.parameters;
    parameters.insert("nodes".into(), toml::Value::Integer(config.nodes as i64));
    parameters.insert("seed".into(), toml::Value::Integer(i64::try_from(seed).unwrap_or(i64::MAX)));
    recipe.training.seed = seed;
    let longest = task_of(&recipe)?.longest();
    recipe.model.context = recipe.model.context.max(longest.next_multiple_of(32));
    Ok(recipe)
}

fn task_of(recipe: &Recipe) -> Result<PathFinding> {
    Ok(PathFinding::from_parameters(&recipe.task.parameters)?)
}

/// Of a model trained on paths, and the same two of each control: shuffled targets, and paths of one edge.
fn measured([paths, shuffled, edges]: [&Model; 3], task: &PathFinding, config: &Config, seed: u64) -> Result<Figures> {
    let known = Known::of_task(task);
    let behaviour = |model: &Model| behaviour(model, &known, config, seed).map(|(behaviour, _)| behaviour);
    let weights = |model: &Model| match known.tokens(model)? {
        Some(tokens) => InWeights::of(&token_views(&model.decoder, &tokens)?, &known, seed),
        None => Err(Error::Unsuitable { reason: "a node is not one token".into() }),
    };
    let task = Streamed(task.clone());
    let attention = |model: &Model| attention_on_target(model, &task as &dyn Task, config.rows, seed);
    Ok(Figures {
        behaviour: behaviour(paths)?,
        behaviour_of_edges: behaviour(edges)?,
        attention: attention(paths)?,
        attention_shuffled: attention(shuffled)?,
        weights: weights(paths)?,
        weights_shuffled: weights(shuffled)?,
        weights_of_edges: weights(edges)?,
    })
}

/// How well paths are found, and the pairs that need some joined, with the share of right answers.
fn behaviour(model: &Model, known: &Known, config: &Config, seed: u64) -> Result<(Behaviour, Vec<JoinedPair>)> {
    let (asked, counts) = known.drawn(config.pairs, seed);
    let asking =
        Asking { prompt: &config.prompt, stop: &config.stop, longest: config.longest, samples: config.samples };
    let right = answers(model, known, &asked, &asking, seed)?;
    let joined = asked.iter().zip(&right).filter(|(pair, _)| pair.degree > 0);
    let joined = joined.map(|(pair, &right)| (pair.source, pair.target, pair.degree, right)).collect();
    Ok((Behaviour::of(&asked, counts, &right), joined))
}

// ---- a user's model ----

fn given(lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
    let model = lab.model(ORGANISM)?;
    let unsuitable = |reason: String| Err(Error::Unsuitable { reason });
    let recipe = model.directory.join("recipe.toml");
    let (known, graph) = match config.graph.as_str() {
        "" if recipe.is_file() => {
            let recipe = Recipe::read(&recipe)?;
            (Known::of_task(&task_of(&recipe)?), recipe.to_toml()?)
        }
        "" => return unsuitable("its graph is not known; name a file with it, as in --set graph=FILE".into()),
        path => Known::read(Path::new(path))?,
    };
    let tokens = if model.spec().layers == 1 { known.tokens(&model)? } else { None };
    let views = tokens.and_then(|tokens| token_views(&model.decoder, &tokens).ok());
    let (_, counts) = known.drawn(0, 0);
    if counts[0] == 0 || counts[1..].iter().all(|&count| count == 0) {
        return unsuitable(format!(
            "of pairs that were not trained on {} need no paths joined and {} do; both kinds are needed",
            counts[0],
            counts[1..].iter().sum::<usize>()
        ));
    }
    let figures = lab.each_seed("measuring", &(config, graph), |seed| {
        let (behaviour, joined) = behaviour(&model, &known, config, seed)?;
        let weights = views.as_ref().map(|views| InWeights::of(views, &known, seed)).transpose()?;
        Ok(GivenFigures { behaviour, weights, joined })
    })?;
    let found = mean(figures.iter().filter_map(|f| f.behaviour.degrees[0].1)).unwrap_or(0.);
    if found < FINDS {
        return unsuitable(format!(
            "of paths that need nothing joined it finds {found:.3}; at least {FINDS} must be right (are `prompt` \
             and `stop` those of its training?)"
        ));
    }
    let behaviours: Vec<&Behaviour> = figures.iter().map(|f| &f.behaviour).collect();
    let mut findings = Vec::new();
    match joined_claim(&behaviours, 0)? {
        Some(finding) => findings.push(finding),
        None => return unsuitable("no pair that needs nothing joined is as far apart as one that does".into()),
    }
    let weights: Option<Vec<&InWeights>> = figures.iter().map(|f| f.weights.as_ref()).collect();
    if let Some(weights) = &weights {
        findings.push(edges_claim(weights, "the model")?);
        findings.extend(unseen_claim(weights)?);
    }
    let mut outcome = Outcome {
        summary: format!(
            "Paths of a graph of {} nodes were sampled from the model, between pairs that it was not trained on. \
             Where a pair can only be found by joining paths seen in training, the model fails more often, or it \
             does not: see the claims. {}",
            known.names.len(),
            match weights {
                Some(_) => "Its weights were read too, since it has one layer and each node is one token.",
                None => "Its weights were not read: that takes one layer, and each node one token.",
            }
        ),
        findings,
        ..Outcome::default()
    };
    by_degree(&mut outcome, &behaviours)?;
    listed(&mut outcome, &known, &figures[0].joined)?;
    if let Some(views) = &views {
        drawn(&mut outcome, &known, views, "of the model")?;
    }
    Ok(outcome)
}

// ---- claims ----

/// A claim with figures of every seed; `None` where some seed has none.
fn judged(test: Test, effects: Option<Vec<f64>>, controls: Option<Vec<f64>>) -> Result<Option<Finding>> {
    match (effects, controls) {
        (Some(effects), Some(controls)) => Ok(Some(test.judge(&effects, &controls)?)),
        _ => Ok(None),
    }
}

fn edges_claim(weights: &[&InWeights], which: &str) -> Result<Finding> {
    let of = |figure: fn(&InWeights) -> f64| weights.iter().map(|weights| figure(weights)).collect::<Vec<_>>();
    Test {
        claim: format!(
            "The weights of {which} hold the edges: what a node says of the next one tells them from other pairs."
        ),
        unit: "of the area under the ROC curve".into(),
        effect: Line::AtLeast(0.95),
        control: "as many pairs drawn at random in their place".into(),
        absent: Line::AtMost(0.6),
    }
    .judge(&of(|weights| weights.edges), &of(|weights| weights.edges_drawn))
}

fn unseen_claim(weights: &[&InWeights]) -> Result<Option<Finding>> {
    let of = |figure: fn(&InWeights) -> Option<f64>| weights.iter().map(|weights| figure(weights)).collect();
    let test = Test {
        claim: "What a target says of nodes that could be on the way, but were not seen on it, is nearer to what it \
         says of those that cannot be."
            .into(),
        unit: "from those that cannot be (0) to those that were seen (1)".into(),
        effect: Line::AtMost(0.4),
        control: "half of those that were seen, drawn at random".into(),
        absent: Line::AtLeast(0.75),
    };
    judged(test, of(InWeights::place_of_unseen), of(|weights| weights.place_of_hidden))
}

/// `which` is 0 for pairs of degree 1 or more, 1 for those of 2 or more.
fn joined_claim(behaviours: &[&Behaviour], which: usize) -> Result<Option<Finding>> {
    let of = |figure: fn(&measure::Joined) -> f64| {
        behaviours.iter().map(|behaviour| behaviour.joined[which].as_ref().map(figure)).collect()
    };
    let test = Test {
        claim: format!(
            "Pairs of degree {} or more, whose path must be joined from what was seen, are found less often than \
             those of degree 0.",
            which + 1
        ),
        unit: "of accuracy lost".into(),
        effect: Line::AtLeast(0.1),
        control: "pairs of degree 0 that are as far apart".into(),
        absent: Line::AtMost(0.05),
    };
    judged(test, of(|joined| joined.lost), of(|joined| joined.lost_by_distance))
}

fn outcome(figures: &[Figures], exact: &[Exactness]) -> Result<Outcome> {
    let all = |of: fn(&Figures) -> f64| figures.iter().map(of).collect::<Vec<f64>>();
    let some = |of: fn(&Figures) -> Option<f64>| figures.iter().map(of).collect::<Option<Vec<f64>>>();
    let of_exact = |of: fn(&Exactness) -> f64| exact.iter().map(of).collect::<Vec<f64>>();
    let behaviours: Vec<&Behaviour> = figures.iter().map(|f| &f.behaviour).collect();
    let seen_more = |control: &str| Test {
        claim: "What a target says of nodes seen on the way to it is more than of those that only could be.".into(),
        unit: "logits".into(),
        effect: Line::AtLeast(0.6),
        control: control.into(),
        absent: Line::AtMost(0.4),
    };
    let over = some(|f| f.weights.seen_over_unseen());
    let findings = [
        Some(
            Test {
                claim: "The model finds paths between pairs that it was not trained on.".into(),
                unit: "of accuracy".into(),
                effect: Line::AtLeast(0.8),
                control: "the same model trained on paths of one edge only".into(),
                absent: Line::AtMost(0.2),
            }
            .judge(&all(|f| f.behaviour.all), &all(|f| f.behaviour_of_edges.all))?,
        ),
        Some(
            Test {
                claim: "What attention goes to nodes rests on the target.".into(),
                unit: "of attention on nodes".into(),
                effect: Line::AtLeast(0.8),
                control: "the same model trained with any node in the place of the target".into(),
                absent: Line::AtMost(0.4),
            }
            .judge(&all(|f| f.attention), &all(|f| f.attention_shuffled))?,
        ),
        Some(edges_claim(&figures.iter().map(|f| &f.weights).collect::<Vec<_>>(), "the model")?),
        Some(edges_claim(
            &figures.iter().map(|f| &f.weights_of_edges).collect::<Vec<_>>(),
            "the control trained on single edges",
        )?),
        judged(
            seen_more("trained with any node in the place of the target"),
            over.clone(),
            some(|f| f.weights_shuffled.seen_over_unseen()),
        )?,
        judged(seen_more("trained on paths of one edge only"), over, some(|f| f.weights_of_edges.seen_over_unseen()))?,
        unseen_claim(&figures.iter().map(|f| &f.weights).collect::<Vec<_>>())?,
        joined_claim(&behaviours, 1)?,
        Some(
            Test {
                claim: "The gradient of the simplified model is the paper's formula.".into(),
                unit: "of its largest entry apart, at most".into(),
                effect: Line::AtMost(1e-10),
                control: "the formula with the counts of another graph".into(),
                absent: Line::AtLeast(1e-3),
            }
            .judge(&of_exact(|e| e.difference), &of_exact(|e| e.difference_elsewhere))?,
        ),
        Some(
            Test {
                claim: "Its signs are those of Theorem 3, so that weights of what was not seen only fall.".into(),
                unit: "of all weights".into(),
                effect: Line::AtLeast(1.),
                control: "the cases of another graph".into(),
                absent: Line::AtMost(0.95),
            }
            .judge(&of_exact(|e| e.obeyed), &of_exact(|e| e.obeyed_elsewhere))?,
        ),
    ];
    let summary = "A decoder of one layer and one head was trained on paths of a graph without circles, each after \
     its source and target, and asked for paths between other pairs; answers are sampled at temperature 1. Its \
     weights were read as two matrices, of which node follows which, and which lies on the way to which target; two \
     controls were trained on data from which one of these cannot be learned.";
    let mut outcome =
        Outcome { summary: summary.into(), findings: findings.into_iter().flatten().collect(), ..Outcome::default() };
    by_degree(&mut outcome, &behaviours)?;
    means(&mut outcome, figures)?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Level;
    use endoscope_causal::lens::TokenViews;
    use endoscope_report::Verdict;

    fn lab() -> Lab<'static> {
        Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap()
    }

    /// The organism's recipe, and a model that has learned nothing.
    fn untrained(lab: &Lab<'static>) -> (Recipe, crate::lab::LabModel<'static>) {
        let mut recipe = Recipe::read(lab.organism(ORGANISM).unwrap().directory.join("recipe.toml")).unwrap();
        (recipe.training.steps, recipe.training.warmup_steps) = (1, 0);
        let model = lab.trained(&recipe).unwrap();
        (recipe, model)
    }

    #[test]
    fn claims_fall_where_the_effect_is_taken_away() {
        let lab = lab();
        let (recipe, untrained) = untrained(&lab);
        let (organism, task) = (lab.organism(ORGANISM).unwrap(), task_of(&recipe).unwrap());
        let config = Config { pairs: 60, ..AlpinePathPlanning::smoke() };
        let exact = exactness(8, 1).unwrap();
        let verdicts = |paths: &Model, exact: Exactness| -> Vec<(String, Verdict)> {
            let measured = |seed| measured([paths, &untrained, &untrained], &task, &config, seed).unwrap();
            let figures = [measured(1), measured(2), measured(3)];
            let outcome = outcome(&figures, &[exact; 3]).unwrap();
            outcome.findings.iter().map(|finding| (finding.test().claim.clone(), finding.verdict())).collect()
        };
        let shown = |found: &[(String, Verdict)]| -> Vec<usize> {
            (0..found.len()).filter(|&at| found[at].1 == Verdict::Shown).collect()
        };
        let found = verdicts(&organism, exact);
        assert_eq!(found.len(), 10);
        // Of all but that single edges suffice, and that joined pairs are found less, for which these settings ask too
        // few.
        let with_effect: Vec<usize> = shown(&found).into_iter().filter(|&at| at != 7).collect();
        assert_eq!(with_effect, [0, 1, 2, 4, 5, 6, 8, 9], "{found:?}");
        let other = Exactness { difference: exact.difference_elsewhere, obeyed: exact.obeyed_elsewhere, ..exact };
        let found = verdicts(&untrained, other);
        // Of weights that say nothing of targets, where the unseen stand between the others is chance.
        assert!(shown(&found).iter().all(|&at| at == 6), "{found:?}");
    }

    #[test]
    fn weights_that_held_what_was_never_seen_would_be_noticed() {
        let recipe = Recipe::read(lab().organism(ORGANISM).unwrap().directory.join("recipe.toml")).unwrap();
        let known = Known::of_task(&task_of(&recipe).unwrap());
        let nodes = 0..known.names.len();
        let verdict = |holds: &dyn Fn(usize, usize) -> bool| {
            let row = |target: usize| nodes.clone().map(|node| f64::from(u8::from(holds(target, node)))).collect();
            let views = TokenViews {
                at_hand: vec![vec![0.; nodes.len()]; nodes.len()],
                looked_at: nodes.clone().map(row).collect(),
            };
            let weights = [1, 2, 3].map(|seed| InWeights::of(&views, &known, seed).unwrap());
            unseen_claim(&weights.each_ref()).unwrap().unwrap().verdict()
        };
        let graph = &known.graph;
        assert_eq!(verdict(&|target, node| graph.seen_reachability.holds(target, node)), Verdict::Shown);
        assert_eq!(verdict(&|target, node| graph.reachability.holds(node, target)), Verdict::NotShown);
    }

    #[test]
    fn a_file_says_what_the_recipe_says() {
        let folder = tempfile::tempdir().unwrap();
        let own = lab();
        let organism = own.organism(ORGANISM).unwrap();
        let (recipe, untrained) = untrained(&own);
        let task = task_of(&recipe).unwrap();
        let file = folder.path().join("graph.txt");
        let rows = (0..task.training_rows()).filter_map(|number| task.training_row(number));
        let lines = rows.map(|(_, path)| path.iter().map(usize::to_string).collect::<Vec<_>>().join(" ") + "\n");
        std::fs::write(&file, lines.collect::<String>()).unwrap();
        let (known, of_task) = (Known::read(&file).unwrap().0, Known::of_task(&task));
        assert_eq!(known.names.len(), 100);
        let pairs = |known: &Known| {
            let name = |node: usize| known.names[node].clone();
            let degree = |&(source, target): &(usize, usize)| known.graph.degree(source, target);
            let mut pairs: Vec<_> =
                known.untrained.iter().map(|pair| (name(pair.0), name(pair.1), degree(pair))).collect();
            pairs.sort();
            pairs
        };
        assert_eq!(pairs(&known), pairs(&of_task));
        let config = Config { graph: file.display().to_string(), pairs: 10, ..AlpinePathPlanning::smoke() };
        let outcome = given(&lab().with_model(&organism), &config).unwrap();
        assert!(outcome.findings.len() == 3 && outcome.tables.contains_key("joined_pairs"));
        let refused = |config: &Config, part: &str| {
            let error = given(&lab().with_model(&untrained), config).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(&config, "at least 0.1");
        refused(
            &Config { graph: folder.path().join("none").display().to_string(), ..config.clone() },
            "read the graph",
        );
        std::fs::write(&file, "1 2\n3\n").unwrap();
        refused(&config, "line 2");
        std::fs::write(&file, "1 2\n").unwrap();
        refused(&config, "both kinds are needed");
    }
}
