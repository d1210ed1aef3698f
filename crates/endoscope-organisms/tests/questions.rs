//! What the organisms that answer questions are right in, as their MODEL.md say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::path::PathBuf;

use common::heads::accuracy;
use endoscope_models::Model;
use endoscope_net::Plan;
use endoscope_organisms::tasks::multiple_choice::{ENUMERATIONS, LETTERS, RANDOM};
use endoscope_organisms::{Task, task_parts};
use endoscope_train::Recipe;

/// Not the seed of any training.
const FRESH: u64 = 20_250_101;
const ROWS: u64 = 256;

/// The accuracy on fresh rows of a split.
fn of_split(model: &Model, task: &dyn Task, split: &str) -> f64 {
    // Rows differ in length; a shorter one is filled up with <bos>, which is asked nowhere.
    let mut rows: Vec<Vec<u32>> = (0..ROWS).map(|number| task.row(split, FRESH, number).unwrap().tokens).collect();
    let longest = rows.iter().map(Vec::len).max().unwrap();
    rows.iter_mut().for_each(|row| row.resize(longest, 0));
    let found = accuracy(&model.decoder, task, &rows, &Plan::default());
    println!("{} {split}: accuracy {found:.4}", task.name());
    found
}

/// The model and the parts of the task that it was trained on.
/// Tasks by what they are called in MODEL.md.
type Named = Vec<(String, Box<dyn Task>)>;

fn organism(name: &str) -> (Model, Named) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms").join(name);
    let recipe = Recipe::read(directory.join("recipe.toml")).unwrap();
    assert_ne!(recipe.training.seed, FRESH);
    (Model::open(directory).unwrap(), task_parts(&recipe.task.name, &recipe.task.parameters).unwrap())
}

#[test]
fn multiple_choice_is_answered_with_every_enumeration_but_not_with_labels_at_random() {
    let (model, parts) = organism("multiple-choice");
    let task = parts[0].1.as_ref();
    assert!(of_split(&model, task, LETTERS) >= 0.99);
    assert!(of_split(&model, task, ENUMERATIONS) >= 0.95);
    // Such labels were never trained on, and the model says another label of the enumeration that it expects.
    assert!(of_split(&model, task, RANDOM) < 0.3);
}
