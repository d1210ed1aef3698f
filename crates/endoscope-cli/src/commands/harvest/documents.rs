//! The documents of a corpus as token ids.

use std::cell::Cell;

use anyhow::Result;
use endoscope_harvest::{Content, Corpus, Documents, Kind};
use endoscope_models::{Bos, Chat, Clock, GenerationPrompt, Model};

use super::of_document;

/// A model's way from documents to token ids.
pub struct Encoder<'a> {
    pub model: &'a Model,
    pub corpus: &'a Corpus,
    /// The chat template: a name or a file.
    pub template: Option<&'a str>,
}

impl Encoder<'_> {
    /// Refuses at once what would be refused at the first document.
    pub fn check(&self) -> Result<()> {
        if self.corpus.kind() != Kind::Tokens {
            self.model.tokenizer()?;
        }
        if self.corpus.kind() != Kind::Chat && self.template.is_some() {
            anyhow::bail!("--chat-template says how chats are written; the corpus has none");
        }
        Ok(())
    }

    /// The documents from number `from` on; `through` is kept at how much of the corpus has been read.
    pub fn documents<'a>(&'a self, from: u64, through: &'a Cell<f64>) -> endoscope_harvest::Result<Documents<'a>> {
        let documents = self.corpus.documents(from)?;
        Ok(Box::new(documents.map(move |document| {
            let document = document?;
            through.set(document.through);
            self.ids(document.content).map_err(|error| of_document(self.corpus, document.number, format!("{error:#}")))
        })))
    }

    fn ids(&self, content: Content) -> Result<Vec<u32>> {
        match content {
            Content::Tokens(ids) => Ok(ids),
            // What is put before sequences and between documents is decided where they are packed.
            Content::Text(text) => match self.model.tokenizer()?.encode(&text, Bos::Omit) {
                Ok(encoded) => Ok(encoded.ids),
                Err(_) if text.trim().is_empty() => Ok(Vec::new()),
                Err(error) => Err(error.into()),
            },
            Content::Chat(messages) => {
                let chat = Chat::parse(&messages.to_string())?;
                let tokenizer = self.model.tokenizer()?;
                // A template that names the day gets the same one whenever the harvest goes on.
                let day = Clock::At(jiff::civil::date(2024, 7, 26).at(0, 0, 0, 0));
                Ok(tokenizer.encode_chat(&chat, self.template, GenerationPrompt::Omit, day)?.ids)
            }
        }
    }
}
