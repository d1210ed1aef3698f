//! `endoscope study list`.

use anyhow::Result;
use clap::Args;
use endoscope_studies::{Card, STUDIES, catalogue};
use serde_json::json;

use crate::output::Output;

#[derive(Debug, Args)]
pub struct List {
    /// Only papers with this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Only papers that hold all of these words, in title, topics or summary.
    #[arg(long, value_name = "TEXT", default_value = "")]
    search: String,
}

impl List {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let cards = catalogue::search(self.topic.as_deref(), &self.search)?;
        let documents = cards.iter().map(|card| document(card)).collect::<Result<Vec<_>>>()?;
        output.document(&documents)?;
        if cards.is_empty() {
            return output.line("no paper holds all of these words");
        }
        let width = cards.iter().map(|card| card.slug.len()).max().unwrap_or(0);
        for card in &cards {
            let runs = if has_study(card) { "runs" } else { "-" };
            let Card { number, slug, .. } = card;
            output.line(&format!("{number:>3}  {runs:<4}  {slug:width$}  {}", card.heading()))?;
        }
        let runnable = cards.iter().filter(|card| has_study(card)).count();
        output.line(&format!(
            "\n{} of {} have a study that runs; `endoscope study show SLUG` says more of any",
            runnable,
            cards.len()
        ))
    }
}

/// Whether a study of the paper runs.
pub fn has_study(card: &Card) -> bool {
    STUDIES.iter().any(|study| study.slug() == card.slug)
}

/// A card as JSON, with what follows from it.
pub fn document(card: &Card) -> Result<serde_json::Value> {
    let mut document = serde_json::to_value(card)?;
    if let Some(fields) = document.as_object_mut() {
        fields.insert("month".into(), json!(card.month()));
        fields.insert("link".into(), json!(card.link()));
        fields.insert("study".into(), json!(has_study(card)));
    }
    Ok(document)
}
