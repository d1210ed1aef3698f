//! Edges and circuits: two ways to the same numbers, on models of many families, and what must hold by definition.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::ops::ControlFlow;
use std::path::PathBuf;

use endoscope_causal::*;
use endoscope_models::Model;
use endoscope_net::Network;
use proptest::prelude::*;

/// f32 sums in another order.
const TOLERANCE: f64 = 2e-5;

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens")
}

fn open(name: &str) -> Model {
    Model::open(goldens().join(name)).unwrap()
}

/// Learned positions, grouped heads, attention beside the MLP, one norm for both, a factor on the way out, experts, ALiBi.
const NAMES: [&str; 13] = [
    "gpt2-odd",
    "gpt_neo-global",
    "gpt_neox-parallel",
    "gptj-odd",
    "opt-odd",
    "llama-grouped",
    "qwen3-odd",
    "gemma-odd",
    "phi-odd",
    "olmo-clip_qkv",
    "falcon-alibi",
    "granite-odd",
    "mixtral-odd",
];

fn models() -> impl Iterator<Item = (&'static str, Model)> {
    NAMES.into_iter().map(|name| (name, open(name)))
}

fn pair(clean: &[u32], corrupt: &[u32]) -> Pair {
    Pair { clean: clean.to_vec(), corrupt: corrupt.to_vec(), answers: vec![3, 9], wrong_answers: vec![4] }
}

fn pairs() -> Vec<Pair> {
    vec![pair(&[1, 5, 3, 2, 9, 4], &[1, 5, 7, 2, 9, 4]), pair(&[2, 8, 8, 1, 0, 6], &[2, 3, 8, 1, 7, 6])]
}

