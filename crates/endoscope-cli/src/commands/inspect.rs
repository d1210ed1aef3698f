//! `endoscope inspect`: what a model is. Reads names and shapes, not numbers, so it answers at once for any size; numbers
//! only where weights are asked for.

mod spec;
mod weights;

use anyhow::Result;
use clap::Args;
use endoscope_models::Model;
use endoscope_net::{Site, Sites};
use serde_json::json;

use crate::input::ModelArgument;
use crate::output::Output;
use weights::{Found, WeightsAsked};

#[derive(Debug, Args)]
pub struct Inspect {
    #[command(flatten)]
    model: ModelArgument,
    /// Show only the sites that this name, shorthand or glob stands for.
    #[arg(long, value_name = "PATTERN")]
    sites: Option<String>,
    #[command(flatten)]
    weights: WeightsAsked,
}

impl Inspect {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let (model, found) = match self.weights.any() {
            true => {
                let model = self.model.open()?;
                let found = self.weights.find(&model)?;
                (model, Some(found))
            }
            false => (self.model.open_headers()?, None),
        };
        let chosen: Vec<&Site> = match &self.sites {
            Some(pattern) => model.sites().resolve(pattern)?.into_iter().map(|id| model.sites().get(id)).collect(),
            None => model.sites().iter().collect(),
        };
        let tokenizer = model.tokenizer.as_ref().map(|tokenizer| {
            json!({
                "bos": tokenizer.bos.as_ref().map(|(id, token)| json!({"id": id, "token": token})),
                "prepends_bos": tokenizer.prepends_bos,
            })
        });
        let mut document = json!({
            "model": model.directory.to_string_lossy(),
            "revision": model.revision,
            "family": model.family,
            "parameters": model.parameters,
            "spec": model.spec(),
            "tokenizer": tokenizer,
            "end_tokens": model.end_tokens,
            "files": model.files.iter().map(|(role, path)| json!({"role": role, "path": path.to_string_lossy()})).collect::<Vec<_>>(),
            "sites": chosen.iter().map(|site| json!({
                "name": site.name, "layer": site.layer, "role": site.role, "axes": site.axes,
            })).collect::<Vec<_>>(),
        });
        let Some(Found { text: table, entries }) = found else {
            output.document(&document)?;
            return output.text(&text(&model, &chosen, self.sites.is_some()));
        };
        if let Some(document) = document.as_object_mut() {
            document.extend(entries);
        }
        output.document(&document)?;
        output.text(&table)
    }
}

fn text(model: &Model, chosen: &[&Site], all_layers: bool) -> String {
    let title = match &model.revision {
        Some(revision) => format!("{} at commit {}", revision.repository, revision.commit),
        None => model.directory.display().to_string(),
    };
    let mut lines = vec![
        title,
        format!("  family      {}", model.family.model_type()),
        format!("  parameters  {}", grouped(model.parameters)),
    ];
    lines.extend(spec::lines(model.spec()));
    lines.push(match &model.tokenizer {
        None => match &model.tokenizer_problem {
            None => "  tokenizer   none: give token ids (--tokens)".to_string(),
            Some(problem) => format!("  tokenizer   none ({problem}): give token ids (--tokens)"),
        },
        Some(tokenizer) => format!(
            "  tokenizer   {} put before a text",
            match &tokenizer.bos {
                Some((id, token)) if tokenizer.prepends_bos => format!("{token} (id {id}) is"),
                Some((id, token)) => format!("{token} (id {id}) is not"),
                None => "nothing is".to_string(),
            }
        ),
    });
    lines.push(String::new());
    lines.push(sites_heading(model.sites(), chosen, all_layers));
    // Layers are alike: the first stands for all unless sites were chosen.
    for site in chosen.iter().filter(|site| all_layers || site.layer.unwrap_or(0) == 0) {
        lines.push(format!("  {:<36} [{}]", site.name, site.axes_text()));
    }
    lines.join("\n") + "\n"
}

fn sites_heading(sites: &Sites, chosen: &[&Site], all_layers: bool) -> String {
    match all_layers {
        true => format!("{} of {} sites:", chosen.len(), sites.len()),
        false => format!("{} sites, those of layer 0 for all {} layers:", sites.len(), sites.layers()),
    }
}

/// 1234567 -> 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}
