//! Fine-tuning enhances existing mechanisms: entity tracking (arXiv 2402.14811).
//!
//! A model says which object lies in a named box. Which heads do that is found by path patching, group by group from
//! the logits back; what each group carries, by masks over its heads that are trained so that the answer is the one
//! which follows if the group carries the object, the label or the position of the box (DCM); and where a fine-tuned
//! twin is better, by putting its groups into the base model (CMAP).
//!
//! Other than in the paper: a head belongs to a group in a whole region of the prompt, not at single tokens; heads are
//! scored by the difference of two objects' logits, not by one logit; and the groups are those of the paper by what
//! reads them, not by what they attend to.

mod circuit;
mod outcome;
mod prompts;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use candle_core::Tensor;
use endoscope_causal::{Aligned, Alignment, Find, Gate, Graph, Intervention, Objective, Pair, Triple, align};
use endoscope_models::{Decoder, Model, Precision, WeightSource};
use endoscope_net::{AxisName, Captured, Index, Network, Plan, Resume, Selection};
use endoscope_train::{Parameters, Recipe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::study::{Outcome, Study, Untested};
use circuit::{Choice, Group, Member, Node, discover, nodes, others, take};
use outcome::outcome;
use prompts::{Asked, Form, Hypothesis, Prompts, Scene};

/// The organism, and what became of it by fine-tuning.
const BASE: &str = "binding";
const TWIN: &str = "binding-tuned";
/// Twice as good as naming any of the objects: less is no tracking.
const BETTER_THAN_CHANCE: f64 = 2.;
/// Numbers of scenes, so that nothing is measured on what it was found on.
const FOR_PATHS: u64 = 0;
const FOR_MEANS: u64 = 1 << 20;
const FOR_MASKS: u64 = 2 << 20;
const FOR_TESTS: u64 = 3 << 20;

/// The study.
pub struct EntityTracking;

/// How the circuit is looked for and tested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How it is written what is in which box.
    form: Form,
    /// How many boxes a prompt has.
    #[schemars(range(min = 3, max = 26))]
    boxes: usize,
    /// How many pairs of prompts paths are patched between.
    #[schemars(range(min = 1, max = 1024))]
    pairs: usize,
    /// How many prompts the means and the accuracies are taken over, each.
    #[schemars(range(min = 8, max = 4096))]
    prompts: usize,
    /// How many pairs masks are trained on and tested with.
    #[schemars(range(min = 8, max = 4096))]
    masked: usize,
    /// How many steps a mask is trained for.
    #[schemars(range(min = 1, max = 2000))]
    steps: usize,
    /// What one head of a mask costs, in logits.
    #[schemars(range(min = 0., max = 10.))]
    penalty: f64,
    /// The least share of the logit difference that a head of the circuit must move.
    #[schemars(range(min = 0.001, max = 1.))]
    least: f64,
    /// The most heads of one group.
    #[schemars(range(min = 1, max = 64))]
    most: usize,
    /// The largest share of all heads that the circuit may have.
    #[schemars(range(min = 0.01, max = 1.))]
    share: f64,
    /// Over how many draws the control with random heads is averaged.
    #[schemars(range(min = 1, max = 64))]
    draws: usize,
    /// Whether base and twin are trained anew with each seed, or are the ones shipped. Models that are named are taken
    /// as they are.
    train: bool,
    /// With --model: the directory of its fine-tuned twin. Without one nothing is said of fine-tuning.
    twin: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            form: Form::Pairs,
            boxes: 8,
            pairs: 64,
            prompts: 512,
            masked: 256,
            steps: 150,
            penalty: 0.05,
            least: 0.02,
            most: 6,
            share: 0.4,
            draws: 16,
            train: true,
            twin: String::new(),
        }
    }
}

/// What is measured with one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    members: Vec<Member>,
    /// How many heads the circuit has, of how many.
    heads: usize,
    all_heads: usize,
    /// Accuracy of the model, of the circuit alone, and of as many random heads.
    whole: f64,
    alone: f64,
    random: f64,
    /// Accuracy of what the same search finds in a model that was not trained.
    untrained: f64,
    /// For each group, accuracy of the circuit and of the model without it.
    without: Vec<(Group, [f64; 2])>,
    /// For each member, the accuracy that the circuit loses without it.
    minimal: Vec<f64>,
    carried: Vec<Carried>,
    twin: Option<OfTwin>,
}

