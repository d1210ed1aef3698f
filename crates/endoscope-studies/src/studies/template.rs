//! TITLE (arXiv ID). What a new study starts from: it runs as it is, on a coin. Replace the coin.
//!
//! Say here what the paper does: the formula, the equation's number, and where this differs from the paper and why.

use endoscope_report::{Section, Table, labels};
use endoscope_train::generator;
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::finding::{Line, Test};
use crate::lab::Lab;
use crate::study::{Outcome, Study, Untested};

/// The study.
pub struct Template;

/// What can be set: a doc comment, a range and a default for each. The defaults are the level `full`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How often the coin is tossed with each seed.
    #[schemars(range(min = 10, max = 1_000_000))]
    tosses: usize,
    /// How often it should show heads.
    #[schemars(range(min = 0., max = 1.))]
    bias: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { tosses: 100_000, bias: 0.6 }
    }
}

impl Study for Template {
    const SLUG: &'static str = "agent-behaviour";
    // Settle the lines below on two or three other seeds, then do not move them.
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] =
        &[Untested { claim: "What the paper claims besides.", why: "Why it cannot be tested here." }];
    type Config = Config;

    fn smoke() -> Config {
        Config { tosses: 10_000, ..Config::default() }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        // One step for each seed, kept when it is done. `lab.model("an organism")` gives a model; the control goes through the same code.
        let shares = lab.each_seed("tossing", config, |seed| {
            Ok([heads(config.bias, config.tosses, seed), heads(0.5, config.tosses, seed)])
        })?;
        let of = |which: usize| shares.iter().map(|share| share[which]).collect::<Vec<f64>>();
        let finding = Test {
            claim: "The coin shows heads more often than a fair one.".into(),
            unit: "of all tosses".into(),
            effect: Line::AtLeast(0.55),
            control: "a fair coin".into(),
            absent: Line::AtMost(0.52),
        }
        .judge(&of(0), &of(1))?;
        let axes = [("coin", labels(["biased", "fair"])), ("seed", labels(lab.seeds().iter().copied()))];
        let mut outcome = Outcome {
            summary: format!("A coin was tossed {} times with each seed.", config.tosses),
            findings: vec![finding],
            ..Outcome::default()
        };
        outcome.tables.insert("shares".into(), Table::new("share of heads", axes, [of(0), of(1)].concat())?);
        outcome.sections.push(Section::Table {
            heading: Some("The coins".into()),
            table: "shares".into(),
            caption: "What else the reader should see.".into(),
        });
        Ok(outcome)
    }
}

/// The share of heads among tosses of a coin.
fn heads(bias: f64, tosses: usize, seed: u64) -> f64 {
    let mut random = generator(seed, 0);
    (0..tosses).filter(|_| random.random::<f64>() < bias).count() as f64 / tosses as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Level;
    use endoscope_report::Verdict;

    #[test]
    fn the_claim_falls_where_the_effect_is_taken_away() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let verdict = |bias: f64| {
            let config = Config { bias, ..Template::smoke() };
            Template.run(&lab, &config).unwrap().findings[0].verdict()
        };
        assert_eq!(verdict(0.6), Verdict::Shown);
        assert_eq!(verdict(0.5), Verdict::NotShown);
    }
}
