//! circuit-tracer's transcoders (Hanna et al. 2025, github.com/safety-research/circuit-tracer): a directory with `config.yaml` and
//! either `layer_I.safetensors` for each layer, or `W_enc_I.safetensors` and `W_dec_I.safetensors` of one cross-layer transcoder.
//!
//! `W_enc` has a row for each latent, as here; a skip is `x W_skipᵀ`. circuit-tracer takes the first position's latents for
//! zero when it attributes; that is no part of the dictionary. Its TopK lets negative values through, which are never among the
//! largest in practice and are left out here.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use super::arrays::{Arrays, Written, write_safetensors, write_text};
use super::settings::{Settings, read_text};
use super::{Plain, names, within};
use crate::config::{Activation, Config};
use crate::cross_layer::CrossLayerTranscoder;
use crate::dictionary::{Dictionary, Weights};
use crate::error::{Error, Result};
use crate::matrix::Matrix;

pub(crate) const CONFIG: &str = "config.yaml";
/// More layers than any model has.
const MOST_LAYERS: usize = 4096;

/// The settings of a directory.
fn settings(directory: &Path) -> Result<Settings> {
    let path = directory.join(CONFIG);
    let text = read_text(&path)?;
    match serde_saphyr::from_str::<Value>(&text) {
        Ok(Value::Object(values)) => Ok(Settings::new(&path, values)),
        Ok(_) => Err(Error::file(&path, "it is not a mapping of keys to values")),
        Err(error) => Err(Error::file(&path, format!("it is not YAML: {error}"))),
    }
}

/// Whether the directory's transcoders write several layers.
pub(super) fn is_cross_layer(directory: &Path) -> Result<bool> {
    let mut settings = settings(directory)?;
    match settings.text("model_kind")?.as_deref() {
        Some("cross_layer_transcoder") => Ok(true),
        Some("transcoder_set") | None => Ok(false),
        Some(other) => Err(settings.unsupported(format!("`model_kind: {other}`"))),
    }
}

/// The files of a set, layer by layer.
pub(super) fn layers(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut settings = settings(directory)?;
    if let Some(listed) = settings.texts("transcoders")? {
        return listed.iter().map(|name| within_directory(&settings, directory, name)).collect();
    }
    let entries = std::fs::read_dir(directory).map_err(|error| Error::file(directory, error))?;
    let mut found: Vec<(usize, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((layer_of(&entry.path())?, entry.path()))).collect();
    found.sort();
    match found.is_empty() {
        true => Err(settings.fail("there is no layer_0.safetensors beside it")),
        false => Ok(found.into_iter().map(|(_, path)| path).collect()),
    }
}

/// A listed file, which must lie within the directory.
fn within_directory(settings: &Settings, directory: &Path, name: &str) -> Result<PathBuf> {
    if name.contains("://") {
        return Err(settings.unsupported(format!("`{name}`: only files of the directory are read; download it first")));
    }
    match Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
        true => Ok(directory.join(name)),
        false => Err(settings.fail(format!("`{name}` lies outside the directory"))),
    }
}

/// The layer of `layer_3.safetensors`.
pub(super) fn layer_of(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("layer_")?.strip_suffix(".safetensors")?.parse().ok()
}

/// What all layers share: the hooks, how latents come about, the rest.
struct Shared {
    input: String,
    output: String,
    activation: Option<String>,
    k: Option<usize>,
    metadata: Map<String, Value>,
}

fn shared(mut settings: Settings) -> Result<Shared> {
    for key in ["model_kind", "transcoders"] {
        settings.take(key);
    }
    let hook = |settings: &mut Settings, key: &str| -> Result<String> {
        settings.text(key)?.ok_or_else(|| settings.fail(format!("it has no `{key}`")))
    };
    let (input, output) = (hook(&mut settings, "feature_input_hook")?, hook(&mut settings, "feature_output_hook")?);
    let activation = settings.text("activation")?;
    let k = settings.count("k")?;
    Ok(Shared { input, output, activation, k, metadata: settings.rest() })
}

