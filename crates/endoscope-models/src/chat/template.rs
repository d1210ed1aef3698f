//! Chat templates: found beside the tokenizer, rendered as transformers' `apply_chat_template` renders them, within
//! bounds.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::Value as Json;

use super::message::Chat;
use super::{assigned, python, tags};
use crate::error::{Error, Result};

/// The most bytes that a template may write: far more than any context holds.
pub(super) const LONGEST: usize = 1 << 23;

/// The work that a template may do: for itself, for each message, and for each byte of the chat. A unit is an instruction
/// or up to 64 bytes made; real templates take some hundred a message.
const FUEL: u64 = 1 << 20;
const FUEL_OF_MESSAGE: u64 = 1 << 12;
const FUEL_OF_BYTE: u64 = 4;

/// The most bytes of a template's source; the longest known are a tenth of it.
const LONGEST_SOURCE: usize = 1 << 18;

/// The stack that a template is rendered on: values nest as deep as its source and its recursion, and each level is a few
/// calls when a value is written or let go.
const STACK: usize = 1 << 26;

/// The special tokens that a template may name.
const SPECIAL_TOKENS: &[&str] =
    &["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Whether a template shall open the turn of the assistant at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GenerationPrompt {
    /// Yes, so that the model answers.
    #[default]
    Add,
    /// No.
    Omit,
}

/// What a template is told of the time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The system's local time, as transformers tells it.
    #[default]
    System,
    /// Always this time, so that a prompt repeats.
    At(DateTime),
}

/// The chat templates of a model by name; most models have one, `default`.
#[derive(Debug, Clone, Default)]
pub struct ChatTemplates {
    directory: PathBuf,
    sources: BTreeMap<String, Source>,
    special_tokens: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    text: String,
}

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    path: PathBuf,
}

impl ChatTemplates {
    /// Reads the templates of a directory whose tokenizer_config.json holds `config`, and adds the files read to `files`.
    ///
    /// As in transformers, `chat_template.jinja` and `additional_chat_templates/NAME.jinja` win over `chat_template` of
    /// the configuration, which is a text or a list of `{name, template}`; last comes `chat_template.json`.
    pub(crate) fn read(directory: &Path, config: &Json, files: &mut Vec<PathBuf>) -> Result<Self> {
        let special_tokens = special_tokens(directory, config, files)?;
        let mut sources = BTreeMap::new();
        let mut of_file = |name: String, path: PathBuf| -> Result<()> {
            let text = std::fs::read_to_string(&path).map_err(|error| Error::read(&path, error))?;
            files.push(path.clone());
            sources.insert(name, Source { path, text });
            Ok(())
        };
        let jinja = directory.join("chat_template.jinja");
        if jinja.is_file() {
            of_file("default".into(), jinja)?;
        }
        for path in jinja_files(&directory.join("additional_chat_templates")) {
            if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
                of_file(name.to_string(), path)?;
            }
        }
        let json = directory.join("chat_template.json");
        if sources.is_empty() {
            sources = written(config, &directory.join("tokenizer_config.json"))?;
        }
        if sources.is_empty() && json.is_file() {
            let text = std::fs::read_to_string(&json).map_err(|error| Error::read(&json, error))?;
            let value: Json = serde_json::from_str(&text).map_err(|error| Error::read(&json, error))?;
            sources = written(&value, &json)?;
            files.push(json);
        }
        Ok(Self { directory: directory.to_path_buf(), sources, special_tokens })
    }

    /// The templates that `config`, which stands in the file `path`, holds in the form of a tokenizer_config.json.
    pub(crate) fn of(config: &Json, path: &Path) -> Result<Self> {
        let special_tokens = named_tokens(config).collect();
        Ok(Self { directory: path.to_path_buf(), sources: written(config, path)?, special_tokens })
    }

    /// The names of the templates that there are, in order.
    pub fn names(&self) -> Vec<&str> {
        self.sources.keys().map(String::as_str).collect()
    }

    /// A token that templates may name, such as `eos_token`, if the configuration says which it is.
    pub(crate) fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.get(name).map(String::as_str)
    }

    /// The template of that name, or of that file if the name ends in `.jinja`; without one, `tool_use` for a chat with
    /// tools if there is one, else `default`, else the only one.
    pub fn choose(&self, name: Option<&str>, chat: &Chat) -> Result<ChatTemplate> {
        if let Some(path) = name.filter(|name| name.ends_with(".jinja")).map(Path::new) {
            let text = std::fs::read_to_string(path).map_err(|error| Error::read(path, error))?;
            return ChatTemplate::new(&text, self.special_tokens.clone(), path);
        }
        let chosen = match name {
            Some(name) => self.sources.get(name),
            None => (chat.tools.is_some().then(|| self.sources.get("tool_use")).flatten())
                .or_else(|| self.sources.get("default"))
                .or_else(|| (self.sources.len() == 1).then(|| self.sources.values().next()).flatten()),
        };
        let source = chosen.ok_or_else(|| Error::NoChatTemplate {
            path: self.directory.clone(),
            name: name.map(str::to_string),
            advice: match self.sources.is_empty() {
                true => {
                    "give the one that it was trained with (--chat-template FILE.jinja), or the prompt as a text that \
                         is written as the model expects it"
                        .into()
                }
                false => format!("there are: {} (--chat-template NAME)", self.names().join(", ")),
            },
        })?;
        ChatTemplate::new(&source.text, self.special_tokens.clone(), &source.path)
    }
}

