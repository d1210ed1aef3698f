//! Chats on the command line, and positions that are named by them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_models::{Chat, Clock, EncodedChat, GenerationPrompt, Message, Model, NamedPositions, PromptTokens};
use endoscope_net::Index;
use serde_json::Value;

/// How a chat becomes a prompt.
#[derive(Debug, Clone, Args)]
pub struct ChatArguments {
    /// What the system message before --user says.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// The chat template: of a model that has several, the name of one [default: `tool_use` for a chat with tools, or
    /// `default`]; or a file.
    #[arg(long, value_name = "NAME|FILE.jinja")]
    chat_template: Option<String>,
    /// End after the last message, instead of opening the assistant's turn.
    #[arg(long)]
    no_generation_prompt: bool,
}

impl ChatArguments {
    /// Refuses what was said of a chat where there is none.
    pub fn refuse(&self) -> Result<()> {
        if self.system.is_some() || self.chat_template.is_some() || self.no_generation_prompt {
            bail!(
                "--system, --chat-template and --no-generation-prompt say how a chat is written; there is none \
                 (--chat, --user)"
            );
        }
        Ok(())
    }

    /// The chat of a file; `-` is standard input.
    pub fn read(&self, path: &Path) -> Result<Chat> {
        if self.system.is_some() {
            bail!("--system goes with --user; the chat of a file has its own system message");
        }
        let text = match path == Path::new("-") {
            true => std::io::read_to_string(std::io::stdin()).context("cannot read the chat from standard input")?,
            false => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read the chat {}", path.display()))?
            }
        };
        Chat::parse(&text).with_context(|| path.display().to_string())
    }

    /// The chat of one message, and --system.
    pub fn of_user(&self, user: &str) -> Chat {
        let system = self.system.as_ref().map(|system| Message::new("system", system));
        Chat::new(system.into_iter().chain([Message::new("user", user)]).collect())
    }

    pub fn encode(&self, model: &Model, chat: &Chat) -> Result<EncodedChat> {
        let prompt = if self.no_generation_prompt { GenerationPrompt::Omit } else { GenerationPrompt::Add };
        Ok(model.tokenizer()?.encode_chat(chat, self.chat_template.as_deref(), prompt, Clock::System)?)
    }
}

/// The axes on which positions have names.
const AXES: &[&str] = &["position", "query", "key"];

/// Puts an index for every name of positions in the JSON of a plan; how many there were.
pub fn replace_names(plan: &mut Value, prompt: &PromptTokens<'_>) -> Result<usize> {
    let mut replaced = 0;
    for list in ["captures", "edits"] {
        let entries = plan.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (number, entry) in entries.enumerate() {
            for axis in AXES {
                let Some(index) = entry.get_mut("select").and_then(|select| select.get_mut(axis)) else { continue };
                let Some(written) = index.as_str().filter(|written| written.parse::<Index>().is_err()) else {
                    continue;
                };
                let resolved = written.parse::<NamedPositions>().and_then(|positions| positions.resolve(prompt));
                let resolved = resolved.with_context(|| format!("{list}[{number}], {axis}"))?;
                *index = serde_json::to_value(resolved)?;
                replaced += 1;
            }
        }
    }
    Ok(replaced)
}

/// What `--positions` means in this prompt; of several prompts, which have none in common, only numbers have a meaning.
pub fn index(written: &str, prompt: Option<&PromptTokens<'_>>) -> Result<Index> {
    if let Ok(index) = written.parse() {
        return Ok(index);
    }
    let positions: NamedPositions = written.parse()?;
    match prompt {
        Some(prompt) => Ok(positions.resolve(prompt)?),
        None => bail!("--positions {written}: names of positions need one prompt; for several, give numbers"),
    }
}
