//! Chat templates: the text of transformers, the place of each message, and bounds on what a template may do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use endoscope_models::{Chat, ChatTemplate, Clock, Error, GenerationPrompt, Message, Tokenizer};
use jiff::civil::date;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The time that the goldens were told.
fn clock() -> Clock {
    Clock::At(date(2024, 7, 26).at(9, 5, 3, 0))
}

#[derive(Deserialize)]
struct Golden {
    template: String,
    special_tokens: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Its name in chats.json.
    chat: String,
    generation_prompt: bool,
    text: Option<String>,
}

impl Case {
    fn prompt(&self) -> GenerationPrompt {
        if self.generation_prompt { GenerationPrompt::Add } else { GenerationPrompt::Omit }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/chat")
}

fn read<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn chats() -> BTreeMap<String, Chat> {
    let chats: BTreeMap<String, Value> = read(&folder().join("chats.json"));
    chats.into_iter().map(|(name, chat)| (name, Chat::parse(&chat.to_string()).unwrap())).collect()
}

fn goldens() -> Vec<(String, Golden)> {
    let paths = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_string();
    let families = paths.filter(|path| name(path) != "chats");
    let mut goldens: Vec<(String, Golden)> = families.map(|path| (name(&path), read(&path))).collect();
    goldens.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(goldens.len() >= 17);
    goldens
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, BTreeMap::new(), Path::new("chat_template.jinja")).unwrap()
}

#[test]
fn every_text_is_that_of_transformers() {
    let chats = chats();
    let (mut equal, mut refused) = (0, 0);
    for (family, golden) in goldens() {
        let template = ChatTemplate::new(&golden.template, golden.special_tokens, Path::new(&family)).unwrap();
        for case in &golden.cases {
            let found = template.render(&chats[&case.chat], case.prompt(), clock());
            match (&case.text, found) {
                (Some(text), Ok(found)) => {
                    assert_eq!(&found, text, "{family}, {}", case.chat);
                    equal += 1;
                }
                (None, Err(Error::ChatRefused { .. } | Error::ChatTemplate { .. })) => refused += 1,
                (expected, found) => panic!("{family}, {}: {found:?}, not {expected:?}", case.chat),
            }
        }
    }
    assert!(equal >= 400 && refused >= 50, "{equal} equal, {refused} refused");
}

/// The tokenizers that spans are tested with: bytes (GPT-2's), SentencePiece (a small Llama's), words.
fn tokenizers() -> Vec<Tokenizer> {
    let root = std::env::var_os("ENDOSCOPE_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let organism = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction");
    let folders = [root.join("tokenizers/gpt2"), root.join("models/stories260k"), organism];
    let there = folders.iter().filter(|folder| folder.is_dir());
    let opened: Vec<Tokenizer> = there.map(|folder| Tokenizer::open(folder, None).unwrap().unwrap()).collect();
    assert!(opened.len() == 3 || std::env::var("CI").as_deref() != Ok("true"), "set ENDOSCOPE_SHARED");
    opened
}

