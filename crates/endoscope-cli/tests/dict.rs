//! `endoscope dict`: trained, evaluated, read, steered with, put together into graphs; and what goes wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use common::*;
use endoscope_dictionary::{Activation, Config, CrossLayerTranscoder, Dictionary, Matrix, Weights, formats};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tempfile::tempdir;

/// Settings of a small dictionary, as a file.
fn write_settings(directory: &Path, name: &str, objective: Value, steps: u64) -> PathBuf {
    let path = directory.join(format!("{name}.json"));
    let settings = json!({"objective": objective, "latents": 96, "steps": steps, "batch": 256, "learning_rate": 0.003});
    fs::write(&path, settings.to_string()).unwrap();
    path
}

fn dict(directory: &Path, arguments: &[&str]) -> assert_cmd::Command {
    let mut command = endoscope();
    command.current_dir(directory).arg("dict").args(arguments);
    command
}

/// Trains on random rows of the organism, which come twice.
fn train(directory: &Path, site: &str, out: &str, more: &[&str]) -> assert_cmd::Command {
    let model = organism();
    let model = model.to_string_lossy().into_owned();
    let mut command =
        dict(directory, &["train", &model, "--site", site, "--random", "64", "--length", "24", "--out", out]);
    command.args(more);
    command
}

fn table(report: &Value, name: &str) -> Vec<f64> {
    flat(&report["tables"][name]["values"])
}

#[test]
fn several_dictionaries_of_one_stream_are_evaluated_read_and_steered_with() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let few = write_settings(path, "few", json!({"topk": {"k": 8}}), 150);
    let thin = write_settings(path, "thin", json!({"standard": {"l1": 0.02}}), 150);
    let more = ["--settings", few.to_str().unwrap(), "--settings", thin.to_str().unwrap()];
    let report = document(train(path, "resid_post.0", "both", &more).arg("--json"));
    let shares = table(&report, "few.shares");
    assert!(shares[0] > 0.3 && shares[shares.len() / 2 - 1] < 0.3, "{shares:?}");
    for name in ["few", "thin"] {
        let dictionary = path.join("both").join(name);
        for file in ["cfg.json", "sae_weights.safetensors", "training.json"] {
            assert!(dictionary.join(file).is_file(), "{name}/{file}");
        }
        assert_eq!(read_json(&dictionary.join("cfg.json"))["metadata"]["hook_name"], "blocks.0.hook_resid_post");
    }
    assert!(!path.join("both.partial").exists());

    let model = organism();
    let model = model.to_str().unwrap();
    let arguments = ["--dictionary", "both/few", "--random", "40", "--length", "24", "--seed", "9"];
    let report =
        document(dict(path, &["eval", model]).args(arguments).args(["--with", "both/thin", "--out", "e", "--json"]));
    let evaluation = read_json(&path.join("e/evaluation.json"));
    let (fvu, l0) = (evaluation["fit"]["fvu"].as_f64().unwrap(), evaluation["fit"]["l0"].as_f64().unwrap());
    assert!(fvu < 0.3 && l0 <= 8., "{evaluation}");
    let recovered = evaluation["loss"]["recovered"].as_f64().unwrap();
    assert!(recovered > 0.5 && recovered <= 1.01, "{evaluation}");
    assert_eq!(table(&report, "density").iter().sum::<f64>(), 96.);

    let report = document(dict(path, &["features", model]).args(arguments).args([
        "--out",
        "f",
        "--top",
        "4",
        "--delphi",
        "cache",
        "--neuronpedia",
        "np",
        "--json",
    ]));
    assert!(report["sections"].as_array().unwrap().len() >= 3);
    let features = read_json(&path.join("f/features.json"));
    let first = &features["features"][0];
    let best = first["top"][0]["activation"].as_f64().unwrap();
    let context = &first["contexts"][0];
    let example = context["example"].as_u64().unwrap() as usize;
    assert!((context["activations"][example].as_f64().unwrap() - best).abs() < 1e-5);
    assert_eq!(names(&path.join("cache/blocks.0.hook_resid_post")).len(), 6);
    let lines = fs::read_to_string(path.join("np/activations/batch-0.jsonl")).unwrap();
    let line: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert!((line["maxValue"].as_f64().unwrap() - best).abs() < 1e-5);

    // A plan clamps a feature in generation; with no changes nothing changes.
    let feature = first["feature"].as_u64().unwrap();
    let plan = |change: Value| {
        json!({"edits": [{"site": "resid_post.0", "change": {"features": {"dictionary": "both/few", "change": change}}}],
               "captures": [{"site": "resid_post.0"}]})
    };
    let generated = |name: &str, plan: &Value| {
        fs::write(path.join("plan.json"), plan.to_string()).unwrap();
        let mut command = endoscope();
        command.current_dir(path).args(["generate", model, "--prompt", "ba da fa ga ba da", "--max-tokens", "2"]);
        command.args(["--plan", "plan.json", "--out", name, "--json"]);
        document(&mut command);
        load(&path.join(name))["blocks.0.hook_resid_post"].clone()
    };
    let plain = generated("plain.safetensors", &json!({"captures": [{"site": "resid_post.0"}]}));
    assert_eq!(difference(&plain, &generated("none.safetensors", &plan(json!([])))), 0.);
    let clamped = generated("set.safetensors", &plan(json!([{"feature": feature, "set": best + 10.}])));
    assert!(difference(&plain, &clamped) > 1.);
    fs::write(path.join("plan.json"), plan(json!([{"feature": 96, "set": 1}])).to_string()).unwrap();
    let mut command = endoscope();
    command.current_dir(path).args(["generate", model, "--prompt", "ba da", "--plan", "plan.json", "--out", "wrong"]);
    refused(&mut command, &["no feature 96", "the dictionary has 96"]);
}

