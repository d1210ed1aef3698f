//! Training from a recipe alone, and what the registry refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::ops::ControlFlow;

use endoscope_models::Model;
use endoscope_organisms::{Error, SPECIAL, TASKS, organisms, task, train, write_organism};
use endoscope_train::{Outcome, Recipe, partial_directory};

const SMALL: &str = r#"
    [model]
    family = "llama"
    context = 16
    d_model = 32
    layers = 2
    heads = 2
    d_mlp = 16
    [task]
    name = "repeated_sequences"
    words = 8
    shortest = 3
    longest = 6
    [training]
    steps = 250
    batch = 16
    seed = 1
    learning_rate = 0.005
    warmup_steps = 20
"#;

#[test]
fn a_small_model_learns_more_than_the_frequencies() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("small");
    let recipe = Recipe::parse("small.toml", SMALL).unwrap();
    let outcome = train(&recipe, &out, &mut |_| ControlFlow::Continue(())).unwrap();
    let Outcome::Finished { losses, .. } = outcome else { panic!("stopped") };
    let uniform = (8f32).ln();
    let last = losses[losses.len() - 20..].iter().sum::<f32>() / 20.;
    assert!((losses[0] - (10f32).ln()).abs() < 0.1, "before training every token is as likely: {}", losses[0]);
    assert!(last < uniform - 0.5, "{last}, uniform {uniform}");

    let model = Model::open(&out).unwrap();
    let ids = model.tokenizer().unwrap().encode("ba da ko ba", Default::default()).unwrap().ids;
    assert_eq!(ids, [0, 2, 3, 1, 2], "<bos>, words, and a word that is not among the eight");
    assert_eq!((model.label(0), model.label(3)), (SPECIAL[0].to_string(), "da".to_string()));
    assert_eq!(model.tokenizer().unwrap().decode(&[0, 2, 3]).unwrap(), "ba da");
    Model::open(out.join("checkpoints/step-000000")).unwrap().tokenizer().unwrap();
    assert_eq!(Recipe::read(out.join("recipe.toml")).unwrap(), recipe);
    assert!(out.join("training.json").is_file());
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let refuse = |from: &str, to: &str| {
        let recipe = Recipe::parse("small.toml", &SMALL.replace(from, to)).unwrap();
        let error = train(&recipe, &out, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(!out.exists() && !partial_directory(&out).exists());
        error
    };
    assert!(matches!(refuse("context = 16", "context = 12"), Error::Context { length: 13, context: 12, .. }));
    assert!(matches!(refuse("repeated_sequences", "repeated_sequence"), Error::UnknownTask { .. }));
    assert!(matches!(refuse("words = 8", "word = 8"), Error::Parameters { .. }));
    assert!(task("repeated_sequences", &toml::Table::new()).is_err());
}

#[test]
fn a_question_is_a_task_that_can_be_trained() {
    let directory = tempfile::tempdir().unwrap();
    let (model, _) = SMALL.split_once("[task]").unwrap();
    let training = "[training]\nsteps = 4\nbatch = 4\nseed = 1\nlearning_rate = 0.001\nwarmup_steps = 1";
    for name in ["what_followed", "count_modulo_three", "two_hop_lookup"] {
        assert!(TASKS.contains(&name));
        let text = format!("{model}[task]\nname = \"{name}\"\n{training}").replace("context = 16", "context = 24");
        let out = directory.path().join(name);
        let recipe = Recipe::parse("question.toml", &text).unwrap();
        train(&recipe, &out, &mut |_| ControlFlow::Continue(())).unwrap();
        let words = task(name, &toml::Table::new()).unwrap().words();
        assert_eq!(Model::open(&out).unwrap().label(words.len() as u32 - 1), words[words.len() - 1]);
        let keys: toml::Table = toml::from_str("shortest = 3").unwrap();
        assert!(task(name, &keys).is_err_and(|error| error.to_string().contains("task.shortest")));
    }
}

#[test]
fn a_mixture_of_tasks_is_trained_by_its_curriculum() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("mixed");
    let (model, _) = SMALL.split_once("[task]").unwrap();
    let task = r#"[task]
        name = "mixture"
        parts = [{ name = "repeated_sequences", words = 8, shortest = 3, longest = 6 }, { name = "count_modulo_three" }]
        stages = [{ from = 0, weights = [1, 0] }, { from = 3, weights = [0, 1] }]
        [training]
        steps = 6
        batch = 4
        seed = 1
        learning_rate = 0.001
        checkpoints = { every = 3 }"#;
    let recipe = Recipe::parse("mixed.toml", &(model.replace("context = 16", "context = 24") + task)).unwrap();
    train(&recipe, &out, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(Recipe::read(out.join("recipe.toml")).unwrap(), recipe);
    // The words of the second part have learned nothing before its stage begins: without a gradient there is only decay,
    // of which embeddings have none.
    let series = endoscope_train::Series::open(&out).unwrap();
    let embedding = |step: u64, row: usize| {
        let tensors = series.tensors(step).unwrap();
        tensors["model.embed_tokens.weight"].get(row).unwrap().to_vec1::<f32>().unwrap()
    };
    let last = Model::open(&out).unwrap().spec().vocabulary - 1 - 4;
    assert_eq!(embedding(0, last), embedding(3, last));
    assert_ne!(embedding(3, last), embedding(6, last));
}

#[test]
fn every_other_task_can_be_trained_too() {
    let directory = tempfile::tempdir().unwrap();
    let (model, _) = SMALL.split_once("[task]").unwrap();
    let model = model.replace("context = 16", "context = 64");
    let training = "[training]\nsteps = 3\nbatch = 4\nseed = 1\nlearning_rate = 0.001\nwarmup_steps = 1";
    let done = ["repeated_sequences", "what_followed", "count_modulo_three", "two_hop_lookup"];
    for &name in TASKS.iter().filter(|name| !done.contains(name)) {
        let keys = match name {
            "sorting_with_hints" => "longest = 5\nlonger = 9",
            "path_finding" => "nodes = 20",
            "entity_tracking" => "boxes = 3",
            "laundry_list" => "longest = 6",
            _ => "",
        };
        let text = format!("{model}[task]\nname = \"{name}\"\n{keys}\n{training}");
        let recipe = Recipe::parse("task.toml", &text).unwrap();
        let out = directory.path().join(name);
        train(&recipe, &out, &mut |_| ControlFlow::Continue(())).unwrap();
        // The model's tokenizer reads a prompt's text as the tokens that it is.
        let (opened, task) = (Model::open(&out).unwrap(), task(name, &recipe.task.parameters).unwrap());
        let row = task.row("train", 1, 1).unwrap();
        let words: Vec<String> = row.tokens[1..].iter().map(|&id| task.words()[id as usize].clone()).collect();
        let ids = opened.tokenizer().unwrap().encode(&words.join(" "), Default::default()).unwrap().ids;
        assert_eq!(ids, row.tokens, "{name}");
    }
}

#[test]
fn an_organism_is_written_whole_and_nothing_is_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/induction");
    write_organism("induction", &path).unwrap();
    let induction = organisms().into_iter().find(|organism| organism.name == "induction").unwrap();
    for (name, contents) in induction.files().unwrap() {
        assert_eq!(std::fs::read(path.join(&name)).unwrap(), *contents, "{name}");
    }
    assert!(matches!(write_organism("induction", &path), Err(Error::Exists { .. })));
    assert!(matches!(write_organism("inductoin", directory.path()), Err(Error::UnknownOrganism { .. })));
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
}