fn go(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_circuit_without_one_edge_is_that_edge_patched() {
    for (name, model) in models() {
        let runs = CircuitRuns::new(&model.decoder, &pairs(), Metric::LogitDiff, Ablation::Patch).unwrap();
        let graph = &runs.graph;
        let exact = EdgeSweep::new(EdgeMethod::Exact);
        let planned = edge_scores(&model.decoder, &exact, &pairs(), Planner::default(), go).unwrap();
        let naive = edge_scores(&model.decoder, &exact, &pairs(), Planner::Naive, go).unwrap();
        assert_eq!(planned.effects.len(), graph.len());
        let largest = naive.effects.iter().fold(0f64, |largest, effect| largest.max(effect.abs()));
        assert!(largest > 1e-3, "{name}: no edge does anything");
        let without = |number: usize| {
            let kept = graph.edges().enumerate().filter(|(at, _)| *at != number).map(|(_, edge)| edge);
            Circuit::of(graph, kept).unwrap()
        };
        let circuits: Vec<Circuit> = (0..graph.len()).map(without).collect();
        let values = runs.values(&circuits).unwrap();
        for (number, edge) in graph.edges().enumerate() {
            let (a, b) = (planned.effects[number], naive.effects[number]);
            let c = values[number] - runs.whole();
            assert!((a - b).abs() < TOLERANCE && (b - c).abs() < TOLERANCE, "{name} {edge}: {a} {b} {c}");
        }
    }
}

#[test]
fn everything_is_the_clean_run_and_nothing_the_corrupt_one() {
    for (name, model) in models() {
        for metric in [Metric::LogitDiff, Metric::Kl, Metric::Loss] {
            let runs = CircuitRuns::new(&model.decoder, &pairs(), metric, Ablation::Patch).unwrap();
            let values = runs.of_pairs(&[Circuit::full(&runs.graph), Circuit::empty(&runs.graph)]).unwrap();
            let exact = EdgeSweep { metric, ..EdgeSweep::new(EdgeMethod::Gradient) };
            let scores = edge_scores(&model.decoder, &exact, &pairs(), Planner::default(), go).unwrap();
            for (at, pair) in scores.pairs.iter().enumerate() {
                assert!((values[0][at] - pair.clean).abs() < TOLERANCE, "{name}");
                assert!((values[1][at] - pair.corrupt).abs() < TOLERANCE, "{name}");
            }
            let measures = measure(&runs, &Circuit::full(&runs.graph), go).unwrap();
            let near = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-3;
            assert!(near(measures.faithfulness, 1.) && near(measures.completeness, 1.), "{name} {measures:?}");
            let measures = measure(&runs, &Circuit::empty(&runs.graph), go).unwrap();
            assert!(near(measures.faithfulness, 0.) && near(measures.completeness, 0.), "{name} {measures:?}");
            assert!(measures.minimality.is_empty());
        }
    }
}

#[test]
fn ablations_by_zero_and_by_the_mean() {
    let model = open("gpt2-odd");
    let one = pairs()[..1].to_vec();
    // The mean over one prompt is that prompt.
    for circuit in [0usize, 3, 11] {
        let of = |ablation| {
            let runs = CircuitRuns::new(&model.decoder, &one, Metric::LogitDiff, ablation).unwrap();
            let kept = runs.graph.edges().enumerate().filter(|(at, _)| at % (circuit + 2) != 0).map(|(_, edge)| edge);
            let circuit = Circuit::of(&runs.graph, kept).unwrap();
            runs.values(&[circuit]).unwrap()[0]
        };
        assert!((of(Ablation::Patch) - of(Ablation::Mean)).abs() < TOLERANCE);
        assert!((of(Ablation::Patch) - of(Ablation::Zero)).abs() > 1e-4);
    }
    let unequal = vec![pair(&[1, 2, 3], &[1, 2, 4]), pair(&[1, 2, 3, 4], &[1, 2, 4, 4])];
    let error =
        CircuitRuns::new(&model.decoder, &unequal, Metric::LogitDiff, Ablation::Mean).err().unwrap().to_string();
    assert!(error.contains("one length"), "{error}");
    assert!(CircuitRuns::new(&model.decoder, &unequal, Metric::LogitDiff, Ablation::Patch).is_ok());
}

/// One edge after the other, as the algorithm is written.
fn naive_acdc(runs: &CircuitRuns, threshold: f64) -> Circuit {
    let graph = &runs.graph;
    let mut kept: Vec<bool> = vec![true; graph.len()];
    let circuit = |kept: &[bool]| {
        Circuit::of(graph, graph.edges().zip(kept).filter(|(_, kept)| **kept).map(|(edge, _)| edge)).unwrap()
    };
    let mut value = runs.values(&[circuit(&kept)]).unwrap()[0];
    for reader in (0..graph.readers().len()).rev() {
        let nodes = graph.nodes_of(graph.readers()[reader]);
        let alive = graph.readers()[reader] == Reader::Logits
            || graph.edges().zip(&kept).any(|(edge, kept)| *kept && nodes.contains(&edge.from));
        for number in graph.edges_into(reader).rev() {
            kept[number] = false;
            let tried = runs.values(&[circuit(&kept)]).unwrap()[0];
            let damage = runs.metric.damage(value, tried);
            match !alive || damage < threshold {
                true => value = if alive { tried } else { value },
                false => kept[number] = true,
            }
        }
    }
    circuit(&kept).pruned(graph)
}

#[test]
fn a_search_of_several_edges_at_once_is_the_search_one_by_one() {
    for name in ["gpt2-odd", "llama-grouped"] {
        let model = open(name);
        for (metric, threshold) in [(Metric::Kl, 3e-5), (Metric::Kl, 1e-3), (Metric::LogitDiff, 1e-3)] {
            let runs = CircuitRuns::new(&model.decoder, &pairs(), metric, Ablation::Patch).unwrap();
            let found = acdc(&runs, threshold, go).unwrap();
            let naive = naive_acdc(&runs, threshold);
            let names = |circuit: &Circuit| circuit.edges(&runs.graph).map(|edge| edge.to_string()).collect::<Vec<_>>();
            assert_eq!(names(&found.circuit), names(&naive), "{name} {metric:?} {threshold}");
        }
        let runs = CircuitRuns::new(&model.decoder, &pairs(), Metric::Kl, Ablation::Patch).unwrap();
        assert!(acdc(&runs, 1e9, go).unwrap().circuit.is_empty());
        assert!(acdc(&runs, f64::NAN, go).is_err());
        assert!(acdc(&runs, 0., |_| ControlFlow::Break(())).is_err());
    }
}

#[test]
fn integrated_gradients_of_one_step_are_gradients_at_an_end() {
    let model = open("gpt2-odd");
    let score = |method, pairs: &[Pair]| {
        edge_scores(&model.decoder, &EdgeSweep::new(method), pairs, Planner::default(), go).unwrap().effects
    };
    let swapped: Vec<Pair> = pairs()
        .into_iter()
        .map(|pair| Pair { clean: pair.corrupt.clone(), corrupt: pair.clean.clone(), ..pair })
        .collect();
    // The only point is the donor's embedding: the gradient there, times the difference the other way round.
    let one = score(EdgeMethod::IntegratedInputs { steps: 1 }, &pairs());
    let there = score(EdgeMethod::Gradient, &swapped);
    assert!(one.iter().zip(&there).all(|(a, b)| (a + b).abs() < TOLERANCE));
    // The only point is the recipient's own write.
    let (one, here) =
        (score(EdgeMethod::IntegratedWrites { steps: 1 }, &pairs()), score(EdgeMethod::Gradient, &pairs()));
    assert!(one.iter().zip(&here).all(|(a, b)| (a - b).abs() < TOLERANCE));
    let zero = EdgeSweep::new(EdgeMethod::IntegratedInputs { steps: 0 });
    assert!(edge_scores(&model.decoder, &zero, &pairs(), Planner::default(), go).is_err());
}

#[test]
fn more_steps_come_closer_to_what_patching_everything_gives() {
    let model = open("gpt2-odd");
    let whole = |method| {
        let scores = edge_scores(&model.decoder, &EdgeSweep::new(method), &pairs(), Planner::default(), go).unwrap();
        let input: f64 = scores
            .graph
            .edges()
            .zip(&scores.effects)
            .filter(|(edge, _)| edge.from == Node::Input)
            .map(|(_, e)| e)
            .sum();
        (input, scores.corrupt - scores.clean)
    };
    // Completeness of integrated gradients at the input: all edges from it together.
    let (few, expected) = whole(EdgeMethod::IntegratedInputs { steps: 2 });
    let (many, _) = whole(EdgeMethod::IntegratedInputs { steps: 64 });
    assert!((many - expected).abs() < 0.05 * expected.abs(), "{many} {expected}");
    assert!((many - expected).abs() < (few - expected).abs());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn random_circuits_do_not_depend_on_what_they_are_run_with(seed in 0u64..1000) {
        let model = open("gpt2-odd");
        let runs = CircuitRuns::new(&model.decoder, &pairs(), Metric::LogitDiff, Ablation::Patch).unwrap();
        let random = |salt: u64| {
            let kept = runs.graph.edges().enumerate().filter(|(at, _)| {
                (*at as u64 + 1).wrapping_mul(seed + 7919).wrapping_add(salt * 104_729) % 97 < 60
            });
            Circuit::of(&runs.graph, kept.map(|(_, edge)| edge)).unwrap()
        };
        let circuits: Vec<Circuit> = (0..3).map(random).collect();
        let together = runs.values(&circuits).unwrap();
        for (circuit, value) in circuits.iter().zip(together) {
            let alone = runs.values(std::slice::from_ref(circuit)).unwrap()[0];
            prop_assert_eq!(alone, value);
            let pruned = runs.values(&[circuit.pruned(&runs.graph)]).unwrap()[0];
            prop_assert!((alone - pruned).abs() < TOLERANCE, "pruning changes nothing that reaches the logits");
        }
    }
}

#[test]
fn a_network_with_a_norm_after_its_heads_is_refused() {
    let model = open("gemma2-odd");
    assert!(model.decoder.sites().resolve_one("blocks.0.ln1_post.hook_scale").is_ok());
    let error =
        CircuitRuns::new(&model.decoder, &pairs(), Metric::LogitDiff, Ablation::Patch).err().unwrap().to_string();
    assert!(error.contains("a norm lies between"), "{error}");
}
