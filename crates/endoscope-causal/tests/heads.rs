//! Where heads look, on models.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::ops::ControlFlow;
use std::path::Path;

use endoscope_causal::*;
use endoscope_models::Model;
use endoscope_net::{Capture, Change, Edit, Inputs, Network, Plan};

fn tiny(name: &str) -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../endoscope-models/tests/goldens").join(name)).unwrap()
}

fn organism() -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction")).unwrap()
}

fn looks(model: &Model, rows: &[Vec<u32>]) -> AllLooks {
    head_looks(&model.decoder, rows, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn on_repeated_rows_of_one_period_the_detectors_agree() {
    let model = organism();
    let words: Vec<u32> = (2..60).collect();
    let rows: Vec<Vec<u32>> =
        repeated_tokens(&words, &[0], 12, 12, 1).unwrap().into_iter().filter(|row| row.len() == 25).collect();
    assert!(rows.len() >= 3);
    let (found, expected) = (looks(&model, &rows), head_scores(&model.decoder, &rows, 1, 12).unwrap());
    assert_eq!(found.heads.len(), expected.len());
    for (found, expected) in found.heads.iter().zip(&expected) {
        assert_eq!((found.layer, found.head), (expected.layer, expected.head));
        for (found, expected) in [
            (found.pattern.previous_token, expected.previous_token),
            (found.pattern.duplicate_token, expected.duplicate_token),
            (found.pattern.induction, expected.induction),
        ] {
            assert!((found.unwrap() - expected).abs() < 1e-5, "{found:?} {expected}");
        }
    }
    // The mechanism that the organism is known for, far above looking everywhere alike.
    let best =
        |of: fn(&Looks) -> Option<f64>| found.heads.iter().filter_map(|head| of(&head.pattern)).fold(0., f64::max);
    assert!(best(|looks| looks.previous_token) > 0.8 && best(|looks| looks.induction) > 0.5);
    assert!(found.uniform.previous_token.unwrap() < 0.2 && found.uniform.induction.unwrap() < 0.2);
}

/// The value-weighted share of the first token by the definition: what each head writes for each key, layer by layer.
#[test]
fn weights_are_the_norms_of_what_is_written() {
    // Grouped heads, biases on values, sandwich norms, parallel layers: what is written is what the site of results says.
    for name in ["gpt2-odd", "llama-grouped", "gemma2-odd", "gpt_neox-parallel", "mistral-sliding"] {
        let model = tiny(name);
        let row = vec![1u32, 7, 3, 7, 2, 9];
        let found = looks(&model, std::slice::from_ref(&row));
        let inputs = Inputs::tokens(vec![row.clone()]).unwrap();
        let run = model.decoder.run(&inputs, &Plan::default().capture(Capture::new("pattern.*"))).unwrap();
        for head in &found.heads {
            let pattern = run.captured.get(&format!("blocks.{}.attn.hook_pattern", head.layer)).unwrap();
            let pattern = pattern.get(0).unwrap().get(head.head).unwrap().to_vec2::<f32>().unwrap();
            // Each key alone: every query of this head looks at it, and writes what it gives.
            let norm = |key: usize| {
                let mut all = vec![0f32; row.len() * row.len()];
                (0..row.len()).for_each(|query| all[query * row.len() + key] = 1.);
                let shape = (row.len(), row.len());
                let only = candle_core::Tensor::from_vec(all, shape, &candle_core::Device::Cpu).unwrap();
                let plan = Plan::default()
                    .edit(Edit::new(format!("pattern.{}", head.layer), Change::Set { value: only.into() }))
                    .capture(Capture::new(format!("result.{}", head.layer)));
                let run = model.decoder.run(&inputs, &plan).unwrap();
                let (_, write) = run.captured.iter().next().unwrap();
                let write = write.get(0).unwrap().get(3).unwrap().get(head.head).unwrap().to_vec1::<f32>().unwrap();
                write.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
            };
            let norms: Vec<f64> = (0..row.len()).map(norm).collect();
            let share = |query: usize| {
                let moved: Vec<f64> = (0..=query).map(|key| f64::from(pattern[query][key]) * norms[key]).collect();
                moved[0] / moved.iter().sum::<f64>()
            };
            let expected = (2..row.len()).map(share).sum::<f64>() / (row.len() - 2) as f64;
            let first = head.weighted.first_token.unwrap();
            assert!((first - expected).abs() < 1e-4, "{name} {head:?}: {expected}");
            assert!((0. ..=1. + 1e-9).contains(&first));
        }
        assert!(
            found
                .heads
                .iter()
                .any(|head| { (head.pattern.first_token.unwrap() - head.weighted.first_token.unwrap()).abs() > 1e-3 })
        );
    }
}

#[test]
fn prompts_of_any_length_and_what_is_refused() {
    let model = tiny("llama-grouped");
    let found = looks(&model, &[vec![1, 2], vec![1, 7, 3, 7, 2]]);
    assert!(found.heads.iter().all(|head| head.pattern.duplicate_token.is_some()));
    let error = head_looks(&model.decoder, &[vec![1, 2]], |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("at least 3 tokens"));
    let stop = head_looks(&model.decoder, &[vec![1, 2, 3]], |_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(stop, Error::Interrupted));
}