impl ChatTemplate {
    /// Compiles a template; `path` is where it stands, for errors.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>, path: &Path) -> Result<Self> {
        let fail = |error: minijinja::Error| Error::ChatTemplate { path: path.to_path_buf(), reason: reason(&error) };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(fail)?;
        environment.set_syntax(syntax);
        python::install(&mut environment);
        assigned::install(&mut environment);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
            },
        );
        if source.len() > LONGEST_SOURCE {
            let reason = format!("it is {} bytes long; templates are read up to {LONGEST_SOURCE}", source.len());
            return Err(Error::ChatTemplate { path: path.to_path_buf(), reason });
        }
        environment.add_template_owned("chat", tags::rewritten(source)).map_err(fail)?;
        Ok(Self { environment, special_tokens, path: path.to_path_buf() })
    }

    /// The text of a chat: what transformers' `apply_chat_template(…, tokenize=False)` gives.
    pub fn render(&self, chat: &Chat, prompt: GenerationPrompt, clock: Clock) -> Result<String> {
        self.render_within(chat, prompt, clock, &mut fuel_for(chat))
    }

    /// The same with at most `fuel` units of work, of which it takes what it needed.
    pub(super) fn render_within(
        &self,
        chat: &Chat,
        prompt: GenerationPrompt,
        clock: Clock,
        fuel: &mut u64,
    ) -> Result<String> {
        std::thread::scope(|scope| {
            let render = || self.render_here(chat, prompt, clock, fuel);
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, render);
            let rendered = thread.map_err(|error| self.fail(format!("no thread to render it on: {error}")))?.join();
            rendered.unwrap_or_else(|_| Err(self.fail("the renderer gave up".into())))
        })
    }

    fn render_here(&self, chat: &Chat, prompt: GenerationPrompt, clock: Clock, fuel: &mut u64) -> Result<String> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(*fuel));
        let mut written = Bounded(Vec::new());
        let rendered = environment
            .get_template("chat")
            .and_then(|template| template.render_captured_to(self.context(chat, prompt, clock), &mut written))
            .map(|rendered| rendered.state().fuel_levels());
        match rendered {
            Ok(levels) => {
                *fuel = levels.map_or(0, |(_, remaining)| remaining);
                String::from_utf8(written.0).map_err(|error| self.fail(error.to_string()))
            }
            Err(error) => {
                *fuel = 0;
                Err(match refusal(&error) {
                    Some(reason) => Error::ChatRefused { path: self.path.clone(), reason },
                    None => self.fail(reason(&error)),
                })
            }
        }
    }

    fn fail(&self, reason: String) -> Error {
        Error::ChatTemplate { path: self.path.clone(), reason }
    }

    /// The variables of the template. Tools and documents that are not there are none, not undefined.
    fn context(&self, chat: &Chat, prompt: GenerationPrompt, clock: Clock) -> Value {
        let messages: Vec<Json> = chat.messages.iter().map(|message| message.value()).collect();
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        variables.extend(self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token))));
        variables.insert("strftime_now", Value::from_function(move |format: &str| strftime(format, clock)));
        variables.extend(chat.arguments.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        variables.insert("messages", Value::from(Serde(messages)));
        variables.insert("tools", Value::from(Serde(&chat.tools)));
        variables.insert("documents", Value::from(Serde(&chat.documents)));
        variables.insert("add_generation_prompt", Value::from(prompt == GenerationPrompt::Add));
        Value::from_pairs(variables)
    }
}

