//! Messages, as OpenAI's interface writes them.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A conversation, and what else its template is given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chat {
    /// The messages, at least one.
    pub messages: Vec<Message>,
    /// Functions that the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// Documents that the model may quote.
    pub documents: Option<Vec<Value>>,
    /// Further variables of the template, such as `enable_thinking`.
    pub arguments: Map<String, Value>,
}

/// One message. Every field that it has reaches the template, whether it is known here or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    role: String,
    fields: Map<String, Value>,
}

/// A request with more than messages.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    messages: Vec<Map<String, Value>>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    documents: Option<Vec<Value>>,
    #[serde(default)]
    chat_template_kwargs: Map<String, Value>,
}

/// What the template gets from us under these names cannot be an argument too.
const OURS: &[&str] = &["messages", "tools", "documents", "add_generation_prompt"];

/// Names under which a model's reasoning is passed; the first is the one that templates read.
const REASONING: &[&str] = &["reasoning_content", "thinking", "reasoning"];

impl Chat {
    /// A conversation of these messages alone.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// Reads a list of messages, or an object with `messages` and perhaps `tools`, `documents` and
    /// `chat_template_kwargs`.
    pub fn parse(text: &str) -> Result<Self> {
        let fail = |reason: String| Error::Chat(reason);
        let value: Value = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        let request = match value {
            Value::Array(_) => {
                let messages = serde_json::from_value(value).map_err(|error| fail(error.to_string()))?;
                Request { messages, tools: None, documents: None, chat_template_kwargs: Map::new() }
            }
            Value::Object(_) => serde_json::from_value(value).map_err(|error| fail(error.to_string()))?,
            _ => return Err(fail("it is neither a list of messages nor an object with `messages`".into())),
        };
        if request.messages.is_empty() {
            return Err(fail("it has no messages".into()));
        }
        let message = |(number, fields)| {
            Message::from_fields(fields).map_err(|reason| fail(format!("message {number}: {reason}")))
        };
        let messages = request.messages.into_iter().enumerate().map(message).collect::<Result<_>>()?;
        let arguments = request.chat_template_kwargs;
        if let Some(name) = OURS.iter().find(|&&name| arguments.contains_key(name)) {
            return Err(fail(format!("`{name}` stands in chat_template_kwargs; the template gets it from the chat")));
        }
        Ok(Self { messages, tools: request.tools, documents: request.documents, arguments })
    }
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let (role, content) = (role.into(), content.into());
        let fields = [("role", role.clone()), ("content", content)];
        Self { role, fields: fields.into_iter().map(|(key, value)| (key.to_string(), value.into())).collect() }
    }

    /// A message of these fields. Those that are null are left out, as transformers does: many templates would write
    /// `None`.
    pub fn from_fields(mut fields: Map<String, Value>) -> std::result::Result<Self, String> {
        fields.retain(|_, value| !value.is_null());
        let role = match fields.get("role") {
            Some(Value::String(role)) if !role.is_empty() => role.clone(),
            Some(other) => return Err(format!("its role is {other}, not a name such as \"user\"")),
            None => return Err("it has no role".into()),
        };
        match fields.get("content") {
            None | Some(Value::String(_)) => {}
            Some(Value::Array(parts)) if parts.iter().all(|part| part.is_object() || part.is_string()) => {}
            Some(_) => return Err("its content is neither a text nor a list of parts".into()),
        }
        Ok(Self { role, fields })
    }

    /// Who speaks: system, user, assistant, tool, or what else the template knows.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// What is said: the text, or the texts of the parts one after the other; `None` if there is nothing but blanks.
    pub fn text(&self) -> Option<String> {
        let text = match self.fields.get("content")? {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().filter_map(part_text).collect(),
            _ => String::new(),
        };
        Some(text).filter(|text| !text.trim().is_empty())
    }

    /// What the template gets: the fields, the reasoning under each of the names that templates know.
    pub(super) fn value(&self) -> Value {
        let Some(reasoning) = REASONING.iter().find_map(|&name| self.fields.get(name)).cloned() else {
            return Value::Object(self.fields.clone());
        };
        let mut fields = Map::new();
        fields.insert("thinking".into(), reasoning.clone());
        fields.extend(self.fields.clone());
        fields.insert("reasoning_content".into(), reasoning);
        Value::Object(fields)
    }

    /// This message with `open` before and `close` behind what is said, inside any blanks at its ends (a template may
    /// trim these); `None` if nothing is said.
    pub(super) fn marked(&self, open: char, close: char) -> Option<Self> {
        self.text()?;
        let mut marked = self.clone();
        match marked.fields.get_mut("content")? {
            Value::String(text) => {
                insert_before(text, open);
                insert_behind(text, close);
            }
            Value::Array(parts) => {
                let said = |part: &&mut Value| part_text(part).is_some_and(|text| !text.trim().is_empty());
                insert_before(text_of(parts.iter_mut().find(said)?)?, open);
                insert_behind(text_of(parts.iter_mut().rev().find(said)?)?, close);
            }
            _ => return None,
        }
        Some(marked)
    }
}

