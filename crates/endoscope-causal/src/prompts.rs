//! Prompt pairs: the files of the field (AutoCircuit JSON, its JSONL twin, EAP-IG CSV), and what they are as tokens.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A prompt or an answer as written in a file: text, or token ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a prompt is a text or a list of token ids, an answer a text or a token id")]
pub enum Written<Ids> {
    /// Text, to be tokenized.
    Text(String),
    /// Token ids.
    Ids(Ids),
}

/// One entry of a prompt file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenPair {
    /// The prompt on which the behaviour shows.
    pub clean: Written<Vec<u32>>,
    /// The prompt of equal length on which it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<Written<Vec<u32>>>,
    /// The right answers to the clean prompt.
    #[serde(default)]
    pub answers: Vec<Written<u32>>,
    /// The wrong answers to the clean prompt.
    #[serde(default)]
    pub wrong_answers: Vec<Written<u32>>,
}

/// A prompt pair as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pair {
    /// The prompt on which the behaviour shows.
    pub clean: Vec<u32>,
    /// The prompt of equal length on which it does not.
    pub corrupt: Vec<u32>,
    /// Ids of the right answers (each one's first token).
    pub answers: Vec<u32>,
    /// Ids of the wrong answers (each one's first token).
    pub wrong_answers: Vec<u32>,
}

/// How text becomes tokens: what a model gives.
pub trait Encode {
    /// A whole prompt, with whatever the model prepends.
    fn prompt(&self, text: &str) -> std::result::Result<Vec<u32>, String>;
    /// The first token of an answer, and whether there are more.
    fn answer(&self, text: &str) -> std::result::Result<(u32, bool), String>;
    /// How a token is shown.
    fn label(&self, id: u32) -> String;
}

/// Pairs as tokens, with what the reader should be told of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// Notes such as an answer of several tokens.
    pub notes: Vec<String>,
}

/// Reads the text of a prompt file: JSON with `prompts`, a JSON list, JSON lines, or EAP-IG's CSV
/// (`clean,corrupted,correct_idx,incorrect_idx`).
pub fn parse(text: &str) -> Result<Vec<WrittenPair>> {
    let start = text.trim_start_matches('\u{FEFF}').trim_start();
    let pairs = match start.chars().next() {
        None => return Err(Error::Prompts("the file is empty".into())),
        Some('{' | '[') => parse_json(start, "prompt")?,
        Some(_) => parse_csv(start)?,
    };
    match pairs.is_empty() {
        true => Err(Error::Prompts("the file holds no prompts".into())),
        false => Ok(pairs),
    }
}

/// The entries of a JSON file: a list under the plural of `word`, a list, or one entry a line.
pub(crate) fn parse_json<T: DeserializeOwned>(text: &str, word: &str) -> Result<Vec<T>> {
    let fail = |error: serde_json::Error| Error::Prompts(error.to_string());
    let entry = |(at, value): (usize, serde_json::Value)| {
        serde_json::from_value(value).map_err(|error| Error::Prompts(format!("{word} {at}: {error}")))
    };
    let plural = format!("{word}s");
    let mut documents = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    let Some(first) = documents.next() else { return Ok(Vec::new()) };
    let list = match first.map_err(fail)? {
        serde_json::Value::Array(list) => list,
        serde_json::Value::Object(mut file) if file.contains_key(&plural) => match file.remove(&plural) {
            Some(serde_json::Value::Array(list)) => list,
            _ => return Err(Error::Prompts(format!("`{plural}` is not a list"))),
        },
        // One object a line.
        first => {
            let rest = documents.map(|document| document.map_err(fail));
            let all = std::iter::once(Ok(first)).chain(rest).collect::<Result<Vec<_>>>()?;
            return all.into_iter().enumerate().map(entry).collect();
        }
    };
    if documents.next().is_some() {
        return Err(Error::Prompts(format!("something follows the list of {plural}")));
    }
    list.into_iter().enumerate().map(entry).collect()
}

