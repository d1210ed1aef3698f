//! `endoscope patch`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Runs a sweep and gives its report.json.
fn sweep(model: &Path, prompts: &Path, out: &Path, arguments: &[&str]) -> Value {
    let mut command = endoscope();
    command.arg("patch").arg(model).arg("--prompts").arg(prompts).args(arguments).arg("--out").arg(out);
    let printed = document(command.arg("--json"));
    let report = read_json(&out.join("report.json"));
    assert_eq!(printed, report, "standard output and report.json differ");
    report
}

fn close(found: &Value, expected: &[f64]) {
    let found = flat(found);
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
    assert!(worst <= SCORE_TOLERANCE, "differs by {worst:e}");
}

fn write(path: PathBuf, value: &Value) -> PathBuf {
    std::fs::write(&path, value.to_string()).unwrap();
    path
}

#[test]
fn scores_equal_transformer_lens_for_texts_and_for_token_ids() {
    let Some(model) = shared_model("stories260k") else { return };
    let golden = read_json(&sweep_goldens("stories260k_patch.json"));
    let texts = read_json(&sweep_goldens("stories260k_pairs.json"));
    let directory = tempfile::tempdir().unwrap();
    let at = |name: String| directory.path().join(name);
    for number in 0..3 {
        let ids = write(at(format!("ids{number}")), &json!({"prompts": [golden["prompts"][number]]}));
        let text = write(at(format!("texts{number}")), &json!({"prompts": [texts["prompts"][number]]}));
        let length = golden["prompts"][number]["clean"].as_array().unwrap().len();
        for (kind, prompts) in [("ids", &ids), ("text", &text)] {
            let out = at(format!("{kind}-{number}"));
            let report = sweep(&model, prompts, &out, &["--site", "resid_pre"]);
            let table = &report["tables"]["scores"];
            assert_eq!(table["axes"]["layer"], json!([0, 1, 2, 3, 4]));
            let positions = table["axes"]["position"].as_array().unwrap();
            assert_eq!((positions.len(), &positions[0]), (length, &json!("<s>")));
            assert_eq!(table["axes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["layer", "position"]);
            close(&table["values"], &flat(&golden["tables"]["resid_pre"][number]));
            // The text was tokenized to the golden's tokens.
            assert_eq!(read_json(&out.join("plan.json"))["pairs"], json!([golden["prompts"][number]]));
        }
    }
}

#[test]
fn heads_are_scored_in_every_order_of_axes() {
    let Some(model) = shared_model("stories260k") else { return };
    let golden = read_json(&sweep_goldens("stories260k_patch.json"));
    let directory = tempfile::tempdir().unwrap();
    let prompts = write(directory.path().join("prompts"), &json!([golden["prompts"][1]]));
    let out = |name: &str| directory.path().join(name);
    let scores =
        |name: &str, arguments: &[&str]| sweep(&model, &prompts, &out(name), arguments)["tables"]["scores"].clone();
    for (site, table) in [("z", "z_all_positions"), ("v", "v_all_positions"), ("pattern", "pattern_all_positions")] {
        let found = scores(site, &["--site", site, "--over", "layer,head"]);
        close(&found["values"], &flat(&golden["tables"][table][1]));
    }
    // The golden's order is layer, position, head.
    let expected = &golden["tables"]["z"][1];
    let found = scores("lph", &["--site", "z", "--over", "layer,position,head"]);
    close(&found["values"], &flat(expected));
    let found = scores("lhp", &["--site", "z", "--over", "layer,head,position"]);
    let (heads, positions) = (8, expected[0].as_array().unwrap().len());
    let mut turned = Vec::new();
    for layer in expected.as_array().unwrap() {
        for head in 0..heads {
            turned.extend((0..positions).map(|position| layer[position][head].as_f64().unwrap()));
        }
    }
    close(&found["values"], &turned);
    assert_eq!(found["axes"].as_object().unwrap().keys().collect::<Vec<_>>(), ["layer", "head", "position"]);
}

#[test]
fn noise_is_the_other_direction() {
    let Some(model) = shared_model("stories260k") else { return };
    let golden = read_json(&sweep_goldens("stories260k_patch.json"));
    let directory = tempfile::tempdir().unwrap();
    let pair = &golden["prompts"][0];
    let mut swapped = pair.clone();
    (swapped["clean"], swapped["corrupt"]) = (pair["corrupt"].clone(), pair["clean"].clone());
    let prompts = write(directory.path().join("prompts"), &json!([pair]));
    let swapped = write(directory.path().join("swapped"), &json!([swapped]));
    let out = |name: &str| directory.path().join(name);
    let noise = ["--site", "resid_pre", "--direction", "noise"];
    let found = sweep(&model, &prompts, &out("noise"), &noise);
    // Corrupt into clean is clean into corrupt with the prompts exchanged.
    let same = sweep(&model, &swapped, &out("swapped-denoise"), &["--site", "resid_pre", "--direction", "denoise"]);
    close(&found["tables"]["scores"]["values"], &flat(&same["tables"]["scores"]["values"]));
    // A whole layer of corrupt activations is the corrupt run.
    let whole = sweep(&model, &prompts, &out("whole"), &[&noise[..], &["--over", "layer"]].concat());
    close(&whole["tables"]["scores"]["values"], &[golden["corrupt"][0].as_f64().unwrap(); 5]);
    close(&whole["tables"]["normalised"]["values"], &[0.; 5]);
}

#[test]
fn intervals_lie_about_the_scores_and_follow_confidence_and_seed() {
    let directory = tempfile::tempdir().unwrap();
    let pairs: Vec<Value> = (0..6)
        .map(|at| json!({"clean": [1, 7 + at, 3], "corrupt": [1, 20 + at, 3], "answers": [5], "wrong_answers": [6]}))
        .collect();
    let prompts = write(directory.path().join("pairs"), &json!(pairs));
    let one = write(directory.path().join("one"), &json!([pairs[0]]));
    let run = |name: &str, prompts: &Path, extra: &[&str]| {
        let out = directory.path().join(name);
        let report = sweep(Path::new("gpt2-odd"), prompts, &out, &[&["--site", "resid_pre"], extra].concat());
        (report["tables"].clone(), read_json(&out.join("provenance.json")))
    };
    let (usual, provenance) = run("usual", &prompts, &[]);
    assert_eq!(provenance["seeds"]["intervals"], 0);
    let ends = |tables: &Value| ["low", "scores", "high"].map(|name| flat(&tables[name]["values"]));
    let [low, scores, high] = ends(&usual);
    assert_eq!(low.len(), 9);
    assert!((0..9).all(|cell| low[cell] <= scores[cell] && scores[cell] <= high[cell]));
    assert!((0..9).any(|cell| low[cell] < scores[cell] && scores[cell] < high[cell]));
    assert_eq!(ends(&run("again", &prompts, &[]).0), ends(&usual));
    assert_ne!(ends(&run("seed", &prompts, &["--seed", "1"]).0), ends(&usual));
    let [narrow_low, _, narrow_high] = ends(&run("narrow", &prompts, &["--confidence", "0.5"]).0);
    assert!((0..9).all(|cell| low[cell] <= narrow_low[cell] && narrow_high[cell] <= high[cell]));
    // One pair says nothing of others.
    assert!(run("one-pair", &one, &[]).0.get("low").is_none());
    let paths = sweep(Path::new("gpt2-odd"), &prompts, &directory.path().join("paths"), &["--to", "final"]);
    for kind in ["heads", "mlps", "embed"] {
        let [low, scores, high] =
            ["low", "scores", "high"].map(|end| flat(&paths["tables"][format!("{kind}_{end}")]["values"]));
        assert!(!low.is_empty() && (0..low.len()).all(|cell| low[cell] <= scores[cell] && scores[cell] <= high[cell]));
    }
    for bad in ["1", "0", "95", "x"] {
        let mut command = endoscope();
        command.args(["patch", "gpt2-odd", "--site", "z", "--explain", "--confidence", bad, "--prompts"]).arg(&prompts);
        refused(&mut command, &["--confidence"]);
    }
}

fn tiny_prompts(directory: &Path) -> PathBuf {
    // The SHA-256 below belongs to exactly these bytes.
    let text = "[{\"clean\":[1,7,3],\"corrupt\":[1,8,3],\"answers\":[5],\"wrong_answers\":[6]},\n\
                {\"clean\":[2,7,4],\"corrupt\":[2,9,4],\"answers\":[5],\"wrong_answers\":[6]}]\n";
    let path = directory.join("prompts.json");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn neurons_come_in_blocks_and_the_planner_agrees_with_the_naive_sweep() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    for model in ["gpt2-odd", "llama-grouped"] {
        let run = |name: &str, extra: &[&str]| {
            let arguments = ["--site", "mlp_post", "--over", "layer,neuron", "--block", "20", "--metric", "kl"];
            let out = directory.path().join(format!("{model}-{name}"));
            sweep(Path::new(model), &prompts, &out, &[&arguments, extra].concat())["tables"].clone()
        };
        let (planned, naive) = (run("planned", &[]), run("naive", &["--planner", "naive"]));
        let blocks =
            if model == "gpt2-odd" { json!(["0..20", "20..40", "40..60"]) } else { json!(["0..20", "20..40"]) };
        assert_eq!(planned["scores"]["axes"], json!({"layer": [0, 1, 2], "neuron": blocks}));
        for table in ["scores", "spread"] {
            close(&planned[table]["values"], &flat(&naive[table]["values"]));
        }
    }
}

#[test]
fn the_run_directory_is_whole_and_true() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let out = directory.path().join("runs/first");
    let arguments = ["--site", "z", "--over", "layer,head", "--metric", "probability"];
    let report = sweep(Path::new("llama-sharded"), &prompts, &out, &arguments);
    assert_eq!(names(&out), ["plan.json", "provenance.json", "report.html", "report.json", "tables"]);
    assert_eq!(
        names(&out.join("tables")),
        ["high.parquet", "low.parquet", "normalised.parquet", "scores.parquet", "spread.parquet", "work.parquet"]
    );
    assert_eq!(names(&directory.path().join("runs")), ["first"]);

    let plan = read_json(&out.join("plan.json"));
    assert_eq!((&plan["verb"], &plan["model"]), (&json!("patch"), &json!("llama-sharded")));
    assert_eq!(plan["sweep"]["over"], json!(["layer", "head"]));
    assert_eq!(plan["pairs"][1]["corrupt"], json!([2, 9, 4]));

    let provenance = read_json(&out.join("provenance.json"));
    let files = provenance["files"].as_array().unwrap();
    let roles: Vec<&str> = files.iter().map(|file| file["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["config", "config", "weights", "weights", "weights", "weights", "prompts"]);
    // Computed with coreutils' sha256sum.
    assert_eq!(files[6]["sha256"], PROMPTS_SHA256);
    for file in &files[..6] {
        let bytes = std::fs::read(tiny_models().join(file["path"].as_str().unwrap())).unwrap();
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((&file["sha256"], &file["bytes"]), (&json!(hash), &json!(bytes.len())));
    }
    let command: Vec<&str> =
        provenance["command"].as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
    assert_eq!(command[1..3], ["patch", "llama-sharded"]);

    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for fetch in ["src=\"http", "href=\"http", "url(http", "@import", "<link", "fetch(", "<iframe"] {
        assert!(!page.contains(fetch), "report.html holds {fetch}");
    }
    let value = report["tables"]["scores"]["values"][2][1].as_f64().unwrap();
    assert!(page.contains("<html") && page.contains("llama-sharded"));

    let file = std::fs::File::open(out.join("tables/scores.parquet")).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), flat(&report["tables"]["scores"]["values"]).len());
    let row = rows.iter().find(|row| row.get_long(0).unwrap() == 2 && row.get_long(1).unwrap() == 1).unwrap();
    assert_eq!(row.get_double(2).unwrap(), value);
}

const PROMPTS_SHA256: &str = "892139c053754316b020c7827ccae3d6c0ef5da201975fb14513a8975eb22b35";

#[cfg(unix)]
#[test]
fn prompts_from_a_pipe_are_hashed_as_they_were_read() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let out = directory.path().join("out");
    let mut command = endoscope();
    command.args(["patch", "gpt2-odd", "--site", "resid_pre", "--prompts", "/dev/stdin", "--out"]).arg(&out);
    command.write_stdin(std::fs::read(prompts).unwrap()).assert().success();
    let provenance = read_json(&out.join("provenance.json"));
    assert_eq!(provenance["files"].as_array().unwrap().last().unwrap()["sha256"], PROMPTS_SHA256);
}

