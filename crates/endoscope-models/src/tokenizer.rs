//! Text to token ids and back, with the beginning-of-sequence token always decided in the open.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use tokenizers::{ModelWrapper, NormalizedString, Normalizer};

use crate::chat::{Chat, ChatTemplates, Clock, GenerationPrompt};
use crate::error::{Error, Result};
use crate::gguf::Described;

/// Whether the beginning-of-sequence token is put before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bos {
    /// As the tokenizer's own configuration says.
    #[default]
    AsConfigured,
    /// Yes.
    Prepend,
    /// No.
    Omit,
}

/// A text as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The ids, with what was prepended.
    pub ids: Vec<u32>,
    /// The text of the token that was prepended, if any.
    pub prepended: Option<String>,
}

/// A chat as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChat {
    /// The prompt that the template wrote.
    pub text: String,
    /// Its ids; special tokens that the template wrote are single tokens, and nothing is prepended.
    pub ids: Vec<u32>,
    /// Where each message stands, in the order of the chat.
    pub messages: Vec<MessageSpan>,
}

/// Where a message stands in a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MessageSpan {
    /// Who speaks.
    pub role: String,
    /// The positions of the tokens that hold what is said, without blanks at its ends; a token that holds something else
    /// too counts. `None` if nothing is said, or the template leaves it out.
    pub tokens: Option<Range<usize>>,
}

