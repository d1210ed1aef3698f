//! What config.json says of rotary positions: `rope_theta` and `rope_scaling` at the top (transformers 4), or all in
//! `rope_parameters` (transformers 5), there perhaps for each type of layer.

use serde_json::{Map, Value};

use crate::config::Config;
use crate::rotary::{Pairs, Rotary, RotaryScaling};

/// What holds where a config is silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub base: f64,
    /// The share of a head that is turned.
    pub partial: f64,
    /// Names of base and share at the top of older files.
    pub keys: (&'static str, &'static str),
    pub pairs: Pairs,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { base: 10_000., partial: 1., keys: ("rope_theta", "partial_rotary_factor"), pairs: Pairs::Halves }
    }
}

/// The rotation of all layers, and the longest sequence for which it holds.
pub(super) fn rotary(config: &mut Config, d_head: usize, context: usize, defaults: Defaults) -> (Rotary, usize) {
    let base = config.number(defaults.keys.0).unwrap_or(defaults.base);
    let partial = config.number(defaults.keys.1).unwrap_or(defaults.partial);
    let original = config.optional_count("original_max_position_embeddings");
    let (scaling, parameters) = (config.object("rope_scaling"), config.object("rope_parameters"));
    let (key, keys) = match (scaling, parameters) {
        (Some(keys), _) => ("rope_scaling", keys),
        (None, Some(keys)) => ("rope_parameters", keys),
        (None, None) => ("rope_parameters", Map::new()),
    };
    let mut parameters = Parameters::new(config, key, keys);
    let rotary = parameters.rotary(d_head, context, Found { base, partial, original }, defaults.pairs);
    let longest = parameters.longest.unwrap_or(context).min(context);
    parameters.finish();
    (rotary, longest)
}

/// Gemma 3's two rotations: of whole and of windowed layers.
pub(super) fn two_rotaries(config: &mut Config, d_head: usize, context: usize, bases: [f64; 2]) -> [Rotary; 2] {
    let mut nested = config.object("rope_parameters").unwrap_or_default();
    let scaling = config.object("rope_scaling");
    let mut of = |layers: &str, base_key: &str, base: f64, scaling: Option<Map<String, Value>>| {
        let base = config.number(base_key).unwrap_or(base);
        let keys = match (nested.remove(layers), scaling) {
            (_, Some(keys)) => keys,
            (Some(Value::Object(keys)), None) => keys,
            (None | Some(Value::Null), None) => Map::new(),
            (Some(other), None) => {
                config.problem(format!("`rope_parameters.{layers}` is {other}; an object is needed"));
                Map::new()
            }
        };
        let mut parameters = Parameters::new(config, "rope_parameters", keys);
        let found = Found { base, partial: 1., original: None };
        let rotary = parameters.rotary(d_head, context, found, Pairs::Halves);
        parameters.finish();
        rotary
    };
    let whole = of("full_attention", "rope_theta", bases[0], scaling);
    let windowed = of("sliding_attention", "rope_local_base_freq", bases[1], None);
    for (key, value) in nested {
        config.problem(format!("`rope_parameters.{key}` = {value} is not known"));
    }
    [whole, windowed]
}

/// What stands at the top of the config.
struct Found {
    base: f64,
    partial: f64,
    original: Option<usize>,
}

struct Parameters<'a> {
    config: &'a mut Config,
    key: &'static str,
    keys: Map<String, Value>,
    longest: Option<usize>,
}

impl<'a> Parameters<'a> {
    fn new(config: &'a mut Config, key: &'static str, keys: Map<String, Value>) -> Self {
        Self { config, key, keys, longest: None }
    }

    fn number(&mut self, name: &str) -> Option<f64> {
        let value = self.keys.remove(name).filter(|value| !value.is_null())?;
        let number = value.as_f64();
        if number.is_none() {
            self.config.problem(format!("`{}.{name}` is {value}; a number is needed", self.key));
        }
        number
    }

    fn needed(&mut self, name: &str) -> f64 {
        if self.keys.get(name).is_none_or(Value::is_null) {
            self.config.problem(format!("`{}.{name}` is missing", self.key));
        }
        self.number(name).unwrap_or(1.)
    }

