//! The files of the repository, read once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::source::Source;
use crate::tidy::Problem;

/// Folders that are never part of the repository, for when git cannot be asked.
const OUTSIDE: [&str; 8] =
    [".git", ".mypy_cache", ".ruff_cache", ".venv", "__pycache__", "node_modules", "runs", "target"];

/// Files above this size are not read.
pub const LARGEST: u64 = 4 * 1024 * 1024;

/// What the repository holds: the files that git tracks or would track.
#[derive(Debug, Default)]
pub struct Tree {
    /// By path from the root, with `/`.
    pub files: BTreeMap<String, File>,
    /// The Rust files among them.
    pub sources: Vec<Source>,
    /// What could not be read as Rust.
    pub unreadable: Vec<Problem>,
}

#[derive(Debug)]
pub struct File {
    pub bytes: u64,
    /// Absent for files that are large or not text.
    pub text: Option<String>,
}

impl Tree {
    pub fn load(root: &Path) -> Result<Self> {
        let names = match tracked(root) {
            Some(names) => names,
            None => walked(root)?,
        };
        let mut tree = Self::default();
        for name in names {
            let path = root.join(&name);
            // A file may be tracked and deleted; a link is not ours to follow.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if !metadata.is_file() {
                continue;
            }
            let text = match metadata.len() {
                0..=LARGEST => {
                    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                    String::from_utf8(bytes).ok()
                }
                _ => None,
            };
            tree.insert(name, File { bytes: metadata.len(), text });
        }
        Ok(tree)
    }

    fn insert(&mut self, name: String, file: File) {
        if let (true, Some(text)) = (name.ends_with(".rs"), &file.text) {
            match Source::parse(&name, text) {
                Ok(source) => self.sources.push(source),
                Err(problem) => self.unreadable.push(problem),
            }
        }
        self.files.insert(name, file);
    }

    /// The files that are text, by path.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(name, file)| Some((name.as_str(), file.text.as_deref()?)))
    }

    /// Whether there is such a file, or a folder with files.
    pub fn has(&self, name: &str) -> bool {
        let folder = format!("{name}/");
        name.is_empty()
            || self.files.contains_key(name)
            || self.files.range(folder.clone()..).next().is_some_and(|(found, _)| found.starts_with(&folder))
    }

    /// A tree in memory, for the tests of the checks.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (name, text) in files {
            let file = File { bytes: text.len() as u64, text: Some((*text).to_owned()) };
            tree.insert((*name).to_owned(), file);
        }
        tree
    }
}

/// What git tracks or would track; nothing where there is no git or `root` is not the root of its repository.
fn tracked(root: &Path) -> Option<Vec<String>> {
    if !root.join(".git").exists() {
        return None;
    }
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let names = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    let mut names: Vec<String> = names.split_terminator('\0').map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Some(names)
}

fn walked(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let path = root.join(&folder);
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let full = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            match entry.file_type()? {
                kind if kind.is_dir() && !OUTSIDE.contains(&name.as_str()) => folders.push(full),
                kind if kind.is_file() => names.push(full),
                _ => {}
            }
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_folders_and_the_root_are_found() {
        let tree = Tree::of(&[("docs/patch.md", ""), ("docs-old/x.md", "")]);
        for present in ["docs/patch.md", "docs", "docs-old", ""] {
            assert!(tree.has(present), "{present}");
        }
        for absent in ["doc", "docs/patch", "docs/patch.md/x"] {
            assert!(!tree.has(absent), "{absent}");
        }
    }

    #[test]
    fn build_outputs_and_environments_are_left_out_without_git() -> Result<()> {
        let root = tempfile::tempdir()?;
        for name in ["src/lib.rs", "target/debug/x.rs", "bench/.venv/y.py", "tools/a.py"] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, "")?;
        }
        let tree = Tree::load(root.path())?;
        assert_eq!(tree.files.keys().collect::<Vec<_>>(), ["src/lib.rs", "tools/a.py"]);
        Ok(())
    }
}