/// A tokenizer.json with what tokenizer_config.json says of it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    /// The beginning-of-sequence token, if known.
    pub bos: Option<(u32, String)>,
    /// Whether the configuration puts it before every text.
    pub prepends_bos: bool,
    /// The model's chat templates; many models have none.
    pub templates: ChatTemplates,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` (and `tokenizer_config.json` if there) of a directory; `None` if there is none.
    ///
    /// Whether BOS is prepended: `add_bos_token` of the configuration if it is there, else whether the tokenizer's own
    /// post-processor puts its BOS before an empty text.
    pub fn open(directory: &Path, config_bos: Option<u32>) -> Result<Option<Self>> {
        let path = directory.join("tokenizer.json");
        if !path.is_file() {
            return Ok(None);
        }
        let fail = |reason: String| Error::Tokenizer { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
        let inner = parsed(&text).map_err(fail)?;
        let mut files = vec![path.clone()];
        let config_path = directory.join("tokenizer_config.json");
        let config: Value = if config_path.is_file() {
            let text = std::fs::read_to_string(&config_path).map_err(|error| Error::read(&config_path, error))?;
            files.push(config_path.clone());
            serde_json::from_str(&text).map_err(|error| Error::read(&config_path, error))?
        } else {
            Value::Null
        };
        let processed = guarded(|| inner.encode("", true)).map_err(fail)?.get_ids().to_vec();
        let named = config.get("bos_token").and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        let id = named.and_then(|token| inner.token_to_id(token)).or(config_bos).or(processed.first().copied());
        let bos = id.and_then(|id| Some((id, inner.id_to_token(id)?)));
        let prepends_bos = match config.get("add_bos_token").and_then(Value::as_bool) {
            Some(configured) => configured,
            None => bos.as_ref().is_some_and(|(id, _)| processed.first() == Some(id)),
        };
        let templates = ChatTemplates::read(directory, &config, &mut files)?;
        Ok(Some(Self { inner, path, bos, prepends_bos, templates, files }))
    }

    /// The tokenizer that the metadata of a GGUF file describe.
    pub(crate) fn from_gguf(path: &Path, described: &Described) -> Result<Self> {
        let fail = |reason: String| Error::Tokenizer { path: path.to_path_buf(), reason };
        let inner = parsed(&described.json).map_err(fail)?;
        let bos = described.bos.and_then(|id| Some((id, inner.id_to_token(id)?)));
        let prepends_bos = described.prepends_bos && bos.is_some();
        Ok(Self {
            inner,
            path: path.to_path_buf(),
            bos,
            prepends_bos,
            templates: ChatTemplates::default(),
            files: vec![path.to_path_buf()],
        })
    }

    /// The ids of a text. An empty text without BOS is an error, since there is nothing to run.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Encoded> {
        let fail = |reason: String| Error::Tokenizer { path: self.path.clone(), reason };
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(fail)?;
        let mut ids = encoding.get_ids().to_vec();
        let prepend = match bos {
            Bos::AsConfigured => self.prepends_bos,
            Bos::Prepend => true,
            Bos::Omit => false,
        };
        let mut prepended = None;
        if prepend {
            let (id, token) =
                self.bos.clone().ok_or_else(|| fail("no beginning-of-sequence token is known; use --no-bos".into()))?;
            // A text that already spells the token out keeps one.
            if ids.first() != Some(&id) {
                ids.insert(0, id);
                prepended = Some(token);
            }
        }
        match ids.is_empty() {
            true => Err(fail(format!("the text {text:?} has no tokens at all, and no BOS is prepended"))),
            false => Ok(Encoded { ids, prepended }),
        }
    }

    /// The ids of a chat, and where its messages stand in them. `template` is the name of a template, for models that
    /// have several. No BOS is put before it: templates write their own.
    pub fn encode_chat(
        &self,
        chat: &Chat,
        template: Option<&str>,
        prompt: GenerationPrompt,
        clock: Clock,
    ) -> Result<EncodedChat> {
        let rendered = self.templates.choose(template, chat)?.render_with_places(chat, prompt, clock)?;
        let fail = |reason: String| Error::Tokenizer { path: self.path.clone(), reason };
        let encoding = guarded(|| self.inner.encode(rendered.text.as_str(), false)).map_err(fail)?;
        if encoding.is_empty() {
            return Err(fail("the chat has no tokens at all".into()));
        }
        let span = |message: crate::chat::RenderedMessage| MessageSpan {
            role: message.role,
            tokens: message.bytes.and_then(|bytes| covering(encoding.get_offsets(), &bytes)),
        };
        let messages = rendered.messages.into_iter().map(span).collect();
        Ok(EncodedChat { ids: encoding.get_ids().to_vec(), messages, text: rendered.text })
    }

    /// The first token of an answer, and whether there are more. No BOS is ever prepended here.
    pub fn first_token(&self, answer: &str) -> Result<(u32, bool)> {
        let mut ids = self.encode(answer, Bos::Omit)?.ids;
        // SentencePiece puts a blank before every text: one that is written too would become a token of its own.
        if answer.starts_with(' ') && ids.len() > 1 && self.label(ids[0]).trim().is_empty() {
            let bare = self.encode(answer.trim_start(), Bos::Omit)?.ids;
            if self.label(bare[0]).starts_with(' ') {
                ids = bare;
            }
        }
        Ok((ids[0], ids.len() > 1))
    }

    /// The ids of the tokens that stand for no text but for its structure: those that its configuration names as beginning,
    /// end, padding and separator. Markers of a chat are not among them, as in SAELens's `exclude_special_tokens`.
    pub fn structural(&self) -> BTreeSet<u32> {
        let named = ["bos_token", "eos_token", "pad_token", "sep_token"];
        let named = named.into_iter().filter_map(|name| self.inner.token_to_id(self.templates.special_token(name)?));
        self.bos.iter().map(|(id, _)| *id).chain(named).collect()
    }

    /// The text of ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(|reason| Error::Tokenizer { path: self.path.clone(), reason })
    }

    /// A text as the tokenizer's own normaliser leaves it: composed, lower-cased, with marks for blanks, or as it was.
    pub fn normalized(&self, text: &str) -> Result<String> {
        let Some(normalizer) = self.inner.get_normalizer() else { return Ok(text.to_string()) };
        let mut normalized = NormalizedString::from(text);
        guarded(|| normalizer.normalize(&mut normalized))
            .map_err(|reason| Error::Tokenizer { path: self.path.clone(), reason })?;
        Ok(normalized.get().to_string())
    }

    /// Every id that it can give, added tokens too, with the token's own spelling.
    pub fn vocabulary(&self) -> BTreeMap<u32, String> {
        self.inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect()
    }

    /// The id that stands for what it has no token for, if it has one.
    pub fn unknown(&self) -> Option<u32> {
        let token = match self.inner.get_model() {
            ModelWrapper::BPE(model) => model.get_unk_token().clone()?,
            ModelWrapper::WordPiece(model) => model.unk_token.clone(),
            ModelWrapper::WordLevel(model) => model.unk_token.clone(),
            // It has a number and keeps it to itself; its files call it so.
            ModelWrapper::Unigram(_) => "<unk>".to_string(),
        };
        self.inner.token_to_id(&token)
    }

    /// How one token is shown: its text with its leading space.
    pub fn label(&self, id: u32) -> String {
        let Some(token) = self.inner.id_to_token(id) else { return format!("#{id}") };
        // SentencePiece's decoder would strip the leading space of a token that stands alone.
        if token.contains('\u{2581}') {
            return token.replace('\u{2581}', " ");
        }
        if let Some(byte) =
            token.strip_prefix("<0x").and_then(|hex| u8::from_str_radix(hex.strip_suffix('>')?, 16).ok())
        {
            return if byte.is_ascii() { char::from(byte).to_string() } else { token };
        }
        match guarded(|| self.inner.decode(&[id], false)) {
            Ok(text) if !text.is_empty() && !text.contains('\u{FFFD}') => text,
            _ => token,
        }
    }
}

/// The tokens, from the first to the last, that hold some of these bytes.
fn covering(offsets: &[(usize, usize)], bytes: &Range<usize>) -> Option<Range<usize>> {
    let holds = |&(start, end): &(usize, usize)| start < bytes.end && end > bytes.start;
    let first = offsets.iter().position(holds)?;
    let last = offsets.iter().rposition(holds)?;
    Some(first..last + 1)
}

/// The tokenizer of a tokenizer.json.
fn parsed(text: &str) -> std::result::Result<tokenizers::Tokenizer, String> {
    // First as JSON of any kind, whose errors say more than those of the tokenizers' own reader.
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|error| error.to_string())?;
    let mut inner: tokenizers::Tokenizer = guarded(|| text.parse())?;
    // Padding and truncation stored in the file would change the ids of a text.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|error| error.to_string())?;
    Ok(inner)
}

/// Calls the tokenizers library, which panics on some files that it can parse but not use.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match std::panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the tokenizers library failed on it: a part of the file does not fit the others".into()),
    }
}
