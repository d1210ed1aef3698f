//! Chats and named positions on the command line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::PathBuf;

use common::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %} {{ m.content | trim }} zo{% endfor %}\
                        {% if add_generation_prompt %} zi{% endif %}{% if loud is defined %} {{ loud }}{% endif %}";

/// The organism with a chat template, and a chat of two turns.
struct Talk {
    model: TempDir,
    chat: PathBuf,
}

impl Talk {
    fn new() -> Self {
        let model = copy(&organism());
        std::fs::write(model.path().join("chat_template.jinja"), TEMPLATE).unwrap();
        let messages = json!([
            {"role": "system", "content": "ba da"},
            {"role": "user", "content": " fa ga ba\n"},
            {"role": "assistant", "content": "da"},
            {"role": "user", "content": "fa ba"},
        ]);
        let chat = model.path().join("chat.json");
        std::fs::write(&chat, messages.to_string()).unwrap();
        Self { model, chat }
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = endoscope();
        command.arg(verb).arg(self.model.path()).args(arguments);
        command
    }

    fn generate(&self, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = self.command("generate", &["--max-tokens", "2", "--json", "--chat"]);
        command.arg(&self.chat).args(arguments);
        command
    }

    /// The captured entries of `resid_post.0` at these positions of the chat, and what was said.
    fn capture(&self, positions: &str) -> (Value, candle_core::Tensor) {
        let out = self.model.path().join("out.safetensors");
        let mut command = self.command("capture", &["--json", "--sites", "resid_post.0", "--positions", positions]);
        let said = document(command.arg("--chat").arg(&self.chat).arg("--out").arg(&out));
        (said, load(&out)["blocks.0.hook_resid_post"].clone())
    }

    fn write(&self, name: &str, value: &Value) -> PathBuf {
        let path = self.model.path().join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path
    }
}

/// `<bos> ba da zo fa ga ba zo da zo fa ba zo zi`.
const IDS: [u32; 14] = [0, 2, 3, 65, 4, 5, 2, 65, 3, 65, 4, 2, 65, 49];

fn spans() -> Value {
    let span = |role: &str, start: usize, end: usize| json!({"role": role, "tokens": {"start": start, "end": end}});
    json!([span("system", 1, 3), span("user", 4, 7), span("assistant", 8, 9), span("user", 10, 12)])
}

#[test]
fn a_chat_is_written_by_the_template_and_its_messages_are_found() {
    let talk = Talk::new();
    let found = document(&mut talk.generate(&[]));
    assert_eq!(found["prompt_tokens"], json!(IDS));
    assert_eq!(found["prompt_text"], "<bos> ba da zo fa ga ba zo da zo fa ba zo zi");
    assert_eq!((&found["messages"], &found["prepended"]), (&spans(), &Value::Null));
    assert_eq!(found["tokens"].as_array().unwrap().len(), 2);
    // The same ids, given as such.
    let ids = comma_separated(&json!(IDS));
    let by_ids = document(&mut talk.command("generate", &["--json", "--max-tokens", "2", "--tokens", &ids]));
    assert_eq!((&by_ids["tokens"], &by_ids["messages"]), (&found["tokens"], &json!([])));

    let ended = document(&mut talk.generate(&["--no-generation-prompt"]));
    assert_eq!(ended["prompt_tokens"], json!(IDS[..13]));
    // From standard input, as an object with arguments of the template.
    let messages = [json!({"role": "user", "content": "ba"})];
    let request = json!({"messages": messages, "chat_template_kwargs": {"loud": "wo"}});
    let mut command = talk.command("generate", &["--max-tokens", "1", "--json", "--chat", "-"]);
    assert_eq!(document(command.write_stdin(request.to_string()))["prompt_text"], "<bos> ba zo zi wo");
    // The shorthand.
    let arguments = ["--max-tokens", "1", "--json", "--system", "ba", "--user", "da"];
    let short = document(&mut talk.command("generate", &arguments));
    assert_eq!(short["prompt_text"], "<bos> ba zo da zo zi");
    assert_eq!(short["messages"][1]["role"], "user");
}

#[test]
fn named_positions_are_those_of_the_chat() {
    let talk = Talk::new();
    let (said, all) = talk.capture("all");
    assert_eq!((&said["tokens"], &said["messages"]), (&json!([IDS]), &spans()));
    for (positions, expected) in [
        ("last_user", [10, 11].as_slice()),
        ("user", &[4, 5, 6, 10, 11]),
        ("assistant[0]", &[8]),
        ("system.last+last", &[2, 13]),
        ("token:\"ba\"", &[1, 6, 11]),
        ("token[-1]:\"zo\"", &[12]),
        ("-2..", &[12, 13]),
        ("3", &[3]),
    ] {
        let (_, some) = talk.capture(positions);
        assert_eq!(some.dims()[1], expected.len(), "{positions}");
        for (row, &position) in expected.iter().enumerate() {
            let (found, wanted) = (some.narrow(1, row, 1).unwrap(), all.narrow(1, position, 1).unwrap());
            assert_eq!(difference(&found, &wanted), 0., "{positions}");
        }
    }
    // Of attention matrices, positions are queries; of a text, tokens have names too.
    let out = talk.model.path().join("pattern.safetensors");
    let arguments = ["--json", "--sites", "pattern.0,z.1", "--positions", "token:\"da\"", "--text", "ba da fa da"];
    let said = document(talk.command("capture", &arguments).arg("--out").arg(&out));
    let tensors = &said["tensors"];
    assert_eq!(tensors["blocks.0.attn.hook_pattern"][2], 2);
    assert_eq!(tensors["blocks.0.attn.hook_pattern"][3], 5);
    assert_eq!(tensors["blocks.1.attn.hook_z"][1], 2);
}

