//! Families: translators from a config.json to a [`Spec`] and from a file's weight names to ours. No arithmetic here.

pub mod gpt2;
pub mod llama;

use serde_json::{Map, Value};

use crate::config::Config;
use crate::decoder::{NormWeights, Weights};
use crate::error::{Error, Result};
use crate::ops::{Embedding, Linear, Matrix};
use crate::spec::{Activation, Spec};
use crate::weights::WeightSource;

/// A family of decoders by the `model_type` of its config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// GPT-2.
    Gpt2,
    /// Llama and its descendants with the same arithmetic.
    Llama,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 2] = [Family::Gpt2, Family::Llama];

    /// The `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Llama => "llama",
        }
    }

    /// The family that a config names.
    pub fn of(config: &Config) -> Result<Self> {
        let model_type = config.model_type().unwrap_or("(none)");
        Self::ALL.into_iter().find(|family| family.model_type() == model_type).ok_or_else(|| Error::UnknownFamily {
            path: config.path().to_path_buf(),
            model_type: model_type.to_string(),
            supported: Self::ALL.map(Self::model_type).join(", "),
        })
    }

    /// Translates a config; every problem is reported at once.
    pub fn spec(self, mut config: Config) -> Result<Spec> {
        let spec = match self {
            Self::Gpt2 => gpt2::spec(&mut config),
            Self::Llama => llama::spec(&mut config),
        };
        for problem in spec.problems() {
            config.problem(problem);
        }
        config.finish()?;
        Ok(spec)
    }

    /// Takes all weights from `source`.
    pub fn weights(self, spec: &Spec, source: &mut dyn WeightSource) -> Result<Weights> {
        match self {
            Self::Gpt2 => gpt2::weights(spec, source),
            Self::Llama => llama::weights(spec, source),
        }
    }

    /// Whether a tensor that the model does not read may lie in its file (buffers of older versions, tied copies).
    pub fn ignorable(self, spec: &Spec, name: &str) -> bool {
        if name == "lm_head.weight" {
            return spec.tied;
        }
        match self {
            Self::Gpt2 => name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"),
            Self::Llama => name.ends_with(".rotary_emb.inv_freq"),
        }
    }

    /// The config.json of `spec`; what [`Family::spec`] translates back to the same.
    pub fn config(self, spec: &Spec) -> Result<Map<String, Value>> {
        let config = match self {
            Self::Gpt2 => gpt2::config(spec),
            Self::Llama => llama::config(spec),
        };
        match config {
            Value::Object(mut config) => {
                config.insert("model_type".into(), self.model_type().into());
                config.insert("torch_dtype".into(), "float32".into());
                Ok(config)
            }
            _ => Ok(Map::new()),
        }
    }
}

/// transformers' names of activation functions (`ACT2FN`).
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu", Activation::GeluErf),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("relu", Activation::Relu),
];

fn activation(config: &mut Config, key: &str, default: &str) -> Activation {
    let name = config.word_or(key, default);
    match ACTIVATIONS.iter().find(|(known, _)| *known == name) {
        Some((_, activation)) => *activation,
        None => {
            let known = ACTIVATIONS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            config.problem(format!("`{key}` is \"{name}\"; supported are {known}"));
            Activation::GeluTanh
        }
    }
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_new",
        Activation::GeluErf => "gelu",
        Activation::Silu => "silu",
        Activation::Relu => "relu",
    }
}

/// A linear map stored as `[out, in]` (torch.nn.Linear).
fn linear(source: &mut dyn WeightSource, name: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
    let weight = source.get(&format!("{name}.weight"), &[outputs, inputs])?.t()?;
    let bias = bias.then(|| source.get(&format!("{name}.bias"), &[outputs])).transpose()?;
    Ok(Linear::new(weight, bias, source.precision())?)
}

fn layer_norm(source: &mut dyn WeightSource, name: &str, size: usize) -> Result<NormWeights> {
    let weight = source.get(&format!("{name}.weight"), &[size])?;
    Ok(NormWeights { weight, bias: Some(source.get(&format!("{name}.bias"), &[size])?) })
}

fn rms_norm(source: &mut dyn WeightSource, name: &str, size: usize) -> Result<NormWeights> {
    Ok(NormWeights { weight: source.get(&format!("{name}.weight"), &[size])?, bias: None })
}

/// The embedding of `name`, and the unembedding: the same matrix transposed, or `lm_head`.
fn embeddings(source: &mut dyn WeightSource, spec: &Spec, name: &str) -> Result<(Embedding, Linear)> {
    let embed = source.get(name, &[spec.vocabulary, spec.d_model])?;
    if !spec.tied {
        let unembed = linear(source, "lm_head", spec.d_model, spec.vocabulary, false)?;
        return Ok((Embedding::Table(embed), unembed));
    }
    let unembed = Linear::new(embed.t()?, None, source.precision())?;
    Ok(match &unembed.matrix {
        Matrix::Packed(matrix) => (Embedding::Tied(matrix.clone()), unembed),
        Matrix::Plain(_) => (Embedding::Table(embed), unembed),
    })
}
