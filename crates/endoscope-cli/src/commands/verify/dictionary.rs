//! `endoscope verify DICT --model M`: whether a dictionary belongs to the site of a model that it names.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_dictionary::certificate::{Allowed, Certificate, certify};
use endoscope_dictionary::formats;
use endoscope_models::Model;
use endoscope_report::{HashedFile, RunDirectory, Started};
use serde_json::json;

use crate::commands::dict::SiteArguments;
use crate::commands::dict::source::files;
use crate::input::{BosArguments, ModelArgument};
use crate::output::Output;
use crate::provenance::provenance;
use crate::token_rows::RowArguments;

/// How many random rows are run where none are given.
const ROWS: usize = 32;
const LENGTH: usize = 64;

#[derive(Debug, Args)]
pub struct DictionaryArguments {
    /// The model whose activations a dictionary is run on; what is verified is then the dictionary.
    #[arg(long = "model", id = "network", value_name = "MODEL")]
    model: Option<std::path::PathBuf>,
    #[command(flatten)]
    rows: RowArguments,
    #[command(flatten)]
    sites: SiteArguments,
    /// The largest fraction of variance that a dictionary may leave unexplained.
    #[arg(long, value_name = "SHARE", default_value_t = Allowed::default().fvu, requires = "network")]
    max_fvu: f64,
    /// The fewest and most active latents a vector [default: a half, and as many as it reads dimensions].
    #[arg(long, value_name = "LEAST,MOST", value_parser = pair, requires = "network")]
    l0: Option<(f64, f64)>,
    /// Count positions from this one on: 1 leaves out the first token, whose activations are unlike all others in many models.
    #[arg(long, value_name = "POSITION", default_value_t = 0, requires = "network")]
    from_position: usize,
}

fn pair(text: &str) -> std::result::Result<(f64, f64), String> {
    let numbers = text.split_once(',').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    numbers.filter(|(a, b)| a <= b).ok_or_else(|| format!("`{text}` is not two numbers like 1,64"))
}

impl DictionaryArguments {
    /// Whether a dictionary is verified.
    pub fn given(&self) -> bool {
        self.model.is_some()
    }

    pub fn refuse(&self) -> Result<()> {
        match self.rows.given() || self.sites.given() {
            true => bail!("rows and sites are for a dictionary: name the model that it belongs to with --model"),
            false => Ok(()),
        }
    }

    /// Verifies the dictionary at `path`.
    pub fn run(
        &self,
        path: &Path,
        other: &ModelArgument,
        bos: BosArguments,
        started: &Started,
        directory: RunDirectory,
        output: &mut Output,
    ) -> Result<()> {
        let Some(model) = &self.model else { bail!("name the model with --model") };
        let opened = formats::open(path)?;
        opened.notes.iter().for_each(|note| output.note(note));
        let (format, notes) = (opened.format, opened.notes.clone());
        let dictionary = self.sites.apply(opened.dictionary(path)?)?;
        let model = other.open_other(model)?;
        let rows = self.rows(&model, bos, output)?;
        let allowed = Allowed { fvu: self.max_fvu, l0: self.l0, from_position: self.from_position };
        let certificate = certify(&model.decoder, &dictionary, &rows, allowed)?;
        let mut provenance = provenance(started, &model, &[])?;
        for file in files(path)? {
            provenance.files.push(HashedFile::read("dictionary", file)?);
        }
        provenance.files.extend(self.rows.file()?);
        let document = json!({
            "verdict": if certificate.passed { "passed" } else { "failed" },
            "dictionary": path.to_string_lossy(),
            "format": format,
            "notes": notes,
            "model": model.directory.to_string_lossy(),
            "certificate": certificate,
            "rows": rows,
            "provenance": provenance,
        });
        directory.write_json("certificate.json", &document)?;
        let written = directory.finish()?;
        output.document(&document)?;
        output.text(&text(path, &certificate))?;
        output.line(&format!("\nwritten to {}", written.join("certificate.json").display()))?;
        match (certificate.failures.first(), certificate.causes.first()) {
            (None, None) => Ok(()),
            (failure, None) => bail!("the dictionary fails: {}", failure.map_or("", String::as_str)),
            (None, Some(cause)) => bail!("the dictionary is not right there: {}", cause.says),
            (Some(failure), Some(cause)) => bail!("the dictionary fails: {failure}; {}", cause.says),
        }
    }

    fn rows(&self, model: &Model, bos: BosArguments, output: &Output) -> Result<Vec<Vec<u32>>> {
        if self.rows.given() {
            return self.rows.read(model, bos, 0);
        }
        output.note("random tokens are run; give --text for a dictionary that was trained on a language");
        let length = LENGTH.min(model.spec().context);
        let rows = endoscope_causal::lens::repeated_rows(model.spec().vocabulary as u32, &[], length, ROWS, 0);
        match rows.is_empty() {
            true => Err(anyhow::anyhow!("the model's context of {length} tokens is too short for random rows")),
            false => Ok(rows),
        }
        .context("there is nothing to run")
    }
}

fn text(path: &Path, certificate: &Certificate) -> String {
    let Certificate { passed, sites, output_site, fit, input_length, failures, causes, .. } = certificate;
    let to = output_site.as_ref().map_or(String::new(), |site| format!(" to {site}"));
    let mut lines = vec![format!("{} at {}{to}", path.display(), sites.join(", ")), String::new()];
    if let Some(fit) = fit {
        lines.push(format!(
            "  vectors                {}, of mean length {:.3}",
            fit.rows,
            input_length.unwrap_or_default()
        ));
        lines.push(format!("  variance unexplained   {:.4}", fit.fvu));
        lines.push(format!("  active latents         {:.2}", fit.l0));
        lines.push(format!("  never active           {:.1} %", 100. * fit.dead));
        lines.push(format!("  length of output       {:.3} of what it should be", fit.length_ratio));
    }
    lines.push(if *passed { "  passed".to_string() } else { "  FAILED".to_string() });
    lines.extend(failures.iter().map(|failure| format!("    {failure}")));
    for cause in causes {
        lines.push(format!("    {}: {:.4} unexplained, {:.2} active", cause.says, cause.fvu, cause.l0));
    }
    lines.join("\n") + "\n"
}
