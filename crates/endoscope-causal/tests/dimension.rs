//! Dimensions against scikit-dimension (tools/goldens/dimension_goldens.py), of manifolds that are known, and of a model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{Device, Tensor};
use endoscope_causal::dimension::*;
use endoscope_causal::probe::random_features;
use endoscope_causal::statistics::Resampling;
use endoscope_models::Model;
use endoscope_net::{Capture, Index, Inputs, Network, Plan};
use serde::Deserialize;

/// Both are f64 from the distances on.
const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Case {
    name: String,
    points: Vec<Vec<f64>>,
    kept: Vec<usize>,
    fits: Vec<FitCase>,
}

#[derive(Deserialize)]
struct FitCase {
    fit: Fit,
    discarded: f64,
    all: f64,
    local: BTreeMap<usize, Vec<f64>>,
}

fn tensor(points: &[Vec<f64>]) -> Tensor {
    Tensor::from_vec(points.concat(), (points.len(), points[0].len()), &Device::Cpu).unwrap()
}

#[test]
fn dimensions_are_those_of_scikit_dimension() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("goldens/dimension.json")).unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let points = Points::new(&tensor(&case.points)).unwrap();
        assert_eq!(points.numbers(), case.kept, "{}", case.name);
        assert_eq!(points.duplicates(), case.points.len() - case.kept.len());
        let logs = points.log_ratios().unwrap();
        for FitCase { fit, discarded, all, local } in case.fits {
            let two_nn = TwoNn { fit, discarded };
            let close = |found: f64, expected: f64| (found - expected).abs() <= TOLERANCE * expected.abs().max(1.);
            let found = two_nn.estimate(&logs).unwrap();
            assert!(close(found, all), "{} {two_nn:?}: {found} is not {all}", case.name);
            for (neighbours, expected) in local {
                let found = points.local(neighbours, &two_nn).unwrap();
                assert_eq!(found.len(), expected.len());
                for (at, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                    let found = found.unwrap();
                    assert!(close(found, expected), "{} {two_nn:?} around {at}: {found} is not {expected}", case.name);
                }
            }
        }
    }
}

/// Normal numbers `[count, dim]`, row after row.
fn normals(count: usize, dim: usize, seed: u64) -> Vec<Vec<f64>> {
    random_features(count, dim, seed).unwrap().to_vec2().unwrap()
}

fn estimate(points: &[Vec<f64>], fit: Fit) -> f64 {
    TwoNn { fit, ..TwoNn::default() }.estimate(&Points::new(&tensor(points)).unwrap().log_ratios().unwrap()).unwrap()
}

#[test]
fn known_manifolds_have_their_dimension() {
    let sphere = |dim: usize| {
        normals(1500, dim + 1, 1)
            .into_iter()
            .map(|point| {
                let norm = point.iter().map(|x| x * x).sum::<f64>().sqrt();
                point.into_iter().map(|x| x / norm).collect()
            })
            .collect::<Vec<Vec<f64>>>()
    };
    let roll: Vec<Vec<f64>> = normals(1500, 4, 2)
        .into_iter()
        .map(|point| {
            // Even numbers from normal ones: the angle of two of them.
            let even = |x: f64, y: f64| x.atan2(y) / std::f64::consts::TAU + 0.5;
            let turn = 1.5 * std::f64::consts::PI * (1. + 2. * even(point[0], point[1]));
            vec![turn * turn.cos(), 21. * even(point[2], point[3]), turn * turn.sin()]
        })
        .collect();
    // The standard error of the likelihood is d / sqrt(N): 2.6 % here, and somewhat more where the tenth is left out.
    for (name, points, dimension, share) in [
        ("circle", sphere(1), 1., 0.1),
        ("sphere", sphere(2), 2., 0.1),
        ("hypersphere", sphere(5), 5., 0.1),
        ("roll", roll, 2., 0.1),
        // With borders everywhere, and a density that is far from even, it finds too few.
        ("ten Gaussian dimensions", normals(1500, 10, 3), 10., 0.2),
    ] {
        for fit in [Fit::Linear, Fit::Likelihood] {
            let found = estimate(&points, fit);
            println!("{name} {fit:?}: {found:.3}");
            assert!((found - dimension).abs() < share * dimension, "{name} {fit:?}: {found}");
        }
    }
}

