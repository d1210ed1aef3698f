//! The catalogue: a card for each of the forty papers, whether or not there is a study of it yet.
//!
//! The cards are data, `catalogue.toml` beside this crate's manifest. What is not known for certain is left out of them.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, nearest};

/// What the catalogue says of one paper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Its number in the catalogue, from 1.
    pub number: u32,
    /// Its name in commands and files: small letters, digits and hyphens.
    pub slug: String,
    /// Its title; absent where nothing was written down of the paper yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// How many authors it has, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authors: Option<u32>,
    /// Its arXiv id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arxiv: Option<String>,
    /// Its authors' code, `owner/repository` on GitHub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What kind of paper it is.
    #[serde(default)]
    pub kind: Kind,
    /// What it is about, in words of which there are few.
    #[serde(default)]
    pub topics: Vec<String>,
    /// What it asks, does and finds, in our own words; empty where there is no title.
    #[serde(default)]
    pub summary: String,
}

/// What kind of paper a paper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It has claims that can be reproduced or not.
    #[default]
    Method,
    /// A survey or position paper: its protocol can be demonstrated, never reproduced.
    Survey,
}

impl Card {
    /// The title, or what to say instead.
    pub fn heading(&self) -> String {
        self.title.clone().unwrap_or_else(|| "(no specification of this paper yet)".into())
    }

    /// The year and month that are in the arXiv id, as `2024-06`.
    pub fn month(&self) -> Option<String> {
        let (year, month) = self.arxiv.as_deref()?.get(..4)?.split_at(2);
        Some(format!("20{year}-{month}"))
    }

    /// Where the paper is to be read.
    pub fn link(&self) -> Option<String> {
        self.arxiv.as_ref().map(|id| format!("https://arxiv.org/abs/{id}"))
    }

    /// Whether every word of `text` occurs in the slug, the title, the arXiv id, the topics or the summary; case does not matter.
    pub fn holds(&self, text: &str) -> bool {
        let (title, arxiv) = (self.title.as_deref().unwrap_or(""), self.arxiv.as_deref().unwrap_or(""));
        let all = [&self.slug, title, arxiv, &self.topics.join(" "), &self.summary].join("\n").to_lowercase();
        text.to_lowercase().split_whitespace().all(|word| all.contains(word))
    }
}

/// All cards, by number.
pub fn papers() -> Result<&'static [Card]> {
    static CARDS: OnceLock<std::result::Result<Vec<Card>, String>> = OnceLock::new();
    let read = || parse(include_str!("../catalogue.toml"));
    CARDS.get_or_init(read).as_deref().map_err(|problem| Error::Catalogue(problem.clone()))
}

/// The card of the paper `slug`.
pub fn paper(slug: &str) -> Result<&'static Card> {
    let papers = papers()?;
    papers.iter().find(|card| card.slug == slug).ok_or_else(|| Error::UnknownPaper {
        slug: slug.to_string(),
        nearest: nearest(slug, papers.iter().map(|card| card.slug.as_str())),
    })
}

/// All topics, by name.
pub fn topics() -> Result<BTreeSet<&'static str>> {
    Ok(papers()?.iter().flat_map(|card| &card.topics).map(String::as_str).collect())
}

/// The cards with this topic (if any is asked for) that hold this text.
pub fn search(topic: Option<&str>, text: &str) -> Result<Vec<&'static Card>> {
    if let Some(topic) = topic {
        let topics = topics()?;
        if !topics.contains(topic) {
            let known = topics.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::UnknownTopic { topic: topic.to_string(), known });
        }
    }
    let has_topic = |card: &Card| topic.is_none_or(|topic| card.topics.iter().any(|other| other == topic));
    Ok(papers()?.iter().filter(|card| has_topic(card) && card.holds(text)).collect())
}

fn parse(text: &str) -> std::result::Result<Vec<Card>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Catalogue {
        paper: Vec<Card>,
    }
    let Catalogue { paper: cards } = toml::from_str(text).map_err(|error| error.to_string())?;
    let problems: Vec<String> =
        cards.iter().enumerate().flat_map(|(at, card)| problems(at, card, &cards[..at])).collect();
    if problems.is_empty() { Ok(cards) } else { Err(problems.join("; ")) }
}

