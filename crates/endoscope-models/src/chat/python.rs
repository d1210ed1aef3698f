//! Python's side of Jinja: what templates written for Python expect of filters, tests and methods.

use std::fmt::Write;

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat;

use super::template::LONGEST;

/// Teaches an environment Python's meaning where it differs.
pub fn install(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", to_json);
    // A text and a mapping have a length and entries, which is what Jinja asks for.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.set_formatter(|output, state, value| match value.is_number() && !value.is_integer() {
        true => Ok(output.write_str(&number(value))?),
        false => escape_formatter(output, state, value),
    });
    environment.add_function("dict", |pairs: Option<Value>, named: Kwargs| -> Result<Value, Error> {
        let mut entries = Vec::new();
        if let Some(pairs) = pairs {
            for key in pairs.try_iter()? {
                entries.push((key.clone(), pairs.get_item(&key)?));
            }
        }
        for name in named.args() {
            entries.push((Value::from(name), named.get(name)?));
        }
        Ok(Value::from_pairs(entries))
    });
}

/// Methods of `str` that minijinja-contrib does not know; the others are its.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, arguments);
    };
    let texts = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    Ok(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            text.split_once(separator).map_or_else(|| texts([text, "", ""]), |(a, b)| texts([a, separator, b]))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(arguments)?;
            text.rsplit_once(separator).map_or_else(|| texts(["", "", text]), |(a, b)| texts([a, separator, b]))
        }
        "index" => {
            let (part,): (&str,) = from_args(arguments)?;
            let at = text.find(part).ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "rsplit" => {
            let (separator, most): (&str, Option<usize>) = from_args(arguments)?;
            let mut parts: Vec<&str> = match most {
                Some(most) => text.rsplitn(most.saturating_add(1), separator).collect(),
                None => text.rsplit(separator).collect(),
            };
            parts.reverse();
            Value::from_iter(parts)
        }
        // A width is memory that no fuel pays for.
        "format" if has_long_number(text) => return Err(invalid("a format wider than 9999")),
        _ => return pycompat::unknown_method_callback(state, value, name, arguments),
    })
}

fn has_long_number(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > 4)
}

/// `markupsafe.escape`.
fn escape(text: String) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, not Jinja's filter of that
/// name, which escapes for HTML.
fn to_json(value: &Value, positional: Option<bool>, options: Kwargs) -> Result<Value, Error> {
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.or(positional).unwrap_or(false);
    let indent = options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none());
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let indent = match &indent {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(usize::try_from(i64::try_from(indent.clone())?.max(0)).unwrap_or(0).min(LONGEST)),
        }),
        None => None,
    };
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators of tojson are a pair of texts")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut writer = JsonWriter { text: String::new(), indent, item, key, ascii, sorted };
    writer.value(value, 0)?;
    Ok(Value::from(writer.text))
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

struct JsonWriter {
    text: String,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl JsonWriter {
    /// Deeper values are refused; JSON that was read is never so deep.
    const DEEPEST: usize = 200;

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > Self::DEEPEST {
            return Err(invalid("a value nested too deeply for tojson"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.text.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.entries('[', ']', items, depth, |writer, item| writer.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.entries('{', '}', keys.into_iter(), depth, |writer, key| {
                    let entry = value.get_item(&key)?;
                    match key.kind() {
                        ValueKind::String => writer.string(key.as_str().unwrap_or_default()),
                        ValueKind::None => writer.text.push_str("\"null\""),
                        ValueKind::Bool => {
                            writer.text.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" });
                        }
                        ValueKind::Number => {
                            let number = number(&key);
                            writer.string(&number);
                        }
                        kind => return Err(invalid(format!("keys of JSON cannot be {kind}"))),
                    }
                    let separator = writer.key.clone();
                    writer.text.push_str(&separator);
                    writer.value(&entry, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("{kind} cannot be written as JSON"))),
        }
        match self.text.len() > LONGEST {
            true => Err(Error::from(ErrorKind::OutOfFuel)),
            false => Ok(()),
        }
    }

    fn entries(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        let mut empty = true;
        for item in items {
            if !empty {
                let separator = self.item.clone();
                self.text.push_str(&separator);
            }
            empty = false;
            self.new_line(depth + 1)?;
            write(self, item)?;
        }
        if !empty {
            self.new_line(depth)?;
        }
        self.text.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        if self.text.len() + indent.len() * depth > LONGEST {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        self.text.push('\n');
        (0..depth).for_each(|_| self.text.push_str(indent));
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                _ if character < ' ' || self.ascii && !character.is_ascii() => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        // Writing to a String cannot fail.
                        let _ = write!(self.text, "\\u{unit:04x}");
                    }
                }
                _ => self.text.push(character),
            }
        }
        self.text.push('"');
    }
}

/// A number as Python's `repr` writes it.
pub fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_repr(float),
        _ => value.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0. { "Infinity".into() } else { "-Infinity".into() };
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    match exponent {
        -4..=15 => {
            let plain = float.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        _ => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (float, text) in [
            (0., "0.0"),
            (-0., "-0.0"),
            (1.5, "1.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.25e-7, "-1.25e-07"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
        ] {
            assert_eq!(float_repr(float), text);
        }
    }
}
