//! The ground truth of the organism `induction`: a previous-token head in layer 0, two induction heads in layer 1 of which
//! either suffices, and nothing else matters.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::path::PathBuf;
use std::sync::LazyLock;

use candle_core::D;
use common::heads::{self, induction, previous_token, score, without};
use endoscope_models::{Decoder, Model};
use endoscope_net::{Change, Edit, Index, Inputs, Network, Plan};
use endoscope_organisms::task;
use endoscope_organisms::tasks::repeated_sequences::RepeatedSequences;
use endoscope_train::{Batches, Recipe, initial_model};

/// Not the seed that it was trained with.
const FRESH: u64 = 20_250_101;
/// The heads that MODEL.md names: layer, head.
const PREVIOUS_TOKEN: (usize, usize) = (0, 1);
const INDUCTION: [(usize, usize); 2] = [(1, 0), (1, 1)];
const CONTROL: (usize, usize) = (0, 0);

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction")
}

static MODEL: LazyLock<Model> = LazyLock::new(|| Model::open(directory()).unwrap());
static RECIPE: LazyLock<Recipe> = LazyLock::new(|| Recipe::read(directory().join("recipe.toml")).unwrap());
static TASK: LazyLock<RepeatedSequences> =
    LazyLock::new(|| RepeatedSequences::from_parameters(&RECIPE.task.parameters).unwrap());

/// The fraction of the certain answers that the model gives.
fn accuracy(decoder: &Decoder, rows: &[Vec<u32>], plan: &Plan) -> f64 {
    heads::accuracy(decoder, &*TASK, rows, plan)
}

fn all_heads() -> impl Iterator<Item = (usize, usize)> {
    let spec = MODEL.spec();
    let heads = spec.heads;
    (0..spec.layers).flat_map(move |layer| (0..heads).map(move |head| (layer, head)))
}

#[test]
fn repeats_fresh_sequences_of_every_trained_length() {
    for step in 0..12 {
        let batch = TASK.batch(FRESH, step, 32);
        let found = accuracy(&MODEL.decoder, &batch.tokens, &Plan::default());
        println!("{} tokens: accuracy {found:.4}", batch.tokens[0].len());
        assert!(found >= 0.99, "sequences of {}: {found}", batch.tokens[0].len());
    }
}

#[test]
fn one_head_of_each_layer_attends_as_the_mechanism_says() {
    for (step, n) in [(0, 10), (1, 20), (2, 30)] {
        let rows = TASK.sequences(FRESH, step, 32, n);
        let (previous, induction) = (previous_token(&MODEL.decoder, &rows, n), induction(&MODEL.decoder, &rows, n));
        for (layer, head) in all_heads() {
            let (previous, induction) = (previous[layer][head], induction[layer][head]);
            let text = format!("n {n}: head {layer}.{head} has previous-token {previous:.3}, induction {induction:.3}");
            println!("{text}");
            assert_eq!(previous >= 0.7, (layer, head) == PREVIOUS_TOKEN, "{text}");
            assert_eq!(induction >= 0.9, INDUCTION.contains(&(layer, head)), "{text}");
        }
    }
}

/// Late in a sequence nothing depends on the previous-token head, and it wanders.
#[test]
fn the_previous_token_head_is_one_over_the_whole_sequence_too() {
    for (step, n, least) in [(0, 10, 0.9), (1, 20, 0.7), (2, 30, 0.5)] {
        let rows = TASK.sequences(FRESH, step, 32, n);
        let scores = score(&MODEL.decoder, &rows, |query| (query >= 2).then(|| query - 1));
        println!("n {n}: previous-token over both copies {scores:.3?}");
        assert!(scores[0][PREVIOUS_TOKEN.1] >= least && scores[0][CONTROL.1] < 0.1, "n {n}: {scores:?}");
    }
}

#[test]
fn without_the_mechanism_it_fails_and_without_another_part_it_does_not() {
    let n = 20;
    let rows = TASK.sequences(FRESH, 3, 64, n);
    let first_copy = Index::Range { start: 0, end: Some(n as i64 + 1) };
    let second_copy = Index::Range { start: n as i64 + 1, end: None };
    let check = |what: &str, heads: &[(usize, usize)], positions: &Index, breaks: bool| {
        let found = accuracy(&MODEL.decoder, &rows, &without(heads, positions.clone()));
        println!("accuracy without {what} {heads:?}: {found:.4}");
        assert!(if breaks { found <= 0.2 } else { found >= 0.97 }, "accuracy without {what}: {found}");
    };
    check("the previous-token head", &[PREVIOUS_TOKEN], &Index::All, true);
    check("the other head of its layer", &[CONTROL], &Index::All, false);
    check("the previous-token head in the first copy, where it is read", &[PREVIOUS_TOKEN], &first_copy, true);
    check("the previous-token head in the second copy", &[PREVIOUS_TOKEN], &second_copy, false);
    check("both induction heads", &INDUCTION, &Index::All, true);
    check("both induction heads in the second copy, where they write", &INDUCTION, &second_copy, true);
    check("both induction heads in the first copy", &INDUCTION, &first_copy, false);
    for head in INDUCTION {
        check("one induction head, whose work the other does", &[head], &Index::All, false);
    }
    for layer in 0..2 {
        let plan = Plan::default().edit(Edit::new(format!("mlp_out.{layer}"), Change::Zero));
        let found = accuracy(&MODEL.decoder, &rows, &plan);
        assert!(found >= 0.97, "accuracy without the MLP of layer {layer}: {found}");
    }
}

#[test]
fn before_training_there_is_neither_head() {
    let (decoder, _) = initial_model(&RECIPE, TASK.vocabulary()).unwrap();
    assert_eq!(&decoder.spec, MODEL.spec());
    let n = 20;
    let rows = TASK.sequences(FRESH, 4, 32, n);
    println!("untrained: accuracy {:.4}", accuracy(&decoder, &rows, &Plan::default()));
    for score in previous_token(&decoder, &rows, n).into_iter().chain(induction(&decoder, &rows, n)).flatten() {
        assert!(score < 0.15, "{score}");
    }
    assert!(accuracy(&decoder, &rows, &Plan::default()) < 0.1);
}

#[test]
fn its_files_fit_each_other_and_stay_small() {
    let size = |file: &str| std::fs::metadata(directory().join(file)).unwrap().len();
    assert!(size("model.safetensors") < 2_000_000);
    let task = task(&RECIPE.task.name, &RECIPE.task.parameters).unwrap();
    let files = endoscope_organisms::tokenizer_files(&task.words(), RECIPE.model.context).unwrap();
    for (name, contents) in files {
        assert_eq!(std::fs::read(directory().join(&name)).unwrap(), contents, "{name}");
    }
    let labels: Vec<String> = (0..MODEL.spec().vocabulary as u32).map(|id| MODEL.label(id)).collect();
    assert_eq!(labels, task.words());
    let prompt = MODEL.tokenizer().unwrap().encode("ba ko mi ba ko", Default::default()).unwrap().ids;
    let outputs = MODEL.decoder.run(&Inputs::tokens(vec![prompt]).unwrap(), &Plan::default()).unwrap().outputs;
    let next = outputs.argmax(D::Minus1).unwrap().to_vec2::<u32>().unwrap()[0][5];
    assert_eq!(MODEL.label(next), "mi");
}
