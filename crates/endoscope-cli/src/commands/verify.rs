//! `endoscope verify`: a model's or a dictionary's certificate, as a table and as a run directory. It fails if one check does.

mod dictionary;
mod transformers;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_models::Model;
use endoscope_models::certificate::{Against, Certificate, Check, Reference, Verdict, certify, sample_prompts};
use endoscope_report::{HashedFile, RunDirectory, Started, check_destination, write_atomically};
use serde_json::{Value, json};

use crate::input::{self, BosArguments, ModelArgument};
use crate::output::Output;
use crate::progress;
use crate::provenance::{next_free, provenance};

#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    model: ModelArgument,
    /// A text to run; may be given again [default: sample texts and random ids].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Vec<String>,
    /// Token ids to run, separated by commas; may be given again.
    #[arg(long, value_name = "1,2,3")]
    tokens: Vec<String>,
    #[command(flatten)]
    dictionary: dictionary::DictionaryArguments,
    #[command(flatten)]
    bos: BosArguments,
    /// Compare every site as well: with `transformers`, which a Python with torch then runs on the same prompts; or with a
    /// safetensors file of such activations (`tokens`, and a tensor for each site).
    #[arg(long, value_name = "transformers|FILE")]
    against: Option<PathBuf>,
    /// The Python that has transformers [default: that of the active environment, or python3].
    #[arg(long, value_name = "PATH", requires = "against")]
    python: Option<PathBuf>,
    /// Keep transformers' activations in this file, for `--against FILE`.
    #[arg(long, value_name = "FILE.safetensors", requires = "against")]
    keep: Option<PathBuf>,
    /// The run directory to write; must not exist [default: runs/verify, or the next free runs/verify-2 …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What the model is compared with.
enum Compared {
    Nothing,
    With { reference: Reference, source: Value },
    Missing(String),
}