/// What the masks say of one group and hypothesis.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Carried {
    group: Group,
    hypothesis: Hypothesis,
    /// The share of unseen pairs that are answered as the hypothesis says, with the rounded mask, and how many heads it
    /// has.
    accuracy: f64,
    heads: usize,
    /// The same of a mask trained where each prompt has another's source.
    shuffled: f64,
}

/// What the fine-tuned twin says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OfTwin {
    whole: f64,
    /// The base's circuit alone, in the twin; and as many random heads.
    alone: f64,
    random: f64,
    /// For each group, the share of the gap that it closes when taken from the twin, and from a model that was not
    /// trained.
    recovered: Vec<(Group, [f64; 2])>,
}

impl Figures {
    fn of(&self, group: Group, hypothesis: Hypothesis) -> Option<&Carried> {
        self.carried.iter().find(|each| each.group == group && each.hypothesis == hypothesis)
    }
}

impl Study for EntityTracking {
    const SLUG: &'static str = "entity-tracking";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "Fine-tuning on arithmetic improves entity tracking in a language model of billions of weights.",
            why: "The twin here was fine-tuned on a mixture of which a tenth is the task itself; nothing that was learned elsewhere is shown to carry over.",
        },
        Untested {
            claim: "Sentences about boxes are read by the same groups of heads.",
            why: "The study's organisms read lists of labels and objects. --model organisms/boxes with form=sentences and twin=organisms/boxes-tuned asks the same of sentences; what came out is on the study's page.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config { pairs: 2, prompts: 32, masked: 24, steps: 6, draws: 2, train: false, ..Config::default() }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        let base = lab.model(BASE)?;
        let twin = match (lab.is_given_a_model(), config.twin.as_str()) {
            (false, _) => Some(lab.organism(TWIN)?),
            (true, "") => None,
            (true, path) => Some(lab.opened(path)?),
        };
        let twin: Option<&Model> = twin.as_deref();
        let recipes = match lab.is_given_a_model() || !config.train {
            true => None,
            false => Some([BASE, TWIN].map(|name| -> Result<Recipe> {
                Ok(Recipe::read(lab.organism(name)?.directory.join("recipe.toml"))?)
            })),
        };
        let recipes: Option<Vec<Recipe>> = recipes.map(|both| both.into_iter().collect::<Result<_>>()).transpose()?;
        let figures = lab.each_seed("measuring", config, |seed| match &recipes {
            Some(recipes) => {
                let of_seed: Vec<Recipe> = recipes.iter().map(|recipe| recipe.with_seed(seed)).collect();
                let models = lab.train_all(&of_seed)?;
                measure(&models[0], Some(&models[1]), config, seed, discover)
            }
            None => measure(&base, twin, config, seed, discover),
        })?;
        outcome(config, &figures)
    }
}

/// How a circuit is found: [`discover`], or in a test something that finds none.
type Search = fn(&dyn Resume, &[Pair], Choice) -> Result<Vec<Member>>;

