//! A model directory, or a GGUF file: config, weights, tokenizer.

use std::path::{Path, PathBuf};

use endoscope_kernels::Precision;
use endoscope_net::{Network, Sites};
use serde_json::Value;

use crate::chat::ChatTemplates;
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::families::Family;
use crate::gguf::{Gguf, file_of};
use crate::hub::{self, Reference, Revision};
use crate::spec::Spec;
use crate::tokenizer::Tokenizer;
use crate::weights::{Depth, Inventory, WeightFiles};

/// An opened model.
#[derive(Debug)]
pub struct Model {
    /// What was opened: a directory, or a GGUF file.
    pub directory: PathBuf,
    /// The repository of the hub and the commit, if it was opened by a hub id.
    pub revision: Option<Revision>,
    /// Its family.
    pub family: Family,
    /// The network.
    pub decoder: Decoder,
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<Tokenizer>,
    /// Why a GGUF file has no tokenizer that can be used.
    pub tokenizer_problem: Option<String>,
    /// Tokens that end a generation.
    pub end_tokens: Vec<u32>,
    /// How many weights it has (a tied unembedding counts once).
    pub parameters: u64,
    /// Every file that was read, with its role: `config`, `weights` or `tokenizer`.
    pub files: Vec<(&'static str, PathBuf)>,
    /// What became of the tensors of its files.
    pub inventory: Inventory,
}

impl Model {
    /// Opens a Hugging Face model directory, a GGUF file, or a directory of one. Matrices are kept in the precision of the
    /// file (quantised ones as f32): all outputs are those of f32 matrices, bit for bit.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self> {
        Self::open_to(directory.as_ref(), Depth::Stored)
    }

    /// Opens it with its matrices kept as said; everything else, and all sums, are f32.
    pub fn open_as(directory: impl AsRef<Path>, precision: Precision) -> Result<Self> {
        Self::open_to(directory.as_ref(), Depth::Numbers(precision))
    }

    /// Opens it without reading its numbers: names, shapes and sites are checked, running it gives zeros' outputs.
    pub fn open_headers(directory: impl AsRef<Path>) -> Result<Self> {
        Self::open_to(directory.as_ref(), Depth::Headers)
    }

    /// Opens what a MODEL argument names: a directory, or a repository of the hub, as the environment says it is reached.
    ///
    /// Of a repository everything but the weights is downloaded first and looked at, so that what cannot be opened is
    /// refused before gigabytes come; at [`Depth::Headers`] the weights are not downloaded at all.
    pub fn open_reference(reference: &Reference, depth: Depth, watch: hub::Watch<'_>) -> Result<Self> {
        match reference {
            Reference::Path(path) => Self::open_to(path, depth),
            Reference::Hub(repository) => Self::open_hub(&hub::Settings::from_environment()?, repository, depth, watch),
        }
    }

    /// Opens a repository of the hub that is reached as `settings` say.
    pub fn open_hub(
        settings: &hub::Settings,
        repository: &hub::Repository,
        depth: Depth,
        watch: hub::Watch<'_>,
    ) -> Result<Self> {
        let snapshot = hub::Snapshot::open(settings, repository, watch)?;
        let described = Described::read(&snapshot.directory)?;
        let source = match depth {
            Depth::Headers => WeightFiles::of_headers(&snapshot.directory, &snapshot.headers(watch)?)?,
            Depth::Stored | Depth::Numbers(_) => {
                snapshot.fetch_weights(watch)?;
                WeightFiles::open(&snapshot.directory, depth)?
            }
        };
        Ok(Self { revision: Some(snapshot.revision), ..described.with(source, &snapshot.directory)? })
    }

    fn open_to(directory: &Path, depth: Depth) -> Result<Self> {
        if let Some(file) = file_of(directory)? {
            return Ok(Self { directory: directory.to_path_buf(), ..Self::open_gguf(&file, depth)? });
        }
        let described = Described::read(directory)?;
        described.with(WeightFiles::open(directory, depth)?, directory)
    }