/// The work that the template of a chat may do.
pub(super) fn fuel_for(chat: &Chat) -> u64 {
    let mut bytes = Counter(0);
    for message in &chat.messages {
        // Counting cannot fail.
        let _ = serde_json::to_writer(&mut bytes, &message.value());
    }
    let _ = serde_json::to_writer(&mut bytes, &(&chat.tools, &chat.documents, &chat.arguments));
    let messages = chat.messages.len() as u64;
    FUEL.saturating_add(messages.saturating_mul(FUEL_OF_MESSAGE)).saturating_add(bytes.0.saturating_mul(FUEL_OF_BYTE))
}

struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A text that may not grow beyond [`LONGEST`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(io::Error::other(format!("it writes more than {LONGEST} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `raise_exception` said.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refusal(error: &minijinja::Error) -> Option<String> {
    causes(error).find_map(|cause| cause.downcast_ref::<Refusal>()).map(|refusal| refusal.0.clone())
}

/// An error with its causes and the template's line.
fn reason(error: &minijinja::Error) -> String {
    if causes(error)
        .filter_map(|cause| cause.downcast_ref::<minijinja::Error>())
        .any(|error| error.kind() == ErrorKind::OutOfFuel)
    {
        return "it does too much work for these messages, and was stopped".into();
    }
    let mut texts: Vec<String> =
        causes(error).map(|cause| cause.to_string().replace(" (in chat:", " (line ")).collect();
    texts.dedup();
    texts.join(": ")
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// `datetime.now().strftime(format)`.
fn strftime(format: &str, clock: Clock) -> std::result::Result<String, minijinja::Error> {
    let now = match clock {
        Clock::System => jiff::Zoned::now().datetime(),
        Clock::At(time) => time,
    };
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// The templates that a JSON object holds under `chat_template`.
fn written(config: &Json, path: &Path) -> Result<BTreeMap<String, Source>> {
    let source = |text: &str| Source { path: path.to_path_buf(), text: text.to_string() };
    let unreadable = || Error::read(path, "its chat_template is neither a text nor a list of {name, template}");
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(BTreeMap::new()),
        Some(Json::String(text)) => Ok([("default".to_string(), source(text))].into()),
        Some(Json::Array(list)) => {
            let entry = |entry: &Json| {
                let (name, text) = (entry.get("name")?.as_str()?, entry.get("template")?.as_str()?);
                Some((name.to_string(), source(text)))
            };
            list.iter().map(|value| entry(value).ok_or_else(unreadable)).collect()
        }
        Some(Json::Object(map)) => {
            let entry = |(name, text): (&String, &Json)| Some((name.clone(), source(text.as_str()?)));
            map.iter().map(|pair| entry(pair).ok_or_else(unreadable)).collect()
        }
        Some(_) => Err(unreadable()),
    }
}

/// The special tokens by name. special_tokens_map.json counts where tokenizer_config.json lists no added tokens, as in
/// transformers.
fn special_tokens(directory: &Path, config: &Json, files: &mut Vec<PathBuf>) -> Result<BTreeMap<String, String>> {
    let mut tokens: BTreeMap<String, String> = named_tokens(config).collect();
    let path = directory.join("special_tokens_map.json");
    if config.get("added_tokens_decoder").is_none() && path.is_file() {
        let written = std::fs::read_to_string(&path).map_err(|error| Error::read(&path, error))?;
        let map: Json = serde_json::from_str(&written).map_err(|error| Error::read(&path, error))?;
        tokens.extend(named_tokens(&map));
        files.push(path);
    }
    Ok(tokens)
}

/// The special tokens that a configuration names.
fn named_tokens(config: &Json) -> impl Iterator<Item = (String, String)> {
    let text = |token: &Json| Some(token.as_str().or_else(|| token.get("content")?.as_str())?.to_string());
    SPECIAL_TOKENS.iter().filter_map(move |&name| Some((name.to_string(), text(config.get(name)?)?)))
}

/// The .jinja files of a folder, in order; none if there is no such folder.
fn jinja_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "jinja")).collect();
    files.sort();
    files
}