#[test]
fn a_crosscoder_a_transcoder_and_a_graph_of_transcoders() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let settings = write_settings(path, "s", json!({"topk": {"k": 6}}), 60);
    let settings = settings.to_str().unwrap();
    let both = ["--site", "resid_post.1", "--settings", settings];
    document(train(path, "resid_post.0", "cross", &both).arg("--json"));
    let config = read_json(&path.join("cross/cfg.json"));
    assert_eq!(config["d_in"], 2 * 64);
    let model = organism();
    let model = model.to_str().unwrap();
    for layer in ["0", "1"] {
        let (site, write, out) = (format!("mlp_in.{layer}"), format!("mlp_out.{layer}"), format!("t{layer}"));
        let more = ["--output-site", write.as_str(), "--settings", settings, "--set", "latents=64"];
        document(train(path, &site, &out, &more).arg("--json"));
    }
    let mut command = dict(path, &["graph", model, "--transcoders", "t0", "--transcoders", "t1"]);
    command.args(["--prompt", "ba da fa ga ba da", "--slug", "copy", "--out", "g", "--json"]);
    let report = document(&mut command);
    assert!(report["summary"].as_str().unwrap().contains("features are active"));
    let graph = read_json(&path.join("g/copy.json"));
    let ids: Vec<&str> =
        graph["nodes"].as_array().unwrap().iter().map(|node| node["node_id"].as_str().unwrap()).collect();
    assert!(ids.len() > 5 && !graph["links"].as_array().unwrap().is_empty());
    assert_eq!(read_json(&path.join("g/graph-metadata.json"))["graphs"][0]["slug"], "copy");
    // One layer has none.
    let mut command = dict(path, &["graph", model, "--transcoders", "t0", "--prompt", "ba da", "--out", "h"]);
    refused(&mut command, &["blocks.1.hook_mlp_out", "needs one for each layer"]);
}

