//! Width, wrapping and colours of text.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::Colour;
use crate::colour::Rgb;

/// How many columns `text` fills.
pub(super) fn width(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

/// `text` with spaces after it up to `to` columns.
pub(super) fn pad_right(text: &str, to: usize) -> String {
    format!("{text}{}", " ".repeat(to.saturating_sub(width(text))))
}

/// `text` with spaces before it up to `to` columns.
pub(super) fn pad_left(text: &str, to: usize) -> String {
    format!("{}{text}", " ".repeat(to.saturating_sub(width(text))))
}

/// `text` cut into pieces of at most `limit` columns; a wider single character is a piece of its own.
pub(super) fn pieces(text: &str, limit: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for c in text.chars() {
        let piece = pieces.last().map_or("", |piece| piece);
        if !piece.is_empty() && width(piece) + c.width().unwrap_or(0) > limit.max(1) {
            pieces.push(String::new());
        }
        if let Some(piece) = pieces.last_mut() {
            piece.push(c);
        }
    }
    pieces
}

/// `text` within `limit` columns, its end replaced by `…` if it is longer.
pub(super) fn abbreviated(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    let start = pieces(text, limit.saturating_sub(1)).into_iter().next().unwrap_or_default();
    format!("{start}…")
}

/// Lines of at most `limit` columns, broken between words where possible; line breaks of `text` are kept.
pub(super) fn wrap(text: &str, limit: usize) -> Vec<String> {
    let limit = limit.max(20);
    let mut lines = Vec::new();
    for paragraph in text.trim_end().split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ').flat_map(|word| pieces(word, limit)) {
            if !line.is_empty() && width(&line) + 1 + width(&word) > limit {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word);
        }
        lines.push(line);
    }
    lines
}

/// Colours, or their absence.
#[derive(Clone, Copy)]
pub(super) struct Ink(pub Colour);

impl Ink {
    fn wrapped(self, code: &str, text: &str) -> String {
        match self.0 {
            Colour::TrueColour if !text.is_empty() => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.wrapped("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.wrapped("2", text)
    }

    pub(super) fn green(self, text: &str) -> String {
        self.wrapped("32", text)
    }

    pub(super) fn yellow(self, text: &str) -> String {
        self.wrapped("33", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.wrapped("31", text)
    }

    /// `text` on a coloured ground, in black or white.
    pub(super) fn block(self, ground: Rgb, text: &str) -> String {
        let Rgb(r, g, b) = ground;
        let Rgb(ir, ig, ib) = ground.ink();
        self.wrapped(&format!("48;2;{r};{g};{b};38;2;{ir};{ig};{ib}"), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_count_double() {
        assert_eq!(pieces("日本語", 4), ["日本", "語"]);
        assert_eq!(abbreviated("日本語", 5), "日本…");
        assert_eq!(abbreviated("abc", 3), "abc");
        assert_eq!(pad_left("日", 4), "  日");
    }

    #[test]
    fn prose_is_broken_between_words_and_long_words_anyway() {
        let lines = wrap(&format!("one two three four five six\n\n{}", "x".repeat(45)), 20);
        assert_eq!(lines, ["one two three four", "five six", "", &"x".repeat(20), &"x".repeat(20), "xxxxx"]);
    }
}
