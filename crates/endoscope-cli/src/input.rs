//! What the verbs read: models, prompts as text or token ids, plans, prompt files.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::{Encode, Written, WrittenPair, parse_prompts};
use endoscope_dictionary::{Dictionary, formats};
use endoscope_models::hub::Reference;
use endoscope_models::process::{self, Process};
use endoscope_models::{Bos, Compute, Depth, EncodedChat, MessageSpan, Model, Precision, PromptTokens};
use endoscope_net::{Padding, Plan};
use endoscope_report::HashedFile;

use crate::chat::{ChatArguments, replace_names};
use crate::output::Output;
use crate::progress;

/// Whether the beginning-of-sequence token is put before a text.
#[derive(Debug, Clone, Copy, Default, Args)]
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
    /// The text of each token.
    pub labels: Vec<String>,
    /// Its text and messages, if it is a chat.
    pub chat: Option<EncodedChat>,
}

impl Prompt {
    fn new(model: &Model, ids: Vec<u32>) -> Self {
        let labels = ids.iter().map(|&id| model.label(id)).collect();
        Self { ids, prepended: None, labels, chat: None }
    }

    /// Where each message of a chat stands.
    pub fn messages(&self) -> &[MessageSpan] {
        self.chat.as_ref().map_or(&[], |chat| &chat.messages)
    }

    /// What positions are named by.
    pub fn tokens(&self) -> PromptTokens<'_> {
        PromptTokens { labels: &self.labels, messages: self.messages() }
    }
}

/// What prompts are made of; clap sees to it that exactly one is there.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    pub text: Option<&'a str>,
    pub tokens: Option<&'a str>,
    pub prompts: Option<&'a Path>,
    pub chat: Option<&'a Path>,
    pub user: Option<&'a str>,
}

/// Reads a comma-separated list of token ids.
pub fn token_ids(text: &str) -> Result<Vec<u32>> {
    if text.split(',').all(|part| part.trim().is_empty()) {
        bail!("--tokens holds no token ids; write them like 1,2,3");
    }
    let id = |part: &str| part.parse().with_context(|| format!("`{part}` in --tokens is not a token id"));
    text.split(',').map(str::trim).map(id).collect()
}

/// What is run.
#[derive(Debug, Clone)]
pub enum Asked {
    One(Prompt),
    /// The clean prompts of a file.
    Several(Vec<Vec<u32>>),
}

impl Asked {
    /// From a text, from token ids, from a prompt file or from a chat.
    pub fn read(
        model: &Model,
        words: Words<'_>,
        bos: BosArguments,
        chat: &ChatArguments,
        output: &Output,
    ) -> Result<Self> {
        let said = match words {
            Words { chat: Some(path), .. } => Some(chat.read(path)?),
            Words { user: Some(user), .. } => Some(chat.of_user(user)),
            _ => None,
        };
        if let Some(said) = said {
            if bos.bos || bos.no_bos {
                bail!("a chat's template writes the beginning-of-sequence token itself; leave out --bos and --no-bos");
            }
            let encoded = chat.encode(model, &said)?;
            return Ok(Self::One(Prompt { chat: Some(encoded.clone()), ..Prompt::new(model, encoded.ids) }));
        }
        chat.refuse()?;
        match words {
            Words { text: Some(written), .. } => text(model, written, bos, output).map(Self::One),
            Words { tokens: Some(tokens), .. } => Ok(Self::One(Prompt::new(model, token_ids(tokens)?))),
            Words { prompts: Some(path), .. } => rows(model, path, bos, output).map(Self::Several),
            _ => bail!("there is neither a text nor token ids to run"),
        }
    }

    /// What positions are named by; several prompts have no names in common.
    pub fn tokens(&self) -> Option<PromptTokens<'_>> {
        match self {
            Self::One(prompt) => Some(prompt.tokens()),
            Self::Several(_) => None,
        }
    }

    /// The plan of a file, whose positions may have names, or none.
    pub fn plan(&self, path: Option<&Path>) -> Result<Plan> {
        path.map_or_else(|| Ok(Plan::default()), |path| plan(path, self.tokens().as_ref()))
    }
}

/// A prompt from a text.
pub fn text(model: &Model, text: &str, bos: BosArguments, output: &Output) -> Result<Prompt> {
    let encoded = model.tokenizer()?.encode(text, bos.bos())?;
    if let Some(token) = &encoded.prepended {
        output.note(&format!("{token} was put before the text (--no-bos leaves it out)"));
    }
    Ok(Prompt { prepended: encoded.prepended, ..Prompt::new(model, encoded.ids) })
}

/// Reads a plan and the tensors that it names, which lie beside it. Where positions have names, they are those of `prompt`.
pub fn plan(path: &Path, prompt: Option<&PromptTokens<'_>>) -> Result<Plan> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the plan {}", path.display()))?;
    let not_a_plan = || format!("{} is not a plan", path.display());
    let plan: Plan = match (serde_json::from_str(&text), prompt) {
        (Ok(plan), _) => plan,
        (Err(error), None) => return Err(error).with_context(not_a_plan),
        (Err(error), Some(prompt)) => {
            let mut value = serde_json::from_str(&text).with_context(not_a_plan)?;
            let replaced = replace_names(&mut value, prompt).with_context(|| path.display().to_string())?;
            if replaced == 0 {
                return Err(error).with_context(not_a_plan);
            }
            serde_json::from_value(value).with_context(not_a_plan)?
        }
    };
    let base = path.parent().unwrap_or(Path::new("."));
    with_dictionaries(plan.load(base)?, base)
}