#[test]
fn graphs_over_skip_and_cross_layer_transcoders() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let settings = write_settings(path, "s", json!({"topk": {"k": 6}}), 60);
    let settings = settings.to_str().unwrap();
    let model = organism();
    let model = model.to_str().unwrap();
    let traced = |transcoders: &[&str], out: &str| -> Value {
        let mut command = dict(path, &["graph", model, "--prompt", "ba da fa ga ba da", "--out", out, "--json"]);
        command.args(["--node-threshold", "1", "--edge-threshold", "1"]);
        for path in transcoders {
            command.args(["--transcoders", path]);
        }
        assert!(document(&mut command)["summary"].as_str().unwrap().contains("features are active"));
        let graph = read_json(&path.join(out).join("graph.json"));
        assert!(!graph["links"].as_array().unwrap().is_empty(), "{graph}");
        graph
    };
    let mut layers = Vec::new();
    for layer in 0..2 {
        let (site, write, out) = (format!("mlp_in.{layer}"), format!("mlp_out.{layer}"), format!("t{layer}"));
        let more = ["--output-site", write.as_str(), "--settings", settings, "--set", "latents=64"];
        document(train(path, &site, &out, &[more.as_slice(), &["--set", "skip=true"]].concat()).arg("--json"));
        let trained = formats::open(path.join(&out)).unwrap().dictionary(path.join(&out)).unwrap();
        assert!(trained.weights().skip.is_some());
        // The same weights without the skip, each latent written to its layer and half of it to that above.
        let (config, weights) = trained.into_parts();
        let halved = |row: &[f32]| [row.to_vec(), row.iter().map(|x| x / 2.).collect()][..2 - layer].concat();
        let decoder: Vec<f32> = weights.decoder.iter().flat_map(halved).collect();
        let mut bias = weights.decoder_bias.clone();
        bias.resize(decoder.len() / 64, 0.);
        let decoder = Matrix::new(64, bias.len(), decoder).unwrap();
        let weights = Weights { decoder, decoder_bias: bias, skip: None, ..weights };
        let config = Config { activation: Activation::Relu, ..config };
        layers.push(Dictionary::new(config, weights).unwrap());
    }
    traced(&["t0", "t1"], "skips");
    formats::save_cross_layer(path.join("across"), &CrossLayerTranscoder::new(layers).unwrap()).unwrap();
    let graph = traced(&["across"], "g");
    let of_layer = |layer: &str| {
        let is = |node: &&Value| node["feature_type"] == "cross layer transcoder" && node["layer"] == layer;
        graph["nodes"].as_array().unwrap().iter().filter(is).count()
    };
    assert!(of_layer("0") > 0 && of_layer("1") > 0, "{graph}");
    let mut command = dict(path, &["graph", model, "--transcoders", "across", "--transcoders", "t0"]);
    refused(
        command.args(["--prompt", "ba da", "--out", "h"]),
        &["across is a cross-layer transcoder", "give no others"],
    );
}

#[test]
fn a_training_on_a_harvest_is_that_of_its_rows() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let rows: Vec<Vec<u32>> =
        (0..60u32).map(|row| (0..20u32).map(|at| 2 + (row * 7 + at * at) % 30).collect()).collect();
    let lines: String = rows.iter().map(|ids| json!({"tokens": ids}).to_string() + "\n").collect();
    fs::write(path.join("corpus.jsonl"), lines).unwrap();
    fs::write(path.join("rows.json"), json!(rows).to_string()).unwrap();
    let model = organism();
    let model = model.to_str().unwrap();
    let mut harvest = endoscope();
    harvest.current_dir(path).args([
        "harvest",
        model,
        "corpus.jsonl",
        "--sites",
        "resid_post.0",
        "--out",
        "acts",
        "--json",
    ]);
    harvest.args(["--sequence-mode", "examples"]);
    document(&mut harvest);
    let settings = write_settings(path, "s", json!({"topk": {"k": 8}}), 60);
    let mut command =
        dict(path, &["train", model, "--site", "resid_post.0", "--harvest", "acts", "--out", "d", "--json"]);
    command.args(["--settings", settings.to_str().unwrap()]);
    let report = document(&mut command);
    let shares = table(&report, "s.shares");
    assert!(shares[shares.len() / 2 - 1] < shares[0]);
    // Features from the next harvest's one pass are those of its own rows.
    let mut again = endoscope();
    again.current_dir(path).args([
        "harvest",
        model,
        "corpus.jsonl",
        "--sites",
        "resid_post.0",
        "--out",
        "features",
        "--json",
    ]);
    again.args(["--sequence-mode", "examples", "--reduce", "tokens,features", "--dictionary", "d"]);
    document(again.args(["--feature", "3", "--feature", "90"]));
    let shard = load(&path.join("features/shard-000000.safetensors"));
    let (rows, kept) = (&shard["blocks.0.hook_resid_post"], &shard["blocks.0.hook_resid_post.features"]);
    assert_eq!(kept.dims(), [rows.dims()[0], 2]);
    let dictionary = endoscope_dictionary::formats::open(path.join("d")).unwrap().dictionary(path.join("d")).unwrap();
    let codes = dictionary.encode(&endoscope_dictionary::Matrix::from_tensor(rows).unwrap()).unwrap().latents.dense();
    let kept = kept.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(
        codes
            .chunks(96)
            .zip(kept.chunks(2))
            .all(|(all, two)| (all[3] - two[0]).abs() < 1e-5 && (all[90] - two[1]).abs() < 1e-5)
    );
    assert!(kept.iter().any(|&activation| activation > 0.));
    // In order nothing is drawn, and a harvest of examples holds what the model gives on the same rows.
    let weights = |out: &str, more: &[&str]| {
        let mut command = dict(path, &["train", model, "--site", "resid_post.0", "--out", out]);
        document(command.args(["--settings", settings.to_str().unwrap(), "--json"]).args(more));
        load(&path.join(out).join("sae_weights.safetensors"))["W_enc"].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let shuffled = weights("shuffled", &["--harvest", "acts"]);
    let in_order = weights("in-order", &["--harvest", "acts", "--in-order"]);
    assert_ne!(shuffled, in_order);
    assert_eq!(in_order, weights("again", &["--harvest", "acts", "--in-order", "--seed", "5"]));
    let from_model = weights("from-model", &["--token-rows", "rows.json", "--in-order", "--seed", "7"]);
    let far = in_order.iter().zip(&from_model).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(far < 1e-4, "{far}");
    let mut command = dict(path, &["train", model, "--site", "resid_post.1", "--harvest", "acts", "--out", "d2"]);
    refused(&mut command, &["blocks.1.hook_resid_post"]);
}

