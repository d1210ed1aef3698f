//! Prompt files, and their pairs as tokens.
#![no_main]

use endoscope_causal::{Answers, Encode, Pairs, parse_prompts};
use libfuzzer_sys::fuzz_target;

/// Bytes are tokens.
struct Bytes;

impl Encode for Bytes {
    fn prompt(&self, text: &str) -> Result<Vec<u32>, String> {
        if text.is_empty() { Err("empty".into()) } else { Ok(text.bytes().map(u32::from).collect()) }
    }
    fn answer(&self, text: &str) -> Result<(u32, bool), String> {
        let ids = self.prompt(text)?;
        Ok((ids[0], ids.len() > 1))
    }
    fn label(&self, id: u32) -> String {
        format!("{id}")
    }
}

fuzz_target!(|text: &str| {
    let Ok(written) = parse_prompts(text) else { return };
    assert!(!written.is_empty());
    for needed in [Answers::None, Answers::Right, Answers::RightAndWrong] {
        if let Ok(pairs) = Pairs::encode(&written, &Bytes, needed) {
            assert!(pairs.pairs.iter().all(|pair| pair.clean.len() == pair.corrupt.len() && !pair.clean.is_empty()));
        }
    }
});
