//! How far the logits move when matrices are kept in fewer bits: the bounds that docs/families.md states.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use endoscope_models::{Caching, Compute, Matrix, Model, Precision, Sampling, Settings, generate};
use endoscope_net::{Inputs, Network, Plan};

const MODELS: [&str; 4] = ["gpt2-odd", "gpt2-switches", "llama-grouped", "llama-sharded"];

fn logits(model: &Model) -> Vec<f32> {
    let tokens: Vec<u32> = (0..12).map(|at| at * 5 % 29).collect();
    let run = model.decoder.run(&Inputs::tokens(vec![tokens]).unwrap(), &Plan::default()).unwrap();
    run.outputs.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn fewer_bits_move_the_logits_by_no_more_than_is_said() {
    for name in MODELS {
        let open = |precision| logits(&Model::open_as(goldens().join(name), precision).unwrap());
        let exact = open(Precision::F32);
        let mean = exact.iter().sum::<f32>() / exact.len() as f32;
        let spread = (exact.iter().map(|logit| (logit - mean).powi(2)).sum::<f32>() / exact.len() as f32).sqrt();
        for (precision, bound) in [(Precision::Bf16, 0.05), (Precision::Int8, 0.15)] {
            let moved = open(precision).iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0., f32::max) / spread;
            println!("{name} {precision:?}: {moved:e}");
            // It moves, or nothing was packed; and not far.
            assert!(moved > 0. && moved < bound, "{name} {precision:?}: {moved}");
        }
    }
}

/// The model of bf16 weights that transformers ran in bf16 as well.
#[test]
fn computing_in_bf16_is_as_near_to_transformers_in_bf16_as_rounding_allows() {
    let golden = load(&goldens().join("qwen2-bf16/bf16-logits.safetensors"));
    let mut model = Model::open(goldens().join("qwen2-bf16")).unwrap();
    let inputs = Inputs::tokens(tokens(&golden)).unwrap();
    let exact = model.decoder.run(&inputs, &Plan::default()).unwrap().outputs;
    model.decoder.compute = Compute::Bf16;
    let rounded = model.decoder.run(&inputs, &Plan::default()).unwrap().outputs;
    let theirs = &golden["logits"];
    let size = theirs.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let root_mean_square = |a: &candle_core::Tensor| {
        (a - theirs).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt() / size
    };
    let (ours, without) = (difference(&rounded, theirs) / size, difference(&exact, theirs) / size);
    println!(
        "largest {ours:e} (f32: {without:e}), rms {:e} (f32: {:e})",
        root_mean_square(&rounded),
        root_mean_square(&exact)
    );
    assert!(ours < 0.02, "{ours}");
    // Every logit is a bf16.
    let bits = bits(&rounded);
    assert!(bits.iter().all(|bits| bits & 0xffff == 0) && bits.iter().any(|&bits| bits != 0));
}

#[test]
fn rounded_activations_keep_the_promises_of_exact_ones() {
    for path in golden_models() {
        let mut model = Model::open(&path).unwrap();
        model.decoder.compute = Compute::Bf16;
        let rows = [vec![1, 5, 3, 2], vec![7, 2, 9, 4, 6, 1]];
        let together = Inputs::padded(rows.to_vec(), endoscope_net::Padding::Right).unwrap();
        let together = model.decoder.run(&together, &endoscope_models::decoder::capture_everything()).unwrap();
        for (number, row) in rows.iter().enumerate() {
            let alone = Inputs::tokens(vec![row.clone()]).unwrap();
            // Reading changes no bit, and neither does company.
            let alone = model.decoder.run(&alone, &Plan::default()).unwrap().outputs;
            let mine = together.outputs.narrow(0, number, 1).unwrap().narrow(1, 0, row.len()).unwrap();
            assert_eq!(bits(&mine), bits(&alone), "{}", path.display());
        }
    }
}

#[test]
fn matrices_as_stored_give_the_bits_of_f32() {
    let gguf = |name: &str| goldens().join("gguf").join(name);
    let cases = [
        (goldens().join("llama-bf16"), Precision::Bf16),
        (goldens().join("qwen2-bf16"), Precision::Bf16),
        (goldens().join("llama-f16"), Precision::F16),
        (goldens().join("gpt2-odd"), Precision::F32),
        (gguf("gpt2.gguf"), Precision::F32),
    ];
    for (path, precision) in cases {
        let stored = Model::open(&path).unwrap();
        let Matrix::Packed(matrix) = &stored.decoder.weights.layers[0].attention.q.matrix else { panic!("a tensor") };
        assert_eq!(matrix.precision(), precision, "{}", path.display());
        let bits = |model: &Model| logits(model).into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(&stored), bits(&Model::open_as(&path, Precision::F32).unwrap()), "{}", path.display());
    }
}

#[test]
fn the_cache_changes_no_token_in_any_precision() {
    for name in MODELS {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let model = Model::open_as(goldens().join(name), precision).unwrap();
            let tokens = |caching| {
                let settings = Settings {
                    max_tokens: 12,
                    sampling: Sampling::default(),
                    stop: Vec::new(),
                    stop_at_end_token: false,
                    caching,
                };
                let go_on = |_: endoscope_models::Step| std::ops::ControlFlow::Continue(());
                generate(&model, &[3, 1, 4], &Plan::default(), &settings, go_on).unwrap().tokens
            };
            assert_eq!(tokens(Caching::On), tokens(Caching::Off), "{name} {precision:?}");
        }
    }
}
