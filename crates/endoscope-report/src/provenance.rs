//! Where a result comes from: versions, seeds, machine, and the hashes of what was read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Everything needed to judge or repeat a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The version of Endoscope.
    pub endoscope_version: String,
    /// The command line, one argument an entry.
    pub command: Vec<String>,
    /// When the run began, as RFC 3339 in UTC.
    pub started: String,
    /// How long it took.
    pub wall_seconds: f64,
    /// The most memory that the process has held, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// Where it ran.
    pub machine: Machine,
    /// Each random seed by what it is for.
    pub seeds: BTreeMap<String, u64>,
    /// The commit of each repository of a hub that was read, by `org/name`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revisions: BTreeMap<String, String>,
    /// Each file that was read.
    pub files: Vec<HashedFile>,
    /// The versions of the libraries that decide the numbers.
    pub libraries: BTreeMap<String, String>,
    /// Anything else that a reader must know.
    pub notes: Vec<String>,
}

/// The machine of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The operating system, as Rust names it: `linux`.
    pub os: String,
    /// The architecture, as Rust names it: `x86_64`.
    pub arch: String,
    /// The processor's own name, or `unknown`.
    pub cpu: String,
    /// How many threads can run at once.
    pub logical_cpus: usize,
}

/// A file that a run has read, with its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedFile {
    /// What it is to the run: `weights`, `tokenizer`, `config`, `prompts`.
    pub role: String,
    /// Its path, as given.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// The start of a run: the time of day, and a clock that no one can set back.
#[derive(Clone, Debug)]
pub struct Started {
    /// The time of day, as RFC 3339 in UTC.
    pub at: String,
    /// The clock.
    pub clock: Instant,
}

impl Started {
    /// Now.
    pub fn now() -> Started {
        Started { at: rfc3339(jiff::Timestamp::now()), clock: Instant::now() }
    }
}

fn rfc3339(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Provenance {
    /// The provenance of a run that began at `started` and ends now; seeds, revisions, files, libraries and notes are still empty.
    pub fn new(endoscope_version: impl Into<String>, command: Vec<String>, started: &Started) -> Provenance {
        Provenance {
            endoscope_version: endoscope_version.into(),
            command,
            started: started.at.clone(),
            wall_seconds: started.clock.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory_bytes(),
            machine: Machine::this(),
            seeds: BTreeMap::new(),
            revisions: BTreeMap::new(),
            files: Vec::new(),
            libraries: BTreeMap::new(),
            notes: Vec::new(),
        }
    }
}

impl Machine {
    /// The machine that this process runs on.
    pub fn this() -> Machine {
        let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| field(&text, "model name"));
        Machine {
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            cpu: cpu.unwrap_or_else(|| "unknown".into()),
            logical_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// The most memory that this process has held so far; known on Linux only.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes: u64 = field(&status, "VmHWM")?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

impl HashedFile {
    /// Reads a file once, in pieces, for its length and hash.
    pub fn read(role: impl Into<String>, path: impl AsRef<Path>) -> Result<HashedFile> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let mut hash = Sha256::new();
        let mut bytes = 0;
        let mut piece = vec![0; 1 << 20];
        loop {
            let length = match file.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Io { doing: "read", path: path.to_owned(), source }),
            };
            hash.update(piece.get(..length).unwrap_or_default());
            bytes += length as u64;
        }
        Ok(HashedFile::new(role.into(), path, bytes, hash))
    }

    /// The same of contents already read: a pipe cannot be read twice.
    pub fn of(role: impl Into<String>, path: impl AsRef<Path>, contents: &[u8]) -> HashedFile {
        HashedFile::new(role.into(), path.as_ref(), contents.len() as u64, Sha256::new_with_prefix(contents))
    }

    fn new(role: String, path: &Path, bytes: u64, hash: Sha256) -> HashedFile {
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        HashedFile { role, path: path.to_string_lossy().into_owned(), bytes, sha256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_rfc_3339_in_utc() {
        let time = jiff::Timestamp::from_millisecond(951_782_400_999).unwrap();
        assert_eq!(rfc3339(time), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn files_are_hashed_as_published() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("abc");
        // The test vector of FIPS 180-2, appendix B.3: a million times `a`.
        fs::write(&path, vec![b'a'; 1_000_000]).unwrap();
        let file = HashedFile::read("weights", &path).unwrap();
        assert_eq!(file.bytes, 1_000_000);
        assert_eq!(HashedFile::of("weights", &path, &fs::read(&path).unwrap()), file);
        assert_eq!(file.sha256, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
        let error = HashedFile::read("weights", directory.path().join("gone")).unwrap_err();
        assert!(error.to_string().starts_with("cannot open"), "{error}");
    }

    #[test]
    fn fields_of_proc_files_are_found() {
        let text = "Name:\tx\nVmHWM:\t  1234 kB\nVmHWM: 1 kB\n";
        assert_eq!(field(text, "VmHWM").as_deref(), Some("1234 kB"));
        assert_eq!(field(text, "model name"), None);
        if cfg!(target_os = "linux") {
            assert!(peak_memory_bytes().unwrap() > 100_000);
        }
    }
}
