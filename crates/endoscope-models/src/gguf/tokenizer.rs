//! The tokenizer in a GGUF file's metadata, as the tokenizer.json that says the same.
//!
//! llama.cpp runs these with code of its own; here the metadata become what the tokenizers library reads: byte-level BPE
//! with the splitting that `tokenizer.ggml.pre` names, or SentencePiece's BPE, whose merges follow from the scores.
//! What the metadata do not hold is lost: whether a special token swallows blanks beside it.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value as Json, json};

use super::file::Value;

/// The longest token, in bytes: finding the merges of one takes time that grows with its square.
const LONGEST_TOKEN: usize = 1 << 10;

/// What `tokenizer.ggml.token_type` says of a token.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// What is known of a tokenizer.
#[derive(Debug, Clone)]
pub struct Described {
    /// The text of its tokenizer.json.
    pub json: String,
    /// The beginning-of-sequence token.
    pub bos: Option<u32>,
    /// Whether it stands before every text.
    pub prepends_bos: bool,
}

/// The tokenizer that metadata describe, none if they describe none; or why it cannot be built.
pub fn described(metadata: &BTreeMap<String, Value>) -> Result<Option<Described>, String> {
    let metadata = Metadata(metadata);
    let Some(kind) = metadata.text("tokenizer.ggml.model")? else { return Ok(None) };
    let vocabulary = Vocabulary::of(metadata)?;
    let (json, prepends_bos) = match kind {
        "gpt2" => byte_level(metadata, &vocabulary)?,
        "llama" => sentence_piece(metadata, &vocabulary)?,
        other => {
            return Err(format!("`tokenizer.ggml.model` is {other:?}; supported are \"gpt2\" and \"llama\""));
        }
    };
    let bos = metadata.integer("tokenizer.ggml.bos_token_id")?.and_then(|id| u32::try_from(id).ok());
    let prepends_bos = metadata.switch("tokenizer.ggml.add_bos_token")?.unwrap_or(prepends_bos) && bos.is_some();
    Ok(Some(Described { json: json.to_string(), bos, prepends_bos }))
}

/// The special tokens and the chat templates that metadata hold, in the form of a tokenizer_config.json.
pub fn configuration(metadata: &BTreeMap<String, Value>) -> Json {
    let token = |id: &str| match (metadata.get(id)?, metadata.get("tokenizer.ggml.tokens")?) {
        (&Value::Integer(id), Value::Texts(tokens)) => tokens.get(usize::try_from(id).ok()?),
        _ => None,
    };
    let mut config = serde_json::Map::new();
    for (key, name) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")] {
        if let Some(token) = token(&format!("tokenizer.ggml.{key}_token_id")) {
            config.insert(format!("{name}_token"), token.as_str().into());
        }
    }
    // One a key: the key's rest is the name.
    let templates =
        metadata.iter().filter_map(|(key, value)| match (key.strip_prefix("tokenizer.chat_template")?, value) {
            ("", Value::Text(template)) => Some(("default".to_string(), Json::from(template.as_str()))),
            (name, Value::Text(template)) => Some((name.strip_prefix('.')?.to_string(), template.as_str().into())),
            _ => None,
        });
    config.insert("chat_template".into(), Json::Object(templates.collect()));
    config.into()
}

#[derive(Clone, Copy)]
struct Metadata<'a>(&'a BTreeMap<String, Value>);

impl<'a> Metadata<'a> {
    fn get<T>(self, key: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| format!("`{key}` is no {kind}")),
        }
    }

    fn text(self, key: &str) -> Result<Option<&'a str>, String> {
        self.get(key, "text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    fn switch(self, key: &str) -> Result<Option<bool>, String> {
        self.get(key, "switch", |value| match value {
            Value::Switch(switch) => Some(*switch),
            _ => None,
        })
    }

    fn integer(self, key: &str) -> Result<Option<i64>, String> {
        self.get(key, "whole number", |value| match value {
            Value::Integer(number) => Some(*number),
            _ => None,
        })
    }

    fn texts(self, key: &str) -> Result<&'a [String], String> {
        let texts = self.get(key, "list of texts", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })?;
        texts.ok_or_else(|| format!("`{key}` is missing"))
    }
}

/// The tokens in the order of their ids.
struct Vocabulary<'a> {
    tokens: &'a [String],
    ids: HashMap<&'a str, usize>,
    /// One a token; empty if all are normal.
    kinds: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    fn of(metadata: Metadata<'a>) -> Result<Self, String> {
        let tokens = metadata.texts("tokenizer.ggml.tokens")?;
        let kinds = metadata.get("tokenizer.ggml.token_type", "list of whole numbers", |value| match value {
            Value::Integers(kinds) => Some(kinds.as_slice()),
            _ => None,
        })?;
        let kinds = kinds.unwrap_or_default();
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            return Err(format!("there are {} tokens, but {} types of tokens", tokens.len(), kinds.len()));
        }
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(before) = ids.insert(token.as_str(), id) {
                return Err(format!("the tokens {before} and {id} are the same text"));
            }
            if token.len() > LONGEST_TOKEN {
                return Err(format!("token {id} has {} bytes; at most {LONGEST_TOKEN} are supported", token.len()));
            }
        }
        Ok(Self { tokens, ids, kinds })
    }

    fn kind(&self, id: usize) -> i64 {
        self.kinds.get(id).copied().unwrap_or(1)
    }

    fn json(&self) -> Json {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), Json::from(id))).collect()
    }

    /// Tokens that are found in a text before it is split.
    fn added(&self, normalized: bool) -> Json {
        let added = self.tokens.iter().enumerate().filter_map(|(id, token)| {
            let special = match self.kind(id) {
                CONTROL | UNKNOWN => true,
                USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": normalized && !special, "special": special,
            }))
        });
        added.collect()
    }
}

