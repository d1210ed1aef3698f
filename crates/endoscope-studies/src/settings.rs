//! Settings: a study's parameters, declared once as a struct, from which `--set`, the JSON schema and the listing come.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result, nearest};

/// The settings of a study: a flat struct whose fields have doc comments and ranges, and whose `Default` is the full level.
///
/// ```
/// use endoscope_studies::settings::describe;
/// /// How it is measured.
/// #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(default, deny_unknown_fields)]
/// struct Config {
///     /// How many rows.
///     #[schemars(range(min = 1, max = 4096))]
///     rows: usize,
/// }
/// impl Default for Config {
///     fn default() -> Self { Self { rows: 64 } }
/// }
/// let settings = describe(&Config::default(), &Config { rows: 8 });
/// assert_eq!((settings[0].key.as_str(), settings[0].range.as_str()), ("rows", "1 to 4096"));
/// ```
pub trait Settings: Default + Serialize + DeserializeOwned + JsonSchema {}

impl<T: Default + Serialize + DeserializeOwned + JsonSchema> Settings for T {}

/// One setting, described.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// Its name in `--set`.
    pub key: String,
    /// What it means.
    pub about: String,
    /// What it may be.
    pub range: String,
    /// What it is at the level `full`.
    pub full: Value,
    /// What it is at the level `smoke`.
    pub smoke: Value,
}

/// The JSON schema of the settings, without references.
pub fn schema<C: Settings>() -> Value {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<C>().to_value()
}

/// Every setting with its values at both levels, in the order of the declaration.
pub fn describe<C: Settings>(full: &C, smoke: &C) -> Vec<Setting> {
    let (full, smoke) = (map(full), map(smoke));
    properties(&schema::<C>())
        .into_iter()
        .map(|(key, schema)| Setting {
            about: text(&schema, "description").replace('\n', " "),
            range: range(&schema),
            full: full.get(&key).cloned().unwrap_or_default(),
            smoke: smoke.get(&key).cloned().unwrap_or_default(),
            key,
        })
        .collect()
}

/// `base` with `key=value` put into it one after the other; the error of the study `slug` lists every problem.
pub fn set<C: Settings>(slug: &'static str, base: &C, assignments: &[String]) -> Result<C> {
    let mut values = map(base);
    let properties = properties(&schema::<C>());
    let mut problems = Vec::new();
    for assignment in assignments {
        let Some((key, written)) = assignment.split_once('=') else {
            problems.push(format!("`{assignment}` is no key=value"));
            continue;
        };
        let (key, written) = (key.trim(), written.trim());
        match properties.get(key) {
            Some(schema) => match value(written, schema) {
                Ok(value) => drop(values.insert(key.to_string(), value)),
                Err(problem) => problems.push(format!("`{key}` {problem}")),
            },
            None => problems.push(unknown(key, properties.keys().map(String::as_str))),
        }
    }
    if problems.is_empty() {
        match serde_json::from_value(Value::Object(values)) {
            Ok(settings) => return Ok(settings),
            Err(error) => problems.push(error.to_string()),
        }
    }
    Err(Error::Settings { slug, problems })
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let likely = nearest(key, known.clone());
    let all = known.collect::<Vec<_>>().join(", ");
    match likely.first() {
        Some(likely) => format!("`{key}` is unknown, `{likely}` perhaps? Settings are: {all}"),
        None => format!("`{key}` is unknown; settings are: {all}"),
    }
}

fn map(settings: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => map,
        // Not a struct, or not JSON: then it has no settings, which the tests of every study would show.
        _ => Map::new(),
    }
}

fn properties(schema: &Value) -> Map<String, Value> {
    schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default()
}

fn text(schema: &Value, key: &str) -> String {
    schema.get(key).and_then(Value::as_str).unwrap_or_default().to_string()
}

/// The words that a setting may be, if it is one of a few words.
fn choices(schema: &Value) -> Option<Vec<String>> {
    let words = |list: &Value, word: fn(&Value) -> Option<&str>| {
        list.as_array()?.iter().map(|entry| word(entry).map(str::to_string)).collect::<Option<Vec<_>>>()
    };
    match (schema.get("enum"), schema.get("oneOf")) {
        (Some(list), _) => words(list, Value::as_str),
        (_, Some(list)) => words(list, |entry| entry.get("const")?.as_str()),
        _ => None,
    }
}

