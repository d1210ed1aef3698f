//! The tokenizer gives back what it is given, and gives nothing that the model has no embedding for.

use super::Assertion;
use super::ledger::Ledger;
use crate::error::Result;
use crate::model::Model;
use crate::tokenizer::{Bos, Tokenizer};

/// Texts in which tokenizers differ: blanks, lines, digits, code, scripts, signs outside the basic plane.
pub(super) const SAMPLES: [&str; 10] = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The year 1999 was followed by 2000; 3.14159 and 1,234,567 are numbers.",
    "def square(x):\n    return x * x  # two blanks before\n\nprint(square(12))",
    "two  blanks, three   blanks, a\ttab",
    "first line\nsecond line\r\n\n\nlast line",
    "Straße, naïve café, Ångström, Ελληνικά, Русский язык",
    "日本語の文章と한국어 문장。",
    "🙂 and 👩‍🔬 and 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "it's don't we'll \"quoted\" (nested [brackets] {here}) a/b\\c",
    "x",
];

/// How many tokens a text out of the tokenizer's own vocabulary has.
const OWN: usize = 24;

/// Checks the model's tokenizer, if it has one.
pub(super) fn check(model: &Model, ledger: &mut Ledger) -> Result<()> {
    let Some(tokenizer) = &model.tokenizer else {
        for assertion in [Assertion::RoundTrip, Assertion::BeginningOfSequence, Assertion::Vocabulary] {
            ledger.note(assertion, "the model has no tokenizer".into());
        }
        return Ok(());
    };
    vocabulary(model.spec().vocabulary, tokenizer, ledger);
    let own = own_text(tokenizer)?;
    let mut outside = 0;
    for text in SAMPLES.into_iter().chain(own.as_deref()) {
        match round_trip(tokenizer, text)? {
            Trip::Same => ledger.measure(Assertion::RoundTrip, "", 0.),
            Trip::Outside if own.as_deref() == Some(text) => {
                ledger.measure(Assertion::RoundTrip, "", 1.);
                ledger
                    .note(Assertion::RoundTrip, format!("{text:?}, made of its own tokens, becomes the unknown token"));
            }
            Trip::Outside => outside += 1,
            Trip::Other(back) => {
                ledger.measure(Assertion::RoundTrip, "", 1.);
                ledger.note(Assertion::RoundTrip, format!("{text:?} becomes {back:?}"));
            }
        }
    }
    if outside > 0 {
        let all = SAMPLES.len() + usize::from(own.is_some());
        let note = format!("{outside} of {all} texts hold what the tokenizer has no token for, and are left out");
        ledger.note(Assertion::RoundTrip, note);
    }
    beginning(tokenizer, own.as_deref().unwrap_or(SAMPLES[0]), ledger)
}

/// What becomes of a text that is encoded and decoded.
enum Trip {
    /// Nothing, but for a blank that the tokenizer puts before every text, and for what its normaliser makes equal.
    Same,
    /// Its unknown token is in it.
    Outside,
    /// This.
    Other(String),
}

fn round_trip(tokenizer: &Tokenizer, text: &str) -> Result<Trip> {
    let Ok(encoded) = tokenizer.encode(text, Bos::Omit) else { return Ok(Trip::Outside) };
    if tokenizer.unknown().is_some_and(|unknown| encoded.ids.contains(&unknown)) {
        return Ok(Trip::Outside);
    }
    let back = tokenizer.decode(&encoded.ids)?;
    if back == text || back.strip_prefix(' ') == Some(text) {
        return Ok(Trip::Same);
    }
    Ok(match tokenizer.normalized(&back)? == tokenizer.normalized(text)? {
        true => Trip::Same,
        false => Trip::Other(back),
    })
}

/// A text that the tokenizer can certainly write: what some of its own tokens, evenly chosen, decode to.
fn own_text(tokenizer: &Tokenizer) -> Result<Option<String>> {
    let unknown = tokenizer.unknown();
    let ids: Vec<u32> = tokenizer.vocabulary().into_keys().filter(|&id| Some(id) != unknown).collect();
    let step = ids.len().div_ceil(OWN).max(1);
    let mut chosen: Vec<u32> = ids.into_iter().skip(step / 2).step_by(step).collect();
    // Tokens that are parts of characters need not make characters.
    chosen.retain(|&id| tokenizer.decode(&[id]).is_ok_and(|text| !text.contains('\u{FFFD}')));
    let text = tokenizer.decode(&chosen)?;
    Ok(Some(text).filter(|text| !text.trim().is_empty() && !text.contains('\u{FFFD}')))
}

fn beginning(tokenizer: &Tokenizer, text: &str, ledger: &mut Ledger) -> Result<()> {
    let assertion = Assertion::BeginningOfSequence;
    let Some((bos, token)) = tokenizer.bos.as_ref().filter(|_| tokenizer.prepends_bos) else {
        ledger.note(assertion, "none is put before a text".into());
        return Ok(());
    };
    let with = tokenizer.encode(text, Bos::AsConfigured)?.ids;
    let without = tokenizer.encode(text, Bos::Omit)?.ids;
    let right = with.split_first().is_some_and(|(first, rest)| first == bos && rest == without)
        && tokenizer.decode(&with)? == tokenizer.decode(&without)?;
    ledger.measure(assertion, "", if right { 0. } else { 1. });
    ledger.note(assertion, format!("{token} (id {bos}) is put before a text, and left out where ids become text"));
    Ok(())
}

/// Tokens beyond the embedding's rows.
fn vocabulary(rows: usize, tokenizer: &Tokenizer, ledger: &mut Ledger) {
    let all = tokenizer.vocabulary();
    let beyond: Vec<String> =
        all.iter().filter(|(id, _)| **id as usize >= rows).map(|(id, token)| format!("{token:?} ({id})")).collect();
    ledger.measure(Assertion::Vocabulary, "", beyond.len() as f64);
    ledger.note(Assertion::Vocabulary, format!("{} tokens, {rows} embeddings", all.len()));
    if !beyond.is_empty() {
        let more = beyond.len().saturating_sub(5);
        let shown = beyond[..beyond.len() - more].join(", ");
        ledger.note(Assertion::Vocabulary, format!("without an embedding: {shown} and {more} more"));
    }
}
