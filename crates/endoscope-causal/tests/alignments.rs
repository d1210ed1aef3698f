//! Alignments on a network whose wires are known, gradients against torch and finite differences, and the shipped organism.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod wires;

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use endoscope_causal::*;
use endoscope_models::Model;
use endoscope_net::*;
use wires::{DIM, Variable, Wires, triples, turned};

fn run(alignment: &Alignment, triples: &[Triple]) -> Aligned {
    align(&Wires::new(), alignment, triples, |_| ControlFlow::Continue(())).unwrap()
}

/// At the last position.
fn last(site: &str, find: Find) -> Alignment {
    let select = Selection::default().with(AxisName::Position, Index::At(-1));
    Alignment { select, ..Alignment::new(site, find) }
}

/// Site and unit of everything that was chosen, row-major within a site.
fn chosen(aligned: &Aligned) -> Vec<(String, usize)> {
    let of = |site: &FoundSite| {
        let mask = site.mask.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let open = mask.iter().enumerate().filter(|(_, open)| **open == 1.).map(|(at, _)| at);
        open.map(|at| (site.site.clone(), at)).collect::<Vec<_>>()
    };
    aligned.sites.iter().flat_map(of).collect()
}

fn unit(layer: usize, head: usize) -> (String, usize) {
    (format!("blocks.{layer}.attn.hook_z"), head)
}

/// What was found does what is wanted on what it has never seen, and nothing else does.
fn only_found(aligned: &Aligned) {
    let accuracy = |intervention| aligned.accuracy(intervention).unwrap();
    assert_eq!(accuracy(Intervention::Found), 1., "{:?}", aligned.outcomes);
    for control in
        [Intervention::Nothing, Intervention::Everything, Intervention::Random, Intervention::ShuffledSources]
    {
        assert!(accuracy(control) < 0.8, "{control:?}: {:?}", aligned.outcomes);
    }
}

#[test]
fn masks_are_sought_among_the_heads_named_for_each_layer() {
    let among = |first: &[i64], second: &[i64]| Alignment {
        heads: [(0, Index::List(first.to_vec())), (1, Index::List(second.to_vec()))].into(),
        ..last("z", Find::Heads { gate: Gate::Clamp })
    };
    let all = triples(Variable::A, 120, 3);
    let aligned = run(&among(&[1, 3], &[0, 2, 3]), &all);
    let [first, second] = [0, 1].map(|at| aligned.sites[at].heads.clone());
    assert_eq!((first, second), (vec![1, 3], vec![0, 2, 3]));
    // Both of the variable's heads are among them; by their place among those named.
    assert_eq!(chosen(&aligned), [unit(0, 1), unit(1, 1)]);
    assert_eq!(aligned.accuracy(Intervention::Found), Some(1.));
    let without = run(&among(&[1, 2], &[0, 1]), &all);
    assert!(without.accuracy(Intervention::Found).unwrap() < 0.8, "{:?}", without.outcomes);
    assert!(without.accuracy(Intervention::Everything).unwrap() < 0.8, "{:?}", without.outcomes);
}

#[test]
fn masks_find_exactly_the_heads_that_carry_a_variable() {
    for gate in Gate::ALL {
        for (variable, heads) in [(Variable::A, [unit(0, 3), unit(1, 2)]), (Variable::B, [unit(0, 1), unit(1, 0)])] {
            let aligned = run(&last("z", Find::Heads { gate }), &triples(variable, 120, 3));
            assert_eq!(chosen(&aligned), heads, "{gate:?}, {variable:?}");
            for site in &aligned.sites {
                let soft = site.soft.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(soft.iter().all(|number| (0. ..=1.).contains(number)), "{gate:?}: {soft:?}");
            }
            only_found(&aligned);
        }
    }
}

#[test]
fn masks_find_exactly_the_neurons_and_the_directions() {
    let a = triples(Variable::A, 120, 4);
    for gate in Gate::ALL {
        let neurons = run(&last("mlp_post.1", Find::Neurons { gate }), &a);
        let directions = run(&last("resid_post.1", Find::Directions { gate, directions: turned().into() }), &a);
        for (aligned, site) in [(&neurons, "mlp.hook_post"), (&directions, "hook_resid_post")] {
            let units: Vec<_> = [2, 5].map(|at| (format!("blocks.1.{site}"), at)).into();
            assert_eq!(chosen(aligned), units, "{gate:?}");
            only_found(aligned);
        }
    }
    // Each head has numbers of its own: of those in layer 1 only head 2's second carries something of the variable.
    let alignment = Alignment { objective: Objective::LogitDiff, ..last("z.1", Find::Neurons { gate: Gate::Clamp }) };
    let aligned = run(&alignment, &a);
    assert_eq!(chosen(&aligned), [unit(1, 2 * 2 + 1)]);
    assert_eq!(aligned.sites[0].mask.dims(), [4, 2]);
}