impl Verify {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        self.check_arguments()?;
        if self.dictionary.given() {
            let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("verify")))?;
            return self.dictionary.run(&self.model.model, &self.model, self.bos, &started, directory, output);
        }
        self.dictionary.refuse()?;
        let model = self.model.open()?;
        let prompts = self.prompts(&model, output)?;
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("verify")))?;
        let compared = self.compared(&model, &prompts)?;
        let against = match &compared {
            Compared::Nothing => Against::Nothing,
            Compared::With { reference, .. } => Against::Reference(reference),
            Compared::Missing(reason) => Against::Missing(reason),
        };
        let bar = progress::bar(0, "checking");
        let certificate = certify(&model, &prompts, against, &mut |done, steps| {
            bar.set_length(steps as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let certificate = certificate?;
        let document = self.document(&started, &model, &certificate, &compared)?;
        directory.write_json("certificate.json", &document)?;
        let path = directory.finish()?;
        output.document(&document)?;
        output.text(&text(&model, &certificate))?;
        output.line(&format!("\nwritten to {}", path.join("certificate.json").display()))?;
        let failed: Vec<String> = certificate.failed().map(name).collect();
        match failed.as_slice() {
            [] => Ok(()),
            [one] => bail!("a check has failed: {one}"),
            many => bail!("{} checks have failed: {}", many.len(), many.join(", ")),
        }
    }

    fn check_arguments(&self) -> Result<()> {
        let of_a_model = !self.prompt.is_empty() || !self.tokens.is_empty() || self.against.is_some();
        if self.dictionary.given() && of_a_model {
            bail!(
                "--prompt, --tokens and --against are for models; a dictionary is run on --text, --token-rows or --random"
            );
        }
        let Some(against) = &self.against else { return Ok(()) };
        if !self.model.is_exact() {
            bail!(
                "the reference computes in f32 on the weights of the file; leave out --weights, --compute and --process"
            );
        }
        if !is_transformers(against) {
            if self.python.is_some() || self.keep.is_some() {
                bail!("--python and --keep go with --against transformers; {} needs neither", against.display());
            }
            if !against.is_file() {
                bail!("--against {}: there is no such file, and it is not `transformers`", against.display());
            }
        }
        self.keep.as_deref().map_or(Ok(()), |path| Ok(check_destination(path)?))
    }

    fn prompts(&self, model: &Model, output: &Output) -> Result<Vec<Vec<u32>>> {
        let mut prompts = Vec::new();
        for text in &self.prompt {
            prompts.push(input::text(model, text, self.bos, output)?.ids);
        }
        for tokens in &self.tokens {
            prompts.push(input::token_ids(tokens)?);
        }
        Ok(if prompts.is_empty() { sample_prompts(model) } else { prompts })
    }

    fn compared(&self, model: &Model, prompts: &[Vec<u32>]) -> Result<Compared> {
        let Some(against) = &self.against else { return Ok(Compared::Nothing) };
        if !is_transformers(against) {
            let source = json!({"file": HashedFile::read("reference", against)?});
            return Ok(Compared::With { reference: Reference::read(against)?, source });
        }
        let folder = tempfile::tempdir().context("cannot make room for transformers' activations")?;
        let file = folder.path().join("sites.safetensors");
        let bar = progress::bar(1, "transformers");
        let versions = transformers::sites(self.python.as_deref(), &model.directory, prompts, &file);
        bar.finish_and_clear();
        let versions = match versions {
            Ok(versions) => versions,
            Err(reason) => return Ok(Compared::Missing(format!("{reason:#}"))),
        };
        if let Some(keep) = &self.keep {
            let mut sites = std::fs::File::open(&file).context("cannot read transformers' activations")?;
            write_atomically(keep, |kept| std::io::copy(&mut sites, kept).map(|_| ()))?;
        }
        Ok(Compared::With { reference: Reference::read(&file)?, source: json!({"transformers": versions}) })
    }

    fn document(
        &self,
        started: &Started,
        model: &Model,
        certificate: &Certificate,
        compared: &Compared,
    ) -> Result<Value> {
        let reference = match compared {
            Compared::Nothing => Value::Null,
            Compared::With { source, .. } => source.clone(),
            Compared::Missing(reason) => json!({"missing": reason}),
        };
        Ok(json!({
            "verdict": certificate.verdict(),
            "model": model.directory.to_string_lossy(),
            "family": model.family,
            "parameters": model.parameters,
            "weights": self.model.weights(),
            "reference": reference,
            "checks": certificate.checks,
            "prompts": certificate.prompts,
            "provenance": provenance(started, model, &[])?,
        }))
    }
}

fn is_transformers(against: &Path) -> bool {
    against.as_os_str() == "transformers"
}

/// A check's name as it stands in the document.
fn name(check: &Check) -> String {
    serde_json::to_value(check.name).ok().and_then(|name| name.as_str().map(str::to_string)).unwrap_or_default()
}

fn text(model: &Model, certificate: &Certificate) -> String {
    let count = |verdict| certificate.checks.iter().filter(|check| check.verdict == verdict).count();
    let (passed, failed) = (count(Verdict::Passed), count(Verdict::Failed));
    let mut lines = vec![
        format!("{} ({}), {} prompts", model.directory.display(), model.family.model_type(), certificate.prompts.len()),
        format!("{passed} checks passed, {failed} failed, {} do not apply", count(Verdict::NotApplicable)),
        String::new(),
    ];
    for check in &certificate.checks {
        lines.push(line(check));
        if check.verdict == Verdict::Failed {
            lines.push(format!("           {}", check.asserts));
            lines.extend(check.notes.iter().map(|note| format!("           {note}")));
        }
    }
    lines.join("\n") + "\n"
}

fn line(check: &Check) -> String {
    let verdict = match check.verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "FAILED",
        Verdict::NotApplicable => "-",
    };
    let start = format!("  {verdict:<7}  {:<24}", name(check));
    let Some(worst) = check.worst else {
        return match check.verdict {
            Verdict::Failed => start.trim_end().to_string(),
            _ => start + &check.notes.join("; "),
        };
    };
    let figure = if worst == 0. { "0".to_string() } else { format!("{worst:.1e}") };
    let allowed = if check.tolerance == 0. { "0".to_string() } else { format!("{:.0e}", check.tolerance) };
    let place = match (&check.site, check.prompt) {
        _ if worst == 0. => check.notes.join("; "),
        (Some(site), Some(prompt)) => format!("{site}, prompt {prompt}"),
        (Some(site), None) => site.clone(),
        (None, _) => check.notes.join("; "),
    };
    format!("{start}{figure:>8} of {allowed:<6} {place}").trim_end().to_string()
}
