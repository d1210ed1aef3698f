//! A chat by a fuzzed template: messages are found in what it writes, and what it refuses is an error.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;

use endoscope_models::{Chat, ChatTemplate, Clock, GenerationPrompt, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, Vec<(bool, &str)>)| {
    let (source, said) = input;
    let special_tokens = BTreeMap::from([("bos_token".to_string(), "<s>".to_string())]);
    let Ok(template) = ChatTemplate::new(source, special_tokens, Path::new("fuzzed.jinja")) else { return };
    let message = |(user, said): (bool, &str)| Message::new(if user { "user" } else { "assistant" }, said);
    let chat = Chat::new(said.into_iter().map(message).collect());
    match template.render_with_places(&chat, GenerationPrompt::Add, Clock::System) {
        Ok(rendered) => {
            assert_eq!(rendered.messages.len(), chat.messages.len());
            for bytes in rendered.messages.into_iter().filter_map(|message| message.bytes) {
                assert!(!rendered.text[bytes].trim().is_empty());
            }
        }
        Err(error) => assert!(error.to_string().contains("fuzzed.jinja"), "{error}"),
    }
});
