//! What is known of the organisms `two-hop-cot` and `two-hop-direct`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::ops::ControlFlow;
use std::path::PathBuf;

use endoscope_models::{Caching, Model, Sampling, Settings, generate_batch};
use endoscope_net::{Plan, TokenRows};
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
        ("two-hop-direct", 0.8906, [(TRAIN, 0.9285), (IN, 0.1175), (OUT, 0.0271)]),
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
