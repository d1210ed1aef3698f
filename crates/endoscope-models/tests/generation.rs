//! Generation against transformers, and the cache against full recomputation.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ops::ControlFlow;

use common::*;
use endoscope_models::*;
use endoscope_net::{AxisName, Capture, Change, Edit, Index, Plan};
use proptest::prelude::*;

fn settings(max_tokens: usize) -> Settings {
    Settings { max_tokens, sampling: Sampling::default(), stop: vec![], stop_at_end_token: false, caching: Caching::On }
}

fn run(model: &Model, prompt: &[u32], plan: &Plan, settings: &Settings) -> Generation {
    generate(model, prompt, plan, settings, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn greedy_ids_equal_those_of_transformers() {
    let text = std::fs::read_to_string(goldens().join("generation.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, case) in golden["models"].as_object().unwrap() {
        let ids =
            |key: &str| case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>();
        let model = Model::open(goldens().join(name)).unwrap();
        let expected = ids("generated");
        let found = run(&model, &ids("prompt"), &Plan::default(), &settings(expected.len()));
        assert_eq!(found.tokens, expected, "{name}");
    }
}

#[test]
fn the_real_model_tells_its_published_story() {
    let Some(path) = shared_model("stories260k") else { return };
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path.join("golden.json")).unwrap()).unwrap();
    let model = Model::open(path).unwrap();
    let ids: Vec<u32> = golden["greedy_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let mut streamed = String::new();
    let generation = generate(&model, &ids[..1], &Plan::default(), &settings(ids.len() - 1), |step| {
        streamed.push_str(step.text);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(generation.tokens, ids[1..]);
    assert_eq!(generation.text.as_deref(), golden["greedy_text"].as_str());
    assert_eq!(Some(streamed.as_str()), golden["greedy_text"].as_str());
    // The same text by the full recomputation.
    let reference = run(&model, &ids[..1], &Plan::default(), &Settings { caching: Caching::Off, ..settings(40) });
    assert_eq!(reference.tokens, ids[1..41]);
    // A stop text ends it, and no part of it is shown.
    let mut streamed = String::new();
    let stop = Settings { stop: vec!["girl named".into(), "xyz".into()], ..settings(200) };
    let generation = generate(&model, &ids[..1], &Plan::default(), &stop, |step| {
        streamed.push_str(step.text);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(
        (generation.text.as_deref(), generation.finish),
        (Some("Once upon a time, there was a little "), Finish::Stop)
    );
    assert_eq!(streamed, "Once upon a time, there was a little ");
}

fn index() -> impl Strategy<Value = Index> {
    prop_oneof![
        Just(Index::All),
        Just(Index::Generated),
        (-4i64..9).prop_map(Index::At),
        (-4i64..4).prop_map(|start| Index::Range { start, end: None }),
        (0i64..4, 4i64..9).prop_map(|(start, end)| Index::Range { start, end: Some(end) }),
    ]
}

fn edit(vector: usize) -> impl Strategy<Value = Edit> {
    let change = prop_oneof![
        Just(Change::Zero),
        (-2f64..2.).prop_map(|factor| Change::Scale { factor }),
        proptest::collection::vec(-1f32..1., vector).prop_map(move |v| {
            let value = candle_core::Tensor::from_vec(v, vector, &candle_core::Device::Cpu).unwrap();
            Change::Add { value: value.into(), scale: 3. }
        }),
    ];
    let site = prop_oneof![
        Just("resid_pre.0"),
        Just("resid_mid.1"),
        Just("attn_out.2"),
        Just("mlp_out.0"),
        Just("resid_post.1")
    ];
    (site, change, index()).prop_map(|(site, change, index)| Edit::new(site, change).at(AxisName::Position, index))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_plan_means_the_same_with_and_without_the_cache(edits in proptest::collection::vec(edit(24), 1..4), prompt in proptest::collection::vec(0u32..43, 4..6)) {
        let model = Model::open(goldens().join("llama-grouped")).unwrap();
        let plan = Plan { captures: vec![Capture::new("resid_post.2"), Capture::new("pattern.1"), Capture::new("hook_logits")], edits, ..Plan::default() };
        let with = run(&model, &prompt, &plan, &settings(6));
        let without = run(&model, &prompt, &plan, &Settings { caching: Caching::Off, ..settings(6) });
        // Where two tokens tie within rounding the texts may part; everything up to there must agree.
        let same = with.tokens.iter().zip(&without.tokens).take_while(|(a, b)| a == b).count();
        prop_assert!(same >= 1);
        for (site, ours) in with.captured.iter() {
            let reference = without.captured.get(site).unwrap();
            let axis = if site.ends_with("pattern") { 2 } else { 1 };
            let length = (prompt.len() + same - 1).min(ours.dim(axis).unwrap());
            let mut part = (ours.narrow(axis, 0, length).unwrap(), reference.narrow(axis, 0, length).unwrap());
            if axis == 2 {
                part = (part.0.narrow(3, 0, length).unwrap(), part.1.narrow(3, 0, length).unwrap());
            }
            let scale = part.1.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap().max(1.);
            prop_assert!(difference(&part.0, &part.1) < 1e-4 * scale, "{site}");
        }
    }
}

#[test]
fn positions_of_the_prompt_stay_where_they_are_while_text_grows() {
    let model = Model::open(goldens().join("gpt2-odd")).unwrap();
    let marked = |index| Plan {
        captures: vec![Capture::new("resid_pre.1")],
        edits: vec![Edit::new("resid_pre.1", Change::Zero).at(AxisName::Position, index)],
        ..Plan::default()
    };
    let zeroed = |index| {
        let generation = run(&model, &[1, 2, 3], &marked(index), &settings(4));
        let rows = generation.captured.get("blocks.1.hook_resid_pre").unwrap().get(0).unwrap();
        let rows = rows.abs().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap();
        rows.iter().enumerate().filter(|(_, size)| **size == 0.).map(|(at, _)| at).collect::<Vec<_>>()
    };
    // Positions 0..3 are the prompt; 3, 4, 5 were generated and read (the last one generated is never read).
    assert_eq!(zeroed(Index::At(-1)), [2]);
    assert_eq!(zeroed(Index::Range { start: -1, end: None }), [2, 3, 4, 5]);
    assert_eq!(zeroed(Index::Generated), [3, 4, 5]);
    assert_eq!(zeroed(Index::All), [0, 1, 2, 3, 4, 5]);
    assert_eq!(zeroed(Index::At(4)), [4]);
}

#[test]
fn the_context_ends_a_generation_and_bad_settings_are_errors() {
    let model = Model::open(goldens().join("gpt2-odd")).unwrap();
    let generation = run(&model, &[1; 38], &Plan::default(), &settings(10));
    assert_eq!((generation.tokens.len(), generation.finish), (2, Finish::Context));
    let fails = |prompt: &[u32], settings: &Settings, plan: &Plan| {
        generate(&model, prompt, plan, settings, |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    assert!(fails(&[1; 41], &settings(1), &Plan::default()).contains("context is 40"));
    assert!(fails(&[41], &settings(1), &Plan::default()).contains("token id 41"));
    assert!(fails(&[], &settings(1), &Plan::default()).contains("no tokens"));
    let stop = Settings { stop: vec!["x".into()], ..settings(1) };
    assert!(fails(&[1], &stop, &Plan::default()).contains("tokenizer.json"));
    let mean = Plan::default().edit(Edit::new("resid_pre.0", Change::Mean { over: vec![AxisName::Position] }));
    assert!(fails(&[1], &settings(1), &mean).contains("while the text grows"));
}
