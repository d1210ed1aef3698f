//! Weight processing on every golden model: it computes the same, or it is refused with its reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::PathBuf;

use candle_core::{D, Tensor};
use common::*;
use endoscope_models::decoder::capture_everything;
use endoscope_models::process::{Process, apply};
use endoscope_models::views::{WeightName, WeightView};
use endoscope_models::{Model, Norm, Placement, Precision, Spec};
use endoscope_net::{Inputs, Network, Plan};

/// Largest difference that processing may make to a logit; the rounding of other matrices in f32.
const NEUTRAL: f32 = 1e-4;
/// How much of a mean is rounding.
const ROUNDING: f32 = 1e-5;
/// The golden models whose logits have a soft-cap.
const SOFT_CAPPED: &[&str] = &["gemma2-odd", "gemma3_text-odd"];

fn inputs() -> Inputs {
    Inputs::tokens(vec![vec![1, 5, 3, 2, 9, 9, 4, 11, 0]]).unwrap()
}

fn logits(model: &Model) -> Tensor {
    model.decoder.run(&inputs(), &Plan::default()).unwrap().outputs
}

/// Logits less their mean at each position.
fn without_constant(logits: &Tensor) -> Tensor {
    logits.broadcast_sub(&logits.mean_keepdim(D::Minus1).unwrap()).unwrap()
}

fn largest_mean(x: &Tensor, axis: D) -> f32 {
    largest(&x.mean(axis).unwrap())
}

fn largest(x: &Tensor) -> f32 {
    difference(x, &x.zeros_like().unwrap())
}

fn view(model: &Model, name: &str) -> Tensor {
    model.decoder.weight(WeightName::parse(name).unwrap()).unwrap()
}

/// Models that are opened with each process alone and with all that are neutral for them; the refusals.
#[test]
fn every_family_computes_the_same_or_refuses() {
    let mut refused: Vec<String> = Vec::new();
    for directory in golden_models() {
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        let plain = logits(&Model::open(&directory).unwrap());
        let spec = Model::open(&directory).unwrap().spec().clone();
        let neutral: Vec<Process> =
            Process::ALL.iter().copied().filter(|process| process.problem(&spec).is_none()).collect();
        let alone = Process::ALL.iter().map(|&process| vec![process]);
        for processes in alone.chain([neutral]) {
            let mut model = Model::open(&directory).unwrap();
            if let Err(error) = apply(&mut model.decoder, &processes) {
                refused.push(format!("{name}: {error}"));
                assert!(model.decoder.processed.is_empty(), "{name}");
                assert_eq!(bits(&logits(&model)), bits(&plain), "{name}");
                continue;
            }
            assert_eq!(model.decoder.processed, processes, "{name}");
            let processed = logits(&model);
            let apart = match processes.contains(&Process::CenterUnembed) {
                true => {
                    assert!(largest_mean(&processed, D::Minus1) < ROUNDING, "{name}: {processes:?}");
                    difference(&without_constant(&processed), &without_constant(&plain))
                }
                false => difference(&processed, &plain),
            };
            println!("{name} {processes:?}: {apart:e}");
            assert!(apart <= NEUTRAL, "{name}: {processes:?} changes a logit by {apart:e}");
            // What was processed is processed already.
            apply(&mut model.decoder, &processes).unwrap();
            let again = logits(&model);
            assert!(difference(&again, &processed) <= NEUTRAL, "{name}: {processes:?} twice");
            what_must_change(&name, &model, &processes);
        }
    }
    // The refusals are these and no others.
    let by = |process: Process| -> Vec<&str> {
        let says = format!(": {process} would change what this model computes: ");
        refused.iter().filter_map(|line| line.split_once(&says).map(|(model, _)| model)).collect()
    };
    let rms = |directory: &PathBuf| Model::open(directory).unwrap().spec().norm == Norm::RmsNorm;
    let rms: Vec<PathBuf> = golden_models().into_iter().filter(rms).collect();
    let rms: Vec<_> = rms.iter().map(|directory| directory.file_name().unwrap().to_str().unwrap()).collect();
    assert!(rms.len() > 20);
    assert_eq!(by(Process::CenterWriting), rms);
    assert_eq!(by(Process::CenterUnembed), SOFT_CAPPED);
    assert_eq!(by(Process::FoldValueBiases), ["olmo-clip_qkv"]);
    assert_eq!(by(Process::FoldLayerNorm), [""; 0]);
}

