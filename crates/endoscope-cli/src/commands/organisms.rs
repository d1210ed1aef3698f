//! `endoscope organisms`: the small models of ours, listed or written out, and prompt pairs for those whose circuit is known;
//! and the tasks, with their rows and pairs.

mod tasks;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use endoscope_organisms::{Circuit, constructed, organisms, write_organism};
use endoscope_report::write_atomically;
use serde_json::json;

use crate::output::Output;
use tasks::ShowTask;

#[derive(Debug, Args)]
pub struct Organisms {
    /// Which one [default: a list of all].
    name: Option<String>,
    /// The model directory to write; must not exist.
    #[arg(long, value_name = "DIR", requires = "name")]
    out: Option<PathBuf>,
    /// A prompt file to write, of fresh clean and corrupt prompts; only for constructed organisms. A file of that name is written over.
    #[arg(long, value_name = "FILE", requires = "name", group = "drawn")]
    pairs: Option<PathBuf>,
    #[command(flatten)]
    task: ShowTask,
    /// How many pairs [default: 64 for an organism, 5 for a task].
    #[arg(long, requires = "drawn")]
    count: Option<usize>,
    /// Other pairs for another seed.
    #[arg(long, default_value_t = 1, requires = "drawn")]
    seed: u64,
}

impl Organisms {
    pub fn run(self, output: &mut Output) -> Result<()> {
        match (&self.name, &self.task.task) {
            (Some(name), _) => self.one(name, output),
            (None, Some(task)) => self.task.run(task, self.count.unwrap_or(5), self.seed, output),
            (None, None) => list(output),
        }
    }

    fn one(&self, name: &str, output: &mut Output) -> Result<()> {
        let all = organisms();
        let known = || all.iter().map(|organism| organism.name).collect::<Vec<_>>().join(", ");
        let Some(organism) = all.iter().find(|organism| organism.name == name) else {
            bail!("there is no organism `{name}`; there are: {}", known());
        };
        if let Some(file) = &self.pairs {
            if !organism.is_constructed() {
                bail!("`{name}` was trained, so it comes without pairs; constructed organisms have them");
            }
            let prompts = constructed(name)?.prompt_file(self.seed, self.count.unwrap_or(64))?;
            write_atomically(file, |whole| whole.write_all(&prompts))?;
        }
        if let Some(directory) = &self.out {
            write_organism(name, directory)?;
        }
        let truth = if organism.is_constructed() { Some(constructed(name)?.truth) } else { None };
        output.document(&json!({
            "name": name,
            "about": organism.about,
            "circuit": truth,
            "out": self.out,
            "pairs": self.pairs,
        }))?;
        output.line(&format!("{name}: {}", organism.about))?;
        if let Some(truth) = &truth {
            output.text(&described(truth))?;
        }
        for written in self.out.iter().chain(&self.pairs) {
            output.line(&format!("written to {}", written.display()))?;
        }
        Ok(())
    }
}

fn list(output: &mut Output) -> Result<()> {
    let all = organisms();
    let entry = |organism: &endoscope_organisms::Organism| json!({"name": organism.name, "about": organism.about, "constructed": organism.is_constructed()});
    output.document(&all.iter().map(entry).collect::<Vec<_>>())?;
    let width = all.iter().map(|organism| organism.name.len()).max().unwrap_or(0);
    all.iter().try_for_each(|organism| output.line(&format!("{:width$}  {}", organism.name, organism.about)))
}

/// Its nodes, then its edges, a line each.
fn described(truth: &Circuit) -> String {
    let nodes = truth.nodes.iter().map(|node| (node.name.as_str(), node.about.as_str()));
    let edges = truth.edges.iter().map(|edge| (edge.name.as_str(), edge.about.as_str()));
    let rows: Vec<(&str, &str)> = nodes.chain(edges).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, about)| format!("  {name:width$}  {about}\n")).collect()
}
