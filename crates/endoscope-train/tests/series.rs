//! The series of checkpoints: resumed bit for bit, each tensor kept once, any step given back, damage found.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Tensor;
use common::{Pairs, files, recipe, train_to_the_end, train_until_killed};
use endoscope_models::Model;
use endoscope_train::{Checkpoints, EMA, EarlyStop, Error, Outcome, Recipe, Series, partial_directory, train};

fn with_series(checkpoints: Checkpoints) -> Recipe {
    let mut recipe = recipe();
    recipe.training.checkpoints = Some(checkpoints);
    recipe
}

fn steps(series: &Series) -> Vec<u64> {
    series.entries.iter().map(|entry| entry.step).collect()
}

fn numbers(tensors: &HashMap<String, Tensor>) -> Vec<(String, Vec<f32>)> {
    let flat = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.flatten_all().unwrap().to_vec1().unwrap());
    let mut all: Vec<_> = tensors.iter().map(flat).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn a_series_of_a_killed_run_is_that_of_the_uninterrupted_run_bit_for_bit() {
    for checkpoints in
        [Checkpoints::Every { every: 1 }, Checkpoints::Log { log: 8 }, Checkpoints::At(vec![3, 10, 11, 16, 19])]
    {
        let mut recipe = with_series(checkpoints);
        (recipe.training.ema, recipe.training.accumulate) = (Some(0.9), 2);
        let directory = tempfile::tempdir().unwrap();
        let (whole, killed) = (directory.path().join("whole"), directory.path().join("killed"));
        let (_, losses) = train_to_the_end(&recipe, &whole);
        train_until_killed(&recipe, &killed, 17);
        // What a kill in the middle of a write leaves: a file under its temporary name, a line that was cut off.
        let series = partial_directory(&killed).join("series");
        fs::write(series.join("tensors/.step-000018.safetensors.partial"), b"half").unwrap();
        let mut index = fs::read(series.join("index.jsonl")).unwrap();
        index.extend(b"{\"step\":18,\"loss\":0.");
        fs::write(series.join("index.jsonl"), index).unwrap();
        train_until_killed(&recipe, &killed, 23);
        assert_eq!(train_to_the_end(&recipe, &killed), (21, losses.clone()));
        assert!(files(&whole) == files(&killed), "every file is the same");
        let series = Series::open(&whole).unwrap();
        assert_eq!(steps(&series), recipe.training.checkpoints.unwrap().steps(30).into_iter().collect::<Vec<_>>());
        for entry in &series.entries {
            assert_eq!(entry.loss, entry.step.checked_sub(1).map(|before| losses[before as usize]));
        }
    }
}

#[test]
fn every_step_comes_back_as_the_checkpoint_that_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    train_to_the_end(&with_series(Checkpoints::Every { every: 5 }), &out);
    let series = Series::open(&out).unwrap();
    for step in [0, 10, 20] {
        let model = directory.path().join(step.to_string());
        series.export(step, &model).unwrap();
        for file in ["model.safetensors", "config.json"] {
            let checkpoint = out.join(format!("checkpoints/step-{step:06}")).join(file);
            assert!(fs::read(model.join(file)).unwrap() == fs::read(checkpoint).unwrap(), "{step}: {file}");
        }
        Model::open(&model).unwrap();
        assert!(matches!(series.export(step, &model), Err(Error::OutputExists { .. })));
    }
    let last = directory.path().join("last");
    series.export(30, &last).unwrap();
    assert!(fs::read(last.join("model.safetensors")).unwrap() == fs::read(out.join("model.safetensors")).unwrap());
    let error = series.export(12, &directory.path().join("12")).unwrap_err().to_string();
    assert!(error.contains("no step 12") && error.contains("nearest is 10"), "{error}");
    assert!(!directory.path().join("12").exists());
    assert!(Series::open(directory.path()).is_err_and(|error| error.to_string().contains("training.checkpoints")));
}

/// Without a learning rate nothing changes: all steps cost what one costs.
#[test]
fn what_did_not_change_is_kept_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut recipe = with_series(Checkpoints::Every { every: 1 });
    let (moving, still) = (directory.path().join("moving"), directory.path().join("still"));
    train_to_the_end(&recipe, &moving);
    recipe.training.learning_rate = f64::MIN_POSITIVE;
    train_to_the_end(&recipe, &still);
    let stored = |out: &Path| files(&out.join("series/tensors"));
    assert_eq!(stored(&moving).len(), 31);
    assert_eq!(stored(&still).len(), 1);
    let series = Series::open(&still).unwrap();
    assert_eq!(series.entries.len(), 31);
    assert!(series.entries.iter().all(|entry| entry.hash == series.entries[0].hash));
    assert_eq!(numbers(&series.tensors(0).unwrap()), numbers(&series.tensors(30).unwrap()));
    let series = Series::open(&moving).unwrap();
    assert_ne!(series.entries[0].hash, series.entries[1].hash);
    // The two norms of ones are equal at the start, and kept once.
    let hashes: std::collections::BTreeSet<&String> = series.entries[0].tensors.values().collect();
    assert!(hashes.len() < series.entries[0].tensors.len());
}

