//! `endoscope dict vector`: llama.cpp's control vectors as plans, and features as control vectors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_models::gguf::ControlVector;
use serde_json::json;

use super::source::open_one;
use crate::output::Output;

#[derive(Debug, Args)]
pub struct Vector {
    /// A control vector (a GGUF file of llama.cpp or repeng), to be written as a plan.
    #[arg(required_unless_present = "dictionary", conflicts_with = "dictionary")]
    file: Option<PathBuf>,
    /// Write a feature of this dictionary as a control vector instead.
    #[arg(long, value_name = "PATH", requires = "feature")]
    dictionary: Option<PathBuf>,
    /// Which feature.
    #[arg(long, value_name = "N", requires = "dictionary")]
    feature: Option<usize>,
    /// How much of the direction is added (as a control vector: is written).
    #[arg(long, default_value_t = 1., allow_hyphen_values = true)]
    scale: f64,
    /// The kind of model that the control vector says it is for.
    #[arg(long, value_name = "NAME", default_value = "llama", requires = "dictionary")]
    model_hint: String,
    /// The plan (JSON), or the control vector (GGUF), to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Vector {
    pub fn run(self, output: &mut Output) -> Result<()> {
        if !self.scale.is_finite() {
            bail!("--scale {} is no number that can be added", self.scale);
        }
        let (what, layers) = match (&self.file, &self.dictionary, self.feature) {
            (Some(file), ..) => {
                let vector = ControlVector::read(file)?;
                let text = serde_json::to_string_pretty(&vector.plan(self.scale)?)? + "\n";
                std::fs::write(&self.out, text).with_context(|| format!("cannot write {}", self.out.display()))?;
                ("a plan", vector.directions.into_keys().collect::<Vec<usize>>())
            }
            (None, Some(path), Some(feature)) => {
                let dictionary = open_one(path)?;
                let config = dictionary.config();
                let site = config.output_site.as_ref().or(config.sites.first()).map_or("", String::as_str);
                let layer = site.strip_prefix("blocks.").and_then(|rest| rest.strip_suffix(".hook_resid_post"));
                let Some(layer) = layer.and_then(|layer| layer.parse::<usize>().ok()) else {
                    bail!("a control vector is added after a layer (hook_resid_post); the dictionary writes `{site}`");
                };
                let direction = dictionary.direction(feature)?;
                let direction = direction.into_iter().map(|x| (f64::from(x) * self.scale) as f32).collect();
                let directions = BTreeMap::from([(layer, direction)]);
                ControlVector { model_hint: self.model_hint.clone(), directions }.write(&self.out)?;
                ("a control vector", vec![layer])
            }
            _ => bail!("a control vector, or --dictionary PATH --feature N, is needed"),
        };
        output.document(&json!({"out": self.out.to_string_lossy(), "layers": layers}))?;
        output.line(&format!("{what} of the layers {layers:?} is in {}", self.out.display()))
    }
}
