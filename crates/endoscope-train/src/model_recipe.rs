//! The section [model] of a recipe: an architecture, in a few keys of our own or in those of a family's config.json.

use std::path::Path;

use endoscope_models::config::Config;
use endoscope_models::rotary::Rotary;
use endoscope_models::{Activation, Biases, Family, Mlp, Norm, Positions, Spec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use toml::{Table, Value};

use crate::error::{Error, Result};

/// The architecture. What is not here follows from the family; the vocabulary follows from the task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecipe {
    /// Any family; without [`Shape::Config`] `gpt2` (LayerNorm, learned positions, plain MLP), `llama` (RMSNorm, rotary
    /// positions, gated MLP) or `smollm3` (as llama, with rotary positions or none).
    pub family: Family,
    /// The longest sequence.
    pub context: usize,
    /// All else.
    #[serde(flatten)]
    pub shape: Shape,
}

/// Sizes and switches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Shape {
    /// In the keys of the family's config.json.
    Config {
        /// These keys and their values, with the text [`NULL`] for null; see [`FOLLOWING`] for those that are left out.
        config: Table,
    },
    /// In keys that are the same for three families.
    Short(ShortKeys),
}

/// What stands for JSON's null, which TOML does not have.
const NULL: &str = "null";

/// Keys of config.json that say nothing of their own, and what they follow from.
const FOLLOWING: &[(&str, &str)] = &[
    ("architectures", "`model.family`"),
    ("model_type", "`model.family`"),
    ("vocab_size", "the task"),
    ("initializer_range", "`training.init_std`"),
    ("init_std", "`training.init_std`"),
    ("dtype", "training, which is in float32"),
    ("torch_dtype", "training, which is in float32"),
];

/// An architecture in a few keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShortKeys {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Key/value heads, not for gpt2; as many as heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of a head, not for gpt2; `d_model / heads` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_head: Option<usize>,
    /// Width of the MLP.
    pub d_mlp: usize,
    /// `gelu_tanh`, `gelu_erf`, `silu` or `relu`; `gelu_tanh` for gpt2 and else `silu` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// Whether the unembedding is the embedding transposed; true for gpt2 and else false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
    /// Whether attention's projections have biases, not for gpt2; false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_bias: Option<bool>,
    /// Whether the MLP's projections have biases, not for gpt2; false if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_bias: Option<bool>,
    /// The base of the rotary wavelengths, not for gpt2; 10000 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary_base: Option<f64>,
    /// What attention knows of positions, for smollm3: `rotary`, as if absent, or `none`, where order is known only from the
    /// mask (Kazemnejad et al. 2023, arXiv 2305.19466).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<PositionsRecipe>,
}

/// What attention knows of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionsRecipe {
    /// The angle between a query and a key.
    Rotary,
    /// Nothing.
    None,
}

impl ModelRecipe {
    /// The switches of this architecture with `vocabulary` tokens; an error where the family's translator finds problems.
    pub fn spec(&self, vocabulary: usize) -> Result<Spec> {
        match &self.shape {
            Shape::Short(keys) => Ok(keys.spec(self.family, self.context, vocabulary)),
            Shape::Config { .. } => {
                let config = Config::new(Path::new("[model.config]"), self.config(vocabulary)?);
                Ok(self.family.spec(config)?)
            }
        }
    }

    /// Its config.json; an error for short keys of a family that has none.
    pub fn config(&self, vocabulary: usize) -> Result<Map<String, Json>> {
        match &self.shape {
            Shape::Short(keys) => Ok(self.family.config(&keys.spec(self.family, self.context, vocabulary))?),
            Shape::Config { config } => Ok(self.family.completed(&json_table(config), vocabulary, self.context)),
        }
    }

    /// Everything that makes no sense; empty if it is fine.
    pub(crate) fn problems(&self) -> Vec<String> {
        match &self.shape {
            Shape::Short(keys) => self.short_problems(keys),
            Shape::Config { config } => self.config_problems(config),
        }
    }

    fn config_problems(&self, config: &Table) -> Vec<String> {
        let context_key = (self.family.context_key(), "`model.context`");
        let following = FOLLOWING.iter().chain([&context_key]).filter(|(key, _)| config.contains_key(*key));
        let mut problems: Vec<String> =
            following.map(|(key, from)| format!("`model.config.{key}` follows from {from}; remove it")).collect();
        // The task says later how many tokens there are; one is a stand-in.
        match self.spec(1) {
            Ok(spec) if spec.context != self.context => problems.push(format!(
                "[model.config]: its positions hold for sequences of up to {} tokens, but `model.context` is {}",
                spec.context, self.context
            )),
            Ok(_) => {}
            Err(Error::Model(endoscope_models::Error::Config { problems: found, .. })) => {
                problems.extend(found.into_iter().map(|problem| format!("[model.config]: {problem}")));
            }
            Err(error) => problems.push(format!("[model.config]: {error}")),
        }
        problems
    }

