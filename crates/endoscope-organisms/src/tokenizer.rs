//! The tokenizer of a task's words, in Hugging Face's format: words separated by blanks, `<bos>` before every text.

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::task::{BOS, SPECIAL, UNKNOWN};

/// `tokenizer.json` and `tokenizer_config.json` of `words` (by id, the special tokens first), for sequences of up to
/// `context` tokens.
pub fn tokenizer_files(words: &[String], context: usize) -> Result<Vec<(String, Vec<u8>)>> {
    let (bos, unknown) = (SPECIAL[BOS as usize], SPECIAL[UNKNOWN as usize]);
    let vocabulary: Map<String, Value> = words.iter().enumerate().map(|(id, word)| (word.clone(), id.into())).collect();
    let added = SPECIAL.iter().enumerate().map(|(id, token)| {
        json!({
            "id": id,
            "content": token,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": true,
        })
    });
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(bos), sequence("A")],
            "pair": [special(bos), sequence("A"), sequence("B")],
            "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown},
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "unk_token": unknown,
        "add_bos_token": true,
        "clean_up_tokenization_spaces": false,
        "model_max_length": context,
    });
    let file = |name: &str, value: &Value| -> Result<(String, Vec<u8>)> {
        Ok((name.to_string(), (serde_json::to_string_pretty(value)? + "\n").into_bytes()))
    };
    Ok(vec![file("tokenizer.json", &tokenizer)?, file("tokenizer_config.json", &config)?])
}
