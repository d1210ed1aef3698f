//! What is known of the organism `induction-redundant`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::path::PathBuf;
use std::sync::LazyLock;

use common::heads::{accuracy, induction, previous_token, without};
use endoscope_models::Model;
use endoscope_net::{Change, Edit, Index, Plan};
use endoscope_organisms::Task;
use endoscope_organisms::tasks::repeated_sequences::RepeatedSequences;
use endoscope_train::{Batches, Recipe, initial_model};

const FRESH: u64 = 20_250_101;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction-redundant")
}

static MODEL: LazyLock<Model> = LazyLock::new(|| Model::open(directory()).unwrap());
static RECIPE: LazyLock<Recipe> = LazyLock::new(|| Recipe::read(directory().join("recipe.toml")).unwrap());
static TASK: LazyLock<RepeatedSequences> =
    LazyLock::new(|| RepeatedSequences::from_parameters(&RECIPE.task.parameters).unwrap());

/// Layer 0's head that MODEL.md names.
const PREVIOUS_TOKEN: usize = 7;
/// Layer 1's heads that attend mostly to the induction target; the others do so too, by half.
const STRONG: [usize; 4] = [0, 2, 4, 6];
const HEADS: usize = 8;

fn left(heads: &[(usize, usize)]) -> f64 {
    let rows = TASK.sequences(FRESH, 100, 64, 12);
    let left = accuracy(&MODEL.decoder, &*TASK, &rows, &without(heads, Index::All));
    println!("accuracy without {heads:?}: {left:.4}");
    left
}

fn of_layer(layer: usize, which: impl Fn(usize) -> bool) -> Vec<(usize, usize)> {
    (0..HEADS).filter(|&head| which(head)).map(|head| (layer, head)).collect()
}

#[test]
fn repeats_fresh_sequences() {
    for step in 0..8 {
        let batch = TASK.batch(FRESH, step, 64);
        let found = accuracy(&MODEL.decoder, &*TASK, &batch.tokens, &Plan::default());
        println!("{} tokens: accuracy {found:.4}", batch.tokens[0].len());
        assert!(found >= 0.99, "sequences of {}: {found}", batch.tokens[0].len());
    }
}

#[test]
fn one_head_attends_to_the_word_before_and_eight_to_the_word_to_be_copied() {
    for n in [6, 10, 15] {
        let rows = TASK.sequences(FRESH, 101, 64, n);
        let (previous, induction) = (previous_token(&MODEL.decoder, &rows, n), induction(&MODEL.decoder, &rows, n));
        println!("n {n}: previous-token in layer 0 {:.3?}, induction in layer 1 {:.3?}", previous[0], induction[1]);
        for head in 0..HEADS {
            assert_eq!(previous[0][head] > 0.9, head == PREVIOUS_TOKEN, "{previous:?}");
            assert!(previous[0][head] > 0.9 || previous[0][head] < 0.5, "{previous:?}");
            assert_eq!(induction[1][head] > 0.68, STRONG.contains(&head), "{induction:?}");
            assert!(induction[1][head] > 0.4, "{induction:?}");
        }
    }
}

#[test]
fn no_head_of_layer_1_is_needed_and_all_together_are() {
    for head in 0..HEADS {
        assert!(left(&[(1, head)]) > 0.97);
    }
    assert!(left(&of_layer(1, |head| !STRONG.contains(&head))) > 0.9, "the strong ones suffice");
    assert!(left(&of_layer(1, |head| STRONG.contains(&head))) < 0.9);
    assert!(left(&of_layer(1, |_| true)) < 0.1);
}

#[test]
fn the_previous_token_head_is_needed_and_the_others_of_its_layer_matter_less() {
    for head in 0..HEADS {
        assert_eq!(left(&[(0, head)]) < 0.7, head == PREVIOUS_TOKEN);
    }
    assert!(left(&of_layer(0, |head| head != PREVIOUS_TOKEN)) > 0.6, "the previous-token head does most of it alone");
    assert!(left(&of_layer(0, |_| true)) < 0.2);
    for layer in 0..2 {
        let rows = TASK.sequences(FRESH, 102, 64, 12);
        let plan = Plan::default().edit(Edit::new(format!("mlp_out.{layer}"), Change::Zero));
        let left = accuracy(&MODEL.decoder, &*TASK, &rows, &plan);
        println!("accuracy without the MLP of layer {layer}: {left:.4}");
        assert!(left > 0.97);
    }
}

#[test]
fn before_training_there_is_neither_head() {
    let (decoder, _) = initial_model(&RECIPE, TASK.vocabulary()).unwrap();
    assert_eq!(&decoder.spec, MODEL.spec());
    let rows = TASK.sequences(FRESH, 103, 64, 12);
    let scores = previous_token(&decoder, &rows, 12).into_iter().chain(induction(&decoder, &rows, 12)).flatten();
    let greatest = scores.fold(0., f64::max);
    println!("untrained: scores up to {greatest:.3}");
    assert!(greatest < 0.25, "{greatest}");
    assert!(accuracy(&decoder, &*TASK, &rows, &Plan::default()) < 0.1);
}

#[test]
fn its_files_are_small_and_fit_each_other() {
    let files = endoscope_organisms::tokenizer_files(&TASK.words(), RECIPE.model.context).unwrap();
    for (name, contents) in files {
        assert_eq!(std::fs::read(directory().join(&name)).unwrap(), contents, "{name}");
    }
    assert!(std::fs::metadata(directory().join("model.safetensors")).unwrap().len() < 1 << 20);
}
