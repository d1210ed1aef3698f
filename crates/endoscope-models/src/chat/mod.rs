//! Chats: messages, the templates that make a prompt of them, and where each message stands in it.

mod assigned;
mod message;
mod python;
mod spans;
mod tags;
mod template;

pub use message::{Chat, Message};
pub use spans::{Rendered, RenderedMessage};
pub use template::{ChatTemplate, ChatTemplates, Clock, GenerationPrompt};
