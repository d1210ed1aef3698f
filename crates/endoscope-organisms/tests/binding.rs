//! What is known of the organisms `binding` and `binding-tuned`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::path::PathBuf;

use common::heads::accuracy;
use endoscope_models::Model;
use endoscope_net::Plan;
use endoscope_organisms::{TRAIN, task_parts};
use endoscope_train::Recipe;

const FRESH: u64 = 20_250_101;

fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms").join(name)
}

/// Accuracy on 512 fresh rows of each part of the recipe's mixture.
fn accuracies(name: &str) -> Vec<(String, f64)> {
    let model = Model::open(directory(name)).unwrap();
    let recipe = Recipe::read(directory(name).join("recipe.toml")).unwrap();
    let parts = task_parts(&recipe.task.name, &recipe.task.parameters).unwrap();
    let of = |(part, task): (String, Box<dyn endoscope_organisms::Task>)| {
        let mut rows: Vec<Vec<u32>> = (0..512).map(|number| task.row(TRAIN, FRESH, number).unwrap().tokens).collect();
        // Rows of one length run together.
        rows.sort_by_key(Vec::len);
        let (mut right, mut all) = (0., 0.);
        for rows in rows.chunk_by(|a, b| a.len() == b.len()) {
            right += rows.len() as f64 * accuracy(&model.decoder, &*task, rows, &Plan::default());
            all += rows.len() as f64;
        }
        println!("{name}: {part} {:.4}", right / all);
        (part, right / all)
    };
    parts.into_iter().map(of).collect()
}
