//! Gemma Scope: `params.npz` of one JumpReLU dictionary (Lieberum et al. 2024, arXiv 2408.05147), and of Gemma Scope 2
//! `params.safetensors` beside a `config.json`.
//!
//! The first has no configuration: which site is read stands in the name of the repository, which is looked for in the path.
//! Dictionaries of the embedding were trained on it before Gemma multiplies it by `√d`; `hook_embed` is after, so the factor
//! is folded into the weights. (SAELens 6.54 folds it into the matrices but leaves `b_dec` as it was.)

use std::path::Path;

use serde_json::{Map, Value, json};

use super::archive::{npz, write_npz};
use super::arrays::{Arrays, Written};
use super::settings::Settings;
use super::{Plain, names, within};
use crate::config::{Activation, Config};
use crate::dictionary::{Dictionary, Weights};
use crate::error::{Error, Result};

pub(crate) const NPZ: &str = "params.npz";
pub(crate) const SECOND: &str = "params.safetensors";
const CONFIG: &str = "config.json";

/// What a path says of the dictionary at its end.
#[derive(Debug, Default, PartialEq)]
struct Place {
    model: Option<String>,
    site: Option<String>,
    output_site: Option<String>,
    heads: bool,
    embedding: bool,
}

/// `…/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`, or a hub's cache of it.
fn place(path: &Path) -> Place {
    let parts: Vec<String> = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let repository =
        parts.iter().rev().find_map(|part| Some(&part[part.find("gemma-scope-")? + "gemma-scope-".len()..]));
    let layer = parts.iter().rev().find_map(|part| part.strip_prefix("layer_")?.parse::<usize>().ok());
    let Some(repository) = repository else { return Place::default() };
    let words: Vec<&str> = repository.split('-').collect();
    let model = match words[..] {
        [size, "pt", ..] => Some(format!("gemma-2-{size}")),
        [size, "it", ..] => Some(format!("gemma-2-{size}-it")),
        _ => None,
    };
    let site = |part: &str| layer.map(|layer| format!("blocks.{layer}.{part}"));
    let mut found = Place { model, ..Place::default() };
    match words.last() {
        Some(&"res") if parts.iter().any(|part| part == "embedding") => {
            found.embedding = true;
            found.site = Some("hook_embed".into());
        }
        Some(&"res") => found.site = site("hook_resid_post"),
        Some(&"mlp") => found.site = site("hook_mlp_out"),
        Some(&"att") => (found.site, found.heads) = (site("attn.hook_z"), true),
        Some(&"transcoders") => {
            (found.site, found.output_site) =
                (site("ln2.hook_normalized"), Some(site("hook_mlp_out").unwrap_or_default()));
        }
        _ => {}
    }
    found
}

/// `params.npz` itself, or the directory that holds it.
pub(super) fn open(path: &Path) -> Result<(Dictionary, Vec<String>)> {
    let file = if path.is_dir() { path.join(NPZ) } else { path.to_path_buf() };
    let mut arrays = npz(&file)?;
    let weights = weights(&mut arrays)?;
    arrays.nothing_left()?;
    let whole = std::path::absolute(&file).unwrap_or_else(|_| file.clone());
    let place = place(&whole);
    let mut notes = Vec::new();
    if place.site.is_none() {
        notes.push("its path does not say which site it reads".to_string());
    }
    let mut metadata = Map::new();
    if let Some(model) = place.model {
        metadata.insert("model_name".into(), json!(model));
    }
    let mut weights = weights;
    if place.embedding {
        weights.fold_input_scale(1. / (weights.encoder.columns() as f32).sqrt());
        notes.push("the factor √d of Gemma's embedding is folded into the weights".into());
    }
    let config = Config {
        activation: Activation::JumpRelu,
        sites: place.site.into_iter().collect(),
        output_site: place.output_site,
        heads_flattened: place.heads,
        metadata,
        ..Config::default()
    };
    Ok((Dictionary::new(config, weights).map_err(|error| within(&file, error))?, notes))
}

