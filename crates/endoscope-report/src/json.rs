//! JSON for people and for diffs: indented, but a list of plain values stays on one line.

use serde::Serialize;
use serde_json::Value;

use crate::{Error, Result};

/// `value` as indented JSON that ends in a newline; `what` names it in an error.
pub(crate) fn to_text(value: &impl Serialize, what: &str) -> Result<String> {
    let value = serde_json::to_value(value).map_err(|source| Error::Json { what: what.into(), source })?;
    let mut out = String::new();
    write(&value, 0, &mut out);
    out.push('\n');
    Ok(out)
}

fn write(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Array(list) if list.iter().any(|entry| entry.is_array() || entry.is_object()) => {
            block(out, depth, ['[', ']'], list, |entry, out| write(entry, depth + 1, out));
        }
        Value::Object(object) if !object.is_empty() => {
            block(out, depth, ['{', '}'], object, |(key, entry), out| {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write(entry, depth + 1, out);
            });
        }
        Value::Array(list) => {
            let entries: Vec<String> = list.iter().map(Value::to_string).collect();
            out.push_str(&format!("[{}]", entries.join(", ")));
        }
        plain => out.push_str(&plain.to_string()),
    }
}

fn block<Entry>(
    out: &mut String,
    depth: usize,
    [open, close]: [char; 2],
    entries: impl IntoIterator<Item = Entry>,
    mut entry: impl FnMut(Entry, &mut String),
) {
    out.push(open);
    for (index, each) in entries.into_iter().enumerate() {
        out.push_str(if index == 0 { "\n" } else { ",\n" });
        out.push_str(&"  ".repeat(depth + 1));
        entry(each, out);
    }
    out.push('\n');
    out.push_str(&"  ".repeat(depth));
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn innermost_lists_stay_on_one_line() {
        let value = serde_json::json!({"a": [[1.5, null], []], "b": {}, "c": "x\"", "d": []});
        let text = to_text(&value, "it").unwrap();
        insta::assert_snapshot!(text, @r#"
        {
          "a": [
            [1.5, null],
            []
          ],
          "b": {},
          "c": "x\"",
          "d": []
        }
        "#);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }
}
