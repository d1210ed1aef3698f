//! Heads in the weights, and processed weights, against TransformerLens (`tools/goldens/make.py weights`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::cell::Cell;

use candle_core::Tensor;
use common::*;
use endoscope_models::circuits::{Channel, Composition, PairChannels};
use endoscope_models::factored::Eigenvalue;
use endoscope_models::process::{Process, apply};
use endoscope_models::views::{WeightName, WeightView, for_each_query_head};
use endoscope_models::{Model, Norm};
use endoscope_net::{Inputs, Network, Plan};
use serde_json::Value;

/// Two computations in f64 of numbers that are read as f32, written with 7 digits.
const TOLERANCE: f64 = 1e-5;
/// Logits in f32.
const LOGITS: f32 = 1e-4;

fn close(ours: f64, theirs: f64) -> bool {
    (ours - theirs).abs() <= TOLERANCE * (1. + theirs.abs())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn flat(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

/// Each of the golden models with its part of the golden file.
fn each_model(check: impl Fn(&str, Model, &Value)) {
    let golden: Value = serde_json::from_slice(&std::fs::read(goldens().join("weights.json")).unwrap()).unwrap();
    for (name, golden) in golden["models"].as_object().unwrap() {
        let directory = match goldens().join(name).join("config.json").is_file() {
            true => Some(goldens().join(name)),
            false => shared_model(name),
        };
        if let Some(directory) = directory {
            check(name, Model::open(directory).unwrap(), golden);
        }
    }
}

/// The same numbers in any order: pairs of one magnitude may come either way.
fn same_set(ours: &[Eigenvalue], theirs: &Value) -> bool {
    let mut left: Vec<Vec<f64>> = theirs.as_array().unwrap().iter().map(numbers).collect();
    ours.len() == left.len()
        && ours.iter().all(|value| {
            let at = left.iter().position(|their| close(value.real, their[0]) && close(value.imaginary, their[1]));
            at.map(|at| left.swap_remove(at)).is_some()
        })
}

#[test]
fn heads_have_the_singular_values_and_eigenvalues_of_transformer_lens() {
    each_model(|name, model, golden| {
        let heads = model.decoder.heads().unwrap();
        for (layer, heads) in heads.iter().enumerate() {
            for (head, found) in heads.iter().enumerate() {
                for (key, ours, norm) in [
                    ("qk_singular_values", &found.qk_singular_values, found.qk_norm),
                    ("ov_singular_values", &found.ov_singular_values, found.ov_norm),
                ] {
                    let theirs = numbers(&golden[key][layer][head]);
                    assert_eq!(ours.len(), theirs.len());
                    let same = ours.iter().zip(&theirs).all(|(&ours, &theirs)| close(ours, theirs));
                    assert!(same, "{name} {layer}.{head} {key}: {ours:?} and not {theirs:?}");
                    assert!(close(norm, theirs.iter().map(|value| value * value).sum::<f64>().sqrt()));
                }
                let theirs = &golden["ov_eigenvalues"][layer][head];
                assert!(same_set(&found.ov_eigenvalues, theirs), "{name} {layer}.{head}: {theirs}");
                assert!(found.copying.abs() <= 1.);
            }
        }
        assert_eq!(heads.len(), golden["qk_singular_values"].as_array().unwrap().len());
    });
}

#[test]
fn composition_scores_are_those_of_transformer_lens() {
    each_model(|name, model, golden| {
        for (mode, kind) in [("Q", Composition::Query), ("K", Composition::Key), ("V", Composition::Value)] {
            let ours: Vec<f32> =
                model.decoder.composition_scores(kind).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let theirs = flat(&golden["composition"][mode]);
            assert_eq!(ours.len(), theirs.len());
            let apart = ours.iter().zip(&theirs).map(|(&ours, theirs)| (f64::from(ours) - theirs).abs());
            let apart = apart.fold(0., f64::max);
            println!("{name} {mode}: {apart:e}");
            assert!(apart < 1e-5, "{name} {mode}: {apart:e}");
            assert!(theirs.iter().any(|&score| score > 0.05));
        }
    });
}

#[test]
fn channels_are_those_of_numpy() {
    let golden: Value = serde_json::from_slice(&std::fs::read(goldens().join("channels.json")).unwrap()).unwrap();
    let model = Model::open(goldens().join(golden["model"].as_str().unwrap())).unwrap();
    for (mode, kind) in [("Q", Composition::Query), ("K", Composition::Key), ("V", Composition::Value)] {
        let found = model.decoder.channels(kind).unwrap();
        let theirs = golden[mode].as_array().unwrap();
        assert_eq!(found.len(), theirs.len());
        let whole = model.decoder.composition_scores(kind).unwrap();
        for (found, theirs) in found.iter().zip(theirs) {
            let place = |(layer, head): (usize, usize)| vec![layer as f64, head as f64];
            assert_eq!((place(found.from), place(found.to)), (numbers(&theirs["from"]), numbers(&theirs["to"])));
            assert!(close(found.score, theirs["score"].as_f64().unwrap()), "{mode} {found:?} {theirs}");
            let ours = whole.get(found.from.0).unwrap().get(found.from.1).unwrap().get(found.to.0).unwrap();
            let ours = ours.get(found.to.1).unwrap().to_scalar::<f32>().unwrap();
            assert!(close(found.score, f64::from(ours)));
            let same = |key: &str, of: fn(&Channel) -> f64| {
                let ours: Vec<f64> = found.channels.iter().map(of).collect();
                let theirs = numbers(&theirs[key]);
                assert_eq!(ours.len(), theirs.len());
                let apart = ours.iter().zip(&theirs).all(|(&ours, &theirs)| close(ours, theirs));
                assert!(apart, "{mode} {:?} -> {:?} {key}: {ours:?} and not {theirs:?}", found.from, found.to);
            };
            same("singular_values", |channel| channel.singular_value);
            same("scores", |channel| channel.score);
            same("shares", |channel| channel.share);
        }
    }
}

#[test]
fn a_pair_that_talks_over_one_channel_is_found_and_random_pairs_are_not() {
    let strongest = |model: &Model| {
        let pairs = model.decoder.channels(Composition::Query).unwrap();
        let of = |pair: PairChannels| (pair.from, pair.to, pair.score, pair.strongest()[0]);
        pairs.into_iter().map(of).max_by(|a, b| a.3.score.total_cmp(&b.3.score)).unwrap()
    };
    let tiny = goldens().join("gpt2-odd");
    let random = Model::open(&tiny).unwrap();
    let (.., best) = strongest(&random);
    println!("the strongest of random weights: {best:?}");
    assert!(best.score < 0.75);
    // The queries of head 2.1 are made to read nothing but what channel 2 of head 0.3 writes.
    let (width, d_model) = (random.spec().d_head, random.spec().d_model);
    let direction = random.decoder.ov(0).unwrap()[3].svd().unwrap().right.narrow(1, 2, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(tiny.join("config.json"), folder.path().join("config.json")).unwrap();
    let mut weights = load(&tiny.join("model.safetensors"));
    let (name, all) = weights.iter().find(|(name, _)| name.ends_with("h.2.attn.c_attn.weight")).unwrap();
    let before = all.narrow(1, 0, width).unwrap();
    let after = all.narrow(1, 2 * width, 3 * d_model - 2 * width).unwrap();
    let query = direction.broadcast_mul(&Tensor::new(&[[1f32, -2., 0.5, 1.]], all.device()).unwrap()).unwrap();
    let (name, made) = (name.clone(), Tensor::cat(&[before, query, after], 1).unwrap());
    weights.insert(name, made);
    candle_core::safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
    let (from, to, whole, best) = strongest(&Model::open(folder.path()).unwrap());
    assert_eq!((from, to, best.number), ((0, 3), (2, 1), 2));
    assert!(best.score > 0.999 && best.share > 0.999, "{best:?}");
    // By the score of the whole head it stands out far less.
    println!("the whole pair scores {whole}");
    assert!(whole < 0.6);
}

#[test]
fn processed_weights_are_those_of_transformer_lens() {
    let compared = Cell::new(0);
    each_model(|name, mut model, golden| {
        let Some(golden) = golden.get("processed") else { return };
        compared.set(compared.get() + 1);
        let neutral: Vec<Process> =
            Process::ALL.iter().copied().filter(|process| process.problem(model.spec()).is_none()).collect();
        assert_eq!(neutral.len() == Process::ALL.len(), model.spec().norm == Norm::LayerNorm);
        apply(&mut model.decoder, &neutral).unwrap();
        let tokens: Vec<u32> = numbers(&golden["tokens"]).into_iter().map(|id| id as u32).collect();
        let length = tokens.len();
        let run = model.decoder.run(&Inputs::tokens(vec![tokens]).unwrap(), &Plan::default()).unwrap();
        let logits = run.outputs.squeeze(0).unwrap().get(length - 1).unwrap();
        let theirs: Vec<f32> = numbers(&golden["logits"]).into_iter().map(|logit| logit as f32).collect();
        let theirs = Tensor::new(theirs, logits.device()).unwrap();
        let apart = difference(&logits, &theirs);
        println!("{name}: logits differ by {apart:e}");
        assert!(apart < LOGITS, "{name}: {apart:e}");
        let norm = |weight: Tensor| -> f64 {
            f64::from(weight.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
        };
        for (view, theirs) in golden["norms"].as_object().unwrap() {
            let view = WeightView::parse(view).unwrap();
            let layers = if view.in_layers() { (0..model.spec().layers).map(Some).collect() } else { vec![None] };
            for (layer, theirs) in layers.into_iter().zip(flat(theirs)) {
                let mut weight = model.decoder.weight(WeightName { view, layer }).unwrap();
                // TransformerLens has keys and values once for each query head.
                if [WeightView::Key, WeightView::KeyBias, WeightView::Value, WeightView::ValueBias].contains(&view) {
                    weight = for_each_query_head(&weight, 0, model.spec().heads).unwrap();
                }
                let ours = norm(weight);
                assert!((ours - theirs).abs() <= 1e-4 * (1. + theirs), "{name} {view} {layer:?}: {ours} not {theirs}");
            }
        }
    });
    assert!(compared.get() > 0);
}
