//! EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder that is named after the module it reads.
//!
//! The decoder's bias is subtracted from the input of an autoencoder and not from that of a transcoder, as sparsify's own
//! code has it, whatever `normalize_decoder` says, which belongs to training. (SAELens 6.54 does not subtract it where
//! `normalize_decoder` is set, and reads `W_dec` the other way round.)

use std::path::Path;

use serde_json::json;

use super::arrays::{Arrays, Written, write_safetensors, write_text};
use super::settings::Settings;
use super::{Plain, names, within};
use crate::config::{Activation, Config};
use crate::dictionary::{Dictionary, Weights};
use crate::error::{Error, Result};

const CONFIG: &str = "cfg.json";
pub(crate) const WEIGHTS: &str = "sae.safetensors";

pub(super) fn open(directory: &Path) -> Result<(Dictionary, Vec<String>)> {
    let mut settings = Settings::read(&directory.join(CONFIG))?;
    let activation = settings.text("activation")?.unwrap_or_else(|| "topk".into());
    if activation != "topk" {
        return Err(settings.unsupported(format!("`activation: {activation}`")));
    }
    for flag in ["signed", "embed_skip", "gram_lookup"] {
        if settings.flag(flag)?.unwrap_or(false) {
            return Err(settings.unsupported(format!("`{flag}`")));
        }
    }
    let k = settings.count("k")?.ok_or_else(|| settings.fail("it has no `k`"))?;
    let transcode = settings.flag("transcode")?.unwrap_or(false);
    let skip = settings.flag("skip_connection")?.unwrap_or(false);
    let d_in = settings.count("d_in")?;
    let latents = settings.count("num_latents")?.filter(|&count| count > 0);

    let mut arrays = Arrays::safetensors(&directory.join(WEIGHTS))?;
    let encoder = arrays.matrix("encoder.weight")?;
    let expected = [latents.unwrap_or(encoder.rows()), d_in.unwrap_or(encoder.columns())];
    if expected != [encoder.rows(), encoder.columns()] {
        let found = vec![encoder.rows(), encoder.columns()];
        return Err(within(arrays.path(), Error::Shape { name: "encoder.weight", found, expected: expected.to_vec() }));
    }
    let weights = Weights {
        encoder_bias: arrays.vector("encoder.bias")?,
        encoder,
        decoder: arrays.matrix("W_dec")?,
        decoder_bias: arrays.vector("b_dec")?,
        skip: if skip { Some(arrays.matrix("W_skip")?) } else { None },
        ..Weights::default()
    };
    arrays.nothing_left()?;

    let mut metadata = settings.rest();
    let folder = std::path::absolute(directory).ok().and_then(|path| path.file_name().map(|name| name.to_os_string()));
    let module = folder.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let site = names::of_module(&module);
    let mut notes = Vec::new();
    if site.is_none() {
        notes.push(format!("its folder `{module}` is not named after a module whose site is known"));
    }
    if let Some(parent) = directory.parent().map(|parent| parent.join("config.json")).filter(|path| path.is_file()) {
        let mut about = Settings::read(&parent)?;
        if let Some(model) = about.text("model")? {
            metadata.insert("model_name".into(), json!(model));
        }
    }
    metadata.insert("hookpoint".into(), json!(module));
    let (sites, output_site) = match (site, transcode) {
        (Some((writes, reads)), true) => (reads.into_iter().collect(), Some(writes)),
        (Some((writes, _)), false) => (vec![writes], None),
        (None, true) => (Vec::new(), Some(String::new())),
        (None, false) => (Vec::new(), None),
    };
    let config = Config {
        activation: Activation::TopK { k, by_decoder_norm: false },
        apply_b_dec_to_input: !transcode,
        sites,
        output_site,
        metadata,
        ..Config::default()
    };
    Ok((Dictionary::new(config, weights).map_err(|error| within(directory, error))?, notes))
}

/// Writes `cfg.json` and `sae.safetensors`.
pub(super) fn save(directory: &Path, dictionary: &Dictionary) -> Result<Vec<String>> {
    let config = dictionary.config();
    let transcode = config.output_site.is_some();
    let Plain { weights, mut lost } = Plain::of(directory, dictionary, "sparsify", !transcode)?;
    let Activation::TopK { k, by_decoder_norm } = config.activation else {
        let reason = format!("sparsify holds topk, and this is {}", config.activation.name());
        return Err(Error::write(directory, reason));
    };
    if by_decoder_norm {
        lost.push("that latents were compared by the length of their decoder rows, which is folded in".into());
    }
    let mut arrays = vec![
        ("encoder.weight".to_string(), Written::matrix(&weights.encoder)),
        ("encoder.bias".to_string(), Written::vector(&weights.encoder_bias)),
        ("W_dec".to_string(), Written::matrix(&weights.decoder)),
        ("b_dec".to_string(), Written::vector(&weights.decoder_bias)),
    ];
    if let Some(skip) = &weights.skip {
        arrays.push(("W_skip".into(), Written::matrix(skip)));
    }
    write_safetensors(&directory.join(WEIGHTS), &arrays)?;
    let values = json!({
        "activation": "topk",
        "expansion_factor": (dictionary.latents() / dictionary.d_in()).max(1),
        "normalize_decoder": false,
        "num_latents": dictionary.latents(),
        "k": k,
        "multi_topk": false,
        "skip_connection": weights.skip.is_some(),
        "transcode": transcode,
        "d_in": dictionary.d_in(),
    });
    write_text(&directory.join(CONFIG), &format!("{values:#}\n"))?;
    let named = config.output_site.as_ref().or(config.sites.first());
    match named.and_then(|site| names::module_of(site)) {
        Some(module) => lost.push(format!("its site, which sparsify says by the folder's name: call it `{module}`")),
        None => lost.push("its site, for which sparsify has no folder's name".into()),
    }
    Ok(lost)
}
