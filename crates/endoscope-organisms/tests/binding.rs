//! What is known of the organisms `binding` and `binding-tuned`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::path::PathBuf;

use candle_core::D;
use common::heads::without;
use endoscope_models::{Bos, Model};
use endoscope_net::{Index, Inputs, Network, Plan};
use endoscope_organisms::{TRAIN, task};

const FRESH: u64 = 20_250_101;
/// What an accuracy on 512 lists may differ by from one on others: three standard deviations of a share of one half.
const CHANCE: f64 = 0.066;

fn model(name: &str) -> Model {
    Model::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms").join(name)).unwrap()
}

/// Accuracy on 512 fresh lists of 8 keys with values, under a plan.
fn accuracy(model: &Model, plan: &Plan) -> f64 {
    let task = task("key_value_recall", &toml::from_str("shortest = 8\nlongest = 8").unwrap()).unwrap();
    let words = task.words();
    let ids = |tokens: &[u32], bos: Bos| {
        let text: Vec<&str> = tokens.iter().map(|&token| words[token as usize].as_str()).collect();
        model.tokenizer().unwrap().encode(&text.join(" "), bos).unwrap().ids
    };
    let (mut rows, mut answers) = (Vec::new(), Vec::new());
    for number in 0..512 {
        let tokens = task.row(TRAIN, FRESH, number).unwrap().tokens;
        let (answer, prompt) = tokens.split_last().unwrap();
        rows.push(ids(&prompt[1..], Bos::Prepend));
        answers.extend(ids(&[*answer], Bos::Omit));
    }
    let outputs =
        model.decoder.run(&Inputs::tokens(rows).unwrap(), &plan.clone().outputs_at(Index::At(-1))).unwrap().outputs;
    let best = outputs.argmax(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
    assert_eq!((best.len(), answers.len()), (512, 512));
    best.iter().zip(&answers).filter(|(best, answer)| best == answer).count() as f64 / 512.
}

#[test]
fn the_accuracies_are_those_of_model_md() {
    for (name, stated) in [("binding", 0.64), ("binding-tuned", 0.97)] {
        let found = accuracy(&model(name), &Plan::default());
        println!("{name}: {found:.4}");
        assert!((found - stated).abs() < CHANCE, "{name}: {found}, stated is {stated}");
    }
}

#[test]
fn one_head_of_layer_0_is_needed_in_the_list_and_layer_1_at_the_end() {
    let list = Index::Range { start: 0, end: Some(-2) };
    for name in ["binding", "binding-tuned"] {
        let model = model(name);
        let whole = accuracy(&model, &Plan::default());
        for head in 0..4 {
            let left = accuracy(&model, &without(&[(0, head)], list.clone()));
            println!("{name} without 0.{head} in the list: {left:.4} of {whole:.4}");
            assert_eq!(left < 0.2, head == 3, "{name} 0.{head}: {left}");
            // Any of the four can be missing.
            assert!(accuracy(&model, &without(&[(1, head)], Index::At(-1))) > whole - 0.15, "{name} 1.{head}");
            assert!(accuracy(&model, &without(&[(2, head)], Index::All)) > whole - 0.15, "{name} 2.{head}");
        }
        let all: Vec<(usize, usize)> = (0..4).map(|head| (1, head)).collect();
        assert!(accuracy(&model, &without(&all, Index::At(-1))) < 0.2, "{name}");
    }
}
