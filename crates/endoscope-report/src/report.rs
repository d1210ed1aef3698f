//! A report: the story of a run in sections, its tables and its claims.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::{Claim, ColourScale, Error, Graph, Result, Table, json};

/// What a run found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The title.
    pub title: String,
    /// The verb or study that made it, for example `patch`.
    pub verb: String,
    /// The finding, in one paragraph.
    pub summary: String,
    /// The story, in reading order.
    pub sections: Vec<Section>,
    /// The numbers, by name; sections refer to these names.
    pub tables: IndexMap<String, Table>,
    /// What was claimed, measured and controlled.
    pub claims: Vec<Claim>,
}

/// One section of a report.
///
/// Text may hold several paragraphs, separated by blank lines; it is plain text, not markup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Section {
    /// Prose.
    Text {
        /// The heading, if it needs one.
        heading: Option<String>,
        /// The prose.
        body: String,
    },
    /// A table in colours: the last axis runs to the right, the one before it down; further axes give one panel each.
    HeatMap {
        /// The heading, if it needs one.
        heading: Option<String>,
        /// The name of the table shown first.
        table: String,
        /// Tables with the same axes that the reader can switch to: raw scores, spread.
        #[serde(default)]
        alternatives: Vec<String>,
        /// From numbers to colours.
        scale: ColourScale,
        /// What is to be seen.
        caption: String,
    },
    /// A table in numbers.
    Table {
        /// The heading, if it needs one.
        heading: Option<String>,
        /// The name of the table.
        table: String,
        /// What is to be seen.
        caption: String,
    },
    /// Curves: the last axis runs to the right; there is one line per label of the axis before it.
    Lines {
        /// The heading, if it needs one.
        heading: Option<String>,
        /// The name of the table, of one or two axes.
        table: String,
        /// What is to be seen.
        caption: String,
        /// What the height means, with its unit.
        y_label: String,
    },
    /// A graph in layers.
    Graph {
        /// The heading, if it needs one.
        heading: Option<String>,
        /// What is drawn.
        graph: Graph,
        /// What is to be seen.
        caption: String,
    },
    /// All claims of the report. Renderers add them at the end if no section says where.
    Claims {
        /// The heading, if it needs one.
        heading: Option<String>,
    },
}

impl Section {
    /// The heading, whatever the kind.
    pub fn heading(&self) -> Option<&str> {
        match self {
            Section::Text { heading, .. }
            | Section::HeatMap { heading, .. }
            | Section::Table { heading, .. }
            | Section::Lines { heading, .. }
            | Section::Graph { heading, .. }
            | Section::Claims { heading } => heading.as_deref(),
        }
    }
}

impl Report {
    /// An empty report; sections, tables and claims are pushed onto its fields.
    pub fn new(title: impl Into<String>, verb: impl Into<String>, summary: impl Into<String>) -> Report {
        Report {
            title: title.into(),
            verb: verb.into(),
            summary: summary.into(),
            sections: Vec::new(),
            tables: IndexMap::new(),
            claims: Vec::new(),
        }
    }

