//! Sweeps against TransformerLens's, and planned against naive.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use endoscope_causal::*;
use endoscope_models::Model;

fn goldens(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

fn tiny(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name);
    Model::open(path).unwrap()
}

fn stories() -> Option<Model> {
    let root = std::env::var_os("ENDOSCOPE_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let path = root.join("models/stories260k");
    if !path.is_dir() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{} is missing; set ENDOSCOPE_SHARED", path.display());
        eprintln!("skipped: {} is not there (set ENDOSCOPE_SHARED to test on the real model)", path.display());
        return None;
    }
    Some(Model::open(path).unwrap())
}

fn run(model: &Model, patching: &Sweep, pairs: &[Pair], planner: Planner) -> Scores {
    sweep(&model.decoder, patching, pairs, planner, |_| ControlFlow::Continue(())).unwrap()
}

fn over(site: &str, over: &[SweepAxis]) -> Sweep {
    Sweep { neuron_block: 8, ..Sweep::new(site, over) }
}

fn flat(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(list) => list.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

#[derive(serde::Deserialize)]
struct Golden {
    prompts: Vec<Pair>,
    clean: Vec<f64>,
    corrupt: Vec<f64>,
    tables: BTreeMap<String, Vec<serde_json::Value>>,
}

#[test]
fn every_cell_equals_transformer_lens() {
    let Some(model) = stories() else { return };
    let golden: Golden =
        serde_json::from_str(&std::fs::read_to_string(goldens("stories260k_patch.json")).unwrap()).unwrap();
    use SweepAxis::{Head, Layer, Position};
    let sweeps: [(&str, Sweep); 7] = [
        ("resid_pre", over("resid_pre", &[Layer, Position])),
        ("attn_out", over("attn_out", &[Layer, Position])),
        ("mlp_out", over("mlp_out", &[Layer, Position])),
        ("z", over("z", &[Layer, Position, Head])),
        ("z_all_positions", over("z", &[Layer, Head])),
        ("pattern_all_positions", over("pattern", &[Layer, Head])),
        ("v_all_positions", over("v", &[Layer, Head])),
    ];
    assert_eq!(golden.tables.len(), sweeps.len(), "{:?}", golden.tables.keys());
    for (name, patching) in sweeps {
        for (number, pair) in golden.prompts.iter().enumerate() {
            let scores = run(&model, &patching, std::slice::from_ref(pair), Planner::default());
            assert!((scores.clean - golden.clean[number]).abs() < 1e-4);
            assert!((scores.corrupt - golden.corrupt[number]).abs() < 1e-4);
            let expected = flat(&golden.tables[name][number]);
            assert_eq!(scores.values.len(), expected.len(), "{name}");
            let worst = scores.values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
            assert!(worst <= 1e-4, "{name}, pair {number}: differs by {worst:e}");
        }
    }
}

#[test]
fn pairs_are_averaged_and_the_spread_is_kept() {
    let model = tiny("gpt2-odd");
    let pair = |a: u32| Pair {
        clean: vec![1, a, 3, 4],
        corrupt: vec![1, a + 1, 3, 4],
        answers: vec![5],
        wrong_answers: vec![6],
    };
    let pairs = [pair(7), pair(9), pair(11)];
    let patching = over("resid_pre", &[SweepAxis::Layer, SweepAxis::Position]);
    let all = run(&model, &patching, &pairs, Planner::default());
    for cell in 0..all.values.len() {
        let each: Vec<f64> = pairs
            .iter()
            .map(|pair| run(&model, &patching, std::slice::from_ref(pair), Planner::default()).values[cell])
            .collect();
        let mean = each.iter().sum::<f64>() / 3.;
        let variance = each.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 2.;
        assert!((all.values[cell] - mean).abs() < 1e-9);
        assert!((all.spread[cell].unwrap() - variance.sqrt()).abs() < 1e-9);
    }
    assert_eq!(all.axes[0].values, [0, 1, 2]);
    assert_eq!(all.axes[1].values, [0, 1, 2, 3]);
    assert_eq!(run(&model, &patching, &pairs[..1], Planner::default()).spread[0], None);
}

#[test]
fn patching_all_of_a_layer_gives_the_other_run() {
    for (name, direction, expected) in [("gpt2-odd", Direction::Denoise, 1.), ("llama-grouped", Direction::Noise, 0.)] {
        let model = tiny(name);
        let pair =
            Pair { clean: vec![1, 7, 3, 4], corrupt: vec![2, 9, 3, 5], answers: vec![5], wrong_answers: vec![6] };
        let patching = Sweep { direction, ..over("resid_pre", &[SweepAxis::Layer]) };
        let scores = run(&model, &patching, std::slice::from_ref(&pair), Planner::default());
        for normalised in &scores.normalised {
            assert!((normalised.unwrap() - expected).abs() < 1e-4, "{name}: {scores:?}");
        }
        // Positions before the first difference change nothing: the same tokens give the same activations.
        let same_start = Pair { corrupt: vec![1, 7, 8, 5], ..pair };
        let by_position = Sweep { direction, ..over("resid_pre", &[SweepAxis::Layer, SweepAxis::Position]) };
        let scores = run(&model, &by_position, &[same_start], Planner::default());
        for layer in 0..3 {
            for position in 0..2 {
                assert!((scores.normalised[layer * 4 + position].unwrap() - (1. - expected)).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn equal_prompts_have_no_scale() {
    let model = tiny("gpt2-odd");
    let pair = Pair { clean: vec![1, 7], corrupt: vec![1, 7], answers: vec![5], wrong_answers: vec![6] };
    let scores = run(&model, &over("z", &[SweepAxis::Layer, SweepAxis::Head]), &[pair], Planner::default());
    assert!(scores.normalised.iter().all(Option::is_none));
}

#[test]
fn sweeps_that_make_no_sense_are_refused() {
    let model = tiny("llama-grouped");
    let pair = |clean: &[u32], corrupt: &[u32]| Pair {
        clean: clean.to_vec(),
        corrupt: corrupt.to_vec(),
        answers: vec![5],
        wrong_answers: vec![6],
    };
    let good = [pair(&[1, 2], &[1, 3])];
    use SweepAxis::{Head, Layer, Position};
    let check = |patching: Sweep, pairs: &[Pair], part: &str| {
        let error = sweep(&model.decoder, &patching, pairs, Planner::default(), |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{error}");
    };
    check(over("resid_pre", &[Layer, Head]), &good, "no axis head");
    check(over("resid_pre", &[Layer, Layer]), &good, "twice");
    check(over("resid_pre", &[]), &good, "no axis");
    check(over("hook_embed", &[Layer]), &good, "no layer");
    check(over("resid_*", &[Layer]), &good, "several sites of layer 0");
    check(over("{z,pattern}", &[Layer]), &good, "different shapes");
    check(over("resid_pre.7", &[Position]), &good, "3 layers");
    check(Sweep { neuron_block: 0, ..over("mlp_out", &[SweepAxis::Neuron]) }, &good, "at least one neuron");
    check(over("z", &[Layer]), &[], "no prompt pairs");
    check(over("z", &[Layer]), &[pair(&[1], &[1, 2])], "clean has 1 tokens and corrupt has 2");
    check(over("z", &[Position]), &[pair(&[1, 2], &[1, 3]), pair(&[1], &[2])], "one length");
    check(over("z", &[Layer]), &[Pair { answers: vec![99], ..good[0].clone() }], "id 99 is out of range");
    check(over("z", &[Layer]), &[pair(&[1, 99], &[1, 3])], "token id 99");
}

#[test]
fn prompts_of_different_lengths_are_aligned_and_averaged_where_they_are() {
    use SweepAxis::{Key, Layer, Position};
    let model = tiny("gpt2-odd");
    let pair = |length: u32, from: u32| Pair {
        clean: (0..length).map(|at| 3 * at + from).collect(),
        corrupt: (0..length).map(|at| 3 * at + from + u32::from(at < 2)).collect(),
        answers: vec![5],
        wrong_answers: vec![6],
    };
    let pairs = [pair(2, 1), pair(4, 2), pair(3, 4)];
    for (site, axes) in [("resid_pre", vec![Layer, Position]), ("pattern.1", vec![Position, Key])] {
        let alone: Vec<Scores> = pairs
            .iter()
            .map(|pair| run(&model, &over(site, &axes), std::slice::from_ref(pair), Planner::default()))
            .collect();
        for align in [Align::First, Align::Last] {
            let aligned = Sweep { align, ..over(site, &axes) };
            let scores = run(&model, &aligned, &pairs, Planner::default());
            let naive = run(&model, &aligned, &pairs, Planner::Naive);
            let positions = &scores.axes.last().unwrap().values;
            assert_eq!(positions.as_slice(), if align == Align::First { [0, 1, 2, 3] } else { [-4, -3, -2, -1] });
            let by_position: Vec<bool> = scores.axes.iter().map(|axis| [Position, Key].contains(&axis.axis)).collect();
            for cell in 0..scores.values.len() {
                let at = [cell / 4, cell % 4];
                // The cell of each pair that has the positions, in its own table.
                let own = |pair: usize| -> Option<usize> {
                    let length = pairs[pair].clean.len();
                    let missing = if align == Align::Last { 4 - length } else { 0 };
                    let own = |axis: usize| match by_position[axis] {
                        true => at[axis].checked_sub(missing).filter(|&at| at < length),
                        false => Some(at[axis]),
                    };
                    Some(own(0)? * length + own(1)?)
                };
                let found: Vec<f64> = (0..3).filter_map(|pair| Some(alone[pair].values[own(pair)?])).collect();
                let mean = found.iter().sum::<f64>() / found.len() as f64;
                assert!((scores.values[cell] - mean).abs() < 1e-6, "{site} {align:?} {at:?}");
                assert!((scores.values[cell] - naive.values[cell]).abs() < 1e-5);
                assert_eq!(scores.spread[cell].is_some(), found.len() > 1);
                for pair in 0..3 {
                    assert_eq!(scores.pairs[pair].values[cell].is_nan(), own(pair).is_none());
                }
            }
        }
    }
    let error =
        sweep(&model.decoder, &over("z", &[Position]), &pairs, Planner::default(), |_| ControlFlow::Continue(()));
    assert!(error.unwrap_err().to_string().contains("--align"));
    let json = serde_json::to_value(Sweep { align: Align::Last, ..over("z", &[Position]) }).unwrap();
    assert_eq!(json["align"], "last");
}

#[test]
fn the_watcher_sees_every_point_and_can_stop() {
    let model = tiny("gpt2-odd");
    let pair = Pair { clean: vec![1, 7], corrupt: vec![1, 8], answers: vec![5], wrong_answers: vec![6] };
    let patching = over("z", &[SweepAxis::Layer, SweepAxis::Head]);
    let mut seen = Vec::new();
    let small = Planner::within(1);
    sweep(&model.decoder, &patching, std::slice::from_ref(&pair), small, |progress| {
        seen.push((progress.done, progress.total));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(seen, (0..=15).map(|done| (done, 15)).collect::<Vec<_>>());
    let stopped = sweep(&model.decoder, &patching, &[pair], small, |progress| {
        if progress.done > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
}
