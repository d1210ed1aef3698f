//! Families: translators from a config.json to a [`Spec`] and from a file's weight names to ours. No arithmetic here.

mod falcon;
mod gemma;
mod gpt2;
mod gpt_bigcode;
mod gpt_j;
mod gpt_neo;
mod gpt_neox;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod names;
mod olmo;
mod opt;
mod phi;
mod phi3;
mod qwen;
mod rope;
mod smollm3;
mod stablelm;
mod starcoder2;

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::Config;
use crate::decoder::Weights;
use crate::error::{Error, Result};
use crate::spec::{Activation, Positions, Spec};
use crate::weights::WeightSource;
use names::{Names, NormTensors};

/// How one family is translated.
struct Translator {
    /// The `model_type` of config.json.
    model_type: &'static str,
    /// transformers' class, the `architectures` of config.json.
    class: &'static str,
    /// A config.json as a spec.
    spec: fn(&mut Config) -> Spec,
    /// What the weights of a spec are called.
    names: fn(&Spec) -> Names,
    /// How names end of tensors that older files hold and no model reads: buffers.
    ignorable: &'static [&'static str],
    /// The config.json of a spec, for families that recipes describe in a few keys of their own.
    config: Option<fn(&Spec) -> Value>,
}

macro_rules! families {
    ($($(#[$doc:meta])* $name:ident: $translator:expr,)*) => {
        /// A family of decoders by the `model_type` of its config.json.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Family {
            $($(#[$doc])* $name,)*
        }

        impl Family {
            /// All of them.
            pub const ALL: &[Family] = &[$(Family::$name),*];

            fn translator(self) -> &'static Translator {
                match self {
                    $(Self::$name => &$translator,)*
                }
            }
        }
    };
}

families! {
    /// GPT-2.
    Gpt2: gpt2::TRANSLATOR,
    /// GPT-Neo.
    GptNeo: gpt_neo::TRANSLATOR,
    /// GPT-NeoX and Pythia.
    GptNeoX: gpt_neox::TRANSLATOR,
    /// GPT-J.
    GptJ: gpt_j::TRANSLATOR,
    /// GPT-BigCode: SantaCoder and StarCoder.
    GptBigCode: gpt_bigcode::TRANSLATOR,
    /// OPT.
    Opt: opt::TRANSLATOR,
    /// Llama and its descendants with the same arithmetic.
    Llama: llama::TRANSLATOR,
    /// Mistral.
    Mistral: mistral::TRANSLATOR,
    /// Mixtral.
    Mixtral: mixtral::TRANSLATOR,
    /// Qwen 2 and 2.5.
    Qwen2: qwen::QWEN2,
    /// Qwen 3.
    Qwen3: qwen::QWEN3,
    /// Qwen 3 with experts.
    Qwen3Moe: qwen::QWEN3_MOE,
    /// Gemma.
    Gemma: gemma::GEMMA,
    /// Gemma 2.
    Gemma2: gemma::GEMMA2,
    /// The language model of Gemma 3.
    Gemma3: gemma::GEMMA3,
    /// Phi 1, 1.5 and 2.
    Phi: phi::TRANSLATOR,
    /// Phi 3 and 4.
    Phi3: phi3::TRANSLATOR,
    /// OLMo.
    Olmo: olmo::OLMO,
    /// OLMo 2.
    Olmo2: olmo::OLMO2,
    /// Falcon.
    Falcon: falcon::TRANSLATOR,
    /// StableLM.
    StableLm: stablelm::TRANSLATOR,
    /// StarCoder 2.
    Starcoder2: starcoder2::TRANSLATOR,
    /// SmolLM 3.
    SmolLm3: smollm3::TRANSLATOR,
    /// Granite.
    Granite: granite::TRANSLATOR,
}

impl Family {
    /// The `model_type` of config.json.
    pub fn model_type(self) -> &'static str {
        self.translator().model_type
    }

    /// The family of a `model_type`.
    pub fn named(model_type: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|family| family.model_type() == model_type)
    }

    /// The family that a config names.
    pub fn of(config: &Config) -> Result<Self> {
        let model_type = config.model_type().unwrap_or("(none)");
        Self::named(model_type).ok_or_else(|| Error::UnknownFamily {
            path: config.path().to_path_buf(),
            model_type: model_type.to_string(),
            supported: Self::ALL.iter().map(|family| family.model_type()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Translates a config; every problem is reported at once.
    pub fn spec(self, mut config: Config) -> Result<Spec> {
        let spec = (self.translator().spec)(&mut config);
        for problem in spec.problems() {
            config.problem(problem);
        }
        config.finish()?;
        Ok(spec)
    }

    /// Takes all weights from `source`.
    pub fn weights(self, spec: &Spec, source: &mut dyn WeightSource) -> Result<Weights> {
        (self.translator().names)(spec).weights(spec, source)
    }

    /// Whether a tensor that the model does not read may lie in its file (buffers of older versions, tied copies).
    pub fn ignorable(self, spec: &Spec, name: &str) -> bool {
        let unembed = (self.translator().names)(spec).unembed;
        let tied_copy = spec.tied && name.strip_suffix(".weight") == Some(unembed);
        tied_copy || self.translator().ignorable.iter().any(|end| name.ends_with(end))
    }

    /// What a norm's weight that changes nothing is in a file: 1, or 0 where files hold it less 1.
    pub fn neutral_norm(self, spec: &Spec) -> f32 {
        match (self.translator().names)(spec).norms {
            NormTensors::WeightLessOne => 0.,
            NormTensors::Weight | NormTensors::WeightAndBias => 1.,
        }
    }

    /// The config.json of `spec`, what [`Family::spec`] translates back to the same; an error for families that are only
    /// translated the other way, whose models are described by [`Family::completed`] keys.
    pub fn config(self, spec: &Spec) -> Result<Map<String, Value>> {
        let own = self.translator().config.map(|config| config(spec));
        let Some(Value::Object(own)) = own else { return Err(Error::NoConfig { family: self.model_type() }) };
        let mut config = self.beginning();
        config.extend(own);
        self.end(&mut config);
        Ok(config)
    }

    /// The config.json of a model with so many tokens and positions, of which `keys` of the family's configuration say the
    /// rest. Defaults that are taken for keys that are not there are written too, because other programs have others.
    pub fn completed(self, keys: &Map<String, Value>, vocabulary: usize, context: usize) -> Map<String, Value> {
        let mut config = self.beginning();
        config.extend(keys.clone());
        config.insert("vocab_size".into(), vocabulary.into());
        config.insert(self.context_key().into(), context.into());
        // transformers' own defaults are tokens that a small vocabulary does not have.
        for token in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            config.entry(token).or_insert(Value::Null);
        }
        self.end(&mut config);
        let mut config = Config::new(Path::new("config.json"), config);
        (self.translator().spec)(&mut config);
        config.into_explicit()
    }

    /// The key of config.json that says how long a sequence may be.
    pub fn context_key(self) -> &'static str {
        match self {
            Self::Gpt2 | Self::GptBigCode | Self::GptJ => "n_positions",
            _ => "max_position_embeddings",
        }
    }

    fn beginning(self) -> Map<String, Value> {
        Map::from_iter([("architectures".into(), vec![self.translator().class].into())])
    }

    fn end(self, config: &mut Map<String, Value>) {
        config.insert("model_type".into(), self.model_type().into());
        config.insert("torch_dtype".into(), "float32".into());
    }
}

impl serde::Serialize for Family {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.model_type())
    }
}

