//! `endoscope harvest`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use common::*;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use tempfile::tempdir;

/// Lines of token ids of the vocabulary of `gpt2-odd`.
fn token_lines(directory: &Path, documents: usize) -> PathBuf {
    let line = |number: usize| {
        let ids: Vec<usize> = (0..number % 11).map(|at| (number * 7 + at * at * 3) % 31).collect();
        json!({"id": number, "tokens": ids}).to_string() + "\n"
    };
    let path = directory.join("tokens.jsonl");
    std::fs::write(&path, (0..documents).map(line).collect::<String>()).unwrap();
    path
}

fn text_lines(directory: &Path) -> (PathBuf, Vec<String>) {
    let words = ["ba", "da", "fa", "ga", "la", "ma"];
    let document = |number: usize| {
        let words: Vec<&str> = (0..2 + number % 7).map(|at| words[(number + at * at) % words.len()]).collect();
        words.join(" ")
    };
    let documents: Vec<String> = (0..40).map(document).collect();
    let path = directory.join("corpus.txt");
    std::fs::write(&path, documents.join("\n")).unwrap();
    (path, documents)
}

/// The rows of an output, of all shards.
fn rows(directory: &Path, output: &str) -> Tensor {
    let shards = names(directory).into_iter().filter(|name| name.starts_with("shard-"));
    let pieces: Vec<Tensor> = shards.map(|name| load(&directory.join(name))[output].clone()).collect();
    Tensor::cat(&pieces, 0).unwrap()
}

fn numbers(directory: &Path, output: &str) -> Vec<i64> {
    rows(directory, output).to_vec1().unwrap()
}

/// The files of a harvest that must be the same whenever it was made.
fn contents(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let names = names(directory).into_iter().filter(|name| name != "provenance.json");
    names.map(|name| (name.clone(), std::fs::read(directory.join(name)).unwrap())).collect()
}