/// Kill -9 at any moment: the same command goes on, and the dictionary has the bytes of an unbroken training.
#[test]
fn a_training_that_is_killed_goes_on_with_the_same_bytes() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let settings = write_settings(path, "s", json!({"batchtopk": {"k": 6}}), 120);
    let settings = settings.to_str().unwrap();
    let more = ["--settings", settings, "--checkpoint-every", "5"];
    let model = organism();
    let command = |out: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_endoscope"));
        command.current_dir(path).arg("dict").arg("train").arg(&model).args(["--site", "resid_post.0", "--out", out]);
        command.args(["--random", "64", "--length", "24", "--json"]).args(more);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let began = Instant::now();
    assert!(command("whole").status().unwrap().success());
    let time = began.elapsed();
    let (mut kills, mut midway, mut trainings) = (0, 0, 0);
    let mut generator = ChaCha8Rng::seed_from_u64(1);
    while kills < 20 || midway < 5 {
        let out = format!("broken-{trainings}");
        trainings += 1;
        assert!(trainings < 100, "{kills} kills, {midway} of them between checkpoints");
        loop {
            let mut child = command(&out).spawn().unwrap();
            std::thread::sleep(time.mul_f64(generator.random_range(0.0..0.9)));
            let _ = child.kill();
            let status = child.wait().unwrap();
            if status.signal() != Some(9) {
                assert!(status.success(), "{status}");
                break;
            }
            kills += 1;
            midway += u64::from(path.join(format!("{out}.partial/s/checkpoint")).exists());
            if path.join(&out).exists() {
                // It was killed when all was done but the checkpoints taken away.
                break;
            }
            if kills >= 20 && midway >= 5 {
                assert!(command(&out).status().unwrap().success());
                break;
            }
        }
        for file in ["sae_weights.safetensors", "cfg.json", "training.json"] {
            let read = |name: &str| fs::read(path.join(name).join(file)).unwrap();
            assert!(read("whole") == read(&out), "{out}: {file} differs after {kills} kills");
        }
    }
    println!("{kills} kills in {trainings} trainings, {midway} when a checkpoint was there");
}

#[test]
fn a_training_can_be_stopped_and_what_is_wrong_is_said() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let settings = write_settings(path, "s", json!({"topk": {"k": 8}}), 40);
    let settings = settings.to_str().unwrap();
    let stopped =
        document(train(path, "resid_post.0", "d", &["--settings", settings, "--stop-after", "7"]).arg("--json"));
    assert_eq!((&stopped["finished"], &stopped["step"]), (&json!(false), &json!(7)));
    // Others may not go on from there.
    let other = ["--settings", settings, "--set", "learning_rate=0.5"];
    refused(&mut train(path, "resid_post.0", "d", &other), &["other settings"]);
    document(train(path, "resid_post.0", "d", &["--settings", settings]).arg("--json"));
    refused(&mut train(path, "resid_post.0", "d", &["--settings", settings]), &["exists already"]);
    refused(&mut train(path, "resid_pots.0", "x", &[]), &["resid_pots.0"]);
    refused(&mut train(path, "resid_post.0", "x", &["--set", "objective.topk.k=99999"]), &["k = 99999"]);
    refused(&mut train(path, "resid_post.0", "x", &["--set", "latent=3"]), &["latent"]);
    refused(&mut train(path, "resid_post.0", "x", &["--settings", "nowhere.json"]), &["nowhere.json"]);
    let model = organism();
    let model = model.to_str().unwrap();
    let nothing = ["eval", model, "--dictionary", "nowhere", "--random", "4", "--length", "8", "--out", "y"];
    refused(&mut dict(path, &nothing), &["nowhere"]);
    fs::write(path.join("d/sae_weights.safetensors"), b"broken").unwrap();
    let broken = ["eval", model, "--dictionary", "d", "--random", "4", "--length", "8", "--out", "y"];
    refused(&mut dict(path, &broken), &["sae_weights.safetensors"]);
}