fn range(schema: &Value) -> String {
    if let Some(choices) = choices(schema) {
        return choices.join(", ");
    }
    match (schema.get("minimum"), schema.get("maximum")) {
        (Some(low), Some(high)) => format!("{low} to {high}"),
        (Some(low), None) => format!("{low} or more"),
        (None, Some(high)) => format!("{high} or less"),
        (None, None) => text(schema, "type"),
    }
}

/// What was written, as the value that the schema asks for.
fn value(written: &str, schema: &Value) -> std::result::Result<Value, String> {
    if let Some(choices) = choices(schema) {
        return match choices.iter().any(|choice| choice == written) {
            true => Ok(Value::String(written.into())),
            false => Err(format!("is `{written}`; it may be: {}", choices.join(", "))),
        };
    }
    let kind = text(schema, "type");
    if kind == "string" {
        return Ok(Value::String(written.into()));
    }
    let read: Option<Value> = serde_json::from_str(written).ok();
    let fits = |value: &Value| match kind.as_str() {
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        // Lists and what may be absent: serde says what does not fit.
        _ => true,
    };
    let Some(value) = read.filter(fits) else { return Err(format!("is `{written}`, but it is of the type {kind}")) };
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let inside = value.as_f64().is_none_or(|number| {
        bound("minimum").is_none_or(|low| low <= number) && bound("maximum").is_none_or(|high| number <= high)
    });
    if inside { Ok(value) } else { Err(format!("is {written}; it may be {}", range(schema))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        /// How many
        /// rows.
        #[schemars(range(min = 1, max = 64))]
        rows: usize,
        /// How strong.
        #[schemars(range(min = -0.5, max = 1.5))]
        strength: f64,
        /// Which way.
        way: Way,
        /// Whether it is done.
        done: bool,
        /// Which sizes.
        sizes: Vec<u32>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Way {
        Up,
        FarDown,
    }

    impl Default for Config {
        fn default() -> Self {
            Self { rows: 32, strength: 1., way: Way::Up, done: false, sizes: vec![1] }
        }
    }

    fn written(assignments: &[&str]) -> Result<Config> {
        set("test", &Config::default(), &assignments.iter().map(|text| text.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn settings_are_read_by_their_declaration() {
        let read =
            written(&["rows=1", "strength = -0.5", "way=far_down", "done=true", "sizes=[3,4]", "rows=64"]).unwrap();
        let expected = Config { rows: 64, strength: -0.5, way: Way::FarDown, done: true, sizes: vec![3, 4] };
        assert_eq!(read, expected);
        assert_eq!(written(&[]).unwrap(), Config::default());
        assert_eq!(written(&["strength=1"]).unwrap().strength, 1.);
    }

    #[test]
    fn what_does_not_fit_is_named_all_at_once() {
        for (assignment, part) in [
            ("rows=0", "`rows` is 0; it may be 1 to 64"),
            ("rows=65", "1 to 64"),
            ("rows=-1", "1 to 64"),
            ("rows=1.5", "of the type integer"),
            ("rows=many", "of the type integer"),
            ("strength=1.6", "-0.5 to 1.5"),
            ("strength=NaN", "of the type number"),
            ("strength=1e999", "of the type number"),
            ("way=down", "it may be: up, far_down"),
            ("done=yes", "of the type boolean"),
            ("sizes=[-3]", "-3"),
            ("row=3", "`rows` perhaps? Settings are: rows, strength, way, done, sizes"),
            ("rows", "no key=value"),
        ] {
            let error = written(&[assignment]).unwrap_err().to_string();
            assert!(error.contains(part), "{assignment}: {error}");
        }
        let both = written(&["rows=0", "far=1"]).unwrap_err().to_string();
        assert!(both.contains("`rows`") && both.contains("`far`"), "{both}");
    }

    #[test]
    fn the_description_is_the_declaration() {
        let settings = describe(&Config::default(), &Config { rows: 2, ..Config::default() });
        let keys: Vec<&str> = settings.iter().map(|setting| setting.key.as_str()).collect();
        assert_eq!(keys, ["rows", "strength", "way", "done", "sizes"]);
        assert_eq!((&settings[0].full, &settings[0].smoke), (&32.into(), &2.into()));
        assert_eq!((settings[0].about.as_str(), settings[2].range.as_str()), ("How many rows.", "up, far_down"));
        assert_eq!(schema::<Config>()["properties"]["rows"]["default"], 32);
    }
}
