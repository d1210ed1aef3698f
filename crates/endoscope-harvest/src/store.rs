//! Harvests elsewhere: S3, what speaks like it, and folders. The only place that knows asynchronous code.
//!
//! What is moved is a harvest at every moment, as it is on the disk: a shard, then the `harvest.json` that says that it is there. So a move
//! that was broken off goes on with the first shard that is not there yet.

use std::fs;
use std::path::Path;
use std::time::Duration;

use endoscope_report::{HashedFile, write_atomically};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, RetryConfig};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

use crate::error::{Error, Result};
use crate::http::Connector;
use crate::manifest::{MANIFEST, Manifest, ShardRecord};
use crate::run::{Lock, refuse_foreign};

/// Other files of a harvest, which may be there.
const BESIDE: [&str; 1] = ["provenance.json"];

/// What a move did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Shards that were moved.
    pub moved: usize,
    /// Shards that were there already.
    pub there: usize,
    /// Bytes of those that were moved.
    pub bytes: u64,
}

impl Moved {
    fn count(&mut self, shard: &ShardRecord) {
        self.moved += 1;
        self.bytes += shard.bytes;
    }
}

/// How S3 is reached: object_store's options, `aws_endpoint`, `aws_access_key_id`, `aws_secret_access_key`, `aws_allow_http` …
#[derive(Debug, Clone, Default)]
pub struct Access(Vec<(AmazonS3ConfigKey, String)>);

impl Access {
    /// As the environment's variables `AWS_…` say.
    pub fn from_environment() -> Self {
        Self::of(
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// As these options say; names that are none of object_store's are left out, as the environment has many of them.
    pub fn of(options: impl IntoIterator<Item = (String, String)>) -> Self {
        let options = options.into_iter().filter(|(name, _)| name.to_ascii_lowercase().starts_with("aws_"));
        Self(options.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value))).collect())
    }
}

