//! The keys of a recipe: which there are, what their values must be, and what is wrong with a text's.

use toml::{Table, Value};

/// What a key's value must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Count,
    Number,
    Switch,
    OneOf(&'static [&'static str]),
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

use Kind::{Count, EarlyStop, Number, OneOf, Start, Steps, Switch};
use Need::{Optional, Required};

pub(crate) const MODEL_KEYS: &[(&str, Kind, Need)] = &[
    ("family", OneOf(&["gpt2", "llama", "smollm3"]), Required),
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
    let (model, task, training) = (section("model"), section("task"), section("training"));
    for (name, keys, section) in [("model", MODEL_KEYS, model), ("training", TRAINING_KEYS, training)] {
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
