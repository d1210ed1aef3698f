//! Lenses against TransformerLens and torch.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use endoscope_causal::Error;
use endoscope_causal::lens::jacobian::{JacobianSettings, Over, average};
use endoscope_causal::lens::tuned::{TunedSettings, train};
use endoscope_causal::lens::{Ask, Kind, Lens, Streams, Translator, losses, read, reciprocal_ranks};
use endoscope_models::Model;
use endoscope_net::{AxisName, Change, Edit, Index, Inputs, Network, Plan};

/// Of logits, probabilities, entropies and divergences, and of each entry of a Jacobian.
const TOLERANCE: f64 = 1e-4;

fn golden(name: &str) -> HashMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/lens").join(format!("{name}.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn tiny(name: &str) -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name)).unwrap()
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

fn going(_: endoscope_causal::Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn ids(golden: &HashMap<String, Tensor>) -> Vec<u32> {
    golden["tokens"].flatten_all().unwrap().to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
    assert!(worst <= TOLERANCE, "{what} differs by {worst:e}");
}

#[test]
fn the_logit_lens_equals_transformer_lens() {
    for (name, model) in [("gpt2-odd", Some(tiny("gpt2-odd"))), ("stories260k", stories())] {
        let Some(model) = model else { continue };
        let golden = golden(name);
        let tokens = ids(&golden);
        let all = Ask { top: model.spec().vocabulary, ..Ask::default() };
        let reading = read(&model.decoder, &Lens::logit(), &tokens, &all, Streams::Halves).unwrap();
        assert_eq!(reading.streams.len(), 1 + 2 * model.spec().layers);
        assert_eq!(reading.streams[1], "blocks.0.hook_resid_mid");
        let targets: Vec<f64> = reading.targets.iter().map(|&target| f64::from(target)).collect();
        assert_eq!(targets, numbers(&golden["targets"]), "{name}");
        let cells: Vec<_> = reading.cells.iter().flatten().collect();
        let of =
            |value: fn(&endoscope_causal::lens::Cell) -> f64| cells.iter().map(|cell| value(cell)).collect::<Vec<_>>();
        assert_eq!(of(|cell| cell.rank as f64), numbers(&golden["rank"]), "{name}: ranks");
        close(&format!("{name}: probability"), &of(|cell| cell.probability), &numbers(&golden["probability"]));
        close(&format!("{name}: entropy"), &of(|cell| cell.entropy), &numbers(&golden["entropy"]));
        close(&format!("{name}: KL"), &of(|cell| cell.kl), &numbers(&golden["kl"]));
        // All tokens were asked for: logits up to a constant are the logarithms of their probabilities.
        let logits = golden["logits"].flatten(0, 1).unwrap().to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
        for (cell, logits) in cells.iter().zip(logits) {
            let total = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            for candidate in &cell.top {
                let expected = (logits[candidate.token as usize] - total).exp();
                assert!((candidate.probability - expected).abs() <= TOLERANCE, "{name}");
            }
            assert!(cell.top.windows(2).all(|two| two[0].probability >= two[1].probability), "{name}");
        }
    }
}

#[test]
fn positions_targets_and_the_last_stream() {
    let model = tiny("llama-grouped");
    let tokens = [1, 7, 3, 4, 9];
    let whole = read(&model.decoder, &Lens::logit(), &tokens, &Ask::default(), Streams::Layers).unwrap();
    let ask = Ask { positions: Index::List(vec![-1, 1]), target: Some(6), top: 2 };
    let some = read(&model.decoder, &Lens::logit(), &tokens, &ask, Streams::Layers).unwrap();
    assert_eq!((&some.positions, &some.targets), (&vec![4, 1], &vec![6, 6]));
    for (some, whole) in some.cells.iter().zip(&whole.cells) {
        for (cell, position) in some.iter().zip([4, 1]) {
            assert_eq!(
                (cell.top.as_slice(), cell.kl, cell.entropy),
                (&whole[position].top[..2], whole[position].kl, whole[position].entropy)
            );
        }
    }
    // The last stream is what the network itself says: its own target is on top, and nothing lies between.
    for cell in whole.cells.last().unwrap() {
        assert_eq!((cell.rank, cell.kl), (0, 0.));
        assert_eq!(cell.probability, cell.top[0].probability);
    }
    assert!(whole.cells[0].iter().all(|cell| cell.kl > 0.));
}

#[test]
fn reciprocal_ranks_are_the_means_of_the_ranks_read() {
    let model = tiny("llama-grouped");
    let prompts = [(vec![1, 7, 3, 4, 9], 6), (vec![2, 2, 5], 11)];
    let last = Index::Range { start: -2, end: None };
    let ranks = |prompts: &[(Vec<u32>, u32)], positions: &Index| {
        reciprocal_ranks(&model.decoder, &Lens::logit(), prompts, positions, Streams::Layers)
    };
    let found = ranks(&prompts, &last).unwrap();
    let readings = prompts.each_ref().map(|(tokens, target)| {
        let ask = Ask { positions: last.clone(), target: Some(*target), top: 0 };
        read(&model.decoder, &Lens::logit(), tokens, &ask, Streams::Layers).unwrap()
    });
    assert_eq!(found.streams, readings[0].streams);
    for (stream, means) in found.means.iter().enumerate() {
        for (position, mean) in means.iter().enumerate() {
            let places = readings.each_ref().map(|reading| 1. / (reading.cells[stream][position].rank + 1) as f64);
            assert!((mean - (places[0] + places[1]) / 2.).abs() < 1e-12);
        }
    }
    for (prompts, positions, part) in
        [(&prompts[..], Index::All, "has 3 of the positions asked for, another 5"), (&prompts[..0], last, "no prompt")]
    {
        let error = ranks(prompts, &positions).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn every_family_can_be_read_and_trained_on() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens");
    let folders = std::fs::read_dir(goldens).unwrap().map(|entry| entry.unwrap().path());
    let mut models: Vec<Model> =
        folders.filter(|path| path.join("config.json").is_file()).map(|path| Model::open(path).unwrap()).collect();
    assert!(models.len() > 40, "only {} models", models.len());
    let mut rounded = tiny("llama-grouped");
    rounded.decoder.compute = endoscope_models::Compute::Bf16;
    models.push(rounded);
    for model in models {
        let name = model.directory.display();
        let tokens = vec![1, 7, 3];
        let outputs = model.decoder.run(&Inputs::tokens(vec![tokens.clone()]).unwrap(), &Plan::default()).unwrap();
        let best = outputs.outputs.argmax(2).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let logit = read(&model.decoder, &Lens::logit(), &tokens, &Ask::default(), Streams::Halves).unwrap();
        assert_eq!(logit.targets, best, "{name}");
        assert!(logit.cells.last().unwrap().iter().all(|cell| cell.kl == 0. && cell.rank == 0), "{name}");
        let settings = TunedSettings { steps: 20, batch: 8, learning_rate: 1e-3, seed: 0 };
        let rows = std::slice::from_ref(&tokens);
        let lens = train(&model.decoder, rows, Streams::Halves, settings, going).unwrap();
        let total = |lens: &Lens| {
            let losses = losses(&model.decoder, lens, rows, Streams::Halves).unwrap();
            losses.iter().map(|loss| loss.kl).sum::<f64>()
        };
        assert!(total(&lens) < total(&Lens::logit()), "{name}");
    }
}

fn rows(model: &Model, count: usize, seed: u32) -> Vec<Vec<u32>> {
    let vocabulary = model.spec().vocabulary as u32;
    let id = |row: u32, at: u32| (row * 31 + at * at * 7 + at * (row + seed) * 13 + seed) % vocabulary;
    (0..count as u32).map(|row| (0..12).map(|at| id(row, at)).collect()).collect()
}

#[test]
fn training_lowers_the_loss_on_rows_that_it_has_not_seen() {
    let model = tiny("gpt2-odd");
    let (seen, unseen) = (rows(&model, 60, 1), rows(&model, 10, 5));
    let settings = TunedSettings { steps: 150, batch: 64, learning_rate: 3e-3, seed: 4 };
    let lens = train(&model.decoder, &seen, Streams::Layers, settings, going).unwrap();
    let before = losses(&model.decoder, &Lens::logit(), &unseen, Streams::Layers).unwrap();
    let after = losses(&model.decoder, &lens, &unseen, Streams::Layers).unwrap();
    assert_eq!((before.len(), after.len()), (4, 4));
    for (before, after) in before.iter().zip(&after).take(3) {
        assert_eq!(before.stream, after.stream);
        assert!(after.kl < 0.7 * before.kl, "{}: {} nats before, {} after", before.stream, before.kl, after.kl);
    }
    assert_eq!((after[3].kl, after[3].agreement), (0., 1.));
    let again = train(&model.decoder, &seen, Streams::Layers, settings, going).unwrap();
    assert_eq!(lens.to_bytes().unwrap(), again.to_bytes().unwrap(), "the same seed gave another lens");
    let other = train(&model.decoder, &seen, Streams::Layers, TunedSettings { seed: 5, ..settings }, going).unwrap();
    assert_ne!(lens.to_bytes().unwrap(), other.to_bytes().unwrap());
}

#[test]
fn an_untrained_translator_is_the_logit_lens() {
    let model = tiny("gpt2-odd");
    let settings = TunedSettings { steps: 0, ..TunedSettings::default() };
    let lens = train(&model.decoder, &rows(&model, 2, 1), Streams::Halves, settings, going).unwrap();
    assert_eq!(lens.translators.len(), 6);
    let tokens = [5, 0, 17];
    let tuned = read(&model.decoder, &lens, &tokens, &Ask::default(), Streams::Layers).unwrap();
    let logit = read(&model.decoder, &Lens::logit(), &tokens, &Ask::default(), Streams::Halves).unwrap();
    assert_eq!(tuned, logit);
}

#[test]
fn jacobians_equal_those_of_torch() {
    let model = tiny("gpt2-odd");
    let golden = golden("gpt2-odd-jacobians");
    let prompts = [vec![5, 0, 17, 17, 30, 8], vec![9, 26, 29]];
    // Batches that hold everything, and batches that do not divide the dims.
    for batch in [2048, 13] {
        for (over, name) in [(Over::Same, "same"), (Over::Later, "later")] {
            let settings = JacobianSettings { over, batch, ..JacobianSettings::default() };
            let lens = average(&model.decoder, &prompts, Streams::Layers, settings, going).unwrap();
            assert_eq!((lens.kind, lens.translators.len()), (Kind::Jacobian, 3));
            for Translator { site, matrix, .. } in &lens.translators {
                let expected = &golden[&format!("{name}.{site}")];
                close(&format!("{name}.{site} in batches of {batch}"), &numbers(matrix), &numbers(expected));
            }
        }
    }
}

#[test]
fn drawn_positions_are_some_of_them_and_enough_are_all() {
    let model = tiny("gpt2-odd");
    let rows = [vec![5, 0, 17], vec![9, 26]];
    let lens = |sample, seed| {
        let settings = JacobianSettings { sample, seed, ..JacobianSettings::default() };
        average(&model.decoder, &rows, Streams::Layers, settings, going).unwrap()
    };
    let matrix = |lens: &Lens| numbers(&lens.translators[1].matrix);
    close("all positions", &matrix(&lens(Some(9), 3)), &matrix(&lens(None, 0)));
    let one = lens(Some(1), 3);
    assert_eq!((matrix(&one), &one.made["positions"]), (matrix(&lens(Some(1), 3)), &2.into()));
    assert!((0..9).any(|seed| matrix(&lens(Some(1), seed)) != matrix(&one)));
}

#[test]
fn a_jacobian_predicts_a_small_step() {
    let model = tiny("llama-grouped");
    let prompt = vec![1u32, 7, 3, 4];
    let last = format!("blocks.{}.hook_resid_post", model.spec().layers - 1);
    let stream = |plan: Plan| {
        let plan = plan.capture(endoscope_net::Capture::new(&last));
        let run = model.decoder.run(&Inputs::tokens(vec![prompt.clone()]).unwrap(), &plan).unwrap();
        run.captured.get(&last).unwrap().squeeze(0).unwrap()
    };
    let settings = |over| JacobianSettings { over, ..JacobianSettings::default() };
    let same =
        average(&model.decoder, std::slice::from_ref(&prompt), Streams::Halves, settings(Over::Same), going).unwrap();
    let later =
        average(&model.decoder, std::slice::from_ref(&prompt), Streams::Halves, settings(Over::Later), going).unwrap();
    for (same, later) in same.translators.iter().zip(&later.translators) {
        let d_model = same.matrix.dim(0).unwrap();
        let direction: Vec<f32> = (0..d_model).map(|at| ((at * 37 + 11) % 17) as f32 / 17. - 0.5).collect();
        let direction = Tensor::from_vec(direction, d_model, &Device::Cpu).unwrap();
        let moved = |position: usize, step: f64| {
            let change = Change::Add { value: direction.clone().into(), scale: step };
            let edit = Edit::new(&same.site, change).at(AxisName::Position, Index::At(position as i64));
            stream(Plan::default().edit(edit))
        };
        let step = 3e-3;
        let (mut at_same, mut at_later) = (vec![0.; d_model], vec![0.; d_model]);
        for position in 0..prompt.len() {
            let slope = ((moved(position, step) - moved(position, -step)).unwrap() / (2. * step)).unwrap();
            let add = |sums: &mut [f64], rows: &Tensor| {
                sums.iter_mut().zip(numbers(rows)).for_each(|(sum, x)| *sum += x / prompt.len() as f64);
            };
            add(&mut at_same, &slope.get(position).unwrap());
            add(&mut at_later, &slope.sum(0).unwrap());
        }
        for (translator, expected) in [(same, at_same), (later, at_later)] {
            let found = numbers(&translator.matrix.matmul(&direction.unsqueeze(1).unwrap()).unwrap());
            let size = expected.iter().fold(0f64, |size, x| size.max(x.abs()));
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
            assert!(worst < 5e-3 * size.max(1.), "{}: differs by {worst:e} of {size:e}", translator.site);
        }
    }
}

#[test]
fn a_lens_survives_its_file() {
    let model = tiny("gpt2-odd");
    let settings = TunedSettings { steps: 3, batch: 8, ..TunedSettings::default() };
    let tuned = train(&model.decoder, &rows(&model, 2, 1), Streams::Layers, settings, going).unwrap();
    let settings = JacobianSettings::default();
    let jacobian = average(&model.decoder, &[vec![1, 2]], Streams::Layers, settings, going).unwrap();
    for mut lens in [tuned, jacobian] {
        lens.made.insert("note".into(), "kept".into());
        let bytes = lens.to_bytes().unwrap();
        let loaded = Lens::from_bytes(&bytes).unwrap();
        assert_eq!((loaded.kind, &loaded.made), (lens.kind, &lens.made));
        assert_eq!(loaded.to_bytes().unwrap(), bytes);
        let ask = Ask::default();
        let reading = |lens: &Lens| read(&model.decoder, lens, &[1, 2, 3], &ask, Streams::Layers).unwrap();
        assert_eq!(reading(&loaded), reading(&lens));
        assert_eq!(reading(&lens).cells.len(), 4);
        // Cut anywhere, it is no lens, and no panic.
        for end in (0..bytes.len()).step_by(97) {
            assert!(matches!(Lens::from_bytes(&bytes[..end]), Err(Error::Lens(_))));
        }
        // With any byte of its head turned over it is another lens or none, and no panic.
        for at in 0..bytes.len().min(1200) {
            let mut turned = bytes.clone();
            turned[at] ^= 0x15;
            if let Ok(other) = Lens::from_bytes(&turned) {
                let _ = read(&model.decoder, &other, &[1, 2], &ask, Streams::Layers);
            }
        }
    }
    assert!(Lens::logit().to_bytes().is_err());
}

fn says<T: std::fmt::Debug>(result: Result<T, Error>, part: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(part), "`{part}` is not in {error}");
}

#[test]
fn what_is_no_lens_or_another_models_is_refused() {
    let model = tiny("gpt2-odd");
    let tensor = |shape: (usize, usize), number: f32| Tensor::full(number, shape, &Device::Cpu).unwrap();
    let site = "blocks.0.hook_resid_post";
    let lens = |translators: Vec<Translator>| Lens { kind: Kind::Jacobian, translators, made: Default::default() };
    let one = |site: &str, matrix: Tensor| lens(vec![Translator { site: site.into(), matrix, bias: None }]);
    let reading = |lens: &Lens| read(&model.decoder, lens, &[1, 2], &Ask::default(), Streams::Layers);
    assert!(reading(&one(site, tensor((20, 20), 0.1))).is_ok());
    says(reading(&one(site, tensor((21, 21), 0.1))), "that stream has 20 dims");
    says(
        reading(&one("blocks.7.hook_resid_post", tensor((20, 20), 0.1))),
        "`blocks.7.hook_resid_post`, which this network has not",
    );
    says(reading(&one(site, tensor((20, 20), f32::NAN))), "not finite");
    let bytes = |lens: &Lens| lens.to_bytes().unwrap();
    says(Lens::from_bytes(&bytes(&one(site, tensor((20, 20), f32::INFINITY)))), "not finite");
    says(
        Lens::from_bytes(&bytes(&one(site, tensor((20, 21), 0.)))),
        "is [20, 21] of F32, but [20, 20] of F32 is needed",
    );
    let twice = Translator { site: site.into(), matrix: tensor((2, 2), 0.), bias: None };
    says(lens(vec![twice.clone(), twice.clone()]).to_bytes(), "two maps of `blocks.0.hook_resid_post`");
    let biased = Translator { bias: Some(Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()), ..twice.clone() };
    says(Lens::from_bytes(&bytes(&lens(vec![biased]))), "no stream needs: blocks.0.hook_resid_post.bias");
    let unbiased = Lens { kind: Kind::Tuned, ..lens(vec![twice]) };
    says(Lens::from_bytes(&bytes(&unbiased)), "no tensor `blocks.0.hook_resid_post.bias`");
    says(Lens::from_bytes(b"nonsense"), "no safetensors file");
    let weights = tensor((2, 2), 0.);
    let plain = safetensors::serialize([("a", &weights)], None).unwrap();
    says(Lens::from_bytes(&plain), "holds no lens");
}

#[test]
fn a_network_that_is_not_finite_is_an_error_and_not_a_lens() {
    let mut model = tiny("gpt2-odd");
    let norm = model.decoder.weights.layers[1].ln1.as_mut().unwrap();
    norm.weight = (&norm.weight * f64::NAN).unwrap();
    let rows = [vec![1, 2, 3], vec![4, 5]];
    says(read(&model.decoder, &Lens::logit(), &rows[0], &Ask::default(), Streams::Layers), "NaN");
    let settings = TunedSettings { steps: 2, ..TunedSettings::default() };
    let trained = train(&model.decoder, &rows, Streams::Layers, settings, going);
    says(trained, "`blocks.1.hook_resid_post` of row 0 is not finite");
    let measured = average(&model.decoder, &rows, Streams::Layers, JacobianSettings::default(), going);
    says(measured, "of row 0 is not finite");
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let model = tiny("gpt2-odd");
    let asked = |ask: Ask, tokens: &[u32]| read(&model.decoder, &Lens::logit(), tokens, &ask, Streams::Layers);
    let at = |positions| Ask { positions, ..Ask::default() };
    says(asked(at(Index::At(3)), &[1, 2, 3]), "3");
    says(asked(at(Index::Range { start: 2, end: Some(2) }), &[1, 2, 3]), "are none");
    says(asked(Ask { target: Some(41), ..Ask::default() }, &[1, 2]), "id 41 is out of range");
    says(asked(Ask::default(), &[]), "are none");
    says(asked(Ask::default(), &[41]), "out of range");
    says(losses(&model.decoder, &Lens::logit(), &[], Streams::Layers), "no row");
    let settings = TunedSettings::default();
    let tuned = |settings, rows: &[Vec<u32>]| train(&model.decoder, rows, Streams::Layers, settings, going);
    says(tuned(settings, &[]), "no row");
    says(tuned(TunedSettings { batch: 0, ..settings }, &[vec![1, 2]]), "above 0");
    says(tuned(TunedSettings { learning_rate: f64::NAN, ..settings }, &[vec![1, 2]]), "above 0");
    says(tuned(TunedSettings { learning_rate: 1e38, steps: 5, ..settings }, &[vec![1, 2]]), "finite");
    let jacobian = JacobianSettings::default();
    let measured = |settings, rows: &[Vec<u32>]| average(&model.decoder, rows, Streams::Layers, settings, going);
    says(measured(jacobian, &[]), "no position");
    says(measured(JacobianSettings { sample: Some(0), ..jacobian }, &[vec![1, 2]]), "no position");
    says(
        measured(JacobianSettings { sample: Some(1), over: Over::Later, ..jacobian }, &[vec![1, 2]]),
        "none are drawn",
    );
    let stopped = |_: endoscope_causal::Progress| ControlFlow::Break(());
    let interrupted = train(&model.decoder, &[vec![1, 2]], Streams::Layers, settings, stopped);
    assert!(matches!(interrupted, Err(Error::Interrupted)));
    let interrupted = average(&model.decoder, &[vec![1, 2]], Streams::Layers, JacobianSettings::default(), stopped);
    assert!(matches!(interrupted, Err(Error::Interrupted)));
}
