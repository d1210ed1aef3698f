//! How far the logits move when matrices are kept in fewer bits: the bounds that docs/families.md states.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use endoscope_models::{Caching, Model, Precision, Sampling, Settings, generate};
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