#[test]
fn in_text_mode_the_map_is_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let mut command = endoscope();
    command.args(["patch", "gpt2-odd", "--site", "resid_pre", "--prompts"]).arg(&prompts);
    let said = text(command.arg("--out").arg(directory.path().join("out")));
    for part in ["Patching resid_pre over layer x position", "over 2 prompt pairs", "open report.html"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "colours where nobody looks");
}

fn arguments<'a>(site: &'a str, over: &'a str) -> Vec<&'a str> {
    vec!["--site", site, "--over", over]
}

#[test]
fn a_sweep_says_what_it_would_cost_and_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let explain = |extra: &[&str]| {
        let mut command = endoscope();
        command.args(["patch", "gpt2-odd", "--explain", "--prompts"]).arg(&prompts);
        command.args(arguments("resid_pre", "layer,position")).args(extra);
        command
    };
    let document = document(explain(&[]).arg("--json"));
    // 3 layers x 3 positions x 2 pairs, each 3 tokens through 3 layers.
    assert_eq!(document["points"], json!(18));
    assert_eq!(document["naive"], json!({"attention": 162, "mlp": 162, "unembedding": 18, "total": 342}));
    assert!(document["computed"].as_u64().unwrap() <= 18 && document["batches"].as_u64().unwrap() >= 1);
    assert!(document["work"]["total"].as_u64().unwrap() <= 342);
    let naive = common::document(explain(&["--planner", "naive"]).arg("--json"));
    assert_eq!((&naive["work"], &naive["ratio"]), (&naive["naive"], &json!(1.0)));
    let said = text(&mut explain(&[]));
    for part in ["points of the grid", "largest batch", "rows of work", "unembedding", "total"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert_eq!(names(directory.path()), ["prompts.json"]);
    // What was done is in the report.
    let report = sweep(
        Path::new("gpt2-odd"),
        &prompts,
        &directory.path().join("out"),
        &arguments("resid_pre", "layer,position"),
    );
    assert_eq!(report["tables"]["work"]["values"][1], json!([162.0, 162.0, 18.0]));
    let expected = ["attention", "mlp", "unembedding"].map(|part| document["work"][part].as_f64().unwrap());
    assert_eq!(report["tables"]["work"]["values"][0], json!(expected));
}