/// Everything of one seed.
fn measure(model: &Model, twin: Option<&Model>, config: &Config, seed: u64, search: Search) -> Result<Figures> {
    let prompts = Prompts::new(model, config.boxes, config.form)?;
    let draw = |first: u64, count: usize| prompts.draw(seed, first, count);
    let scenes = draw(FOR_TESTS, config.prompts)?;
    let bench = Bench::new(&model.decoder, &draw(FOR_MEANS, config.prompts)?, &scenes, config.form)?;
    let whole = bench.tests.accuracy(bench.network, &Plan::default())?;
    let chance = 1. / config.boxes as f64;
    if whole < BETTER_THAN_CHANCE * chance {
        return Err(Error::Unsuitable {
            reason: format!(
                "of {} boxes it names the object in {whole:.3} of the prompts; chance is {chance:.3}, and at least twice that is needed to \
                 ask how it does it",
                config.boxes
            ),
        });
    }
    let choice = Choice { form: config.form, least: config.least, most: config.most, share: config.share };
    let pairs: Vec<Pair> = draw(FOR_PATHS, config.pairs)?.into_iter().map(|scene| scene.pair).collect();
    let members = search(bench.network, &pairs, choice)?;
    let circuit = nodes(&members);
    let without = |group: Group| -> Result<(Group, [f64; 2])> {
        let of_group = nodes(members.iter().filter(|member| member.group == group));
        let rest: BTreeSet<Node> = circuit.difference(&of_group).copied().collect();
        Ok((group, [bench.alone(&rest)?, bench.ablated(|node| of_group.contains(node))?]))
    };
    let alone = bench.alone(&circuit)?;
    let minimal = circuit_without_each(&members, &circuit, |rest| Ok(alone - bench.alone(rest)?))?;
    let untrained = untrained(model, seed)?;
    let of_untrained = {
        let bench = Bench::new(&untrained, &draw(FOR_MEANS, config.prompts)?, &scenes, config.form)?;
        bench.alone(&nodes(&search(&untrained, &pairs, choice)?))?
    };
    Ok(Figures {
        heads: members.iter().map(|member| (member.layer, member.head)).collect::<BTreeSet<_>>().len(),
        all_heads: bench.graph.layers * bench.graph.heads,
        whole,
        alone,
        random: bench.random(&circuit, config, seed)?,
        untrained: of_untrained,
        without: Group::ALL.into_iter().map(without).collect::<Result<_>>()?,
        minimal,
        carried: carried(&bench, &draw(FOR_MASKS, config.masked)?, &members, config, seed)?,
        twin: match twin {
            Some(twin) => Some(of_twin(&bench, &prompts, twin, &untrained, &members, config, seed)?),
            None => None,
        },
        members,
    })
}

fn circuit_without_each(
    members: &[Member],
    circuit: &BTreeSet<Node>,
    lost: impl Fn(&BTreeSet<Node>) -> Result<f64>,
) -> Result<Vec<f64>> {
    let without = |member: &Member| {
        let mut rest = circuit.clone();
        rest.remove(&member.node());
        lost(&rest)
    };
    members.iter().map(without).collect()
}

/// Weights before any training, that nothing will train: constants, packed as those of a file are.
struct Fixed(Parameters);

impl WeightSource for Fixed {
    fn has(&self, name: &str) -> bool {
        self.0.has(name)
    }

    fn get(&mut self, name: &str, shape: &[usize]) -> endoscope_models::Result<Tensor> {
        Ok(self.0.get(name, shape)?.detach())
    }

    fn precision(&self) -> Option<Precision> {
        Some(Precision::F32)
    }
}

/// A model of the same architecture with random weights.
fn untrained(model: &Model, seed: u64) -> Result<Decoder> {
    let spec = model.spec().clone();
    let weights = model.family.weights(&spec, &mut Fixed(Parameters::new(model.family, &spec, seed, 0.02)))?;
    Ok(Decoder::new(spec, weights)?)
}

/// A model, what its heads write on average, and the prompts that it is tested on.
struct Bench<'a> {
    network: &'a Decoder,
    graph: Graph,
    means: Captured,
    tests: Asked,
}

impl<'a> Bench<'a> {
    fn new(network: &'a Decoder, means: &[Scene], tests: &[Scene], form: Form) -> Result<Self> {
        Ok(Self {
            network,
            graph: Graph::new(network.sites())?,
            means: Asked::new(means, form)?.mean_written(network)?,
            tests: Asked::new(tests, form)?,
        })
    }

    /// Accuracy where the heads that are chosen write what they write on average.
    fn ablated(&self, chosen: impl Fn(&Node) -> bool) -> Result<f64> {
        self.tests.accuracy(self.network, &take(&self.graph, &self.means, &self.tests, chosen)?)
    }

    /// Accuracy of a circuit: every other head is ablated.
    fn alone(&self, circuit: &BTreeSet<Node>) -> Result<f64> {
        self.ablated(|node| !circuit.contains(node))
    }

