//! Dictionaries as files: those of SAELens, which are ours too, and those of others.
//!
//! [`open`] finds out by the files which format it is. What a format does not say is left open; what it asks for and is not
//! computed here is an error that names it. [`save`] writes what the format can hold, and says what it cannot.
//! A format without a switch for it gets the same function with other weights: a decoder bias that is subtracted from the input
//! or not becomes a part of the encoder's bias.

mod archive;
mod arrays;
mod circuit_tracer;
mod dictionary_learning;
mod gemma_scope;
mod llama_scope;
mod names;
mod npy;
mod pickle;
mod sae_lens;
mod settings;
mod sparsify;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Activation, Normalization};
use crate::cross_layer::CrossLayerTranscoder;
use crate::dictionary::{Dictionary, Weights};
use crate::error::{Error, Result};

pub use sae_lens::{read_log_sparsity, write_log_sparsity};

/// A way to keep dictionaries in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Format {
    /// `cfg.json` and `sae_weights.safetensors`: [SAELens](https://github.com/decoderesearch/SAELens), and ours.
    SaeLens,
    /// `params.npz`, or `params.safetensors` of Gemma Scope 2.
    GemmaScope,
    /// `cfg.json` and `sae.safetensors`: [sparsify](https://github.com/EleutherAI/sparsify).
    Sparsify,
    /// `config.json` and `ae.pt` or `ae.safetensors`: [dictionary_learning](https://github.com/saprmarks/dictionary_learning).
    DictionaryLearning,
    /// `config.yaml` and a file for each layer: [circuit-tracer](https://github.com/safety-research/circuit-tracer).
    CircuitTracer,
    /// `hyperparams.json` and `checkpoints/final.safetensors`; read only.
    LlamaScope,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::SaeLens,
        Self::GemmaScope,
        Self::Sparsify,
        Self::DictionaryLearning,
        Self::CircuitTracer,
        Self::LlamaScope,
    ];

    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::SaeLens => "sae_lens",
            Self::GemmaScope => "gemma_scope",
            Self::Sparsify => "sparsify",
            Self::DictionaryLearning => "dictionary_learning",
            Self::CircuitTracer => "circuit_tracer",
            Self::LlamaScope => "llama_scope",
        }
    }
}

/// What a path holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// As what it was read.
    pub format: Format,
    /// What was read.
    pub contents: Contents,
    /// What was changed in reading it, and what its files do not say.
    pub notes: Vec<String>,
}

/// One dictionary or several.
#[derive(Debug, Clone, PartialEq)]
pub enum Contents {
    /// One.
    Dictionary(Box<Dictionary>),
    /// The paths of several, each to be opened by itself: together they may not fit in memory.
    Set(Vec<PathBuf>),
    /// One transcoder of all layers.
    CrossLayer(Box<CrossLayerTranscoder>),
}

impl Opened {
    /// The one dictionary that it is; an error that says what else it is.
    pub fn dictionary(self, path: impl AsRef<Path>) -> Result<Dictionary> {
        let reason = match self.contents {
            Contents::Dictionary(dictionary) => return Ok(*dictionary),
            Contents::Set(paths) => {
                let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                format!("it holds {} dictionaries, of which one must be named: {}", names.len(), names.join(", "))
            }
            Contents::CrossLayer(_) => {
                "it is a cross-layer transcoder, which does not read or write one site".to_string()
            }
        };
        Err(Error::file(path.as_ref(), reason))
    }
}

/// Reads what is at `path`, of whichever format its files are.
pub fn open(path: impl AsRef<Path>) -> Result<Opened> {
    let path = path.as_ref();
    let one = |format: Format, (dictionary, notes): (Dictionary, Vec<String>)| {
        Ok(Opened { format, contents: Contents::Dictionary(Box::new(dictionary)), notes })
    };
    let set = |format: Format, paths| Ok(Opened { format, contents: Contents::Set(paths), notes: Vec::new() });
    let has = |name: &str| path.join(name).is_file();
    if path.is_file() {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let beside = path.parent().is_some_and(|parent| parent.join(circuit_tracer::CONFIG).is_file());
        return match path.extension().and_then(|extension| extension.to_str()) {
            Some("npz") => one(Format::GemmaScope, gemma_scope::open(path)?),
            Some("safetensors") if beside => one(Format::CircuitTracer, circuit_tracer::open_layer(path)?),
            _ => Err(Error::file(path, format!("{name} is one file; name the directory that it is in"))),
        };
    }
    if has(sae_lens::CONFIG) && has(sae_lens::WEIGHTS) {
        return one(Format::SaeLens, sae_lens::open(path)?);
    }
    if has(sae_lens::CONFIG) && has(sparsify::WEIGHTS) {
        return one(Format::Sparsify, sparsify::open(path)?);
    }
    if has(gemma_scope::NPZ) {
        return one(Format::GemmaScope, gemma_scope::open(path)?);
    }
    if has(gemma_scope::SECOND) && gemma_scope::is_second(path) {
        return one(Format::GemmaScope, gemma_scope::open_second(path)?);
    }
    let learned = has(dictionary_learning::PICKLE) || has(dictionary_learning::SAFETENSORS);
    if learned && dictionary_learning::is(path) {
        return one(Format::DictionaryLearning, dictionary_learning::open(path)?);
    }
    if has(llama_scope::CONFIG) {
        return one(Format::LlamaScope, llama_scope::open(path)?);
    }
    if has(circuit_tracer::CONFIG) {
        if !circuit_tracer::is_cross_layer(path)? {
            return set(Format::CircuitTracer, circuit_tracer::layers(path)?);
        }
        let (transcoder, notes) = circuit_tracer::open_cross_layer(path)?;
        let contents = Contents::CrossLayer(Box::new(transcoder));
        return Ok(Opened { format: Format::CircuitTracer, contents, notes });
    }
    let (format, paths) = members(path)?;
    set(format, paths)
}

