//! The planner: planned = naive, what is the same is computed once, and the work is what was said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor};
use endoscope_causal::*;
use endoscope_models::{Compute, Model};
use endoscope_net::{AxisName, Change, Edit, Index, Value, Work};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn goldens() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens")
}

fn tiny(name: &str) -> Model {
    Model::open(goldens().join(name)).unwrap()
}

/// The tiny models of all families.
fn all_models() -> Vec<String> {
    let folders = std::fs::read_dir(goldens()).unwrap().map(|entry| entry.unwrap());
    let models = folders.filter(|entry| entry.path().join("config.json").is_file());
    let mut names: Vec<String> = models.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() > 40);
    names
}

fn run(model: &Model, patching: &Sweep, pairs: &[Pair], planner: Planner) -> Result<Scores> {
    sweep(&model.decoder, patching, pairs, planner, |_| ControlFlow::Continue(()))
}

fn pair(clean: &[u32], corrupt: &[u32]) -> Pair {
    Pair { clean: clean.to_vec(), corrupt: corrupt.to_vec(), answers: vec![3, 9], wrong_answers: vec![4] }
}

/// Some numbers that are neither small nor equal.
fn array(shape: &[usize]) -> Value {
    let count: usize = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|at| ((at * 7 + 3) % 11) as f32 / 5. - 1.).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap().into()
}

const SITES: [&str; 26] = [
    "hook_embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
    "pattern",
    "attn_scores",
    "mlp.post",
    "mlp.pre",
    "ln1.scale",
    "ln2.normalized",
    "attn_in",
    "mlp_in",
    "q_input",
    "k_input",
    "v_input",
    "mlp_input",
    "result",
    "resid_pre.1",
    "z.{0,2}",
    "ln_final.hook_normalized",
];

fn change() -> impl Strategy<Value = SweepChange> {
    let moved = |change| SweepChange::Change(change);
    select(vec![
        SweepChange::Patch,
        SweepChange::Patch,
        SweepChange::Interpolate { mask: 0.25.into() },
        SweepChange::Mean,
        moved(Change::Zero),
        moved(Change::Scale { factor: 1.5 }),
        moved(Change::Scale { factor: 1. }),
        moved(Change::Set { value: 0.3.into() }),
        moved(Change::Add { value: 0.5.into(), scale: -1. }),
        moved(Change::Mean { over: vec![AxisName::Dim] }),
        moved(Change::Mean { over: vec![AxisName::Key] }),
        moved(Change::ProjectOut { directions: 1.0.into() }),
        moved(Change::ProjectOnto { directions: 1.0.into() }),
        moved(Change::KnockOut),
    ])
}

fn with() -> impl Strategy<Value = Vec<Edit>> {
    let edits = vec![
        Edit::new("z.0", Change::Zero).at(AxisName::Head, Index::At(0)),
        Edit::new("resid_pre.1", Change::Add { value: 0.1.into(), scale: 2. }).at(AxisName::Position, Index::At(-1)),
        Edit::new("mlp_out.2", Change::Scale { factor: 0.5 }),
        Edit::new("pattern.1", Change::KnockOut).at(AxisName::Key, Index::At(0)),
        Edit::new("hook_embed", Change::Scale { factor: 1.1 }).at(AxisName::Position, Index::At(0)),
    ];
    prop_oneof![Just(Vec::new()), subsequence(edits, 1..=3)]
}