/// `params.safetensors` and `config.json` of Gemma Scope 2.
pub(super) fn open_second(directory: &Path) -> Result<(Dictionary, Vec<String>)> {
    let mut settings = Settings::read(&directory.join(CONFIG))?;
    match settings.text("architecture")?.as_deref() {
        Some("jump_relu") => {}
        other => {
            return Err(
                settings.unsupported(format!("the architecture `{}`", other.unwrap_or("that it does not name")))
            );
        }
    }
    let mut arrays = Arrays::safetensors(&directory.join(SECOND))?;
    if arrays.shape("w_dec").is_some_and(|shape| shape.len() == 3) {
        return Err(
            settings.unsupported("a decoder that writes several layers (Gemma Scope 2's cross-layer transcoders)")
        );
    }
    let mut weights = weights(&mut arrays)?;
    if arrays.has("affine_skip_connection") {
        weights.skip = Some(arrays.matrix("affine_skip_connection")?.transposed());
    }
    arrays.nothing_left()?;
    let mut notes = Vec::new();
    let mut site = |key: &str| -> Result<Option<String>> {
        let Some(point) = settings.text(key)? else { return Ok(None) };
        let site = names::of_gemma_3(&point);
        if site.is_none() {
            notes.push(format!("its `{key}: {point}` is none of our sites"));
        }
        settings.set(key, json!(point));
        Ok(site.or(Some(String::new())))
    };
    let (input, output) = (site("hf_hook_point_in")?, site("hf_hook_point_out")?);
    let metadata = settings.rest();
    let input = input.filter(|site| !site.is_empty());
    let config = Config {
        activation: Activation::JumpRelu,
        heads_flattened: input.as_deref().is_some_and(|site| site.ends_with("hook_z")),
        sites: input.into_iter().collect(),
        output_site: output,
        metadata,
        ..Config::default()
    };
    Ok((Dictionary::new(config, weights).map_err(|error| within(directory, error))?, notes))
}

/// The arrays by either spelling: `W_enc` or `w_enc`, as the tools that wrote them have it.
fn weights(arrays: &mut Arrays) -> Result<Weights> {
    let name =
        |arrays: &Arrays, upper: &'static str, lower: &'static str| arrays.first(&[upper, lower]).unwrap_or(upper);
    let (encoder, decoder) = (name(arrays, "W_enc", "w_enc"), name(arrays, "W_dec", "w_dec"));
    Ok(Weights {
        encoder: arrays.matrix(encoder)?.transposed(),
        encoder_bias: arrays.vector("b_enc")?,
        decoder: arrays.matrix(decoder)?,
        decoder_bias: arrays.vector("b_dec")?,
        threshold: Some(arrays.vector("threshold")?),
        ..Weights::default()
    })
}

/// Writes `params.npz`.
pub(super) fn save(directory: &Path, dictionary: &Dictionary) -> Result<Vec<String>> {
    let Plain { weights, mut lost } = Plain::of(directory, dictionary, "gemma_scope", false)?;
    let latents = dictionary.latents();
    let threshold = match dictionary.config().activation {
        Activation::JumpRelu => weights.threshold.clone().unwrap_or_default(),
        // max(a, 0) is a where it is above 0.
        Activation::Relu => vec![0.; latents],
        other => {
            return Err(Error::write(directory, format!("gemma_scope holds jumprelu, and this is {}", other.name())));
        }
    };
    if weights.skip.is_some() {
        return Err(Error::write(directory, "gemma_scope has no place for a skip connection"));
    }
    lost.push("which model and site it reads, which the path says in gemma_scope".into());
    let arrays = [
        ("W_enc".to_string(), Written::transposed(&weights.encoder)),
        ("W_dec".to_string(), Written::matrix(&weights.decoder)),
        ("b_enc".to_string(), Written::vector(&weights.encoder_bias)),
        ("b_dec".to_string(), Written::vector(&weights.decoder_bias)),
        ("threshold".to_string(), Written::vector(&threshold)),
    ];
    write_npz(&directory.join(NPZ), &arrays)?;
    Ok(lost)
}

/// Whether a directory's `config.json` is one of Gemma Scope 2.
pub(super) fn is_second(directory: &Path) -> bool {
    let config = Settings::read(&directory.join(CONFIG));
    config.is_ok_and(|settings| settings.peek("architecture") == Some(&Value::from("jump_relu")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_where_a_dictionary_belongs() {
        let cases = [
            ("/a/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "blocks.20.hook_resid_post", "gemma-2-2b"),
            (
                "/models--google--gemma-scope-9b-it-res/snapshots/1f/layer_9/x",
                "blocks.9.hook_resid_post",
                "gemma-2-9b-it",
            ),
            ("/gemma-scope-2b-pt-att/layer_0/x", "blocks.0.attn.hook_z", "gemma-2-2b"),
            ("/gemma-scope-2b-pt-mlp/layer_3/x", "blocks.3.hook_mlp_out", "gemma-2-2b"),
            ("/gemma-scope-2b-pt-transcoders/layer_3/x", "blocks.3.ln2.hook_normalized", "gemma-2-2b"),
            ("/gemma-scope-2b-pt-res/embedding/width_4k", "hook_embed", "gemma-2-2b"),
        ];
        for (path, site, model) in cases {
            let found = place(Path::new(path));
            assert_eq!((found.site.as_deref(), found.model.as_deref()), (Some(site), Some(model)), "{path}");
        }
        assert_eq!(place(Path::new("/layer_3/params.npz")), Place::default());
    }
}
