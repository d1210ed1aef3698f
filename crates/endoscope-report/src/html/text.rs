//! Text and data as HTML that cannot be broken out of.

use serde::Serialize;

use crate::label::safe;

/// `text` as HTML, inside an element or a quoted attribute; controls are shown escaped.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in safe(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Each paragraph of `text`, separated by blank lines, as an element of its own.
pub(super) fn paragraphs(text: &str, class: &str) -> String {
    let text = text.replace("\r\n", "\n");
    let paragraphs = text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
    paragraphs.map(|paragraph| format!("<p class=\"{class}\">{}</p>\n", escaped(paragraph))).collect()
}

/// `value` as JSON inside a script element: without any `<`, so that no text in it can end the element, and without
/// control characters.
pub(super) fn embedded(value: &impl Serialize) -> String {
    // A report's maps have text keys and its numbers are JSON's, so serde has nothing to refuse.
    let json = serde_json::to_string(value).unwrap_or_else(|_| "null".into());
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // Both occur in JSON's strings only, where an escape means the same.
        if c == '<' || c.is_control() {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// `text` with its first letter in upper case.
pub(super) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
