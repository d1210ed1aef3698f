//! Path patching against its definition, run word for word.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::ops::ControlFlow;
use std::path::Path;

use endoscope_causal::*;
use endoscope_models::Model;
use endoscope_net::{Capture, Change, Edit, Index, Inputs, Network, Plan, Run};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn model(path: &str) -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

fn tiny(name: &str) -> Model {
    model(&format!("crates/endoscope-models/tests/goldens/{name}"))
}

fn run(model: &Model, paths: &PathSweep, pairs: &[Pair], planner: Planner) -> Result<PathScores> {
    path_sweep(&model.decoder, paths, pairs, planner, |_| ControlFlow::Continue(()))
}

fn to(receivers: &[&str]) -> PathSweep {
    PathSweep::new(receivers.iter().map(|text| text.parse().unwrap()).collect::<Vec<Receiver>>())
}

fn pair(clean: &[u32], corrupt: &[u32]) -> Pair {
    Pair { clean: clean.to_vec(), corrupt: corrupt.to_vec(), answers: vec![3, 9], wrong_answers: vec![4] }
}

fn same(planned: &PathScores, naive: &PathScores) -> std::result::Result<(), String> {
    assert_eq!(planned.senders, naive.senders);
    let all = naive.values.iter().chain([&naive.clean, &naive.corrupt]);
    let range = all.map(|value| value.abs()).fold(1., f64::max);
    for ((sender, a), b) in naive.senders.iter().zip(&planned.values).zip(&naive.values) {
        if (a - b).abs() > 1e-5 * range {
            return Err(format!("{sender:?}: {a} {b}"));
        }
    }
    Ok(())
}

