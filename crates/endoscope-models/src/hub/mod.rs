//! Models of the Hugging Face hub: `org/name[@revision]`, through the cache that Python's huggingface_hub keeps.
//!
//! For whoever takes a MODEL argument: [`Reference::parse`], then [`crate::Model::open_reference`]. Nothing here is reached
//! unless the user has named a hub id. One request asks what the revision stands for and which files are there;
//! then every file that a model is opened from is fetched once, checked, and linked into the snapshot of that commit.

mod cache;
mod client;
mod error;
mod reference;
mod settings;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use error::HubError;
pub use reference::{Reference, Repository, Revision};
pub use settings::{Network, Settings, Token};

use self::cache::Cache;
use self::client::Client;
use crate::error::{Error, Result};
use crate::weights::{self, Header};

/// The files beside the weights that change what a model is or reads; all of them optional but the first.
const SMALL: &[&str] = &[
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// How much of a safetensors file is asked for to find its header in: most headers are shorter.
const HEADER_GUESS: u64 = 1 << 17;

/// What a download has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A file begins.
    Begins {
        /// Its name.
        name: &'a str,
        /// Its length.
        bytes: u64,
    },
    /// So much of the file is here, with what an earlier attempt left.
    Has {
        /// How much.
        bytes: u64,
    },
    /// A file is here.
    Ends {
        /// Its name.
        name: &'a str,
    },
    /// The hub cannot be reached; what the cache has is taken.
    FromCache {
        /// Why.
        reason: &'a str,
        /// The commit in the cache.
        commit: &'a str,
    },
}

