//! The invariants can fail: each site made wrong is noticed, and so is each switch that the forward pass did not have.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use endoscope_net::{Captured, Inputs, Network};

use super::ledger::Ledger;
use super::{Assertion, Verdict, invariants};
use crate::decoder::capture_everything;
use crate::rotary::RotaryScaling;
use crate::{AttentionScale, Model, Norm, Placement, Positions, Spec};

const PROMPT: [u32; 9] = [1, 5, 3, 2, 9, 9, 4, 0, 8];

fn goldens() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.join("config.json").is_file()).collect()
}

fn golden(name: &str) -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)).unwrap()
}

fn captured(model: &Model) -> Captured {
    model.decoder.run(&Inputs::tokens(vec![PROMPT.to_vec()]).unwrap(), &capture_everything()).unwrap().captured
}

/// The assertions that fail, with the worst site of each.
fn failures(model: &Model, spec: &Spec, captured: &Captured) -> Vec<(Assertion, String)> {
    let mut ledger = Ledger::default();
    invariants::check(spec, &model.decoder.weights, &PROMPT, captured, &mut ledger).unwrap();
    let failed = ledger.finish().into_iter().filter(|check| check.verdict == Verdict::Failed);
    failed.map(|check| (check.name, check.site.unwrap_or_default())).collect()
}

/// One cell of `site` moved by a thousandth of the largest value; a number of an expert by one.
fn moved(captured: &Captured, site: &str, cell: usize) -> Captured {
    let mut all = Captured::default();
    for (name, activation) in captured.iter() {
        let mut activation = activation.clone();
        if name == site {
            let mut values: Vec<f32> = activation.flatten_all().unwrap().to_vec1().unwrap();
            let largest =
                values.iter().filter(|value| value.is_finite()).fold(0f32, |most, value| most.max(value.abs()));
            let by = if name.ends_with("hook_expert_indices") { 1. } else { 1e-3 * largest };
            let cell = cell % values.len();
            values[cell] += by;
            activation = Tensor::from_vec(values, activation.dims(), &Device::Cpu).unwrap();
        }
        all.insert(name.to_string(), activation);
    }
    all
}

#[test]
fn every_site_is_bound_by_an_equation() {
    for path in goldens() {
        let model = Model::open(&path).unwrap();
        let clean = captured(&model);
        assert_eq!(failures(&model, model.spec(), &clean), [], "{}", path.display());
        for site in model.sites().iter() {
            // The first cell of a matrix of scores is the first query's at the first key, which it sees in every layer.
            for cell in [0, PROMPT.len() * PROMPT.len()] {
                let found = failures(&model, model.spec(), &moved(&clean, &site.name, cell));
                assert!(!found.is_empty(), "{} {}: nobody notices", path.display(), site.name);
            }
        }
    }
}

#[test]
fn a_weight_of_the_pattern_on_a_later_key_is_noticed() {
    let model = golden("gpt2-odd");
    let site = "blocks.1.attn.hook_pattern";
    let found = failures(&model, model.spec(), &moved(&captured(&model), site, 1));
    assert!(found.contains(&(Assertion::Masked, site.into())), "{found:?}");
}

#[test]
fn what_is_not_finite_is_noticed() {
    let model = golden("gpt2-odd");
    for site in ["blocks.0.attn.hook_attn_scores", "blocks.2.hook_mlp_out"] {
        let mut all = Captured::default();
        for (name, activation) in captured(&model).iter() {
            let nan = (activation.zeros_like().unwrap() / 0.).unwrap().to_dtype(DType::F32).unwrap();
            all.insert(name.to_string(), if name == site { nan } else { activation.clone() });
        }
        let found = failures(&model, model.spec(), &all);
        assert!(found.contains(&(Assertion::Finite, site.into())), "{found:?}");
    }
}

/// The forward pass has the switches of `name`; the equations are those of the changed ones.
fn differs(name: &str, expected: Assertion, change: impl FnOnce(&mut Spec)) {
    let model = golden(name);
    let mut spec = model.spec().clone();
    change(&mut spec);
    let found = failures(&model, &spec, &captured(&model));
    assert!(found.iter().any(|(assertion, _)| *assertion == expected), "{name}: {expected:?} is not among {found:?}");
}

#[test]
fn each_switch_is_in_the_equations() {
    let with_rotary = |change: fn(&mut crate::rotary::Rotary)| {
        move |spec: &mut Spec| {
            let Positions::Rotary { kinds, .. } = &mut spec.positions else { panic!("it has no rotary positions") };
            kinds.iter_mut().for_each(change);
        }
    };
    differs("llama-grouped", Assertion::Norms, |spec| spec.epsilon *= 100.);
    differs("gpt2-odd", Assertion::Norms, |spec| spec.norm = Norm::RmsNorm);
    differs("gemma2-odd", Assertion::Writes, |spec| spec.residual_scale = 0.999);
    differs("gemma2-odd", Assertion::Embeddings, |spec| spec.embedding_scale *= 1.001);
    differs("gemma2-odd", Assertion::Scores, |spec| spec.attention_softcap = None);
    differs("gemma2-odd", Assertion::Scores, |spec| spec.attention_scale = AttentionScale::InverseSqrtHead);
    differs("gemma2-odd", Assertion::Logits, |spec| spec.logit_softcap = None);
    differs("granite-odd", Assertion::Logits, |spec| spec.logit_scale = 1.);
    differs("granite-odd", Assertion::Writes, |spec| spec.residual_scale = 1.);
    differs("mistral-sliding", Assertion::Scores, |spec| spec.windows = vec![Some(3); spec.layers]);
    differs("mistral-sliding", Assertion::Masked, |spec| spec.windows = vec![Some(3); spec.layers]);
    differs("falcon-alibi", Assertion::Scores, |spec| spec.positions = Positions::None);
    differs("llama-grouped", Assertion::Rotation, with_rotary(|rotary| rotary.base *= 1.01));
    differs("phi-odd", Assertion::Rotation, with_rotary(|rotary| rotary.dims /= 2));
    for name in ["llama-linear", "llama-llama3", "llama-yarn", "phi3-longrope"] {
        differs(name, Assertion::Rotation, with_rotary(|rotary| rotary.scaling = RotaryScaling::None));
    }
    differs("phi3-longrope", Assertion::RotationKeepsLength, with_rotary(|r| r.scaling = RotaryScaling::None));
    differs("olmo-clip_qkv", Assertion::QueriesKeysValues, |spec| spec.clip_qkv = None);
    differs("qwen3-odd", Assertion::QueriesKeysValues, |spec| spec.qk_norm = None);
    differs("gpt2-relu", Assertion::Neurons, |spec| spec.activation = crate::Activation::GeluErf);
    differs("gpt2-odd", Assertion::Neurons, |spec| spec.activation = crate::Activation::GeluErf);
    differs("qwen3_moe-odd", Assertion::ExpertsOut, |spec| {
        spec.experts.as_mut().unwrap().weights = crate::ExpertWeights::Probabilities;
    });
    // A placement is which norms there are.
    let mut model = golden("gemma2-odd");
    let before = captured(&model);
    model.decoder.weights.layers[0].ln1_post = None;
    let spec = Spec { placement: Placement::Pre, ..model.spec().clone() };
    let found = failures(&model, &spec, &before);
    assert!(found.contains(&(Assertion::Writes, "blocks.0.hook_attn_out".into())), "{found:?}");
}
