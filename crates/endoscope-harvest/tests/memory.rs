//! Shuffled reading holds its buffer and a batch, whatever the harvest's size; a corpus is read line by line. One test: the allocator counts for the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::alloc::System;

use common::*;
use endoscope_harvest::*;

#[global_allocator]
static ALLOCATOR: cap::Cap<System> = cap::Cap::new(System, usize::MAX);

#[test]
fn memory_is_bounded() {
    shuffled_reading_holds_its_buffer();
    a_corpus_is_read_as_a_stream();
}

fn a_corpus_is_read_as_a_stream() {
    let directory = tempfile::tempdir().unwrap();
    let line = "a word and another ".repeat(50);
    for (name, line) in [("a.txt", line.clone()), ("a.jsonl", format!("{{\"text\": \"{line}\"}}"))] {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("{line}\n").repeat(20_000)).unwrap();
        let size = std::fs::metadata(&path).unwrap().len() as usize;
        ALLOCATOR.set_limit(ALLOCATOR.allocated() + (1 << 20)).unwrap();
        let corpus = Corpus::open(&path, None).unwrap();
        let count = corpus.documents(7).unwrap().map(Result::unwrap).filter(|document| document.number >= 7).count();
        ALLOCATOR.set_limit(usize::MAX).unwrap();
        assert_eq!(count, 20_000 - 7);
        assert!(size > 18 << 20, "{size}");
    }
}

fn shuffled_reading_holds_its_buffer() {
    let directory = tempfile::tempdir().unwrap();
    let output = Output { site: "blocks.0.mlp.hook_post".into(), reduction: Reduction::Tokens };
    let settings = Settings { outputs: vec![output], shard_rows: Some(2000), batch_tokens: 600, ..settings() };
    harvest_to(directory.path(), &settings, &documents(4000, 1)).unwrap();
    let reader = ActivationReader::open(directory.path()).unwrap();
    let output = reader.manifest().outputs[0].clone();
    let (rows, row) = (reader.rows(Per::Token) as usize, 4 * output.width);
    let (buffer_rows, batch_rows) = (rows / 16, 64);
    // Numbers and order of the rows in the buffer; a batch as bytes, as numbers, and its rows; files and names.
    let budget = buffer_rows * (row + 12) + batch_rows * (2 * row + 8) + (64 << 10);
    assert!(budget < rows * row / 4, "the harvest is much larger than the budget");
    let mut stream = reader.shuffled(&[&output.name], Shuffle { seed: 1, buffer_rows, batch_rows }).unwrap();
    let held = ALLOCATOR.allocated();
    ALLOCATOR.set_limit(held + budget).unwrap();
    let mut seen = 0;
    for _ in 0..stream.batches() {
        seen += stream.next_batch().unwrap().rows.len();
    }
    ALLOCATOR.set_limit(usize::MAX).unwrap();
    assert_eq!(seen, rows);
    println!("{budget} bytes were enough for {} of rows", rows * row);
}