/// A sweep that mostly makes sense: axes that the site lacks are left out.
fn any_sweep() -> impl Strategy<Value = Sweep> {
    let axes = subsequence(SweepAxis::ALL.to_vec(), 1..=4).prop_shuffle();
    let direction = prop_oneof![Just(Direction::Denoise), Just(Direction::Noise)];
    let metric = select(Metric::ALL.to_vec());
    (select(SITES.to_vec()), axes, change(), metric, direction, 5usize..12, with()).prop_map(
        |(site, mut over, change, metric, direction, neuron_block, with)| {
            let attention = ["pattern", "attn_scores"].contains(&site);
            let heads = attention || ["z", "z.{0,2}", "q", "k", "v", "result"].contains(&site);
            over.retain(|axis| match axis {
                SweepAxis::Layer => !["hook_embed", "ln_final.hook_normalized"].contains(&site),
                SweepAxis::Key => attention,
                SweepAxis::Head => heads,
                SweepAxis::Neuron | SweepAxis::Direction => !attention,
                _ => true,
            });
            if over.contains(&SweepAxis::Direction) {
                over.retain(|&axis| axis != SweepAxis::Neuron);
            }
            if over.is_empty() {
                over.push(SweepAxis::Pair);
            }
            Sweep { change, metric, direction, neuron_block, with, ..Sweep::new(site, over) }
        },
    )
}

