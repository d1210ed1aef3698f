//! Every family is trained, from its own configuration: with torch's gradients, and so that what is saved is what was
//! trained.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use common::{Pairs, files, recipe, train_to_the_end, train_until_killed};
use endoscope_models::config::Config;
use endoscope_models::{Decoder, Family, Model};
use endoscope_net::{Inputs, Network, Plan};
use endoscope_train::{
    Batch, Batches, LossOn, ModelRecipe, Parameters, Recipe, Shape, TrainingRecipe, cross_entropy, initial_model, slope,
};
use serde_json::{Map, Value};

/// Of the gradient's length: both sides are f32; the largest of 1689 tensors was 3.1e-6.
const RELATIVE: f64 = 2e-5;
/// Where a gradient is zero but for rounding, as that of a bias of all keys (up to 7.6e-8 here).
const NOISE: f64 = 5e-7;
/// A model that is trained and one that is opened attend by different kernels.
const KERNELS: f32 = 1e-5;

/// The folders of the tiny models of every family.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name)
}

fn json(path: &Path) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn names() -> Vec<String> {
    json(&golden("notes.json")).keys().cloned().collect()
}

/// The tensors of a model in one file or several.
fn tensors(folder: &Path) -> HashMap<String, Tensor> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_model = |path: &PathBuf| {
        let name = common::name_of(path);
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    paths.filter(of_model).flat_map(|path| candle_core::safetensors::load(path, &Device::Cpu).unwrap()).collect()
}

#[test]
fn gradients_are_torchs_in_every_family() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/family_gradients.json");
    let goldens = json(&path);
    assert_eq!(goldens.keys().cloned().collect::<Vec<_>>(), names());
    for (name, expected) in &goldens {
        let config = Config::read(&golden(name).join("config.json")).unwrap();
        let family = Family::of(&config).unwrap();
        let spec = family.spec(config).unwrap();
        let mut parameters = Parameters::new(family, &spec, 1, 0.02);
        family.weights(&spec, &mut parameters).unwrap();
        let stored = tensors(&golden(name));
        for (tensor, variable) in &parameters.variables {
            variable.set(&stored[tensor].to_dtype(DType::F32).unwrap()).unwrap();
        }
        let weights = family.weights(&spec, &mut parameters).unwrap();
        let decoder = Decoder::new(spec, weights).unwrap();
        let tokens: Vec<Vec<u32>> = serde_json::from_value(expected["tokens"].clone()).unwrap();
        let mask = tokens.iter().map(|row| vec![true; row.len()]).collect();
        let training = TrainingRecipe { loss: LossOn::Every, ..TrainingRecipe::default() };
        let found = slope(&decoder, &parameters.variables, &Batch { tokens, mask }, &training).unwrap();
        let loss = expected["loss"].as_f64().unwrap();
        assert!((f64::from(found.loss) - loss).abs() < 1e-5, "{name}: the loss is {}, by torch {loss}", found.loss);
        let gradients = expected["gradients"].as_object().unwrap();
        assert!(gradients.keys().eq(parameters.variables.keys()), "{name}: other tensors than {:?}", gradients.keys());
        for (tensor, variable) in &parameters.variables {
            let [length, along] = [0, 1].map(|at| gradients[tensor][at].as_f64().unwrap());
            let gradient = found.gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} {tensor}: none"));
            let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
            let gradient: Vec<f64> = gradient.into_iter().map(f64::from).collect();
            let own_length = gradient.iter().map(|x| x * x).sum::<f64>().sqrt();
            let own_along: f64 = gradient.iter().zip(1..).map(|(x, at)| x * f64::from(at).sin()).sum();
            let tolerance = RELATIVE * length + NOISE;
            for (what, own, expected) in [("long", own_length, length), ("along the sines", own_along, along)] {
                let difference = (own - expected).abs();
                assert!(
                    difference < tolerance,
                    "{name} {tensor}: {own} {what}, by torch {expected} (differs by {difference:e} of {length:e})"
                );
            }
        }
    }
}

/// The configuration of a tiny model as a recipe says it.
fn recipe_of(name: &str) -> Recipe {
    let keys = json(&golden(name).join("config.json"));
    let family = Family::named(keys["model_type"].as_str().unwrap()).unwrap();
    let following = [
        "architectures",
        "model_type",
        "vocab_size",
        family.context_key(),
        "dtype",
        "torch_dtype",
        "initializer_range",
        "init_std",
    ];
    let own = keys.iter().filter(|(key, _)| !following.contains(&key.as_str()));
    let config = own.map(|(key, value)| (key.clone(), toml_of(value))).collect();
    let mut recipe = recipe();
    recipe.model = ModelRecipe { family, context: 8, shape: Shape::Config { config } };
    (recipe.training.steps, recipe.training.warmup_steps, recipe.training.checkpoint_every) = (16, 0, 12);
    // Of narrow models; 0.02 is for wide ones.
    recipe.training.init_std = 0.1;
    let recipe = Recipe::parse("recipe.toml", &recipe.to_toml().unwrap()).unwrap();
    assert_eq!(recipe.model.config(12).unwrap()["architectures"], keys["architectures"]);
    recipe
}

