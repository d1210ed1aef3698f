//! Every site of every layer against transformers, on random models of odd sizes and on a real one. The goldens and the
//! script that made them: tools/goldens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use candle_core::{Device, Tensor};
use common::*;
use endoscope_models::decoder::capture_everything;
use endoscope_models::{Family, Model};
use endoscope_net::{AxisName, Capture, Captured, Change, Edit, Index, Inputs, Network, Plan};

/// The largest difference over all sites and where it is, or what does not fit.
fn compare(model: &Model, golden_path: &std::path::Path) -> Result<(f32, String), String> {
    let golden = load(golden_path);
    let inputs = Inputs::tokens(tokens(&golden)).unwrap();
    let run = model.decoder.run(&inputs, &capture_everything()).map_err(|error| error.to_string())?;
    let ours: std::collections::BTreeSet<&str> = run.captured.iter().map(|(name, _)| name).collect();
    let mut missing: Vec<&str> = ours.iter().copied().filter(|name| !golden.contains_key(*name)).collect();
    // The longest goldens keep hook_result of layer 0 only, to stay small; what heads and MLP read are copies.
    missing.retain(|name| !name.ends_with("hook_result") && !name.ends_with("_input"));
    if !missing.is_empty() {
        return Err(format!("there is no golden for {missing:?}"));
    }
    let mut worst = (0f32, String::new());
    let mut wrong = Vec::new();
    for (name, expected) in golden.iter().filter(|(name, _)| *name != "tokens") {
        let Ok(found) = run.captured.get(name) else {
            wrong.push(format!("{name} is missing"));
            continue;
        };
        if found.dims() != expected.dims() {
            wrong.push(format!("{name} has shape {:?} and not {:?}", found.dims(), expected.dims()));
            continue;
        }
        let difference = difference(found, expected);
        if difference > SITE_TOLERANCE || difference.is_nan() {
            wrong.push(format!("{name} differs by {difference:e}"));
        }
        if difference > worst.0 {
            worst = (difference, name.clone());
        }
    }
    wrong.extend(copies(&run.captured, &golden));
    match wrong.is_empty() {
        true => Ok(worst),
        false => Err(wrong.join("; ")),
    }
}

/// What heads and MLPs read must be the golden's stream, for each head.
fn copies(captured: &Captured, golden: &std::collections::HashMap<String, Tensor>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, found) in captured.iter().filter(|(name, _)| name.ends_with("_input")) {
        let (block, short) = name.rsplit_once('.').unwrap();
        let middle = golden.get(&format!("{block}.hook_resid_mid")).filter(|_| short == "hook_mlp_input");
        let Some(stream) = middle.or_else(|| golden.get(&format!("{block}.hook_resid_pre"))) else { continue };
        let expected = if found.rank() == 4 { stream.unsqueeze(2).unwrap() } else { stream.clone() };
        let difference = difference(found, &expected.broadcast_as(found.shape()).unwrap().contiguous().unwrap());
        if difference > SITE_TOLERANCE || difference.is_nan() {
            wrong.push(format!("{name} differs by {difference:e} from the stream"));
        }
    }
    wrong
}

#[test]
fn random_models_of_odd_sizes() {
    let mut wrong = Vec::new();
    let mut families = std::collections::BTreeMap::new();
    for directory in golden_models() {
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        let model = match Model::open(&directory) {
            Ok(model) => model,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let goldens = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
        for golden in goldens.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("seq")) {
            match compare(&model, &golden) {
                Ok((difference, site)) => println!("{}: largest difference {difference:e} at {site}", golden.display()),
                Err(error) => wrong.push(format!("{}: {error}", golden.display())),
            }
            *families.entry(model.family.model_type()).or_insert(0) += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for family in Family::ALL {
        assert!(families.contains_key(family.model_type()), "{family:?} has no golden");
    }
}

#[test]
fn the_real_model() {
    let Some(path) = shared_model("stories260k") else { return };
    let golden = goldens().join("stories260k/seq12.safetensors");
    let (difference, site) = compare(&Model::open(path).unwrap(), &golden).unwrap();
    println!("stories260k: largest difference {difference:e} at {site}");
}

#[test]
fn an_empty_plan_and_a_reading_plan_change_no_bit() {
    for name in golden_models() {
        let model = Model::open(&name).unwrap();
        let name = name.display();
        let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2, 9, 9, 4]]).unwrap();
        let plain = model.decoder.run(&inputs, &Plan::default()).unwrap();
        let read = model.decoder.run(&inputs, &capture_everything()).unwrap();
        assert_eq!(bits(&plain.outputs), bits(&read.outputs), "{name}");
        assert_eq!(bits(&plain.outputs), bits(read.captured.get("hook_logits").unwrap()), "{name}");
        assert!(plain.captured.is_empty());
        // Edits that write back what is there; those of copies of the stream by themselves, since they exclude edits of norms.
        for copies in [false, true] {
            let mut same = Plan::default();
            for (site, activation) in read.captured.iter().filter(|(site, _)| site.ends_with("_input") == copies) {
                same = same.edit(Edit::new(site, Change::Patch { source: activation.clone().into() }));
            }
            let patched = model.decoder.run(&inputs, &same).unwrap();
            assert!(difference(&plain.outputs, &patched.outputs) < 1e-5, "{name}");
            if copies {
                assert_eq!(bits(&plain.outputs), bits(&patched.outputs), "{name}: a copy is not the stream");
            }
        }
    }
}