/// The dictionaries in the folders of a folder, as releases of SAELens and sparsify have them.
fn members(path: &Path) -> Result<(Format, Vec<PathBuf>)> {
    if !path.exists() {
        return Err(Error::file(path, "there is nothing here"));
    }
    let entries = std::fs::read_dir(path).map_err(|error| Error::file(path, error))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    paths.sort();
    let with = |weights: &str| -> Vec<PathBuf> {
        let is = |path: &&PathBuf| path.join(sae_lens::CONFIG).is_file() && path.join(weights).is_file();
        paths.iter().filter(is).cloned().collect()
    };
    for (format, weights) in [(Format::SaeLens, sae_lens::WEIGHTS), (Format::Sparsify, sparsify::WEIGHTS)] {
        let found = with(weights);
        if !found.is_empty() {
            return Ok((format, found));
        }
    }
    let known = [
        [sae_lens::CONFIG, sae_lens::WEIGHTS].join(" and "),
        [sae_lens::CONFIG, sparsify::WEIGHTS].join(" and "),
        gemma_scope::NPZ.to_string(),
        format!("config.json and {} or {}", dictionary_learning::PICKLE, dictionary_learning::SAFETENSORS),
        circuit_tracer::CONFIG.to_string(),
        llama_scope::CONFIG.to_string(),
    ];
    Err(Error::file(path, format!("it has none of the files that make a dictionary: {}", known.join("; "))))
}

/// Writes `dictionary` into `directory` in a format that [`open`] reads again; each sentence says what is lost.
pub fn save(directory: impl AsRef<Path>, dictionary: &Dictionary, format: Format) -> Result<Vec<String>> {
    let directory = directory.as_ref();
    std::fs::create_dir_all(directory).map_err(|error| Error::write(directory, error))?;
    match format {
        Format::SaeLens => sae_lens::save(directory, dictionary).map(|()| Vec::new()),
        Format::GemmaScope => gemma_scope::save(directory, dictionary),
        Format::Sparsify => sparsify::save(directory, dictionary),
        Format::DictionaryLearning => dictionary_learning::save(directory, dictionary),
        Format::CircuitTracer => circuit_tracer::save(directory, dictionary),
        Format::LlamaScope => {
            Err(Error::write(directory, "llama_scope is only read; sae_lens holds all that it holds"))
        }
    }
}

/// Writes a cross-layer transcoder into `directory`, as circuit-tracer keeps it.
pub fn save_cross_layer(directory: impl AsRef<Path>, transcoder: &CrossLayerTranscoder) -> Result<()> {
    circuit_tracer::save_cross_layer(directory.as_ref(), transcoder)
}

/// A dictionary's weights for a format without switches.
struct Plain {
    weights: Weights,
    /// What the format cannot say.
    lost: Vec<String>,
}

impl Plain {
    /// With `b_dec` subtracted from inputs or not, as the format `name` has it.
    fn of(path: &Path, dictionary: &Dictionary, name: &str, subtracted: bool) -> Result<Self> {
        let config = dictionary.config();
        let fail = |what: String| Err(Error::write(path, format!("{name} has no place for {what}; sae_lens has")));
        match config.normalization {
            Normalization::None | Normalization::ExpectedAverageOnlyIn => {}
            other => return fail(format!("`normalize_activations: {}`", other.name())),
        }
        if config.sites.len() > 1 {
            return fail(format!("a crosscoder of {} sites", config.sites.len()));
        }
        let mut weights = dictionary.weights().clone();
        if let Activation::TopK { by_decoder_norm: true, .. } = config.activation {
            // A latent that writes nothing is never among the largest; folded, it must stay so.
            for (latent, &length) in dictionary.decoder_norms().iter().enumerate() {
                if length == 0. {
                    weights.encoder.row_mut(latent).fill(0.);
                    weights.encoder_bias[latent] = 0.;
                }
            }
            weights.fold_decoder_norms();
        }
        if config.apply_b_dec_to_input != subtracted {
            let mut shift = weights.decoder_bias.clone();
            if subtracted {
                shift.iter_mut().for_each(|x| *x = -*x);
            }
            weights.fold_input_shift(&shift);
        }
        let lost = match config.metadata.is_empty() {
            true => Vec::new(),
            false => vec!["what else is known of it (metadata)".to_string()],
        };
        Ok(Self { weights, lost })
    }
}

/// An error that says which file it is in.
fn within(path: &Path, error: Error) -> Error {
    match error {
        Error::File { .. } | Error::Unsupported { .. } => error,
        other => Error::file(path, other),
    }
}