#[test]
fn plans_may_name_positions() {
    let talk = Talk::new();
    let plan = |position: Value| {
        let select = |site: &str| json!({"site": site, "select": {"position": position}});
        let mut edit = select("resid_post.0");
        edit["change"] = json!("zero");
        talk.write("plan.json", &json!({"captures": [select("resid_post.1")], "edits": [edit]}))
    };
    let run = |position: Value| {
        let out = talk.model.path().join("captured.safetensors");
        let said = document(talk.generate(&["--plan"]).arg(plan(position)).arg("--out").arg(&out));
        (said["tokens"].clone(), load(&out)["blocks.1.hook_resid_post"].clone())
    };
    let (tokens, captured) = run(json!("last_user+token:\"ga\""));
    let (expected, by_number) = run(json!([5, 10, 11]));
    assert_eq!(tokens, expected);
    assert_eq!(captured.dims(), by_number.dims());
    assert_eq!(difference(&captured, &by_number), 0.);
    refused(
        talk.generate(&["--plan"]).arg(plan(json!("tool"))),
        &["plan.json", "captures[0], position", "2 user messages"],
    );
    refused(talk.generate(&["--plan"]).arg(plan(json!("5..x"))), &["`5..x` is neither an index"]);
    refused(talk.generate(&["--plan"]).arg(talk.write("odd.json", &json!({"edit": []}))), &["is not a plan", "edit"]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let talk = Talk::new();
    let plain = organism();
    let ask = |arguments: &[&str]| {
        let mut command = endoscope();
        command.arg("generate").arg(&plain).args(arguments);
        command
    };
    refused(&mut ask(&["--user", "ba"]), &["has no chat template", "--chat-template FILE.jinja"]);
    let template = talk.model.path().join("chat_template.jinja");
    assert_eq!(
        document(ask(&["--max-tokens", "1", "--json", "--user", "ba", "--chat-template"]).arg(&template))["prompt_text"],
        "<bos> ba zo zi"
    );
    refused(&mut talk.generate(&["--chat-template", "rag"]), &["no chat template named `rag`", "default"]);
    refused(&mut talk.generate(&["--chat-template", "not.jinja"]), &["not.jinja"]);
    refused(&mut talk.generate(&["--no-bos"]), &["writes the beginning-of-sequence token itself"]);
    refused(&mut ask(&["--prompt", "ba", "--no-generation-prompt"]), &["there is none (--chat, --user)"]);
    refused(&mut ask(&["--prompt", "ba", "--system", "da"]), &["there is none (--chat, --user)"]);
    refused(&mut talk.generate(&["--system", "da"]), &["--system goes with --user"]);
    let bad = talk.write("bad.json", &json!([{"content": "ba"}]));
    refused(ask(&["--chat"]).arg(bad), &["bad.json", "message 0: it has no role"]);
    refused(&mut ask(&["--chat", "missing.json"]), &["cannot read the chat missing.json"]);
    std::fs::write(&template, "{{ raise_exception('no ' + messages[0].role) }}").unwrap();
    refused(&mut talk.generate(&[]), &["refuses these messages: no system"]);
    std::fs::write(&template, "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}").unwrap();
    refused(&mut talk.generate(&[]), &["too much work"]);

    let out = talk.model.path().join("out.safetensors");
    let capture = |arguments: &[&str]| {
        let mut command = endoscope();
        command.arg("capture").arg(&plain).args(arguments).arg("--out").arg(&out);
        command
    };
    let text = ["--text", "ba da fa", "--sites", "resid_post.0", "--positions"];
    refused(capture(&text).arg("user"), &["it is no chat"]);
    refused(capture(&text).arg("token:\"be\""), &["no token is \"be\"", "\"ba\""]);
    refused(capture(&text).arg("last_"), &["`last_` is neither an index"]);
    let prompts = talk.write("prompts.json", &json!({"prompts": [{"clean": "ba da"}, {"clean": "fa ba"}]}));
    let several = ["--sites", "resid_post.0", "--positions", "token:\"ba\"", "--prompts"];
    refused(capture(&several).arg(&prompts), &["names of positions need one prompt"]);
    document(capture(&["--json", "--sites", "resid_post.0", "--positions", "last", "--prompts"]).arg(&prompts));
}