/// One file of a set, with the configuration beside it.
pub(super) fn open_layer(path: &Path) -> Result<(Dictionary, Vec<String>)> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let layer = match layer_of(path) {
        Some(layer) => layer,
        None => {
            let listed = layers(directory)?;
            let at = listed.iter().position(|listed| listed == path);
            at.ok_or_else(|| Error::file(path, format!("{CONFIG} beside it does not list it")))?
        }
    };
    let settings = settings(directory)?;
    let Shared { input, output, activation, k, metadata } = shared(settings.clone())?;
    let mut arrays = Arrays::safetensors(path)?;
    let mut weights = Weights {
        encoder: arrays.matrix("W_enc")?,
        encoder_bias: arrays.vector("b_enc")?,
        decoder: arrays.matrix("W_dec")?,
        decoder_bias: arrays.vector("b_dec")?,
        ..Weights::default()
    };
    if arrays.has("W_skip") {
        weights.skip = Some(arrays.matrix("W_skip")?);
    }
    let threshold = arrays.first(&["activation_function.threshold", "threshold"]);
    let stored_k = if arrays.has("k") { Some(arrays.number("k")? as usize) } else { None };
    let activation = match activation.as_deref() {
        Some("topk") => {
            let k = k.or(stored_k).ok_or_else(|| settings.fail("`activation` is topk, and there is no `k`"))?;
            Activation::TopK { k, by_decoder_norm: false }
        }
        Some("relu") => Activation::Relu,
        None | Some("jump_relu" | "jumprelu") => match threshold {
            Some(_) => Activation::JumpRelu,
            None => Activation::Relu,
        },
        Some(other) => return Err(settings.unsupported(format!("`activation: {other}`"))),
    };
    if let Some(name) = threshold {
        weights.threshold = Some(arrays.vector_or_number(name, weights.encoder.rows())?);
    }
    arrays.nothing_left()?;
    let config = Config {
        activation,
        sites: vec![names::of_circuit_tracer(layer, &input)],
        output_site: Some(names::of_circuit_tracer(layer, &output)),
        metadata,
        ..Config::default()
    };
    let notes = negative_thresholds(&weights).into_iter().collect();
    Ok((Dictionary::new(config, weights).map_err(|error| within(path, error))?, notes))
}

/// circuit-tracer would let negative activations through there.
fn negative_thresholds(weights: &Weights) -> Option<String> {
    let count = weights.threshold.as_ref()?.iter().filter(|&&threshold| threshold < 0.).count();
    (count > 0).then(|| format!("{count} thresholds are negative; they are taken for 0, as in SAELens"))
}

/// All layers of a cross-layer transcoder.
pub(super) fn open_cross_layer(directory: &Path) -> Result<(CrossLayerTranscoder, Vec<String>)> {
    let Shared { input, output, metadata, activation, .. } = shared(settings(directory)?)?;
    if let Some(other) = activation.filter(|name| !["relu", "jump_relu", "jumprelu"].contains(&name.as_str())) {
        let (path, what) = (directory.join(CONFIG), format!("`activation: {other}` of a cross-layer transcoder"));
        return Err(Error::Unsupported { path, what });
    }
    let encoder_file = |layer: usize| directory.join(format!("W_enc_{layer}.safetensors"));
    let count = (0..MOST_LAYERS).take_while(|&layer| encoder_file(layer).is_file()).count();
    let mut layers = Vec::new();
    let mut notes = Vec::new();
    for layer in 0..count {
        let path = encoder_file(layer);
        let mut arrays = Arrays::safetensors(&path)?;
        let encoder = arrays.matrix(&format!("W_enc_{layer}"))?;
        let encoder_bias = arrays.vector(&format!("b_enc_{layer}"))?;
        let mut decoder_bias = arrays.vector(&format!("b_dec_{layer}"))?;
        let name = format!("threshold_{layer}");
        let threshold = if arrays.has(&name) { Some(arrays.vector_or_number(&name, encoder.rows())?) } else { None };
        arrays.nothing_left()?;
        let path = directory.join(format!("W_dec_{layer}.safetensors"));
        let mut arrays = Arrays::safetensors(&path)?;
        let (shape, values) = arrays.take(&format!("W_dec_{layer}"))?;
        arrays.nothing_left()?;
        let width = decoder_bias.len();
        if shape != [encoder.rows(), count - layer, width] {
            let expected = vec![encoder.rows(), count - layer, width];
            return Err(within(&path, Error::Shape { name: "W_dec", found: shape, expected }));
        }
        let decoder = Matrix::new(encoder.rows(), (count - layer) * width, values)?;
        // Its bias is that of its own layer's output.
        decoder_bias.resize(decoder.columns(), 0.);
        let weights = Weights { encoder, encoder_bias, decoder, decoder_bias, threshold, ..Weights::default() };
        notes.extend(negative_thresholds(&weights).map(|note| format!("layer {layer}: {note}")));
        let config = Config {
            activation: if weights.threshold.is_some() { Activation::JumpRelu } else { Activation::Relu },
            sites: vec![names::of_circuit_tracer(layer, &input)],
            output_site: Some(names::of_circuit_tracer(layer, &output)),
            metadata: metadata.clone(),
            ..Config::default()
        };
        layers.push(Dictionary::new(config, weights).map_err(|error| within(&path, error))?);
    }
    let transcoder = CrossLayerTranscoder::new(layers).map_err(|error| within(directory, error))?;
    Ok((transcoder, notes))
}

/// The layer of a transcoder, and the hooks that it reads and writes within it.
fn place<'a>(path: &Path, config: &'a Config) -> Result<(usize, &'a str, &'a str)> {
    let fail = |reason: String| Error::write(path, reason);
    let [site] = config.sites.as_slice() else {
        return Err(fail("circuit_tracer wants to know the one site it reads".into()));
    };
    let output = config.output_site.as_deref().filter(|site| !site.is_empty());
    let output = output.ok_or_else(|| fail("circuit_tracer holds transcoders whose output site is known".into()))?;
    match (names::layer_and_part(site), names::layer_and_part(output)) {
        (Some((layer, input)), Some((other, output))) if layer == other => Ok((layer, input, output)),
        _ => {
            Err(fail(format!("circuit_tracer holds transcoders within one layer, and this is from {site} to {output}")))
        }
    }
}

