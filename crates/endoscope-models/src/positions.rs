//! Positions by name: what people write for a part of a prompt, and the index that it means in one prompt.

use std::collections::BTreeSet;
use std::ops::Range;
use std::str::FromStr;

use endoscope_net::Index;

use crate::error::{Error, Result};
use crate::tokenizer::MessageSpan;

/// Positions of a prompt, as they are written.
///
/// Parts joined by `+`; each is
///
/// * an [`Index`] as it is written elsewhere: `last`, `-1`, `3`, `2..5`, `1,4`, `all`, `generated`;
/// * a message by its role: `user` (all of them), `user[0]`, `assistant[-1]`, `last_user` (which is `user[-1]`), or
///   `message[2]` whatever its role; with `.first` or `.last`, only that token of each;
/// * a token by its text: `token:" Paris"` (every one), `token[0]:" Paris"` (the first).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPositions {
    written: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Index(Index),
    Message { role: String, which: Option<i64>, tokens: Tokens },
    Token { text: String, which: Option<i64> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tokens {
    All,
    First,
    Last,
}

/// What a prompt consists of, for names to be found in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTokens<'a> {
    /// The text of each token.
    pub labels: &'a [String],
    /// Its messages; none if it is no chat.
    pub messages: &'a [MessageSpan],
}

impl FromStr for NamedPositions {
    type Err = Error;
    fn from_str(written: &str) -> Result<Self> {
        let fail = |reason: String| Error::Positions { written: written.to_string(), reason };
        let parts = split(written).into_iter().map(part).collect::<std::result::Result<Vec<_>, _>>().map_err(fail)?;
        Ok(Self { written: written.to_string(), parts })
    }
}

impl std::fmt::Display for NamedPositions {
    /// As they were written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.written)
    }
}

impl NamedPositions {
    /// The index that is meant in this prompt: what was written as an index is that index; names become positions in
    /// ascending order, each once.
    pub fn resolve(&self, prompt: &PromptTokens<'_>) -> Result<Index> {
        let fail = |reason: String| Error::Positions { written: self.written.clone(), reason };
        if let [Part::Index(index)] = self.parts.as_slice() {
            return Ok(index.clone());
        }
        let mut positions = BTreeSet::new();
        for part in &self.parts {
            positions.extend(prompt.positions(part).map_err(fail)?);
        }
        Ok(index_of(&positions))
    }
}

/// The shortest way to say these positions.
fn index_of(positions: &BTreeSet<usize>) -> Index {
    let list: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
    match list.as_slice() {
        [one] => Index::At(*one),
        [first, .., last] if last - first + 1 == list.len() as i64 => {
            Index::Range { start: *first, end: Some(last + 1) }
        }
        _ => Index::List(list),
    }
}