/// The largest angle between two planes given by orthonormal rows `[2, dim]`, in degrees.
fn angle(found: &Tensor, known: &Tensor) -> f64 {
    let m = found.matmul(&known.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let [a, b, c, d] = [m[0][0], m[0][1], m[1][0], m[1][1]].map(f64::from);
    let (squares, determinant) = (a * a + b * b + c * c + d * d, a * d - b * c);
    let smallest = (squares / 2. - (squares * squares / 4. - determinant * determinant).max(0.).sqrt()).max(0.).sqrt();
    smallest.min(1.).acos().to_degrees()
}

#[test]
fn rotations_find_the_plane_that_a_variable_lies_in() {
    let known = |rows: [u32; 2]| turned().index_select(&Tensor::new(&rows, &Device::Cpu).unwrap(), 0).unwrap();
    for (variable, rows) in [(Variable::A, [2, 5]), (Variable::B, [0, 7])] {
        for find in [Find::Subspace { dims: 2 }, Find::Boundless] {
            let alignment = Alignment { steps: 400, ..last("resid_post.1", find.clone()) };
            let aligned = run(&alignment, &triples(variable, 160, 5));
            only_found(&aligned);
            let [site] = aligned.sites.as_slice() else { panic!("one site") };
            assert_eq!(site.size(), 2, "{find:?}: {}", site.soft);
            let along = site.along.as_ref().unwrap();
            assert_eq!(along.dims(), [2, DIM]);
            let off = angle(along, &known(rows));
            assert!(off < 5., "{variable:?}, {find:?}: {off} degrees");
            // The other variable's plane is as far away as can be.
            let other = if rows == [2, 5] { [0, 7] } else { [2, 5] };
            assert!(angle(along, &known(other)) > 80.);
            let products = along.matmul(&along.t().unwrap()).unwrap();
            let identity = Tensor::eye(2, DType::F32, &Device::Cpu).unwrap();
            let worst = (products - identity).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 1e-5, "{worst:e}");
        }
    }
}

#[test]
fn a_subspace_that_is_too_small_or_in_the_wrong_place_does_not_do() {
    let a = triples(Variable::A, 160, 6);
    let one = run(&last("resid_post.1", Find::Subspace { dims: 1 }), &a);
    assert!(one.accuracy(Intervention::Found).unwrap() < 0.9, "{:?}", one.outcomes);
    let first = Selection::default().with(AxisName::Position, Index::At(0));
    let elsewhere = Alignment { select: first, ..last("resid_post.1", Find::Subspace { dims: 2 }) };
    let elsewhere = run(&elsewhere, &a);
    assert_eq!(elsewhere.accuracy(Intervention::Found), elsewhere.accuracy(Intervention::Nothing));
    // A head's own space, chosen by the selection: one bit of the variable is there.
    let head = Selection::default().with(AxisName::Head, Index::At(2)).with(AxisName::Position, Index::At(-1));
    let head = Alignment { select: head, ..last("z.1", Find::Subspace { dims: 2 }) };
    let head = run(&head, &a);
    let everything = head.accuracy(Intervention::Everything);
    assert_eq!(head.accuracy(Intervention::Found), everything);
    assert_eq!(head.sites[0].along.as_ref().unwrap().dims(), [2, 2]);
}

#[test]
fn a_run_repeats_under_its_seed_and_what_weighs_nothing_is_not_trained_on() {
    let alignment = last("z", Find::Heads { gate: Gate::HardConcrete });
    let mut both = triples(Variable::A, 60, 7);
    both.extend(triples(Variable::B, 60, 8).into_iter().map(|triple| Triple { weight: 0., ..triple }));
    let (one, two) = (run(&alignment, &both), run(&alignment, &both));
    assert_eq!(one.losses, two.losses);
    assert_eq!(one.outcomes, two.outcomes);
    let other = run(&Alignment { seed: 1, ..alignment.clone() }, &both);
    assert_ne!(one.losses, other.losses);
    assert_eq!(chosen(&one), [unit(0, 3), unit(1, 2)]);
    let found = &one.outcomes.iter().find(|outcome| outcome.intervention == Intervention::Found).unwrap().held_out;
    let names: Vec<&str> = found.iter().map(|score| score.desideratum.as_str()).collect();
    assert_eq!(names, ["A", "B"]);
    assert_eq!(found[0].accuracy, 1.);
    assert!(found[1].accuracy < 0.6, "{found:?}");
    assert!(found[0].logit_diff.unwrap() > 3. && found[1].logit_diff.unwrap() < 0., "{found:?}");
    // A penalty that nothing is worth leaves nothing.
    let dear = run(&Alignment { penalty: 1e3, ..alignment }, &both);
    assert_eq!(chosen(&dear), []);
    assert_eq!(dear.accuracy(Intervention::Found), dear.accuracy(Intervention::Nothing));
}

