//! The labels of an axis, and how text from a model is made visible and harmless.

use serde::{Deserialize, Serialize};

/// One label of an axis: a layer's number, a token's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Label {
    /// A number: a layer, a head, a training step.
    Index(i64),
    /// A text: a token, a task's name. May repeat within an axis.
    Text(String),
}

/// Labels from numbers or texts: `labels(0..12)`, `labels(["<s>", "Once"])`.
pub fn labels<L: Into<Label>>(from: impl IntoIterator<Item = L>) -> Vec<Label> {
    from.into_iter().map(Into::into).collect()
}

impl Label {
    /// The label as one line in which whitespace shows and nothing can act on a terminal.
    ///
    /// ```
    /// use endoscope_report::Label;
    /// assert_eq!(Label::from(" upon\n").visible(), "·upon↵");
    /// assert_eq!(Label::from("\u{1b}[31m").visible(), "\\u{1b}[31m");
    /// ```
    pub fn visible(&self) -> String {
        match self {
            Label::Index(index) => index.to_string(),
            Label::Text(text) => visible(text),
        }
    }
}

impl std::fmt::Display for Label {
    /// The label itself, unescaped.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Label::Index(index) => write!(f, "{index}"),
            Label::Text(text) => f.write_str(text),
        }
    }
}

macro_rules! index_label {
    ($($from:ty),*) => {$(
        impl From<$from> for Label {
            fn from(index: $from) -> Label {
                // Saturates: no axis has more than i64::MAX entries.
                Label::Index(i64::try_from(index).unwrap_or(i64::MAX))
            }
        }
    )*};
}
index_label!(i32, i64, u32, u64, usize);

impl From<&str> for Label {
    fn from(text: &str) -> Label {
        Label::Text(text.to_owned())
    }
}

impl From<String> for Label {
    fn from(text: String) -> Label {
        Label::Text(text)
    }
}

/// A token on one line: outer spaces as `·`, newline as `↵`, tab as `⇥`, anything unprintable escaped, nothing as `""`.
pub(crate) fn visible(text: &str) -> String {
    if text.is_empty() {
        return "\"\"".into();
    }
    let inner = text.trim_matches(' ');
    let start = text.len() - text.trim_start_matches(' ').len();
    let mut out = "·".repeat(start);
    for c in inner.chars() {
        match c {
            '\n' => out.push('↵'),
            '\t' => out.push('⇥'),
            c => push_safe(&mut out, c),
        }
    }
    if !inner.is_empty() {
        out.push_str(&"·".repeat(text.len() - start - inner.len()));
    }
    out
}

/// Prose with its line breaks kept and everything unprintable escaped.
pub(crate) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.replace("\r\n", "\n").chars() {
        match c {
            '\n' => out.push('\n'),
            '\t' => out.push_str("    "),
            c => push_safe(&mut out, c),
        }
    }
    out
}

/// Pushes `c`, escaped if it is a control, or if it would be invisible or reorder the text around it.
fn push_safe(out: &mut String, c: char) {
    let unseen = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    if c.is_control() || unseen {
        out.extend(c.escape_unicode());
    } else {
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitespace_and_controls_are_made_visible() {
        for (text, expected) in [
            ("Once", "Once"),
            ("  upon a ", "··upon a·"),
            ("   ", "···"),
            ("", "\"\""),
            ("a\nb\tc", "a↵b⇥c"),
            ("\u{1b}]0;x\u{7}", "\\u{1b}]0;x\\u{7}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}abc", "\\u{202e}abc"),
            ("שלום", "שלום"),
        ] {
            assert_eq!(visible(text), expected, "{text:?}");
        }
    }

    #[test]
    fn labels_keep_their_kind_in_json() {
        let labels = labels(["0", "a"]);
        assert_eq!(serde_json::to_string(&labels).unwrap(), r#"["0","a"]"#);
        assert_eq!(serde_json::from_str::<Vec<Label>>("[0,\"0\"]").unwrap(), [Label::Index(0), "0".into()]);
    }
}