/// `config.yaml`; JSON's texts are YAML's.
fn write_settings(directory: &Path, kind: &str, hooks: [&str; 2], values: &[(&str, Value)]) -> Result<()> {
    let mut text = format!("model_kind: {kind}\n");
    for (key, hook) in ["feature_input_hook", "feature_output_hook"].into_iter().zip(hooks) {
        text.push_str(&format!("{key}: {}\n", json!(hook)));
    }
    for (key, value) in values {
        text.push_str(&format!("{key}: {value}\n"));
    }
    write_text(&directory.join(CONFIG), &text)
}

/// Writes the file of its layer, and `config.yaml`, which must suit all layers.
pub(super) fn save(directory: &Path, dictionary: &Dictionary) -> Result<Vec<String>> {
    let config = dictionary.config();
    let (layer, input, output) = place(directory, config)?;
    let Plain { weights, mut lost } = Plain::of(directory, dictionary, "circuit_tracer", false)?;
    let mut values = vec![("model_name", config.metadata.get("model_name").cloned().unwrap_or(Value::Null))];
    match config.activation {
        Activation::TopK { k, .. } => {
            values.push(("activation", json!("topk")));
            values.push(("k", json!(k)));
        }
        Activation::Relu => values.push(("activation", json!("relu"))),
        Activation::JumpRelu => {}
        other => {
            let reason = format!("circuit_tracer holds relu, jumprelu and topk, and this is {other:?}");
            return Err(Error::write(directory, reason));
        }
    }
    let mut arrays = vec![
        ("W_enc".to_string(), Written::matrix(&weights.encoder)),
        ("b_enc".to_string(), Written::vector(&weights.encoder_bias)),
        ("W_dec".to_string(), Written::matrix(&weights.decoder)),
        ("b_dec".to_string(), Written::vector(&weights.decoder_bias)),
    ];
    if let (Activation::JumpRelu, Some(threshold)) = (config.activation, &weights.threshold) {
        arrays.push(("activation_function.threshold".into(), Written::vector(threshold)));
    }
    if let Some(skip) = &weights.skip {
        arrays.push(("W_skip".into(), Written::matrix(skip)));
    }
    write_safetensors(&directory.join(format!("layer_{layer}.safetensors")), &arrays)?;
    write_settings(directory, "transcoder_set", [input, output], &values)?;
    if layer > 0 {
        lost.push("the layers below, which circuit_tracer wants in the same directory".into());
    }
    Ok(lost)
}

/// Writes a cross-layer transcoder.
pub(super) fn save_cross_layer(directory: &Path, transcoder: &CrossLayerTranscoder) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|error| Error::write(directory, error))?;
    let mut hooks = ["", ""];
    let width = transcoder.width();
    for (layer, dictionary) in transcoder.layers().iter().enumerate() {
        let (at, input, output) = place(directory, dictionary.config())?;
        if at != layer || (layer > 0 && hooks != [input, output]) {
            return Err(Error::write(
                directory,
                format!("layer {layer} has other hooks than the first, or another place"),
            ));
        }
        hooks = [input, output];
        let Plain { weights, .. } = Plain::of(directory, dictionary, "circuit_tracer", false)?;
        let bias = Written::vector(&weights.decoder_bias[..width]);
        let mut arrays = vec![
            (format!("W_enc_{layer}"), Written::matrix(&weights.encoder)),
            (format!("b_enc_{layer}"), Written::vector(&weights.encoder_bias)),
            (format!("b_dec_{layer}"), bias),
        ];
        match (dictionary.config().activation, &weights.threshold) {
            (Activation::JumpRelu, Some(threshold)) => {
                arrays.push((format!("threshold_{layer}"), Written::vector(threshold)));
            }
            (Activation::Relu, _) => {}
            (other, _) => {
                return Err(Error::write(
                    directory,
                    format!("it holds relu and jumprelu, and layer {layer} is {}", other.name()),
                ));
            }
        }
        write_safetensors(&directory.join(format!("W_enc_{layer}.safetensors")), &arrays)?;
        let mut decoder = Written::matrix(&weights.decoder);
        decoder.shape = vec![dictionary.latents(), transcoder.layers().len() - layer, width];
        write_safetensors(
            &directory.join(format!("W_dec_{layer}.safetensors")),
            &[(format!("W_dec_{layer}"), decoder)],
        )?;
    }
    let model = transcoder.layers().first().and_then(|layer| layer.config().metadata.get("model_name").cloned());
    write_settings(directory, "cross_layer_transcoder", hooks, &[("model_name", model.unwrap_or(Value::Null))])
}
