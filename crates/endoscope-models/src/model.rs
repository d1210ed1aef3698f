//! A model directory, or a GGUF file: config, weights, tokenizer.

use std::path::{Path, PathBuf};

use endoscope_kernels::Precision;
use endoscope_net::{Network, Sites};
use serde_json::Value;

use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::families::Family;
use crate::gguf::{Gguf, file_of};
use crate::spec::Spec;
use crate::tokenizer::Tokenizer;
use crate::weights::{Depth, WeightFiles};

/// An opened model.
#[derive(Debug)]
pub struct Model {
    /// Where it was opened.
    pub directory: PathBuf,
    /// Its family.
    pub family: Family,
    /// The network.
    pub decoder: Decoder,
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<Tokenizer>,
    /// Why a tokenizer that is there cannot be used; only a GGUF file's.
    pub tokenizer_problem: Option<String>,
    /// The chat template that a GGUF file holds.
    pub chat_template: Option<String>,
    /// Tokens that end a generation.
    pub end_tokens: Vec<u32>,
    /// How many weights it has (a tied unembedding counts once).
    pub parameters: u64,
    /// Every file that was read, with its role: `config`, `weights` or `tokenizer`.
    pub files: Vec<(&'static str, PathBuf)>,
}

impl Model {
    /// Opens a Hugging Face model directory, a GGUF file, or a directory of one.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        Self::open_as(directory, Precision::F32)
    }

    /// Opens it with its matrices kept as said; everything else, and all sums, are f32.
    pub fn open_as(directory: impl AsRef<Path>, precision: Precision) -> Result<Self> {
        Self::open_to(directory.as_ref(), Depth::Numbers(precision))
    }

    /// Opens it without reading its numbers: names, shapes and sites are checked, running it gives zeros' outputs.
    pub fn open_headers(directory: impl AsRef<Path>) -> Result<Self> {
        Self::open_to(directory.as_ref(), Depth::Headers)
    }

    fn open_to(directory: &Path, depth: Depth) -> Result<Self> {
        if let Some(file) = file_of(directory)? {
            return Self::open_gguf(&file, depth);
        }
        let not_a_model = |reason: &str| Error::NotAModel { path: directory.to_path_buf(), reason: reason.to_string() };
        if !directory.is_dir() {
            return Err(not_a_model(if directory.exists() { "it is a file" } else { "there is no such directory" }));
        }
        let config_path = directory.join("config.json");
        if !config_path.is_file() {
            return Err(not_a_model("it has no config.json"));
        }
        let config = Config::read(&config_path)?;
        let family = Family::of(&config)?;
        let bos = token_ids(config.peek("bos_token_id")).first().copied();
        let mut end_tokens = token_ids(config.peek("eos_token_id"));
        let spec = family.spec(config)?;
        let mut files = vec![("config", config_path)];
        let generation_path = directory.join("generation_config.json");
        if generation_path.is_file() {
            let generation = Config::read(&generation_path)?;
            if generation.peek("eos_token_id").is_some() {
                end_tokens = token_ids(generation.peek("eos_token_id"));
            }
            files.push(("config", generation_path));
        }
        let mut source = WeightFiles::open(directory, depth)?;
        let weights = family.weights(&spec, &mut source)?;
        let parameters = source.parameters(|name| !family.ignorable(&spec, name));
        let weight_index = source.path.clone();
        let weight_files = source.finish(|name| family.ignorable(&spec, name))?;
        if !weight_files.contains(&weight_index) {
            files.push(("weights", weight_index));
        }
        files.extend(weight_files.into_iter().map(|path| ("weights", path)));
        let tokenizer = Tokenizer::open(directory, bos)?;
        files.extend(tokenizer.iter().flat_map(|tokenizer| &tokenizer.files).map(|path| ("tokenizer", path.clone())));
        let decoder = Decoder::new(spec, weights)?;
        Ok(Self {
            directory: directory.to_path_buf(),
            family,
            decoder,
            tokenizer,
            tokenizer_problem: None,
            chat_template: None,
            end_tokens,
            parameters,
            files,
        })
    }

    fn open_gguf(file: &Path, depth: Depth) -> Result<Self> {
        let Gguf { config, mut weights, tokenizer, end_tokens, chat_template } = Gguf::open(file, depth)?;
        let config = Config::parse(file, &Value::Object(config).to_string())?;
        let family = Family::of(&config)?;
        let bos = token_ids(config.peek("bos_token_id")).first().copied();
        let mut spec = family.spec(config)?;
        weights.complete(&mut spec)?;
        let parameters = weights.parameters();
        let taken = family.weights(&spec, &mut weights)?;
        weights.finish()?;
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut files = vec![("weights", file.to_path_buf())];
        // A tokenizer.json beside the file says more than its metadata can.
        let (tokenizer, tokenizer_problem) = match (Tokenizer::open(directory, bos)?, tokenizer) {
            (Some(tokenizer), _) => {
                files.extend(tokenizer.files.iter().map(|path| ("tokenizer", path.clone())));
                (Some(tokenizer), None)
            }
            (None, Ok(None)) => (None, None),
            (None, Err(problem)) => (None, Some(problem)),
            (None, Ok(Some(described))) => match Tokenizer::from_gguf(file, &described) {
                Ok(tokenizer) => (Some(tokenizer), None),
                Err(error) => (None, Some(error.to_string())),
            },
        };
        Ok(Self {
            directory: directory.to_path_buf(),
            family,
            decoder: Decoder::new(spec, taken)?,
            tokenizer,
            tokenizer_problem,
            chat_template,
            end_tokens,
            parameters,
            files,
        })
    }

    /// Its switches.
    pub fn spec(&self) -> &Spec {
        &self.decoder.spec
    }

    /// Its sites.
    pub fn sites(&self) -> &Sites {
        self.decoder.sites()
    }

    /// Its tokenizer, or an error that says what to do without.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| match &self.tokenizer_problem {
            Some(problem) => Error::Tokenizer { path: self.directory.clone(), reason: problem.clone() },
            None => Error::NoTokenizer { path: self.directory.join("tokenizer.json") },
        })
    }

    /// How a token is shown: its text, or its number where there is no tokenizer.
    pub fn label(&self, id: u32) -> String {
        self.tokenizer.as_ref().map_or_else(|| id.to_string(), |tokenizer| tokenizer.label(id))
    }
}

/// One id, a list of ids, or none.
fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}
