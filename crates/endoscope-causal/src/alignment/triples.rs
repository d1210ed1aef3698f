//! Triples: a base prompt, a source prompt, and the answer that is wanted when something of the source is put into the base.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::prompts::{Answers, Encode, Written, check_answers, encode_answers, encode_prompt, parse_json};

/// One entry of a file of triples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenTriple {
    /// The prompt that is changed.
    pub base: Written<Vec<u32>>,
    /// The prompt of equal length whose activations are put into it.
    pub source: Written<Vec<u32>>,
    /// The answers wanted of the changed run.
    pub answers: Vec<Written<u32>>,
    /// The answers that they are compared with.
    #[serde(default)]
    pub wrong_answers: Vec<Written<u32>>,
    /// Which desideratum it belongs to; results are reported for each.
    #[serde(default)]
    pub desideratum: String,
    /// How much it counts in training.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.
}

/// A triple as tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Triple {
    /// The prompt that is changed.
    pub base: Vec<u32>,
    /// The prompt of equal length whose activations are put into it.
    pub source: Vec<u32>,
    /// Ids of the answers wanted of the changed run (each one's first token).
    pub answers: Vec<u32>,
    /// Ids of the answers that they are compared with (each one's first token).
    pub wrong_answers: Vec<u32>,
    /// Which desideratum it belongs to.
    pub desideratum: String,
    /// How much it counts in training.
    pub weight: f64,
}

/// Triples as tokens, with what the reader should be told of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Triples {
    /// The triples.
    pub triples: Vec<Triple>,
    /// Notes such as an answer of several tokens.
    pub notes: Vec<String>,
}

/// Reads the text of a file of triples: JSON with `triples`, a JSON list, or JSON lines.
pub fn parse(text: &str) -> Result<Vec<WrittenTriple>> {
    let triples = parse_json(text.trim_start_matches('\u{FEFF}').trim_start(), "triple")?;
    match triples.is_empty() {
        true => Err(Error::Prompts("the file holds no triples".into())),
        false => Ok(triples),
    }
}

impl Triples {
    /// Tokenizes triples and checks that base and source have equal length and that the answers needed are there.
    pub fn encode(written: &[WrittenTriple], encode: &dyn Encode, needed: Answers) -> Result<Self> {
        let mut notes = Vec::new();
        let mut triples = Vec::with_capacity(written.len());
        for (number, triple) in written.iter().enumerate() {
            let fail = |reason: String| Error::Triple { triple: number, reason };
            let (base, source) = (encode_prompt(encode, &triple.base), encode_prompt(encode, &triple.source));
            let (base, source) = (base.map_err(fail)?, source.map_err(fail)?);
            let mut answers = |written| {
                let note = |note| notes.push(format!("triple {number}: {note}"));
                encode_answers(encode, written, note).map_err(fail)
            };
            let (right, wrong) = (answers(&triple.answers)?, answers(&triple.wrong_answers)?);
            check_answers(encode, (&right, &wrong), needed).map_err(fail)?;
            triples.push(Triple {
                base,
                source,
                answers: right,
                wrong_answers: wrong,
                desideratum: triple.desideratum.clone(),
                weight: triple.weight,
            });
        }
        check(&triples)?;
        Ok(Self { triples, notes })
    }
}

/// Whether triples can be used at all: equal lengths, weights that are numbers, and something that counts.
pub(crate) fn check(triples: &[Triple]) -> Result<()> {
    for (number, triple) in triples.iter().enumerate() {
        let fail = |reason: String| Err(Error::Triple { triple: number, reason });
        let (base, source) = (triple.base.len(), triple.source.len());
        if base != source {
            return fail(format!(
                "base has {base} tokens and source has {source}; positions are put over each other, so equal length is \
                 needed"
            ));
        }
        if base == 0 {
            return fail("a prompt has no tokens at all".into());
        }
        if !triple.weight.is_finite() || triple.weight < 0. {
            return fail(format!("its weight is {}; it must be a number that is not negative", triple.weight));
        }
    }
    match triples.iter().any(|triple| triple.weight > 0.) {
        true => Ok(()),
        false => Err(Error::Alignment("there is no triple whose weight is above 0".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words are tokens; the id is the word's length.
    struct Words;

    impl Encode for Words {
        fn prompt(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
            Ok(text.split_whitespace().map(|word| word.len() as u32).collect())
        }
        fn answer(&self, text: &str) -> std::result::Result<(u32, bool), String> {
            let ids = self.prompt(text)?;
            Ok((ids[0], ids.len() > 1))
        }
        fn label(&self, id: u32) -> String {
            format!("<{id}>")
        }
    }

    fn triples(text: &str) -> Result<Triples> {
        Triples::encode(&parse(text)?, &Words, Answers::Right)
    }

    #[test]
    fn all_file_forms_read_the_same() {
        let one =
            r#"{"base":"a bcd","source":[1,2],"answers":["four"],"wrong_answers":[5],"desideratum":"x","weight":2}"#;
        let bare = r#"{"base":[1,3],"source":[1,2],"answers":[4]}"#;
        let wanted = |triple: &str| serde_json::from_str::<Triple>(triple).unwrap();
        let first =
            wanted(r#"{"base":[1,3],"source":[1,2],"answers":[4],"wrong_answers":[5],"desideratum":"x","weight":2}"#);
        let second = Triple { wrong_answers: vec![], desideratum: String::new(), weight: 1., ..first.clone() };
        for text in [format!(r#"{{"triples":[{one},{bare}]}}"#), format!("[{one},{bare}]"), format!("{one}\n{bare}\n")]
        {
            assert_eq!(triples(&text).unwrap().triples, [first.clone(), second.clone()], "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_triple() {
        let check = |text: &str, part: &str| {
            let error = triples(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        };
        check("", "no triples");
        check("{\"triples\":[]}", "no triples");
        check(r#"{"base":[1],"source":[1],"answer":[2]}"#, "triple 0: unknown field `answer`");
        check(r#"{"base":[1],"answers":[2]}"#, "missing field `source`");
        check(
            r#"[{"base":"a","source":"b","answers":[1]},{"base":"a b","source":"a","answers":[1]}]"#,
            "triple 1: base has 2",
        );
        check(r#"{"base":"a","source":"b","answers":[]}"#, "triple 0: `answers` is missing or empty");
        check(r#"{"base":"a","source":"b","answers":[1],"weight":-1}"#, "its weight is -1");
        check(r#"{"base":"a","source":"b","answers":[1],"weight":0}"#, "above 0");
        check(r#"{"base":"","source":"","answers":[1]}"#, "no tokens");
        let noted = triples(r#"{"base":"a","source":"b","answers":["ab c"]}"#).unwrap();
        assert_eq!(noted.notes, ["triple 0: the answer \"ab c\" has several tokens; its first, \"<2>\", is used"]);
    }

    proptest::proptest! {
        #[test]
        fn no_json_like_text_panics(text in r#"[{}\[\]":,a-z0-9 \n]{0,120}"#) {
            let _ = triples(&text);
        }
    }
}
