//! `endoscope study table`: what studies gave, from their run directories.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use endoscope_report::{Claim, Provenance, Report};
use endoscope_studies::{Card, paper};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::output::Output;

#[derive(Debug, Args)]
pub struct TableOfRuns {
    /// Run directories that `endoscope study run` has written.
    #[arg(required = true, value_name = "DIR")]
    runs: Vec<PathBuf>,
}

/// What of a run directory stands in the table.
struct StudyRun {
    card: &'static Card,
    level: String,
    model: Option<String>,
    report: Report,
    provenance: Provenance,
}

impl TableOfRuns {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let mut runs = self.runs.iter().map(|path| StudyRun::read(path)).collect::<Result<Vec<_>>>()?;
        runs.sort_by_key(|run| run.card.number);
        output.document(&runs.iter().map(StudyRun::document).collect::<Vec<_>>())?;
        output.line("| paper | claim | in the paper | here | control | verdict | time |")?;
        output.line("| --- | --- | --- | --- | --- | --- | --- |")?;
        for run in &runs {
            for (at, claim) in run.report.claims.iter().enumerate() {
                output.line(&run.row(claim, at == 0))?;
            }
        }
        Ok(())
    }
}

impl StudyRun {
    fn read(directory: &Path) -> Result<Self> {
        let plan: serde_json::Value = read(&directory.join("plan.json"))?;
        let word = |key: &str| plan[key].as_str().map(str::to_string);
        ensure!(
            word("verb").as_deref() == Some("study run"),
            "{} is the run of another command; `endoscope study run SLUG --out DIR` writes one that fits",
            directory.display()
        );
        Ok(Self {
            card: paper(&word("slug").unwrap_or_default())?,
            level: word("level").unwrap_or_default(),
            model: word("model"),
            report: read(&directory.join("report.json"))?,
            provenance: read(&directory.join("provenance.json"))?,
        })
    }

    fn document(&self) -> serde_json::Value {
        json!({
            "paper": self.card.number,
            "slug": self.card.slug,
            "level": self.level,
            "model": self.model,
            "summary": self.report.summary,
            "claims": self.report.claims,
            "seeds": self.provenance.seeds,
            "wall_seconds": self.provenance.wall_seconds,
        })
    }

    /// One claim. What is the same in all rows of a study stands in its first.
    fn row(&self, claim: &Claim, first: bool) -> String {
        let (mut name, mut time) = (String::new(), String::new());
        if first {
            name = format!("{}. {}", self.card.number, self.card.heading());
            if let Some(model) = &self.model {
                name += &format!(", on {model}");
            }
            time = match self.provenance.wall_seconds {
                seconds if seconds < 90. => format!("{seconds:.0} s"),
                seconds => format!("{:.1} min", seconds / 60.),
            };
            if self.level != "full" {
                time += &format!(" ({})", self.level);
            }
        }
        let cells = [
            name,
            claim.statement.clone(),
            claim.paper.clone().unwrap_or_else(|| "-".into()),
            claim.measured.to_string(),
            claim.control.as_str().to_string(),
            claim.verdict.to_string(),
            time,
        ];
        format!("| {} |", cells.map(|cell| cell.replace('|', "\\|").replace('\n', " ")).join(" | "))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}; is it a run directory?", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}
