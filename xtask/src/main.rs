//! The tasks of the house, for those who work on Endoscope: `cargo xtask tidy`, `cargo xtask new-study`.
//!
//! `tidy` reads the repository and reports every problem at once, each with its place and what to do about it; it
//! exits with 1 if there is one. The checks are listed in [`tidy::CHECKS`], one file each under `src/tidy/`.
//! `new-study SLUG` writes the file of a study from the template, and its line in the list.
//! What the compiler, clippy or rustfmt can say is not checked here.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod markdown;
mod new_study;
mod source;
mod tidy;
mod tree;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

const USAGE: &str = "usage: cargo xtask tidy [FOLDER]\n       cargo xtask new-study SLUG";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => repository().and_then(|folder| report(&folder)),
        ["tidy", folder] => report(Path::new(folder)),
        ["new-study", slug] => repository().and_then(|folder| new_study(&folder, slug)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

fn new_study(folder: &Path, slug: &str) -> Result<ExitCode> {
    let file = new_study::write(folder, slug)?;
    println!("{} is written and listed; next, docs/studies/{slug}.md, linked from docs/README.md", file.display());
    Ok(ExitCode::SUCCESS)
}

fn report(folder: &Path) -> Result<ExitCode> {
    let problems = tidy::problems(folder)?;
    for problem in &problems {
        println!("{problem}");
    }
    match problems.len() {
        0 => println!("tidy: {} checks, no problem", tidy::CHECKS.len()),
        1 => println!("tidy: 1 problem"),
        count => println!("tidy: {count} problems"),
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The folder above this package, which cargo names when it runs us.
fn repository() -> Result<PathBuf> {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").context("run this as `cargo xtask tidy`, or name the folder")?;
    let parent = Path::new(&package).parent().context("the package has no folder above it")?;
    Ok(parent.to_owned())
}
