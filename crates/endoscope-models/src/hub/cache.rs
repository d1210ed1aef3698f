//! The cache on disk, shared with Python's huggingface_hub: `models--org--name/{blobs, refs, snapshots/COMMIT}`.
//!
//! A file lies once under its ETag in `blobs`; a snapshot links to it. What is not whole yet is called `ETAG.incomplete`
//! and no snapshot links to it. A lock for each ETag keeps two processes apart, the same that Python takes.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::client::{Client, Description};
use super::reference::is_commit;
use super::{Event, HubError, Repository, Watch};
use crate::error::{Error, Result};

/// How often a download that breaks off is taken up again, as long as each attempt brings something.
const ATTEMPTS: usize = 5;
/// How many bytes are taken from the network at once.
const PIECE: usize = 1 << 16;

/// One repository's part of the cache.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    /// `models--org--name`.
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub(super) fn new(cache: &Path, repository: &Repository) -> Self {
        let name = format!("models--{}", repository.id().replace('/', "--"));
        Self { locks: cache.join(".locks").join(&name), folder: cache.join(name) }
    }

    /// The folder of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last asked for.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Remembers what a revision stands for.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_parent(&path)?;
        // Two processes would rename the same file.
        let _lock = self.lock("refs")?;
        let new = beside(&path, ".new");
        fs::write(&new, commit).and_then(|()| fs::rename(&new, &path)).map_err(|error| Error::write(&path, error))
    }

    /// Sees to it that the snapshot of `commit` has the file `name`, downloading what is missing of it.
    pub(super) fn fetch(&self, client: &Client, commit: &str, name: &str, watch: Watch<'_>) -> Result<()> {
        let link = self.snapshot(commit).join(name);
        if link.is_file() {
            return Ok(());
        }
        let url = client.url(commit, name);
        let description = client.describe(&url)?;
        let blob = self.folder.join("blobs").join(&description.etag);
        create_parent(&blob)?;
        let _lock = self.lock(&description.etag)?;
        if !blob.is_file() {
            download(client, &url, name, &description, &blob, watch)?;
        }
        create_parent(&link)?;
        link_to(&blob, &link)
    }

    fn lock(&self, name: &str) -> Result<File> {
        let path = self.locks.join(format!("{name}.lock"));
        create_parent(&path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| Error::write(&path, error))?;
        // Somebody else's work on the same file is waited for, and then found.
        file.lock().map_err(|error| Error::write(&path, error))?;
        Ok(file)
    }
}

/// Downloads to `blob`, which appears when it is whole and right.
fn download(
    client: &Client,
    url: &str,
    name: &str,
    description: &Description,
    blob: &Path,
    watch: Watch<'_>,
) -> Result<()> {
    let expected = description.bytes;
    let partial = beside(blob, ".incomplete");
    watch(Event::Begins { name, bytes: expected });
    for attempt in 1.. {
        let before = fs::metadata(&partial).map_or(0, |metadata| metadata.len());
        let broken = match receive(client, url, &partial, expected, watch)? {
            Received::Whole => break,
            Received::Broken(reason) => reason,
        };
        let received = fs::metadata(&partial).map_or(0, |metadata| metadata.len());
        if attempt == ATTEMPTS || received <= before {
            return Err(HubError::Truncated { url: url.to_string(), received, expected, reason: broken }.into());
        }
    }
    if let Some(found) = other_hash(&partial, &description.etag)? {
        fs::remove_file(&partial).map_err(|error| Error::write(&partial, error))?;
        return Err(HubError::Corrupt { url: url.to_string(), announced: description.etag.clone(), found }.into());
    }
    fs::rename(&partial, blob).map_err(|error| Error::write(blob, error))?;
    watch(Event::Ends { name });
    Ok(())
}

enum Received {
    Whole,
    /// Not everything came, and why.
    Broken(String),
}

/// One request, appended to what is in `partial`.
fn receive(client: &Client, url: &str, partial: &Path, expected: u64, watch: Watch<'_>) -> Result<Received> {
    let full = |error: std::io::Error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Error::from(HubError::Full { path: partial.to_path_buf(), bytes: expected })
        }
        _ => Error::write(partial, error),
    };
    let mut file = OpenOptions::new().create(true).append(true).open(partial).map_err(full)?;
    let mut length = file.metadata().map_err(full)?.len();
    if length > expected {
        file.set_len(0).map_err(full)?;
        length = 0;
    }
    if length < expected || expected == 0 {
        let mut incoming = client.read_from(url, length)?;
        if incoming.whole.is_some_and(|whole| whole != expected) {
            let reason = format!("{expected} bytes were announced, and it sends {}", incoming.whole.unwrap_or(0));
            return Err(HubError::Answer { url: url.to_string(), reason }.into());
        }
        if incoming.from != length {
            file.set_len(0).map_err(full)?;
            length = 0;
        }
        watch(Event::Has { bytes: length });
        let mut piece = vec![0; PIECE];
        while length < expected {
            let wanted = PIECE.min(usize::try_from(expected - length).unwrap_or(PIECE));
            match incoming.reader.read(&mut piece[..wanted]) {
                Ok(0) => return Ok(Received::Broken("the connection was closed".into())),
                Ok(count) => {
                    file.write_all(&piece[..count]).map_err(full)?;
                    length += count as u64;
                    watch(Event::Has { bytes: length });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Ok(Received::Broken(error.to_string())),
            }
        }
    }
    file.sync_all().map_err(full)?;
    Ok(Received::Whole)
}

/// The SHA-256 of a file whose ETag is a SHA-256, if it is another one.
fn other_hash(path: &Path, etag: &str) -> Result<Option<String>> {
    if etag.len() != 64 || !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let mut file = File::open(path).map_err(|error| Error::read(path, error))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => hash.update(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::read(path, error)),
        }
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((!found.eq_ignore_ascii_case(etag)).then_some(found))
}

/// Makes `link` (in `snapshots/COMMIT/`) stand for `blob` (in `blobs/`).
fn link_to(blob: &Path, link: &Path) -> Result<()> {
    let fail = |error| Error::write(link, error);
    // One that leads nowhere would be in the way.
    if fs::symlink_metadata(link).is_ok() && !link.exists() {
        fs::remove_file(link).map_err(fail)?;
    }
    #[cfg(unix)]
    let linked = {
        let name = blob.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(name), link)
    };
    // As huggingface_hub does where links need a privilege.
    #[cfg(not(unix))]
    let linked = fs::rename(blob, link);
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(fail(error)),
        _ => Ok(()),
    }
}

fn create_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|error| Error::write(parent, error))
}

/// `path` with `ending` after its name.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(ending);
    path.with_file_name(name)
}
