//! Llama Scope (He et al. 2024, arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`. Read only.
//!
//! They were trained on inputs scaled to a mean length of `√d`. That factor is folded into the weights, and the one threshold of
//! all latents is multiplied by it, as SAELens does.

use std::path::Path;

use super::arrays::Arrays;
use super::settings::Settings;
use super::within;
use crate::config::{Activation, Config};
use crate::dictionary::{Dictionary, Weights};
use crate::error::Result;

pub(crate) const CONFIG: &str = "hyperparams.json";
const WEIGHTS: &str = "checkpoints/final.safetensors";

pub(super) fn open(directory: &Path) -> Result<(Dictionary, Vec<String>)> {
    let mut settings = Settings::read(&directory.join(CONFIG))?;
    let missing = |settings: &Settings, key: &str| settings.fail(format!("it has no `{key}`"));
    let d_in = settings.count("d_model")?.ok_or_else(|| missing(&settings, "d_model"))?;
    let threshold = settings.number("jump_relu_threshold")?.ok_or_else(|| missing(&settings, "jump_relu_threshold"))?;
    let site = settings.text("hook_point_in")?.ok_or_else(|| missing(&settings, "hook_point_in"))?;
    if settings.text("hook_point_out")?.is_some_and(|out| out != site) {
        return Err(settings.unsupported("a transcoder of Llama Scope"));
    }
    let norms = settings.object("dataset_average_activation_norm")?;
    let mut norms = norms.ok_or_else(|| missing(&settings, "dataset_average_activation_norm"))?;
    let norm = norms.number("in")?.filter(|norm| norm.is_finite() && *norm > 0.);
    let norm = norm.ok_or_else(|| norms.fail("`dataset_average_activation_norm.in` should be positive"))?;
    let factor = ((d_in as f64).sqrt() / norm) as f32;
    let mut arrays = Arrays::safetensors(&directory.join(WEIGHTS))?;
    let encoder = arrays.matrix("encoder.weight")?;
    let latents = encoder.rows();
    let mut weights = Weights {
        encoder,
        encoder_bias: arrays.vector("encoder.bias")?,
        decoder: arrays.matrix("decoder.weight")?.transposed(),
        decoder_bias: arrays.vector("decoder.bias")?,
        threshold: Some(vec![threshold as f32 * factor; latents]),
        ..Weights::default()
    };
    arrays.nothing_left()?;
    weights.fold_input_scale(factor);
    let config = Config {
        activation: Activation::JumpRelu,
        heads_flattened: site.ends_with("hook_z"),
        sites: vec![site],
        metadata: settings.rest(),
        ..Config::default()
    };
    let dictionary = Dictionary::new(config, weights).map_err(|error| within(directory, error))?;
    Ok((dictionary, vec![format!("the factor {factor} of its inputs is folded into the weights and thresholds")]))
}
