//! A task and a recipe that train in a moment, and runs that are killed.
#![allow(dead_code)]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use endoscope_train::{Batch, Batches, Outcome, Progress, Recipe, Shape, ShortKeys, generator, train};
use rand::RngExt;

/// Random tokens, each followed by itself plus one.
pub struct Pairs;

impl Batches for Pairs {
    fn vocabulary(&self) -> usize {
        12
    }
    fn length(&self) -> usize {
        8
    }
    fn batch(&self, seed: u64, step: u64, rows: usize) -> Batch {
        let mut random = generator(seed, step);
        let row = |_| {
            let mut row = Vec::new();
            for _ in 0..4 {
                let token = random.random_range(0..11);
                row.extend([token, token + 1]);
            }
            row
        };
        let tokens = (0..rows).map(row).collect();
        Batch { tokens, mask: vec![(0..8).map(|at| at % 2 == 1).collect(); rows] }
    }
}

pub fn recipe() -> Recipe {
    let text = r#"
        [model]
        family = "llama"
        context = 8
        d_model = 16
        layers = 2
        heads = 4
        kv_heads = 2
        d_mlp = 24
        [task]
        name = "pairs"
        [training]
        steps = 30
        batch = 4
        seed = 5
        learning_rate = 0.01
        warmup_steps = 5
        checkpoint_every = 10
    "#;
    Recipe::parse("recipe.toml", text).unwrap()
}

/// The short keys of a recipe's model.
pub fn short(recipe: &mut Recipe) -> &mut ShortKeys {
    match &mut recipe.model.shape {
        Shape::Short(keys) => keys,
        other => panic!("{other:?}"),
    }
}

/// The panic in place of SIGKILL: the run ends between two updates and nothing is tidied up by the trainer.
pub fn train_until_killed(recipe: &Recipe, out: &Path, at: u64) -> Vec<f32> {
    let mut losses = Vec::new();
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut observer = |progress: &Progress| {
            losses.push(progress.loss);
            assert!(progress.step < at, "killed");
            ControlFlow::Continue(())
        };
        train(recipe, &Pairs, &[], out, &mut observer)
    }));
    assert!(killed.is_err());
    losses
}

pub fn train_to_the_end(recipe: &Recipe, out: &Path) -> (u64, Vec<f32>) {
    let (mut first, mut seen) = (None, Vec::new());
    let outcome = train(recipe, &Pairs, &[], out, &mut |progress| {
        first.get_or_insert(progress.step);
        seen.push(progress.loss);
        ControlFlow::Continue(())
    });
    let Outcome::Finished { directory, losses } = outcome.unwrap() else { panic!("stopped") };
    assert_eq!(directory, out);
    let first = first.unwrap();
    assert_eq!(seen, losses[first as usize - 1..]);
    (first, losses)
}

pub fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| match path.is_dir() {
            true => {
                files(&path).into_iter().map(|(name, bytes)| (format!("{}/{name}", name_of(&path)), bytes)).collect()
            }
            false => vec![(name_of(&path), fs::read(&path).unwrap())],
        })
        .collect();
    found.sort();
    found
}

pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
