//! `endoscope lens`: what each layer would say now, as a grid of tokens; and the lenses to read it by.

mod make;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::Encode;
use endoscope_causal::lens::{self, Ask, Kind, Streams};
use endoscope_models::Model;
use endoscope_net::Index;
use endoscope_report::{HashedFile, RunDirectory, Started};
use serde_json::json;

use self::make::MakeArguments;
use crate::chat::{self, ChatArguments};
use crate::input::{Asked, BosArguments, ModelArgument, ModelEncoder, Prompt, Words};
use crate::output::Output;
use crate::provenance::provenance;

#[derive(Debug, Args)]
pub struct Lens {
    #[command(flatten)]
    model: ModelArgument,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    bos: BosArguments,
    /// How a layer's stream is read: logit (as it is), tuned or jacobian (by the map of --lens) [default: that of --lens, or
    /// logit].
    #[arg(long, value_enum, conflicts_with = "train")]
    kind: Option<KindArgument>,
    /// A lens that --train has made.
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "train")]
    lens: Option<PathBuf>,
    /// How many of the most probable tokens are kept.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
    /// The token whose probability and rank are told [default: at each position the model's own most probable one].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "train")]
    target: Option<String>,
    /// The same by its id.
    #[arg(long, value_name = "ID", conflicts_with_all = ["target", "train"])]
    target_id: Option<u32>,
    /// The positions that are read: `last`, `2..5`, `last_user`, `token:" Paris"`, or several joined by `+`.
    #[arg(long, value_name = "POSITIONS", allow_hyphen_values = true, conflicts_with = "train")]
    positions: Option<String>,
    /// The streams between attention and MLP as well.
    #[arg(long)]
    mid: bool,
    #[command(flatten)]
    make: MakeArguments,
    /// The run directory to write; must not exist.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What is read; exactly one, unless a lens is made.
#[derive(Debug, Args)]
#[group(id = "prompts_read", multiple = false)]
struct Source {
    /// A text.
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids, separated by commas.
    #[arg(long, value_name = "1,2,3")]
    tokens: Option<String>,
    /// A chat: a JSON file with a list of messages, or with `messages`, `tools` and more; - is standard input.
    #[arg(long, value_name = "FILE.json")]
    chat: Option<PathBuf>,
    /// A chat of one message: what the user says.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    user: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArgument {
    Logit,
    Tuned,
    Jacobian,
}

impl From<KindArgument> for Kind {
    fn from(argument: KindArgument) -> Self {
        match argument {
            KindArgument::Logit => Self::Logit,
            KindArgument::Tuned => Self::Tuned,
            KindArgument::Jacobian => Self::Jacobian,
        }
    }
}

impl Source {
    fn words(&self) -> Option<Words<'_>> {
        let words = Words {
            text: self.prompt.as_deref(),
            tokens: self.tokens.as_deref(),
            prompts: None,
            chat: self.chat.as_deref(),
            user: self.user.as_deref(),
        };
        let Words { text, tokens, chat, user, .. } = words;
        (text.is_some() || tokens.is_some() || chat.is_some() || user.is_some()).then_some(words)
    }
}