fn parse_csv(text: &str) -> Result<Vec<WrittenPair>> {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let fail = |error: csv::Error| Error::Prompts(format!("neither JSON nor EAP-IG's CSV: {error}"));
    let header = reader.headers().map_err(fail)?.clone();
    let column = |name: &str| {
        header.iter().position(|found| found == name).ok_or_else(|| {
            let needed = "clean, corrupted, correct_idx, incorrect_idx";
            Error::Prompts(format!("it is neither JSON nor a CSV with the columns {needed} (`{name}` is missing)"))
        })
    };
    let columns = [column("clean")?, column("corrupted")?, column("correct_idx")?, column("incorrect_idx")?];
    let mut pairs = Vec::new();
    for (row, record) in reader.records().enumerate() {
        let record = record.map_err(fail)?;
        let [clean, corrupt, right, wrong] = columns.map(|column| record.get(column).unwrap_or(""));
        let ids = |cell: &str| -> Result<Vec<Written<u32>>> {
            let list = cell.trim().trim_start_matches('[').trim_end_matches(']');
            let id = |id: &str| id.trim().parse().map(Written::Ids);
            list.split(',')
                .map(id)
                .collect::<std::result::Result<_, _>>()
                .map_err(|_| Error::Pair { pair: row, reason: format!("`{cell}` is not a token id or a list of them") })
        };
        pairs.push(WrittenPair {
            clean: Written::Text(clean.to_string()),
            corrupt: Some(Written::Text(corrupt.to_string())),
            answers: ids(right)?,
            wrong_answers: ids(wrong)?,
        });
    }
    Ok(pairs)
}

/// Whether answers are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Right answers.
    Right,
    /// Right and wrong ones.
    RightAndWrong,
    /// None.
    None,
}

/// The tokens of a prompt as written.
pub(crate) fn encode_prompt(encode: &dyn Encode, prompt: &Written<Vec<u32>>) -> std::result::Result<Vec<u32>, String> {
    match prompt {
        Written::Text(text) => encode.prompt(text),
        Written::Ids(ids) if ids.is_empty() => Err("a prompt has no tokens at all".into()),
        Written::Ids(ids) => Ok(ids.clone()),
    }
}

/// The first token of each answer as written; `note` hears of answers that have more.
pub(crate) fn encode_answers(
    encode: &dyn Encode,
    written: &[Written<u32>],
    mut note: impl FnMut(String),
) -> std::result::Result<Vec<u32>, String> {
    let answer = |answer: &Written<u32>| match answer {
        Written::Ids(id) => Ok(*id),
        Written::Text(text) => {
            let (id, more) = encode.answer(text)?;
            if more {
                let label = encode.label(id);
                note(format!("the answer {text:?} has several tokens; its first, {label:?}, is used"));
            }
            Ok(id)
        }
    };
    written.iter().map(answer).collect()
}

/// Whether the answers that are needed are there, and can be told apart.
pub(crate) fn check_answers(
    encode: &dyn Encode,
    (right, wrong): (&[u32], &[u32]),
    needed: Answers,
) -> std::result::Result<(), String> {
    if right.is_empty() && needed != Answers::None {
        return Err("`answers` is missing or empty".into());
    }
    if wrong.is_empty() && needed == Answers::RightAndWrong {
        return Err("`wrong_answers` is missing or empty, and the metric compares with them".into());
    }
    match right.iter().find(|id| wrong.contains(id)).filter(|_| needed == Answers::RightAndWrong) {
        None => Ok(()),
        Some(id) => {
            let label = encode.label(*id);
            Err(format!("the token {label:?} is both a right and a wrong answer, so they cannot be compared"))
        }
    }
}