fn problems(at: usize, card: &Card, before: &[Card]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut unless = |fine: bool, problem: &str| {
        if !fine {
            problems.push(format!("paper {} `{}` {problem}", card.number, card.slug.escape_debug()));
        }
    };
    unless(card.number as usize == at + 1, &format!("stands in place {}", at + 1));
    let plain =
        |text: &str| text.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-');
    unless(!card.slug.is_empty() && plain(&card.slug), "needs a slug of small letters, digits and hyphens");
    unless(before.iter().all(|other| other.slug != card.slug), "has the slug of another paper");
    let written = [card.title.is_some(), !card.topics.is_empty(), !card.summary.trim().is_empty()];
    unless(written == [written[0]; 3], "has some but not all of title, topics and summary");
    unless(card.authors != Some(0), "has no authors");
    let digits = |text: &str| text.chars().all(|letter| letter.is_ascii_digit());
    let is_id = |id: &String| {
        id.split_once('.').is_some_and(|(month, number)| {
            digits(month)
                && digits(number)
                && month.len() == 4
                && (4..=5).contains(&number.len())
                && ("01"..="12").contains(&&month[2..])
        })
    };
    unless(card.arxiv.as_ref().is_none_or(is_id), "has an arXiv id that is none");
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forty_papers_are_there_and_well_formed() {
        let papers = papers().unwrap();
        assert_eq!(papers.len(), 40);
        let unwritten: Vec<u32> = papers.iter().filter(|card| card.title.is_none()).map(|card| card.number).collect();
        assert_eq!(unwritten, [5, 9, 10, 11, 12, 15], "the papers of which there is no specification");
        for card in papers.iter().filter(|card| card.title.is_some()) {
            assert!(card.summary.len() > 200, "{}: one paragraph", card.slug);
            assert!(!card.summary.contains('\n') && !card.summary.contains("  "), "{}: not more than one", card.slug);
        }
    }

    #[test]
    fn what_is_wrong_with_a_catalogue_is_said_all_at_once() {
        for (text, part) in [
            ("[[paper]]\nnumber = 2\nslug = \"a\"", "stands in place 1"),
            ("[[paper]]\nnumber = 1\nslug = \"A b\"", "small letters"),
            ("[[paper]]\nnumber = 1\nslug = \"a\"\ntitle = \"t\"", "some but not all"),
            ("[[paper]]\nnumber = 1\nslug = \"a\"\narxiv = \"2413.00001\"", "arXiv id"),
            ("[[paper]]\nnumber = 1\nslug = \"a\"\narxiv = \"é13.00001\"", "arXiv id"),
            ("[[paper]]\nnumber = 1\nslug = \"a\"\nauthors = 0", "no authors"),
            ("[[paper]]\nnumber = 1\nslug = \"a\"\n[[paper]]\nnumber = 2\nslug = \"a\"", "of another paper"),
            ("[[paper]]\nnumber = 1\nslug = \"a\"\ntitel = \"t\"", "titel"),
        ] {
            let problems = parse(text).unwrap_err();
            assert!(problems.contains(part), "{text}: {problems}");
        }
        let both = parse("[[paper]]\nnumber = 3\nslug = \"\"").unwrap_err();
        assert!(both.contains("place 1") && both.contains("slug of small letters"), "{both}");
    }

    #[test]
    fn papers_are_found_by_topic_and_by_words() {
        let slugs =
            |topic, text| search(topic, text).unwrap().iter().map(|card| card.slug.as_str()).collect::<Vec<_>>();
        assert_eq!(slugs(None, "").len(), 40);
        assert_eq!(slugs(None, "Low-Rank channels"), ["talking-heads"]);
        assert_eq!(slugs(None, "2406.09519"), ["talking-heads"]);
        assert_eq!(slugs(Some("causality"), ""), ["causal-de-finetti", "minimax-invariance"]);
        assert_eq!(slugs(Some("causality"), "exchangeable"), ["causal-de-finetti"]);
        assert!(search(Some("cirquits"), "").unwrap_err().to_string().contains("circuits"));
        let unknown = paper("talking-head").unwrap_err().to_string();
        assert!(unknown.contains("nearest: talking-heads"), "{unknown}");
        assert_eq!(paper("talking-heads").unwrap().month().as_deref(), Some("2024-06"));
    }
}