#[test]
fn rows_are_those_that_capture_gives() {
    let directory = tempdir().unwrap();
    let corpus = token_lines(directory.path(), 60);
    for mode in ["blocks", "examples"] {
        let out = directory.path().join(mode);
        let mut command = endoscope();
        command.args(["harvest", "gpt2-odd"]).arg(&corpus).args(["--sites", "resid_post.*,z.1", "--context", "8"]);
        command.args(["--sequence-mode", mode, "--shard-rows", "50", "--json", "--out"]).arg(&out);
        let said = document(&mut command);
        let (sequence, position, token) =
            (numbers(&out, "sequence"), numbers(&out, "position"), numbers(&out, "token"));
        assert_eq!(said["rows"], json!(token.len()));
        assert!(said["shards"].as_u64().unwrap() > 3, "{said}");
        let mut at = 0;
        let mut checked = 0;
        while at < token.len() {
            let end = (at..token.len()).find(|&row| sequence[row] != sequence[at]).unwrap_or(token.len());
            assert_eq!(position[at..end], (0..(end - at) as i64).collect::<Vec<_>>());
            if sequence[at] % 5 == 0 {
                let ids: Vec<String> = token[at..end].iter().map(i64::to_string).collect();
                let file = directory.path().join("captured.safetensors");
                let mut capture = endoscope();
                capture.args(["capture", "gpt2-odd", "--sites", "resid_post.*,z.1", "--tokens", &ids.join(",")]);
                text(capture.arg("--out").arg(&file));
                for (name, expected) in load(&file).into_iter().filter(|(name, _)| name != "tokens") {
                    let expected = expected.squeeze(0).unwrap().flatten_from(1).unwrap();
                    let found = rows(&out, &name).narrow(0, at, end - at).unwrap();
                    assert_eq!(difference(&found, &expected), 0., "{mode} {name} from row {at}");
                    checked += 1;
                }
            }
            at = end;
        }
        assert!(checked >= 9, "{checked}");
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_at_any_moment_gives_the_same_bytes() {
    use rand::{RngExt, SeedableRng};
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};

    let directory = tempdir().unwrap();
    let corpus = token_lines(directory.path(), 500);
    let command = |out: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_endoscope"));
        command.current_dir(tiny_models()).args(["harvest", "gpt2-odd"]).arg(&corpus);
        command.args(["--sites", "resid_post.*,z.*,mlp_out.*", "--reduce", "tokens,mean,last", "--context", "8"]);
        command.args(["--shard-rows", "100", "--batch-tokens", "40", "--threads", "1", "--json", "--out"]).arg(out);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    let whole = directory.path().join("whole");
    let began = Instant::now();
    assert!(command(&whole).status().unwrap().success());
    let time = began.elapsed();
    let whole = contents(&whole);
    assert!(whole.len() > 20, "{} files", whole.len());
    let (mut kills, mut midway, mut harvests) = (0, 0, 0);
    let mut generator = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    while kills < 20 || midway < 3 {
        assert!(harvests < 200, "{kills} kills, {midway} of them between two shards");
        let out = directory.path().join(format!("killed-{harvests}"));
        harvests += 1;
        loop {
            let mut child = command(&out).spawn().unwrap();
            std::thread::sleep(Duration::from_secs_f64(time.as_secs_f64() * generator.random_range(0.0..0.9)));
            let _ = child.kill();
            let status = child.wait().unwrap();
            if status.signal() != Some(9) {
                assert!(status.success(), "{status}");
                break;
            }
            kills += 1;
            let shards = out.is_dir() && names(&out).iter().any(|name| name == "shard-000000.safetensors");
            midway += usize::from(shards);
            if kills >= 20 && midway >= 3 {
                assert!(command(&out).status().unwrap().success());
                break;
            }
        }
        assert!(contents(&out) == whole, "harvest {harvests} differs");
    }
    println!("{kills} kills in {harvests} harvests, {midway} when some shards were done");
}

/// A limit on the length of files stands for the end of the disk: the system refuses to write on, and the program lives to say so.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let directory = tempdir().unwrap();
    let corpus = token_lines(directory.path(), 300);
    let out = directory.path().join("out");
    let run = |limit: &str, shard_rows: &str| {
        let binary = env!("CARGO_BIN_EXE_endoscope");
        let line = format!(
            "trap '' XFSZ; ulimit -f {limit}; exec {binary} harvest gpt2-odd {} --sites resid_post.0 --context 8 \
             --shard-rows {shard_rows} --out {}",
            corpus.display(),
            out.display()
        );
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &line]).current_dir(tiny_models()).output().unwrap()
    };
    // The first shards are small enough; harvest.json grows until it is not.
    let failed = run("16", "30");
    let complaint = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && complaint.contains("error: cannot write"), "{complaint}");
    assert!(!complaint.contains("panicked"), "{complaint}");
    let left = names(&out);
    assert!(left.iter().any(|name| name.starts_with("shard-")), "{left:?}");
    assert!(left.iter().all(|name| !name.contains("partial")), "{left:?}");
    let went_on = run("unlimited", "30");
    assert!(went_on.status.success(), "{}", String::from_utf8_lossy(&went_on.stderr));
    assert!(String::from_utf8_lossy(&went_on.stdout).contains("shards were there"));
    let found = contents(&out);
    std::fs::remove_dir_all(&out).unwrap();
    assert!(run("unlimited", "30").status.success());
    assert!(contents(&out) == found);
}

