//! Edges, circuits, direct attribution and gradient estimates against TransformerLens and torch (tools/goldens/graph_scores.py).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use endoscope_causal::*;
use endoscope_models::Model;
use serde::Deserialize;

/// Two f32 programs; the largest effects are about 0.2.
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Golden {
    clean: Vec<Vec<u32>>,
    corrupt: Vec<Vec<u32>>,
    answers: Vec<u32>,
    wrong_answers: Vec<u32>,
    steps: usize,
    exact: BTreeMap<String, f64>,
    eap: BTreeMap<String, f64>,
    eap_ig: BTreeMap<String, f64>,
    circuits: Vec<OfCircuit>,
    direct: Vec<Direct>,
    stories260k_direct: Vec<Direct>,
    estimates: BTreeMap<String, Estimates>,
}

#[derive(Deserialize)]
struct OfCircuit {
    edges: Vec<Edge>,
    value: f64,
}

#[derive(Deserialize)]
struct Direct {
    heads: Vec<f64>,
    mlps: Vec<f64>,
    accumulated: Vec<f64>,
    neurons: Vec<f64>,
}

#[derive(Deserialize)]
struct Estimates {
    gradient: Vec<f64>,
    integrated: Vec<f64>,
}

fn golden() -> (Golden, Vec<Pair>) {
    let golden: Golden = serde_json::from_str(include_str!("goldens/graph.json")).unwrap();
    let pair = |(clean, corrupt): (&Vec<u32>, &Vec<u32>)| Pair {
        clean: clean.clone(),
        corrupt: corrupt.clone(),
        answers: golden.answers.clone(),
        wrong_answers: golden.wrong_answers.clone(),
    };
    let pairs = golden.clean.iter().zip(&golden.corrupt).map(pair).collect();
    (golden, pairs)
}

fn model() -> Model {
    Model::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens/gpt2-odd")).unwrap()
}

fn go(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn close(what: &str, found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "{what}");
    let mut worst = 0f64;
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < TOLERANCE * expected.abs().max(1.), "{what} {at}: {found} {expected}");
        worst = worst.max((found - expected).abs());
    }
    worst
}

#[test]
fn edges_equal_transformer_lens() {
    let (golden, pairs) = golden();
    let model = model();
    for (method, expected) in [
        (EdgeMethod::Exact, &golden.exact),
        (EdgeMethod::Gradient, &golden.eap),
        (EdgeMethod::IntegratedInputs { steps: golden.steps }, &golden.eap_ig),
    ] {
        let scores = edge_scores(&model.decoder, &EdgeSweep::new(method), &pairs, Planner::default(), go).unwrap();
        let expected: Vec<f64> = scores.graph.edges().map(|edge| expected[&edge.to_string()]).collect();
        let worst = close(&format!("{method:?}"), &scores.effects, &expected);
        println!("{method:?}: {} edges, largest difference {worst:e}", expected.len());
    }
}

#[test]
fn circuits_equal_transformer_lens() {
    let (golden, pairs) = golden();
    let model = model();
    let runs = CircuitRuns::new(&model.decoder, &pairs, Metric::LogitDiff, Ablation::Patch).unwrap();
    for OfCircuit { edges, value } in golden.circuits {
        let circuit = Circuit::of(&runs.graph, edges).unwrap();
        close("circuit", &runs.values(&[circuit]).unwrap(), &[value]);
    }
}

fn check_direct(name: &str, model: &Model, pairs: &[Pair], expected: &[Direct]) {
    for (pair, expected) in pairs.iter().zip(expected) {
        let found = direct(&model.decoder, std::slice::from_ref(pair), go).unwrap();
        let of = |wanted: &dyn Fn(&Component) -> bool| -> Vec<f64> {
            let both = found.components.iter().zip(&found.contributions);
            both.filter(|(component, _)| wanted(component)).map(|(_, value)| *value).collect()
        };
        close(name, &of(&|component| matches!(component, Component::Head { .. })), &expected.heads);
        close(name, &of(&|component| matches!(component, Component::Mlp { .. })), &expected.mlps);
        close(name, &found.accumulated, &expected.accumulated);
        close(name, &found.neurons.concat(), &expected.neurons);
    }
}

