//! Standard output that nobody reads. Alone in its program: a child of another test, not yet its own program, would
//! hold the reading end open.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;

/// Whoever reads standard output goes away: an exit code, and no panic.
#[test]
fn a_closed_pipe_is_an_error_and_no_panic() {
    let parent = tempfile::tempdir().unwrap();
    let prompts = parent.path().join("prompts");
    let pair = r#"[{"clean":[1,2],"corrupt":[1,3],"answers":[4],"wrong_answers":[5]}]"#;
    std::fs::write(&prompts, pair).unwrap();
    let closed = |command: &mut std::process::Command| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.current_dir(tiny_models()).stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{command:?}");
        assert!(!stderr.contains("panicked"), "{command:?}: {stderr}");
        assert!(stderr.contains("standard output was closed before everything was written"), "{command:?}: {stderr}");
    };
    let endoscope = || std::process::Command::new(env!("CARGO_BIN_EXE_endoscope"));
    for json in [false, true] {
        let verb = |arguments: &[&str]| {
            let mut command = endoscope();
            command.args(json.then_some("--json")).args(arguments);
            command
        };
        closed(&mut verb(&["inspect", "gpt2-odd"]));
        closed(&mut verb(&["generate", "gpt2-odd", "--tokens", "1", "--max-tokens", "39"]));
        closed(verb(&["capture", "gpt2-odd", "--tokens", "1", "--sites", "z", "--out"]).arg(parent.path().join("c")));
        let out = parent.path().join(format!("p{json}"));
        closed(verb(&["patch", "gpt2-odd", "--site", "z", "--prompts"]).arg(&prompts).arg("--out").arg(&out));
        // What was computed is kept.
        assert!(out.join("report.json").is_file());
    }
}
