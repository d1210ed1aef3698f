//! What is known of the organisms `two-hop-cot` and `two-hop-direct`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::ops::ControlFlow;
use std::path::PathBuf;

use endoscope_causal::lens::{Lens, Streams, reciprocal_ranks};
use endoscope_models::{Caching, Model, Sampling, Settings, generate_batch};
use endoscope_net::{Index, Inputs, Network, Plan, TokenRows};
use endoscope_organisms::TRAIN;
use endoscope_organisms::tasks::two_hop_facts::{Fact, IN, OUT, TwoHopFacts};
use endoscope_train::Recipe;

struct Organism {
    model: Model,
    task: TwoHopFacts,
    writes: bool,
}

impl Organism {
    fn open(name: &str) -> Self {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms").join(name);
        let recipe = Recipe::read(directory.join("recipe.toml")).unwrap();
        let task = TwoHopFacts::from_parameters(&recipe.task.parameters).unwrap();
        let writes = recipe.task.parameters["chain_of_thought"].as_bool().unwrap();
        Self { model: Model::open(directory).unwrap(), task, writes }
    }

    /// The share of prompts after which the model writes the whole answer.
    fn right(&self, asked: Vec<(Vec<u32>, Vec<u32>)>) -> f64 {
        let settings = Settings {
            max_tokens: asked[0].1.len(),
            sampling: Sampling::default(),
            stop: vec![],
            stop_at_end_token: false,
            caching: Caching::On,
        };
        let prompts = TokenRows::new(asked.iter().map(|(prompt, _)| prompt.clone()).collect()).unwrap();
        let listen = |_: endoscope_models::Step| ControlFlow::Continue(());
        let written = generate_batch(&self.model, &prompts, &Plan::default(), &settings, listen).unwrap();
        let right = written.iter().zip(&asked).filter(|(written, (_, answer))| written.tokens == *answer).count();
        right as f64 / asked.len() as f64
    }

    fn facts(&self) -> f64 {
        let asked = |fact: &Fact| (self.task.prompt(fact.head, &[fact.relation]), vec![self.task.entity(fact.tail)]);
        self.right(self.task.facts().iter().map(asked).collect())
    }

    fn pairs(&self, split: &str) -> f64 {
        let asked = |(first, second): (Fact, Fact)| {
            let both = [self.task.entity(first.tail), self.task.entity(second.tail)];
            let prompt = self.task.prompt(first.head, &[first.relation, second.relation]);
            (prompt, both[usize::from(!self.writes)..].to_vec())
        };
        self.right(self.task.pairs(split).map(asked).collect())
    }
}

#[test]
fn answers_as_many_as_their_pages_say() {
    for (name, facts, pairs) in [
        ("two-hop-cot", 1.0, [(TRAIN, 1.0), (IN, 1.0), (OUT, 0.9380)]),
        ("two-hop-direct", 0.9, [(TRAIN, 0.9285), (IN, 0.1175), (OUT, 0.0271)]),
    ] {
        let organism = Organism::open(name);
        let found = organism.facts();
        println!("{name}: facts {found:.4}");
        assert!((found - facts).abs() < 0.005, "{name}: facts {found}");
        for (split, expected) in pairs {
            let found = organism.pairs(split);
            println!("{name}: {split} {found:.4}");
            assert!((found - expected).abs() < 0.005, "{name}: {split} {found}");
        }
    }
}

/// The mean reciprocal rank `[stream]` of the bridge (or the target) at a position, over all held-out pairs.
fn ranks(organism: &Organism, written: bool, target: bool, position: i64) -> Vec<f64> {
    let task = &organism.task;
    let prompt = |(first, second): (Fact, Fact)| {
        let mut tokens = task.prompt(first.head, &[first.relation, second.relation]);
        tokens.extend(written.then(|| task.entity(first.tail)));
        (tokens, task.entity(if target { second.tail } else { first.tail }))
    };
    let prompts: Vec<_> = task.pairs(IN).map(prompt).collect();
    assert_eq!(prompts.len(), 417);
    let decoder = &organism.model.decoder;
    let ranks = reciprocal_ranks(decoder, &Lens::logit(), &prompts, &Index::At(position), Streams::Layers).unwrap();
    ranks.means.concat()
}

