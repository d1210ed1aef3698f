//! What people write for a model: a path, or a hub id.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::HubError;
use crate::error::{Error, Result};

/// What a MODEL argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A directory or file that is there.
    Path(PathBuf),
    /// A repository of the hub.
    Hub(Repository),
}

/// A repository of the hub, and the branch, tag or commit that is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    id: String,
    revision: String,
}

/// A repository at one commit: what a revision stood for when it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// `org/name`.
    pub repository: String,
    /// What was asked for: a branch, a tag or a commit.
    pub revision: String,
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
}

impl Reference {
    /// Reads a MODEL argument: whatever exists is a path; else `org/name[@revision]` is a hub id; else an error.
    ///
    /// ```
    /// use endoscope_models::hub::Reference;
    /// assert!(matches!(Reference::parse("org/name@main")?, Reference::Hub(_)));
    /// assert!(Reference::parse("./org/name").is_err());
    /// # Ok::<(), endoscope_models::Error>(())
    /// ```
    pub fn parse(argument: impl AsRef<Path>) -> Result<Self> {
        let path = argument.as_ref();
        if path.exists() {
            return Ok(Self::Path(path.to_path_buf()));
        }
        match path.to_str() {
            Some(text) if is_like_an_id(text) => Ok(Self::Hub(Repository::parse(text)?)),
            _ => Err(Error::NotAModel {
                path: path.to_path_buf(),
                reason: "there is no such directory (a model of the hub is written org/name or org/name@revision)"
                    .into(),
            }),
        }
    }
}

/// Two names with one slash between, of which neither is `.` or `..`: no other text is taken for an id.
fn is_like_an_id(text: &str) -> bool {
    let id = text.split_once('@').map_or(text, |(id, _)| id);
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| !part.is_empty() && !part.starts_with(['.', '~'])) && !id.contains('\\')
}

impl Repository {
    /// Reads `org/name` or `org/name@revision`; without a revision it is `main`.
    pub fn parse(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let fail = |reason| Error::from(HubError::Name { text: text.to_string(), reason });
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() != 2 {
            return Err(fail("it is not two names with a slash between"));
        }
        for part in &parts {
            check_name(part).map_err(fail)?;
        }
        if id.contains("--") || id.contains("..") {
            return Err(fail("it holds `--` or `..`"));
        }
        if id.ends_with(".git") {
            return Err(fail("it ends with .git"));
        }
        check_revision(revision).map_err(fail)?;
        Ok(Self { id: id.to_string(), revision: revision.to_string() })
    }

    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)
    }
}

/// The hub's rule for each of the two names.
fn check_name(name: &str) -> std::result::Result<(), &'static str> {
    let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match name {
        _ if !(1..=96).contains(&name.len()) => Err("each of its names has 1 to 96 characters"),
        _ if !name.chars().all(letter) => Err("a name has letters, digits, `-`, `_` and `.` only"),
        _ if name.starts_with(['-', '.']) || name.ends_with(['-', '.']) => {
            Err("a name does not start or end with `-` or `.`")
        }
        _ => Ok(()),
    }
}

/// Git's rule for the names of branches and tags, as far as the cache's file names need it, and no wider.
fn check_revision(revision: &str) -> std::result::Result<(), &'static str> {
    let letter = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
    let hidden = revision.split('/').any(|part| part.is_empty() || part.starts_with('.') || part.ends_with(".lock"));
    match revision {
        "" => Err("nothing follows the @"),
        _ if revision.len() > 200 || !revision.chars().all(letter) => {
            Err("a revision has letters, digits, `-`, `_`, `.`, `+` and `/` only, 200 at most")
        }
        _ if hidden || revision.contains("..") || revision.starts_with('-') => {
            Err("a revision has no empty or hidden part, no `..`, and no `-` at its start")
        }
        _ => Ok(()),
    }
}

/// Whether this is a whole commit, as git writes it.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hub_ids_are_read() {
        for (text, id, revision) in [
            ("org/name", "org/name", "main"),
            ("openai-community/gpt2@e7da7f2", "openai-community/gpt2", "e7da7f2"),
            ("a/B.c_d-1@refs/pr/7", "a/B.c_d-1", "refs/pr/7"),
            ("_a/b_@v1.0+x", "_a/b_", "v1.0+x"),
        ] {
            let repository = Repository::parse(text).unwrap();
            assert_eq!((repository.id(), repository.revision()), (id, revision));
            assert_eq!(Reference::parse(text).unwrap(), Reference::Hub(repository));
        }
    }

    #[test]
    fn what_no_repository_can_be_called_is_refused() {
        for text in [
            "a--b/c",
            "a/b..c",
            "a/b.git",
            "-a/b",
            "a/b-",
            "a/ b",
            "a/b@",
            "a/b@../x",
            "a/b@/x",
            "a/b@x/",
            "a/b@.x",
            "a/b@x y",
            "a/b@-x",
            "a/b@main.lock",
            "ä/b",
            "a/b?x=1",
            "a/b#c",
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains("is no hub id"), "{text}: {error}");
        }
    }

    #[test]
    fn other_paths_are_no_hub_ids() {
        for text in ["gone", "./a/b", "../b", "/a/b", "a/b/c", "a/", "/a", "", "~/a", "a\\b/c", "a/b/c@main"] {
            let error = Reference::parse(text).unwrap_err();
            assert!(matches!(error, Error::NotAModel { .. }), "{text}: {error}");
            assert!(error.to_string().contains("there is no such directory"), "{text}: {error}");
        }
    }

    #[test]
    fn what_exists_is_a_path() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        assert_eq!(Reference::parse(&here).unwrap(), Reference::Path(here));
        // Tests run in the crate's folder, where this is two names with a slash between.
        assert_eq!(Reference::parse("src/hub").unwrap(), Reference::Path("src/hub".into()));
    }

    proptest! {
        #[test]
        fn no_text_leads_outside_the_cache(text in ".{0,40}|[a./@-]{1,12}") {
            if let Ok(repository) = Repository::parse(&text) {
                let path = Path::new(repository.revision());
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
                prop_assert!(!repository.id().contains(".."));
            }
        }
    }
}