fn part_text(part: &Value) -> Option<&str> {
    part.as_str().or_else(|| part.get("text")?.as_str())
}

fn text_of(part: &mut Value) -> Option<&mut String> {
    match part {
        Value::String(text) => Some(text),
        Value::Object(fields) => match fields.get_mut("text")? {
            Value::String(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Also behind each closing tag, where a template may cut: `<think>…</think>` before an answer.
fn insert_before(text: &mut String, mark: char) {
    let mut marked = String::with_capacity(text.len() + mark.len_utf8());
    let mut rest = text.as_str();
    while let Some((before, from)) = rest.split_once("</") {
        push_marked(&mut marked, before, mark, rest.len() == text.len());
        let end = from.find('>').map_or(from.len(), |end| end + 1);
        marked.push_str("</");
        marked.push_str(&from[..end]);
        rest = &from[end..];
        let behind = rest.trim_start();
        if !behind.is_empty() && !behind.starts_with("</") {
            let blanks = rest.len() - behind.len();
            marked.push_str(&rest[..blanks]);
            marked.push(mark);
            rest = behind;
        }
    }
    push_marked(&mut marked, rest, mark, rest.len() == text.len());
    *text = marked;
}

/// Pushes a text, with the mark at its first word if it is the beginning.
fn push_marked(marked: &mut String, text: &str, mark: char, beginning: bool) {
    let words = text.trim_start();
    if beginning {
        marked.push_str(&text[..text.len() - words.len()]);
        marked.push(mark);
        marked.push_str(words);
    } else {
        marked.push_str(text);
    }
}

fn insert_behind(text: &mut String, mark: char) {
    text.insert(text.trim_end().len(), mark);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_are_read_and_unknown_fields_of_messages_kept() {
        let list = r#"[{"role": "user", "content": "hi", "mood": {"joy": 1}, "name": null}]"#;
        let chat = Chat::parse(list).unwrap();
        assert_eq!(chat.messages[0].value(), json!({"role": "user", "content": "hi", "mood": {"joy": 1}}));
        let request = format!(
            r#"{{"messages": {list}, "tools": [{{"name": "f"}}], "chat_template_kwargs": {{"enable_thinking": false}}}}"#
        );
        let with_tools = Chat::parse(&request).unwrap();
        assert_eq!(with_tools.messages, chat.messages);
        assert_eq!(with_tools.tools, Some(vec![json!({"name": "f"})]));
        assert_eq!(with_tools.arguments["enable_thinking"], false);
    }

    #[test]
    fn what_is_no_chat_is_refused_by_name() {
        for (text, part) in [
            ("", "EOF"),
            ("3", "neither a list"),
            ("[]", "no messages"),
            ("[3]", "invalid type"),
            (r#"[{"content": "a"}]"#, "message 0: it has no role"),
            (r#"[{"role": "user"}, {"role": 3}]"#, "message 1: its role is 3"),
            (r#"[{"role": "user", "content": 3}]"#, "message 0: its content is neither"),
            (r#"{"messages": [{"role": "user"}], "model": "x"}"#, "unknown field `model`"),
            (r#"{"messages": [{"role": "user"}], "chat_template_kwargs": {"tools": 1}}"#, "`tools` stands in"),
        ] {
            let error = Chat::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn marks_stand_inside_the_blanks() {
        let text = |message: &Message| message.marked('@', ';').map(|marked| marked.fields["content"].clone());
        assert_eq!(text(&Message::new("user", " \n hi there \n")), Some(json!(" \n @hi there; \n")));
        assert_eq!(text(&Message::new("user", " \n ")), None);
        let thinking = Message::new("assistant", "<think>\na b</think></x>\n\nc </d> ");
        assert_eq!(text(&thinking), Some(json!("@<think>\na b</think></x>\n\n@c </d>; ")));
        let parts = json!({"role": "user", "content": [
            {"type": "image"}, {"type": "text", "text": " "}, {"type": "text", "text": "a "}, {"type": "text", "text": " b "}
        ]});
        let message = Message::from_fields(parts.as_object().unwrap().clone()).unwrap();
        let marked = message.marked('<', '>').unwrap();
        assert_eq!(marked.text().unwrap(), " <a  b> ");
    }

    #[test]
    fn reasoning_is_known_by_each_of_its_names() {
        let mut message = Message::new("assistant", "5");
        message.fields.insert("reasoning".into(), "2 and 3".into());
        let value = message.value();
        for name in ["reasoning", "thinking", "reasoning_content"] {
            assert_eq!(value[name], "2 and 3");
        }
    }
}