/// Opens the dictionaries whose features a plan edits; paths are relative to `base`.
pub fn with_dictionaries(plan: Plan, base: &Path) -> Result<Plan> {
    let mut opened: Vec<(PathBuf, Arc<Dictionary>)> = Vec::new();
    plan.load_features(|site, edit| {
        let path = base.join(&edit.dictionary);
        let known = opened.iter().find(|(other, _)| *other == path).map(|(_, dictionary)| dictionary.clone());
        let dictionary = match known {
            Some(dictionary) => dictionary,
            None => {
                let dictionary = formats::open(&path).and_then(|opened| opened.dictionary(&path));
                let dictionary = Arc::new(dictionary.with_context(|| format!("the plan's edit of {site}"))?);
                opened.push((path, dictionary.clone()));
                dictionary
            }
        };
        edit.loaded = Some(dictionary);
        Ok(())
    })
}

/// Reads a prompt file, and says what was read.
pub fn prompts(path: &Path) -> Result<(Vec<WrittenPair>, HashedFile)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the prompts {}", path.display()))?;
    let pairs = parse_prompts(&text).with_context(|| path.display().to_string())?;
    Ok((pairs, HashedFile::of("prompts", path, text.as_bytes())))
}

/// The clean prompts of a prompt file as token ids.
pub fn rows(model: &Model, path: &Path, bos: BosArguments, output: &Output) -> Result<Vec<Vec<u32>>> {
    let encoder = ModelEncoder::new(model, bos.bos());
    let row = |(number, pair): (usize, &WrittenPair)| match &pair.clean {
        Written::Ids(ids) if ids.is_empty() => bail!("prompt {number} has no tokens at all"),
        Written::Ids(ids) => Ok(ids.clone()),
        Written::Text(text) => {
            encoder.prompt(text).map_err(anyhow::Error::msg).with_context(|| format!("prompt {number}"))
        }
    };
    let rows = prompts(path)?.0.iter().enumerate().map(row).collect();
    if let Some(note) = encoder.note() {
        output.note(&note);
    }
    rows
}

/// Where rows that are shorter than the longest are filled up.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PaddingArgument {
    Left,
    Right,
}

impl From<PaddingArgument> for Padding {
    fn from(argument: PaddingArgument) -> Self {
        match argument {
            PaddingArgument::Left => Self::Left,
            PaddingArgument::Right => Self::Right,
        }
    }
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
    /// A Hugging Face model directory (config.json, model.safetensors or shards, tokenizer.json), a GGUF file, or a
    /// repository of the hub, org/name or org/name@revision, which is downloaded once.
    pub model: PathBuf,
    #[command(flatten)]
    weights: WeightsArgument,
    /// Change the weights so that they are easier to read and compute the same: fold-ln, center-writing, center-unembed,
    /// fold-value-biases [default: none].
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    process: Vec<Process>,
    /// What numbers activations are: f32, or bf16 (each operation's output is rounded, as where a model runs in bf16).
    #[arg(long, value_enum, default_value = "f32")]
    compute: ComputeArgument,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ComputeArgument {
    F32,
    Bf16,
}

impl ModelArgument {
    pub fn open(&self) -> Result<Model> {
        self.open_other(&self.model)
    }

    /// Opens another model in the way that was asked for this one.
    pub fn open_other(&self, model: &Path) -> Result<Model> {
        let mut model = open(model, self.weights.depth())?;
        model.decoder.compute = match self.compute {
            ComputeArgument::F32 => Compute::F32,
            ComputeArgument::Bf16 => Compute::Bf16,
        };
        process::apply(&mut model.decoder, &self.process)?;
        Ok(model)
    }

    /// How its matrices are kept, as the command line says it.
    pub fn weights(&self) -> String {
        self.weights.weights.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }

    /// Whether its numbers are those of the file, computed in f32.
    pub fn is_exact(&self) -> bool {
        matches!(self.weights.weights, Weights::Stored | Weights::F32)
            && self.compute == ComputeArgument::F32
            && self.process.is_empty()
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
    /// How matrices are kept in memory: as stored in the file (nothing is rounded), f32, bf16 (rounded to nearest), or int8
    /// (32 weights share a scale, as in GGUF's Q8_0). Sums are f32 in any case.
    #[arg(long, value_enum, default_value = "stored")]
    weights: Weights,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Weights {
    Stored,
    F32,
    Bf16,
    Int8,
}

impl WeightsArgument {
    pub fn depth(self) -> Depth {
        match self.weights {
            Weights::Stored => Depth::Stored,
            Weights::F32 => Depth::Numbers(Precision::F32),
            Weights::Bf16 => Depth::Numbers(Precision::Bf16),
            Weights::Int8 => Depth::Numbers(Precision::Int8),
        }
    }
}