impl PromptTokens<'_> {
    fn positions(&self, part: &Part) -> std::result::Result<Vec<usize>, String> {
        match part {
            Part::Index(index) => self.of_index(index),
            Part::Message { role, which, tokens } => Ok(self
                .messages(role, *which)?
                .into_iter()
                .flat_map(|span| match tokens {
                    Tokens::All => span,
                    Tokens::First => span.start..span.start + 1,
                    Tokens::Last => span.end - 1..span.end,
                })
                .collect()),
            Part::Token { text, which } => self.of_token(text, *which),
        }
    }

    fn of_index(&self, index: &Index) -> std::result::Result<Vec<usize>, String> {
        let length = self.labels.len();
        let from_start = |at: i64| if at < 0 { at.saturating_add(length as i64) } else { at };
        let boundary = |at: i64| usize::try_from(from_start(at)).ok().filter(|&at| at <= length);
        let outside = |at: i64| format!("{at} is outside of its {length} tokens");
        let one = |&at: &i64| boundary(at).filter(|&at| at < length).ok_or_else(|| outside(at));
        match index {
            Index::All => Ok((0..length).collect()),
            Index::At(at) => Ok(vec![one(at)?]),
            Index::List(list) => list.iter().map(one).collect(),
            Index::Range { start, end: Some(end) } => {
                let bounds = boundary(*start).ok_or_else(|| outside(*start))?;
                Ok((bounds..boundary(*end).ok_or_else(|| outside(*end))?).collect())
            }
            Index::Range { end: None, .. } | Index::Generated => {
                Err(format!("`{index}` reaches beyond the prompt, and cannot be joined to others"))
            }
        }
    }

    /// The spans of the messages of a role (`message` is each).
    fn messages(&self, role: &str, which: Option<i64>) -> std::result::Result<Vec<Range<usize>>, String> {
        if self.messages.is_empty() {
            return Err("it is no chat, so there are no messages".into());
        }
        let of_role: Vec<(usize, &MessageSpan)> =
            self.messages.iter().enumerate().filter(|(_, span)| role == "message" || span.role == role).collect();
        let chosen = match which {
            Some(which) => pick(&of_role, which).into_iter().collect(),
            None => of_role,
        };
        if chosen.is_empty() {
            return Err(format!("the chat has {}", self.roles()));
        }
        let span = |(number, message): (usize, &MessageSpan)| {
            message.tokens.clone().filter(|tokens| !tokens.is_empty()).ok_or_else(|| {
                format!(
                    "message {number} ({}) has no text there: nothing is said in it, or the template leaves it out",
                    message.role
                )
            })
        };
        chosen.into_iter().map(span).collect()
    }

    /// `2 user messages, 1 assistant message`, in the order of their appearance.
    fn roles(&self) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for MessageSpan { role, .. } in self.messages {
            match counts.iter_mut().find(|(other, _)| other == role) {
                Some((_, count)) => *count += 1,
                None => counts.push((role, 1)),
            }
        }
        let say = |(role, count): (&str, usize)| format!("{count} {role} message{}", if count == 1 { "" } else { "s" });
        counts.into_iter().map(say).collect::<Vec<_>>().join(", ")
    }

    fn of_token(&self, text: &str, which: Option<i64>) -> std::result::Result<Vec<usize>, String> {
        let found: Vec<usize> = (0..self.labels.len()).filter(|&at| self.labels[at] == text).collect();
        match which {
            _ if found.is_empty() => Err(format!("no token is {text:?}; the nearest are {}", self.nearest(text))),
            None => Ok(found),
            Some(which) => match pick(&found, which) {
                Some(at) => Ok(vec![at]),
                None => Err(format!("only {} of its tokens are {text:?}", found.len())),
            },
        }
    }

    /// The texts of its tokens that are most like `text`.
    fn nearest(&self, text: &str) -> String {
        let distinct: BTreeSet<&str> = self.labels.iter().map(String::as_str).collect();
        let mut nearest: Vec<&str> = distinct.into_iter().collect();
        nearest.sort_by_key(|label| strsim::damerau_levenshtein(label, text));
        nearest.into_iter().take(5).map(|label| format!("{label:?}")).collect::<Vec<_>>().join(", ")
    }
}

/// The entry of that number, from the end if it is negative.
fn pick<T: Copy>(list: &[T], which: i64) -> Option<T> {
    let at = if which < 0 { which.checked_add(list.len() as i64)? } else { which };
    list.get(usize::try_from(at).ok()?).copied()
}

