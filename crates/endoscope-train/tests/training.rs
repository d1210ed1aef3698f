//! Runs on disk: resume bit for bit, kills, changed recipes, divergence; and what is saved is what was trained.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod common;

use std::fs;
use std::ops::ControlFlow;

use common::{Pairs, files, recipe, short, train_to_the_end, train_until_killed};
use endoscope_models::{Family, Model, save};
use endoscope_net::{Inputs, Network, Plan};
use endoscope_train::{Batch, Batches, Error, Outcome, PositionsRecipe, initial_model, partial_directory, train};
use proptest::prelude::*;

#[test]
fn a_resumed_run_is_the_uninterrupted_run_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, killed) = (directory.path().join("whole"), directory.path().join("killed"));
    let (first, losses) = train_to_the_end(&recipe(), &whole);
    assert_eq!((first, losses.len()), (1, 30));
    assert!(losses[29] < losses[0] - 0.5, "{losses:?}");

    let seen = train_until_killed(&recipe(), &killed, 17);
    assert_eq!(seen, losses[..17]);
    assert!(!killed.exists());
    // What a kill in the middle of a checkpoint leaves.
    let half = partial_directory(&killed).join("checkpoints/.step-000020.partial");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("model.safetensors"), b"half").unwrap();
    fs::write(partial_directory(&killed).join("training.json"), b"{").unwrap();

    let (first, resumed) = train_to_the_end(&recipe(), &killed);
    assert_eq!((first, resumed), (11, losses));
    assert!(!partial_directory(&killed).exists());
    let names: Vec<String> = files(&whole).into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"checkpoints/step-000020/optimizer.safetensors".to_string()), "{names:?}");
    assert!(files(&whole) == files(&killed), "every file is the same");
}

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_anew() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    fs::create_dir(partial_directory(&out)).unwrap();
    let (first, losses) = train_to_the_end(&recipe(), &out);
    assert_eq!((first, losses.len()), (1, 30));
}

#[test]
fn a_stopped_run_keeps_every_update() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, out) = (directory.path().join("whole"), directory.path().join("out"));
    let (_, losses) = train_to_the_end(&recipe(), &whole);
    let outcome = train(&recipe(), &Pairs, &[], &out, &mut |progress| match progress.step {
        13 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(outcome.unwrap(), Outcome::Stopped { directory: partial_directory(&out), step: 13 });
    assert_eq!(train_to_the_end(&recipe(), &out), (14, losses));
}

#[test]
fn a_run_is_not_continued_with_another_recipe() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    train_until_killed(&recipe(), &out, 12);
    let mut changed = recipe();
    changed.training.learning_rate = 0.02;
    let error = train(&changed, &Pairs, &[], &out, &mut |_| ControlFlow::Continue(())).unwrap_err();
    let Error::RecipeChanged { changes, .. } = error else { panic!("{error}") };
    assert_eq!(changes, ["training.learning_rate was 0.01, is now 0.02"]);
    assert_eq!(train_to_the_end(&recipe(), &out).0, 11, "nothing was lost");
}

#[test]
fn nothing_is_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let refuse = || train(&recipe(), &Pairs, &[], &out, &mut |_| ControlFlow::Continue(())).unwrap_err();
    fs::create_dir(&out).unwrap();
    assert!(matches!(refuse(), Error::OutputExists { .. }));
    assert!(!partial_directory(&out).exists());
    fs::remove_dir(&out).unwrap();
    fs::write(partial_directory(&out), "a file").unwrap();
    assert!(matches!(refuse(), Error::InTheWay { .. }));
    fs::remove_file(partial_directory(&out)).unwrap();
    fs::create_dir(partial_directory(&out)).unwrap();
    fs::write(partial_directory(&out).join("thesis.txt"), "mine").unwrap();
    assert!(matches!(refuse(), Error::InTheWay { .. }));
    assert_eq!(files(&partial_directory(&out)).len(), 1);
}

