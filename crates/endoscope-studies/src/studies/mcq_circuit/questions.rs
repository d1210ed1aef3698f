//! Questions with four options, as text and as the tokens of a model, whatever its tokenizer makes of letters and
//! blanks.

use std::collections::BTreeMap;

use endoscope_models::{Model, Tokenizer};
use endoscope_organisms::tasks::multiple_choice::{LETTERS, NAME, OPTIONS};
use endoscope_organisms::{Task, task};

use crate::error::{Error, Result};

/// How many questions are drawn to find as many as are wanted that are laid out alike.
const DRAWN: u64 = 4096;

/// A question, its labels and its options in order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    relation: String,
    subject: String,
    labels: Vec<String>,
    options: Vec<String>,
    right: usize,
}

impl Question {
    /// Question `number` of a split of the task.
    fn drawn(task: &dyn Task, words: &[String], split: &str, seed: u64, number: u64) -> Result<Self> {
        // `<bos> RELATION of SUBJECT ?`, four times `( LABEL ) OPTION`, `answer : ( LABEL`.
        let row: Vec<String> =
            task.row(split, seed, number)?.tokens.into_iter().map(|token| words[token as usize].clone()).collect();
        let every_fourth = |from: usize| row[from..].iter().step_by(4).take(OPTIONS).cloned().collect::<Vec<_>>();
        let labels = every_fourth(6);
        let right = labels.iter().position(|label| Some(label) == row.last()).unwrap_or(0);
        Ok(Self { relation: row[1].clone(), subject: row[3].clone(), labels, options: every_fourth(8), right })
    }

    /// The same with its wrong options moved on by one place among themselves: the right letter stays.
    fn shuffled(&self) -> Self {
        let wrong: Vec<usize> = (0..OPTIONS).filter(|&at| at != self.right).collect();
        let mut shuffled = self.clone();
        for (number, &at) in wrong.iter().enumerate() {
            shuffled.options[at].clone_from(&self.options[wrong[(number + 1) % wrong.len()]]);
        }
        shuffled
    }
}

/// How a question is written. A letter is one token in one of these ways for most tokenizers, in another for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As the task has it, words between blanks.
    Words,
    /// `(A) Paris` on lines of their own, then `Answer: (`, after which a letter has no blank before it.
    Parenthesis,
    /// The same, then `Answer:`, after which a letter has a blank before it.
    Blank,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Words, Self::Parenthesis, Self::Blank];

    /// The text, and in it the end of each label and of each option.
    fn text(self, question: &Question) -> (String, Vec<[usize; 2]>) {
        let Question { relation, subject, labels, options, .. } = question;
        let plain = self == Self::Words;
        let mut text = match (plain, relation.as_str()) {
            (true, _) => format!("{relation} of {subject} ?"),
            (false, "young") => format!("Question: What is the young of a {subject} called?"),
            (false, _) => format!("Question: What is the {relation} of {}?", capitalised(subject)),
        };
        let mut ends = Vec::new();
        for (label, option) in labels.iter().zip(options) {
            text += if plain { " ( " } else { "\n(" };
            text += label;
            let label = text.len();
            text += &if plain { format!(" ) {option}") } else { format!(") {}", capitalised(option)) };
            ends.push([label, text.len()]);
        }
        text += match self {
            Self::Words => " answer : (",
            Self::Parenthesis => "\nAnswer: (",
            Self::Blank => "\nAnswer:",
        };
        (text, ends)
    }

    /// What stands between the end of the text and the letter that answers.
    fn between(self) -> &'static str {
        if self == Self::Parenthesis { "" } else { " " }
    }
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Where the items of a prompt are: of each the positions of its label, of the token after that, of the last token of its
/// option, and of the token after that.
pub type Places = Vec<[usize; 4]>;

/// A question as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The prompt, after which a label is to come.
    pub tokens: Vec<u32>,
    /// The token of each label, as it would come.
    pub labels: Vec<u32>,
    /// Which of them is right.
    pub right: usize,
    /// Where the items are.
    pub places: Places,
    /// The prompt whose wrong options have changed places.
    pub shuffled: Vec<u32>,
}

impl Prompt {
    /// A question in the tokens of a model; `None` where a label is not one token, or a text's beginning is not tokens
    /// of its own.
    fn encoded(tokenizer: &Tokenizer, form: Form, question: &Question) -> Result<Option<Self>> {
        let encode = |text: &str| -> Result<Vec<u32>> { Ok(tokenizer.encode(text, Default::default())?.ids) };
        let (text, ends) = form.text(question);
        let tokens = encode(&text)?;
        let mut places = Places::new();
        for ends in ends {
            let mut last = [0; 2];
            for (last, end) in last.iter_mut().zip(ends) {
                let beginning = encode(&text[..end])?;
                if !tokens.starts_with(&beginning) {
                    return Ok(None);
                }
                *last = beginning.len() - 1;
            }
            let [label, option] = last;
            places.push([label, label + 1, option, option + 1]);
        }
        let mut labels = Vec::new();
        for label in &question.labels {
            let answered = encode(&format!("{text}{}{label}", form.between()))?;
            match answered.strip_prefix(tokens.as_slice()) {
                Some([one]) if !labels.contains(one) && tokenizer.unknown() != Some(*one) => labels.push(*one),
                _ => return Ok(None),
            }
        }
        let shuffled = encode(&form.text(&question.shuffled()).0)?;
        Ok(Some(Self { tokens, labels, right: question.right, places, shuffled }))
    }

