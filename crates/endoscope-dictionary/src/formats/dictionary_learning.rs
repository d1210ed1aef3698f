//! dictionary_learning (Marks et al.): `config.json` beside `ae.pt`, a pickle of which only the tensors are read, or
//! `ae.safetensors`, which is what we write.
//!
//! Its classes differ in what they subtract: `AutoEncoder`, `AutoEncoderTopK`, `BatchTopKSAE`, `MatryoshkaBatchTopKSAE` and
//! `GatedAutoEncoder` take the decoder's bias from the input, `JumpReluAutoEncoder` and `AutoEncoderNew` do not.
//! Some versions multiply the latents of gated and JumpReLU dictionaries by the length of decoder rows; here they are as SAELens has them.

use std::path::Path;

use serde_json::{Value, json};

use super::arrays::{Arrays, Written, write_safetensors, write_text};
use super::settings::Settings;
use super::{Plain, names, pickle, within};
use crate::config::{Activation, Config};
use crate::dictionary::{Dictionary, Magnitude, Weights};
use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
pub(crate) const PICKLE: &str = "ae.pt";
pub(crate) const SAFETENSORS: &str = "ae.safetensors";

pub(super) fn open(directory: &Path) -> Result<(Dictionary, Vec<String>)> {
    let mut settings = Settings::read(&directory.join(CONFIG))?;
    let mut trainer = settings.object("trainer")?.ok_or_else(|| settings.fail("it has no `trainer`"))?;
    let class = trainer.text("dict_class")?.ok_or_else(|| trainer.fail("`trainer` has no `dict_class`"))?;
    let mut arrays = match directory.join(SAFETENSORS) {
        path if path.is_file() => Arrays::safetensors(&path)?,
        _ => pickle::torch(&directory.join(PICKLE))?,
    };
    let transposed = arrays.has("encoder.weight");
    let encoder = if transposed { arrays.matrix("encoder.weight")? } else { arrays.matrix("W_enc")?.transposed() };
    let decoder = if transposed { arrays.matrix("decoder.weight")?.transposed() } else { arrays.matrix("W_dec")? };
    let latents = encoder.rows();
    let mut weights = Weights { encoder, decoder, ..Weights::default() };
    let mut subtracted = true;
    let names = match class.as_str() {
        "AutoEncoder" => ["encoder.bias", "bias"],
        "AutoEncoderNew" => {
            subtracted = false;
            ["encoder.bias", "decoder.bias"]
        }
        "GatedAutoEncoder" => ["gate_bias", "decoder_bias"],
        "JumpReluAutoEncoder" => {
            subtracted = false;
            ["b_enc", "b_dec"]
        }
        "AutoEncoderTopK" | "BatchTopKSAE" | "MatryoshkaBatchTopKSAE" => {
            [if transposed { "encoder.bias" } else { "b_enc" }, "b_dec"]
        }
        other => return Err(trainer.unsupported(format!("the class `{other}`"))),
    };
    weights.encoder_bias = arrays.vector(names[0])?;
    weights.decoder_bias = arrays.vector(names[1])?;
    let mut notes = Vec::new();
    let activation = match class.as_str() {
        "AutoEncoder" | "AutoEncoderNew" => Activation::Relu,
        "GatedAutoEncoder" => {
            weights.magnitude = Some(Magnitude { rescale: arrays.vector("r_mag")?, bias: arrays.vector("mag_bias")? });
            Activation::Gated
        }
        "AutoEncoderTopK" => {
            // Its threshold is an estimate for other uses; `encode` takes the k largest.
            arrays.ignore("threshold");
            let k = match arrays.has("k") {
                true => arrays.number("k")? as usize,
                false => trainer.count("k")?.ok_or_else(|| trainer.fail("`trainer` has no `k`"))?,
            };
            Activation::TopK { k, by_decoder_norm: false }
        }
        _ => {
            if !arrays.has("threshold") {
                return Err(trainer.fail(format!("a `{class}` needs a threshold, which its file does not have")));
            }
            weights.threshold = Some(arrays.vector_or_number("threshold", latents)?);
            if class != "JumpReluAutoEncoder" {
                arrays.ignore("k");
                arrays.ignore("group_sizes");
                notes.push(format!("`{class}`, read as jumprelu with its threshold"));
            }
            Activation::JumpRelu
        }
    };
    arrays.nothing_left()?;

    let layer = trainer.count("layer")?;
    let module = trainer.text("submodule_name")?.unwrap_or_else(|| "resid_post".into());
    let part = [("resid_post", "hook_resid_post"), ("mlp_out", "hook_mlp_out"), ("attn_out", "hook_attn_out")]
        .into_iter()
        .find(|(name, _)| module.starts_with(name));
    let site = layer.zip(part).map(|(layer, (_, part))| format!("blocks.{layer}.{part}"));
    if site.is_none() {
        notes.push(format!("its `submodule_name: {module}` is not a site that is known"));
    }
    let mut metadata = settings.rest();
    if let Some(model) = trainer.text("lm_name")? {
        metadata.insert("model_name".into(), json!(model));
    }
    metadata.insert("trainer".into(), Value::Object(trainer.rest()));
    let config = Config {
        activation,
        apply_b_dec_to_input: subtracted,
        sites: site.into_iter().collect(),
        metadata,
        ..Config::default()
    };
    Ok((Dictionary::new(config, weights).map_err(|error| within(directory, error))?, notes))
}