fn toml_of(value: &Value) -> toml::Value {
    match value {
        Value::Null => "null".into(),
        Value::Bool(switch) => (*switch).into(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64().unwrap().into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(values) => toml::Value::Array(values.iter().map(toml_of).collect()),
        Value::Object(keys) => {
            toml::Value::Table(keys.iter().map(|(key, value)| (key.clone(), toml_of(value))).collect())
        }
    }
}

fn loss_of(model: &Model, batch: &Batch) -> f32 {
    let logits = model.decoder.run(&Inputs::tokens(batch.tokens.clone()).unwrap(), &Plan::default()).unwrap().outputs;
    cross_entropy(&logits, batch).unwrap().to_scalar().unwrap()
}

#[test]
fn every_family_learns_and_is_saved_as_it_was_trained() {
    let mut families = BTreeSet::new();
    for name in names() {
        let recipe = recipe_of(&name);
        families.insert(recipe.model.family.model_type());
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let (_, losses) = train_to_the_end(&recipe, &out);
        let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
        let (first, last) = (mean(&losses[..2]), mean(&losses[14..]));
        assert!(last < first - 0.2, "{name}: {losses:?}");
        // The loss of an update is that of the weights that the updates before it have left, in every tensor.
        let halfway = Model::open(out.join("checkpoints/step-000012")).unwrap();
        assert_eq!(halfway.spec(), &recipe.model.spec(12).unwrap());
        let again = loss_of(&halfway, &Pairs.batch(recipe.training.seed, 12, recipe.training.batch));
        assert!((again - losses[12]).abs() < KERNELS * losses[12], "{name}: {again}, in training {}", losses[12]);
        let before = tensors(&out.join("checkpoints/step-000000"));
        for (tensor, after) in tensors(&out) {
            let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_ne!(numbers(&before[&tensor]), numbers(&after), "{name}: {tensor} was not trained");
        }
    }
    assert_eq!(families.len(), Family::ALL.len());
}

#[test]
fn a_resumed_run_of_a_family_is_the_uninterrupted_run_bit_for_bit() {
    for name in ["gemma2-odd", "mixtral-odd"] {
        let recipe = recipe_of(name);
        let directory = tempfile::tempdir().unwrap();
        let (whole, killed) = (directory.path().join("whole"), directory.path().join("killed"));
        let (_, losses) = train_to_the_end(&recipe, &whole);
        assert_eq!(train_until_killed(&recipe, &killed, 14), losses[..14]);
        assert_eq!(train_to_the_end(&recipe, &killed), (13, losses));
        assert!(files(&whole) == files(&killed), "{name}");
    }
}

#[test]
fn experts_that_no_token_was_sent_to_have_a_gradient_of_zero() {
    let mut recipe = recipe_of("mixtral-odd");
    let Shape::Config { config } = &mut recipe.model.shape else { panic!("{recipe:?}") };
    config.insert("num_local_experts".into(), 40.into());
    let (decoder, parameters) = initial_model(&recipe, 12).unwrap();
    let batch = Pairs.batch(1, 0, 2);
    let mut of_parts = Vec::new();
    for accumulate in [1, 2] {
        recipe.training.accumulate = accumulate;
        let slope = slope(&decoder, &parameters.variables, &batch, &recipe.training).unwrap();
        let length = |(_, variable): (&String, &Var)| {
            let gradient = slope.gradients.get(variable.as_tensor()).unwrap();
            assert_eq!(gradient.dims(), variable.dims());
            gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
        };
        let experts = parameters.variables.iter().filter(|(name, _)| name.contains(".experts."));
        of_parts.push(experts.map(length).collect::<Vec<f32>>());
    }
    // 16 positions choose 2 of 40 each, in 2 layers; an expert has 3 matrices.
    let idle = of_parts[0].iter().filter(|&&length| length == 0.).count();
    assert!((3 * 2 * 8..of_parts[0].len()).contains(&idle), "{idle} of {}", of_parts[0].len());
    assert!(of_parts[0].iter().zip(&of_parts[1]).all(|(whole, parts)| (whole - parts).abs() < 1e-6), "{of_parts:?}");
    let directory = tempfile::tempdir().unwrap();
    recipe.training.batch = 2;
    train_to_the_end(&recipe, &directory.path().join("out"));
}