#[test]
fn noise_has_the_norms_of_the_points_and_no_structure() {
    // A circle in ten dimensions, twice as far out on one side.
    let circle: Vec<Vec<f64>> = normals(600, 2, 5)
        .into_iter()
        .map(|point| {
            let scale = if point[0] > 0. { 2. } else { 1. } / point[0].hypot(point[1]);
            (0..10).map(|at| if at < 2 { point[at] * scale } else { 0. }).collect()
        })
        .collect();
    let points = Points::new(&tensor(&circle)).unwrap();
    let noise = points.isotropic(1).unwrap();
    let dimension = |points: &Points| TwoNn::default().estimate(&points.log_ratios().unwrap()).unwrap();
    assert!((dimension(&points) - 1.).abs() < 0.2, "{}", dimension(&points));
    // On two spheres of nine dimensions, between which it finds somewhat more.
    assert!((7. ..11.).contains(&dimension(&noise)), "{}", dimension(&noise));
    assert_eq!(noise.count(), 600);
    assert_eq!(dimension(&noise), dimension(&points.isotropic(1).unwrap()), "the same seed is the same noise");
    assert_ne!(dimension(&noise), dimension(&points.isotropic(2).unwrap()));
}

#[test]
fn turning_stretching_and_moving_changes_nothing() {
    let points = normals(200, 6, 4);
    // A rotation by all pairs of axes, a scale and a shift.
    let moved: Vec<Vec<f64>> = points
        .iter()
        .map(|point| {
            let mut point = point.clone();
            for (first, second) in (0..6).flat_map(|first| (first + 1..6).map(move |second| (first, second))) {
                let (sin, cos) = (0.3 + first as f64 - second as f64 / 7.).sin_cos();
                (point[first], point[second]) =
                    (cos * point[first] - sin * point[second], sin * point[first] + cos * point[second]);
            }
            point.iter().map(|x| 1e-3 * (x + 5.)).collect()
        })
        .collect();
    // What is moved is rounded to f32 again, the distances of neighbours by some 1e-6 of them.
    let (found, again) = (estimate(&points, Fit::Linear), estimate(&moved, Fit::Linear));
    assert!((found - again).abs() < 1e-4, "{found} {again}");
}

#[test]
fn intervals_hold_the_dimension() {
    let resampling = Resampling { resamples: 200, ..Resampling::default() };
    let (mut linear, mut likelihood) = (0, 0);
    for seed in 0..60 {
        // A flat torus has no border: here the estimator has no bias but that of a few points.
        let points: Vec<Vec<f64>> = normals(300, 4, 100 + seed)
            .into_iter()
            .map(|x| {
                let norms = [x[0].hypot(x[1]), x[2].hypot(x[3])];
                vec![x[0] / norms[0], x[1] / norms[0], x[2] / norms[1], x[3] / norms[1]]
            })
            .collect();
        let points = Points::new(&tensor(&points)).unwrap();
        let alone: Vec<usize> = (0..300).collect();
        let found = measure(&points, &alone, &TwoNn::default(), None, &resampling).unwrap();
        let holds = |interval: endoscope_causal::statistics::Interval| interval.low <= 2. && 2. <= interval.high;
        linear += usize::from(holds(found.linear));
        likelihood += usize::from(holds(found.likelihood));
    }
    println!("of 60 intervals {linear} and {likelihood} hold the dimension");
    assert!((51..60).contains(&linear) && (51..60).contains(&likelihood), "{linear} {likelihood}");
}

#[test]
fn gaussian_points_have_the_covariance_and_no_curve() {
    // A circle in a plane fills one dimension; Gaussian points of its covariance fill two.
    let circle: Vec<Vec<f64>> =
        normals(800, 2, 5).into_iter().map(|x| vec![x[0] / x[0].hypot(x[1]), x[1] / x[0].hypot(x[1]), 0.]).collect();
    let points = Points::new(&tensor(&circle)).unwrap();
    let control = points.gaussian(3).unwrap();
    let of = |points: &Points| TwoNn::default().estimate(&points.log_ratios().unwrap()).unwrap();
    let (found, gaussian) = (of(&points), of(&control));
    assert!((found - 1.).abs() < 0.1 && (gaussian - 2.).abs() < 0.2, "{found} {gaussian}");
    assert_ne!(of(&points.gaussian(4).unwrap()), gaussian);
    assert_eq!(of(&points.gaussian(3).unwrap()), gaussian);
}

#[test]
fn what_has_no_dimension_is_refused() {
    let refused = |points: &[Vec<f64>], part: &str| {
        let error = Points::new(&tensor(points)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(&[vec![0., 1.], vec![2., f64::NAN]], "number 1 of point 1 is NaN");
    refused(&[vec![0., 1e300], vec![2., 1.]], "number 1 of point 0 is inf");
    refused(&[vec![0., 1.], vec![-0., 1.], vec![2., 1.], vec![2., 1.]], "of 4 points of dimension 2 2 are different");
    let none = Tensor::zeros((4, 0), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(Points::new(&none).is_err());
    // A grid: every neighbour is at distance 1.
    let grid: Vec<Vec<f64>> = (0..36).map(|at| vec![f64::from(at / 6), f64::from(at % 6)]).collect();
    let grid = Points::new(&tensor(&grid)).unwrap();
    let error = TwoNn::default().estimate(&grid.log_ratios().unwrap()).unwrap_err().to_string();
    assert!(error.contains("as far from its second"), "{error}");
    for neighbours in [0, 2, 36, usize::MAX] {
        assert!(grid.local(neighbours, &TwoNn::default()).is_err(), "{neighbours}");
    }
    assert!(grid.local(5, &TwoNn { discarded: 2., ..TwoNn::default() }).is_err());
    let few = Resampling { resamples: 20, ..Resampling::default() };
    assert!(measure(&grid, &[0; 36], &TwoNn::default(), None, &few).is_err());
    assert!(measure(&grid, &[0; 3], &TwoNn::default(), None, &few).unwrap_err().to_string().contains("no group"));
}

fn tiny(name: &str) -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name)).unwrap()
}