/// Sends a harvest to `url`: `s3://bucket/folder`, `file:///folder`, or a folder.
///
/// Shards that are there with the same SHA-256 are left alone. `tell` hears of how many shards are there, and of how many.
pub fn push(
    directory: &Path,
    url: &str,
    access: &Access,
    tell: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Moved> {
    let Some(manifest) = Manifest::read(directory)? else {
        let reason = "it is not there".to_string();
        return Err(Error::Manifest { path: directory.join(MANIFEST), reason });
    };
    let store = Store::open(url, access, Missing::Create)?;
    let known = match store.manifest()? {
        None => Vec::new(),
        Some(there) => match there.difference(&manifest) {
            None => there.shards,
            Some((what, then, now)) => {
                let reason = format!(
                    "another harvest is there, with {what} = {then} where that of {} has {now}; give another place",
                    directory.display()
                );
                return Err(store.failed(&reason));
            }
        },
    };
    let mut moved = Moved::default();
    let mut there = Manifest { shards: Vec::new(), complete: false, ..manifest.clone() };
    for (number, shard) in manifest.shards.iter().enumerate() {
        if known.get(number) == Some(shard) && store.size(&shard.file)? == Some(shard.bytes) {
            moved.there += 1;
            there.shards.push(shard.clone());
        } else {
            let path = directory.join(&shard.file);
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            if crate::hex(&Sha256::digest(&bytes)) != shard.sha256 {
                let reason = "its SHA-256 is not that of what was written".to_string();
                return Err(Error::Shard { path, reason });
            }
            store.put(&shard.file, bytes)?;
            moved.count(shard);
            there.shards.push(shard.clone());
            store.put_manifest(&there)?;
        }
        tell(number + 1, manifest.shards.len())?;
    }
    for name in BESIDE.into_iter().filter(|name| directory.join(name).is_file()) {
        let path = directory.join(name);
        store.put(name, fs::read(&path).map_err(Error::io("read", &path))?)?;
    }
    store.put_manifest(&manifest)?;
    Ok(moved)
}

/// Fetches the harvest at `url` (see [`push`]) into a folder; shards that are there with the right SHA-256 are left alone.
pub fn pull(
    url: &str,
    directory: &Path,
    access: &Access,
    tell: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Moved> {
    let store = Store::open(url, access, Missing::Refuse)?;
    let Some(manifest) = store.manifest()? else {
        return Err(store.failed(&format!("there is no {MANIFEST}")));
    };
    fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    let _lock = Lock::take(directory)?;
    match Manifest::read(directory)? {
        None => refuse_foreign(directory)?,
        Some(found) => {
            if let Some((what, then, now)) = found.difference(&manifest) {
                return Err(Error::Changed { path: directory.to_path_buf(), what, then, now });
            }
        }
    }
    let mut moved = Moved::default();
    let mut here = Manifest { shards: Vec::new(), complete: false, ..manifest.clone() };
    here.write(directory)?;
    for (number, shard) in manifest.shards.iter().enumerate() {
        let path = directory.join(&shard.file);
        let same = path.is_file() && HashedFile::read("shard", &path)?.sha256 == shard.sha256;
        here.shards.push(shard.clone());
        if same {
            moved.there += 1;
        } else {
            let Some(bytes) = store.get(&shard.file)? else {
                return Err(store.failed(&format!("{} is not there, though {MANIFEST} says so", shard.file)));
            };
            if crate::hex(&Sha256::digest(&bytes)) != shard.sha256 {
                return Err(store.failed(&format!(
                    "{} is damaged there: its SHA-256 is not that of {MANIFEST}; push it again",
                    shard.file
                )));
            }
            write_atomically(&path, |file| file.write_all(&bytes))?;
            moved.count(shard);
            here.write(directory)?;
        }
        tell(number + 1, manifest.shards.len())?;
    }
    for name in BESIDE {
        if let Some(bytes) = store.get(name)? {
            write_atomically(directory.join(name), |file| file.write_all(&bytes))?;
        }
    }
    manifest.write(directory)?;
    Ok(moved)
}

/// What is done where a folder is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Refuse,
}

/// A place in an object store.
struct Store {
    url: String,
    store: Box<dyn ObjectStore>,
    prefix: Key,
    runtime: Runtime,
}

impl Store {
    fn open(url: &str, access: &Access, missing: Missing) -> Result<Self> {
        let failed = |reason: String| Error::Store { url: url.into(), reason };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| failed(error.to_string()))?;
        let (store, prefix): (Box<dyn ObjectStore>, Key) = match url.split_once("://") {
            Some(("s3", place)) => {
                let (bucket, folder) = place.split_once('/').unwrap_or((place, ""));
                let patience = Duration::from_secs(60);
                let retry = RetryConfig { max_retries: 3, retry_timeout: patience, ..RetryConfig::default() };
                let options = access.0.iter().cloned();
                let builder =
                    options.fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value));
                let store = builder.with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector).build();
                (Box::new(store.map_err(|error| failed(error.to_string()))?), Key::from(folder))
            }
            None | Some(("file", _)) => {
                let folder = Path::new(url.strip_prefix("file://").unwrap_or(url));
                match missing {
                    Missing::Create => fs::create_dir_all(folder).map_err(Error::io("create", folder))?,
                    Missing::Refuse if folder.is_dir() => {}
                    Missing::Refuse => return Err(failed("there is no such folder".into())),
                }
                let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| failed(error.to_string()))?;
                (Box::new(store), Key::default())
            }
            Some((scheme, _)) => {
                return Err(failed(format!("nothing is known of {scheme}://; give s3://bucket/folder or a folder")));
            }
        };
        Ok(Self { url: url.into(), store, prefix, runtime })
    }

    fn failed(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Store { url: self.url.clone(), reason: reason.to_string() }
    }

    fn key(&self, name: &str) -> Key {
        self.prefix.clone().join(name)
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let put = self.runtime.block_on(self.store.put(&self.key(name), bytes.into()));
        put.map(|_| ()).map_err(|error| self.failed(&error))
    }

    fn put_manifest(&self, manifest: &Manifest) -> Result<()> {
        self.put(MANIFEST, manifest.text().map_err(|error| self.failed(&error))?)
    }

    /// The bytes of a file, if it is there.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let got = self.runtime.block_on(async { self.store.get(&self.key(name)).await?.bytes().await });
        self.there(got.map(|bytes| bytes.into()))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        let found = self.runtime.block_on(self.store.head(&self.key(name)));
        self.there(found.map(|found| found.size))
    }

    fn manifest(&self) -> Result<Option<Manifest>> {
        let text = self.get(MANIFEST)?;
        text.map(|text| Manifest::parse(&text, &Path::new(&self.url).join(MANIFEST))).transpose()
    }

    fn there<T>(&self, answer: object_store::Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(found) => Ok(Some(found)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }
}
