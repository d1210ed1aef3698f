//! Certificates of dictionaries: one that is right passes, and each thing that can be wrong with it is found out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use endoscope_dictionary::certificate::{Allowed, CauseKind, Certificate, certify};
use endoscope_dictionary::evaluate::activations;
use endoscope_dictionary::{Activation, Config, Dictionary, Matrix, Normalization, Weights};
use endoscope_models::Model;
use endoscope_net::{Capture, Inputs, Network, Plan};
use nalgebra::DMatrix;

const SITE: &str = "blocks.0.hook_resid_post";

fn model() -> Model {
    Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction")).unwrap()
}

/// Rows of tokens that look random.
fn rows(model: &Model) -> Vec<Vec<u32>> {
    let vocabulary = model.spec().vocabulary;
    let token = |at: usize| ((at * at * 31 + at * 17 + 5) % (vocabulary - 2) + 2) as u32;
    (0..24).map(|row| (0..32).map(|at| token(row * 37 + at)).collect()).collect()
}

fn vectors(model: &Model, site: &str) -> Matrix {
    let network = &model.decoder;
    let run = network.run(&Inputs::tokens(rows(model)).unwrap(), &Plan::default().capture(Capture::new(site))).unwrap();
    let width = run.captured.get(site).unwrap().dims()[2];
    let any = Dictionary::new(
        Config { sites: vec![site.into()], ..Config::default() },
        Weights {
            encoder: Matrix::zeros(1, width),
            encoder_bias: vec![0.],
            decoder: Matrix::zeros(1, width),
            decoder_bias: vec![0.; width],
            ..Weights::default()
        },
    );
    activations(network, &any.unwrap(), &run).unwrap().0
}

/// Two latents for each of the `count` directions of most variance, one for each sign, around the mean.
fn principal(x: &Matrix, count: usize) -> Weights {
    let (mean, width) = (x.mean(), x.columns());
    let centred = DMatrix::from_fn(x.rows(), width, |row, at| f64::from(x.row(row)[at] - mean[at]));
    let eigen = (centred.transpose() * &centred).symmetric_eigen();
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let mut both = Matrix::zeros(2 * count, width);
    for (at, &direction) in order.iter().take(count).enumerate() {
        for dim in 0..width {
            let value = eigen.eigenvectors[(dim, direction)] as f32;
            both.row_mut(2 * at)[dim] = value;
            both.row_mut(2 * at + 1)[dim] = -value;
        }
    }
    Weights {
        encoder: both.clone(),
        encoder_bias: vec![0.; 2 * count],
        decoder: both,
        decoder_bias: mean,
        ..Weights::default()
    }
}

fn config() -> Config {
    Config { sites: vec![SITE.into()], apply_b_dec_to_input: true, ..Config::default() }
}

fn check(model: &Model, config: Config, weights: Weights) -> Certificate {
    let dictionary = Dictionary::new(config, weights).unwrap();
    certify(&model.decoder, &dictionary, &rows(model), Allowed::default()).unwrap()
}

/// The first cause must be this one, and the certificate must not pass.
fn caught(found: &Certificate, kind: CauseKind, says: &str) {
    assert!(!found.passed);
    let first = found.causes.first().unwrap_or_else(|| panic!("nothing was found: {found:?}"));
    assert!(first.kind == kind && first.says.contains(says), "{says}: {:#?}", found.causes);
}

#[test]
fn a_dictionary_of_its_site_passes() {
    let model = model();
    let found = check(&model, config(), principal(&vectors(&model, SITE), 20));
    let fit = found.fit.as_ref().unwrap();
    assert!(found.passed && found.failures.is_empty() && fit.fvu < 0.3 && fit.l0 == 20., "{found:#?}");
    assert!(found.input_length.unwrap() > 0.);
    assert_eq!(fit.rows, 24 * 32);
}

#[test]
fn another_site_is_found() {
    let model = model();
    let weights = principal(&vectors(&model, SITE), 20);
    for wrong in ["blocks.1.hook_resid_post", "blocks.0.hook_attn_out", "blocks.1.hook_mlp_out"] {
        let found = check(&model, Config { sites: vec![wrong.into()], ..config() }, weights.clone());
        assert!(!found.passed, "{wrong}");
        assert!(found.causes.iter().any(|cause| cause.says.ends_with(&format!("reads {SITE}"))), "{wrong}: {found:#?}");
    }
    // A site of another width, by the shape of which nothing fits.
    let found = check(&model, Config { sites: vec!["blocks.0.ln1.hook_scale".into()], ..config() }, weights);
    assert!(
        !found.passed && found.fit.is_none() && found.failures[0].contains("and the dictionary reads"),
        "{found:?}"
    );
    assert!(found.causes.iter().any(|cause| cause.says.ends_with(&format!("reads {SITE}"))), "{found:#?}");
}

#[test]
fn another_normalisation_is_found() {
    let model = model();
    let x = vectors(&model, SITE);
    let normalised = |normalization: Normalization| {
        let mut x = x.clone();
        for row in 0..x.rows() {
            let row = x.row_mut(row);
            let width = row.len() as f32;
            let mean = match normalization {
                Normalization::LayerNorm => row.iter().sum::<f32>() / width,
                _ => 0.,
            };
            row.iter_mut().for_each(|x| *x -= mean);
            let free = if normalization == Normalization::LayerNorm { width - 1. } else { width };
            let deviation = (row.iter().map(|x| x * x).sum::<f32>() / free).sqrt();
            row.iter_mut().for_each(|x| *x /= deviation);
        }
        x
    };
    for normalization in [Normalization::LayerNorm, Normalization::ConstantNormRescale] {
        let mut weights = principal(&normalised(normalization), 20);
        // A threshold, so that scale matters.
        weights.threshold = Some(vec![0.3; weights.encoder.rows()]);
        let right = Config { activation: Activation::JumpRelu, normalization, ..config() };
        let found = check(&model, right.clone(), weights.clone());
        assert!(found.passed, "{normalization:?}: {found:#?}");
        let found = check(&model, Config { normalization: Normalization::None, ..right }, weights);
        caught(&found, CauseKind::Normalization, normalization.name());
    }
}