#[test]
fn bridge_and_target_are_read_off_where_their_pages_say() {
    let [cot, direct] = ["two-hop-cot", "two-hop-direct"].map(Organism::open);
    for (organism, written, target, position, expected) in [
        (&cot, false, false, 2, [0.032, 0.919, 0.995, 1.000, 1.000]),
        (&cot, false, false, 3, [0.032, 0.928, 1.000, 1.000, 1.000]),
        (&cot, true, true, 3, [0.034, 0.066, 0.077, 0.078, 0.077]),
        (&cot, true, true, 4, [0.075, 0.900, 0.999, 1.000, 1.000]),
        (&direct, false, false, 2, [0.035, 0.548, 0.672, 0.774, 0.948]),
        (&direct, false, false, 3, [0.025, 0.116, 0.117, 0.114, 0.112]),
        (&direct, false, true, 3, [0.054, 0.207, 0.230, 0.234, 0.255]),
    ] {
        let found = ranks(organism, written, target, position);
        // Three digits are on the page.
        let close = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.002);
        assert!(found.len() == 5 && close, "{position}: {found:?}, the page says {expected:?}");
    }
}

#[test]
fn the_second_hop_reads_the_bridge_and_the_second_relation_alone() {
    let Organism { model, task, .. } = Organism::open("two-hop-cot");
    let target = |head: usize, [first, second]: [usize; 2]| task.tail(task.tail(head, first)?, second);
    let mut exchanged: [(Vec<Vec<u32>>, Vec<u32>); 4] = Default::default();
    for (first, second) in task.pairs(IN) {
        let relations = [first.relation, second.relation];
        let mut tokens = task.prompt(first.head, &relations);
        tokens.push(task.entity(first.tail));
        for other in task.facts() {
            let another = |place: usize, token: u32| {
                let mut tokens = tokens.clone();
                tokens[place] = token;
                tokens
            };
            let relation = |relation: usize| task.prompt(other.head, &[relation])[2];
            // With h, r1 or b exchanged the other question leads to another bridge and target, with r2 to another target.
            let differs = other.tail != first.tail
                && task.tail(other.tail, second.relation).is_some_and(|other| other != second.tail);
            let (same_head, same_relation) = (other.head == first.head, other.relation == first.relation);
            let places = [
                (differs && same_relation && !same_head).then(|| another(1, task.entity(other.head))),
                (differs && same_head && !same_relation).then(|| another(2, relation(other.relation))),
                (other.head == second.head && other.tail != second.tail).then(|| another(3, relation(other.relation))),
                (differs && same_relation && !same_head).then(|| another(4, task.entity(other.tail))),
            ];
            for (tokens, (rows, answers)) in places.into_iter().zip(&mut exchanged) {
                answers.extend(tokens.is_some().then(|| task.entity(second.tail)));
                rows.extend(tokens);
            }
        }
        assert_eq!(target(first.head, relations), Some(second.tail));
    }
    let displaced = exchanged.map(|(rows, answers)| {
        let count = rows.len();
        let plan = Plan::default().outputs_at(Index::At(-1));
        let run = model.decoder.run(&Inputs::tokens(rows).unwrap(), &plan).unwrap();
        let best = run.outputs.squeeze(1).unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap();
        let displaced = best.iter().zip(&answers).filter(|(best, answer)| best != answer).count();
        (count, displaced as f64 / count as f64)
    });
    println!("{displaced:?}");
    assert_eq!(displaced.map(|(count, _)| count), [5206, 1773, 4519, 5206]);
    for ((_, found), expected) in displaced.into_iter().zip([0.000, 0.000, 0.999, 1.000]) {
        assert!((found - expected).abs() < 0.002, "{found}, the page says {expected}");
    }
}
