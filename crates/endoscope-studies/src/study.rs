//! Studies: what the author of one writes ([`Study`]), and what the frame makes of it ([`Runnable`]): settings from their
//! declaration, findings to claims, a report that has every figure in a table.

use endoscope_report::{Label, Report, Section, Table, Verdict, labels};
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value;

use crate::catalogue::{Card, Kind, paper};
use crate::error::{Error, Result};
use crate::finding::{CONFIDENCE, Finding};
use crate::lab::{Lab, Level};
use crate::settings::{Setting, Settings, describe, schema, set};
use crate::studies::STUDIES;

/// A paper's method as a program. One file under `src/studies/`, one line in `src/studies/mod.rs`.
pub trait Study: Sync {
    /// The paper's slug in the catalogue.
    const SLUG: &'static str;
    /// The seeds on which it is judged, declared here: not those on which its lines were settled.
    const SEEDS: &'static [u64];
    /// What the paper claims and this study cannot test, each with the reason.
    const UNTESTED: &'static [Untested];
    /// Its settings; their `Default` is the level `full`.
    type Config: Settings;

    /// The settings of the level `smoke`: seconds.
    fn smoke() -> Self::Config;

    /// Measures, and judges the claims.
    fn run(&self, lab: &Lab<'_>, config: &Self::Config) -> Result<Outcome>;
}

/// A claim of the paper that is not tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Untested {
    /// The claim, as a sentence.
    pub claim: &'static str,
    /// Why not, as a sentence.
    pub why: &'static str,
}

/// What a study found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was done and seen, in one paragraph; verdicts are added by the frame.
    pub summary: String,
    /// The claims, judged. At least one.
    pub findings: Vec<Finding>,
    /// What is to be shown besides, in reading order.
    pub sections: Vec<Section>,
    /// The tables of the sections, by name.
    pub tables: IndexMap<String, Table>,
}

/// A study whatever its settings are: what commands see.
pub trait Runnable: Sync {
    /// The paper's slug.
    fn slug(&self) -> &'static str;
    /// The paper's card.
    fn card(&self) -> Result<&'static Card>;
    /// The seeds on which it is judged unless others are named.
    fn seeds(&self) -> &'static [u64];
    /// What it cannot test.
    fn untested(&self) -> &'static [Untested];
    /// Its settings, described.
    fn settings(&self) -> Vec<Setting>;
    /// The JSON schema of its settings.
    fn schema(&self) -> Value;
    /// Its settings at a level, with `key=value` put into them, as JSON.
    fn configured(&self, level: Level, assignments: &[String]) -> Result<Value>;
    /// Runs it with the settings of the lab's level and `key=value` put into them.
    fn report(&self, lab: &Lab<'_>, assignments: &[String]) -> Result<Report>;
}

impl<S: Study> Runnable for S {
    fn slug(&self) -> &'static str {
        S::SLUG
    }

    fn card(&self) -> Result<&'static Card> {
        paper(S::SLUG)
    }

    fn seeds(&self) -> &'static [u64] {
        S::SEEDS
    }

    fn untested(&self) -> &'static [Untested] {
        S::UNTESTED
    }

    fn settings(&self) -> Vec<Setting> {
        describe(&S::Config::default(), &S::smoke())
    }

    fn schema(&self) -> Value {
        schema::<S::Config>()
    }

    fn configured(&self, level: Level, assignments: &[String]) -> Result<Value> {
        let config = config::<S>(level, assignments)?;
        serde_json::to_value(config).map_err(|source| Error::Keep { step: "settings".into(), source })
    }

    fn report(&self, lab: &Lab<'_>, assignments: &[String]) -> Result<Report> {
        let outcome = self.run(lab, &config::<S>(lab.level, assignments)?)?;
        report(self, lab, outcome)
    }
}

fn config<S: Study>(level: Level, assignments: &[String]) -> Result<S::Config> {
    let base = match level {
        Level::Smoke => S::smoke(),
        Level::Full => S::Config::default(),
    };
    set(S::SLUG, &base, assignments)
}

/// The study of the paper `slug`.
pub fn study(slug: &str) -> Result<&'static dyn Runnable> {
    if let Some(study) = STUDIES.iter().find(|study| study.slug() == slug) {
        return Ok(*study);
    }
    let runnable: Vec<&str> = STUDIES.iter().map(|study| study.slug()).collect();
    paper(slug)?;
    Err(Error::NoStudy { slug: slug.to_string(), runnable: runnable.join(", ") })
}

/// The word for all findings of a study together: by counting their verdicts.
pub fn overall(kind: Kind, findings: &[Finding]) -> &'static str {
    let all = |verdict: Verdict| findings.iter().all(|finding| finding.verdict() == verdict);
    match kind {
        _ if all(Verdict::NotShown) => "not reproduced here",
        // A survey has nothing to reproduce.
        Kind::Survey if all(Verdict::Shown) => "protocol demonstrated",
        Kind::Survey => "protocol partly demonstrated",
        Kind::Method if all(Verdict::Shown) => "reproduced here",
        Kind::Method => "partly reproduced here",
    }
}

/// The outcome as a report: verdicts first, then the claims, the rules, every figure, what the study adds, and what was not tested.
fn report(study: &dyn Runnable, lab: &Lab<'_>, outcome: Outcome) -> Result<Report> {
    let Outcome { summary, findings, sections, mut tables } = outcome;
    if findings.is_empty() {
        return Err(Error::NoFinding { slug: study.slug() });
    }
    let card = study.card()?;
    let shown = findings.iter().filter(|finding| finding.verdict() == Verdict::Shown).count();
    let verdict = overall(card.kind, &findings);
    let level = match lab.level {
        Level::Smoke => {
            " This is the level `smoke`, which checks the machinery; verdicts are those of the level `full`."
        }
        Level::Full => "",
    };
    let summary = format!("{verdict}: {shown} of {} claims shown. {summary}{level}", findings.len());
    let mut report = Report::new(card.heading(), format!("study {}", study.slug()), capitalised(&summary));
    report.claims = findings.iter().map(Finding::claim).collect::<Result<_>>()?;
    report.sections.push(Section::Claims { heading: Some("Claims".into()) });
    let rules: Vec<String> = findings.iter().map(Finding::rule).collect();
    let percent = 100. * CONFIDENCE;
    report.sections.push(Section::Text {
        heading: Some("How it was judged".into()),
        body: format!(
            "{}\n\nA claim is shown if the {percent} % intervals of both means over {} seeds (Student's t) lie on their sides of these lines, \
             partly shown if only the means do, and not shown otherwise.",
            rules.join("\n\n"),
            lab.seeds().len()
        ),
    });
    report.sections.extend(sections);
    let figures = findings.iter().flat_map(|finding| finding.figures().concat()).collect();
    let axes = [
        ("claim", labels(1..=findings.len() as i64)),
        ("figure", labels(["effect", "control"])),
        ("seed", lab.seeds().iter().map(|seed| Label::Text(seed.to_string())).collect()),
    ];
    tables.insert("figures".into(), Table::new("what was measured for each claim with each seed", axes, figures)?);
    report.sections.push(Section::Table {
        heading: Some("Every figure".into()),
        table: "figures".into(),
        caption: "Claims are numbered in the order above.".into(),
    });
    report.tables = tables;
    if !study.untested().is_empty() {
        let untested: Vec<String> =
            study.untested().iter().map(|each| format!("{} {}", each.claim, each.why)).collect();
        report
            .sections
            .push(Section::Text { heading: Some("What was not tested".into()), body: untested.join("\n\n") });
    }
    report.check()?;
    Ok(report)
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
