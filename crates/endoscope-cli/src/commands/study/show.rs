//! `endoscope study show`.

use anyhow::Result;
use clap::Args;
use endoscope_studies::{Card, Kind, Runnable, paper, study};
use serde_json::json;

use super::list::{document, has_study};
use crate::output::{self, Output};

#[derive(Debug, Args)]
pub struct Show {
    /// The paper's slug, as `endoscope study list` shows it.
    slug: String,
}

impl Show {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let card = paper(&self.slug)?;
        let study = if has_study(card) { Some(study(&card.slug)?) } else { None };
        let mut shown = document(card)?;
        if let (Some(fields), Some(study)) = (shown.as_object_mut(), study) {
            fields.insert("seeds".into(), json!(study.seeds()));
            fields.insert("settings".into(), json!(study.settings()));
            fields.insert("schema".into(), study.schema());
            fields.insert("untested".into(), json!(study.untested()));
        }
        output.document(&shown)?;
        output.text(&described(card))?;
        match study {
            Some(study) => output.text(&runs(study)),
            None => output.line("\nThis paper has no study yet. docs/studies.md says how one is written."),
        }
    }
}

fn described(card: &Card) -> String {
    let mut text = format!("{}. {}\n", card.number, card.heading());
    let authors = card.authors.map(|count| format!("{count} authors"));
    let arxiv = card.arxiv.as_ref().map(|id| format!("arXiv {id}"));
    let code = card.code.as_ref().map(|code| format!("code: github.com/{code}"));
    let facts: Vec<String> = [authors, card.month(), arxiv, code].into_iter().flatten().collect();
    for line in [facts.join(" · "), card.topics.join(", ")] {
        if !line.is_empty() {
            text += &format!("{line}\n");
        }
    }
    match card.summary.as_str() {
        "" => text += "\nNothing was written down of this paper yet: no specification, so no card.\n",
        summary => text += &format!("\n{}\n", wrapped(summary, "")),
    }
    if card.kind == Kind::Survey {
        text += "\nA survey: its protocol can be demonstrated, never reproduced.\n";
    }
    text
}

fn runs(study: &dyn Runnable) -> String {
    let seeds = study.seeds().iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let mut text =
        format!("\nendoscope study run {} [--level smoke] [--set key=value]\nseeds: {seeds}\n", study.slug());
    text += "\nsettings (full, smoke):\n";
    let settings = study.settings();
    let width = settings.iter().map(|setting| setting.key.len()).max().unwrap_or(0);
    for setting in &settings {
        text += &format!("  {:width$}  {}, {}  ({})\n", setting.key, setting.full, setting.smoke, setting.range);
        text += &format!("{}\n", wrapped(&setting.about, &" ".repeat(width + 4)));
    }
    if !study.untested().is_empty() {
        text += "\nnot tested:\n";
        for each in study.untested() {
            text += &format!("{}\n", wrapped(&format!("{} {}", each.claim, each.why), "  "));
        }
    }
    text
}

/// Text in lines that this terminal has room for, each after `indent`.
fn wrapped(text: &str, indent: &str) -> String {
    let room = output::style().width.saturating_sub(indent.len()).max(20);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= room) {
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(word.to_string()),
        }
    }
    lines.iter().map(|line| format!("{indent}{line}")).collect::<Vec<_>>().join("\n")
}