/// Parquet files of one column of texts, in row groups of 7.
fn write_parquet(path: &Path, column: &str, texts: &[String]) {
    let schema = parse_message_type(&format!("message m {{ required binary {column} (UTF8); optional int64 id; }}"));
    let file = std::fs::File::create(path).unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema.unwrap()), properties).unwrap();
    for texts in texts.chunks(7) {
        let mut group = writer.next_row_group().unwrap();
        let mut first = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = texts.iter().map(|text| text.as_bytes().to_vec().into()).collect();
        first.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        first.close().unwrap();
        let mut second = group.next_column().unwrap().unwrap();
        let levels = vec![0; texts.len()];
        second.typed::<parquet::data_type::Int64Type>().write_batch(&[], Some(&levels), None).unwrap();
        second.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn every_kind_of_corpus_gives_the_same_rows() {
    let directory = tempdir().unwrap();
    let (plain, documents) = text_lines(directory.path());
    let path = |name: &str| directory.path().join(name);
    let line = |text: &String| json!({"other": [1], "text": text}).to_string();
    std::fs::write(path("a.jsonl"), documents.iter().map(line).collect::<Vec<_>>().join("\n\n")).unwrap();
    write_parquet(&path("a.parquet"), "text", &documents);
    let harvest = |corpus: &Path, name: &str, extra: &[&str]| {
        let out = path(name);
        let mut command = endoscope();
        command.arg("harvest").arg(organism()).arg(corpus).args([
            "--sites",
            "resid_post.0",
            "--context",
            "12",
            "--json",
        ]);
        document(command.args(["--shard-rows", "40"]).args(extra).arg("--out").arg(&out));
        (numbers(&out, "token"), numbers(&out, "document"), rows(&out, "blocks.0.hook_resid_post"))
    };
    let (tokens, of, expected) = harvest(&plain, "plain", &[]);
    assert_eq!(tokens.len() % 12, 0);
    assert!(tokens.iter().step_by(12).all(|&token| token == 0), "each block begins with <bos>");
    assert!(tokens.iter().filter(|&&token| token == 0).count() > tokens.len() / 12, "and one stands between documents");
    for name in ["a.jsonl", "a.parquet"] {
        let (other_tokens, other_of, other) = harvest(&path(name), &format!("of-{name}"), &[]);
        assert_eq!((&other_tokens, &other_of), (&tokens, &of), "{name}");
        assert_eq!(difference(&other, &expected), 0.);
    }
    // From the middle of the corpus on, through row groups that are left out: what was made is made again.
    let out = path("of-a.parquet");
    let last = names(&out).into_iter().rfind(|name| name.starts_with("shard-")).unwrap();
    let before = std::fs::read(out.join(&last)).unwrap();
    std::fs::remove_file(out.join(&last)).unwrap();
    harvest(&path("a.parquet"), "of-a.parquet", &[]);
    assert_eq!(std::fs::read(out.join(&last)).unwrap(), before);
    // Without what stands between documents, and without rows of it.
    let (none, _, _) = harvest(&plain, "none", &["--separator", "none", "--no-bos"]);
    assert!(!none.contains(&0));
    let (kept, _, _) = harvest(&plain, "kept", &["--exclude-special"]);
    assert_eq!(kept, tokens.iter().copied().filter(|&token| token != 0).collect::<Vec<_>>());
    // Each by itself.
    let (examples, of, _) = harvest(&plain, "examples", &["--sequence-mode", "examples"]);
    let words: usize = documents.iter().map(|text| 1 + text.split(' ').count()).sum();
    assert_eq!(examples.len(), words);
    assert!(of.is_sorted() && of[of.len() - 1] == 39);
}

#[test]
fn chats_are_written_by_the_template() {
    let directory = tempdir().unwrap();
    let model = copy(&organism());
    std::fs::write(
        model.path().join("chat_template.jinja"),
        "{{ bos_token }}{% for message in messages %}{{ ' ' + message.content }}{% endfor %}",
    )
    .unwrap();
    let chats = [["ba da", "fa"], ["ga", "la ma ba"]];
    let line = |[user, assistant]: &[&str; 2]| {
        let messages = [json!({"role": "user", "content": user}), json!({"role": "assistant", "content": assistant})];
        json!({"messages": messages}).to_string() + "\n"
    };
    let corpus = directory.path().join("chats.jsonl");
    std::fs::write(&corpus, chats.iter().map(line).collect::<String>()).unwrap();
    let out = directory.path().join("out");
    let mut command = endoscope();
    command.arg("harvest").arg(model.path()).arg(&corpus).args(["--sites", "resid_post.1", "--reduce", "last,mean"]);
    text(command.args(["--sequence-mode", "examples", "--out"]).arg(&out));
    let chat = directory.path().join("chat.json");
    for (number, said) in chats.iter().enumerate() {
        std::fs::write(&chat, line(said)).unwrap();
        let file = directory.path().join("captured.safetensors");
        let mut capture = endoscope();
        capture.arg("capture").arg(model.path()).args(["--sites", "resid_post.1", "--no-generation-prompt", "--chat"]);
        text(capture.arg(&chat).arg("--out").arg(&file));
        let captured = load(&file);
        let stream = captured["blocks.1.hook_resid_post"].squeeze(0).unwrap();
        let last = stream.get(stream.dim(0).unwrap() - 1).unwrap();
        let row = |output: &str| rows(&out, output).get(number).unwrap();
        assert_eq!(difference(&row("blocks.1.hook_resid_post.last"), &last), 0.);
        let mean = stream.to_dtype(DType::F64).unwrap().mean(0).unwrap();
        assert!(difference(&row("blocks.1.hook_resid_post.mean"), &mean) < 1e-6);
        assert_eq!(numbers(&out, "sequences.document")[number], number as i64);
    }
}

#[test]
fn scores_of_a_probe() {
    let directory = tempdir().unwrap();
    let data = directory.path().join("words.jsonl");
    let line = |number: usize| {
        let ids = [number % 5, 7 + number % 2 * 3, number % 3];
        json!({"tokens": ids, "label": number % 2, "group": format!("g{}", number % 8)}).to_string() + "\n"
    };
    std::fs::write(&data, (0..32).map(line).collect::<String>()).unwrap();
    let probed = directory.path().join("probed");
    let mut probe = endoscope();
    probe.args(["probe", "gpt2-odd"]).arg(&data).args(["--site", "resid_pre", "--kind", "mass_mean", "--out"]);
    text(probe.arg(&probed));
    let directions = probed.join("directions.safetensors");
    let out = directory.path().join("out");
    let corpus = token_lines(directory.path(), 20);
    let harvest = |sites: &str| {
        let mut command = endoscope();
        command.args(["harvest", "gpt2-odd"]).arg(&corpus).args(["--sites", sites, "--context", "8", "--probe"]);
        command.arg(&directions).args(["--reduce", "tokens,probe", "--out"]).arg(&out);
        command
    };
    text(&mut harvest("resid_pre.1"));
    let fitted = load(&directions);
    let direction = &fitted["blocks.1.hook_resid_pre"];
    let expected = rows(&out, "blocks.1.hook_resid_pre").matmul(&direction.t().unwrap()).unwrap();
    let expected = expected.broadcast_add(&fitted["blocks.1.hook_resid_pre.bias"]).unwrap();
    assert!(difference(&rows(&out, "blocks.1.hook_resid_pre.probe"), &expected) < 1e-4);
    refused(&mut harvest("mlp_out.0"), &["no directions of blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"]);
}

#[test]
fn what_cannot_be_harvested_is_refused() {
    let directory = tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let good = token_lines(directory.path(), 20);
    let run = |corpus: &Path, extra: &[&str], parts: &[&str]| {
        let out = directory.path().join("out");
        let mut command = endoscope();
        command.args(["harvest", "gpt2-odd"]).arg(corpus).args(extra).arg("--out").arg(&out);
        refused(&mut command, parts);
        assert!(!out.join("shard-000000.safetensors").exists());
    };
    let sites = ["--sites", "resid_post.0", "--context", "8"];
    run(&path("a.csv", "text\n"), &sites, &["a.csv", ".jsonl, .txt and .parquet"]);
    run(&directory.path().join("no.txt"), &sites, &["no.txt"]);
    run(&path("empty.jsonl", "\n\n"), &sites, &["holds no document"]);
    run(&path("text.jsonl", "{\"text\": \"a\"}"), &sites, &["gpt2-odd", "tokenizer"]);
    run(&path("two.jsonl", "{\"text\": \"a\", \"tokens\": [1]}"), &sites, &["--column", "text, tokens"]);
    run(&path("none.jsonl", "{\"prompt\": \"a\"}"), &sites, &["--column", "it has prompt"]);
    let column = [&sites[..], &["--column", "token"]].concat();
    run(&good, &column, &["no column `token`", "id, tokens"]);
    let ids = "{\"tokens\": [1, 2]}\n{\"tokens\": [1, -2]}";
    run(&path("ids.jsonl", ids), &sites, &["document 1 of", "-2 in `tokens` is no token id"]);
    run(&path("large.jsonl", "{\"tokens\": [1, 99, 3, 4, 5, 6, 7, 8, 9]}"), &sites, &["token id 99", "out of range"]);
    run(&path("json.jsonl", "{\"tokens\": [1]}\nno"), &sites, &["document 1 of"]);
    run(&path("broken.parquet", "PAR1 is not all"), &sites, &["broken.parquet"]);
    run(&good, &["--sites", "resid_pots.0"], &["resid_post"]);
    run(&good, &["--sites", "pattern.0"], &["no row of numbers at each position"]);
    run(&good, &[&sites[..2], &["--context", "4096"]].concat(), &["model's context"]);
    run(&good, &[&sites[..], &["--probe", "x"]].concat(), &["--reduce probe go together"]);
    run(&good, &[&sites[..], &["--bos"]].concat(), &["tokenizer"]);
    refused(endoscope().args(["harvest", "check"]).arg(directory.path().join("no")), &["harvest.json", "not there"]);
}

#[test]
fn a_harvest_is_checked_sent_and_fetched() {
    let directory = tempdir().unwrap();
    let corpus = token_lines(directory.path(), 60);
    let [out, there, back] = ["out", "there", "back"].map(|name| directory.path().join(name));
    let mut command = endoscope();
    command.args(["harvest", "gpt2-odd"]).arg(&corpus).args([
        "--sites",
        "resid_post.0",
        "--context",
        "8",
        "--dtype",
        "bf16",
    ]);
    text(command.args(["--shard-rows", "50", "--out"]).arg(&out));
    let origin = read_json(&out.join("provenance.json"));
    assert!(origin["files"].as_array().unwrap().iter().any(|file| file["role"] == "corpus"), "{origin}");
    let manifest = read_json(&out.join("harvest.json"));
    assert_eq!(manifest["source"]["corpus"]["file"], "tokens.jsonl");
    assert!(manifest["source"]["model"]["files"].as_array().unwrap().iter().all(|file| file["sha256"].is_string()));
    let shards = document(endoscope().args(["harvest", "check", "--json"]).arg(&out))["shards"].clone();
    let moved = document(endoscope().args(["harvest", "push", "--json"]).arg(&out).arg(&there));
    assert_eq!((&moved["moved"], &moved["there"]), (&shards, &json!(0)));
    let moved = document(endoscope().args(["harvest", "pull", "--json"]).arg(&there).arg(&back));
    assert_eq!(moved["moved"], shards);
    assert!(contents(&out) == contents(&back));
    let shard = back.join("shard-000001.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 4;
    std::fs::write(&shard, bytes).unwrap();
    refused(endoscope().args(["harvest", "check"]).arg(&back), &["shard-000001", "damaged", "pull it again"]);
    let said: Value = document(endoscope().args(["harvest", "pull", "--json"]).arg(&there).arg(&back));
    assert_eq!(said["moved"], json!(1));
    text(endoscope().args(["harvest", "check"]).arg(&back));
}