/// The parts between `+` signs that do not stand in quotes.
fn split(written: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, character) in written.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '+' if !quoted => {
                parts.push(&written[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&written[start..]);
    parts
}

fn part(written: &str) -> std::result::Result<Part, String> {
    let written = written.trim();
    if let Ok(index) = written.parse() {
        return Ok(Part::Index(index));
    }
    let bad = || {
        format!(
            "`{written}` is neither an index (`last`, `3`, `2..5`), nor a message (`last_user`, `assistant[0]`, \
             `system.last`), nor a token (`token:\" Paris\"`)"
        )
    };
    let end = written.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').unwrap_or(written.len());
    let (name, rest) = written.split_at(end);
    let (which, rest) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((number, rest)) => (Some(number.trim().parse().map_err(|_| bad())?), rest),
        None => (None, rest),
    };
    if name == "token" {
        let quoted = rest.strip_prefix(':').ok_or_else(bad)?;
        let text = serde_json::from_str(quoted.trim()).map_err(|_| {
            format!("the text of a token stands in double quotes, as in token:\" Paris\"; not `{quoted}`")
        })?;
        return Ok(Part::Token { text, which });
    }
    let tokens = match rest {
        "" => Tokens::All,
        ".first" => Tokens::First,
        ".last" => Tokens::Last,
        _ => return Err(bad()),
    };
    let (role, which) = match (name.strip_prefix("last_"), which) {
        (Some(role), None) => (role, Some(-1)),
        (None, which) => (name, which),
        (Some(_), Some(_)) => return Err(bad()),
    };
    // What begins with a digit or a sign is a number gone wrong.
    match role.chars().next() {
        Some(first) if first.is_alphabetic() => Ok(Part::Message { role: role.to_string(), which, tokens }),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(written: &str) -> Result<Index> {
        let labels: Vec<String> =
            ["<s>", "Be", " good", "In", " Paris", "?", "<e>", "Yes", ",", " Paris", "<e>", "Why"]
                .map(Into::into)
                .into();
        let span = |role: &str, tokens| MessageSpan { role: role.into(), tokens };
        let messages = [
            span("system", Some(1..3)),
            span("user", Some(3..6)),
            span("assistant", Some(7..10)),
            span("user", Some(11..12)),
            span("tool", None),
        ];
        written.parse::<NamedPositions>()?.resolve(&PromptTokens { labels: &labels, messages: &messages })
    }

    #[test]
    fn an_index_is_that_index() {
        for text in ["last", "-1", "3", "2..5", "..3", "-3..", "1,4", "all", "generated", "99", "-99"] {
            assert_eq!(resolve(text).unwrap(), text.parse::<Index>().unwrap(), "{text}");
        }
    }

    #[test]
    fn names_and_their_positions() {
        for (text, expected) in [
            ("user", "3,4,5,11"),
            ("user[0]", "3..6"),
            ("user[-2]", "3..6"),
            ("last_user", "11"),
            ("assistant[0]", "7..10"),
            ("assistant[-1].last", "9"),
            ("last_assistant.first", "7"),
            ("user.last", "5,11"),
            ("system", "1..3"),
            ("message[2]", "7..10"),
            ("token:\" Paris\"", "4,9"),
            ("token[0]:\" Paris\"", "4"),
            ("token[-1]:\" Paris\"", "9"),
            ("token:\"\\u003cs>\"", "0"),
            ("system + last", "1,2,11"),
            ("0+-1+2..4", "0,2,3,11"),
            ("user[0]+token:\"?\"+5", "3..6"),
            ("0+all", "0..12"),
            ("1..1+3", "3"),
        ] {
            assert_eq!(resolve(text).unwrap(), expected.parse::<Index>().unwrap(), "{text}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        for (text, parts) in [
            ("user[2]", vec!["1 system message, 2 user messages, 1 assistant message, 1 tool message"]),
            ("developer", vec!["1 system message"]),
            ("tool", vec!["message 4 (tool) has no text"]),
            ("message", vec!["message 4 (tool) has no text"]),
            ("token:\" paris\"", vec!["no token is \" paris\"", "\" Paris\""]),
            ("token[2]:\" Paris\"", vec!["only 2"]),
            ("token: Paris", vec!["in double quotes"]),
            ("token", vec!["`token` is neither"]),
            ("user[x]", vec!["`user[x]` is neither"]),
            ("user.middle", vec!["neither an index"]),
            ("last_user[0]", vec!["neither an index"]),
            ("3x", vec!["neither an index"]),
            ("", vec!["`` is neither"]),
            ("user+", vec!["`` is neither"]),
            ("user+generated", vec!["reaches beyond the prompt"]),
            ("user+5..", vec!["reaches beyond the prompt"]),
            ("user+12", vec!["12 is outside of its 12 tokens"]),
        ] {
            let error = resolve(text).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{text}: {error}");
            }
        }
        let labels = ["a".to_string()];
        let plain = PromptTokens { labels: &labels, messages: &[] };
        let error = "user".parse::<NamedPositions>().unwrap().resolve(&plain).unwrap_err().to_string();
        assert!(error.contains("it is no chat"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_what_resolves_lies_in_the_prompt(
            text in r#"(user|last_|token:|" Paris"|tool|\[|\]|-?[0-9]{1,20}|\.\.|\.last|\+|,|all|"|\\|é){0,8}"#
        ) {
            match resolve(&text) {
                Ok(Index::List(list)) if text.contains('+') => {
                    proptest::prop_assert!(list.iter().all(|at| (0..12).contains(at)), "{}", text);
                }
                Ok(_) | Err(Error::Positions { .. }) => {}
                Err(other) => proptest::prop_assert!(false, "{}", other),
            }
        }
    }
}