#[test]
fn two_processes_do_not_train_into_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let mut refused = None;
    let outcome = train(&recipe(), &Pairs, &[], &out, &mut |progress| {
        if progress.step == 2 {
            refused = train(&recipe(), &Pairs, &[], &out, &mut |_| ControlFlow::Continue(())).err();
        }
        ControlFlow::Continue(())
    });
    assert!(matches!(outcome.unwrap(), Outcome::Finished { .. }));
    assert!(matches!(refused, Some(Error::Busy { .. })), "{refused:?}");
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_can_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    train_until_killed(&recipe(), &out, 25);
    let last = partial_directory(&out).join("checkpoints/step-000020");
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let kept = fs::read(last.join(file)).unwrap();
        fs::write(last.join(file), &kept[..kept.len() / 2]).unwrap();
        let error = train(&recipe(), &Pairs, &[], &out, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(&error, Error::Checkpoint { path, .. } if *path == last), "{file}: {error}");
        fs::write(last.join(file), kept).unwrap();
    }
    fs::remove_dir_all(last).unwrap();
    assert_eq!(train_to_the_end(&recipe(), &out).0, 11);
}

#[test]
fn divergence_names_the_step_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let mut recipe = recipe();
    recipe.training.learning_rate = 1e30;
    recipe.training.checkpoint_every = 1;
    recipe.training.warmup_steps = 0;
    let error = train(&recipe, &Pairs, &[], &out, &mut |_| ControlFlow::Continue(())).unwrap_err();
    let Error::NotFinite { step, kept, .. } = error else { panic!("{error}") };
    let last = format!("checkpoints/step-{:06}", step - 1);
    assert!(step > 1 && kept.join(&last).is_dir(), "{step} {}", kept.display());
    assert!(!out.exists());
}

#[test]
fn a_batch_that_does_not_fit_is_an_error() {
    struct Wrong(Batch);
    impl Batches for Wrong {
        fn vocabulary(&self) -> usize {
            12
        }
        fn length(&self) -> usize {
            8
        }
        fn batch(&self, _: u64, _: u64, _: usize) -> Batch {
            self.0.clone()
        }
    }
    for (tokens, mask) in [
        (vec![vec![1, 12]], vec![vec![true; 2]]),
        (vec![vec![1; 9]], vec![vec![true; 9]]),
        (vec![vec![1]], vec![vec![true]]),
        (vec![], vec![]),
        (vec![vec![1, 2]], vec![vec![true, false]]),
        (vec![vec![1, 2]], vec![vec![true]]),
        (vec![vec![1, 2]], vec![]),
        (vec![vec![1, 2], vec![1]], vec![vec![true; 2]; 2]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let wrong = Wrong(Batch { tokens, mask });
        let out = directory.path().join("out");
        let error = train(&recipe(), &wrong, &[], &out, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, Error::Batch { .. }), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_saved_model_gives_the_same_logits(
        family in 0usize..4, tied: bool, attention_bias: bool, mlp_bias: bool, heads in 1usize..4, groups in 1usize..3,
        half_head in 1usize..4, d_mlp in 1usize..9, layers in 1usize..3, seed: u32,
        tokens in proptest::collection::vec(0u32..9, 1..7),
    ) {
        let mut recipe = recipe();
        recipe.training.seed = seed.into();
        recipe.training.init_std = 0.5;
        let mut chosen = Family::Llama;
        let model = short(&mut recipe);
        (model.layers, model.d_mlp, model.tied) = (layers, d_mlp, Some(tied));
        model.heads = heads * groups;
        model.d_model = heads * groups * half_head * 2;
        model.kv_heads = None;
        let (gpt2, smollm3) = (family == 0, family > 1);
        if gpt2 {
            chosen = Family::Gpt2;
        } else {
            if smollm3 {
                chosen = Family::SmolLm3;
                model.positions = [PositionsRecipe::Rotary, PositionsRecipe::None].get(family - 2).copied();
            }
            (model.kv_heads, model.d_head) = (Some(heads), Some(half_head * 4));
            (model.attention_bias, model.mlp_bias) = (Some(attention_bias), Some(mlp_bias));
        }
        recipe.model.family = chosen;
        let (decoder, parameters) = initial_model(&recipe, 9).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let config = recipe.model.config(9).unwrap();
        save(directory.path(), chosen, &decoder.spec, &config, &parameters.tensors().unwrap()).unwrap();
        let opened = Model::open(directory.path()).unwrap();
        prop_assert_eq!(opened.spec(), &decoder.spec);
        let inputs = Inputs::tokens(vec![tokens]).unwrap();
        let logits = |network: &dyn Network| {
            network.run(&inputs, &Plan::default()).unwrap().outputs.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (before, after) = (logits(&decoder), logits(&opened.decoder));
        let largest = before.iter().zip(&after).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        // Variables take the composed softmax, opened weights the fused one.
        prop_assert!(largest <= 1e-4 * (1. + before.iter().map(|x| x.abs()).fold(0., f32::max)), "{largest}");
    }
}
