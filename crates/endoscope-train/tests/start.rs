//! Fine-tuning: a training that starts from the weights of another model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use common::{Pairs, recipe, short};
use endoscope_models::Family;
use endoscope_train::{Error, PositionsRecipe, Recipe, Series, Start, partial_directory, train};
use sha2::{Digest, Sha256};

fn trained(recipe: &Recipe, companions: &[(String, Vec<u8>)], out: &Path) -> Result<(), Error> {
    train(recipe, &Pairs, companions, out, &mut |_| ControlFlow::Continue(())).map(|_| ())
}

fn sha256(directory: &Path) -> String {
    let hash = Sha256::digest(fs::read(directory.join("model.safetensors")).unwrap());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from(base: &Path) -> Recipe {
    let mut tuned = recipe();
    tuned.training.start = Some(Start::new(base, sha256(base)));
    (tuned.training.steps, tuned.training.seed) = (7, 8);
    tuned.training.checkpoints = Some(endoscope_train::Checkpoints::Every { every: 7 });
    tuned
}

fn numbers(directory: &Path) -> Vec<(String, Vec<f32>)> {
    let device = candle_core::Device::Cpu;
    let tensors = candle_core::safetensors::load(directory.join("model.safetensors"), &device).unwrap();
    let flat = |tensor: candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    let mut numbers: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name, flat(tensor))).collect();
    numbers.sort_by(|a, b| a.0.cmp(&b.0));
    numbers
}

#[test]
fn a_training_starts_from_the_weights_that_its_recipe_names() {
    let directory = tempfile::tempdir().unwrap();
    for family in [Family::Llama, Family::Gpt2, Family::SmolLm3] {
        let (base, out) = (directory.path().join("base"), directory.path().join("tuned"));
        let shaped = |mut recipe: Recipe| {
            recipe.model.family = family;
            short(&mut recipe).kv_heads = None;
            short(&mut recipe).positions = (family == Family::SmolLm3).then_some(PositionsRecipe::None);
            recipe
        };
        trained(&shaped(recipe()), &[], &base).unwrap();
        trained(&shaped(from(&base)), &[], &out).unwrap();
        let series = Series::open(&out).unwrap();
        let exported = directory.path().join("step");
        fs::create_dir(&exported).unwrap();
        candle_core::safetensors::save(&series.tensors(0).unwrap(), exported.join("model.safetensors")).unwrap();
        assert_eq!(numbers(&exported), numbers(&base), "{family:?}");
        assert_ne!(numbers(&out), numbers(&base));
        for path in [base, out, exported] {
            fs::remove_dir_all(path).unwrap();
        }
    }
}

#[test]
fn the_model_is_sought_beside_the_recipe() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base");
    trained(&recipe(), &[], &base).unwrap();
    let mut tuned = from(&base);
    tuned.training.start = Some(Start::new("../base", sha256(&base)));
    let folder = directory.path().join("tuned");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("recipe.toml");
    fs::write(&path, tuned.to_toml().unwrap()).unwrap();
    let (read, out) = (Recipe::read(&path).unwrap(), directory.path().join("out"));
    trained(&read, &[], &out).unwrap();
    assert_eq!(fs::read(out.join("recipe.toml")).unwrap(), fs::read(&path).unwrap(), "as it was written");
}

#[test]
fn what_does_not_fit_is_said_and_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let (base, out) = (directory.path().join("base"), directory.path().join("out"));
    // A tokenizer of these words.
    let words = |text: &str| {
        let ids: Vec<String> = text.split(' ').enumerate().map(|(id, word)| format!("\"{word}\": {id}")).collect();
        let model = format!("{{\"type\": \"WordLevel\", \"unk_token\": \"a\", \"vocab\": {{{}}}}}", ids.join(", "));
        let text = format!(
            "{{\"version\": \"1.0\", \"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": null, \
             \"post_processor\": null, \"decoder\": null, \"truncation\": null, \"padding\": null, \"model\": {model}}}"
        );
        vec![("tokenizer.json".to_string(), text.into_bytes())]
    };
    trained(&recipe(), &words("a b c"), &base).unwrap();
    let with = |change: &dyn Fn(&mut Recipe)| {
        let mut tuned = from(&base);
        change(&mut tuned);
        tuned
    };
    let check = |tuned: &Recipe, text: &str, part: &str| {
        let error = trained(tuned, &words(text), &out).unwrap_err();
        assert!(matches!(error, Error::Start { .. }), "{error:?}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(!partial_directory(&out).exists());
    };
    let zeros = "0".repeat(64);
    check(&with(&|tuned| tuned.training.start = Some(Start::new(&base, &*zeros))), "a b c", &sha256(&base));
    let nowhere = directory.path().join("nowhere");
    check(&with(&|tuned| tuned.training.start = Some(Start::new(&nowhere, &*zeros))), "a b c", "model.safetensors: ");
    check(&with(&|tuned| tuned.model.family = Family::SmolLm3), "a b c", "of the family llama, the recipe of smollm3");
    check(&with(&|tuned| short(tuned).layers = 3), "a b c", "its `layers` is 2, that of the recipe and its task 3");
    check(&with(&|tuned| short(tuned).rotary_base = Some(50.)), "a b c", "`positions`");
    check(&with(&|_| ()), "a b d", "its tokens are other words");
    trained(&from(&base), &words("a b c"), &out).unwrap();
}