    fn short_problems(&self, keys: &ShortKeys) -> Vec<String> {
        let spec = keys.spec(self.family, self.context, 1);
        let mut problems: Vec<String> =
            spec.problems().into_iter().map(|problem| format!("[model]: {problem}")).collect();
        if keys.d_head.is_none() && keys.heads > 0 && !keys.d_model.is_multiple_of(keys.heads) {
            let (width, heads) = (keys.d_model, keys.heads);
            problems.push(format!("`model.d_model` = {width} cannot be split into `model.heads` = {heads} heads"));
        }
        if let Err(error) = self.family.config(&spec) {
            problems.push(format!("`model.family` = {}: {error} as [model.config]", self.family.model_type()));
        }
        if self.family == Family::Llama && keys.positions.is_some() {
            problems.push(
                "`model.positions` does not apply to the family llama, which is always rotary; use smollm3".into(),
            );
        }
        if self.family == Family::Gpt2 {
            let given = [
                ("kv_heads", keys.kv_heads.is_some()),
                ("d_head", keys.d_head.is_some()),
                ("attention_bias", keys.attention_bias.is_some()),
                ("mlp_bias", keys.mlp_bias.is_some()),
                ("rotary_base", keys.rotary_base.is_some()),
                ("positions", keys.positions.is_some()),
            ];
            for (name, _) in given.into_iter().filter(|(_, given)| *given) {
                problems.push(format!("`model.{name}` does not apply to the family gpt2; remove it"));
            }
        }
        problems
    }
}

impl ShortKeys {
    fn spec(&self, family: Family, context: usize, vocabulary: usize) -> Spec {
        let &Self { d_model, layers, heads, d_mlp, .. } = self;
        let gpt2 = family == Family::Gpt2;
        let bias = |key: Option<bool>| gpt2 || key.unwrap_or(false);
        let d_head = self.d_head.unwrap_or(d_model / heads.max(1));
        Spec {
            vocabulary,
            context,
            d_model,
            layers,
            heads,
            kv_heads: self.kv_heads.unwrap_or(heads),
            d_head,
            d_mlp,
            norm: if gpt2 { Norm::LayerNorm } else { Norm::RmsNorm },
            epsilon: if gpt2 { 1e-5 } else { 1e-6 },
            positions: match gpt2 {
                true => Positions::Learned,
                false => Positions::Rotary {
                    kinds: vec![Rotary::plain(self.rotary_base.unwrap_or(10_000.), d_head)],
                    layers: match self.positions {
                        Some(PositionsRecipe::None) => vec![None; layers],
                        _ if family == Family::SmolLm3 => vec![Some(0); layers],
                        _ => Vec::new(),
                    },
                },
            },
            mlp: if gpt2 { Mlp::Plain } else { Mlp::Gated },
            activation: self.activation.unwrap_or(if gpt2 { Activation::GeluTanh } else { Activation::Silu }),
            biases: Biases {
                qkv: bias(self.attention_bias),
                attention_out: bias(self.attention_bias),
                mlp: bias(self.mlp_bias),
            },
            tied: self.tied.unwrap_or(gpt2),
            ..Spec::default()
        }
    }
}