#[test]
fn every_site_can_be_edited_and_only_what_comes_after_changes() {
    for name in golden_models() {
        let model = Model::open(&name).unwrap();
        let name = name.file_name().unwrap().to_string_lossy().into_owned();
        let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2, 9, 4]]).unwrap();
        let clean = model.decoder.run(&inputs, &capture_everything()).unwrap();
        let sites: Vec<_> = model.sites().iter().cloned().collect();
        for site in &sites {
            let axis = site.position_axis().unwrap();
            let theirs = clean.captured.get(&site.name).unwrap();
            // Not one factor for all, which a norm after it would swallow.
            let width = theirs.dims().last().copied().unwrap();
            let ramp: Vec<f32> = (0..width).map(|at| 0.25 + at as f32 / width as f32).collect();
            let source = match site.name.contains("hook_expert_indices") {
                // These are numbers of experts: the first becomes the last.
                true => (theirs.ones_like().unwrap() * (theirs.max_all().unwrap().to_scalar::<f32>().unwrap() as f64)
                    - theirs)
                    .unwrap(),
                false => theirs.broadcast_mul(&Tensor::new(ramp, &Device::Cpu).unwrap()).unwrap(),
            };
            let change = Change::Patch { source: source.clone().into() };
            let plan = capture_everything().edit(Edit::new(&site.name, change).at(axis, Index::At(3)));
            let edited = model.decoder.run(&inputs, &plan).unwrap();
            let changed = difference(&clean.outputs, &edited.outputs);
            assert!(changed > 1e-6, "{name} {}: the edit changed nothing", site.name);
            let before = |run: &endoscope_net::Run| run.outputs.narrow(1, 0, 3).unwrap();
            assert_eq!(bits(&before(&clean)), bits(&before(&edited)), "{name} {}: not causal", site.name);
            let ours = edited.captured.get(&site.name).unwrap();
            let dimension = site.axis(axis).unwrap();
            let expected = source.narrow(dimension, 3, 1).unwrap();
            assert!(difference(&ours.narrow(dimension, 3, 1).unwrap(), &expected) < 1e-6, "{name} {}", site.name);
        }
    }
}

/// All heads' copies changed together are the stream changed for attention alone, and likewise for the MLP.
#[test]
fn a_change_of_all_copies_is_a_change_of_what_the_projections_read() {
    for name in golden_models() {
        let model = Model::open(&name).unwrap();
        let name = name.file_name().unwrap().to_string_lossy().into_owned();
        let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2, 9, 4]]).unwrap();
        let other = Inputs::tokens(vec![vec![7, 2, 3, 8, 9, 1]]).unwrap();
        let donor = model.decoder.run(&other, &capture_everything()).unwrap().captured;
        let patch = |site: &str| Edit::new(site, Change::Patch { source: donor.get(site).unwrap().clone().into() });
        let run = |sites: &[&str]| {
            let plan = sites.iter().fold(Plan::default(), |plan, site| plan.edit(patch(&format!("blocks.1.{site}"))));
            model.decoder.run(&inputs, &plan).unwrap().outputs
        };
        let by_head = run(&["hook_q_input", "hook_k_input", "hook_v_input"]);
        let together = run(&["attn.hook_q", "attn.hook_k", "attn.hook_v"]);
        assert!(difference(&by_head, &together) < 1e-5, "{name}: {}", difference(&by_head, &together));
        let (input, read) = (run(&["hook_mlp_input"]), run(&["hook_mlp_in"]));
        assert!(difference(&input, &read) < 1e-5, "{name}: {}", difference(&input, &read));
    }
}

#[test]
fn an_edit_of_a_copy_and_one_of_its_norm_exclude_each_other() {
    let model = Model::open(goldens().join("gpt2-odd")).unwrap();
    let inputs = Inputs::tokens(vec![vec![1, 5, 3]]).unwrap();
    for (copy, norm) in [("q_input.1", "ln1.scale.1"), ("v_input.0", "attn_in.0"), ("mlp_input.1", "ln2.normalized.1")]
    {
        let [copy, norm] = [copy, norm].map(|site| Edit::new(site, Change::Scale { factor: 1.5 }));
        let error = model.decoder.run(&inputs, &Plan::default().edit(copy).edit(norm)).unwrap_err().to_string();
        assert!(error.contains("a norm of its own"), "{error}");
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