    /// The same of as many random heads, mean over draws.
    fn random(&self, circuit: &BTreeSet<Node>, config: &Config, seed: u64) -> Result<f64> {
        let draws = 0..config.draws as u64;
        let each = draws.map(|draw| self.alone(&others(circuit, &self.graph, seed, draw)));
        Ok(each.sum::<Result<f64>>()? / config.draws as f64)
    }
}

/// What each group carries, by masks over its heads (DCM; Prakash et al. 2024, section 5, after Davies et al. 2023), on
/// pairs of which the model answers both prompts rightly.
fn carried(
    bench: &Bench<'_>,
    scenes: &[Scene],
    members: &[Member],
    config: &Config,
    seed: u64,
) -> Result<Vec<Carried>> {
    let swapped: Vec<Scene> = scenes.iter().map(Scene::swapped).collect();
    let [here, there] =
        [scenes, &swapped[..]].map(|scenes| Asked::new(scenes, config.form)?.right(bench.network, &Plan::default()));
    let (here, there) = (here?, there?);
    let known: Vec<&Scene> = scenes
        .iter()
        .zip(here.iter().zip(&there))
        .filter(|(_, (here, there))| **here && **there)
        .map(|(scene, _)| scene)
        .collect();
    let mut carried = Vec::new();
    for group in Group::ALL {
        let mut heads: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
        for member in members.iter().filter(|member| member.group == group) {
            heads.entry(member.layer).or_default().push(member.head as i64);
        }
        for hypothesis in Hypothesis::ALL {
            let nothing = Carried { group, hypothesis, accuracy: 0., heads: 0, shuffled: 0. };
            // Two at least, so that one can be held out; a group without heads carries nothing.
            carried.push(match heads.is_empty() || known.len() < 2 {
                true => nothing,
                false => {
                    let aligned = masked(bench.network, &known, &heads, group, hypothesis, (config, seed))?;
                    let accuracy = |intervention| aligned.accuracy(intervention).unwrap_or(0.);
                    Carried {
                        accuracy: accuracy(Intervention::Found),
                        heads: aligned.sites.iter().map(|site| site.size()).sum(),
                        shuffled: accuracy(Intervention::ShuffledSources),
                        ..nothing
                    }
                }
            });
        }
    }
    Ok(carried)
}

/// The mask over the heads of a group that makes the answer what a hypothesis says.
fn masked(
    network: &Decoder,
    scenes: &[&Scene],
    heads: &BTreeMap<usize, Vec<i64>>,
    group: Group,
    hypothesis: Hypothesis,
    (config, seed): (&Config, u64),
) -> Result<Aligned> {
    let triple = |scene: &&Scene| Triple {
        base: scene.pair.clean.clone(),
        source: scene.pair.corrupt.clone(),
        answers: vec![scene.wanted[hypothesis as usize]],
        wrong_answers: Vec::new(),
        desideratum: hypothesis.name().into(),
        weight: 1.,
    };
    let layers = heads.keys().map(usize::to_string).collect::<Vec<_>>().join(",");
    let alignment = Alignment {
        select: Selection::default().with(AxisName::Position, group.region().index(config.form)),
        heads: heads.iter().map(|(&layer, heads)| (layer, Index::List(heads.clone()))).collect(),
        objective: Objective::Logit,
        penalty: config.penalty,
        steps: config.steps,
        seed,
        random_controls: 0,
        ..Alignment::new(format!("blocks.{{{layers}}}.attn.hook_z"), Find::Heads { gate: Gate::Clamp })
    };
    let triples: Vec<Triple> = scenes.iter().map(triple).collect();
    Ok(align(network, &alignment, &triples, |_| ControlFlow::Continue(()))?)
}