/// What JSON cannot say: dates and numbers that are not finite.
pub(crate) fn is_json(value: &Value) -> bool {
    match value {
        Value::Datetime(_) => false,
        Value::Float(number) => number.is_finite(),
        Value::Array(values) => values.iter().all(is_json),
        Value::Table(table) => table.values().all(is_json),
        Value::String(_) | Value::Integer(_) | Value::Boolean(_) => true,
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::String(text) if text == NULL => Json::Null,
        Value::String(text) => Json::from(text.as_str()),
        Value::Integer(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Boolean(switch) => Json::from(*switch),
        Value::Array(values) => values.iter().map(json).collect(),
        Value::Table(table) => Json::Object(json_table(table)),
        // Refused where recipes are read.
        Value::Datetime(date) => Json::from(date.to_string()),
    }
}

fn json_table(table: &Table) -> Map<String, Json> {
    table.iter().map(|(key, value)| (key.clone(), json(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    const REST: &str = "[task]\nname = \"any\"\n[training]\nsteps = 1\nbatch = 1\nseed = 1\nlearning_rate = 1\n";
    const GEMMA2: &str = r#"
        [model]
        family = "gemma2"
        context = 16
        [model.config]
        hidden_size = 8
        intermediate_size = 12
        num_hidden_layers = 2
        num_attention_heads = 2
        num_key_value_heads = 1
        head_dim = 4
        query_pre_attn_scalar = 4
        sliding_window = 5
        attn_logit_softcapping = "null"
        final_logit_softcapping = 20
        layer_types = ["full_attention", "sliding_attention"]
        rope_parameters = { rope_type = "default", rope_theta = 500.0 }
    "#;

    fn parse(model: &str) -> Result<Recipe> {
        Recipe::parse("r.toml", &format!("{model}\n{REST}"))
    }

    fn problems(model: &str) -> Vec<String> {
        match parse(model) {
            Err(Error::Recipe { problems, .. }) => problems,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_configuration_is_translated_by_its_family_and_written_as_it_was_given() {
        let recipe = parse(GEMMA2).unwrap();
        assert_eq!(Recipe::parse("r.toml", &recipe.to_toml().unwrap()).unwrap(), recipe);
        let spec = recipe.model.spec(30).unwrap();
        assert_eq!((spec.vocabulary, spec.context, spec.d_model, spec.kv_heads), (30, 16, 8, 1));
        assert_eq!((spec.attention_softcap, spec.logit_softcap), (None, Some(20.)));
        assert_eq!(spec.windows, [None, Some(5)]);
        let config = recipe.model.config(30).unwrap();
        assert_eq!(config["architectures"], serde_json::json!(["Gemma2ForCausalLM"]));
        assert_eq!((&config["vocab_size"], &config["max_position_embeddings"]), (&30.into(), &16.into()));
        assert_eq!((&config["attn_logit_softcapping"], &config["pad_token_id"]), (&Json::Null, &Json::Null));
        // Defaults are written, as other programs have others; the base of rotary positions stands where it was given.
        assert_eq!(
            (&config["hidden_activation"], &config["rms_norm_eps"]),
            (&"gelu_pytorch_tanh".into(), &1e-6.into())
        );
        assert_eq!((&config["tie_word_embeddings"], config.get("rope_theta")), (&true.into(), None));
        // transformers tells 20 from 20.0, a count from a number.
        assert_eq!(config["final_logit_softcapping"].to_string(), "20.0");
        assert_eq!(config["query_pre_attn_scalar"].to_string(), "4");
        assert_eq!(config["rope_parameters"], serde_json::json!({"rope_type": "default", "rope_theta": 500.}));
    }

    #[test]
    fn every_problem_of_a_configuration_is_named_at_once() {
        let text = GEMMA2
            .replace("hidden_size = 8", "hiden_size = 8\nvocab_size = 3\nmax_position_embeddings = 4\ndtype = \"x\"")
            .replace("num_hidden_layers = 2", "num_hidden_layers = 2.0");
        let found = problems(&text);
        for part in [
            "`model.config.vocab_size` follows from the task",
            "`model.config.max_position_embeddings` follows from `model.context`",
            "`model.config.dtype` follows from",
            "[model.config]: `hidden_size` is missing",
            "[model.config]: the key `hiden_size`",
            "[model.config]: `num_hidden_layers` is 2.0; a count is needed",
        ] {
            assert!(found.iter().any(|problem| problem.contains(part)), "{part}: {found:#?}");
        }
    }

    #[test]
    fn what_cannot_stand_in_a_section_is_refused_with_a_reason() {
        let both = GEMMA2.replace("context = 16", "context = 16\nd_model = 8\nlayer = 2");
        let found = problems(&both);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found.iter().any(|problem| problem.contains("`model.d_model` cannot stand beside [model.config]")));
        assert!(found.iter().any(|problem| problem.contains("`model.layer` is not known")));
        for (from, to, part) in [
            ("\"gemma2\"", "\"mamba\"", "`model.family` is \"mamba\"; one of gpt2, gpt_neo,"),
            ("context = 16", "", "`model.context` is missing"),
            ("sliding_window = 5", "sliding_window = nan", "`model.config` is"),
            ("sliding_window = 5", "sliding_window = 1979-05-27", "`model.config` is"),
        ] {
            let found = problems(&GEMMA2.replace(from, to));
            assert!(found.len() == 1 && found[0].starts_with(part), "{to}: {found:#?}");
        }
        let short = "[model]\nfamily = \"gemma2\"\ncontext = 8\nd_model = 8\nlayers = 1\nheads = 1\nd_mlp = 8\n";
        let found = problems(short);
        assert!(found.len() == 1 && found[0].contains("[model.config]"), "{found:#?}");
        let mut recipe = parse(&short.replace("gemma2", "llama")).unwrap();
        recipe.model.family = Family::Gemma2;
        assert!(recipe.problems()[0].contains("gemma2"), "{:?}", recipe.problems());
        let long = GEMMA2.replace("gemma2", "phi3").replace("\"default\"", "\"longrope\"").replace(
            "rope_theta = 500.0",
            "rope_theta = 500.0, original_max_position_embeddings = 8, short_factor = [1, 1], long_factor = [1, 1]",
        );
        let drop = ["query_pre", "_softcapping", "layer_types"];
        let long: Vec<&str> = long.lines().filter(|line| drop.iter().all(|key| !line.contains(key))).collect();
        let found = problems(&long.join("\n"));
        assert!(found.len() == 1 && found[0].contains("up to 8 tokens, but `model.context` is 16"), "{found:#?}");
    }

    #[test]
    fn short_keys_and_the_configuration_that_they_stand_for_are_one_model() {
        let short = "[model]\nfamily = \"llama\"\ncontext = 8\nd_model = 8\nlayers = 2\nheads = 2\nd_mlp = 12\n";
        let short = parse(short).unwrap().model;
        let text = "[model]\nfamily = \"llama\"\ncontext = 8\n[model.config]\nhidden_size = 8\nnum_hidden_layers = 2\n\
                    num_attention_heads = 2\nintermediate_size = 12\n";
        assert_eq!(short.spec(5).unwrap(), parse(text).unwrap().model.spec(5).unwrap());
    }
}