    fn numbers(&mut self, name: &str) -> Vec<f64> {
        let value = self.keys.remove(name).unwrap_or_default();
        let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect::<Option<_>>());
        numbers.unwrap_or_else(|| {
            self.config.problem(format!("`{}.{name}` is {value}; a list of numbers is needed", self.key));
            Vec::new()
        })
    }

    fn rotary(&mut self, d_head: usize, context: usize, found: Found, pairs: Pairs) -> Rotary {
        let base = self.number("rope_theta").unwrap_or(found.base);
        let partial = self.number("partial_rotary_factor").unwrap_or(found.partial);
        let dims = (d_head as f64 * partial) as usize;
        let kind = self.keys.remove("type");
        let kind = self.keys.remove("rope_type").or(kind).filter(|kind| !kind.is_null());
        let scaling = match kind.as_ref().map_or(Some("default"), Value::as_str) {
            Some("default") => RotaryScaling::None,
            Some("linear") => RotaryScaling::Linear { factor: self.needed("factor") },
            Some("llama3") => RotaryScaling::Llama3 {
                factor: self.needed("factor"),
                low: self.needed("low_freq_factor"),
                high: self.needed("high_freq_factor"),
                original_context: self.original(found.original, context),
            },
            Some("yarn") => self.yarn(found.original, context),
            Some("longrope" | "su") => self.long(found.original, context),
            Some("dynamic") => {
                self.problem("depends on the length of the sequence, so that keys would change as text grows");
                RotaryScaling::None
            }
            _ => {
                self.problem("is not known; supported are default, linear, llama3, yarn and longrope");
                RotaryScaling::None
            }
        };
        if let (Some(kind), RotaryScaling::None) = (kind, &scaling)
            && kind != "default"
        {
            self.keys.clear();
        }
        Rotary { base, dims, pairs, scaling }
    }

    fn problem(&mut self, problem: &str) {
        self.config.problem(format!("the rope_type of `{}` {problem}", self.key));
    }

    fn original(&mut self, found: Option<usize>, context: usize) -> usize {
        let own = self.number("original_max_position_embeddings").map(|number| number as usize);
        found.or(own).unwrap_or(context)
    }

    fn yarn(&mut self, found: Option<usize>, context: usize) -> RotaryScaling {
        let original_context = self.original(found, context);
        let factor = self.number("factor").unwrap_or(context as f64 / original_context.max(1) as f64);
        let scale = |by: f64| if factor <= 1. { 1. } else { 0.1 * by * factor.ln() + 1. };
        let (given, mscale, all) =
            (self.number("attention_factor"), self.number("mscale"), self.number("mscale_all_dim"));
        let attention = given.unwrap_or_else(|| match (mscale.filter(|&x| x != 0.), all.filter(|&x| x != 0.)) {
            (Some(mscale), Some(all)) => scale(mscale) / scale(all),
            _ => scale(1.),
        });
        let truncate = match self.keys.remove("truncate") {
            None | Some(Value::Null | Value::Bool(true)) => true,
            Some(Value::Bool(false)) => false,
            Some(other) => {
                self.config.problem(format!("`{}.truncate` is {other}; true or false is needed", self.key));
                true
            }
        };
        RotaryScaling::Yarn {
            factor,
            fast: self.number("beta_fast").unwrap_or(32.),
            slow: self.number("beta_slow").unwrap_or(1.),
            truncate,
            original_context,
            attention,
        }
    }

    /// LongRoPE's short factors; sequences are kept to the original context, because the long factors, which take over
    /// beyond it, would change the keys of positions already computed.
    fn long(&mut self, found: Option<usize>, context: usize) -> RotaryScaling {
        let original = self.original(found, context);
        self.longest = Some(original);
        let factor = self.number("factor").unwrap_or(context as f64 / original.max(1) as f64);
        let attention = self.number("attention_factor").unwrap_or_else(|| match factor <= 1. {
            true => 1.,
            false => (1. + factor.ln() / (original as f64).ln()).sqrt(),
        });
        self.numbers("long_factor");
        RotaryScaling::Factors { factors: self.numbers("short_factor"), attention }
    }

    fn finish(self) {
        for (name, value) in self.keys {
            self.config.problem(format!("`{}.{name}` = {value} is not known and could change the angles", self.key));
        }
    }
}