    /// What all prompts of a batch have in common.
    fn layout(&self) -> (usize, &Places) {
        (self.tokens.len(), &self.places)
    }
}

/// Draws prompts for a model.
pub struct Questions<'a> {
    tokenizer: &'a Tokenizer,
    task: Box<dyn Task>,
    words: Vec<String>,
}

impl<'a> Questions<'a> {
    /// For a model with a tokenizer.
    pub fn new(model: &'a Model) -> Result<Self> {
        let task = task(NAME, &toml::Table::new())?;
        let words = task.words();
        Ok(Self { tokenizer: model.tokenizer()?, task, words })
    }

    /// `count` prompts with the letters A to D, all laid out alike, so that they are one batch; fewer where the
    /// tokenizer lays out few alike.
    pub fn letters(&self, form: Form, seed: u64, count: usize) -> Result<Vec<Prompt>> {
        let mut alike: BTreeMap<(usize, Places), Vec<Prompt>> = BTreeMap::new();
        for number in 0..DRAWN {
            let Some(prompt) = self.drawn(form, LETTERS, seed, number)? else { continue };
            let (length, places) = prompt.layout();
            let group = alike.entry((length, places.clone())).or_default();
            group.push(prompt);
            if group.len() == count {
                return Ok(std::mem::take(group));
            }
        }
        Ok(alike.into_values().max_by_key(Vec::len).unwrap_or_default())
    }

    /// `count` prompts with the labels of another split, laid out as `like` is; fewer where there are fewer.
    pub fn labelled(&self, form: Form, split: &str, (seed, count): (u64, usize), like: &Prompt) -> Result<Vec<Prompt>> {
        let mut prompts = Vec::new();
        for number in 0..DRAWN {
            let prompt = self.drawn(form, split, seed, number)?;
            prompts.extend(prompt.filter(|prompt| prompt.layout() == like.layout()));
            if prompts.len() == count {
                break;
            }
        }
        Ok(prompts)
    }

    fn drawn(&self, form: Form, split: &str, seed: u64, number: u64) -> Result<Option<Prompt>> {
        let question = Question::drawn(self.task.as_ref(), &self.words, split, seed, number)?;
        Prompt::encoded(self.tokenizer, form, &question)
    }
}

/// What is said of a model that has too few prompts.
pub fn too_few(what: &str, found: usize, wanted: usize) -> Error {
    let reason = format!(
        "its tokenizer gives {found} {what} whose labels are single tokens and that are laid out alike; {wanted} are needed"
    );
    Error::Unsuitable { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use endoscope_organisms::tasks::multiple_choice::RANDOM;

    fn question() -> Question {
        let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let [relation, subject] = ["capital", "france"].map(String::from);
        Question { relation, subject, labels: words("A B C D"), options: words("rome paris oslo bern"), right: 1 }
    }

    #[test]
    fn a_question_is_that_of_the_task() {
        let task = task(NAME, &toml::Table::new()).unwrap();
        let words = task.words();
        for number in 0..50 {
            let drawn = Question::drawn(task.as_ref(), &words, RANDOM, 3, number).unwrap();
            let text = format!("<bos> {} {}", Form::Words.text(&drawn).0, drawn.labels[drawn.right]);
            let row = task.row(RANDOM, 3, number).unwrap().tokens;
            let row: Vec<&str> = row.iter().map(|&token| words[token as usize].as_str()).collect();
            assert_eq!(text, row.join(" "));
        }
    }

    #[test]
    fn ends_are_where_labels_and_options_end() {
        for form in Form::ALL {
            let (text, ends) = form.text(&question());
            for (number, [label, option]) in ends.into_iter().enumerate() {
                assert!(text[..label].ends_with(&question().labels[number]), "{text}");
                assert!(text[..option].to_lowercase().ends_with(&question().options[number]), "{text}");
            }
        }
        let text = Form::Parenthesis.text(&question()).0;
        assert_eq!(
            text,
            "Question: What is the capital of France?\n(A) Rome\n(B) Paris\n(C) Oslo\n(D) Bern\nAnswer: ("
        );
    }

    #[test]
    fn shuffling_moves_every_wrong_option_and_leaves_the_right_one() {
        let (before, after) = (question(), question().shuffled());
        assert_eq!(after.options, ["oslo", "paris", "bern", "rome"]);
        assert_eq!((after.right, &after.labels), (before.right, &before.labels));
    }
}
