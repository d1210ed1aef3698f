//! `endoscope organisms --task`: what it shows of every task, prompt files that fit a model, and the examples of docs/tasks.md.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::Path;

use common::{document, endoscope, refused, text};
use endoscope_organisms::TASKS;

const REPEATED: [&str; 6] = ["--set", "words=12", "--set", "shortest=3", "--set", "longest=5"];

#[test]
fn every_task_is_shown_as_text_and_as_a_prompt_file() {
    for name in TASKS {
        let keys = if *name == "repeated_sequences" { &REPEATED[..] } else { &[] };
        let arguments = [&["organisms", "--task", name][..], keys].concat();
        let shown = text(endoscope().args(&arguments));
        assert_eq!(shown.matches("clean ").count(), 5, "{shown}");
        let all = document(endoscope().args(&arguments).args(["--count", "7", "--json"]));
        let (rows, prompts) = (all["rows"].as_array().unwrap(), all["prompts"].as_array().unwrap());
        assert_eq!((rows.len(), prompts.len()), (7, 7));
        for prompt in &prompts[..5] {
            assert!(shown.contains(&format!("clean    {} → ", prompt["clean"].as_str().unwrap())), "{prompt}\n{shown}");
            assert!(shown.contains(&format!("changed  {}\n", prompt["change"].as_str().unwrap())));
        }
        for row in rows {
            assert_eq!(row["tokens"].as_array().unwrap().len(), row["counts"].as_array().unwrap().len());
        }
        assert_ne!(shown, text(endoscope().args(&arguments).args(["--seed", "5"])));
        for change in all["changes"].as_array().unwrap() {
            let change = change.as_str().unwrap();
            let of = document(endoscope().args(&arguments).args(["--change", change, "--count", "2", "--json"]));
            assert!(of["prompts"].as_array().unwrap().iter().all(|prompt| prompt["change"] == change));
        }
    }
}

#[test]
fn a_model_that_was_trained_on_a_task_reads_its_prompt_file() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = "[model]\nfamily = \"gpt2\"\ncontext = 8\nd_model = 16\nlayers = 1\nheads = 2\nd_mlp = 16\n\
                  [task]\nname = \"modular_addition\"\nmodulus = 5\n\
                  [training]\nsteps = 2\nbatch = 4\nseed = 1\nlearning_rate = 0.001\n";
    std::fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
    text(endoscope().current_dir(folder.path()).args(["train", "recipe.toml", "--out", "model"]));
    let pairs = text(endoscope().args(["organisms", "--task", "modular_addition", "--set", "modulus=5", "--json"]));
    std::fs::write(folder.path().join("pairs.json"), pairs).unwrap();
    let report = document(endoscope().current_dir(folder.path()).args([
        "patch",
        "model",
        "--prompts",
        "pairs.json",
        "--site",
        "resid_post",
        "--over",
        "layer",
        "--out",
        "run",
        "--json",
    ]));
    assert!(report["tables"].as_object().is_some_and(|tables| !tables.is_empty()));
}

#[test]
fn what_is_not_there_is_refused() {
    let task = |more: &[&str]| {
        let mut command = endoscope();
        command.args(["organisms", "--task"]).args(more);
        command
    };
    refused(&mut task(&["sorting"]), &["sorting_with_hints"]);
    refused(&mut task(&["repeated_sequences"]), &["words"]);
    refused(&mut task(&["modular_addition", "--set", "modulus"]), &["KEY=VALUE"]);
    refused(&mut task(&["modular_addition", "--set", "modulus=one"]), &["modulus", "one"]);
    refused(&mut task(&["modular_addition", "--set", "modulus=1"]), &["task.modulus"]);
    refused(&mut task(&["modular_addition", "--split", "tests"]), &["train, test"]);
    refused(&mut task(&["modular_addition", "--change", "third"]), &["first, second"]);
    refused(endoscope().args(["organisms", "--count", "3"]), &["--count"]);
}

/// `ENDOSCOPE_WRITE_PAGES=1` writes the examples anew.
#[test]
fn the_examples_of_the_page_are_what_is_printed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tasks.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (mut written, mut printed, mut examples) = (String::new(), String::new(), 0);
    let mut block = "";
    for line in page.lines() {
        match (block, line.strip_prefix("```")) {
            ("", Some(begun)) => {
                block = begun;
                written += &format!("{line}\n");
                if begun == "text" {
                    assert!(!printed.is_empty(), "an example without a command");
                    written += printed.trim_end();
                    written += "\n";
                    (printed, examples) = (String::new(), examples + 1);
                }
            }
            (_, Some(_)) => {
                block = "";
                written += "```\n";
            }
            ("text", None) => {}
            (_, None) => {
                // What is written to a file is no example.
                if let Some(command) =
                    line.strip_prefix("endoscope ").filter(|command| block == "sh" && !command.contains('>'))
                {
                    let shown = text(endoscope().args(command.split(' ')));
                    // Without the last line, which is for whoever looks around.
                    printed += shown.trim_end().rsplit_once("\n\n").unwrap().0;
                    printed += "\n\n";
                }
                written += &format!("{line}\n");
            }
        }
        if line.starts_with("## ") {
            printed.clear();
        }
    }
    assert_eq!(examples, 11);
    if std::env::var_os("ENDOSCOPE_WRITE_PAGES").is_some() {
        std::fs::write(&path, &written).unwrap();
    } else {
        assert_eq!(page, written, "run the tests with ENDOSCOPE_WRITE_PAGES=1");
    }
}