#[test]
fn a_missing_factor_of_inputs_is_found() {
    let model = model();
    let x = vectors(&model, SITE);
    let length = x.norms().iter().sum::<f32>() / x.rows() as f32;
    let factor = (x.columns() as f32).sqrt() / length;
    let mut weights = principal(&x, 20);
    weights.fold_input_scale(1. / factor);
    let found = check(&model, config(), weights);
    caught(&found, CauseKind::Normalization, "and that factor is missing");
}

#[test]
fn matrices_the_other_way_round_are_found() {
    let model = model();
    let right = principal(&vectors(&model, SITE), 20);
    let wrong =
        |matrix: &Matrix| Matrix::new(matrix.rows(), matrix.columns(), matrix.transposed().values().to_vec()).unwrap();
    let encoder = Weights { encoder: wrong(&right.encoder), ..right.clone() };
    caught(&check(&model, config(), encoder), CauseKind::Transposed, "its encoder (W_enc)");
    let decoder = Weights { decoder: wrong(&right.decoder), ..right.clone() };
    caught(&check(&model, config(), decoder), CauseKind::Transposed, "its decoder (W_dec)");
}

#[test]
fn a_decoder_bias_that_is_missing_or_misused_is_found() {
    let model = model();
    let right = principal(&vectors(&model, SITE), 20);
    let missing = Weights { decoder_bias: vec![0.; right.decoder_bias.len()], ..right.clone() };
    let found = check(&model, config(), missing);
    caught(&found, CauseKind::DecoderBias, "its decoder's bias (b_dec) is missing");
    let unsubtracted = Config { apply_b_dec_to_input: false, ..config() };
    caught(&check(&model, unsubtracted, right), CauseKind::DecoderBias, "`apply_b_dec_to_input` should be true");
}

#[test]
fn figures_out_of_range_fail() {
    let model = model();
    let dictionary = Dictionary::new(config(), principal(&vectors(&model, SITE), 20)).unwrap();
    let rows = rows(&model);
    let allowed = Allowed { fvu: 1e-6, l0: Some((1., 5.)), from_position: 1 };
    let found = certify(&model.decoder, &dictionary, &rows, allowed).unwrap();
    assert!(!found.passed && found.causes.is_empty(), "{found:#?}");
    assert_eq!(found.fit.as_ref().unwrap().rows, 24 * 31);
    assert!(found.failures[0].contains("of the variance unexplained; 0.000001 is allowed"), "{:?}", found.failures);
    assert!(
        found.failures[1].contains("it has 20.0 active latents a vector; 1 to 5 are allowed"),
        "{:?}",
        found.failures
    );
    let (config, weights) = dictionary.into_parts();
    let nowhere = Dictionary::new(Config { sites: Vec::new(), ..config }, weights).unwrap();
    let error = certify(&model.decoder, &nowhere, &rows, allowed).unwrap_err().to_string();
    assert!(error.contains("do not say which site it reads or writes: name it"), "{error}");
}

#[test]
fn a_transcoder_is_held_against_what_it_writes() {
    let model = model();
    let (input, output) = ("blocks.1.hook_resid_mid", "blocks.1.hook_resid_post");
    let (x, y) = (vectors(&model, input), vectors(&model, output));
    // The best linear map of 40 directions, by least squares on the latents.
    let read = principal(&x, 40);
    let shifted: Vec<f32> =
        read.encoder.iter().map(|row| -row.iter().zip(&read.decoder_bias).map(|(w, b)| w * b).sum::<f32>()).collect();
    let encoder = Weights { encoder_bias: shifted, decoder_bias: vec![0.; x.columns()], ..read };
    let latents = {
        let any = Dictionary::new(Config::default(), encoder.clone()).unwrap();
        any.encode(&x).unwrap().latents.dense()
    };
    let count = encoder.encoder.rows();
    let design =
        DMatrix::from_fn(
            x.rows(),
            count + 1,
            |row, at| {
                if at < count { f64::from(latents[row * count + at]) } else { 1. }
            },
        );
    let wanted = DMatrix::from_fn(y.rows(), y.columns(), |row, at| f64::from(y.row(row)[at]));
    let solved = design.svd(true, true).solve(&wanted, 1e-9).unwrap();
    let mut weights = encoder;
    for latent in 0..count {
        weights.decoder.row_mut(latent).iter_mut().enumerate().for_each(|(at, w)| *w = solved[(latent, at)] as f32);
    }
    weights.decoder_bias = (0..y.columns()).map(|at| solved[(count, at)] as f32).collect();
    let right = Config { sites: vec![input.into()], output_site: Some(output.into()), ..Config::default() };
    let found = check(&model, right.clone(), weights.clone());
    assert!(found.passed, "{found:#?}");
    let reversed = Config { output_site: Some("blocks.0.hook_attn_out".into()), ..right };
    let found = check(&model, reversed, weights);
    assert!(!found.passed, "{found:#?}");
    assert!(found.causes.iter().any(|cause| cause.says.ends_with(&format!("it writes {output}"))), "{found:#?}");
}