/// A tokenizer.json of these parts.
fn assembled(added: Json, normalizer: Json, pre_tokenizer: Json, model: Json, decoder: Json) -> Json {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    })
}

/// How texts are split before merging, by the name that llama.cpp's converter gives to it.
struct Splitting {
    names: &'static [&'static str],
    nfc: bool,
    /// A regular expression; none for GPT-2's.
    pattern: Option<&'static str>,
    /// Whether digits are cut apart first.
    digits: bool,
    /// Whether a piece that is a token is taken whole, and BOS stands before every text: Llama 3 alone.
    llama3: bool,
}

const SPLITTINGS: &[Splitting] = &[
    Splitting { names: &["gpt-2", "phi-2"], nfc: false, pattern: None, digits: false, llama3: false },
    Splitting { names: &["olmo"], nfc: true, pattern: None, digits: false, llama3: false },
    Splitting { names: &["smollm", "starcoder"], nfc: false, pattern: None, digits: true, llama3: false },
    Splitting {
        names: &["llama-bpe", "llama3", "llama-v3"],
        nfc: false,
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        digits: false,
        llama3: true,
    },
    Splitting {
        names: &["qwen2"],
        nfc: true,
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        digits: false,
        llama3: false,
    },
];

impl Splitting {
    fn of(metadata: Metadata) -> Result<&'static Self, String> {
        let name = match metadata.text("tokenizer.ggml.pre")? {
            // Files of GPT-2 from before the key was introduced.
            None | Some("default") if metadata.text("general.architecture")? == Some("gpt2") => "gpt-2",
            None => "(none)",
            Some(name) => name,
        };
        SPLITTINGS.iter().find(|known| known.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = SPLITTINGS.iter().flat_map(|known| known.names).copied().collect();
            format!("`tokenizer.ggml.pre` is {name}; supported are {}", known.join(", "))
        })
    }

    fn pre_tokenizer(&self) -> Json {
        let mut parts = Vec::new();
        if self.digits {
            parts.push(json!({"type": "Digits", "individual_digits": true}));
        }
        if let Some(pattern) = self.pattern {
            let pattern = json!({"Regex": pattern});
            parts.push(json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false}));
        }
        parts.push(json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": self.pattern.is_none(),
        }));
        json!({"type": "Sequence", "pretokenizers": parts})
    }
}

/// Byte-level BPE, and whether BOS is put before a text where nothing says so.
fn byte_level(metadata: Metadata, vocabulary: &Vocabulary) -> Result<(Json, bool), String> {
    let splitting = Splitting::of(metadata)?;
    let merges = metadata.texts("tokenizer.ggml.merges")?;
    let pairs = merges.iter().enumerate().map(|(at, merge)| {
        let blank = merge.char_indices().skip(1).find(|(_, character)| *character == ' ');
        let (at_blank, _) = blank.ok_or_else(|| format!("merge {at}, {merge:?}, is no pair"))?;
        Ok(json!([&merge[..at_blank], &merge[at_blank + 1..]]))
    });
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": splitting.llama3,
        "vocab": vocabulary.json(), "merges": pairs.collect::<Result<Vec<_>, String>>()?,
    });
    let normalizer = if splitting.nfc { json!({"type": "NFC"}) } else { Json::Null };
    let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let json = assembled(vocabulary.added(false), normalizer, splitting.pre_tokenizer(), model, decoder);
    Ok((json, splitting.llama3))
}

/// SentencePiece's BPE with byte fallback, and that BOS is put before a text where nothing says otherwise.
fn sentence_piece(metadata: Metadata, vocabulary: &Vocabulary) -> Result<(Json, bool), String> {
    let scores = metadata.get("tokenizer.ggml.scores", "list of numbers", |value| match value {
        Value::Floats(scores) => Some(scores.as_slice()),
        _ => None,
    })?;
    let scores = scores.ok_or("`tokenizer.ggml.scores` is missing")?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(format!("there are {} tokens, but {} scores", vocabulary.tokens.len(), scores.len()));
    }
    let prefixed = metadata.switch("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unknown = (0..vocabulary.tokens.len()).find(|&id| vocabulary.kind(id) == UNKNOWN);
    let unknown = unknown.map(|id| vocabulary.tokens[id].as_str());
    let blanks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let normalizer = match prefixed {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, blanks]}),
        false => blanks,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefixed {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": vocabulary.json(), "merges": merges(vocabulary, scores),
    });
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    // With a prefix the library would put one before such a token too.
    Ok((assembled(vocabulary.added(!prefixed), normalizer, Json::Null, model, decoder), true))
}

/// Every pair of tokens that make up a third, the best third first: SentencePiece merges the pair whose whole has the
/// highest score, wherever it stands.
fn merges<'a>(vocabulary: &Vocabulary<'a>, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    let mut wholes: Vec<usize> =
        (0..vocabulary.tokens.len()).filter(|&id| !matches!(vocabulary.kind(id), UNKNOWN | CONTROL)).collect();
    wholes.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let pairs = wholes.into_iter().flat_map(|id| {
        let whole = vocabulary.tokens[id].as_str();
        let cuts = whole.char_indices().skip(1).map(move |(at, _)| whole.split_at(at));
        let mut pairs: Vec<(usize, usize, &str, &str)> = cuts
            .filter_map(|(left, right)| Some((*vocabulary.ids.get(left)?, *vocabulary.ids.get(right)?, left, right)))
            .collect();
        pairs.sort_unstable();
        pairs
    });
    pairs.map(|(.., left, right)| (left, right)).collect()
}
