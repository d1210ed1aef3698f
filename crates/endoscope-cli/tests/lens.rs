//! `endoscope lens`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::Path;

use common::*;
use serde_json::{Value, json};

fn lens(arguments: &[&str]) -> assert_cmd::Command {
    let mut command = endoscope();
    command.arg("lens").arg(organism()).args(arguments);
    command
}

const PROMPT: &[&str] = &["--prompt", "ba da fa ga ba da"];

fn read(arguments: &[&str]) -> Value {
    document(lens(PROMPT).args(arguments).arg("--json"))
}

#[test]
fn the_organism_finds_the_repeated_word_in_its_second_layer() {
    let reading = read(&["--target", "fa", "--positions", "last"]);
    assert_eq!(reading["lens"], "logit");
    assert_eq!(reading["streams"][0], "blocks.0.hook_resid_pre");
    assert_eq!(reading["streams"].as_array().unwrap().len(), 3);
    assert_eq!(reading["positions"][0]["position"], 6);
    assert_eq!(reading["positions"][0]["target"]["text"], "fa");
    let cell = |stream: usize| &reading["cells"][stream][0];
    assert_eq!(cell(2)["rank"], 0);
    assert_eq!(cell(2)["kl"], 0.);
    assert_eq!(cell(2)["top"][0]["text"], "fa");
    assert!(cell(2)["probability"].as_f64().unwrap() > 0.9);
    assert!(cell(0)["probability"].as_f64().unwrap() < 0.5);
    assert_eq!(cell(0)["top"].as_array().unwrap().len(), 5);
    assert_eq!(read(&["--mid", "--top", "2"])["streams"].as_array().unwrap().len(), 5);
    let id = &reading["positions"][0]["target"]["id"];
    let by_id = read(&["--target-id", &id.to_string(), "--positions", "-1"]);
    assert_eq!(by_id, reading);
}

#[test]
fn the_grid_shows_tokens() {
    let text = text(&mut lens(PROMPT));
    for part in
        ["What each layer would say", "resid_pre.0", "resid_post.1", "most probable next token", "KL(model || lens)"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    // The last row of the first grid ends with what the model says last.
    let last = text.lines().find(|line| line.starts_with("resid_post.1")).unwrap();
    assert!(last.trim_end_matches(['@', '%', ' ']).ends_with("fa"), "{last}");
}

#[test]
fn a_run_directory_holds_everything() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let printed = document(lens(PROMPT).args(["--positions", "last", "--json", "--out"]).arg(&out));
    assert_eq!(read_json(&out.join("reading.json")), printed);
    let report = read_json(&out.join("report.json"));
    assert_eq!(report["tables"]["top"]["texts"][2][0], "fa");
    assert_eq!(report["tables"]["candidates"]["axes"]["place"], json!([1, 2, 3, 4, 5]));
    assert_eq!(report["tables"]["candidates"]["texts"][0][2][0], "fa");
    assert_eq!(names(&out), ["plan.json", "provenance.json", "reading.json", "report.html", "report.json", "tables"]);
    assert!(out.join("tables/kl.parquet").is_file());
    assert_eq!(read_json(&out.join("plan.json"))["verb"], "lens");
    refused(lens(PROMPT).arg("--out").arg(&out), &["run"]);
}

fn made(folder: &Path, kind: &str, arguments: &[&str]) -> (std::path::PathBuf, Value) {
    let file = folder.join(format!("{kind}.safetensors"));
    let mut command = lens(&["--train", kind, "--save"]);
    command.arg(&file).args(["--length", "17", "--json"]).args(arguments);
    let printed = document(&mut command);
    (file, printed)
}