/// A server that plays a language model: it explains everything the same way and says yes to every passage.
fn serve(listener: TcpListener, questions: usize) -> Vec<Value> {
    let mut seen = Vec::new();
    for _ in 0..questions {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim().to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let user = body["messages"][1]["content"].as_str().unwrap();
        let answer = match user.starts_with("Description:") {
            false => "words that come back".to_string(),
            true => json!(vec![1; user.lines().filter(|line| line.contains(". ")).count()]).to_string(),
        };
        seen.push(body);
        let answer = json!({"choices": [{"message": {"role": "assistant", "content": answer}}]}).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            answer.len()
        );
        stream.write_all((head + &answer).as_bytes()).unwrap();
    }
    seen
}

#[test]
fn features_are_explained_by_a_model_behind_an_endpoint() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let settings = write_settings(path, "s", json!({"topk": {"k": 4}}), 60);
    document(train(path, "resid_post.0", "d", &["--settings", settings.to_str().unwrap()]).arg("--json"));
    let model = organism();
    let model = model.to_str().unwrap();
    // A feature that is active on some rows and not on others.
    let read = ["features", model, "--dictionary", "d", "--random", "60", "--length", "12", "--seed", "3", "--json"];
    let all: Vec<String> = (0..96).flat_map(|feature| ["--feature".to_string(), feature.to_string()]).collect();
    document(dict(path, &read).args(&all).args(["--out", "all"]));
    let found = read_json(&path.join("all/features.json"));
    let tokens = found["tokens"].as_u64().unwrap();
    let suits = |feature: &&Value| (tokens / 60..tokens / 20).contains(&feature["fired"].as_u64().unwrap());
    let feature = found["features"].as_array().unwrap().iter().find(suits).expect("a feature of some rows");
    let number = feature["feature"].to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || serve(listener, 1));
    // The first question is answered, then nobody is there: the error says so, with the address.
    let asked = ["--feature", number.as_str(), "--endpoint", url.as_str(), "--interpreter", "played", "--out", "one"];
    let error = refused(dict(path, &read).args(asked), &["while a feature was explained"]);
    assert!(error.contains("127.0.0.1"), "{error}");
    let seen = server.join().unwrap();
    assert_eq!((&seen[0]["model"], &seen[0]["temperature"]), (&json!("played"), &json!(0)));
    assert!(seen[0]["messages"][1]["content"].as_str().unwrap().contains("<<"));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || serve(listener, usize::MAX));
    let asked = ["--feature", number.as_str(), "--endpoint", url.as_str(), "--interpreter", "played", "--out", "two"];
    document(dict(path, &read).args(asked));
    let found = read_json(&path.join("two/features.json"));
    let interpretation = &found["features"][0]["interpretation"];
    assert_eq!(interpretation["explanation"], "words that come back");
    // Who says yes to everything is at chance.
    assert_eq!(interpretation["detection"]["balanced_accuracy"], 0.5);
}

/// A limit on the length of files stands for the end of the disk.
#[test]
fn a_full_disk_loses_no_checkpoint() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let settings = write_settings(path, "s", json!({"topk": {"k": 4}}), 30);
    let settings = settings.to_str().unwrap();
    document(train(path, "resid_post.0", "whole", &["--settings", settings]).arg("--json"));
    document(train(path, "resid_post.0", "d", &["--settings", settings, "--stop-after", "10"]).arg("--json"));
    let line = format!(
        "trap '' XFSZ; ulimit -f 16; exec {} dict train {} --site resid_post.0 --random 64 --length 24 --out d --settings {settings} \
         --checkpoint-every 5",
        env!("CARGO_BIN_EXE_endoscope"),
        organism().display()
    );
    let failed = std::process::Command::new("sh").args(["-c", &line]).current_dir(path).output().unwrap();
    let complaint = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && complaint.contains("cannot be written"), "{complaint}");
    assert!(!complaint.contains("panicked"), "{complaint}");
    document(train(path, "resid_post.0", "d", &["--settings", settings]).arg("--json"));
    let read = |name: &str| fs::read(path.join(name).join("sae_weights.safetensors")).unwrap();
    assert!(read("whole") == read("d"));
}