#[test]
fn what_makes_no_sense_is_refused_and_a_watcher_may_end_it() {
    let good = triples(Variable::A, 8, 1);
    let heads = || Find::Heads { gate: Gate::Clamp };
    let base = last("z", heads());
    for (alignment, part) in [
        (Alignment { steps: 0, ..base.clone() }, "at least one step"),
        (Alignment { batch: 0, ..base.clone() }, "one triple at least"),
        (Alignment { held_out: 1., ..base.clone() }, "below 1"),
        (Alignment { held_out: f64::NAN, ..base.clone() }, "below 1"),
        (Alignment { penalty: -1., ..base.clone() }, "penalty"),
        (Alignment { learning_rate: 0., ..base.clone() }, "learning rate"),
        (last("zz", heads()), "unknown site"),
        (last("resid_post.1", heads()), "no heads"),
        (last("resid_post.1", Find::Subspace { dims: 0 }), "one dim at least"),
        (last("resid_post.1", Find::Subspace { dims: DIM + 1 }), "does not fit into vectors"),
        (last("resid_post.1", Find::Directions { gate: Gate::Clamp, directions: 1.0.into() }), "an array"),
        (
            last(
                "resid_post.1",
                Find::Directions {
                    gate: Gate::Clamp,
                    directions: Tensor::ones((2, DIM), DType::F32, &Device::Cpu).unwrap().into(),
                },
            ),
            "orthonormal",
        ),
        (Alignment { select: Selection::default().with(AxisName::Head, Index::At(4)), ..base.clone() }, "out of range"),
        (
            Alignment { select: Selection::default().with(AxisName::Query, Index::At(0)), ..base.clone() },
            "no axis `query`",
        ),
        (
            Alignment {
                select: Selection::default().with(AxisName::Dim, Index::At(0)),
                ..last("resid_post.1", Find::Subspace { dims: 1 })
            },
            "whole vector",
        ),
    ] {
        let error = align(&Wires::new(), &alignment, &good, |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let unequal = vec![Triple { source: vec![1], ..good[0].clone() }];
    let missing = vec![Triple { answers: vec![], ..good[0].clone() }];
    let far = vec![Triple { answers: vec![99], ..good[0].clone() }];
    for (triples, part) in
        [(vec![], "no triple"), (unequal, "equal length"), (missing, "answer is missing"), (far, "99 is out of range")]
    {
        let error = align(&Wires::new(), &base, &triples, |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    let mut heard = 0;
    let stopped = align(&Wires::new(), &base, &good, |progress| {
        heard = progress.done;
        if progress.done == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(endoscope_causal::Error::Interrupted)));
    assert_eq!(heard, 3);
}

fn tiny(name: &str) -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name)).unwrap()
}

#[derive(serde::Deserialize)]
struct Golden {
    model: String,
    layer: usize,
    plus: u32,
    minus: u32,
    bases: Vec<Vec<u32>>,
    sources: Vec<Vec<u32>>,
    heads: Edited,
    rotation: Edited,
}

#[derive(serde::Deserialize)]
struct Edited {
    mask: Vec<f32>,
    loss: f32,
    mask_gradient: Vec<f32>,
    #[serde(default)]
    rotation: Vec<Vec<f32>>,
    #[serde(default)]
    rotation_gradient: Vec<Vec<f32>>,
}

/// The mean over rows of the logit difference under an interpolation of `site`.
struct Measured<'a> {
    model: &'a Model,
    golden: &'a Golden,
    site: String,
    select: Selection,
    source: Value,
}

impl<'a> Measured<'a> {
    fn new(model: &'a Model, golden: &'a Golden, site: String, select: Selection) -> Self {
        let sources = Inputs::tokens(golden.sources.clone()).unwrap();
        let run = model.decoder.run(&sources, &Plan::default().capture(Capture::new(&site))).unwrap();
        let source = run.captured.iter().next().unwrap().1.clone().into();
        Self { model, golden, site, select, source }
    }