#[test]
fn lenses_are_made_measured_kept_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let (tuned, printed) =
        made(folder.path(), "tuned", &["--random", "40", "--steps", "60", "--learning-rate", "0.01"]);
    assert_eq!((&printed["lens"], &printed["held_out_rows"]), (&json!("tuned"), &json!(8)));
    for loss in &printed["losses"].as_array().unwrap()[..2] {
        let kl = |which: &str| loss[which]["kl"].as_f64().unwrap();
        assert!(kl("lens") < 0.9 * kl("logit"), "{loss}");
    }
    let out = folder.path().join("run");
    let (jacobian, printed) =
        made(folder.path(), "jacobian", &["--random", "2", "--over", "later", "--out", out.to_str().unwrap()]);
    assert_eq!(printed["made"]["settings"]["over"], "later");
    assert_eq!(read_json(&out.join("plan.json"))["made"], printed["made"]);
    assert!(read_json(&out.join("report.json"))["tables"]["kl"]["values"][0][1].is_number());
    let logit = read(&[]);
    for (kind, file) in [("tuned", &tuned), ("jacobian", &jacobian)] {
        let reading = read(&["--lens", file.to_str().unwrap()]);
        assert_eq!(reading["lens"], kind);
        assert_eq!(reading["cells"][2], logit["cells"][2]);
        assert_ne!(reading["cells"][0], logit["cells"][0]);
        assert_eq!(read(&["--kind", kind, "--lens", file.to_str().unwrap()]), reading);
    }
    refused(
        lens(PROMPT).args(["--kind", "jacobian", "--lens"]).arg(&tuned),
        &["holds a tuned lens, not a jacobian one"],
    );
    let mut other = endoscope();
    other.current_dir(tiny_models()).args(["lens", "gpt2-odd", "--tokens", "1,2", "--lens"]).arg(&tuned);
    refused(&mut other, &["that stream has 20 dims"]);
    // Made again, it is the same file; and it does not overwrite in silence what another model reads.
    let before = std::fs::read(&tuned).unwrap();
    made(folder.path(), "tuned", &["--random", "40", "--steps", "60", "--learning-rate", "0.01"]);
    assert_eq!(std::fs::read(&tuned).unwrap(), before);
}

#[test]
fn a_lens_is_made_from_a_text_and_from_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (text, rows) = (folder.path().join("text"), folder.path().join("rows.json"));
    std::fs::write(&text, "ba da fa ga ja ka la ma ".repeat(12)).unwrap();
    std::fs::write(&rows, "[[0, 2, 3, 2, 3], [0, 5, 6]]").unwrap();
    let (_, of_text) = made(folder.path(), "tuned", &["--text", text.to_str().unwrap(), "--steps", "2"]);
    // 96 words in rows of 16 after the <bos>.
    assert_eq!((&of_text["made"]["rows"], &of_text["made"]["positions"]), (&json!(4), &json!(4 * 17)));
    assert!(of_text["made"]["source"]["sha256"].is_string());
    let (_, of_rows) = made(folder.path(), "tuned", &["--token-rows", rows.to_str().unwrap(), "--steps", "2", "--mid"]);
    assert_eq!((&of_rows["made"]["positions"], of_rows["losses"].as_array().unwrap().len()), (&json!(5), 5));
}

#[test]
fn what_cannot_be_done_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let junk = folder.path().join("junk");
    std::fs::write(&junk, "no lens").unwrap();
    let save = folder.path().join("lens.safetensors");
    let (junk, save) = (junk.to_str().unwrap(), save.to_str().unwrap());
    let training = ["--train", "tuned", "--save", save];
    for (arguments, parts) in [
        (&[][..], &["no prompt to read", "--train"][..]),
        (&["--prompt", "ba", "--kind", "tuned"], &["--kind tuned needs --lens"]),
        (&["--prompt", "ba", "--lens", junk], &["junk", "no safetensors file"]),
        (&["--prompt", "ba", "--lens", "absent"], &["cannot read the lens absent"]),
        (&["--prompt", "ba", "--target", "zzz"], &["the tokenizer has no token for it"]),
        (&["--prompt", "ba", "--target-id", "66"], &["--target-id 66 is out of range", "66 tokens"]),
        (&["--prompt", "ba", "--positions", "7"], &["7"]),
        (&["--prompt", "ba", "--positions", "1..1"], &["are none"]),
        (&["--prompt", "ba", "--save", save], &["--train tuned|jacobian makes one"]),
        (&["--prompt", "ba", "--train", "tuned", "--save", save], &["reads no prompt"]),
        (&["--train", "tuned"], &["--save FILE.safetensors"]),
        (&training, &["--text FILE, --token-rows FILE.json or --random ROWS"]),
        (&[&training[..], &["--random", "1"]].concat(), &["only one row"]),
        (&[&training[..], &["--random", "9", "--length", "2"]].concat(), &["leaves no room"]),
        (&[&training[..], &["--random", "9", "--length", "99"]].concat(), &["1 to 64 fit the model's context"]),
        (&[&training[..], &["--token-rows", junk]].concat(), &["holds no rows of token ids"]),
        (&[&training[..], &["--random", "9", "--learning-rate", "1e38"]].concat(), &["finite"]),
        (&[&training[..], &["--random", "9", "--batch", "0"]].concat(), &["above 0"]),
    ] {
        refused(&mut lens(arguments), parts);
    }
    assert!(!Path::new(save).exists());
}