/// The base's circuit in the twin, and the twin's groups in the base (CMAP; Prakash et al. 2024, section 6).
fn of_twin(
    bench: &Bench<'_>,
    prompts: &Prompts<'_>,
    twin: &Model,
    untrained: &Decoder,
    members: &[Member],
    config: &Config,
    seed: u64,
) -> Result<OfTwin> {
    let scenes = prompts.draw(seed, FOR_TESTS, config.prompts)?;
    let own = Prompts::new(twin, config.boxes, config.form)?;
    let sizes =
        |decoder: &Decoder| (decoder.spec.layers, decoder.spec.heads, decoder.spec.d_head, decoder.spec.vocabulary);
    if own.draw(seed, FOR_TESTS, config.prompts)? != scenes || sizes(&twin.decoder) != sizes(bench.network) {
        return Err(Error::Unsuitable {
            reason: "the twin is not of the same shape and tokens, so that heads of one are not heads of the other"
                .into(),
        });
    }
    let of_twin = Bench::new(&twin.decoder, &prompts.draw(seed, FOR_MEANS, config.prompts)?, &scenes, config.form)?;
    let base = bench.tests.accuracy(bench.network, &Plan::default())?;
    let whole = of_twin.tests.accuracy(&twin.decoder, &Plan::default())?;
    if whole <= base {
        return Err(Error::Unsuitable {
            reason: format!(
                "the twin answers {whole:.3} of the prompts and the base {base:.3}, so there is no gain to be found"
            ),
        });
    }
    let circuit = nodes(members);
    let sources = [bench.tests.written(&twin.decoder)?, bench.tests.written(untrained)?];
    let recovered = |group: Group| -> Result<(Group, [f64; 2])> {
        let of_group = nodes(members.iter().filter(|member| member.group == group));
        let gain = |sources: &Captured| -> Result<f64> {
            let plan = take(&bench.graph, sources, &bench.tests, |node| of_group.contains(node))?;
            Ok((bench.tests.accuracy(bench.network, &plan)? - base) / (whole - base))
        };
        Ok((group, [gain(&sources[0])?, gain(&sources[1])?]))
    };
    Ok(OfTwin {
        whole,
        alone: of_twin.alone(&circuit)?,
        random: of_twin.random(&circuit, config, seed)?,
        recovered: Group::ALL.into_iter().map(recovered).collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Level;
    use endoscope_report::Verdict;
    use prompts::Region;

    fn lab() -> Lab<'static> {
        Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap()
    }

    /// The heads that move the least, in the place of those that move the most.
    fn quietest(network: &dyn Resume, pairs: &[Pair], choice: Choice) -> Result<Vec<Member>> {
        let found = discover(network, pairs, choice)?;
        let mut taken = nodes(&found);
        let graph = Graph::new(network.sites())?;
        let other = |member: &Member| {
            // None where the layer has no other head left.
            let mut others = (0..graph.heads).map(|head| Member { head, ..*member });
            others.find(|other| taken.insert(other.node()))
        };
        Ok(found.iter().filter_map(other).collect())
    }

    fn figures(search: Search) -> Vec<Figures> {
        let lab = lab();
        let (base, twin) = (lab.organism(BASE).unwrap(), lab.organism(TWIN).unwrap());
        let config = EntityTracking::smoke();
        lab.seeds().iter().map(|&seed| measure(&base, Some(&twin), &config, seed, search).unwrap()).collect()
    }

    fn verdicts(figures: &[Figures]) -> Vec<Verdict> {
        let outcome = outcome(&EntityTracking::smoke(), figures).unwrap();
        outcome.findings.iter().map(|finding| finding.verdict()).collect()
    }

    #[test]
    fn claims_fall_where_the_effect_is_taken_away() {
        let found = figures(discover);
        for each in &found {
            assert!(each.alone > 0.7 * each.whole && each.random < each.alone - 0.2 * each.whole, "{each:?}");
        }
        assert!(
            verdicts(&found).iter().filter(|verdict| **verdict != Verdict::NotShown).count() >= 3,
            "{:?}",
            verdicts(&found)
        );
        let none = figures(quietest);
        assert_eq!(verdicts(&none), vec![Verdict::NotShown; 7]);
    }

    #[test]
    fn a_model_that_tracks_nothing_is_refused() {
        let lab = lab();
        let base = lab.organism(BASE).unwrap();
        let config = EntityTracking::smoke();
        let refused = |model: &Model, twin: Option<&Model>, part: &str| {
            let error = measure(model, twin, &config, 1, discover).unwrap_err().to_string();
            assert!(error.contains("cannot be made on this model") && error.contains(part), "{error}");
        };
        // Its words are others.
        refused(&lab.organism("constructed-counting").unwrap(), None, "one known token a word");
        refused(&base, Some(&base), "no gain");
        refused(&base, Some(&lab.organism("constructed-counting").unwrap()), "one known token a word");
        // The words are known, nothing was learned.
        let folder = tempfile::tempdir().unwrap();
        let lab = lab.with_cache(folder.path());
        let mut recipe = endoscope_train::Recipe::read(base.directory.join("recipe.toml")).unwrap();
        (recipe.training.steps, recipe.training.warmup_steps) = (1, 0);
        refused(&lab.trained(&recipe).unwrap(), None, "chance is 0.125");
    }

    #[test]
    fn scenes_say_what_each_hypothesis_wants() {
        let lab = lab();
        let base = lab.organism(BASE).unwrap();
        let prompts = Prompts::new(&base, 5, Form::Pairs).unwrap();
        let scenes = prompts.draw(1, 0, 8).unwrap();
        assert_eq!(scenes, prompts.draw(1, 0, 8).unwrap());
        for Scene { pair, wanted } in scenes {
            let length = pair.clean.len();
            let facts = |prompt: &[u32]| -> Vec<[u32; 2]> {
                (0..5).map(|at| [prompt[2 + 2 * at], prompt[1 + 2 * at]]).collect()
            };
            let (clean, corrupt) = (facts(&pair.clean), facts(&pair.corrupt));
            let [asked, there] = [&pair.clean, &pair.corrupt].map(|prompt| prompt[length - 1]);
            let of = |facts: &[[u32; 2]], label: u32| facts.iter().position(|fact| fact[1] == label).unwrap();
            assert_eq!(pair.answers, [clean[of(&clean, asked)][0]]);
            let at = of(&corrupt, there);
            assert_eq!(wanted, [corrupt[at][0], clean[of(&clean, there)][0], clean[at][0]]);
            let regions: Vec<Region> = (0..length).map(|position| Region::of(position, length, Form::Pairs)).collect();
            assert_eq!(regions.iter().filter(|region| **region == Region::Facts).count(), 1 + 5 * 2);
            assert_eq!(regions[length - 2..], [Region::Question, Region::End]);
        }
    }

    #[test]
    fn nothing_taken_is_the_model_and_everything_is_the_other() {
        let lab = lab();
        let (base, twin) = (lab.organism(BASE).unwrap(), lab.organism(TWIN).unwrap());
        let scenes = Prompts::new(&base, 5, Form::Pairs).unwrap().draw(2, 0, 32).unwrap();
        let bench = Bench::new(&base.decoder, &scenes, &scenes, Form::Pairs).unwrap();
        let whole = bench.tests.right(bench.network, &Plan::default()).unwrap();
        assert_eq!(
            bench
                .tests
                .right(bench.network, &take(&bench.graph, &bench.means, &bench.tests, |_| false).unwrap())
                .unwrap(),
            whole
        );
        // What a model's own heads write in this very run changes nothing.
        let own = bench.tests.written(bench.network).unwrap();
        assert_eq!(
            bench.tests.right(bench.network, &take(&bench.graph, &own, &bench.tests, |_| true).unwrap()).unwrap(),
            whole
        );
        let others = bench.tests.written(&twin.decoder).unwrap();
        let all = take(&bench.graph, &others, &bench.tests, |_| true).unwrap();
        assert_ne!(bench.tests.right(bench.network, &all).unwrap(), whole);
        let drawn = others_of(&bench.graph);
        assert_eq!(drawn.iter().filter(|node| node.layer == 1 && node.region == Region::End).count(), 2);
        assert_eq!(drawn.len(), 3);
    }

    fn others_of(graph: &Graph) -> BTreeSet<Node> {
        let node = |layer, head, region| Node { layer, head, region };
        others(&[node(1, 0, Region::End), node(1, 3, Region::End), node(0, 2, Region::Facts)].into(), graph, 1, 0)
    }
}