/// Who is told of a download's progress.
pub type Watch<'a> = &'a mut dyn FnMut(Event<'_>);

/// A repository at one commit, with everything but its weights in the cache.
pub(crate) struct Snapshot {
    /// Where its files lie.
    pub directory: PathBuf,
    /// What it is.
    pub revision: Revision,
    cache: Cache,
    source: Source,
}

/// Where what is missing comes from.
enum Source {
    /// The hub, which has these files.
    Hub(Client, BTreeSet<String>),
    /// Nowhere: this is what the cache has, kept in that folder.
    Cache(PathBuf),
}

impl Snapshot {
    /// Finds out what the revision stands for, and fetches every small file.
    pub(crate) fn open(settings: &Settings, repository: &Repository, watch: Watch<'_>) -> Result<Self> {
        let cache = Cache::new(&settings.cache, repository);
        let known = cache.commit(repository.revision()).filter(|commit| cache.snapshot(commit).is_dir());
        let snapshot = |commit: String, source| Self {
            directory: cache.snapshot(&commit),
            revision: Revision { repository: repository.id().into(), revision: repository.revision().into(), commit },
            cache: cache.clone(),
            source,
        };
        if settings.network == Network::Offline {
            let commit = known.ok_or_else(|| missing("the repository".into(), repository, &settings.cache))?;
            return Ok(snapshot(commit, Source::Cache(settings.cache.clone())));
        }
        let client = Client::new(settings, repository);
        let listing = match (client.listing(), known) {
            (Ok(listing), _) => listing,
            (Err(HubError::Unreachable { reason, .. }), Some(commit)) => {
                watch(Event::FromCache { reason: &reason, commit: &commit });
                return Ok(snapshot(commit, Source::Cache(settings.cache.clone())));
            }
            (Err(error), _) => return Err(error.into()),
        };
        for name in SMALL.iter().filter(|name| listing.names.contains(**name)) {
            cache.fetch(&client, &listing.commit, name, watch)?;
        }
        cache.remember(repository.revision(), &listing.commit)?;
        Ok(snapshot(listing.commit, Source::Hub(client, listing.names)))
    }

    /// Fetches the weights: one file, or the shards of an index, and nothing else.
    pub(crate) fn fetch_weights(&self, watch: Watch<'_>) -> Result<()> {
        let names = self.weight_names(watch)?;
        for name in &names {
            self.fetch(name, watch)?;
        }
        Ok(())
    }

    /// The headers of the weights without their numbers: those that are not in the cache are read from the hub, each by
    /// one or two requests for the beginning of its file.
    pub(crate) fn headers(&self, watch: Watch<'_>) -> Result<Vec<Header>> {
        let names = self.weight_names(watch)?;
        let header = |name: &String| match (&self.source, self.directory.join(name)) {
            (Source::Hub(client, _), path) if !path.is_file() => self.remote_header(client, name),
            (_, path) => {
                self.require(name)?;
                weights::read_header(&path)
            }
        };
        names.iter().map(header).collect()
    }

    /// The weights' files, after fetching the index if there is one.
    fn weight_names(&self, watch: Watch<'_>) -> Result<Vec<String>> {
        if self.has(weights::SINGLE) {
            return Ok(vec![weights::SINGLE.into()]);
        }
        if !self.has(weights::INDEX) {
            return Err(self.no_weights());
        }
        self.fetch(weights::INDEX, watch)?;
        let index = weights::read_index(&self.directory.join(weights::INDEX))?;
        let names: BTreeSet<String> = index.into_values().collect();
        if let Source::Hub(_, listed) = &self.source
            && let Some(name) = names.iter().find(|name| !listed.contains(*name))
        {
            return Err(self.not_a_model(format!("{} lists `{name}`, which is not there", weights::INDEX)));
        }
        Ok(names.into_iter().collect())
    }

    fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Hub(_, names) => names.contains(name),
            Source::Cache(_) => self.directory.join(name).is_file(),
        }
    }

    fn fetch(&self, name: &str, watch: Watch<'_>) -> Result<()> {
        match &self.source {
            Source::Hub(client, _) => self.cache.fetch(client, &self.revision.commit, name, watch),
            Source::Cache(_) => self.require(name),
        }
    }

    fn require(&self, name: &str) -> Result<()> {
        match &self.source {
            Source::Cache(cache) if !self.directory.join(name).is_file() => Err(self.missing(name.into(), cache)),
            _ => Ok(()),
        }
    }

    fn remote_header(&self, client: &Client, name: &str) -> Result<Header> {
        let url = client.url(&self.revision.commit, name);
        let path = Path::new(&url);
        let broken = |error: std::io::Error| HubError::Unreachable { url: url.clone(), reason: error.to_string() };
        let first = client.read_part(&url, 0..HEADER_GUESS)?;
        let length =
            first.whole.ok_or_else(|| HubError::Answer { url: url.clone(), reason: "it gives no size".into() })?;
        let mut bytes = Vec::new();
        first.reader.take(HEADER_GUESS).read_to_end(&mut bytes).map_err(broken)?;
        let end = 8 + weights::header_bytes(path, &bytes, length)?;
        if let Some(rest) = end.checked_sub(bytes.len() as u64).filter(|rest| *rest > 0) {
            let from = bytes.len() as u64;
            let mut second = client.read_part(&url, from..end)?;
            if second.from == 0 {
                // Everything again, of which the beginning is here.
                std::io::copy(&mut second.reader.by_ref().take(from), &mut std::io::sink()).map_err(broken)?;
            }
            second.reader.take(rest).read_to_end(&mut bytes).map_err(broken)?;
        }
        bytes.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        Ok(Header { path: path.to_path_buf(), length, bytes: bytes.split_off(8.min(bytes.len())) })
    }

    fn no_weights(&self) -> Error {
        let Revision { repository, revision, .. } = &self.revision;
        if let Source::Cache(cache) = &self.source {
            return self.missing(weights::SINGLE.into(), cache);
        }
        if weights::PICKLES.iter().any(|name| self.has(name)) {
            return self.not_a_model(weights::convert_pickle(
                &format!("'{repository}', revision='{revision}'"),
                &format!("./{}", repository.rsplit('/').next().unwrap_or("model")),
            ));
        }
        self.not_a_model(format!("it has neither {} nor {}", weights::SINGLE, weights::INDEX))
    }

    fn not_a_model(&self, reason: String) -> Error {
        let Revision { repository, revision, .. } = &self.revision;
        HubError::NotAModel { id: repository.clone(), revision: revision.clone(), reason }.into()
    }

    fn missing(&self, what: String, cache: &Path) -> Error {
        let Revision { repository: id, revision, .. } = self.revision.clone();
        HubError::Offline { what, id, revision, cache: cache.to_path_buf() }.into()
    }
}

fn missing(what: String, repository: &Repository, cache: &Path) -> Error {
    let (id, revision) = (repository.id().to_string(), repository.revision().to_string());
    HubError::Offline { what, id, revision, cache: cache.to_path_buf() }.into()
}