/// A directory with this tokenizer, whose special tokens are single tokens, and this template.
fn with_template(tokenizer: &Tokenizer, golden: &Golden) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&tokenizer.files[0]).unwrap()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (number, token) in ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>"].iter().enumerate() {
        if !added.iter().any(|other| other["content"] == *token) {
            added.push(json!({
                "id": 60_000 + number, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
        }
    }
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let mut config = json!({"chat_template": golden.template});
    for (name, token) in &golden.special_tokens {
        config[name] = json!({"content": token, "special": true});
    }
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::open(folder.path(), None).unwrap().unwrap()
}

#[test]
fn the_tokens_of_a_span_hold_what_is_said() {
    let chats = chats();
    let mut held = 0;
    for base in tokenizers() {
        // The organism knows only its own words: of it, spans are compared by their places.
        let spells =
            base.decode(&base.encode("Paris é", endoscope_models::Bos::Omit).unwrap().ids).unwrap() == "Paris é";
        for (family, golden) in goldens() {
            let tokenizer = with_template(&base, &golden);
            for case in golden.cases.iter().filter(|case| case.text.is_some()) {
                let chat = &chats[&case.chat];
                let encoded = tokenizer.encode_chat(chat, None, case.prompt(), clock()).unwrap();
                assert_eq!(Some(&encoded.text), case.text.as_ref());
                assert_eq!(encoded.messages.len(), chat.messages.len());
                for (message, span) in chat.messages.iter().zip(&encoded.messages) {
                    let said = message.text();
                    let Some(tokens) = &span.tokens else { continue };
                    assert!(!tokens.is_empty() && tokens.end <= encoded.ids.len());
                    let said = said.unwrap();
                    if spells && encoded.text.contains(said.trim()) {
                        let text = tokenizer.decode(&encoded.ids[tokens.clone()]).unwrap();
                        // A special token that is said is one, and decoding leaves these out.
                        let said = said.replace("<|im_end|>", "");
                        assert!(text.contains(said.trim()), "{family}, {}: {text:?} lacks {said:?}", case.chat);
                        assert!(text.len() <= said.len() + 24, "{family}, {}: {text:?} for {said:?}", case.chat);
                        held += 1;
                    }
                }
            }
        }
    }
    assert!(held >= 600, "{held}");
}

#[test]
fn special_tokens_of_the_template_are_single_tokens_and_none_is_put_before() {
    let goldens = goldens();
    let (_, llama) = goldens.iter().find(|(family, _)| family == "llama3").unwrap();
    for base in tokenizers() {
        let tokenizer = with_template(&base, llama);
        let chat = Chat::new(vec![Message::new("user", "ba")]);
        let encoded = tokenizer.encode_chat(&chat, None, GenerationPrompt::Add, clock()).unwrap();
        let bos = tokenizer.bos.clone().unwrap();
        assert_eq!(bos.1, "<s>");
        assert_eq!(encoded.ids.iter().filter(|&&id| id == bos.0).count(), 1);
        assert_eq!(encoded.ids[0], bos.0);
    }
}

/// The words at each message's place.
fn places(source: &str, messages: &[(&str, &str)]) -> Vec<Option<String>> {
    let chat = Chat::new(messages.iter().map(|(role, content)| Message::new(*role, *content)).collect());
    let rendered = template(source).render_with_places(&chat, GenerationPrompt::Omit, clock()).unwrap();
    rendered
        .messages
        .iter()
        .map(|message| message.bytes.clone().map(|bytes| rendered.text[bytes].to_string()))
        .collect()
}

#[test]
fn messages_are_followed_through_what_templates_do_to_them() {
    let some = |text: &str| Some(text.to_string());
    let all = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}";
    assert_eq!(places(all, &[("user", " a "), ("user", "a"), ("user", " \n")]), [some("a"), some("a"), None]);
    // Moved behind what follows it, dropped, escaped.
    let merged = "{% for m in messages[1:] %}{{ m.content }}{% endfor %}{{ messages[0].content }}";
    assert_eq!(places(merged, &[("system", "s"), ("user", "u s")]), [some("s"), some("u s")]);
    let last = "{{ messages[-1].content | tojson }}";
    assert_eq!(places(last, &[("user", "a"), ("user", "b\nc")]), [None, some("b\\nc")]);
    // Reasoning cut away, from the front.
    let cut = "<a>{% for m in messages %}{{ m.content.split('</think>')[-1].lstrip('\n') }};{% endfor %}";
    assert_eq!(
        places(cut, &[("assistant", "<think>x</think>\n\nyes"), ("user", "yes"), ("assistant", "x</think>no")]),
        [some("yes"), some("yes"), some("no")]
    );
    // A template that looks at how a message begins sees the mark; then words are looked for.
    let starts = "{% for m in messages %}{% if m.content.startswith('/') %}cmd {% endif %}{{ m.content }} {% endfor %}";
    assert_eq!(places(starts, &[("user", "a"), ("user", "/go"), ("user", "b")]), [some("a"), some("/go"), some("b")]);
    // Words that stand there twice tell nothing.
    let twice = "{% for m in messages %}{% if m.content.startswith('/') %}{{ m.content }}{% endif %}{{ m.content }}{% endfor %}";
    assert_eq!(places(twice, &[("user", "/go")]), [None]);
    // Marks that a text uses itself are none.
    assert_eq!(places(all, &[("user", "a\u{F0000}b"), ("user", "c")]), [some("a\u{F0000}b"), some("c")]);
}

