//! SAELens's directories, which are ours too: `cfg.json` and `sae_weights.safetensors`, perhaps with `sparsity.safetensors`.
//!
//! Read are the directories of every version, with the keys before 6.0 brought up to date, and checkpoints of a training:
//! what BatchTopK trained is read as the JumpReLU dictionary that SAELens would save of it. Keys that say nothing of the
//! arithmetic are kept in [`Config::metadata`] and written again.
//!
//! What we add to the format, and SAELens then refuses to read or does not look at:
//! `metadata.hook_names`, the sites of a crosscoder in the order of its blocks; the architectures `topk_transcoder`,
//! `gated_transcoder` and the same with `skip_transcoder`, made as SAELens makes `jumprelu_skip_transcoder`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::arrays::{Arrays, Written, write_safetensors, write_text};
use super::settings::Settings;
use super::within;
use crate::config::{Activation, Config, Normalization};
use crate::dictionary::{Dictionary, Magnitude, Weights};
use crate::error::{Error, Result};

pub(crate) const CONFIG: &str = "cfg.json";
pub(crate) const WEIGHTS: &str = "sae_weights.safetensors";
const SPARSITY: &str = "sparsity.safetensors";
const SCALER: &str = "activation_scaler.json";
/// The version whose keys we write.
const VERSION: &str = "6.0.0";

/// What the trained weights are taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Standard,
    TopK,
    JumpRelu,
    Gated,
    BatchTopK,
}

/// A directory, and what was changed in reading it.
pub(super) fn open(directory: &Path) -> Result<(Dictionary, Vec<String>)> {
    let mut notes = Vec::new();
    let mut settings = Settings::read(&directory.join(CONFIG))?;
    let mut metadata = settings.object("metadata")?.map(Settings::rest).unwrap_or_default();
    let version = settings.text("sae_lens_version")?;
    let version = version.or_else(|| metadata.get("sae_lens_version")?.as_str().map(str::to_string));
    let old = version.as_deref().is_none_or(|version| major(version) < 6);
    if old {
        migrate(&mut settings)?;
        notes.push(match version {
            Some(version) => format!("its keys are those of SAELens {version} and were brought up to date"),
            None => "its keys are those of SAELens before 6.0 and were brought up to date".to_string(),
        });
        metadata.shift_remove("sae_lens_version");
    }
    if metadata.get("sae_lens_version").is_some_and(|version| version == VERSION) {
        metadata.shift_remove("sae_lens_version");
    }

    let architecture = settings.text("architecture")?;
    let architecture = architecture.ok_or_else(|| settings.fail("it has no `architecture`"))?;
    let (kind, transcoder) =
        kind_of(&architecture).ok_or_else(|| settings.unsupported(format!("the architecture `{architecture}`")))?;
    let by_decoder_norm = settings.flag("rescale_acts_by_decoder_norm")?;
    let mut normalization = normalization(&mut settings)?;
    let heads_flattened = match settings.text("reshape_activations")?.as_deref() {
        None | Some("none") => false,
        Some("hook_z") => true,
        Some(other) => return Err(settings.unsupported(format!("`reshape_activations: {other}`"))),
    };
    let apply_b_dec_to_input = settings.flag("apply_b_dec_to_input")?.unwrap_or(!transcoder);
    let sizes = [settings.count("d_in")?, settings.count("d_sae")?, settings.count("d_out")?];
    let finetuned = settings.flag("finetuning_scaling_factor")?.unwrap_or(false);

    let mut arrays = Arrays::safetensors(&directory.join(WEIGHTS))?;
    let mut weights = weights(&mut arrays, kind, transcoder, sizes)?;
    if let Some(factor) = finetuning_factor(&mut arrays, weights.decoder.rows(), finetuned)? {
        for (latent, factor) in factor.iter().enumerate() {
            weights.decoder.row_mut(latent).iter_mut().for_each(|x| *x *= factor);
        }
        notes.push("the factors of its latents from finetuning are folded into the decoder".into());
    }
    let mut threshold = match kind {
        Kind::BatchTopK => Some(arrays.number("topk_threshold")?),
        _ => None,
    };
    arrays.nothing_left()?;
    if normalization == Normalization::ExpectedAverageOnlyIn {
        match scaling_factor(directory)? {
            Some(factor) => {
                weights.fold_input_scale(factor);
                // It was compared in units of the decoder's length, which the fold has just changed.
                if by_decoder_norm.unwrap_or(true) {
                    threshold = threshold.map(|threshold| threshold / factor);
                }
                normalization = Normalization::None;
                notes.push(format!("the factor {factor} of its inputs ({SCALER}) is folded into the weights"));
            }
            None => notes.push(
                "it names `expected_average_only_in`, whose factor no file of it holds: it is taken for folded already"
                    .into(),
            ),
        }
    }
    let activation = match kind {
        Kind::Standard => Activation::Relu,
        Kind::Gated => Activation::Gated,
        Kind::JumpRelu => Activation::JumpRelu,
        Kind::TopK => {
            let k = settings.count("k")?.ok_or_else(|| settings.fail("it has no `k`"))?;
            Activation::TopK { k, by_decoder_norm: by_decoder_norm.unwrap_or(false) }
        }
        Kind::BatchTopK => {
            if by_decoder_norm.unwrap_or(true) {
                weights.fold_decoder_norms();
            }
            let threshold = threshold.unwrap_or_default();
            weights.threshold = Some(vec![threshold; weights.encoder.rows()]);
            notes.push(format!("a checkpoint of `{architecture}`, read as jumprelu with its threshold {threshold}"));
            Activation::JumpRelu
        }
    };

    // The rest says what it was made of. Dtype and device are those of whoever runs it.
    for key in ["dtype", "device"] {
        settings.take(key);
    }
    for (key, value) in settings.rest() {
        metadata.entry(key).or_insert(value);
    }
    let mut about = Settings::new(&directory.join(CONFIG), metadata);
    let sites = match about.texts("hook_names")? {
        Some(sites) => sites,
        None => about.text("hook_name")?.into_iter().collect(),
    };
    about.take("hook_name");
    let output_site = match transcoder {
        true => Some(about.text("hook_name_out")?.unwrap_or_default()),
        false => None,
    };
    let config = Config {
        activation,
        apply_b_dec_to_input,
        normalization,
        sites,
        output_site,
        heads_flattened,
        metadata: about.rest(),
    };
    let dictionary = Dictionary::new(config, weights).map_err(|error| within(directory, error))?;
    Ok((dictionary, notes))
}

