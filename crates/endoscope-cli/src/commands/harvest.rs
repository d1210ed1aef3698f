//! `endoscope harvest`: activations of a corpus to a folder of shards; a harvest to another place and back.

mod documents;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand, ValueEnum};
use endoscope_harvest::{
    Access, ActivationReader, Corpus, Dtype, Error, Features, Harvested, Kind, MANIFEST, Moved, NonFinite,
    Output as Kept, Packing, Per, ProbeScores, Reduction, SequenceMode, Settings, harvest, pull, push,
};
use endoscope_models::{Bos, Compute, Model};
use endoscope_report::{HashedFile, Provenance, Started, write_atomically};
use serde_json::{Value, json};

use self::documents::Encoder;
use super::capture::split_sites;
use crate::commands::dict::Chosen;
use crate::input::{BosArguments, ModelArgument};
use crate::memory::shown;
use crate::output::Output;
use crate::progress::bar;
use crate::provenance::{of_program, provenance};

/// Harvesting itself, or what is done with a harvest. clap's derive cannot tell the two apart where arguments are flattened.
#[derive(Debug)]
pub enum Harvest {
    Run(Box<Run>),
    Other(Other),
}

impl Args for Harvest {
    fn augment_args(command: Command) -> Command {
        let command = Other::augment_subcommands(Run::augment_args(command));
        command.args_conflicts_with_subcommands(true).subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Harvest {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        match matches.subcommand_name() {
            Some(_) => Other::from_arg_matches(matches).map(Self::Other),
            None => Run::from_arg_matches(matches).map(Box::new).map(Self::Run),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What else is done with harvests.
#[derive(Debug, Subcommand)]
pub enum Other {
    /// Send a harvest to s3://bucket/folder or to another folder; shards that are there already are left alone.
    Push {
        /// The harvest.
        directory: PathBuf,
        /// Where to: s3://bucket/folder (AWS_ACCESS_KEY_ID, AWS_ENDPOINT and so on say how it is reached), or a folder.
        url: String,
    },
    /// Fetch a harvest; shards that are there already are left alone.
    Pull {
        /// Where from: s3://bucket/folder, or a folder.
        url: String,
        /// The folder to write.
        directory: PathBuf,
    },
    /// Read every byte of a harvest and compare it with what was written.
    Check {
        /// The harvest.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    model: ModelArgument,
    /// Documents: .jsonl, .parquet, or .txt (a document a line).
    corpus: PathBuf,
    /// The column that is read: texts, token ids, or chats [default: the one of text, tokens, input_ids, messages that is there].
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Names, shorthands or globs, separated by commas: `resid_post.3,z.*`.
    #[arg(long, value_name = "GLOB[,GLOB]", required = true)]
    sites: String,
    /// What is kept of each site: a row for each token; the mean over a sequence, its last token; or scores by --probe.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tokens")]
    reduce: Vec<ReduceArgument>,
    /// The directions.safetensors that `endoscope probe` wrote, for --reduce probe.
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    /// Documents one after the other, cut into blocks of --context tokens; or each by itself, cut off there.
    #[arg(long, value_enum, default_value = "blocks")]
    sequence_mode: ModeArgument,
    /// The most tokens that a sequence has [default: 128, or the model's context].
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    #[command(flatten)]
    bos: BosArguments,
    /// Put between documents of a block: bos, none, or a token id [default: bos between texts that have one, else none].
    #[arg(long, value_name = "TOKEN")]
    separator: Option<SeparatorArgument>,
    /// Of a model that has several chat templates, the name of one; or a file.
    #[arg(long, value_name = "NAME|FILE.jinja")]
    chat_template: Option<String>,
    /// Keep no rows of the tokens for beginning, end, padding and separator.
    #[arg(long)]
    exclude_special: bool,
    /// A dictionary of the sites, for --reduce features.
    #[arg(long, value_name = "PATH")]
    dictionary: Option<PathBuf>,
    /// Which of its features are kept; several may be given [default: all, which is a number for each latent].
    #[arg(long = "feature", value_name = "N", requires = "dictionary")]
    features: Vec<usize>,
    /// What activations are written as.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: DtypeArgument,
    /// End each shard with the first sequence by which it has so many rows [default: about 128 MiB].
    #[arg(long, value_name = "N")]
    shard_rows: Option<u64>,
    /// End with the first sequence by which so many tokens were run [default: the whole corpus].
    #[arg(long, value_name = "N")]
    max_tokens: Option<u64>,
    /// About how many tokens are run together; it changes no number.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    batch_tokens: usize,
    /// Keep NaN and infinities instead of stopping.
    #[arg(long)]
    allow_non_finite: bool,
    /// The folder to write, or to go on in.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReduceArgument {
    Tokens,
    Mean,
    Last,
    Probe,
    Features,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeArgument {
    Blocks,
    Examples,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DtypeArgument {
    F32,
    Bf16,
    F16,
}

#[derive(Debug, Clone, Copy)]
enum SeparatorArgument {
    Bos,
    None,
    Token(u32),
}

impl FromStr for SeparatorArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bos" => Ok(Self::Bos),
            "none" => Ok(Self::None),
            id => id.parse().map(Self::Token).map_err(|_| format!("`{id}` is neither bos, nor none, nor a token id")),
        }
    }
}

impl Harvest {
    pub fn run(self, output: &mut Output) -> Result<()> {
        match self {
            Self::Run(run) => run.run(output),
            Self::Other(other) => other.run(output),
        }
    }
}

impl Other {
    fn run(self, output: &mut Output) -> Result<()> {
        match self {
            Self::Push { directory, url } => {
                let moved = watched(|tell| push(&directory, &url, &Access::from_environment(), tell))?;
                output
                    .document(&json!({"to": url, "moved": moved.moved, "there": moved.there, "bytes": moved.bytes}))?;
                output.line(&format!(
                    "{} shards sent ({}), {} were there",
                    moved.moved,
                    shown(moved.bytes),
                    moved.there
                ))
            }
            Self::Pull { url, directory } => {
                let moved = watched(|tell| pull(&url, &directory, &Access::from_environment(), tell))?;
                let out = directory.to_string_lossy();
                output
                    .document(&json!({"out": out, "moved": moved.moved, "there": moved.there, "bytes": moved.bytes}))?;
                output.line(&format!(
                    "{} shards fetched ({}), {} were there",
                    moved.moved,
                    shown(moved.bytes),
                    moved.there
                ))
            }
            Self::Check { directory } => {
                let reader = ActivationReader::open(&directory)?;
                let manifest = reader.manifest();
                let bar = bar(manifest.shards.len() as u64, "shards");
                reader.verify(|shards| {
                    bar.set_position(shards as u64);
                    Ok(())
                })?;
                bar.finish_and_clear();
                let (shards, rows) = (manifest.shards.len(), reader.rows(Per::Token));
                output.document(&json!({"shards": shards, "rows": rows, "outputs": manifest.outputs}))?;
                output.line(&format!("{shards} shards of {rows} rows are as they were written"))
            }
        }
    }
}

/// Moves shards, with a bar.
fn watched(
    moving: impl FnOnce(&mut dyn FnMut(usize, usize) -> endoscope_harvest::Result<()>) -> endoscope_harvest::Result<Moved>,
) -> Result<Moved> {
    let bar = bar(0, "shards");
    let moved = moving(&mut |shards, all| {
        bar.set_length(all as u64);
        bar.set_position(shards as u64);
        Ok(())
    });
    bar.finish_and_clear();
    Ok(moved?)
}

impl Run {
    fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let corpus = Corpus::open(&self.corpus, self.column.as_deref())?;
        let model = self.model.open()?;
        let encoder = Encoder { model: &model, corpus: &corpus, template: self.chat_template.as_deref() };
        encoder.check()?;
        let mut origin = provenance(&started, &model, &[("corpus", &self.corpus)])?;
        let settings = self.settings(&model, &corpus, &origin)?;
        if let Some(begin) = settings.packing.begin.filter(|_| corpus.kind() == Kind::Text) {
            output.note(&format!("{} begins each sequence (--no-bos leaves it out)", model.label(begin)));
        }
        let through = Cell::new(0.);
        let bar = bar(self.max_tokens.unwrap_or(0), "tokens");
        let harvested =
            harvest(&model.decoder, &settings, &|from| encoder.documents(from, &through), &self.out, &mut |progress| {
                if self.max_tokens.is_none() && through.get() > 0. {
                    bar.set_length((progress.tokens as f64 / through.get()) as u64);
                }
                bar.set_position(progress.tokens);
                Ok(())
            });
        bar.finish_and_clear();
        let harvested = harvested?;
        let path = self.out.join("provenance.json");
        if harvested.found < harvested.manifest.shards.len() || !path.is_file() {
            let now = of_program(&started);
            (origin.wall_seconds, origin.peak_memory_bytes) = (now.wall_seconds, now.peak_memory_bytes);
            let text = serde_json::to_vec_pretty(&origin)?;
            write_atomically(path, |file| file.write_all(&text))?;
        }
        self.say(output, &harvested)
    }

    fn say(&self, output: &mut Output, harvested: &Harvested) -> Result<()> {
        let Harvested { manifest, found, left_out } = harvested;
        let (rows, sequences) = (manifest.rows(Per::Token), manifest.rows(Per::Sequence));
        let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
        output.document(&json!({
            "out": self.out.to_string_lossy(),
            "rows": rows,
            "sequences": sequences,
            "tokens": manifest.tokens(),
            "left_out": left_out,
            "shards": manifest.shards.len(),
            "found": found,
            "bytes": bytes,
            "outputs": manifest.outputs,
        }))?;
        for record in &manifest.outputs {
            let rows = manifest.rows(record.per);
            output.line(&format!("{:<36} [{rows}, {}]", record.name, record.width))?;
        }
        if *found > 0 {
            output.line(&format!("{found} of {} shards were there", manifest.shards.len()))?;
        }
        if *left_out > 0 {
            output.line(&format!("{left_out} tokens of the corpus came into no sequence"))?;
        }
        output.line(&format!(
            "{rows} rows of {sequences} sequences in {} shards, {}, written to {} ({MANIFEST})",
            manifest.shards.len(),
            shown(bytes),
            self.out.display()
        ))
    }

    fn settings(&self, model: &Model, corpus: &Corpus, origin: &Provenance) -> Result<Settings> {
        let exclude = match self.exclude_special {
            true => model.tokenizer().context("--exclude-special")?.structural(),
            false => Default::default(),
        };
        Ok(Settings {
            outputs: self.outputs(model)?,
            packing: self.packing(model, corpus)?,
            exclude,
            dtype: match self.dtype {
                DtypeArgument::F32 => Dtype::F32,
                DtypeArgument::Bf16 => Dtype::Bf16,
                DtypeArgument::F16 => Dtype::F16,
            },
            shard_rows: self.shard_rows,
            max_tokens: self.max_tokens,
            source: self.source(model, corpus, origin)?,
            batch_tokens: self.batch_tokens,
            non_finite: if self.allow_non_finite { NonFinite::Allow } else { NonFinite::Refuse },
        })
    }

    /// Every reduction of every site, in the order of the mathematics.
    fn outputs(&self, model: &Model) -> Result<Vec<Kept>> {
        let sites = model.sites();
        let mut ids = Vec::new();
        for pattern in split_sites(&self.sites) {
            ids.extend(sites.resolve(&pattern)?);
        }
        if ids.is_empty() {
            bail!("--sites {:?} names no site; `inspect` lists them", self.sites);
        }
        ids.sort();
        ids.dedup();
        if self.probe.is_some() != self.reduce.contains(&ReduceArgument::Probe) {
            bail!("--probe FILE and --reduce probe go together");
        }
        if self.dictionary.is_some() != self.reduce.contains(&ReduceArgument::Features) {
            bail!("--dictionary PATH and --reduce features go together");
        }
        let features = self.dictionary.as_deref().map(|path| Chosen::open(path, &self.features)).transpose()?;
        let mut kept = Vec::new();
        for id in ids {
            let site = &sites.get(id).name;
            for reduce in &self.reduce {
                let reduction = match (reduce, &self.probe, &features) {
                    (ReduceArgument::Probe, Some(path), _) => Reduction::Probe(scores(path, site)?),
                    (ReduceArgument::Features, _, Some(features)) => Reduction::Features(Features(features.clone())),
                    (ReduceArgument::Mean, ..) => Reduction::Mean,
                    (ReduceArgument::Last, ..) => Reduction::Last,
                    _ => Reduction::Tokens,
                };
                kept.push(Kept { site: site.clone(), reduction });
            }
        }
        Ok(kept)
    }

    fn packing(&self, model: &Model, corpus: &Corpus) -> Result<Packing> {
        let whole = model.spec().context;
        let context = self.context.unwrap_or(whole.min(128));
        if context > whole {
            bail!("--context {context} is more than the model's context, {whole}");
        }
        let known = || -> Result<Option<u32>> { Ok(model.tokenizer()?.bos.as_ref().map(|(id, _)| *id)) };
        let needed = |what: &str| -> Result<Option<u32>> {
            match known()? {
                None => bail!("{what}: no beginning-of-sequence token is known of this model"),
                id => Ok(id),
            }
        };
        // Token ids and chats are taken as they are, unless it is asked for.
        let text = corpus.kind() == Kind::Text;
        let begin = match self.bos.bos() {
            Bos::Prepend => needed("--bos")?,
            Bos::AsConfigured if text && model.tokenizer()?.prepends_bos => known()?,
            _ => None,
        };
        let mode = match self.sequence_mode {
            ModeArgument::Blocks => SequenceMode::Blocks,
            ModeArgument::Examples => SequenceMode::Examples,
        };
        let separator = match (mode, self.separator) {
            (SequenceMode::Examples, Some(_)) => {
                bail!("--separator stands between documents of a block; examples have none")
            }
            (SequenceMode::Examples, None) | (_, Some(SeparatorArgument::None)) => None,
            (_, Some(SeparatorArgument::Bos)) => needed("--separator bos")?,
            (_, Some(SeparatorArgument::Token(id))) => Some(id),
            (_, None) if text => known()?,
            _ => None,
        };
        Ok(Packing { mode, context, begin, separator })
    }

    /// What a harvest must have in common with one that it goes on with: files by name and hash, not where they lie.
    fn source(&self, model: &Model, corpus: &Corpus, origin: &Provenance) -> Result<Value> {
        let name = |path: &str| Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
        let file = |file: &HashedFile| json!({"role": file.role, "file": name(&file.path), "bytes": file.bytes, "sha256": file.sha256});
        let (corpora, files): (Vec<&HashedFile>, Vec<&HashedFile>) =
            origin.files.iter().partition(|file| file.role == "corpus");
        let template = match self.chat_template.as_deref() {
            Some(path) if path.ends_with(".jinja") => json!(HashedFile::read("template", path)?.sha256),
            name => json!(name),
        };
        let processed: Vec<&str> = model.decoder.processed.iter().map(|process| process.name()).collect();
        let compute = match model.decoder.compute {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        };
        Ok(json!({
            "model": {
                "files": files.into_iter().map(file).collect::<Vec<_>>(),
                "weights": self.model.weights(),
                "processed": processed,
                "compute": compute,
            },
            "corpus": corpora.first().map(|found| file(found)),
            "column": corpus.column(),
            "chat_template": template,
        }))
    }
}

/// The directions of a site in a file of `endoscope probe`.
fn scores(path: &Path, site: &str) -> Result<ProbeScores> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).with_context(|| path.display().to_string())?;
    let missing = || {
        let mut sites: Vec<&str> = tensors.keys().map(String::as_str).filter(|name| !name.ends_with(".bias")).collect();
        sites.sort_unstable();
        format!("{} has no directions of {site}; it has those of {}", path.display(), sites.join(", "))
    };
    let directions = tensors.get(site).with_context(missing)?.to_dtype(DType::F32)?;
    let biases = tensors.get(&format!("{site}.bias")).with_context(missing)?.to_dtype(DType::F32)?;
    Ok(ProbeScores { directions: directions.to_vec2()?, biases: biases.to_vec1()? })
}

/// An error of the harvest from one of a document.
fn of_document(corpus: &Corpus, document: u64, reason: impl std::fmt::Display) -> Error {
    Error::Document { path: corpus.path().to_path_buf(), document, reason: reason.to_string() }
}