/// The size of the last axis of a sweep's site; a model that lacks the site refuses the sweep.
fn dim(model: &Model, patching: &Sweep) -> usize {
    use endoscope_net::{Network, Size};
    let sites = model.decoder.sites();
    let Ok(ids) = sites.resolve(&patching.site) else { return 1 };
    match sites.get(ids[0]).axes.last().map(|axis| axis.size) {
        Some(Size::Fixed(size)) => size,
        _ => 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn planned_equals_naive(
        mut patching in any_sweep(),
        name in select(all_models()),
        tokens in proptest::collection::vec((0u32..37, 0u32..37), 1..9),
        memory in select(vec![1u64, 100_000, 1 << 30]),
        compute in select(vec![Compute::F32, Compute::F32, Compute::Bf16]),
    ) {
        let mut model = tiny(&name);
        model.decoder.compute = compute;
        if patching.over.contains(&SweepAxis::Direction) {
            patching.directions = Some(array(&[3, dim(&model, &patching)]));
            if patching.change == SweepChange::Patch {
                patching.change = "add".parse().unwrap();
            }
        }
        let vocabulary = model.spec().vocabulary as u32;
        let (clean, corrupt): (Vec<u32>, Vec<u32>) =
            tokens.into_iter().map(|(a, b)| (a % vocabulary, b % vocabulary)).unzip();
        let pairs = [pair(&clean, &corrupt), pair(&corrupt, &clean), pair(&clean, &corrupt)];
        match (run(&model, &patching, &pairs, Planner::within(memory)), run(&model, &patching, &pairs, Planner::Naive)) {
            (Ok(planned), Ok(naive)) => {
                let finite = naive.values.iter().chain([&naive.clean, &naive.corrupt]).filter(|value| value.is_finite());
                let range = finite.map(|x| x.abs()).fold(1., f64::max);
                prop_assert_eq!(&planned.axes, &naive.axes);
                for (a, b) in planned.values.iter().zip(&naive.values) {
                    // These jump where two logits tie within rounding.
                    let jumps = matches!(patching.metric, Metric::Rank | Metric::Accuracy);
                    let tolerance = if jumps { 1. } else { 1e-5 * range };
                    prop_assert!((a - b).abs() <= tolerance || (a.is_nan() && b.is_nan()), "{a} {b}");
                }
                prop_assert_eq!(planned.cost.naive, naive.cost.naive);
                prop_assert_eq!(planned.cost.points, naive.cost.points);
            }
            // Points run in another order, so another one may fail first.
            (Err(_), Err(_)) => {}
            (planned, naive) => prop_assert!(false, "{planned:?} {naive:?}"),
        }
    }
}

#[test]
fn repeated_pairs_and_equal_directions_are_computed_once() {
    let model = tiny("gpt2-odd");
    let pairs = [pair(&[1, 7, 3], &[1, 8, 3]), pair(&[2, 7, 3], &[2, 8, 3]), pair(&[1, 7, 3], &[1, 8, 3])];
    let d_model = model.spec().d_model;
    let rows = [array(&[1, d_model]), array(&[1, d_model])].map(|value| match value {
        Value::Array(array) => array.0,
        _ => unreachable!(),
    });
    let directions = Tensor::cat(&[&rows[0], &(&rows[1] * 2.).unwrap(), &rows[0]], 0).unwrap();
    let patching = Sweep {
        change: "add".parse().unwrap(),
        directions: Some(directions.into()),
        ..Sweep::new("resid_pre", [SweepAxis::Layer, SweepAxis::Direction, SweepAxis::Pair])
    };
    let planned = run(&model, &patching, &pairs, Planner::default()).unwrap();
    assert_eq!((planned.cost.points, planned.cost.computed), (3 * 3 * 3, 2 * 2 * 3));
    let naive = run(&model, &patching, &pairs, Planner::Naive).unwrap();
    assert_eq!(naive.cost.computed, 27);
    assert_eq!(planned.pairs[0], planned.pairs[2]);
    for (a, b) in planned.values.iter().zip(&naive.values) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
    // layer x direction x pair, each pair on its own scale.
    assert_eq!(planned.axes[2].values, [0, 1, 2]);
    let at = |layer: usize, direction: usize, pair: usize| (layer * 3 + direction) * 3 + pair;
    assert_eq!(planned.values[at(1, 0, 1)], planned.pairs[1].values[3]);
    assert_eq!(planned.values[at(2, 1, 0)], planned.pairs[0].values[7]);
    let own = &planned.pairs[1];
    let expected = (own.values[3] - own.corrupt) / (own.clean - own.corrupt);
    assert!((planned.normalised[at(1, 0, 1)].unwrap() - expected).abs() < 1e-12);
    assert!(planned.spread.iter().all(Option::is_none));
}

#[test]
fn a_query_keeps_its_only_key() {
    let model = tiny("llama-grouped");
    use SweepAxis::{Head, Key, Layer, Position};
    let knock_out = |site: &str, over: &[SweepAxis]| {
        let patching = Sweep { change: SweepChange::Change(Change::KnockOut), ..Sweep::new(site, over) };
        run(&model, &patching, &[pair(&[1, 7, 3], &[1, 8, 3])], Planner::default())
    };
    let edges = knock_out("attn_scores.1", &[Position, Key]).unwrap();
    let missing: Vec<usize> = (0..9).filter(|&cell| edges.values[cell].is_nan()).collect();
    assert_eq!(missing, [0]);
    assert_eq!(edges.normalised[0], None);
    // Edges to the future are not there: nothing changes.
    assert_eq!((edges.values[1], edges.values[2], edges.values[5]), (edges.corrupt, edges.corrupt, edges.corrupt));
    assert!(edges.values[6] != edges.corrupt);
    let error = knock_out("attn_scores", &[Layer, Head]).unwrap_err().to_string();
    assert!(error.contains("all keys of some query"), "{error}");
    assert!(knock_out("pattern", &[Layer, Head]).unwrap().values.iter().all(|value| value.is_finite()));
}

#[test]
fn the_mean_is_that_of_the_recipient_run() {
    let model = tiny("gpt2-odd");
    let mean = Sweep { change: SweepChange::Mean, ..Sweep::new("mlp_out", [SweepAxis::Layer]) };
    let pairs = [pair(&[1, 7, 3], &[1, 8, 3])];
    let found = run(&model, &mean, &pairs, Planner::default()).unwrap();
    let same = Change::Mean { over: vec![AxisName::Position] };
    let same = Sweep { change: SweepChange::Change(same), ..mean.clone() };
    let expected = run(&model, &same, &pairs, Planner::Naive).unwrap();
    for (a, b) in found.values.iter().zip(&expected.values) {
        assert!((a - b).abs() < 1e-5);
    }
    let pattern = Sweep { site: "pattern".into(), ..mean };
    assert!(
        run(&model, &pattern, &pairs, Planner::default()).unwrap_err().to_string().contains("no mean over positions")
    );
}

#[test]
fn edits_at_every_point_are_made_in_the_recipient_only() {
    let model = tiny("gpt2-odd");
    let pairs = [pair(&[1, 7, 3], &[1, 8, 3])];
    let plain = Sweep::new("resid_post", [SweepAxis::Layer]);
    let with = Sweep { with: vec![Edit::new("mlp_out.1", Change::Zero)], ..plain.clone() };
    let (plain, with) =
        (run(&model, &plain, &pairs, Planner::default()), run(&model, &with, &pairs, Planner::default()));
    let (plain, with) = (plain.unwrap(), with.unwrap());
    assert_eq!(plain.clean, with.clean);
    assert!((plain.corrupt - with.corrupt).abs() > 1e-6);
    // Above the edit the whole stream is the donor's; below it the edit still shows.
    assert!((with.values[2] - plain.clean).abs() < 1e-5 && (with.values[0] - plain.clean).abs() > 1e-6);
}

#[test]
fn the_memory_is_asked_for_once_given_what_a_point_needs() {
    let model = tiny("gpt2-odd");
    let pairs = [pair(&[1, 7], &[1, 8]), pair(&[1, 7, 3, 5], &[1, 8, 3, 5])];
    let asked = Cell::new(0);
    let ask = |least: u64| {
        asked.set(asked.get() + 1);
        assert!(least > 0);
        Ok(least)
    };
    let patching = Sweep::new("z", [SweepAxis::Layer, SweepAxis::Head]);
    let planner = Planner::Planned(Memory::Ask(&ask));
    let cost = explain(&model.decoder, &patching, &pairs, planner).unwrap();
    assert_eq!(asked.get(), 1);
    assert!(cost.batches >= 1 && cost.batch_bytes > 0);
    let scores = run(&model, &patching, &pairs, planner).unwrap();
    assert_eq!(scores.cost.batches, cost.batches);
    let refuse = |least: u64| Err(Error::Memory { promised: 10, held: 20, least });
    let error = run(&model, &patching, &pairs, Planner::Planned(Memory::Ask(&refuse))).unwrap_err().to_string();
    assert!(error.contains("give at least"), "{error}");
}

#[test]
fn naive_work_is_one_whole_pass_a_point() {
    let model = tiny("gpt2-odd");
    let pairs = [pair(&[1, 7, 3, 5], &[1, 8, 3, 5])];
    let patching = Sweep::new("resid_pre", [SweepAxis::Layer, SweepAxis::Position]);
    let cost = explain(&model.decoder, &patching, &pairs, Planner::Naive).unwrap();
    let scores = run(&model, &patching, &pairs, Planner::Naive).unwrap();
    assert_eq!((cost.points, cost.computed), (scores.cost.points, scores.cost.computed));
    assert_eq!(cost.work, Work { attention: 12 * 12, mlp: 12 * 12, unembedding: 12 });
    // A run of which only the last position is read finishes only that one in its last layer.
    let left_out = 12 * 3;
    assert_eq!(scores.cost.work, Work { attention: 12 * 12, mlp: 12 * 12 - left_out, unembedding: 12 });
}

#[test]
fn the_work_done_is_the_work_said_and_less_than_the_naive_one() {
    let pairs = [pair(&[1, 7, 3, 5, 6], &[1, 8, 3, 5, 6]), pair(&[2, 7, 3, 5, 9], &[2, 9, 3, 5, 9])];
    use SweepAxis::{Head, Key, Layer, Neuron, Position};
    for name in all_models() {
        let model = tiny(&name);
        if model.spec().experts.is_some() {
            continue; // Their neurons are no sites.
        }
        for (site, over) in [
            ("resid_pre", vec![Layer, Position]),
            ("resid_post", vec![Layer, Position]),
            ("z", vec![Layer, Position, Head]),
            ("mlp_post", vec![Layer, Neuron]),
            ("pattern", vec![Layer, Head, Position, Key]),
        ] {
            let patching = Sweep { neuron_block: 8, ..Sweep::new(site, over) };
            let said = explain(&model.decoder, &patching, &pairs, Planner::default()).unwrap();
            let done = run(&model, &patching, &pairs, Planner::default()).unwrap();
            assert_eq!(said, done.cost, "{name} {site}");
            assert!(said.work.rows() < said.naive.rows(), "{name} {site}: {said:?}");
            // The prompts of a pair begin alike, so that patching those positions changes nothing.
            assert!(said.computed < said.points || !site.starts_with("resid"), "{name} {site}: {said:?}");
        }
    }
}
