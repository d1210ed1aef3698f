//! Everything that README.md and the pages of docs/ tell the reader to type.
//!
//! A block ```` ```sh ```` is typed line by line, in an empty folder that holds `organisms/`; a block whose fence says
//! `file=NAME` is that file. What cannot be typed there is listed in [`ELSEWHERE`].

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Lines that other places run: this very test suite, and the scripts of bench/, which need a Python environment.
const ELSEWHERE: &[&str] = &[
    "cargo test --workspace",
    "cargo build --release",
    "cargo bench",
    "bench/",
    "ENDOSCOPE_WRITE_PAGES=1 cargo test",
    "tools/examples/",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

struct Block {
    info: String,
    body: String,
}

fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for line in markdown.lines() {
        match (line.strip_prefix("```"), open) {
            (Some(info), false) => {
                blocks.push(Block { info: info.to_string(), body: String::new() });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => {
                let body = &mut blocks.last_mut().unwrap().body;
                body.push_str(line);
                body.push('\n');
            }
            (None, false) => {}
        }
    }
    assert!(!open, "a block is not closed");
    blocks
}

/// Types a page; how many lines were run.
fn type_page(page: &Path) -> usize {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(repository().join("organisms"), folder.path().join("organisms")).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_endoscope")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut run = 0;
    for block in blocks(&fs::read_to_string(page).unwrap()) {
        if let Some((_, name)) = block.info.split_once("file=") {
            fs::write(folder.path().join(name), &block.body).unwrap();
        }
        if block.info != "sh" {
            continue;
        }
        for line in block.body.lines().filter(|line| !line.trim().is_empty()) {
            if ELSEWHERE.iter().any(|prefix| line.starts_with(prefix)) {
                continue;
            }
            let line = line.replace("cargo run --release --", "endoscope");
            assert!(line.starts_with("endoscope "), "{}: nobody runs `{line}`", page.display());
            let output = Command::new("sh")
                .args(["-c", &line])
                .current_dir(folder.path())
                .env("PATH", &path)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: `{line}` fails:\n{errors}", page.display());
            run += 1;
        }
    }
    run
}

#[test]
fn the_readme() {
    assert!(type_page(&repository().join("README.md")) >= 5);
}

#[test]
fn the_pages() {
    let mut run = 0;
    let folders = ["docs", "docs/studies"].map(|folder| fs::read_dir(repository().join(folder)).unwrap());
    for page in folders.into_iter().flatten().map(|entry| entry.unwrap().path()) {
        if page.extension().is_some_and(|extension| extension == "md") {
            run += type_page(&page);
        }
    }
    assert!(run >= 15, "only {run} lines were run");
}