proptest::proptest! {
    #[test]
    fn whatever_is_said_is_found_where_it_stands(
        said in proptest::collection::vec("[a-c<>/ \\n\"é\u{F0000}\u{F0001}]{0,8}", 1..6)
    ) {
        let messages: Vec<(&str, &str)> = said.iter().map(|said| ("user", said.as_str())).collect();
        let chat = Chat::new(messages.iter().map(|(role, content)| Message::new(*role, *content)).collect());
        let source = template("{% for m in messages %}<u>{{ m.content | trim }}</u>{% endfor %}");
        let rendered = source.render_with_places(&chat, GenerationPrompt::Omit, clock()).unwrap();
        for (said, found) in said.iter().zip(&rendered.messages) {
            let marked = rendered.text.contains(['\u{F0000}', '\u{F0001}']);
            match &found.bytes {
                Some(bytes) => proptest::prop_assert_eq!(&rendered.text[bytes.clone()], said.trim()),
                None => proptest::prop_assert!(said.trim().is_empty() || marked),
            }
        }
    }

    #[test]
    fn no_template_panics(source in r"(\{\{|\}\}|\{%|%\}|messages|for|in|endfor|if|endif|m|\[|\]|-|\.|content|\||tojson|loop| |'|\(|\)|=|generation|set|\n|é){0,30}") {
        if let Ok(template) = ChatTemplate::new(&source, BTreeMap::new(), Path::new("x")) {
            let chat = Chat::new(vec![Message::new("user", "hi")]);
            let _ = template.render_with_places(&chat, GenerationPrompt::Add, clock());
        }
    }
}

#[test]
fn a_hostile_template_neither_hangs_nor_takes_memory() {
    let chat = Chat::new(vec![Message::new("user", "hi")]);
    for source in [
        "{% for i in range(10000000000) %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{{ ['x'] * 100000000000 }}",
        "{{ range(100000000000) | list }}",
        "{{ range(100000000000) | list | tojson }}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(200) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=['x']) %}{% for i in range(200) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=['x']) %}{% for i in range(200) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{{ [[[1]]] | tojson(indent=1000000000000) }}",
        "{{ 'a\nb' | indent(100000000000) }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{{ '{:>100000000000}'.format(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% set x %}{% for i in range(100000000) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endset %}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
        "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
        "{{ (['a' * 100000] * 10000) | join }}",
        "{{ 10 ** 10000000 }}",
        "{{ '%.100000000000f' | format(1) }}",
        "{{ '%*d' | format(100000000000, 1) }}",
        "{{ '{:.100000000000f}'.format(1) }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}{{ ns == ns.x }}",
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a ~ b }}",
        "{% set a = namespace() %}{% set (a.b), c = a, 1 %}{{ a }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{%- set ns.x = {'a': ns.x} -%}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x[:]] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set p = ns.x %}{% macro f() %}{{ p }}{% endmacro %}{% set ns.x = f %}{% endfor %}",
        "{% macro f(x) %}{{ f([[[[[[[[[[x]]]]]]]]]]) }}{% endmacro %}{{ f([]) }}",
        "{% for x in [[]] recursive %}{{ loop([[[[[[[[[[x]]]]]]]]]]) }}{% endfor %}",
    ] {
        let found = template(source).render_with_places(&chat, GenerationPrompt::Add, clock());
        assert!(found.is_err(), "{source}: {} bytes", found.unwrap().text.len());
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let nested = "{% if 1 %}".repeat(100_000);
    for source in [deep, nested, "{{ [".repeat(50_000)] {
        assert!(ChatTemplate::new(&source, BTreeMap::new(), Path::new("x")).is_err());
    }
    // Lines that each nest a value deeper, and a macro that goes on with it.
    let lines = "{% set x = [[[[x]]]] %}".repeat(5_000);
    let source = format!("{{% macro f(x) %}}{lines}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f([]) }}}}");
    assert!(template(&source).render(&chat, GenerationPrompt::Add, clock()).is_err());
    assert!(ChatTemplate::new(&"x".repeat(1 << 20), BTreeMap::new(), Path::new("x")).is_err());
    // What is too long is too long although little work made it.
    let long = Chat::new(vec![Message::new("user", "x".repeat(1 << 20))]);
    let error = template("{% for i in range(9) %}{{ messages[0].content }}{% endfor %}")
        .render(&long, GenerationPrompt::Add, clock())
        .unwrap_err()
        .to_string();
    assert!(error.contains("writes more than") || error.contains("too much work"), "{error}");
}

