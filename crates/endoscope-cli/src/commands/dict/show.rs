//! `endoscope dict show`: what a dictionary is.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use endoscope_dictionary::formats::{self, Contents, Opened};
use endoscope_dictionary::{Activation, Config, Dictionary, norm};
use serde_json::{Value, json};

use super::convert::sparsity;
use crate::output::Output;

#[derive(Debug, Args)]
pub struct Show {
    /// A directory or file of any format (docs/dict.md lists them), or a folder of such directories.
    dictionary: PathBuf,
}

impl Show {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let Opened { format, contents, notes } = formats::open(&self.dictionary)?;
        let mut document = json!({"format": format, "notes": notes});
        let mut lines = vec![format!("{} ({})", self.dictionary.display(), format.name()), String::new()];
        match contents {
            Contents::Dictionary(dictionary) => {
                let mut about = about(&dictionary);
                if let Some(log_sparsity) = sparsity(&self.dictionary, format)? {
                    about["mean_l0_in_training"] =
                        json!(log_sparsity.iter().map(|x| 10f64.powf(f64::from(*x))).sum::<f64>());
                }
                lines.extend(described(&about));
                document["dictionary"] = about;
            }
            Contents::Set(paths) => {
                lines.extend(paths.iter().map(|path| format!("  {}", path.display())));
                document["set"] = json!(paths);
            }
            Contents::CrossLayer(transcoder) => {
                let layers: Vec<Value> = transcoder.layers().iter().map(about).collect();
                let latents: usize = transcoder.layers().iter().map(Dictionary::latents).sum();
                lines.push(format!(
                    "  a cross-layer transcoder: {} layers of width {}, {latents} latents, {}",
                    layers.len(),
                    transcoder.width(),
                    transcoder.layers().first().map_or("", |layer| layer.config().activation.name())
                ));
                document["layers"] = json!(layers);
            }
        }
        lines.extend(notes.iter().map(|note| format!("  note: {note}")));
        output.document(&document)?;
        output.text(&(lines.join("\n") + "\n"))
    }
}

/// Everything of a dictionary but its numbers.
fn about(dictionary: &Dictionary) -> Value {
    let Config { activation, apply_b_dec_to_input, normalization, sites, output_site, heads_flattened, metadata } =
        dictionary.config();
    let mut lengths = dictionary.decoder_norms().to_vec();
    lengths.sort_by(f32::total_cmp);
    let mut about = json!({
        "architecture": activation.name(),
        "latents": dictionary.latents(),
        "d_in": dictionary.d_in(),
        "d_out": dictionary.d_out(),
        "sites": sites,
        "output_site": output_site,
        "heads_flattened": heads_flattened,
        "normalization": normalization.name(),
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "skip": dictionary.weights().skip.is_some(),
        "decoder_lengths": [lengths.first(), lengths.get(lengths.len() / 2), lengths.last()],
        "b_dec_length": norm(&dictionary.weights().decoder_bias),
        "metadata": metadata,
    });
    if let Activation::TopK { k, by_decoder_norm } = activation {
        about["k"] = json!(k);
        about["by_decoder_norm"] = json!(by_decoder_norm);
    }
    if let Some(thresholds) = &dictionary.weights().threshold {
        let least = thresholds.iter().copied().fold(f32::INFINITY, f32::min);
        let most = thresholds.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        about["thresholds"] = json!([least, most]);
    }
    about
}

/// The same as lines.
fn described(about: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, value) in about.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => continue,
            Value::Object(metadata) => {
                for (key, value) in metadata.iter().filter(|(_, value)| !value.is_null()) {
                    lines.push(format!("    {key:<28}{value}"));
                }
                continue;
            }
            Value::Array(values) if key == "sites" && values.is_empty() => "not said".to_string(),
            Value::Array(values) => values
                .iter()
                .map(|value| value.as_str().map_or(value.to_string(), str::to_string))
                .collect::<Vec<_>>()
                .join(", "),
            Value::String(text) if text.is_empty() => "not said".to_string(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        lines.push(format!("  {:<26}{text}", key.replace('_', " ")));
    }
    lines
}