fn rows() -> Vec<Vec<u32>> {
    (0..20u32).map(|row| (0..8 + row % 3).map(|at| (row * 7 + at * at * (row + 1)) % 41).collect()).collect()
}

fn asked(site: &str) -> DimensionSites {
    DimensionSites {
        site: site.into(),
        positions: Index::Range { start: 1, end: None },
        points: 1000,
        two_nn: TwoNn::default(),
        neighbours: Some(12),
    }
}

fn found(model: &Model, asked: &DimensionSites) -> endoscope_causal::Result<Vec<SiteDimension>> {
    let few = Resampling { resamples: 50, ..Resampling::default() };
    dimension_sites(&model.decoder, asked, &rows(), &few, |_| ControlFlow::Continue(()))
}

#[test]
fn layers_have_the_dimension_of_their_activations() {
    let model = tiny("gpt2-odd");
    let found_at = found(&model, &asked("resid_post")).unwrap();
    assert_eq!(found_at.iter().map(|site| site.layer).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    // By hand: each row alone.
    let (mut by_hand, mut places) = (Vec::new(), Vec::new());
    for (number, row) in rows().into_iter().enumerate() {
        let length = row.len();
        let plan = Plan::default().capture(Capture::new("resid_post.1"));
        let run = model.decoder.run(&Inputs::tokens(vec![row]).unwrap(), &plan).unwrap();
        let all = run.captured.get("blocks.1.hook_resid_post").unwrap().squeeze(0).unwrap();
        by_hand.push(all.narrow(0, 1, length - 1).unwrap());
        places.extend((1..length).map(|at| (number, at)));
    }
    let by_hand = Points::new(&Tensor::cat(&by_hand, 0).unwrap()).unwrap();
    let site = &found_at[1];
    assert_eq!((site.site.as_str(), site.places.len()), ("blocks.1.hook_resid_post", site.found.points));
    assert_eq!(site.places, places);
    let all = TwoNn::default().estimate(&by_hand.log_ratios().unwrap()).unwrap();
    assert!((site.found.linear.estimate - all).abs() < 1e-2 * all, "{} {all}", site.found.linear.estimate);
    let interval = site.found.linear;
    assert!(interval.low < interval.estimate && interval.estimate < interval.high);
    let local = site.found.local.as_ref().unwrap();
    let mean = local.of.iter().map(|of| of.unwrap()).sum::<f64>() / local.of.len() as f64;
    assert!((local.mean.estimate - mean).abs() < 1e-9);
    // Embeddings without positions are as many as the tokens, whatever the rows.
    let embedding = found(&model, &DimensionSites { neighbours: None, ..asked("hook_embed") }).unwrap();
    let mut tokens: Vec<u32> = rows().iter().flat_map(|row| row[1..].to_vec()).collect();
    let all = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!((embedding[0].found.points, embedding[0].found.duplicates), (tokens.len(), all - tokens.len()));
    // Fewer points, and heads together.
    let few = found(&model, &DimensionSites { points: 40, ..asked("z") }).unwrap();
    assert!(few.iter().all(|site| site.found.points == 40 && site.control.points == 40));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let model = tiny("gpt2-odd");
    let check = |asked: DimensionSites, part: &str| {
        let error = found(&model, &asked).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    check(asked("resid_pots"), "resid_pots");
    check(asked("pattern"), "no vector");
    check(DimensionSites { points: 2, ..asked("resid_post") }, "2 positions");
    check(DimensionSites { points: 12, ..asked("resid_post") }, "12 neighbours of 12 points");
    check(DimensionSites { positions: Index::At(9), ..asked("resid_post") }, "row 0");
    check(DimensionSites { two_nn: TwoNn { discarded: -1., fit: Fit::Linear }, ..asked("resid_post") }, "left out");
    let few = Resampling { resamples: 50, ..Resampling::default() };
    let stop = |_| ControlFlow::Break(());
    let error = dimension_sites(&model.decoder, &asked("resid_post"), &rows(), &few, stop).unwrap_err();
    assert!(matches!(error, endoscope_causal::Error::Interrupted));
}