#[test]
fn long_chats_are_within_the_bounds() {
    let golden = goldens().into_iter().find(|(family, _)| family == "qwen3").unwrap().1;
    let template = ChatTemplate::new(&golden.template, golden.special_tokens, Path::new("qwen3")).unwrap();
    let said = "word ".repeat(100);
    let turns = (0..1000).map(|turn| Message::new(if turn % 2 == 0 { "user" } else { "assistant" }, &said));
    let rendered = template.render_with_places(&Chat::new(turns.collect()), GenerationPrompt::Add, clock()).unwrap();
    assert!(rendered.messages.iter().all(|message| message.bytes.as_ref().is_some_and(|bytes| bytes.len() == 499)));
}

#[test]
fn what_a_template_refuses_and_where_it_fails() {
    let chat = Chat::new(vec![Message::new("system", "s")]);
    let render = |source: &str| template(source).render(&chat, GenerationPrompt::Add, clock()).unwrap_err();
    let refusal = render("{{ raise_exception('no ' + messages[0].role + ' here') }}");
    assert!(matches!(&refusal, Error::ChatRefused { reason, .. } if reason == "no system here"), "{refusal}");
    let failure = render("a\n\n{{ messages[0].nothing.more }}").to_string();
    assert!(failure.contains("chat_template.jinja fails") && failure.contains("line 3"), "{failure}");
    let syntax = ChatTemplate::new("{% if %}", BTreeMap::new(), Path::new("t.jinja")).unwrap_err().to_string();
    assert!(syntax.contains("t.jinja fails: syntax error"), "{syntax}");
}

/// A tokenizer of the organism's words in a folder with these files.
fn open(files: &[(&str, String)]) -> Result<Tokenizer, Error> {
    let organism = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction/tokenizer.json");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), std::fs::read(organism).unwrap()).unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Ok(Tokenizer::open(folder.path(), None)?.unwrap())
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let plain = Chat::new(vec![Message::new("user", "x")]);
    let with_tools = Chat { tools: Some(vec![json!({})]), ..plain.clone() };
    let render = |files: &[(&str, String)], name: Option<&str>, chat: &Chat| {
        open(files)
            .unwrap()
            .templates
            .choose(name, chat)
            .and_then(|template| template.render(chat, GenerationPrompt::Add, clock()))
    };
    let config = |value: Value| ("tokenizer_config.json", json!({"chat_template": value}).to_string());
    let jinja = ("chat_template.jinja", "of the file".to_string());
    let more = ("additional_chat_templates/tool_use.jinja", "with tools".to_string());
    let last = ("chat_template.json", json!({"chat_template": "of the processor"}).to_string());
    let text = config(json!("of the configuration {{ bos_token }}{{ eos_token }}"));
    let tokens =
        ("special_tokens_map.json", json!({"bos_token": {"content": "<bos>"}, "eos_token": "<unk>"}).to_string());
    let list = config(json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]));
    let named = config(json!([{"name": "a", "template": "A"}, {"name": "b", "template": "B"}]));
    for (files, name, chat, expected) in [
        (vec![text.clone()], None, &plain, "of the configuration "),
        (vec![text.clone(), tokens], None, &plain, "of the configuration <bos><unk>"),
        (vec![text.clone(), jinja.clone(), last.clone()], None, &plain, "of the file"),
        (vec![text, more.clone(), jinja], None, &with_tools, "with tools"),
        (vec![list.clone()], None, &plain, "d"),
        (vec![list.clone()], None, &with_tools, "t"),
        (vec![list], Some("default"), &with_tools, "d"),
        (vec![named.clone()], Some("b"), &plain, "B"),
        (vec![config(json!({"default": "m"}))], None, &plain, "m"),
        (vec![last], None, &plain, "of the processor"),
        (vec![more], None, &plain, "with tools"),
    ] {
        assert_eq!(render(&files, name, chat).unwrap(), expected);
    }
    let refused = |files: &[(&str, String)], name| render(files, name, &plain).unwrap_err().to_string();
    assert!(refused(&[], None).contains("has no chat template; give the one that it was trained with"));
    assert!(refused(std::slice::from_ref(&named), None).contains("there are: a, b"));
    assert!(refused(&[named], Some("c")).contains("no chat template named `c`; there are: a, b"));
    for bad in [json!(3), json!([{"name": "a"}]), json!({"a": 1})] {
        let error = open(&[config(bad)]).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: its chat_template is neither"), "{error}");
    }
}
