//! Every site of every layer against transformers, on random models of odd sizes and on a real one. The goldens and the
//! script that made them: tools/goldens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use endoscope_models::Model;
use endoscope_models::decoder::capture_everything;
use endoscope_net::{AxisName, Capture, Change, Edit, Index, Inputs, Network, Plan};

fn check(model: &Model, golden_path: &std::path::Path) {
    let golden = load(golden_path);
    let inputs = Inputs::tokens(tokens(&golden)).unwrap();
    let run = model.decoder.run(&inputs, &capture_everything()).unwrap();
    let ours: std::collections::BTreeSet<&str> = run.captured.iter().map(|(name, _)| name).collect();
    let mut missing: Vec<&str> = ours.iter().copied().filter(|name| !golden.contains_key(*name)).collect();
    // The longest goldens keep hook_result of layer 0 only, to stay small.
    missing.retain(|name| !name.ends_with("hook_result"));
    assert!(missing.is_empty(), "{golden_path:?} has no golden for {missing:?}");
    let mut worst = (0f32, "");
    for (name, expected) in golden.iter().filter(|(name, _)| *name != "tokens") {
        let found = run.captured.get(name).unwrap_or_else(|error| panic!("{golden_path:?}: {error}"));
        assert_eq!(found.dims(), expected.dims(), "{golden_path:?} {name}");
        let difference = difference(found, expected);
        assert!(difference <= SITE_TOLERANCE, "{golden_path:?} {name}: differs by {difference:e}");
        if difference > worst.0 {
            worst = (difference, name);
        }
    }
    println!("{golden_path:?}: {} sites, largest difference {:e} at {}", golden.len() - 1, worst.0, worst.1);
}

#[test]
fn random_models_of_odd_sizes() {
    let mut checked = 0;
    for directory in std::fs::read_dir(goldens()).unwrap().map(|entry| entry.unwrap().path()) {
        if !directory.join("config.json").is_file() {
            continue;
        }
        let model = Model::open(&directory).unwrap();
        for golden in std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()) {
            if golden.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seq")) {
                check(&model, &golden);
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 14);
}

#[test]
fn the_real_model() {
    let Some(path) = shared_model("stories260k") else { return };
    check(&Model::open(path).unwrap(), &goldens().join("stories260k/seq12.safetensors"));
}

#[test]
fn an_empty_plan_and_a_reading_plan_change_no_bit() {
    for name in ["gpt2-odd", "llama-grouped"] {
        let model = Model::open(goldens().join(name)).unwrap();
        let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2, 9, 9, 4]]).unwrap();
        let plain = model.decoder.run(&inputs, &Plan::default()).unwrap();
        let read = model.decoder.run(&inputs, &capture_everything()).unwrap();
        assert_eq!(bits(&plain.outputs), bits(&read.outputs), "{name}");
        assert_eq!(bits(&plain.outputs), bits(read.captured.get("hook_logits").unwrap()), "{name}");
        assert!(plain.captured.is_empty());
        // Edits that write back what is there.
        let mut same = Plan::default();
        for (site, activation) in read.captured.iter() {
            same = same.edit(Edit::new(site, Change::Patch { source: activation.clone().into() }));
        }
        let patched = model.decoder.run(&inputs, &same).unwrap();
        assert!(difference(&plain.outputs, &patched.outputs) < 1e-5, "{name}");
    }
}

#[test]
fn the_sites_hang_together() {
    for name in ["gpt2-switches", "llama-grouped", "llama-sharded"] {
        let model = Model::open(goldens().join(name)).unwrap();
        let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2, 9], vec![7, 7, 0, 3, 1]]).unwrap();
        let run = model.decoder.run(&inputs, &capture_everything()).unwrap();
        let get = |site: &str| run.captured.get(site).unwrap().clone();
        for layer in 0..model.spec().layers {
            let at = |site: &str| get(&format!("blocks.{layer}.{site}"));
            let sums = at("attn.hook_pattern").sum(3).unwrap();
            assert!(difference(&sums, &sums.ones_like().unwrap()) < 1e-5);
            let mid = (at("hook_resid_pre") + at("hook_attn_out")).unwrap();
            assert!(difference(&mid, &at("hook_resid_mid")) < 1e-6);
            let post = (mid + at("hook_mlp_out")).unwrap();
            assert!(difference(&post, &at("hook_resid_post")) < 1e-6);
            let mut results = at("attn.hook_result").sum(2).unwrap();
            if let Some(bias) = &model.decoder.weights.layers[layer].attention.o.bias {
                results = results.broadcast_add(bias).unwrap();
            }
            assert!(difference(&results, &at("hook_attn_out_raw")) < 1e-5);
        }
    }
}

