//! The keys of a recipe: which there are, what their values must be, and what is wrong with a text's.

use endoscope_models::Family;
use toml::{Table, Value};

use crate::model_recipe::is_json;

/// What a key's value must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Count,
    Number,
    Switch,
    OneOf(&'static [&'static str]),
    /// Any family.
    AnyFamily,
    /// One that short keys describe.
    ShortFamily,
    /// The keys of a config.json.
    Config,
    /// Steps: a list, or a table with one of two keys.
    Steps,
    /// A table of two numbers.
    EarlyStop,
    /// A table of two texts.
    Start,
}

/// Whether a key must be given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Need {
    Required,
    Optional,
}

use Kind::{AnyFamily, Config, Count, EarlyStop, Number, OneOf, ShortFamily, Start, Steps, Switch};
use Need::{Optional, Required};

/// The keys of [model] where it has a section [model.config].
const CONFIG_KEYS: &[(&str, Kind, Need)] =
    &[("family", AnyFamily, Required), ("context", Count, Required), ("config", Config, Required)];

/// And where it has none.
pub(crate) const SHORT_KEYS: &[(&str, Kind, Need)] = &[
    ("family", ShortFamily, Required),
    ("context", Count, Required),
    ("d_model", Count, Required),
    ("layers", Count, Required),
    ("heads", Count, Required),
    ("kv_heads", Count, Optional),
    ("d_head", Count, Optional),
    ("d_mlp", Count, Required),
    ("activation", OneOf(&["gelu_tanh", "gelu_erf", "silu", "relu"]), Optional),
    ("tied", Switch, Optional),
    ("attention_bias", Switch, Optional),
    ("mlp_bias", Switch, Optional),
    ("rotary_base", Number, Optional),
    ("positions", OneOf(&["rotary", "none"]), Optional),
];

pub(crate) const TRAINING_KEYS: &[(&str, Kind, Need)] = &[
    ("steps", Count, Required),
    ("batch", Count, Required),
    ("seed", Count, Required),
    ("learning_rate", Number, Required),
    ("warmup_steps", Count, Optional),
    ("final_learning_rate", Number, Optional),
    ("weight_decay", Number, Optional),
    ("beta1", Number, Optional),
    ("beta2", Number, Optional),
    ("epsilon", Number, Optional),
    ("gradient_clip", Number, Optional),
    ("checkpoint_every", Count, Optional),
    ("init_std", Number, Optional),
    ("loss", OneOf(&["certain", "every"]), Optional),
    ("accumulate", Count, Optional),
    ("ema", Number, Optional),
    ("early_stop", EarlyStop, Optional),
    ("checkpoints", Steps, Optional),
    ("start", Start, Optional),
];

/// Sections and keys that are missing, unknown or of the wrong kind.
pub(crate) fn shape_problems(table: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    for name in table.keys().filter(|name| !["model", "task", "training"].contains(&name.as_str())) {
        problems.push(format!("`{name}` is not known; a recipe has the sections [model], [task] and [training]"));
    }
    let mut section = |name: &str| match table.get(name) {
        Some(Value::Table(section)) => Some(section.clone()),
        Some(other) => {
            problems.push(format!("`{name}` is {other}; it must be a section [{name}]"));
            None
        }
        None => {
            problems.push(format!("the section [{name}] is missing"));
            None
        }
    };
    let (mut model, task, training) = (section("model"), section("task"), section("training"));
    let configured = model.as_ref().is_some_and(|model| model.contains_key("config"));
    if let Some(model) = model.as_mut().filter(|_| configured) {
        for (name, ..) in SHORT_KEYS.iter().filter(|(name, ..)| !CONFIG_KEYS.iter().any(|(known, ..)| known == name)) {
            if model.remove(*name).is_some() {
                problems.push(format!(
                    "`model.{name}` cannot stand beside [model.config], which says all of it in the family's own keys; \
                     remove one of the two"
                ));
            }
        }
    }
    let model_keys = if configured { CONFIG_KEYS } else { SHORT_KEYS };
    for (name, keys, section) in [("model", model_keys, model), ("training", TRAINING_KEYS, training)] {
        problems.extend(section.iter().flat_map(|section| key_problems(name, keys, section)));
    }
    if let Some(task) = task {
        match task.get("name") {
            Some(Value::String(_)) => {}
            Some(other) => problems.push(format!("`task.name` is {other}; a text is needed")),
            None => problems.push("`task.name` is missing".into()),
        }
    }
    problems
}

fn key_problems(section: &str, keys: &[(&str, Kind, Need)], found: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    for name in found.keys().filter(|name| !keys.iter().any(|(known, ..)| known == name)) {
        let known = keys.iter().map(|(known, ..)| *known).collect::<Vec<_>>().join(", ");
        problems.push(format!("`{section}.{name}` is not known; the keys of [{section}] are {known}"));
    }
    for (name, kind, need) in keys {
        match found.get(*name) {
            None if *need == Required => problems.push(format!("`{section}.{name}` is missing")),
            None => {}
            Some(value) => {
                problems.extend(kind.problem(value).map(|what| format!("`{section}.{name}` is {value}; {what}")))
            }
        }
    }
    problems
}

impl Kind {
    fn problem(self, value: &Value) -> Option<String> {
        let (fits, wanted) = match self {
            Count => (is_count(value), "a count is needed".to_string()),
            Number => (value.is_float() || value.is_integer(), "a number is needed".to_string()),
            Switch => (value.is_bool(), "true or false is needed".to_string()),
            OneOf(names) => (
                value.as_str().is_some_and(|name| names.contains(&name)),
                format!("one of {} is needed", names.join(", ")),
            ),
            AnyFamily => {
                let known: Vec<&str> = Family::ALL.iter().map(|family| family.model_type()).collect();
                let fits = value.as_str().is_some_and(|name| known.contains(&name));
                (fits, format!("one of {} is needed", known.join(", ")))
            }
            ShortFamily => {
                let short = ["gpt2", "llama", "smollm3"];
                let fits = value.as_str().is_some_and(|name| short.contains(&name));
                let others = "the others are described by the keys of their config.json, in a section [model.config]";
                (fits, format!("one of {} is needed; {others}", short.join(", ")))
            }
            Config => (
                value.is_table() && is_json(value),
                "a section [model.config] is needed, without dates, nan and inf".to_string(),
            ),
            Steps => (
                match value {
                    Value::Array(steps) => steps.iter().all(is_count),
                    Value::Table(table) => {
                        table.len() == 1 && ["every", "log"].iter().any(|key| table.get(*key).is_some_and(is_count))
                    }
                    _ => false,
                },
                "{ every = STEPS }, { log = HOW_MANY } or a list of steps is needed".to_string(),
            ),
            EarlyStop => (
                value.as_table().is_some_and(|table| {
                    let number = |value: &Value| value.is_float() || value.is_integer();
                    table.get("accuracy").is_some_and(number)
                        && table.get("updates").is_none_or(is_count)
                        && table.keys().all(|key| key == "accuracy" || key == "updates")
                }),
                "{ accuracy = SHARE, updates = HOW_MANY } is needed".to_string(),
            ),
            Start => (
                value.as_table().is_some_and(|table| {
                    let text = |key: &str| table.get(key).is_some_and(Value::is_str);
                    table.len() == 2 && text("model") && text("sha256")
                }),
                "{ model = DIRECTORY, sha256 = OF_ITS_WEIGHTS } is needed".to_string(),
            ),
        };
        (!fits).then_some(wanted)
    }
}

fn is_count(value: &Value) -> bool {
    value.as_integer().is_some_and(|count| count >= 0)
}
