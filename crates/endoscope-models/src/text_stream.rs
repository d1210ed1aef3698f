//! Generated text as it becomes certain.

use crate::error::Result;
use crate::model::Model;

/// Text as it becomes certain: no half characters, nothing that may still turn into a stop text.
pub(crate) struct TextStream<'a> {
    model: &'a Model,
    prompt_text: String,
    stop: &'a [String],
    text: String,
    emitted: usize,
    fresh: (usize, usize),
}

impl<'a> TextStream<'a> {
    pub fn new(model: &'a Model, prompt: &[u32], stop: &'a [String]) -> Result<Self> {
        let prompt_text = match &model.tokenizer {
            Some(tokenizer) => tokenizer.decode(prompt)?,
            None => String::new(),
        };
        Ok(Self { model, prompt_text, stop, text: String::new(), emitted: 0, fresh: (0, 0) })
    }

    /// Reads the whole sequence again (a token's text may depend on its neighbours); true if a stop text appeared.
    pub fn push(&mut self, sequence: &[u32]) -> Result<bool> {
        let Some(tokenizer) = &self.model.tokenizer else { return Ok(false) };
        let whole = tokenizer.decode(sequence)?;
        self.text = match whole.strip_prefix(&self.prompt_text) {
            Some(text) => text.to_string(),
            // The prompt ended in half a character: what follows the common part is new.
            None => {
                let common = whole.char_indices().zip(self.prompt_text.chars()).find(|((_, a), b)| a != b);
                common.map_or(String::new(), |((at, _), _)| whole[at..].to_string())
            }
        };
        let stop = self.stop.iter().filter_map(|stop| self.text.find(stop.as_str())).min();
        let certain = match stop {
            Some(at) => {
                self.text.truncate(at);
                at
            }
            None => self.certain(),
        };
        self.fresh = (self.emitted.min(certain), certain);
        self.emitted = self.emitted.max(certain);
        Ok(stop.is_some())
    }

    fn certain(&self) -> usize {
        let whole_characters = self.text.trim_end_matches('\u{FFFD}').len();
        let text = &self.text[..whole_characters];
        let held = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at).skip(1);
            lengths.filter(|&length| text.ends_with(&stop[..length])).max().unwrap_or(0)
        };
        whole_characters - self.stop.iter().map(held).max().unwrap_or(0)
    }

    pub fn fresh(&self) -> &str {
        self.text.get(self.fresh.0..self.fresh.1).unwrap_or("")
    }

    pub fn flush(&mut self) -> Option<&str> {
        let rest = self.text.get(self.emitted..).filter(|rest| !rest.is_empty())?;
        self.emitted = self.text.len();
        Some(rest)
    }

    pub fn finish(self) -> Option<String> {
        self.model.tokenizer.as_ref().map(|_| self.text)
    }
}
