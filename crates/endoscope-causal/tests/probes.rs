//! Probes against scikit-learn (tools/goldens/probe_goldens.py), and on the activations of a model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use endoscope_causal::probe::*;
use endoscope_causal::statistics::Resampling;
use endoscope_models::Model;
use endoscope_net::{Change, Edit, Index, Inputs, Network, Plan};
use serde::Deserialize;

/// scikit-learn's solver stops a little before the minimum.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Goldens {
    features: Vec<Vec<f64>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    l2: f64,
    standardised: bool,
    intercept: bool,
    labels: Vec<f64>,
    directions: Vec<Vec<f64>>,
    biases: Vec<f64>,
    #[serde(default)]
    probabilities: Vec<Vec<f64>>,
    #[serde(default)]
    predictions: Vec<f64>,
}

fn worst(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs().max(1.)).fold(0., f64::max)
}

#[test]
fn weights_and_predictions_are_those_of_scikit_learn() {
    let goldens: Goldens = serde_json::from_str(include_str!("goldens/probes.json")).unwrap();
    let count = goldens.features.len();
    let features =
        Tensor::from_vec(goldens.features.concat(), (count, goldens.features[0].len()), &Device::Cpu).unwrap();
    assert_eq!(goldens.cases.len(), 36);
    for case in goldens.cases {
        let kind = match case.kind.as_str() {
            "ridge" => ProbeKind::Ridge { l2: case.l2 },
            _ => ProbeKind::Logistic { l2: case.l2 },
        };
        let labels = match kind {
            ProbeKind::Ridge { .. } => Labels::Numbers(case.labels.clone()),
            _ => Labels::Classes {
                names: (0..case.probabilities[0].len()).map(|class| class.to_string()).collect(),
                of: case.labels.iter().map(|&label| label as usize).collect(),
            },
        };
        let probe = Probe {
            kind,
            features: if case.standardised { Features::Standardised } else { Features::Raw },
            intercept: if case.intercept { Intercept::Fitted } else { Intercept::None },
        };
        let fitted = probe.fit(&Examples::new(&features, labels, (0..count).collect()).unwrap()).unwrap();
        let what = format!("{probe:?}, {} directions", case.directions.len());
        let off = worst(&fitted.directions.concat(), &case.directions.concat());
        assert!(off <= TOLERANCE, "{what}: directions differ by {off:e}");
        let off = worst(&fitted.biases, &case.biases);
        assert!(off <= TOLERANCE, "{what}: biases differ by {off:e}");
        let off = match kind {
            ProbeKind::Ridge { .. } => worst(&fitted.scores(&features).unwrap().concat(), &case.predictions),
            _ => worst(&fitted.probabilities(&features).unwrap().concat(), &case.probabilities.concat()),
        };
        assert!(off <= TOLERANCE, "{what}: predictions differ by {off:e}");
    }
}

#[test]
fn a_mass_mean_probe_points_from_one_mean_to_the_other() {
    let features = Tensor::new(&[[0f32, 1.], [2., 1.], [4., 5.], [4., 7.], [4., 6.]], &Device::Cpu).unwrap();
    let labels = Labels::Classes { names: vec!["no".into(), "yes".into()], of: vec![0, 0, 1, 1, 1] };
    let examples = Examples::new(&features, labels, (0..5).collect()).unwrap();
    let probe = Probe { kind: ProbeKind::MassMean, features: Features::Raw, intercept: Intercept::Fitted };
    let fitted = probe.fit(&examples).unwrap();
    // Means (1, 1) and (4, 6): half-way between them is (2.5, 3.5).
    assert_eq!((fitted.directions, fitted.biases), (vec![vec![3., 5.]], vec![-25.]));
}

fn tiny(name: &str) -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name)).unwrap()
}

/// Rows whose label is whether token 7 or 9 stands in them, at a place that varies; of two lengths.
fn rows() -> Vec<ProbeRow> {
    (0..24u32)
        .map(|number| {
            let word = if number % 2 == 0 { 7 } else { 9 };
            let mut tokens = vec![1 + number % 5, 11 + number % 7, word, 2 + number % 3];
            if number % 3 == 0 {
                tokens.push(4);
            }
            ProbeRow { tokens, positions: Index::At(-1), group: number as usize }
        })
        .collect()
}

fn labels() -> Labels {
    let of = (0..24).map(|number| number % 2).collect();
    Labels::Classes { names: vec!["seven".into(), "nine".into()], of }
}

fn asked(over: ProbeOver, site: &str) -> ProbeSites {
    ProbeSites {
        site: site.into(),
        over,
        probe: Probe {
            kind: ProbeKind::Logistic { l2: 1. },
            features: Features::Standardised,
            intercept: Intercept::Fitted,
        },
        split: Split::Folds { count: 4, seed: 0 },
        control_types: ControlTypes::Rows,
    }
}

fn few() -> Resampling {
    Resampling { resamples: 100, ..Resampling::default() }
}