    /// Whether sections and tables fit together; the error lists every problem.
    ///
    /// A section's tables exist and have the rank that it can draw, alternatives share the first table's axes, and
    /// each table's name can be a file's name.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        for name in self.tables.keys() {
            if !is_file_stem(name) {
                let name = name.escape_debug();
                problems.push(format!("table `{name}` needs a name of letters, digits, `_`, `-` and `.`"));
            } else if !seen.insert(name.to_lowercase()) {
                problems.push(format!("two tables are named `{name}` but for upper and lower case"));
            }
        }
        for (index, section) in self.sections.iter().enumerate() {
            self.check_section(section, &format!("section {}", index + 1), &mut problems);
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Report { title: self.title.clone(), problems }) }
    }

    fn check_section(&self, section: &Section, place: &str, problems: &mut Vec<String>) {
        let find = |name: &String, problems: &mut Vec<String>| {
            let found = self.tables.get(name);
            if found.is_none() {
                problems.push(format!("{place} names a table `{}` that is not there", name.escape_debug()));
            }
            found
        };
        match section {
            Section::Text { .. } | Section::Claims { .. } => {}
            Section::Graph { graph, .. } => {
                problems.extend(graph.problems().into_iter().map(|problem| format!("{place}: {problem}")));
            }
            Section::Table { table, .. } => {
                find(table, problems);
            }
            Section::Lines { table, .. } => {
                if let Some(rank) = find(table, problems).map(|found| found.axes().len()).filter(|&rank| rank > 2) {
                    problems.push(format!("{place} draws lines of table `{table}`, which has {rank} axes, not 1 or 2"));
                }
            }
            Section::HeatMap { table, alternatives, .. } => {
                let first = find(table, problems);
                for name in alternatives {
                    let other = find(name, problems);
                    let differ = |(first, other): (&Table, &Table)| !first.axes().iter().eq(other.axes().iter());
                    if first.zip(other).is_some_and(differ) {
                        problems.push(format!("{place} switches between `{table}` and `{name}`, whose axes differ"));
                    }
                }
            }
        }
    }

    /// The sections, with the claims at the end if there are any and no section shows them.
    pub(crate) fn story(&self) -> Vec<&Section> {
        static CLAIMS: Section = Section::Claims { heading: None };
        let unsaid = !self.claims.is_empty() && !self.sections.iter().any(|s| matches!(s, Section::Claims { .. }));
        self.sections.iter().chain(unsaid.then_some(&CLAIMS)).collect()
    }

    /// The report as JSON, each innermost list on one line.
    pub fn to_json(&self) -> Result<String> {
        json::to_text(self, "the report")
    }

    /// The report of a JSON text, [checked](Report::check).
    pub fn from_json(text: &str) -> Result<Report> {
        let report: Report =
            serde_json::from_str(text).map_err(|source| Error::Json { what: "the report".into(), source })?;
        report.check()?;
        Ok(report)
    }
}

/// Whether `name` can be a file's name on every system, with an ending added.
fn is_file_stem(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    name.len() <= 100 && name.chars().all(allowed) && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Measured, Verdict, labels};

    fn table(axis: &str, length: usize) -> Table {
        Table::new("t", [(axis, labels(0..length))], vec![0.; length]).unwrap()
    }

    #[test]
    fn the_json_is_addressed_by_name() {
        let mut report = Report::new("Patching", "patch", "Layer 1 carries it.");
        report.tables.insert("scores".into(), table("layer", 2));
        report.sections.push(Section::HeatMap {
            heading: None,
            table: "scores".into(),
            alternatives: vec![],
            scale: ColourScale::UNIT,
            caption: "c".into(),
        });
        report.claims.push(Claim::new("s", Measured::number(0.5, ""), "0 at random", Verdict::Partly).unwrap());
        let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(json["tables"]["scores"]["axes"]["layer"], serde_json::json!([0, 1]));
        let scale = serde_json::json!({"kind": "sequential", "limits": [0.0, 1.0]});
        assert_eq!(json["sections"][0]["scale"], scale);
        assert_eq!(json["sections"][0]["kind"], "heat_map");
        assert_eq!(json["claims"][0]["verdict"], "partly");
    }

    #[test]
    fn every_problem_is_listed() {
        let mut report = Report::new("R", "patch", "");
        report.tables.insert("a".into(), table("layer", 2));
        report.tables.insert("A".into(), table("layer", 3));
        report.tables.insert("../b".into(), table("layer", 2));
        report.sections.push(Section::HeatMap {
            heading: None,
            table: "a".into(),
            alternatives: vec!["A".into(), "gone".into()],
            scale: ColourScale::DIVERGING,
            caption: String::new(),
        });
        let deep = [("a", labels(0..1)), ("b", labels(0..1)), ("c", labels(0..1))];
        report.tables.insert("deep".into(), Table::new("", deep, vec![0.]).unwrap());
        report.sections.push(Section::Lines {
            heading: None,
            table: "deep".into(),
            caption: String::new(),
            y_label: String::new(),
        });
        let message = report.check().unwrap_err().to_string();
        for part in [
            "`A` but for upper and lower case",
            "table `../b` needs a name",
            "section 1 switches between `a` and `A`, whose axes differ",
            "section 1 names a table `gone` that is not there",
            "section 2 draws lines of table `deep`, which has 3 axes",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert!(Report::from_json(&report.to_json().unwrap()).is_err());
    }
}