#[test]
fn a_damaged_series_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    train_to_the_end(&with_series(Checkpoints::Every { every: 10 }), &out);
    let path = out.join("series/tensors/step-000010.safetensors");
    let kept = fs::read(&path).unwrap();
    let series = Series::open(&out).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = series.tensors(10).unwrap_err();
        assert!(matches!(&error, Error::Series { path: named, .. } if *named == path), "{error}");
        assert!(error.to_string().contains(what), "{error}");
        series.tensors(20).unwrap();
    };
    let mut changed = kept.clone();
    *changed.last_mut().unwrap() ^= 1;
    refused(&changed, "damaged");
    refused(&kept[..kept.len() / 2], "cannot be used");
    refused(b"", "cannot be used");
    let index = out.join("series/index.jsonl");
    let lines = fs::read_to_string(&index).unwrap();
    let first = lines.lines().next().unwrap();
    for (text, what) in [
        (String::new(), "empty"),
        (format!("{{\n{lines}"), "line 1"),
        (format!("{lines}{first}\n"), "does not come after"),
    ] {
        fs::write(&index, text).unwrap();
        assert!(Series::open(&out).unwrap_err().to_string().contains(what), "{what}");
    }
}

#[test]
fn a_run_does_not_go_on_from_a_step_that_its_series_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let recipe = with_series(Checkpoints::Every { every: 4 });
    train_until_killed(&recipe, &out, 15);
    let index = partial_directory(&out).join("series/index.jsonl");
    let lines = fs::read_to_string(&index).unwrap();
    let kept: Vec<&str> = lines.lines().filter(|line| !line.contains("\"step\":8,")).collect();
    fs::write(&index, kept.join("\n") + "\n").unwrap();
    let error = train(&recipe, &Pairs, &[], &out, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("lacks step 8"), "{error}");
    fs::write(&index, lines).unwrap();
    assert_eq!(train_to_the_end(&recipe, &out).0, 11);
}

#[test]
fn a_run_that_is_good_enough_ends_and_its_last_step_is_in_the_series() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, killed) = (directory.path().join("whole"), directory.path().join("killed"));
    let mut recipe = with_series(Checkpoints::At(vec![10]));
    (recipe.training.steps, recipe.training.learning_rate) = (400, 0.002);
    recipe.training.early_stop = Some(EarlyStop { accuracy: 0.9, updates: 7 });
    let (_, losses) = train_to_the_end(&recipe, &whole);
    let end = losses.len() as u64;
    assert!((11..300).contains(&end), "{end}: {losses:?}");
    assert_eq!(steps(&Series::open(&whole).unwrap()), [0, 10, end]);
    train_until_killed(&recipe, &killed, end - 3);
    assert_eq!(train_to_the_end(&recipe, &killed).1, losses);
    assert!(files(&whole) == files(&killed), "every file is the same");
    // Without the target it is the same run, and goes on.
    recipe.training.early_stop = None;
    let (_, longer) = train_to_the_end(&recipe, &directory.path().join("longer"));
    assert_eq!((longer.len(), &longer[..losses.len()]), (400, &losses[..]));
}

#[test]
fn the_mean_of_the_weights_is_a_model_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let mut recipe = with_series(Checkpoints::Every { every: 1 });
    let decay = 0.8;
    recipe.training.ema = Some(decay);
    let (_, losses) = train_to_the_end(&recipe, &out);
    let series = Series::open(&out).unwrap();
    let mut means = numbers(&series.tensors(0).unwrap());
    for step in 1..=30 {
        for ((_, means), (_, weights)) in means.iter_mut().zip(numbers(&series.tensors(step).unwrap())) {
            for (mean, weight) in means.iter_mut().zip(weights) {
                *mean = (decay * f64::from(*mean) + (1. - decay) * f64::from(weight)) as f32;
            }
        }
    }
    let path = out.join(EMA).join("model.safetensors");
    let stored = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    assert_eq!(numbers(&stored), means);
    Model::open(out.join(EMA)).unwrap();
    Model::open(out.join("checkpoints/step-000010").join(EMA)).unwrap();
    // It is only watched: training does not change.
    recipe.training.ema = None;
    let other = directory.path().join("other");
    assert_eq!(train_to_the_end(&recipe, &other).1, losses);
    assert!(!other.join(EMA).exists());
    let Outcome::Finished { .. } =
        train(&recipe, &Pairs, &[], &directory.path().join("third"), &mut |_| ControlFlow::Continue(())).unwrap()
    else {
        panic!("stopped")
    };
}