fn probed(model: &Model, asked: &ProbeSites) -> endoscope_causal::Result<Vec<Probed>> {
    probe_sites(&model.decoder, asked, &rows(), &labels(), &few(), |_| std::ops::ControlFlow::Continue(()))
}

#[test]
fn examples_are_the_activations_of_the_positions_asked_for() {
    let model = tiny("gpt2-odd");
    let found = probed(&model, &asked(ProbeOver::Layer, "resid_post")).unwrap();
    assert_eq!(found.iter().map(|probed| probed.layer).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert_eq!(found[1].site, "blocks.1.hook_resid_post");
    // By hand: each row alone.
    let activations: Vec<Tensor> = rows()
        .iter()
        .map(|row| {
            let plan = Plan::default().capture(endoscope_net::Capture::new("resid_post.1"));
            let run = model.decoder.run(&Inputs::tokens(vec![row.tokens.clone()]).unwrap(), &plan).unwrap();
            let all = run.captured.get("blocks.1.hook_resid_post").unwrap().squeeze(0).unwrap();
            all.get(row.tokens.len() - 1).unwrap()
        })
        .collect();
    let features = Tensor::stack(&activations, 0).unwrap();
    let examples = Examples::new(&features, labels(), (0..24).collect()).unwrap();
    let fitted = asked(ProbeOver::Layer, "").probe.fit(&examples).unwrap();
    let off = worst(&found[1].fitted.directions.concat(), &fitted.directions.concat());
    assert!(off < 1e-3, "{off:e}");
    let alone =
        score(&asked(ProbeOver::Layer, "").probe, &examples, Split::Folds { count: 4, seed: 0 }, &few()).unwrap();
    let (found, alone) = (found[1].scores.accuracy.unwrap(), alone.accuracy.unwrap());
    assert_eq!(found.estimate, alone.estimate);
}

#[test]
fn a_direction_can_be_projected_out_and_the_probe_is_blind_then() {
    let model = tiny("llama-grouped");
    let found = probed(&model, &asked(ProbeOver::Layer, "resid_post")).unwrap();
    let Probed { site, fitted, .. } = &found[0];
    let directions = fitted.tensor().unwrap();
    assert_eq!((directions.dtype(), directions.dim(0).unwrap()), (DType::F32, 1));
    let scores = |plan: Plan| -> Vec<f64> {
        let row = &rows()[0];
        let plan = plan.capture(endoscope_net::Capture::new(site));
        let run = model.decoder.run(&Inputs::tokens(vec![row.tokens.clone()]).unwrap(), &plan).unwrap();
        let all = run.captured.get(site).unwrap().squeeze(0).unwrap();
        fitted.scores(&all).unwrap().into_iter().map(|row| row[0] - fitted.biases[0]).collect()
    };
    let out = Plan::default().edit(Edit::new(site, Change::ProjectOut { directions: directions.into() }));
    assert!(scores(Plan::default()).iter().any(|score| score.abs() > 0.1));
    assert!(scores(out).iter().all(|score| score.abs() < 1e-4));
}

#[test]
fn heads_are_probed_one_by_one() {
    let model = tiny("gpt2-odd");
    let heads = probed(&model, &asked(ProbeOver::LayerAndHead, "z")).unwrap();
    let together = probed(&model, &asked(ProbeOver::Layer, "z")).unwrap();
    let count = heads.iter().filter(|probed| probed.layer == Some(0)).count();
    assert_eq!((heads.len(), heads[1].head), (3 * count, Some(1)));
    let dim = |probed: &Probed| probed.fitted.directions[0].len();
    assert_eq!(dim(&together[0]), count * dim(&heads[0]));
    // Whatever has the same shape has the same random features, and so the same control.
    assert!(heads.iter().all(|probed| probed.random == heads[0].random));
    assert!(heads.iter().any(|probed| probed.shuffled != heads[0].shuffled));
}

#[test]
fn what_cannot_be_probed_is_refused() {
    let model = tiny("gpt2-odd");
    let check = |asked: ProbeSites, part: &str| {
        let error = probed(&model, &asked).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    check(asked(ProbeOver::Layer, "resid_pots"), "resid_pots");
    check(asked(ProbeOver::LayerAndHead, "resid_post"), "no heads");
    check(asked(ProbeOver::Layer, "pattern"), "no vector");
    let watch = |_| std::ops::ControlFlow::Continue(());
    let usual = asked(ProbeOver::Layer, "resid_post");
    let with = |rows: &[ProbeRow]| probe_sites(&model.decoder, &usual, rows, &labels(), &few(), watch).unwrap_err();
    assert!(with(&rows()[1..]).to_string().contains("23 rows and 24 labels"));
    let mut far = rows();
    far[3].positions = Index::At(9);
    assert!(with(&far).to_string().contains('9'));
    let stop = |_| std::ops::ControlFlow::Break(());
    let error = probe_sites(&model.decoder, &usual, &rows(), &labels(), &few(), stop).unwrap_err();
    assert!(matches!(error, endoscope_causal::Error::Interrupted));
}