#[test]
fn any_change_is_moved() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let mut number = 0;
    let mut scores = |site: &str, over: &str, change: &str| {
        number += 1;
        let out = directory.path().join(number.to_string());
        let mut arguments = arguments(site, over);
        arguments.extend(["--change", change]);
        (sweep(Path::new("gpt2-odd"), &prompts, &out, &arguments)["tables"]["scores"]["values"].clone(), out)
    };
    let (zero, out) = scores("z", "layer, head ", "zero");
    assert_eq!(read_json(&out.join("plan.json"))["sweep"]["change"], json!("zero"));
    let (scaled, _) = scores("z", "layer,head", r#"{"scale": {"factor": 0}}"#);
    close(&zero, &flat(&scaled));
    let (patched, _) = scores("z", "layer,head", "patch");
    let (whole, _) = scores("z", "layer,head", r#"{"interpolate": {"mask": 1}}"#);
    close(&whole, &flat(&patched));
    // Along all directions it is the whole, along some of them it is not.
    let along = |rows: &str| format!(r#"{{"interpolate": {{"mask": 1, "along": {rows}}}}}"#);
    let (all, _) = scores(
        "z",
        "layer,head",
        &along(r#"{"shape": [4, 4], "data": [0,1,0,0, 1,0,0,0, 0,0,0.6,0.8, 0,0,0.8,-0.6]}"#),
    );
    close(&all, &flat(&patched));
    let (some, _) = scores("z", "layer,head", &along(r#"{"shape": [1, 4], "data": [0,0,0.6,0.8]}"#));
    assert!(flat(&some) != flat(&patched) && flat(&some) != flat(&zero));
    assert!(flat(&zero) != flat(&patched));
    scores("mlp_out", "layer", "mean");
    let (edges, _) = scores("attn_scores", "layer,position,key", "knock_out");
    assert!(edges[0][0][0].is_null() && edges[0][1][0].is_number());
    let (by_pair, _) = scores("resid_pre", "pair,layer", "patch");
    assert_eq!((by_pair.as_array().unwrap().len(), by_pair[0].as_array().unwrap().len()), (2, 3));
}

#[test]
fn edits_of_a_plan_are_made_at_every_point() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let plan = write(directory.path().join("plan"), &json!({"edits": [{"site": "mlp_out.1", "change": "zero"}]}));
    let plan = plan.to_str().unwrap();
    let run = |name: &str, extra: &[&str]| {
        let out = directory.path().join(name);
        sweep(Path::new("gpt2-odd"), &prompts, &out, &[&["--site", "resid_pre", "--over", "layer"], extra].concat())
    };
    let (without, with) = (run("without", &[]), run("with", &["--plan", plan]));
    assert!(flat(&without["tables"]["scores"]["values"]) != flat(&with["tables"]["scores"]["values"]));
    let naive = run("naive", &["--plan", plan, "--planner", "naive"]);
    close(&with["tables"]["scores"]["values"], &flat(&naive["tables"]["scores"]["values"]));
    assert_eq!(read_json(&directory.path().join("with/plan.json"))["sweep"]["with"][0]["site"], json!("mlp_out.1"));
}

#[test]
fn a_sweep_goes_over_the_rows_of_a_matrix() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let config = read_json(&tiny_models().join("gpt2-odd/config.json"));
    let dim = config["n_embd"].as_u64().unwrap() as usize;
    let matrix = candle_core::Tensor::arange(0f32, (2 * dim) as f32, &candle_core::Device::Cpu).unwrap();
    let matrix = matrix.reshape((2, dim)).unwrap();
    let file = directory.path().join("decoder.safetensors");
    candle_core::safetensors::save(&[("W_dec", matrix)].into_iter().collect(), &file).unwrap();
    let run = |name: &str, tensor: &str, change: &str| {
        let directions = format!("{}{tensor}", file.display());
        let mut command = endoscope();
        command.args(["patch", "gpt2-odd", "--site", "resid_post", "--over", "layer,direction", "--change", change]);
        command.args(["--directions", &directions]).arg("--prompts").arg(&prompts);
        command.arg("--out").arg(directory.path().join(name));
        command
    };
    let report = document(run("out", ":W_dec", "project_out").arg("--json"));
    assert_eq!(report["tables"]["scores"]["axes"], json!({"layer": [0, 1, 2], "direction": [0, 1]}));
    refused(&mut run("unnamed", "", "add"), &["no tensor `directions`", "W_dec"]);
    refused(&mut run("unfit", ":W_dec", "zero"), &["takes a vector"]);
}

#[test]
fn activations_come_from_another_model() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let twin = copy_tiny("gpt2-odd");
    edit_weights(&twin.path().join("model.safetensors"), |weights| {
        let (_, _, data) = weights.get_mut("transformer.wte.weight").unwrap();
        // The numbers in the opposite order.
        *data = data.chunks(4).rev().flatten().copied().collect();
    });
    // No corrupt prompt: the same for both models.
    let same = write(at("same"), &json!([{"clean": [1, 7, 3], "answers": [5], "wrong_answers": [6]}]));
    let twice = json!([{"clean": [1, 7, 3], "corrupt": [1, 7, 3], "answers": [5], "wrong_answers": [6]}]);
    let twice = write(at("twice"), &twice);
    let donor = twin.path().to_str().unwrap();
    let run = |prompts: &Path, name: &str, model: &str, extra: &[&str]| {
        let arguments = [&arguments("resid_post", "layer,position")[..], extra].concat();
        sweep(Path::new(model), prompts, &at(name), &arguments)["tables"].clone()
    };
    let across = run(&same, "across", "gpt2-odd", &["--donor-model", donor]);
    let naive = run(&twice, "naive", "gpt2-odd", &["--donor-model", donor, "--planner", "naive"]);
    close(&across["scores"]["values"], &flat(&naive["scores"]["values"]));
    let report = read_json(&at("across/report.json"));
    let summary = report["summary"].as_str().unwrap();
    assert!(summary.contains(donor), "{summary}");
    let back = run(&same, "back", donor, &["--donor-model", "gpt2-odd"]);
    assert!(flat(&back["scores"]["values"]) != flat(&across["scores"]["values"]));
    let plan = read_json(&at("across/plan.json"));
    assert_eq!((&plan["donor_model"], &plan["pairs"][0]["corrupt"]), (&json!(donor), &json!([1, 7, 3])));
    let files = read_json(&at("across/provenance.json"))["files"].to_string();
    assert!(files.contains("donor weights"), "{files}");
    // Its own activations change nothing, and say that there is no scale.
    let own = run(&same, "own", "gpt2-odd", &["--donor-model", "gpt2-odd"]);
    assert!(own["normalised"]["values"][0][0].is_null());
    // What a donor must have.
    let words = copy_tiny("gpt2-odd");
    with_words(words.path());
    let others = copy_tiny("gpt2-odd");
    with_words(others.path());
    let text = std::fs::read_to_string(others.path().join("tokenizer.json")).unwrap();
    std::fs::write(others.path().join("tokenizer.json"), text.replace("\"a\":1,\"b\":2", "\"a\":2,\"b\":1")).unwrap();
    let refused_with = |model: &Path, donor: &Path, extra: &[&str], parts: &[&str]| {
        let mut command = endoscope();
        command.arg("patch").arg(model).arg("--prompts").arg(&same).arg("--donor-model").arg(donor).args(extra);
        refused(command.arg("--out").arg(at("refused")), parts);
    };
    let [model, llama] = ["gpt2-odd", "llama-grouped"].map(Path::new);
    refused_with(model, llama, &["--site", "z"], &["vocabulary of 43 tokens", "of 41"]);
    refused_with(words.path(), others.path(), &["--site", "z"], &["tokenizers differ", "id 1 is \"a\"", "\"b\""]);
    refused_with(model, model, &["--to", "k.1"], &["--donor-model"]);
    refused_with(model, Path::new("nowhere"), &["--site", "z"], &["nowhere"]);
}

#[test]
fn paths_are_patched() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let run = |name: &str, extra: &[&str]| {
        let out = directory.path().join(name);
        sweep(Path::new("gpt2-odd"), &prompts, &out, extra)
    };
    let all = run("all", &["--to", "q.1[0]", "--to", "mlp_in.2"]);
    let heads = &all["tables"]["heads_scores"];
    assert_eq!(heads["axes"]["layer"], json!([0, 1, 2]));
    assert_eq!(all["tables"]["mlps_scores"]["axes"], json!({"mlp of layer": [0, 1, 2]}));
    assert_eq!(all["tables"]["embed_normalised"]["axes"], json!({"sender": ["embed"]}));
    let naive = run("naive", &["--to", "q.1[0]", "--to", "mlp_in.2", "--planner", "naive"]);
    for table in ["heads_scores", "mlps_scores", "embed_scores", "heads_spread"] {
        close(&all["tables"][table]["values"], &flat(&naive["tables"][table]["values"]));
    }
    let frozen = run("frozen", &["--to", "final", "--norm", "frozen", "--from", "mlps, result.1", "--positions", "-1"]);
    assert_eq!(frozen["tables"]["heads_scores"]["axes"]["layer"], json!([1]));
    assert!(frozen["tables"].get("embed_scores").is_none());
    assert_eq!(read_json(&directory.path().join("frozen/plan.json"))["paths"]["positions"], json!(-1));
}

#[test]
fn what_cannot_be_swept_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = tiny_prompts(directory.path());
    let captures = write(directory.path().join("captures"), &json!({"captures": [{"site": "z"}]}));
    let captures = captures.to_str().unwrap();
    for (arguments, part) in [
        (&["--site", "z", "--over", "layer,,head"][..], "there is no axis ``"),
        (&["--site", "z", "--over", "layers"], "the axes are layer"),
        (&["--site", "z", "--over", "layer,position,head,neuron,pair"], "at most 4"),
        (&["--site", "z", "--over", "key"], "no axis key"),
        (&["--site", "z", "--change", "zeroed"], "unknown variant `zeroed`"),
        (&["--site", "z", "--change", "knock_out"], "hook_attn_scores"),
        (&["--site", "attn_scores", "--over", "layer,head", "--change", "knock_out"], "go over key"),
        (&["--site", "z", "--memory", "4 parsecs"], "is no size"),
        (&["--site", "z", "--memory", "1KiB"], "give at least"),
        (&["--site", "z", "--memory", "4GiB", "--planner", "naive"], "cannot be cut"),
        (&["--site", "z", "--over", "direction"], "needs directions"),
        (&["--site", "z", "--plan", captures], "does more than edit"),
        (&["--to", "qq.1[0]"], "nearest names"),
        (&["--to", "q.1[x]"], "is not an index"),
        (&["--to", "z.1"], "receives no path"),
        (&["--to", "final", "--to", "q.1"], "name it alone"),
        (&["--to", "final", "--from", "pattern"], "is no sender"),
        (&["--to", "final", "--site", "z"], "cannot be used with"),
        (&["--to", "final", "--explain"], "cannot be used with"),
        (&["--from", "heads", "--site", "z"], "cannot be used with"),
        (&["--from", "heads"], "--site"),
        (&["--over", "layer"], "--site"),
    ] {
        let mut command = endoscope();
        command.args(["patch", "gpt2-odd", "--prompts"]).arg(&prompts).args(arguments);
        refused(command.arg("--out").arg(directory.path().join("out")), &[part]);
    }
    assert_eq!(names(directory.path()), ["captures", "prompts.json"]);
}

#[cfg(target_os = "linux")]
#[test]
fn the_memory_promised_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let row = |first: u32| (0..40).map(|at| (first + at) % 37).collect::<Vec<u32>>();
    let pair = json!({"clean": row(1), "corrupt": row(2), "answers": [4], "wrong_answers": [5]});
    let prompts = write(directory.path().join("prompts"), &json!([pair]));
    let out = directory.path().join("out");
    let promised: u64 = 160 << 20;
    let arguments = ["--site", "resid_pre", "--over", "layer,position,neuron", "--memory", "160MiB", "--metric", "kl"];
    sweep(Path::new("llama-grouped"), &prompts, &out, &arguments);
    let peak = read_json(&out.join("provenance.json"))["peak_memory_bytes"].as_u64().unwrap();
    assert!(peak <= promised, "{peak} bytes were held, {promised} were promised");
}
