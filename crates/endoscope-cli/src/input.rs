//! What the verbs read: models, prompts as text or token ids, plans, prompt files.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::{Encode, WrittenPair, parse_prompts};
use endoscope_models::hub::Reference;
use endoscope_models::process::{self, Process};
use endoscope_models::{Bos, Depth, Model, Precision};
use endoscope_net::Plan;
use endoscope_report::HashedFile;

use crate::output::Output;
use crate::progress;

/// Whether the beginning-of-sequence token is put before a text.
#[derive(Debug, Clone, Copy, Args)]
pub struct BosArguments {
    /// Put the beginning-of-sequence token before each text [default: as the tokenizer's configuration says].
    #[arg(long, conflicts_with = "no_bos")]
    bos: bool,
    /// Do not put it there.
    #[arg(long)]
    no_bos: bool,
}

impl BosArguments {
    pub fn bos(self) -> Bos {
        match (self.bos, self.no_bos) {
            (true, _) => Bos::Prepend,
            (_, true) => Bos::Omit,
            _ => Bos::AsConfigured,
        }
    }
}

/// One prompt as token ids.
#[derive(Debug, Clone)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// The text of what was prepended.
    pub prepended: Option<String>,
}

/// Reads a comma-separated list of token ids.
pub fn token_ids(text: &str) -> Result<Vec<u32>> {
    if text.split(',').all(|part| part.trim().is_empty()) {
        bail!("--tokens holds no token ids; write them like 1,2,3");
    }
    let id = |part: &str| part.parse().with_context(|| format!("`{part}` in --tokens is not a token id"));
    text.split(',').map(str::trim).map(id).collect()
}

/// A prompt from a text or from token ids; clap has seen to it that exactly one is there.
pub fn prompt(model: &Model, text: Option<&str>, tokens: Option<&str>, bos: Bos, output: &Output) -> Result<Prompt> {
    match (text, tokens) {
        (Some(text), _) => {
            let encoded = model.tokenizer()?.encode(text, bos)?;
            if let Some(token) = &encoded.prepended {
                output.note(&format!("{token} was put before the text (--no-bos leaves it out)"));
            }
            Ok(Prompt { ids: encoded.ids, prepended: encoded.prepended })
        }
        (None, Some(tokens)) => Ok(Prompt { ids: token_ids(tokens)?, prepended: None }),
        (None, None) => bail!("there is neither a text nor token ids to run"),
    }
}

/// Reads a plan and the tensors that it names, which lie beside it.
pub fn plan(path: &Path) -> Result<Plan> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the plan {}", path.display()))?;
    let plan: Plan = serde_json::from_str(&text).with_context(|| format!("{} is not a plan", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    Ok(plan.load(folder)?)
}

/// Reads a prompt file, and says what was read.
pub fn prompts(path: &Path) -> Result<(Vec<WrittenPair>, HashedFile)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the prompts {}", path.display()))?;
    let pairs = parse_prompts(&text).with_context(|| path.display().to_string())?;
    Ok((pairs, HashedFile::of("prompts", path, text.as_bytes())))
}

/// A model's way from text to tokens.
pub struct ModelEncoder<'a> {
    model: &'a Model,
    bos: Bos,
    prepended: RefCell<Option<String>>,
}

impl<'a> ModelEncoder<'a> {
    pub fn new(model: &'a Model, bos: Bos) -> Self {
        Self { model, bos, prepended: RefCell::new(None) }
    }

    /// What the reader should be told of what was put before the prompts.
    pub fn note(&self) -> Option<String> {
        let prepended = self.prepended.borrow();
        prepended.as_ref().map(|token| format!("{token} was put before each prompt (--no-bos leaves it out)"))
    }
}

impl Encode for ModelEncoder<'_> {
    fn prompt(&self, text: &str) -> Result<Vec<u32>, String> {
        let tokenizer = self.model.tokenizer().map_err(|error| error.to_string())?;
        let encoded = tokenizer.encode(text, self.bos).map_err(|error| error.to_string())?;
        if encoded.prepended.is_some() {
            *self.prepended.borrow_mut() = encoded.prepended;
        }
        Ok(encoded.ids)
    }

    fn answer(&self, text: &str) -> Result<(u32, bool), String> {
        let tokenizer = self.model.tokenizer().map_err(|error| error.to_string())?;
        tokenizer.first_token(text).map_err(|error| error.to_string())
    }

    fn label(&self, id: u32) -> String {
        self.model.label(id)
    }
}

/// A model argument, the same for every verb.
#[derive(Debug, Clone, Args)]
pub struct ModelArgument {
    /// A Hugging Face model directory (config.json, model.safetensors or shards, tokenizer.json), or a repository of
    /// the hub, org/name or org/name@revision, which is downloaded once.
    pub model: PathBuf,
    #[command(flatten)]
    weights: WeightsArgument,
    /// Change the weights so that they are easier to read and compute the same: fold-ln, center-writing, center-unembed,
    /// fold-value-biases [default: none].
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    process: Vec<Process>,
}

impl ModelArgument {
    pub fn open(&self) -> Result<Model> {
        let mut model = open(&self.model, Depth::Numbers(self.weights.precision()))?;
        process::apply(&mut model.decoder, &self.process)?;
        Ok(model)
    }

    /// Opens it without its numbers.
    pub fn open_headers(&self) -> Result<Model> {
        let model = open(&self.model, Depth::Headers)?;
        process::check(model.spec(), &self.process)?;
        Ok(model)
    }
}

/// Opens a model, with a bar for each file that is downloaded.
pub fn open(model: &Path, depth: Depth) -> Result<Model> {
    Ok(Model::open_reference(&Reference::parse(model)?, depth, &mut progress::downloads())?)
}

/// How matrices are kept in memory.
#[derive(Debug, Clone, Copy, Args)]
pub struct WeightsArgument {
    /// How matrices are kept in memory: f32, bf16 (rounded to nearest), or int8 (32 weights share a scale, as in GGUF's
    /// Q8_0). Activations and sums are f32 in any case.
    #[arg(long, value_enum, default_value = "f32")]
    weights: Weights,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Weights {
    F32,
    Bf16,
    Int8,
}

impl WeightsArgument {
    pub fn precision(self) -> Precision {
        match self.weights {
            Weights::F32 => Precision::F32,
            Weights::Bf16 => Precision::Bf16,
            Weights::Int8 => Precision::Int8,
        }
    }
}