#[test]
fn refusals_say_why() {
    let refusal = |change: &dyn Fn(&mut Spec), process: Process| {
        let mut spec = Model::open(goldens().join("gpt2-odd")).unwrap().spec().clone();
        assert_eq!(process.problem(&spec), None);
        change(&mut spec);
        process.problem(&spec).unwrap()
    };
    let sees = refusal(&|spec| spec.norm = Norm::RmsNorm, Process::CenterWriting);
    assert!(sees.contains("RMSNorm, which sees the mean"), "{sees}");
    let sees = refusal(&|spec| spec.placement = Placement::Post, Process::CenterWriting);
    assert!(sees.contains("not every reader of the stream is a norm"), "{sees}");
    let sees = refusal(&|spec| spec.logit_softcap = Some(30.), Process::CenterUnembed);
    assert!(sees.contains("soft-cap"), "{sees}");
    let sees = refusal(&|spec| spec.clip_qkv = Some(8.), Process::FoldValueBiases);
    assert!(sees.contains("clipped"), "{sees}");
}

/// The marks that each process leaves on weights and activations.
fn what_must_change(name: &str, model: &Model, processes: &[Process]) {
    let spec = model.spec();
    let run = model.decoder.run(&inputs(), &capture_everything()).unwrap();
    let weights = &model.decoder.weights;
    if processes.contains(&Process::FoldLayerNorm) {
        for layer in &weights.layers {
            for norm in [&layer.ln1, &layer.ln2].into_iter().flatten().chain([&weights.ln_final]) {
                assert!(norm.bias.is_none(), "{name}");
                assert_eq!(difference(&norm.weight, &norm.weight.ones_like().unwrap()), 0., "{name}");
            }
        }
        // What a matrix reads is what the norm put out.
        if spec.placement.before() {
            let found = |site: &str| run.captured.get(site).unwrap().clone();
            let (normalized, read) = (found("blocks.0.ln1.hook_normalized"), found("blocks.0.hook_attn_in"));
            assert_eq!(bits(&normalized), bits(&read), "{name}");
        }
        if spec.norm != Norm::RmsNorm {
            for matrix in ["W_Q.0", "W_K.0", "W_V.0", "W_in.0", "W_U"] {
                assert!(largest_mean(&view(model, matrix), D::Minus2) < ROUNDING, "{name}: {matrix}");
            }
        }
    }
    if processes.contains(&Process::CenterWriting) {
        for written in ["W_E", "W_O", "b_O", "W_out", "b_out"] {
            assert!(largest_mean(&view(model, written), D::Minus1) < ROUNDING, "{name}: {written}");
        }
        for site in ["blocks.0.hook_resid_pre".to_string(), format!("blocks.{}.hook_resid_post", spec.layers - 1)] {
            let mean = largest_mean(run.captured.get(&site).unwrap(), D::Minus1);
            assert!(mean < ROUNDING, "{name}: the mean of {site} is {mean:e}");
        }
    }
    if processes.contains(&Process::CenterUnembed) {
        assert!(largest_mean(&view(model, "W_U"), D::Minus1) < ROUNDING, "{name}");
        assert!(largest_mean(&view(model, "b_U"), D::Minus1) < ROUNDING, "{name}");
    }
    if processes.contains(&Process::FoldValueBiases) {
        assert_eq!(largest(&view(model, "b_V")), 0., "{name}");
    }
}