    fn open_gguf(file: &Path, depth: Depth) -> Result<Self> {
        let Gguf { config, mut weights, tokenizer, end_tokens, tokenizer_config } = Gguf::open(file, depth)?;
        let config = Config::parse(file, &Value::Object(config).to_string())?;
        let family = Family::of(&config)?;
        let bos = token_ids(config.peek("bos_token_id")).first().copied();
        let mut spec = family.spec(config)?;
        weights.complete(&mut spec)?;
        let parameters = weights.parameters();
        let taken = family.weights(&spec, &mut weights)?;
        let inventory = weights.finish()?;
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut files = vec![("weights", file.to_path_buf())];
        // A tokenizer.json beside the file says more than its metadata can.
        let (mut tokenizer, tokenizer_problem) = match (Tokenizer::open(directory, bos)?, tokenizer) {
            (Some(tokenizer), _) => {
                files.extend(tokenizer.files.iter().map(|path| ("tokenizer", path.clone())));
                (Some(tokenizer), None)
            }
            (None, Ok(None)) => (None, Some("its metadata hold none".to_string())),
            (None, Err(problem)) => (None, Some(problem)),
            (None, Ok(Some(described))) => match Tokenizer::from_gguf(file, &described) {
                Ok(tokenizer) => (Some(tokenizer), None),
                Err(Error::Tokenizer { reason, .. }) => (None, Some(reason)),
                Err(error) => return Err(error),
            },
        };
        if let Some(tokenizer) = &mut tokenizer
            && tokenizer.templates.names().is_empty()
        {
            tokenizer.templates = ChatTemplates::of(&tokenizer_config, file)?;
        }
        Ok(Self {
            directory: file.to_path_buf(),
            revision: None,
            family,
            decoder: Decoder::new(spec, taken)?,
            tokenizer,
            tokenizer_problem,
            end_tokens,
            parameters,
            files,
            inventory,
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
            Some(problem) => Error::Tokenizer {
                path: self.directory.clone(),
                reason: format!("{problem}; put its tokenizer.json beside it, or give token ids (--tokens 1,2,3)"),
            },
            None => Error::NoTokenizer { path: self.directory.join("tokenizer.json") },
        })
    }

    /// How a token is shown: its text, or its number where there is no tokenizer.
    pub fn label(&self, id: u32) -> String {
        self.tokenizer.as_ref().map_or_else(|| id.to_string(), |tokenizer| tokenizer.label(id))
    }
}

/// What a directory says of its model besides the weights.
struct Described {
    family: Family,
    spec: Spec,
    bos: Option<u32>,
    end_tokens: Vec<u32>,
    files: Vec<(&'static str, PathBuf)>,
}

impl Described {
    fn read(directory: &Path) -> Result<Self> {
        let not_a_model = |reason: &str| Error::NotAModel { path: directory.to_path_buf(), reason: reason.to_string() };
        if !directory.is_dir() {
            return Err(not_a_model(if directory.exists() { "it is a file" } else { "there is no such directory" }));
        }
        refuse_adapter(directory)?;
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
        Ok(Self { family, spec, bos, end_tokens, files })
    }

    /// The model with the weights of `source` and the tokenizer of `directory`.
    fn with(self, mut source: WeightFiles, directory: &Path) -> Result<Model> {
        let Self { family, spec, bos, end_tokens, mut files } = self;
        let weights = family.weights(&spec, &mut source)?;
        let parameters = source.parameters(|name| !family.ignorable(&spec, name));
        let weight_index = source.path.clone();
        let (weight_files, inventory) = source.finish(|name| family.ignorable(&spec, name))?;
        if !weight_files.contains(&weight_index) {
            files.push(("weights", weight_index));
        }
        files.extend(weight_files.into_iter().map(|path| ("weights", path)));
        let tokenizer = Tokenizer::open(directory, bos)?;
        files.extend(tokenizer.iter().flat_map(|tokenizer| &tokenizer.files).map(|path| ("tokenizer", path.clone())));
        let decoder = Decoder::new(spec, weights)?;
        Ok(Model {
            directory: directory.to_path_buf(),
            revision: None,
            family,
            decoder,
            tokenizer,
            tokenizer_problem: None,
            end_tokens,
            parameters,
            files,
            inventory,
        })
    }
}

/// An adapter is a change to another model. transformers applies one that lies beside a model's own weights, so its
/// directory is refused even if the rest would open.
fn refuse_adapter(directory: &Path) -> Result<()> {
    let path = directory.join("adapter_config.json");
    if !path.exists() {
        return Ok(());
    }
    let base = Config::read(&path)?;
    let base = base.peek("base_model_name_or_path").and_then(Value::as_str).unwrap_or("its base model");
    let reason = format!(
        "it is an adapter (adapter_config.json) of {base}, not a whole model; merge the two once with Python: `from peft \
         import AutoPeftModelForCausalLM as M; M.from_pretrained('.').merge_and_unload().save_pretrained('merged')`"
    );
    Err(Error::NotAModel { path: directory.to_path_buf(), reason })
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