#[test]
fn direct_attribution_equals_transformer_lens() {
    let (golden, pairs) = golden();
    check_direct("gpt2-odd", &model(), &pairs, &golden.direct);
    let shared = std::env::var_os("ENDOSCOPE_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let stories = shared.join("models/stories260k");
    if !stories.exists() && std::env::var_os("CI").is_none() {
        println!("skipped: there is no {}", stories.display());
        return;
    }
    check_direct("stories260k", &Model::open(stories).unwrap(), &pairs, &golden.stories260k_direct);
}

#[test]
fn parts_of_another_prompt_contribute_what_transformer_lens_says() {
    #[derive(Deserialize)]
    struct Exchanged {
        exchanged: Vec<Parts>,
    }
    #[derive(Deserialize)]
    struct Parts {
        heads: Vec<f64>,
        mlps: Vec<f64>,
    }
    let golden: Exchanged = serde_json::from_str(include_str!("goldens/direct_exchange.json")).unwrap();
    let (_, pairs) = self::golden();
    let model = model();
    let found = direct_exchange(&model.decoder, &pairs, go).unwrap();
    let alone = direct(&model.decoder, &pairs, go).unwrap();
    for (number, expected) in golden.exchanged.iter().enumerate() {
        let of = |wanted: &dyn Fn(&Component) -> bool| -> Vec<f64> {
            let both = found.components.iter().zip(&found.corrupt[number]);
            both.filter(|(component, _)| wanted(component)).map(|(_, value)| *value).collect()
        };
        close("heads", &of(&|component| matches!(component, Component::Head { .. })), &expected.heads);
        close("MLPs", &of(&|component| matches!(component, Component::Mlp { .. })), &expected.mlps);
        assert_eq!(found.clean[number], alone.prompts[number][..found.components.len()]);
    }
    let net = found.net(0..2);
    let expected =
        (0..net.len()).map(|at| (0..2).map(|pair| found.clean[pair][at] - found.corrupt[pair][at]).sum::<f64>() / 2.);
    close("net", &net, &expected.collect::<Vec<_>>());
    // A prompt exchanged for itself changes nothing.
    let same: Vec<Pair> = pairs.iter().map(|pair| Pair { corrupt: pair.clean.clone(), ..pair.clone() }).collect();
    let same = direct_exchange(&model.decoder, &same, go).unwrap().net(0..2);
    assert!(same.iter().all(|value| value.abs() < 1e-6), "{same:?}");
}

/// On models of every family: parts sum to the metric, and what no part writes does not depend on the prompt.
#[test]
fn contributions_sum_to_the_metric_and_the_rest_is_of_the_weights_alone() {
    let (_, pairs) = golden();
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens");
    let mut checked = 0;
    for entry in std::fs::read_dir(goldens).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").exists() {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let model = Model::open(&path).unwrap();
        let found = direct(&model.decoder, &pairs, go).unwrap();
        assert_eq!(found.components.last(), Some(&Component::Rest));
        let capped = model.spec().logit_softcap.is_some();
        let rests: Vec<f64> = found.prompts.iter().map(|prompt| prompt[prompt.len() - 1]).collect();
        for (prompt, rest) in found.prompts.iter().zip(&rests) {
            // A cap is not linear: what is left then depends on the prompt.
            assert!(capped || (rest - rests[0]).abs() < 1e-4, "{name}: {rests:?}");
            assert!(prompt.iter().all(|value| value.is_finite()), "{name}");
        }
        let total: f64 = found.contributions.iter().sum();
        assert!((total - found.metric).abs() < 1e-4, "{name}");
        // The last stream is all of them but the rest.
        let written: f64 = found.contributions[..found.contributions.len() - 1].iter().sum();
        assert!((found.accumulated[found.accumulated.len() - 1] - written).abs() < 1e-4, "{name}");
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn estimates_equal_torch() {
    let (golden, pairs) = golden();
    let model = model();
    for (site, expected) in &golden.estimates {
        let over = match site.rsplit('.').next().unwrap() {
            "hook_z" => vec![SweepAxis::Position, SweepAxis::Head],
            "hook_post" => vec![SweepAxis::Position, SweepAxis::Neuron],
            _ => vec![SweepAxis::Position],
        };
        let sweep = Sweep { direction: Direction::Noise, ..Sweep::new(site, over) };
        for (method, expected) in [
            (Estimate::Gradient, &expected.gradient),
            (Estimate::Integrated { steps: golden.steps }, &expected.integrated),
        ] {
            let found = estimate(&model.decoder, &sweep, &pairs, method, go).unwrap();
            let found: Vec<f64> = found.values.iter().map(|value| value - found.clean).collect();
            close(&format!("{site} {method:?}"), &found, expected);
        }
    }
}

/// A block of neurons, and a sweep without some axes, are the sums of their parts.
#[test]
fn estimates_add_up() {
    let (_, pairs) = golden();
    let model = model();
    let values = |over: Vec<SweepAxis>, block: usize| {
        let sweep = Sweep { neuron_block: block, ..Sweep::new("mlp.post", over) };
        let found = estimate(&model.decoder, &sweep, &pairs, Estimate::Gradient, go).unwrap();
        found.values.iter().map(|value| value - found.corrupt).collect::<Vec<f64>>()
    };
    let single = values(vec![SweepAxis::Layer, SweepAxis::Neuron], 1);
    let blocks = values(vec![SweepAxis::Layer, SweepAxis::Neuron], 7);
    let width = single.len() / 3;
    let sums: Vec<f64> =
        single.chunks(width).flat_map(|layer| layer.chunks(7).map(|block| block.iter().sum())).collect();
    close("blocks", &blocks, &sums);
    let layers = values(vec![SweepAxis::Layer], 1);
    close("layers", &layers, &single.chunks(width).map(|layer| layer.iter().sum()).collect::<Vec<f64>>());
    close(
        "position x layer",
        &[values(vec![SweepAxis::Position, SweepAxis::Layer], 1).iter().sum()],
        &[layers.iter().sum()],
    );
}

#[test]
fn what_no_gradient_says_anything_of_is_refused() {
    let (_, pairs) = golden();
    let model = model();
    let change = |text: &str| text.parse::<SweepChange>().unwrap();
    for (site, over, made, steps, part) in [
        ("attn_scores", vec![SweepAxis::Layer], change("knock_out"), None, "no key to attend to"),
        (
            "resid_pre",
            vec![SweepAxis::Layer, SweepAxis::Position],
            change(r#"{"mean": {"over": ["position"]}}"#),
            None,
            "mean over",
        ),
        ("resid_pre", vec![SweepAxis::Layer], SweepChange::Patch, Some(0), "at least one step"),
        ("resid_pre", vec![SweepAxis::Layer, SweepAxis::Direction], SweepChange::Patch, None, "directions"),
    ] {
        let sweep = Sweep { change: made, ..Sweep::new(site, over) };
        let method = steps.map_or(Estimate::Gradient, |steps| Estimate::Integrated { steps });
        let error = estimate(&model.decoder, &sweep, &pairs, method, go).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let ranked = Sweep { metric: Metric::Rank, ..Sweep::new("resid_pre", [SweepAxis::Layer]) };
    assert!(estimate(&model.decoder, &ranked, &pairs, Estimate::Gradient, go).is_err());
}