#[test]
fn every_site_can_be_edited_and_only_what_comes_after_changes() {
    for name in ["gpt2-odd", "llama-grouped"] {
        let model = Model::open(goldens().join(name)).unwrap();
        let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2, 9, 4]]).unwrap();
        let clean = model.decoder.run(&inputs, &capture_everything()).unwrap();
        let sites: Vec<_> = model.sites().iter().cloned().collect();
        for site in &sites {
            let axis = site.position_axis().unwrap();
            let change = Change::Scale { factor: 0.25 };
            let plan = capture_everything().edit(Edit::new(&site.name, change).at(axis, Index::At(3)));
            let edited = model.decoder.run(&inputs, &plan).unwrap();
            let changed = difference(&clean.outputs, &edited.outputs);
            // All but the embeddings are scaled in vain only if the position's norm swallows the factor.
            let swallowed = site.name == "hook_embed" && name == "llama-grouped";
            assert!(changed > 1e-6 || swallowed, "{name} {}: the edit changed nothing", site.name);
            let before = |run: &endoscope_net::Run| run.outputs.narrow(1, 0, 3).unwrap();
            assert_eq!(bits(&before(&clean)), bits(&before(&edited)), "{name} {}: not causal", site.name);
            let (ours, theirs) = (edited.captured.get(&site.name).unwrap(), clean.captured.get(&site.name).unwrap());
            let dimension = site.axis(axis).unwrap();
            let expected = (theirs.narrow(dimension, 3, 1).unwrap() * 0.25).unwrap();
            assert!(difference(&ours.narrow(dimension, 3, 1).unwrap(), &expected) < 1e-6, "{name} {}", site.name);
        }
    }
}

#[test]
fn outputs_at_some_positions_are_those_of_all() {
    let model = Model::open(goldens().join("gpt2-odd")).unwrap();
    let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2, 9, 4], vec![4, 4, 1, 0, 2, 2]]).unwrap();
    let all = model.decoder.run(&inputs, &Plan::default()).unwrap().outputs;
    let last = model.decoder.run(&inputs, &Plan::default().outputs_at(Index::At(-1))).unwrap().outputs;
    assert_eq!(last.dims(), [2, 1, 41]);
    assert!(difference(&last, &all.narrow(1, 5, 1).unwrap()) < 1e-5);
    let both = Plan::default().outputs_at(Index::List(vec![0, 3])).capture(Capture::new("ln_final.hook_scale"));
    let run = model.decoder.run(&inputs, &both).unwrap();
    assert_eq!(
        (run.outputs.dims(), run.captured.get("ln_final.hook_scale").unwrap().dims()),
        (&[2, 2, 41][..], &[2, 6, 1][..])
    );
    assert!(difference(&run.outputs.narrow(1, 1, 1).unwrap(), &all.narrow(1, 3, 1).unwrap()) < 1e-5);
}

#[test]
fn a_batch_gives_what_its_rows_give_alone() {
    let model = Model::open(goldens().join("llama-sharded")).unwrap();
    let rows = vec![vec![1, 5, 3, 2], vec![7, 7, 0, 3], vec![2, 2, 2, 2]];
    let together = model.decoder.run(&Inputs::tokens(rows.clone()).unwrap(), &Plan::default()).unwrap().outputs;
    for (index, row) in rows.into_iter().enumerate() {
        let alone = model.decoder.run(&Inputs::tokens(vec![row]).unwrap(), &Plan::default()).unwrap().outputs;
        assert!(difference(&alone, &together.narrow(0, index, 1).unwrap()) < 1e-5);
    }
}

#[test]
fn knocking_out_edges_removes_them_and_renormalises() {
    let model = Model::open(goldens().join("gpt2-odd")).unwrap();
    let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2, 9, 4]]).unwrap();
    let edge = |site: &str| {
        Edit::new(site, Change::KnockOut)
            .at(AxisName::Head, Index::At(2))
            .at(AxisName::Query, Index::At(4))
            .at(AxisName::Key, Index::List(vec![1, 3]))
    };
    let plan = |site: &str| Plan::default().edit(edge(site)).capture(Capture::new("pattern.1"));
    let row = |site: &str| {
        let run = model.decoder.run(&inputs, &plan(site)).unwrap();
        let pattern = run.captured.get("blocks.1.attn.hook_pattern").unwrap();
        pattern.get(0).unwrap().get(2).unwrap().get(4).unwrap().to_vec1::<f32>().unwrap()
    };
    let (scores, pattern) = (row("attn_scores.1"), row("pattern.1"));
    for row in [&scores, &pattern] {
        assert_eq!((row[1], row[3], row[5]), (0., 0., 0.));
    }
    assert!((scores.iter().sum::<f32>() - 1.).abs() < 1e-6);
    assert!(pattern.iter().sum::<f32>() < 0.999);
    let all = Plan::default().edit(Edit::new("attn_scores.1", Change::KnockOut).at(AxisName::Query, Index::At(0)));
    assert!(model.decoder.run(&inputs, &all).unwrap_err().to_string().contains("no key"));
}
