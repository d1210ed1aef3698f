//! `endoscope organisms --task NAME`: rows of a task and counterfactual pairs, as text or as a prompt file.

use anyhow::{Context, Result};
use clap::Args;
use endoscope_organisms::{PromptPair, Row, TRAIN, task};
use serde_json::json;
use toml::Table;

use crate::output::Output;

#[derive(Debug, Args)]
pub struct ShowTask {
    /// A task, as a recipe names it, to be shown: rows, and pairs of prompts whose answers differ. With --json a prompt file.
    #[arg(long, value_name = "NAME", conflicts_with = "name", group = "drawn")]
    pub task: Option<String>,
    /// A key of the task, as in a recipe's [task]: `modulus=7`. May be given more than once.
    #[arg(long, value_name = "KEY=VALUE", requires = "task")]
    set: Vec<String>,
    /// The part of its data [default: the one that is trained on].
    #[arg(long, value_name = "NAME", requires = "task")]
    split: Option<String>,
    /// What the corrupt prompts have other than the clean ones [default: everything that the task can change, in turn].
    #[arg(long, value_name = "NAME", requires = "task")]
    change: Option<String>,
}

impl ShowTask {
    pub fn run(&self, name: &str, count: usize, seed: u64, output: &mut Output) -> Result<()> {
        let task = task(name, &self.parameters()?)?;
        let words = task.words();
        let split = self.split.as_deref().or(task.splits().first().copied()).unwrap_or(TRAIN);
        let changes = match &self.change {
            Some(change) => vec![change.as_str()],
            None => task.changes().to_vec(),
        };
        let (mut rows, mut pairs) = (Vec::new(), Vec::new());
        for (number, &change) in (0..count as u64).zip(changes.iter().cycle()) {
            rows.push(task.row(split, seed, number)?);
            pairs.push((change, task.pair(split, change, seed, number)?));
        }
        let shown = Words(&words);
        output.document(&json!({
            "task": name,
            "splits": task.splits(),
            "changes": task.changes(),
            "split": split,
            "seed": seed,
            "vocabulary": words.len(),
            "longest": task.length(),
            "rows": rows.iter().map(|row| shown.row(row)).collect::<Vec<_>>(),
            "prompts": pairs.iter().map(|(change, pair)| shown.pair(change, pair)).collect::<Vec<_>>(),
        }))?;
        for (row, (change, pair)) in rows.iter().zip(&pairs) {
            output.line(&format!("row      {}", shown.marked(row)))?;
            output.line(&format!("clean    {} → {}", shown.text(&pair.clean), shown.either(&pair.answers)))?;
            output.line(&format!("corrupt  {} → {}", shown.text(&pair.corrupt), shown.either(&pair.wrong_answers)))?;
            output.line(&format!("changed  {change}\n"))?;
        }
        output.line(&format!(
            "{} words, rows of up to {} tokens; splits: {}; changes: {}",
            words.len(),
            task.length(),
            task.splits().join(", "),
            task.changes().join(", ")
        ))
    }

    /// The keys that were given, as a recipe would have them: a value that is none of TOML's is a text.
    fn parameters(&self) -> Result<Table> {
        let mut parameters = Table::new();
        for given in &self.set {
            let (key, value) = given.split_once('=').with_context(|| format!("`--set {given}`: write KEY=VALUE"))?;
            let value = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
            let text = || toml::Value::String(given[key.len() + 1..].trim().to_string());
            parameters.insert(key.trim().to_string(), value.unwrap_or_else(text));
        }
        Ok(parameters)
    }
}

/// Tokens as the tokenizer of the task would be given them: it puts `<bos>` first.
struct Words<'a>(&'a [String]);

impl Words<'_> {
    fn word(&self, id: u32) -> &str {
        self.0.get(id as usize).map_or("", String::as_str)
    }

    fn text(&self, ids: &[u32]) -> String {
        ids.iter().skip(1).map(|&id| self.word(id)).collect::<Vec<_>>().join(" ")
    }

    fn list(&self, ids: &[u32]) -> Vec<&str> {
        ids.iter().map(|&id| self.word(id)).collect()
    }

    fn either(&self, ids: &[u32]) -> String {
        self.list(ids).join(" or ")
    }

    /// The row with what counts in the loss in brackets.
    fn marked(&self, row: &Row) -> String {
        let mut text = String::new();
        for at in 1..row.tokens.len() {
            let counts = |at: usize| row.mask.get(at).copied().unwrap_or(false);
            let (begins, ends) = (counts(at) && !counts(at - 1), counts(at) && !counts(at + 1));
            text += if at > 1 { " " } else { "" };
            text += if begins { "[" } else { "" };
            text += self.word(row.tokens[at]);
            text += if ends { "]" } else { "" };
        }
        text
    }

    fn row(&self, row: &Row) -> serde_json::Value {
        json!({"text": self.text(&row.tokens), "tokens": row.tokens, "counts": row.mask})
    }

    fn pair(&self, change: &str, pair: &PromptPair) -> serde_json::Value {
        json!({
            "clean": self.text(&pair.clean),
            "corrupt": self.text(&pair.corrupt),
            "answers": self.list(&pair.answers),
            "wrong_answers": self.list(&pair.wrong_answers),
            "change": change,
        })
    }
}
