//! `endoscope dict convert`: a dictionary of one format written in another.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use endoscope_dictionary::Dictionary;
use endoscope_dictionary::formats::{self, Contents, Format, Opened};
use serde_json::json;

use crate::output::Output;

#[derive(Debug, Args)]
pub struct Convert {
    /// The dictionary: a directory or file of any format that `dict show` reads.
    dictionary: PathBuf,
    /// The directory to write; must not exist. The dictionaries of a set come into folders of it.
    to: PathBuf,
    /// The format.
    #[arg(long, value_enum)]
    format: FormatArgument,
    #[command(flatten)]
    sites: SiteArguments,
}

/// Sites that a file does not say, or says wrongly.
#[derive(Debug, Args)]
pub struct SiteArguments {
    /// The site that it reads, where its files do not say it.
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    /// The site that it writes, if it is a transcoder and its files do not say it.
    #[arg(long, value_name = "SITE")]
    output_site: Option<String>,
}

impl SiteArguments {
    /// The dictionary with these sites.
    pub fn apply(&self, dictionary: Dictionary) -> Result<Dictionary> {
        if self.site.is_none() && self.output_site.is_none() {
            return Ok(dictionary);
        }
        let (mut config, weights) = dictionary.into_parts();
        if let Some(site) = &self.site {
            config.sites = vec![site.clone()];
            config.heads_flattened = site.ends_with("hook_z");
        }
        match (&self.output_site, &mut config.output_site) {
            (Some(site), Some(output)) => output.clone_from(site),
            (Some(_), None) => bail!("--output-site is for transcoders, and this dictionary writes what it reads"),
            (None, _) => {}
        }
        Ok(Dictionary::new(config, weights)?)
    }

    /// Whether there are any.
    pub fn given(&self) -> bool {
        self.site.is_some() || self.output_site.is_some()
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArgument {
    #[value(name = "sae_lens")]
    SaeLens,
    #[value(name = "gemma_scope")]
    GemmaScope,
    Sparsify,
    #[value(name = "dictionary_learning")]
    DictionaryLearning,
    #[value(name = "circuit_tracer")]
    CircuitTracer,
}

impl From<FormatArgument> for Format {
    fn from(argument: FormatArgument) -> Self {
        match argument {
            FormatArgument::SaeLens => Self::SaeLens,
            FormatArgument::GemmaScope => Self::GemmaScope,
            FormatArgument::Sparsify => Self::Sparsify,
            FormatArgument::DictionaryLearning => Self::DictionaryLearning,
            FormatArgument::CircuitTracer => Self::CircuitTracer,
        }
    }
}

impl Convert {
    pub fn run(self, output: &mut Output) -> Result<()> {
        if self.to.exists() {
            bail!("{} exists already; name a new directory", self.to.display());
        }
        let format = Format::from(self.format);
        let Opened { format: from, contents, mut notes } = formats::open(&self.dictionary)?;
        let mut lost = Vec::new();
        let mut written = Vec::new();
        match contents {
            Contents::Dictionary(dictionary) => {
                lost = self.save(*dictionary, &self.to, format)?;
                if let Some(log_sparsity) = sparsity(&self.dictionary, from)? {
                    match format {
                        Format::SaeLens => formats::write_log_sparsity(&self.to, &log_sparsity)?,
                        _ => lost.push("how often each latent is active (sparsity.safetensors)".into()),
                    }
                }
                written.push(self.to.clone());
            }
            Contents::Set(_) if self.sites.given() => {
                bail!("--site and --output-site are for one dictionary, and {} is a set", self.dictionary.display())
            }
            Contents::Set(paths) => {
                for path in paths {
                    let opened = formats::open(&path)?;
                    let name = path.file_stem().filter(|_| path.is_file()).or(path.file_name()).unwrap_or_default();
                    // circuit-tracer keeps all layers in one directory.
                    let to = if format == Format::CircuitTracer { self.to.clone() } else { self.to.join(name) };
                    notes.extend(opened.notes.iter().map(|note| format!("{}: {note}", path.display())));
                    let lost_here = self
                        .save(opened.dictionary(&path)?, &to, format)
                        .with_context(|| path.display().to_string())?;
                    lost.extend(lost_here.into_iter().filter(|_| format != Format::CircuitTracer));
                    written.push(to);
                }
                lost.dedup();
                written.dedup();
            }
            Contents::CrossLayer(transcoder) => {
                if format != Format::CircuitTracer {
                    bail!("only circuit_tracer holds a cross-layer transcoder");
                }
                formats::save_cross_layer(&self.to, &transcoder)?;
                written.push(self.to.clone());
            }
        }
        notes.iter().for_each(|note| output.note(note));
        output.document(&json!({
            "from": from,
            "to": format,
            "written": written,
            "notes": notes,
            "lost": lost,
        }))?;
        for path in &written {
            output.line(&format!("written to {}", path.display()))?;
        }
        for lost in &lost {
            output.line(&format!("not in it: {lost}"))?;
        }
        Ok(())
    }

    fn save(&self, dictionary: Dictionary, to: &Path, format: Format) -> Result<Vec<String>> {
        let saved = formats::save(to, &self.sites.apply(dictionary)?, format);
        if saved.is_err() {
            // Only if nothing is in it.
            let _ = std::fs::remove_dir(to);
        }
        Ok(saved?)
    }
}

/// What a directory of SAELens says of how often latents are active.
pub fn sparsity(path: &Path, format: Format) -> Result<Option<Vec<f32>>> {
    match format {
        Format::SaeLens => Ok(formats::read_log_sparsity(path)?),
        _ => Ok(None),
    }
}