fn any_paths() -> impl Strategy<Value = PathSweep> {
    let receivers =
        vec!["q.1[0]", "k.2[0]", "v.2[1]", "v.1", "q.2[0,1]", "mlp_in.1", "mlp_in.2", "attn_in.1", "mlp_in.0"];
    let sets = prop_oneof![subsequence(receivers, 1..=3), Just(vec!["final"]), Just(vec!["resid_post.2"])];
    let positions = select(vec![Index::All, Index::At(-1), Index::At(0)]);
    let norm = select(vec![PathNorm::Recomputed, PathNorm::Frozen]);
    let direction = select(vec![Direction::Denoise, Direction::Noise]);
    let metric = select(vec![Metric::LogitDiff, Metric::Kl, Metric::Probability]);
    let half = |site: &str| vec![Edit::new(site, Change::Scale { factor: 0.5 })];
    let with = select(vec![vec![], vec![], vec![], half("mlp_out.1"), half("attn_out.0")]);
    (sets, positions, norm, direction, metric, with).prop_map(|(set, positions, norm, direction, metric, with)| {
        PathSweep { positions, norm, direction, metric, with, ..to(&set) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn planned_is_the_definition(
        paths in any_paths(),
        name in select(vec![
            "gpt2-odd", "gpt2-switches", "llama-grouped", "llama-sharded", "gpt_neox-parallel", "gptj-odd", "gemma2-odd",
            "gemma3_text-odd", "olmo2-odd", "granite-odd", "falcon-40b", "falcon-alibi", "mixtral-odd", "stablelm-parallel",
        ]),
        tokens in proptest::collection::vec((0u32..37, 0u32..37), 1..5),
        memory in select(vec![1u64, 1 << 30]),
    ) {
        let model = tiny(name);
        let vocabulary = model.spec().vocabulary as u32;
        let (clean, corrupt): (Vec<u32>, Vec<u32>) =
            tokens.into_iter().map(|(a, b)| (a % vocabulary, b % vocabulary)).unzip();
        let pairs = [pair(&clean, &corrupt)];
        match (run(&model, &paths, &pairs, Planner::within(memory)), run(&model, &paths, &pairs, Planner::Naive)) {
            (Ok(planned), Ok(naive)) => {
                let found = same(&planned, &naive);
                prop_assert!(found.is_ok(), "{found:?}");
            }
            // A model whose key/value heads are fewer has no such head.
            (Err(planned), Err(naive)) => prop_assert_eq!(planned.to_string(), naive.to_string()),
            (planned, naive) => prop_assert!(false, "{planned:?} {naive:?}"),
        }
    }
}

/// The greatest difference from TransformerLens: what two programs in f32 differ by on logits of this size (below 20).
const FROM_TRANSFORMER_LENS: f64 = 1e-4;

#[test]
fn scores_are_those_of_a_loop_over_transformer_lens() {
    #[derive(serde::Deserialize)]
    struct Goldens {
        organism: String,
        pairs: Vec<Golden>,
    }
    #[derive(serde::Deserialize)]
    struct Golden {
        #[serde(flatten)]
        pair: Pair,
        values: std::collections::BTreeMap<String, Vec<f64>>,
    }
    let goldens: Goldens = serde_json::from_str(include_str!("goldens/paths.json")).unwrap();
    let model = model(&format!("organisms/{}", goldens.organism));
    for Golden { pair, values } in &goldens.pairs {
        for (receivers, golden) in values {
            let names: Vec<&str> = receivers.split(' ').collect();
            let paths = PathSweep { from: vec!["heads".into()], direction: Direction::Noise, ..to(&names) };
            let found = run(&model, &paths, std::slice::from_ref(pair), Planner::default()).unwrap();
            assert_eq!(found.values.len(), golden.len());
            let moved = golden.iter().filter(|value| (*value - found.clean).abs() > 0.1).count();
            assert!(moved > 0, "{receivers}: the path that matters is among them");
            for (sender, (found, golden)) in found.senders.iter().zip(found.values.iter().zip(golden)) {
                assert!((found - golden).abs() < FROM_TRANSFORMER_LENS, "{receivers} {sender:?}: {found} {golden}");
            }
        }
    }
}

#[test]
fn senders_after_the_receiver_have_no_path() {
    let model = tiny("gpt2-odd");
    let scores = run(&model, &to(&["q.1[0]"]), &[pair(&[1, 7, 3], &[2, 8, 3])], Planner::default()).unwrap();
    for (sender, value) in scores.senders.iter().zip(&scores.values) {
        let before = match sender {
            Sender::Head { layer, .. } | Sender::Mlp { layer } => *layer < 1,
            Sender::Embedding => true,
        };
        assert_eq!(*value != scores.corrupt, before, "{sender:?}: {value}");
    }
    // A head's own layer comes before its MLP.
    let scores = run(&model, &to(&["mlp_in.1"]), &[pair(&[1, 7, 3], &[2, 8, 3])], Planner::default()).unwrap();
    for (sender, value) in scores.senders.iter().zip(&scores.values) {
        let before = matches!(sender, Sender::Embedding | Sender::Head { layer: 0 | 1, .. } | Sender::Mlp { layer: 0 });
        assert_eq!(*value != scores.corrupt, before, "{sender:?}: {value}");
    }
}

#[test]
fn with_a_frozen_norm_the_direct_effects_add_up() {
    for name in ["gpt2-odd", "llama-grouped"] {
        let model = tiny(name);
        let paths = PathSweep { norm: PathNorm::Frozen, ..to(&["final"]) };
        let scores = run(&model, &paths, &[pair(&[1, 7, 3], &[2, 8, 5])], Planner::default()).unwrap();
        let sum: f64 = scores.values.iter().map(|value| value - scores.corrupt).sum();
        // All senders together: the clean stream under the corrupt run's scale.
        let network =
            |ids: &[u32], plan: &Plan| model.decoder.run(&Inputs::tokens(vec![ids.to_vec()]).unwrap(), plan).unwrap();
        let (stream, scale) = ("blocks.2.hook_resid_post", "ln_final.hook_scale");
        let captures = Plan::default().capture(Capture::new(stream)).capture(Capture::new(scale));
        let (clean, corrupt) = (network(&[1, 7, 3], &captures), network(&[2, 8, 5], &captures));
        let patch = |site: &str, run: &Run| {
            Edit::new(site, Change::Patch { source: run.captured.get(site).unwrap().clone().into() })
        };
        let plan = Plan::default().edit(patch(stream, &clean)).edit(patch(scale, &corrupt)).outputs_at(Index::At(-1));
        let logits: Vec<f32> = network(&[2, 8, 5], &plan).outputs.flatten_all().unwrap().to_vec1().unwrap();
        let target = Target { answers: vec![3, 9], wrong_answers: vec![4], clean: vec![] };
        let together = Metric::LogitDiff.value(&logits, &target).unwrap() - scores.corrupt;
        assert!((sum - together).abs() < 1e-4, "{name}: {sum} {together}");
    }
}

#[test]
fn the_shipped_organism_composes_through_keys() {
    let model = model("organisms/induction");
    let scores = model.tokenizer().unwrap();
    let ids = |text: &str| scores.encode(text, endoscope_models::Bos::AsConfigured).unwrap().ids;
    let answer = |text: &str| scores.first_token(text).unwrap().0;
    let pairs = [Pair {
        clean: ids("ba da fa ga ba da"),
        corrupt: ids("ba ga fa da ba da"),
        answers: vec![answer("fa")],
        wrong_answers: vec![answer("ga")],
    }];
    for (receivers, norm) in
        [(vec!["k.1"], PathNorm::Recomputed), (vec!["q.1", "v.1"], PathNorm::Frozen), (vec!["final"], PathNorm::Frozen)]
    {
        let paths = PathSweep { norm, ..to(&receivers) };
        let planned = run(&model, &paths, &pairs, Planner::default()).unwrap();
        let naive = run(&model, &paths, &pairs, Planner::Naive).unwrap();
        same(&planned, &naive).unwrap();
    }
}

#[test]
fn paths_that_make_no_sense_are_refused() {
    let model = tiny("llama-grouped");
    let check = |paths: PathSweep, part: &str| {
        let error = run(&model, &paths, &[pair(&[1, 2], &[1, 3])], Planner::default()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    check(to(&[]), "at least one receiver");
    check(to(&["final", "q.1[0]"]), "name it alone");
    check(to(&["qq.1[0]"]), "nearest names");
    check(to(&["z.1[0]"]), "receives no path");
    check(to(&["resid_post.0"]), "receives no path");
    check(to(&["mlp_in.1[0]"]), "has no heads");
    check(to(&["q.1[99]"]), "out of range");
    check(to(&["q.9[0]"]), "3 layers");
    check(PathSweep { from: vec!["pattern".into()], ..to(&["final"]) }, "is no sender");
    check(PathSweep { from: vec![], ..to(&["final"]) }, "need senders");
    check(PathSweep { positions: Index::At(7), ..to(&["final"]) }, "out of range");
}

#[test]
fn paths_survive_json() {
    let paths = PathSweep { positions: Index::At(-1), norm: PathNorm::Frozen, ..to(&["q.1[0,2]", "mlp_in.1"]) };
    let json = serde_json::to_string(&paths).unwrap();
    assert!(json.contains(r#""to":["q.1[0,2]","mlp_in.1"]"#), "{json}");
    assert_eq!(serde_json::from_str::<PathSweep>(&json).unwrap(), paths);
}