/// Writes `config.json` and `ae.safetensors`.
pub(super) fn save(directory: &Path, dictionary: &Dictionary) -> Result<Vec<String>> {
    let config = dictionary.config();
    if config.output_site.is_some() || dictionary.weights().skip.is_some() {
        return Err(Error::write(directory, "dictionary_learning holds autoencoders, and this is a transcoder"));
    }
    let (class, subtracted) = match config.activation {
        Activation::Relu => ("AutoEncoder", true),
        Activation::TopK { .. } => ("AutoEncoderTopK", true),
        Activation::JumpRelu => ("JumpReluAutoEncoder", false),
        Activation::Gated => ("GatedAutoEncoder", true),
    };
    let Plain { weights, mut lost } = Plain::of(directory, dictionary, "dictionary_learning", subtracted)?;
    let k = match config.activation {
        Activation::TopK { k, by_decoder_norm } => {
            if by_decoder_norm {
                lost.push("that latents were compared by the length of their decoder rows, which is folded in".into());
            }
            Some(k)
        }
        _ => None,
    };
    let Weights { encoder, encoder_bias, decoder, decoder_bias, threshold, magnitude, .. } = &weights;
    let mut arrays = match config.activation {
        Activation::JumpRelu => vec![("W_enc", Written::transposed(encoder)), ("W_dec", Written::matrix(decoder))],
        _ => vec![("encoder.weight", Written::matrix(encoder)), ("decoder.weight", Written::transposed(decoder))],
    };
    let biases = match config.activation {
        Activation::Relu => ["encoder.bias", "bias"],
        Activation::TopK { .. } => ["encoder.bias", "b_dec"],
        Activation::JumpRelu => ["b_enc", "b_dec"],
        Activation::Gated => ["gate_bias", "decoder_bias"],
    };
    arrays.push((biases[0], Written::vector(encoder_bias)));
    arrays.push((biases[1], Written::vector(decoder_bias)));
    if let (Activation::JumpRelu, Some(threshold)) = (config.activation, threshold) {
        arrays.push(("threshold", Written::vector(threshold)));
    }
    if let (Activation::Gated, Some(Magnitude { rescale, bias })) = (config.activation, magnitude) {
        arrays.push(("r_mag", Written::vector(rescale)));
        arrays.push(("mag_bias", Written::vector(bias)));
    }
    let arrays: Vec<(String, Written)> = arrays.into_iter().map(|(name, array)| (name.to_string(), array)).collect();
    write_safetensors(&directory.join(SAFETENSORS), &arrays)?;
    let place = config.sites.first().and_then(|site| names::layer_and_part(site));
    let module = place.and_then(|(layer, part)| match part {
        "hook_resid_post" | "hook_mlp_out" | "hook_attn_out" => {
            Some(format!("{}_layer_{layer}", &part["hook_".len()..]))
        }
        _ => None,
    });
    if module.is_none() {
        lost.push("its site, for which dictionary_learning has no name".into());
    }
    let mut trainer = json!({
        "dict_class": class,
        "activation_dim": dictionary.d_in(),
        "dict_size": dictionary.latents(),
        "layer": place.map(|(layer, _)| layer),
        "lm_name": config.metadata.get("model_name"),
        "submodule_name": module,
    });
    if let Some(k) = k {
        trainer["k"] = json!(k);
    }
    let values = json!({"trainer": trainer, "buffer": {"ctx_len": config.metadata.get("context_size")}});
    write_text(&directory.join(CONFIG), &format!("{values:#}\n"))?;
    Ok(lost)
}

/// Whether a directory's `config.json` is one of dictionary_learning.
pub(super) fn is(directory: &Path) -> bool {
    Settings::read(&directory.join(CONFIG)).is_ok_and(|settings| settings.peek("trainer").is_some())
}