/// The same checks must see weights that were changed wrongly.
#[test]
fn a_wrong_fold_is_seen() {
    let directory = goldens().join("gpt2-odd");
    let plain = logits(&Model::open(&directory).unwrap());
    let mut model = Model::open(&directory).unwrap();
    apply(&mut model.decoder, &[Process::FoldLayerNorm]).unwrap();
    // As if the biases of the last norm had been forgotten.
    model.decoder.weights.unembed.bias = None;
    assert!(difference(&logits(&model), &plain) > NEUTRAL);
}

#[test]
fn processes_are_done_in_their_own_order_and_once() {
    let directory = goldens().join("gpt2-odd");
    let mut one = Model::open(&directory).unwrap();
    let mut other = Model::open(&directory).unwrap();
    apply(&mut one.decoder, &[Process::FoldValueBiases, Process::CenterWriting, Process::FoldValueBiases]).unwrap();
    apply(&mut other.decoder, &[Process::CenterWriting, Process::FoldValueBiases]).unwrap();
    assert_eq!(one.decoder.processed, [Process::CenterWriting, Process::FoldValueBiases]);
    assert_eq!(bits(&logits(&one)), bits(&logits(&other)));
    assert!(!one.spec().tied);
    for process in Process::ALL {
        assert_eq!(process.name().parse(), Ok(*process));
        assert_eq!(serde_json::to_value(process).unwrap(), process.name());
    }
    assert!("fold_ln".parse::<Process>().unwrap_err().contains("there are fold-ln, center-writing"));
}

/// Numbers that are kept in fewer bits are processed as they are, and kept in f32 from then on.
#[test]
fn coarse_weights_stay_what_they_are() {
    for name in ["gpt2-odd", "llama-grouped"] {
        for precision in [Precision::Bf16, Precision::Int8] {
            let mut model = Model::open_as(goldens().join(name), precision).unwrap();
            let plain = logits(&model);
            apply(&mut model.decoder, &[Process::FoldLayerNorm, Process::FoldValueBiases]).unwrap();
            let apart = difference(&logits(&model), &plain);
            assert!(apart <= NEUTRAL, "{name} {precision:?}: {apart:e}");
        }
    }
}