impl<'de> serde::Deserialize<'de> for Family {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::named(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown family `{name}`")))
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

/// The sizes that most configs name alike, under the keys of Llama.
fn sizes(config: &mut Config) -> Spec {
    let d_model = config.count("hidden_size");
    let heads = config.count("num_attention_heads");
    let kv_heads = config.count_or("num_key_value_heads", heads);
    Spec {
        vocabulary: config.count("vocab_size"),
        context: config.count_or("max_position_embeddings", 2048),
        d_model,
        layers: config.count("num_hidden_layers"),
        heads,
        kv_heads,
        d_head: d_head(config, d_model, heads),
        d_mlp: config.count("intermediate_size"),
        ..Spec::default()
    }
}

/// The width of a head: `head_dim`, or the model's width over its heads.
fn d_head(config: &mut Config, d_model: usize, heads: usize) -> usize {
    match config.peek("head_dim") {
        Some(_) => config.count("head_dim"),
        None => {
            let even = even_head(config, d_model, heads);
            config.count_or("head_dim", even)
        }
    }
}

/// The width of a head in families that have no `head_dim`.
fn even_head(config: &mut Config, d_model: usize, heads: usize) -> usize {
    if heads > 0 && !d_model.is_multiple_of(heads) {
        config.problem(format!("a width of {d_model} cannot be split into {heads} heads"));
    }
    d_model / heads.max(1)
}

/// The same rotation in every layer; the context is cut to what it holds for.
fn set_rotary(config: &mut Config, spec: &mut Spec, defaults: rope::Defaults) {
    let (rotary, context) = rope::rotary(config, spec.d_head, spec.context, defaults);
    spec.positions = Positions::rotary(rotary);
    spec.context = context;
}

/// The window of each layer: those of type `sliding_attention` in `layer_types`, or those that `windowed` says.
fn set_windows(config: &mut Config, spec: &mut Spec, window: Option<usize>, windowed: impl Fn(usize) -> bool) {
    let types = config.words("layer_types");
    let types = types.unwrap_or_else(|| {
        let name = |layer| if windowed(layer) { "sliding_attention" } else { "full_attention" };
        (0..spec.layers.min(1 << 12)).map(|layer| name(layer).to_string()).collect()
    });
    if types.len() != spec.layers.min(1 << 12) {
        config.problem(format!("`layer_types` names {} layers, but there are {}", types.len(), spec.layers));
    }
    if let Some(other) = types.iter().find(|kind| !["full_attention", "sliding_attention"].contains(&kind.as_str())) {
        config.problem(format!("`layer_types` holds \"{other}\"; known are full_attention and sliding_attention"));
    }
    if window.is_none() && types.iter().any(|kind| kind == "sliding_attention") {
        config.problem("`layer_types` names windows, but no `sliding_window` says how wide");
    }
    if types.iter().any(|kind| kind == "sliding_attention") {
        spec.windows = types.iter().map(|kind| window.filter(|_| kind == "sliding_attention")).collect();
    }
}

/// `sliding_window`, if it is there.
fn sliding_window(config: &mut Config) -> Option<usize> {
    config.optional_count("sliding_window")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The fewest keys that describe a model of each family.
    fn fewest(family: Family) -> Map<String, Value> {
        let keys = match family {
            Family::Gpt2 | Family::GptBigCode => json!({"n_embd": 24, "n_layer": 2, "n_head": 3}),
            Family::GptJ => json!({"n_embd": 24, "n_layer": 2, "n_head": 3, "rotary_dim": 4}),
            Family::GptNeo => json!({
                "hidden_size": 24, "num_layers": 2, "num_heads": 3, "attention_types": [[["local", "global"], 1]],
            }),
            Family::Falcon => json!({"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}),
            Family::Opt => {
                json!({"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 20})
            }
            _ => json!({
                "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
            }),
        };
        let Value::Object(keys) = keys else { panic!("{keys}") };
        keys
    }

    #[test]
    fn defaults_that_are_written_are_those_that_were_taken() {
        for &family in Family::ALL {
            let completed = family.completed(&fewest(family), 11, 16);
            let mut keys = fewest(family);
            keys.insert("vocab_size".into(), 11.into());
            keys.insert(family.context_key().into(), 16.into());
            let spec = |keys: &Map<String, Value>| family.spec(Config::new(Path::new("test"), keys.clone())).unwrap();
            assert_eq!(spec(&completed), spec(&keys), "{family:?}");
            assert!(completed.len() > keys.len() + 5, "{family:?}: {completed:?}");
            assert_eq!(completed["tie_word_embeddings"], spec(&keys).tied, "{family:?}");
        }
    }
}