impl Lens {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let streams = if self.mid { Streams::Halves } else { Streams::Layers };
        let out = self.out.as_deref();
        match (self.source.words(), self.make.is_asked()) {
            (Some(_), true) => bail!("--train makes a lens and reads no prompt; leave one of them out"),
            (None, true) => self.make.run(&self.model, self.bos, streams, out, output),
            (None, false) => {
                bail!(
                    "there is no prompt to read (--prompt, --tokens, --chat, --user), and no lens to be made (--train)"
                )
            }
            (Some(words), false) => self.read(words, streams, output),
        }
    }

    fn read(&self, words: Words<'_>, streams: Streams, output: &mut Output) -> Result<()> {
        let started = Started::now();
        self.make.refuse()?;
        let model = self.model.open()?;
        let lens = self.lens(&model, output)?;
        let prompt = match Asked::read(&model, words, self.bos, &self.chat, output)? {
            Asked::One(prompt) => prompt,
            Asked::Several(_) => bail!("a lens reads one prompt"),
        };
        let positions = match &self.positions {
            Some(written) => chat::index(written, Some(&prompt.tokens()))?,
            None => Index::All,
        };
        let ask = Ask { positions, target: self.target(&model, output)?, top: self.top as usize };
        // Before the work, so that an existing directory is found out at once.
        let directory = self.out.as_deref().map(RunDirectory::create).transpose()?;
        let reading = lens::read(&model.decoder, &lens, &prompt.ids, &ask, streams)?;
        let report = report::reading(&model, &lens, &prompt, &reading, ask.target)?;
        let document = report::document(&model, &lens, &prompt, &reading);
        output.document(&document)?;
        output.report(&report)?;
        let Some(directory) = directory else { return Ok(()) };
        let mut provenance = provenance(&started, &model, &[])?;
        if let Some(path) = &self.lens {
            provenance.files.push(HashedFile::read("lens", path)?);
        }
        directory.write_json("plan.json", &self.plan(&model, &prompt, &ask))?;
        directory.write_json("reading.json", &document)?;
        directory.write_provenance(&provenance)?;
        directory.write_report(&report, &provenance)?;
        let path = directory.finish()?;
        output.line(&format!("\nwritten to {} (open report.html)", path.display()))
    }

    fn plan(&self, model: &Model, prompt: &Prompt, ask: &Ask) -> serde_json::Value {
        json!({
            "verb": "lens",
            "model": model.directory.to_string_lossy(),
            "lens": self.lens,
            "tokens": prompt.ids,
            "positions": ask.positions,
            "target": ask.target,
            "top": ask.top,
            "mid": self.mid,
        })
    }

    fn lens(&self, model: &Model, output: &Output) -> Result<lens::Lens> {
        let kind = self.kind.map(Kind::from);
        let Some(path) = &self.lens else {
            return match kind {
                None | Some(Kind::Logit) => Ok(lens::Lens::logit()),
                Some(kind) => bail!(
                    "--kind {0} needs --lens FILE.safetensors; `--train {0} --save FILE.safetensors` makes one",
                    kind.name()
                ),
            };
        };
        let lens = load(path)?;
        if let Some(kind) = kind.filter(|&kind| kind != lens.kind) {
            bail!("{} holds a {} lens, not a {} one", path.display(), lens.kind.name(), kind.name());
        }
        if lens.made.get("weights").is_some_and(|weights| *weights != make::weights(model).unwrap_or_default()) {
            output.note(&format!("{} was made for other weights than these", path.display()));
        }
        Ok(lens)
    }

    fn target(&self, model: &Model, output: &Output) -> Result<Option<u32>> {
        let vocabulary = model.spec().vocabulary;
        match (&self.target, self.target_id) {
            (_, Some(id)) if id as usize >= vocabulary => {
                bail!("--target-id {id} is out of range: the vocabulary has {vocabulary} tokens")
            }
            (_, Some(id)) => Ok(Some(id)),
            (Some(text), None) => {
                let encoder = ModelEncoder::new(model, self.bos.bos());
                let (id, more) = encoder.answer(text).map_err(anyhow::Error::msg).context("--target")?;
                let label = model.label(id);
                if model.tokenizer()?.unknown() == Some(id) && label != *text {
                    bail!("--target {text:?}: the tokenizer has no token for it");
                }
                if more {
                    output.note(&format!("the target {text:?} has several tokens; its first, {label:?}, is used"));
                }
                Ok(Some(id))
            }
            (None, None) => Ok(None),
        }
    }
}

fn load(path: &Path) -> Result<lens::Lens> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the lens {}", path.display()))?;
    lens::Lens::from_bytes(&bytes).with_context(|| path.display().to_string())
}