/// Each view against the activations that it makes: `attn_in W_Q + b_Q = q`, and so on.
#[test]
fn views_make_the_activations() {
    for directory in golden_models() {
        let model = Model::open(&directory).unwrap();
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        let spec = model.spec();
        let run = model.decoder.run(&inputs(), &capture_everything()).unwrap();
        let site = |site: &str| run.captured.get(site).unwrap().squeeze(0).unwrap();
        let check = |what: &str, found: Tensor, expected: Tensor| {
            let apart = difference(&found, &expected);
            assert!(apart < SITE_TOLERANCE, "{name}: {what} differs by {apart:e}");
        };
        let last = spec.layers - 1;
        let at = |view: &str| view_of(&model, view, last);
        let add = |x: Tensor, bias: Tensor| x.broadcast_add(&bias).unwrap();
        let attn_in = site(&format!("blocks.{last}.hook_attn_in"));
        // Not where something stands between the projection and the site.
        let direct = spec.clip_qkv.is_none();
        for (letter, head_count) in [("Q", spec.heads), ("K", spec.kv_heads), ("V", spec.kv_heads)] {
            let (weight, bias) = (at(&format!("W_{letter}")), at(&format!("b_{letter}")));
            assert_eq!(weight.dims(), [head_count, spec.d_model, spec.d_head], "{name}: W_{letter}");
            assert_eq!(view(&model, &format!("W_{letter}")).dims()[0], spec.layers);
            if direct && (letter == "V" || spec.qk_norm.is_none()) {
                let made = add(attn_in.broadcast_matmul(&weight).unwrap(), bias.unsqueeze(1).unwrap());
                let made = made.transpose(0, 1).unwrap().contiguous().unwrap();
                check(letter, made, site(&format!("blocks.{last}.attn.hook_{}", letter.to_lowercase())));
            }
        }
        let z = site(&format!("blocks.{last}.attn.hook_z")).transpose(0, 1).unwrap().contiguous().unwrap();
        let written = add(z.matmul(&at("W_O")).unwrap().sum(0).unwrap(), at("b_O"));
        check("W_O", written, site(&format!("blocks.{last}.hook_attn_out_raw")));
        let normalized = site("ln_final.hook_normalized");
        let ln_final = &model.decoder.weights.ln_final;
        let read = normalized.broadcast_mul(&ln_final.weight).unwrap();
        let read = ln_final.bias.iter().fold(read, |read, bias| add(read, bias.clone()));
        if spec.logit_softcap.is_none() {
            let unembedded = add(read.matmul(&view(&model, "W_U")).unwrap(), view(&model, "b_U"));
            check("W_U", (unembedded * spec.logit_scale).unwrap(), site("hook_logits"));
        }
        let tokens = Tensor::new(&[1u32, 5, 3, 2, 9, 9, 4, 11, 0], &candle_core::Device::Cpu).unwrap();
        let embedded = view(&model, "W_E").index_select(&tokens, 0).unwrap();
        check("W_E", (embedded * spec.embedding_scale).unwrap(), site("hook_embed"));
        if WeightView::Positions.is_in(spec) {
            let positions = view(&model, "W_pos").narrow(0, 0, 9).unwrap();
            check("W_pos", positions, site("hook_pos_embed"));
        } else {
            assert!(model.decoder.weight(WeightName::parse("W_pos").unwrap()).is_err(), "{name}");
        }
        let mlp_in = site(&format!("blocks.{last}.hook_mlp_in"));
        match spec.experts(last) {
            Some(experts) => {
                assert_eq!(at("W_in").dims(), [experts.count, spec.d_model, experts.d_mlp], "{name}");
                assert_eq!(at("W_out").dims(), [experts.count, experts.d_mlp, spec.d_model], "{name}");
                check(
                    "W_router",
                    mlp_in.matmul(&at("W_router")).unwrap(),
                    site(&format!("blocks.{last}.mlp.hook_gate")),
                );
            }
            None => {
                let into =
                    |view: &str| add(mlp_in.matmul(&at(&format!("W_{view}"))).unwrap(), at(&format!("b_{view}")));
                if WeightView::Gate.is_in(spec) {
                    check("W_gate", into("gate"), site(&format!("blocks.{last}.mlp.hook_pre")));
                    check("W_in", into("in"), site(&format!("blocks.{last}.mlp.hook_pre_linear")));
                } else {
                    check("W_in", into("in"), site(&format!("blocks.{last}.mlp.hook_pre")));
                }
                let out = site(&format!("blocks.{last}.mlp.hook_post")).matmul(&at("W_out")).unwrap();
                check("W_out", add(out, at("b_out")), site(&format!("blocks.{last}.hook_mlp_out_raw")));
            }
        }
    }
}

fn view_of(model: &Model, name: &str, layer: usize) -> Tensor {
    model.decoder.weight(WeightName { view: WeightView::parse(name).unwrap(), layer: Some(layer) }).unwrap()
}

#[test]
fn views_that_are_not_there_are_said() {
    let error = |model: &str, name: &str| {
        let model = Model::open(goldens().join(model)).unwrap();
        model.decoder.weight(WeightName::parse(name).unwrap()).unwrap_err().to_string()
    };
    for (model, name, says) in [
        ("llama-grouped", "W_pos", "there is no `W_pos`: the model has no learned positions"),
        ("llama-grouped", "W_Q.9", "there is no `W_Q` in layer 9: there are 3 layers, from 0"),
        ("llama-grouped", "W_router.0", "there is no `W_router` in layer 0: the layer has an MLP and no experts"),
        ("gpt2-odd", "W_gate.0", "there is no `W_gate` in layer 0: the MLP is not gated"),
        ("qwen3_moe-sparse_step", "W_in", "which cannot be stacked; ask for one layer, `W_in."),
    ] {
        let error = error(model, name);
        assert!(error.contains(says), "{model}: {error}");
    }
}