/// The first number of a version.
fn major(version: &str) -> u64 {
    version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

/// Keys from before 6.0, as SAELens itself migrates them.
fn migrate(settings: &mut Settings) -> Result<()> {
    settings.rename("hook_point", "hook_name");
    settings.rename("hook_point_head_index", "hook_head_index");
    settings.rename("activation_fn_str", "activation_fn");
    let mut values = settings.clone();
    let function = values.text("activation_fn")?.unwrap_or_else(|| "relu".into());
    let arguments = values.object("activation_fn_kwargs")?;
    let architecture = values.text("architecture")?.unwrap_or_else(|| "standard".into());
    let architecture = match (function.as_str(), architecture.as_str()) {
        ("relu", _) => architecture,
        ("topk", "standard" | "topk") => {
            let mut arguments = arguments.ok_or_else(|| values.fail("`activation_fn` is topk without its `k`"))?;
            if arguments.flag("signed")?.unwrap_or(false) {
                return Err(values.unsupported("`signed` topk"));
            }
            let k = arguments.count("k")?.ok_or_else(|| values.fail("`activation_fn_kwargs` has no `k`"))?;
            settings.set("k", json!(k));
            "topk".into()
        }
        _ => {
            return Err(values.unsupported(format!("`activation_fn: {function}` in the architecture `{architecture}`")));
        }
    };
    settings.set("architecture", json!(architecture));
    settings.take("activation_fn");
    settings.take("activation_fn_kwargs");
    if settings.peek("reshape_activations").is_none() {
        let site = settings.peek("hook_name").and_then(Value::as_str).unwrap_or_default();
        let reshape = if site.contains("hook_z") { "hook_z" } else { "none" };
        settings.set("reshape_activations", json!(reshape));
    }
    Ok(())
}

/// What makes latents, and whether it is a transcoder.
fn kind_of(architecture: &str) -> Option<(Kind, bool)> {
    let transcoder = architecture.strip_suffix("transcoder").map(|start| start.strip_suffix("skip_").unwrap_or(start));
    let kind = match transcoder {
        Some("") => Kind::Standard,
        Some("topk_") => Kind::TopK,
        Some("jumprelu_") => Kind::JumpRelu,
        Some("gated_") => Kind::Gated,
        Some(_) => return None,
        None => match architecture {
            "standard" => Kind::Standard,
            "topk" => Kind::TopK,
            "jumprelu" => Kind::JumpRelu,
            "gated" => Kind::Gated,
            "batchtopk" | "matryoshka_batchtopk" => Kind::BatchTopK,
            _ => return None,
        },
    };
    Some((kind, transcoder.is_some()))
}

/// The name of what `kind_of` reads.
fn architecture(dictionary: &Dictionary) -> String {
    let Config { activation, output_site, .. } = dictionary.config();
    if output_site.is_none() {
        return activation.name().into();
    }
    let start = match activation {
        Activation::Relu => String::new(),
        other => format!("{}_", other.name()),
    };
    let skip = if dictionary.weights().skip.is_some() { "skip_" } else { "" };
    format!("{start}{skip}transcoder")
}

fn normalization(settings: &mut Settings) -> Result<Normalization> {
    const KEY: &str = "normalize_activations";
    match settings.take(KEY) {
        None | Some(Value::Bool(false)) => Ok(Normalization::None),
        Some(Value::Bool(true)) => Ok(Normalization::ExpectedAverageOnlyIn),
        Some(value) => {
            serde_json::from_value(value.clone()).map_err(|_| settings.unsupported(format!("`{KEY}: {value}`")))
        }
    }
}

/// The arrays of all architectures but a checkpoint's threshold, checked against the sizes that are said.
fn weights(arrays: &mut Arrays, kind: Kind, transcoder: bool, sizes: [Option<usize>; 3]) -> Result<Weights> {
    let encoder = arrays.matrix("W_enc")?;
    let decoder = arrays.matrix("W_dec")?;
    let [d_in, latents, d_out] = sizes;
    let d_out = if transcoder { d_out } else { d_in };
    let expect = |name, rows: usize, columns: usize, expected: [Option<usize>; 2]| {
        let expected = vec![expected[0].unwrap_or(rows), expected[1].unwrap_or(columns)];
        let found = vec![rows, columns];
        if found == expected { Ok(()) } else { Err(within(arrays.path(), Error::Shape { name, found, expected })) }
    };
    expect("W_enc", encoder.rows(), encoder.columns(), [d_in, latents])?;
    expect("W_dec", decoder.rows(), decoder.columns(), [latents, d_out])?;
    let gated = kind == Kind::Gated;
    let mut weights = Weights {
        encoder: encoder.transposed(),
        encoder_bias: arrays.vector(if gated { "b_gate" } else { "b_enc" })?,
        decoder,
        decoder_bias: arrays.vector("b_dec")?,
        ..Weights::default()
    };
    if gated {
        let (rescale, bias) = (arrays.vector("r_mag")?, arrays.vector("b_mag")?);
        weights.magnitude = Some(Magnitude { rescale, bias });
    }
    if kind == Kind::JumpRelu {
        weights.threshold = Some(match arrays.has("log_threshold") {
            true => arrays.vector("log_threshold")?.into_iter().map(f32::exp).collect(),
            false => arrays.vector("threshold")?,
        });
    }
    if arrays.has("W_skip") {
        weights.skip = Some(arrays.matrix("W_skip")?);
    }
    Ok(weights)
}

/// What latents are multiplied by before they are decoded, if that is anything.
fn finetuning_factor(arrays: &mut Arrays, latents: usize, finetuned: bool) -> Result<Option<Vec<f32>>> {
    let Some(name) = arrays.first(&["scaling_factor", "finetuning_scaling_factor"]) else { return Ok(None) };
    let factor = arrays.vector_or_number(name, latents)?;
    // As torch.allclose compares.
    if factor.iter().all(|factor| (factor - 1.).abs() <= 1e-8 + 1e-5) {
        return Ok(None);
    }
    let fail = |reason: String| Err(Error::file(arrays.path(), reason));
    if factor.len() != latents {
        return fail(format!("`{name}` has {} numbers for {latents} latents", factor.len()));
    }
    match finetuned {
        true => Ok(Some(factor)),
        false => fail(format!("it holds `{name}`, and {CONFIG} says `finetuning_scaling_factor: false`")),
    }
}

/// What inputs are still to be multiplied by, where a training was interrupted before it was folded in.
fn scaling_factor(directory: &Path) -> Result<Option<f32>> {
    let path = directory.join(SCALER);
    if !path.is_file() {
        return Ok(None);
    }
    let mut settings = Settings::read(&path)?;
    match settings.number("scaling_factor")? {
        None => Ok(None),
        Some(factor) if factor.is_finite() && factor > 0. => Ok(Some(factor as f32)),
        Some(factor) => Err(settings.fail(format!("`scaling_factor` is {factor} and should be positive"))),
    }
}

/// Writes a directory that [`open`] reads as the same dictionary. What is there of it is replaced, each file at once.
pub(super) fn save(directory: &Path, dictionary: &Dictionary) -> Result<()> {
    let Weights { encoder, encoder_bias, decoder, decoder_bias, threshold, magnitude, skip } = dictionary.weights();
    let activation = dictionary.config().activation;
    let gated = activation == Activation::Gated;
    let mut arrays = vec![
        ("W_enc".to_string(), Written::transposed(encoder)),
        (if gated { "b_gate" } else { "b_enc" }.to_string(), Written::vector(encoder_bias)),
        ("W_dec".to_string(), Written::matrix(decoder)),
        ("b_dec".to_string(), Written::vector(decoder_bias)),
    ];
    if let (true, Some(Magnitude { rescale, bias })) = (gated, magnitude) {
        arrays.push(("r_mag".into(), Written::vector(rescale)));
        arrays.push(("b_mag".into(), Written::vector(bias)));
    }
    if let (Activation::JumpRelu, Some(threshold)) = (activation, threshold) {
        arrays.push(("threshold".into(), Written::vector(threshold)));
    }
    if let Some(skip) = skip {
        arrays.push(("W_skip".into(), Written::matrix(skip)));
    }
    write_safetensors(&directory.join(WEIGHTS), &arrays)?;
    let text = format!("{:#}\n", config(dictionary));
    write_text(&directory.join(CONFIG), &text)
}

/// `cfg.json` of a dictionary.
fn config(dictionary: &Dictionary) -> Value {
    let config = dictionary.config();
    let mut metadata = Map::new();
    metadata.insert("sae_lens_version".into(), json!(VERSION));
    metadata.extend(config.metadata.clone());
    match config.sites.as_slice() {
        [] => {}
        [site] => {
            metadata.insert("hook_name".into(), json!(site));
        }
        sites => {
            metadata.insert("hook_names".into(), json!(sites));
        }
    }
    if let Some(site) = config.output_site.as_deref().filter(|site| !site.is_empty()) {
        metadata.insert("hook_name_out".into(), json!(site));
    }
    let mut values = json!({
        "d_in": dictionary.d_in(),
        "d_sae": dictionary.latents(),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": config.normalization.name(),
        "reshape_activations": if config.heads_flattened { "hook_z" } else { "none" },
        "metadata": metadata,
        "architecture": architecture(dictionary),
    });
    if config.output_site.is_some() {
        values["d_out"] = json!(dictionary.d_out());
    }
    if let Activation::TopK { k, by_decoder_norm } = config.activation {
        values["k"] = json!(k);
        values["rescale_acts_by_decoder_norm"] = json!(by_decoder_norm);
    }
    values
}

/// The share of tokens on which each latent is active as `sparsity.safetensors` holds it, by its logarithm to the base
/// 10; none if there is no such file.
pub fn read_log_sparsity(directory: &Path) -> Result<Option<Vec<f32>>> {
    let path = directory.join(SPARSITY);
    match path.is_file() {
        true => Ok(Some(Arrays::safetensors(&path)?.vector("sparsity")?)),
        false => Ok(None),
    }
}

/// Writes that file.
pub fn write_log_sparsity(directory: &Path, log_sparsity: &[f32]) -> Result<()> {
    write_safetensors(&directory.join(SPARSITY), &[("sparsity".into(), Written::vector(log_sparsity))])
}