impl Pairs {
    /// Tokenizes pairs and checks that clean and corrupt have equal length and that the answers needed are there.
    pub fn encode(written: &[WrittenPair], encode: &dyn Encode, needed: Answers) -> Result<Self> {
        let mut notes = Vec::new();
        let mut pairs = Vec::with_capacity(written.len());
        for (number, pair) in written.iter().enumerate() {
            let fail = |reason: String| Error::Pair { pair: number, reason };
            let clean = encode_prompt(encode, &pair.clean).map_err(fail)?;
            let corrupt = pair.corrupt.as_ref().ok_or_else(|| fail("`corrupt` is missing".into()))?;
            let corrupt = encode_prompt(encode, corrupt).map_err(fail)?;
            if clean.len() != corrupt.len() {
                let labels = |ids: &[u32]| ids.iter().map(|&id| encode.label(id)).collect();
                return Err(Error::UnequalLength { pair: number, clean: labels(&clean), corrupt: labels(&corrupt) });
            }
            let mut answers = |written| {
                let note = |note| notes.push(format!("pair {number}: {note}"));
                encode_answers(encode, written, note).map_err(fail)
            };
            let (right, wrong) = (answers(&pair.answers)?, answers(&pair.wrong_answers)?);
            check_answers(encode, (&right, &wrong), needed).map_err(fail)?;
            pairs.push(Pair { clean, corrupt, answers: right, wrong_answers: wrong });
        }
        Ok(Self { pairs, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words are tokens; the id is the word's length.
    struct Words;

    impl Encode for Words {
        fn prompt(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
            let ids: Vec<u32> = text.split_whitespace().map(|word| word.len() as u32).collect();
            if ids.is_empty() { Err("no tokens at all".into()) } else { Ok(ids) }
        }
        fn answer(&self, text: &str) -> std::result::Result<(u32, bool), String> {
            let ids = self.prompt(text)?;
            Ok((ids[0], ids.len() > 1))
        }
        fn label(&self, id: u32) -> String {
            format!("<{id}>")
        }
    }

    fn pairs(text: &str) -> Result<Pairs> {
        Pairs::encode(&parse(text)?, &Words, Answers::RightAndWrong)
    }

    const WANTED: &str = r#"{"clean":[1,3],"corrupt":[1,2],"answers":[4],"wrong_answers":[5]}"#;

    #[test]
    fn all_file_forms_read_the_same() {
        let wanted: Pair = serde_json::from_str(WANTED).unwrap();
        let one = r#"{"clean":"a bcd","corrupt":[1,2],"answers":["four"],"wrong_answers":[5]}"#;
        for text in [
            format!(r#"{{"seq_labels":["x"],"word_idxs":{{}},"prompts":[{one},{one}]}}"#),
            format!("[{one},{one}]"),
            format!("{one}\n{one}\n"),
            "clean,corrupted,correct_idx,incorrect_idx\n\"a bcd\",a bc,4,[5]\n\"a bcd\",a bc,[4],5\n".to_string(),
        ] {
            assert_eq!(pairs(&text).unwrap().pairs, [wanted.clone(), wanted.clone()], "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_pair() {
        let check = |text: &str, part: &str| {
            let error = pairs(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        };
        check("", "empty");
        check("{\"prompts\":[]}", "no prompts");
        check("hello\nworld", "CSV with the columns");
        check(
            &format!("{WANTED}\n{{\"clean\":\"a b\",\"corrupt\":\"a b c\",\"answers\":[1],\"wrong_answers\":[1]}}"),
            "pair 1: clean has 2 tokens and corrupt has 3",
        );
        check(r#"{"clean":"a b","corrupt":"a b c d","answers":[1],"wrong_answers":[1]}"#, "<1> | <1>\n");
        check(r#"{"clean":"a b","answers":[1],"wrong_answers":[1]}"#, "`corrupt` is missing");
        check(r#"{"clean":"a","corrupt":"b","wrong_answers":[1]}"#, "`answers` is missing");
        check(r#"{"clean":"a","corrupt":"b","answers":[1]}"#, "`wrong_answers` is missing");
        check(r#"{"clean":[],"corrupt":[],"answers":[1],"wrong_answers":[1]}"#, "no tokens at all");
        check(r#"{"clean":" ","corrupt":"b","answers":[1],"wrong_answers":[1]}"#, "no tokens at all");
        check(&format!("{WANTED}\n{{\"clean\":1}}"), "prompt 1");
    }

    #[test]
    fn an_answer_of_several_tokens_uses_its_first_and_says_so() {
        let found = pairs(r#"{"clean":"a","corrupt":"b","answers":["ab c"],"wrong_answers":["x"]}"#).unwrap();
        assert_eq!(found.pairs[0].answers, [2]);
        assert_eq!(found.notes, ["pair 0: the answer \"ab c\" has several tokens; its first, \"<2>\", is used"]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = pairs(&text);
        }

        #[test]
        fn no_json_like_text_panics(text in r#"[{}\[\]":,a-z0-9 \n]{0,120}"#) {
            let _ = pairs(&text);
        }
    }
}