    fn loss(&self, mask: &Tensor, along: Option<&Tensor>) -> Tensor {
        let change = Change::Interpolate {
            source: self.source.clone(),
            mask: mask.clone().into(),
            along: along.map(|along| along.clone().into()),
        };
        let edit = Edit { site: self.site.clone(), select: self.select.clone(), change };
        let plan = Plan::default().edit(edit).outputs_at(Index::At(-1));
        let bases = Inputs::tokens(self.golden.bases.clone()).unwrap();
        let logits = self.model.decoder.run(&bases, &plan).unwrap().outputs;
        let target = Target { answers: vec![self.golden.plus], wrong_answers: vec![self.golden.minus], clean: vec![] };
        let row =
            |row: usize| Metric::LogitDiff.differentiable(&logits.get(row).unwrap().get(0).unwrap(), &target).unwrap();
        ((row(0) + row(1)).unwrap() * 0.5).unwrap()
    }
}

fn near(found: &Tensor, expected: &[f32], tolerance: f32, what: &str) {
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(worst <= tolerance, "{what} differs by {worst:e}: {found:?} {expected:?}");
}

#[test]
fn gradients_of_masks_and_rotations_are_those_of_torch_and_of_finite_differences() {
    let golden: Golden = serde_json::from_str(include_str!("goldens/alignments.json")).unwrap();
    let model = tiny(&golden.model);
    let slopes = |at: &Tensor, loss: &dyn Fn(&Tensor) -> Tensor| -> Vec<f32> {
        let (shape, numbers) = (at.dims().to_vec(), at.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        let moved = |entry: usize, step: f32| {
            let mut numbers = numbers.clone();
            numbers[entry] += step;
            loss(&Tensor::from_vec(numbers, shape.clone(), &Device::Cpu).unwrap()).to_scalar::<f32>().unwrap()
        };
        (0..numbers.len()).map(|entry| (moved(entry, 4e-3) - moved(entry, -4e-3)) / 8e-3).collect()
    };
    // Differences of numbers of size 4 in f32, over 8e-3, are no better than this.
    const SLOPES: f32 = 1e-3;
    {
        let Edited { mask, loss, mask_gradient, .. } = &golden.heads;
        let measured = Measured::new(&model, &golden, format!("z.{}", golden.layer), Selection::default());
        let mask =
            Var::from_tensor(&Tensor::new(mask.as_slice(), &Device::Cpu).unwrap().unsqueeze(1).unwrap()).unwrap();
        let found = measured.loss(mask.as_tensor(), None);
        assert!((found.to_scalar::<f32>().unwrap() - loss).abs() < 1e-4);
        let gradients = found.backward().unwrap();
        let gradient = gradients.get(&mask).unwrap();
        near(gradient, mask_gradient, 1e-4, "mask over heads, torch");
        near(gradient, &slopes(mask.as_tensor(), &|mask| measured.loss(mask, None)), SLOPES, "mask over heads, slopes");
    }
    let Edited { mask, loss, mask_gradient, rotation, rotation_gradient } = &golden.rotation;
    let select = Selection::default().with(AxisName::Position, Index::At(-1));
    let measured = Measured::new(&model, &golden, format!("resid_post.{}", golden.layer), select);
    let mask = Var::new(mask.as_slice(), &Device::Cpu).unwrap();
    let flat = Tensor::new(rotation.concat(), &Device::Cpu).unwrap();
    let rotation = Var::from_tensor(&flat.reshape((rotation.len(), rotation[0].len())).unwrap()).unwrap();
    let found = measured.loss(mask.as_tensor(), Some(rotation.as_tensor()));
    assert!((found.to_scalar::<f32>().unwrap() - loss).abs() < 1e-4);
    let gradients = found.backward().unwrap();
    near(gradients.get(&mask).unwrap(), mask_gradient, 1e-4, "mask over directions, torch");
    near(gradients.get(&rotation).unwrap(), &rotation_gradient.concat(), 1e-4, "rotation, torch");
    let along = rotation.as_tensor();
    near(
        gradients.get(&mask).unwrap(),
        &slopes(mask.as_tensor(), &|mask| measured.loss(mask, Some(along))),
        SLOPES,
        "mask over directions, slopes",
    );
    // The steps leave the rows orthonormal to 1e-3 only if they are small.
    let slopes = |at: &Tensor| {
        let numbers = at.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let moved = |entry: usize, step: f32| {
            let mut numbers = numbers.clone();
            numbers[entry] += step;
            let moved = Tensor::from_vec(numbers, at.shape(), &Device::Cpu).unwrap();
            measured.loss(mask.as_tensor(), Some(&moved)).to_scalar::<f32>().unwrap()
        };
        (0..numbers.len()).map(|entry| (moved(entry, 4e-4) - moved(entry, -4e-4)) / 8e-4).collect::<Vec<f32>>()
    };
    near(gradients.get(&rotation).unwrap(), &slopes(along), 5e-3, "rotation, slopes");
}

#[test]
fn a_mask_of_ones_is_a_patch_and_one_of_zeros_no_change_to_the_bit() {
    for name in ["gpt2-odd", "llama-grouped"] {
        let model = tiny(name);
        let inputs = |rows: &[[u32; 4]]| Inputs::tokens(rows.iter().map(|row| row.to_vec()).collect()).unwrap();
        let (bases, sources) = (inputs(&[[1, 7, 3, 4], [9, 2, 2, 8]]), inputs(&[[2, 9, 3, 5], [9, 4, 1, 6]]));
        for site in
            ["blocks.1.attn.hook_z", "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", "blocks.2.attn.hook_k"]
        {
            let source = model.decoder.run(&sources, &Plan::default().capture(Capture::new(site))).unwrap();
            let source = || Value::from(source.captured.get(site).unwrap().clone());
            let under = |changes: Vec<Change>| {
                let plan = changes.into_iter().fold(Plan::default(), |plan, change| {
                    plan.edit(Edit::new(site, change).at(AxisName::Position, Index::Range { start: -2, end: None }))
                });
                let outputs = model.decoder.run(&bases, &plan).unwrap().outputs;
                outputs.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let mask = |mask: f64| Change::Interpolate { source: source(), mask: mask.into(), along: None };
            let (patched, untouched) = (under(vec![Change::Patch { source: source() }]), under(vec![]));
            assert_eq!(under(vec![mask(1.)]), patched, "{name} {site}");
            assert_eq!(under(vec![mask(0.)]), untouched, "{name} {site}");
            assert_ne!(patched, untouched, "{name} {site}");
            // The same along all directions, and a trained mask, which takes other operations.
            let dim = source_dim(&source());
            let along = Some(Tensor::eye(dim, DType::F32, &Device::Cpu).unwrap().into());
            let whole = under(vec![Change::Interpolate { source: source(), mask: 1.0.into(), along }]);
            let trained = Var::new(&[1f32], &Device::Cpu).unwrap().as_tensor().clone().into();
            let trained = under(vec![Change::Interpolate { source: source(), mask: trained, along: None }]);
            for other in [whole, trained] {
                let worst = other.iter().zip(&patched).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
                assert!(worst < 1e-4, "{name} {site}: {worst:e}");
            }
        }
    }
}

fn source_dim(value: &Value) -> usize {
    match value {
        Value::Array(array) => *array.0.dims().last().unwrap(),
        _ => panic!("an array"),
    }
}

/// In the organism the induction heads 1.0 and 1.1 write the next word at the last position; layer 0 writes it nowhere there.
#[test]
fn the_induction_heads_of_the_organism_are_found() {
    let model = Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction")).unwrap();
    // <bos>, ten different words, and the first five or six again; the source has another word where the answer stands.
    let triple = |number: u32| {
        let word = |at: u32| 2 + (number * 7 + at * 5) % 64;
        let mut base: Vec<u32> = vec![0];
        let again = 5 + number % 2;
        base.extend((0..10).chain(0..again).map(word));
        let place = again as usize + 1;
        let (old, new) = (base[place], word(11));
        let mut source = base.clone();
        source[place] = new;
        Triple {
            base,
            source,
            answers: vec![new],
            wrong_answers: vec![old],
            desideratum: "the word after".into(),
            weight: 1.,
        }
    };
    let triples: Vec<Triple> = (0..40).map(triple).collect();
    let alignment = Alignment { steps: 60, ..last("z", Find::Heads { gate: Gate::Clamp }) };
    let aligned = align(&model.decoder, &alignment, &triples, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(chosen(&aligned), [unit(1, 0), unit(1, 1)]);
    let accuracy = |intervention| aligned.accuracy(intervention).unwrap();
    assert!(accuracy(Intervention::Found) > 0.95, "{:?}", aligned.outcomes);
    assert_eq!(accuracy(Intervention::Nothing), 0.);
    assert!(accuracy(Intervention::ShuffledSources) < 0.2, "{:?}", aligned.outcomes);
}
