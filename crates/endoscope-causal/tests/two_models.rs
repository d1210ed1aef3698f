//! Cross-model patching: a planned sweep with another model's activations against a loop over two models.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use endoscope_causal::*;
use endoscope_models::Model;
use endoscope_net::*;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name)
}

/// A model and a twin of the same shapes with other weights.
fn twins(name: &str) -> (Model, Model) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(tiny(name).join("config.json"), folder.path().join("config.json")).unwrap();
    let mut weights = candle_core::safetensors::load(tiny(name).join("model.safetensors"), &Device::Cpu).unwrap();
    let mut names: Vec<String> = weights.keys().cloned().collect();
    names.sort();
    for (number, name) in names.iter().enumerate() {
        // Neither the same nor a multiple of it.
        let tensor = &weights[name];
        let wave = Tensor::arange(0f32, tensor.elem_count() as f32, &Device::Cpu).unwrap();
        let wave = ((wave * (0.37 + number as f64)).unwrap().sin().unwrap() * 0.3).unwrap();
        let other = (tensor * (wave + 1.).unwrap().reshape(tensor.shape()).unwrap()).unwrap();
        weights.insert(name.clone(), other);
    }
    candle_core::safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
    (Model::open(tiny(name)).unwrap(), Model::open(folder.path()).unwrap())
}

fn logit_diff(run: &Run, pair: &Pair) -> f64 {
    let logits = run.outputs.get(0).unwrap().to_vec2::<f32>().unwrap().pop().unwrap();
    f64::from(logits[pair.answers[0] as usize] - logits[pair.wrong_answers[0] as usize])
}

#[test]
fn planned_and_naive_sweeps_are_a_loop_over_two_models() {
    use SweepAxis::{Head, Layer, Position};
    for name in ["gpt2-odd", "llama-grouped"] {
        let (model, donor) = twins(name);
        // The same prompt for both, and another one.
        let pair = |corrupt: &[u32]| Pair {
            clean: vec![1, 7, 3, 4],
            corrupt: corrupt.to_vec(),
            answers: vec![5],
            wrong_answers: vec![6],
        };
        let pairs = [pair(&[1, 7, 3, 4]), pair(&[1, 9, 2, 4])];
        for (site, over) in [("z", vec![Layer, Head]), ("resid_post", vec![Layer, Position])] {
            for direction in [Direction::Denoise, Direction::Noise] {
                let patching = Sweep { direction, ..Sweep::new(site, over.clone()) };
                let scores = |planner| {
                    let go = |_| ControlFlow::Continue(());
                    sweep_across(&model.decoder, &donor.decoder, &patching, &pairs, planner, go).unwrap()
                };
                let (planned, naive) = (scores(Planner::default()), scores(Planner::Naive));
                let own = sweep(&model.decoder, &patching, &pairs, Planner::default(), |_| ControlFlow::Continue(()));
                let own = own.unwrap();
                let mut moved = 0.;
                for (number, pair) in pairs.iter().enumerate() {
                    let (changed, gives) = match direction {
                        Direction::Denoise => (&pair.corrupt, &pair.clean),
                        Direction::Noise => (&pair.clean, &pair.corrupt),
                    };
                    let inputs = |ids: &Vec<u32>| Inputs::tokens(vec![ids.clone()]).unwrap();
                    let given =
                        donor.decoder.run(&inputs(gives), &Plan::default().capture(Capture::new(site))).unwrap();
                    let untouched = model.decoder.run(&inputs(changed), &Plan::default()).unwrap();
                    let ends = (logit_diff(&given, pair), logit_diff(&untouched, pair));
                    let ends = if direction == Direction::Denoise { ends } else { (ends.1, ends.0) };
                    for found in [&planned.pairs[number], &naive.pairs[number]] {
                        assert!((found.clean - ends.0).abs() < 1e-5 && (found.corrupt - ends.1).abs() < 1e-5);
                    }
                    let [layers, inner] = [0, 1].map(|axis| planned.axes[axis].values.len());
                    for cell in 0..layers * inner {
                        let at = sites_name(&model, site, cell / inner);
                        let index = Index::At((cell % inner) as i64);
                        let axis = if site == "z" { AxisName::Head } else { AxisName::Position };
                        let source = given.captured.get(&at).unwrap().clone().into();
                        let edit = Edit::new(&at, Change::Patch { source }).at(axis, index);
                        let run = model.decoder.run(&inputs(changed), &Plan::default().edit(edit)).unwrap();
                        let expected = logit_diff(&run, pair);
                        for (planner, found) in [("planned", &planned), ("naive", &naive)] {
                            let found = found.pairs[number].values[cell];
                            assert!(
                                (found - expected).abs() < 1e-5,
                                "{name} {site} {direction:?} {planner}, pair {number}, cell {cell}: {found} {expected}"
                            );
                        }
                        moved += (own.pairs[number].values[cell] - expected).abs();
                    }
                }
                assert!(moved > 0.1, "{name} {site}: the donor's activations are no others than the model's own");
                let cost =
                    explain_across(&model.decoder, &donor.decoder, &patching, &pairs, Planner::default()).unwrap();
                assert_eq!((cost.computed, cost.work), (planned.cost.computed, planned.cost.work));
            }
        }
    }
}

fn sites_name(model: &Model, site: &str, layer: usize) -> String {
    let sites = model.decoder.sites();
    sites.get(sites.resolve_one(&format!("{site}.{layer}")).unwrap()).name.clone()
}

#[test]
fn donors_that_do_not_fit_are_refused() {
    let model = Model::open(tiny("gpt2-odd")).unwrap();
    let pair = Pair { clean: vec![1, 7], corrupt: vec![1, 7], answers: vec![5], wrong_answers: vec![6] };
    let refused = |donor: &str, site: &str, axis: SweepAxis| {
        let donor = Model::open(tiny(donor)).unwrap();
        let patching = Sweep::new(site, [axis]);
        let pairs = std::slice::from_ref(&pair);
        let go = |_| ControlFlow::Continue(());
        let swept = sweep_across(&model.decoder, &donor.decoder, &patching, pairs, Planner::default(), go);
        swept.unwrap_err().to_string()
    };
    for (site, axis, parts) in [
        ("z", SweepAxis::Layer, ["head=6", "head=5"]),
        ("ln1.hook_scale", SweepAxis::Layer, ["43 logits", "has 41"]),
        ("hook_pos_embed", SweepAxis::Position, ["no site", "hook_pos_embed"]),
    ] {
        let error = refused("llama-grouped", site, axis);
        assert!(error.contains("donor") && parts.iter().all(|part| error.contains(part)), "{site}: {error}");
    }
}
