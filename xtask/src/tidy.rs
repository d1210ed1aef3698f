//! The checks that the house keeps its own rules.

mod floors;
mod leftovers;
mod machine_paths;
mod pages;
mod rooms;
mod silence;
mod unsafety;
mod weight;

use std::fmt;
use std::path::Path;

use anyhow::Result;

use crate::tree::Tree;

/// What is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// From the root of the repository.
    pub path: String,
    /// From 1; absent when it is about the whole file.
    pub line: Option<usize>,
    pub what: String,
}

impl Problem {
    pub fn of(path: &str, what: String) -> Self {
        Self { path: path.to_owned(), line: None, what }
    }

    pub fn at(path: &str, line: usize, what: String) -> Self {
        Self { path: path.to_owned(), line: Some(line), what }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.what),
            None => write!(f, "{}: {}", self.path, self.what),
        }
    }
}

/// The checks that read files. The direction of dependencies is asked of cargo instead: see [`floors`].
pub const CHECKS: [fn(&Tree) -> Vec<Problem>; 8] = [
    |tree| tree.unreadable.clone(),
    rooms::check,
    silence::check,
    unsafety::check,
    leftovers::check,
    pages::check,
    machine_paths::check,
    weight::check,
];

/// Every problem of the repository at `root`, sorted by place.
pub fn problems(root: &Path) -> Result<Vec<Problem>> {
    let tree = Tree::load(root)?;
    let mut problems = floors::check(&floors::members(root)?);
    problems.extend(CHECKS.iter().flat_map(|check| check(&tree)));
    problems.sort();
    problems.dedup();
    Ok(problems)
}

/// The places that `check` reports in a tree of these files, for the tests of the checks.
#[cfg(test)]
fn places(check: fn(&Tree) -> Vec<Problem>, files: &[(&str, &str)]) -> Vec<String> {
    let place = |problem: Problem| match problem.line {
        Some(line) => format!("{}:{line}", problem.path),
        None => problem.path,
    };
    check(&Tree::of(files)).into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use anyhow::Context;

    use super::*;

    /// A workspace with one fault of each kind, read from disk as `cargo xtask tidy` does.
    #[test]
    fn every_fault_of_a_real_folder_is_reported_at_once() -> Result<()> {
        let root = tempfile::tempdir()?;
        let write = |name: &str, text: &str| -> Result<()> {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
            Ok(())
        };
        let package = |name: &str| format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n");
        let lower =
            package("endoscope-net") + "[dependencies]\nendoscope-report = { path = \"../endoscope-report\" }\n";
        write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"crates/*\"]\n")?;
        write("crates/endoscope-net/Cargo.toml", &lower)?;
        write("crates/endoscope-net/src/lib.rs", &"// A long root.\n".repeat(151))?;
        write("crates/endoscope-net/src/loud.rs", "fn f() { println!(); todo!() }\n")?;
        write("crates/endoscope-net/src/raw.rs", "fn f() { unsafe { g() } }\n")?;
        write("crates/endoscope-net/src/torn.rs", "fn f( {\n")?;
        write("crates/endoscope-report/Cargo.toml", &package("endoscope-report"))?;
        write("crates/endoscope-report/src/lib.rs", "")?;
        write("docs/README.md", "[nowhere](nowhere.md)\n")?;
        write("notes.md", concat!("It lies in /ro", "ot/notes.\n"))?;
        write("weights.bin", &"0".repeat(4 * 1024 * 1024 + 1))?;

        let found: Vec<String> = problems(root.path())?.into_iter().map(|problem| problem.path).collect();
        let expected = [
            "crates/endoscope-net/Cargo.toml",
            "crates/endoscope-net/src/lib.rs",
            "crates/endoscope-net/src/loud.rs",
            "crates/endoscope-net/src/loud.rs",
            "crates/endoscope-net/src/raw.rs",
            "crates/endoscope-net/src/torn.rs",
            "docs/README.md",
            "notes.md",
            "weights.bin",
        ];
        assert_eq!(found, expected);
        Ok(())
    }
}
