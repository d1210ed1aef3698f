//! `endoscope inspect`, and what all verbs share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use serde_json::json;

#[test]
fn the_document_says_what_the_model_is() {
    let found = document(endoscope().args(["inspect", "llama-grouped", "--json"]));
    assert_eq!(found["model"], "llama-grouped");
    assert_eq!(found["family"], "llama");
    // From the shapes in the file: embedding and unembedding 43 x 24, three layers, the last norm.
    let layer = (48 + 16 + 16) * 25 + 24 * 49 + 2 * 28 * 25 + 24 * 29 + 2 * 24;
    assert_eq!(found["parameters"], 2 * 43 * 24 + 3 * layer + 24);
    let spec = &found["spec"];
    for (key, value) in [("vocabulary", 43), ("context", 64), ("d_model", 24), ("layers", 3), ("heads", 6)] {
        assert_eq!(spec[key], value, "{key}");
    }
    assert_eq!((&spec["kv_heads"], &spec["d_head"], &spec["d_mlp"]), (&json!(2), &json!(8), &json!(28)));
    let kind = json!({"base": 10000.0, "dims": 8, "pairs": "halves", "scaling": "none"});
    assert_eq!(spec["positions"], json!({"rotary": {"kinds": [kind], "layers": []}}));
    assert_eq!(found["tokenizer"], json!(null));
    assert_eq!(found["end_tokens"], json!([2, 3]));
    let sites = found["sites"].as_array().unwrap();
    let z = sites.iter().find(|site| site["name"] == "blocks.2.attn.hook_z").unwrap();
    assert_eq!((&z["layer"], &z["role"]), (&json!(2), &json!("attention")));
    let axes: Vec<_> = z["axes"].as_array().unwrap().iter().map(|axis| axis["name"].as_str().unwrap()).collect();
    assert_eq!(axes, ["batch", "position", "head", "dim"]);
    assert_eq!(z["axes"][2]["size"], json!({"fixed": 6}));
}

#[test]
fn the_text_says_it_to_people() {
    insta::assert_snapshot!(text(endoscope().args(["inspect", "gpt2-odd", "--sites", "{z,pattern}.1"])), @r"
    gpt2-odd
      family      gpt2
      parameters  13,396
      layers      3
      d_model     20
      heads       5 of width 4
      d_mlp       52 (plain, GELU by tanh)
      norm        LayerNorm before attention and MLP, epsilon 1e-5
      positions   learned, context 40
      vocabulary  41, tied unembedding
      tokenizer   none: give token ids (--tokens)

    2 of 83 sites:
      blocks.1.attn.hook_pattern           [batch, head=5, query, key]
      blocks.1.attn.hook_z                 [batch, position, head=5, dim=4]
    ");
}

/// Every switch of every family in words, none in the form of the code.
#[test]
fn switches_are_said_in_words() {
    let says = |model: &str, parts: &[&str]| {
        let text = text(endoscope().args(["inspect", model]));
        for part in parts {
            assert!(text.contains(part), "{model}: `{part}` is not in\n{text}");
        }
        assert!(!text.contains('{') && !text.contains("Some("), "{model}: code in\n{text}");
    };
    says("gemma2-odd", &["and on what they write", "window", "soft-capped at", "embedding", "GELU by tanh"]);
    says("olmo2-odd", &["RMSNorm on what attention and MLP write", "q/k norm"]);
    says("gpt_neox-parallel", &["side by side", "rotary of "]);
    says("mixtral-odd", &["experts", "read a position"]);
    says("falcon-alibi", &["ALiBi"]);
    says("llama-llama3", &["llama3 scaling by"]);
    says("granite-odd", &["writes      times", "logits      times"]);
}

#[test]
fn sites_are_chosen_by_pattern() {
    let found = document(endoscope().args(["inspect", "gpt2-odd", "--json", "--sites", "blocks.*.attn.hook_z"]));
    let names: Vec<_> = found["sites"].as_array().unwrap().iter().map(|site| site["name"].clone()).collect();
    assert_eq!(names, ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z", "blocks.2.attn.hook_z"]);
}

#[test]
fn the_real_model_has_its_tokenizer() {
    let Some(model) = shared_model("stories260k") else { return };
    let found = document(endoscope().arg("inspect").arg(&model).arg("--json"));
    assert_eq!(found["parameters"], 260_032);
    assert_eq!(found["tokenizer"], json!({"bos": {"id": 1, "token": "<s>"}, "prepends_bos": true}));
    assert_eq!(found["end_tokens"], json!([2]));
    let roles: Vec<_> = found["files"].as_array().unwrap().iter().map(|file| file["role"].clone()).collect();
    assert_eq!(roles, ["config", "config", "weights", "tokenizer", "tokenizer"]);
}

#[test]
fn every_verb_has_help_and_json() {
    let help = text(endoscope().arg("--help"));
    for verb in ["inspect", "capture", "generate", "patch", "train", "demo", "verify", "bench"] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb} is not in\n{help}");
        let help = text(endoscope().args([verb, "--help"]));
        assert!(help.contains("--json"), "{verb}: {help}");
        assert!(help.contains(&format!("Usage: endoscope {verb}")), "{verb}: {help}");
    }
    assert_eq!(text(endoscope().arg("--version")), concat!("endoscope ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// Paths need not be UTF-8; what prints them must not fail on it.
#[cfg(target_os = "linux")]
#[test]
fn a_path_that_is_no_text_works_with_every_verb() {
    use std::os::unix::ffi::OsStrExt;
    let parent = tempfile::tempdir().unwrap();
    let model = parent.path().join(std::ffi::OsStr::from_bytes(b"m\xff"));
    std::fs::rename(copy_tiny("gpt2-odd").keep(), &model).unwrap();
    let prompts = parent.path().join("prompts.json");
    std::fs::write(&prompts, r#"[{"clean":[1,2],"corrupt":[1,3],"answers":[4],"wrong_answers":[5]}]"#).unwrap();
    let out = |name: &[u8]| parent.path().join(std::ffi::OsStr::from_bytes(name));
    let verb = |verb: &str| {
        let mut command = endoscope();
        command.arg(verb).arg(&model).arg("--json");
        command
    };
    assert!(document(&mut verb("inspect"))["model"].as_str().unwrap().ends_with("m\u{FFFD}"));
    document(verb("capture").args(["--tokens", "1", "--sites", "z", "--out"]).arg(out(b"c\xff")));
    document(verb("generate").args(["--tokens", "1", "--max-tokens", "2"]));
    document(verb("patch").args(["--site", "resid_pre", "--prompts"]).arg(&prompts).arg("--out").arg(out(b"p\xff")));
    assert!(out(b"c\xff").is_file() && out(b"p\xff").join("report.html").is_file());
}

#[test]
fn weights_are_shown_by_transformer_lens_names() {
    insta::assert_snapshot!(text(endoscope().args(["inspect", "llama-grouped", "--views"])), @r"
    weight    layers  shape                          norm
    W_E               [43, 24]                    13.1622
    W_Q            3  [6, 24, 8]                  15.6694
    b_Q            3  [6, 8]                       3.5299
    W_K            3  [2, 24, 8]                   8.9661
    b_K            3  [2, 8]                       2.0739
    W_V            3  [2, 24, 8]                   6.8213
    b_V            3  [2, 8]                       1.9893
    W_O            3  [6, 8, 24]                   8.4892
    b_O            3  [24]                         2.7584
    W_gate         3  [24, 28]                     9.2474
    b_gate         3  [28]                         2.5567
    W_in           3  [24, 28]                     9.0705
    b_in           3  [28]                         2.7077
    W_out          3  [28, 24]                     8.5893
    b_out          3  [24]                         2.5183
    W_U               [24, 43]                    13.2230
    b_U               [43]                         0.0000
    ");
    let found = document(endoscope().args(["inspect", "qwen3_moe-sparse_step", "--views", "--json"]));
    let views = found["views"].as_array().unwrap();
    let routers: Vec<_> = views.iter().filter(|view| view["name"] == "W_router").collect();
    assert!(!routers.is_empty() && routers.len() < found["spec"]["layers"].as_u64().unwrap() as usize);
    assert!(routers.iter().all(|view| view["norm"].as_f64().unwrap() > 0.));
    assert!(found["sites"].is_array());
}

#[test]
fn heads_and_composition_are_tables() {
    insta::assert_snapshot!(text(endoscope().args(["inspect", "llama-grouped", "--heads", "--composition", "k"])), @r"
    head       |QK|  its singular values          |OV|  its singular values      positivity  copying
    0.0      4.3717  2.5090 2.0683 1.6670 …     1.8734  1.1027 0.8629 0.7536 …        0.022    0.024
    0.1      4.5883  2.7223 2.3211 1.7700 …     2.1185  1.1508 1.1178 0.8229 …       -0.175    0.316
    0.2      4.3414  2.2848 1.9835 1.8536 …     2.1610  1.2620 1.1101 0.8887 …        0.210   -0.147
    0.3      5.2523  3.3701 2.5425 1.8802 …     1.8208  0.8895 0.8352 0.7586 …       -0.252   -0.000
    0.4      4.8058  2.7110 2.3140 1.9507 …     1.6566  0.9095 0.7497 0.6832 …       -0.187    0.228
    0.5      5.0412  2.8487 2.3403 2.0267 …     1.8960  0.9791 0.9041 0.8629 …       -0.010    0.179
    1.0      5.0510  3.1982 2.0983 1.8229 …     2.1005  1.2630 0.9485 0.8206 …       -0.077   -0.400
    1.1      4.6902  2.6654 2.1506 1.7588 …     1.9813  1.0656 0.9719 0.7597 …        0.183   -0.121
    1.2      4.8455  2.8331 2.3786 1.7184 …     2.1042  1.2476 1.0964 0.7315 …        0.107    0.006
    1.3      4.6304  2.5648 2.0441 1.9623 …     1.7276  0.9341 0.8821 0.6897 …       -0.291   -0.015
    1.4      4.4456  2.4493 2.0589 1.7529 …     1.9363  1.0982 0.8564 0.7981 …       -0.162    0.087
    1.5      4.9965  3.0748 2.3451 2.0100 …     1.9468  1.1387 1.0093 0.7141 …        0.058   -0.277
    2.0      4.7925  2.6626 2.3225 1.9354 …     2.2695  1.3780 1.0543 0.8279 …        0.077   -0.262
    2.1      5.0169  2.7908 2.1861 2.0585 …     1.9235  1.0701 0.9894 0.6830 …       -0.127   -0.117
    2.2      4.7433  2.6213 2.5034 1.8508 …     1.8656  1.0698 0.8762 0.7137 …       -0.260   -0.074
    2.3      4.6956  2.4760 2.1201 1.9660 …     1.9789  1.1977 1.0318 0.6801 …       -0.355    0.178
    2.4      4.4378  2.4052 1.9739 1.8682 …     1.9944  1.1792 0.9668 0.8192 …       -0.012   -0.175
    2.5      4.2531  2.2973 2.0007 1.8140 …     1.8316  0.9807 0.7979 0.7219 …        0.024    0.358

    what earlier heads write in the keys of later heads, of 108 pairs:
       1.1 -> 2.1    0.2793
       0.4 -> 2.4    0.2735
       1.1 -> 2.0    0.2717
       0.5 -> 1.0    0.2666
       1.1 -> 2.2    0.2650
       0.5 -> 1.1    0.2588
       1.1 -> 2.3    0.2587
       0.3 -> 1.4    0.2575
       0.5 -> 1.2    0.2564
       0.3 -> 1.0    0.2522
       0.3 -> 1.3    0.2515
       0.1 -> 1.5    0.2492
       0.4 -> 2.3    0.2466
       0.2 -> 1.2    0.2448
       1.1 -> 2.5    0.2406
       1.3 -> 2.3    0.2337
       0.2 -> 1.5    0.2309
       0.4 -> 2.5    0.2294
       0.3 -> 1.2    0.2285
       0.1 -> 1.4    0.2280
    ");
    let found = document(endoscope().args(["inspect", "gpt2-odd", "--heads", "--composition", "q", "--json"]));
    assert_eq!(found["heads"].as_array().unwrap().len(), 15);
    assert_eq!(found["heads"][7]["qk"]["singular_values"].as_array().unwrap().len(), 4);
    assert_eq!((&found["heads"][7]["layer"], &found["heads"][7]["head"]), (&json!(1), &json!(2)));
    let scores = &found["composition"]["scores"];
    assert_eq!(found["composition"]["heads"][14], "2.4");
    assert!(scores[0][14].as_f64().unwrap() > 0.);
    assert_eq!(scores[14][0], 0.);
}

#[test]
fn channels_of_pairs_of_heads_are_shown() {
    let asked = ["inspect", "gpt2-odd", "--composition", "k", "--channels", "2"];
    let shown = text(endoscope().args(asked));
    assert!(shown.contains("number: score (share of the pair)"), "{shown}");
    let found = document(endoscope().args(asked).arg("--json"));
    let pairs = found["channels"]["pairs"].as_array().unwrap();
    // Three layers of five heads: from 0 to 1 and 2, from 1 to 2.
    assert_eq!(pairs.len(), 75);
    let first = |pair: &serde_json::Value| pair["channels"][0]["score"].as_f64().unwrap();
    assert!(pairs.windows(2).all(|pair| first(&pair[0]) >= first(&pair[1])));
    assert!(pairs.iter().all(|pair| pair["channels"].as_array().unwrap().len() == 2));
    let best = &pairs[0];
    let line = format!("{} -> {}", best["from"].as_str().unwrap(), best["to"].as_str().unwrap());
    assert!(shown.contains(&line), "{line} in {shown}");
    let heads: Vec<&str> =
        found["composition"]["heads"].as_array().unwrap().iter().map(|head| head.as_str().unwrap()).collect();
    let at = |head: &serde_json::Value| heads.iter().position(|name| head == name).unwrap();
    let whole = found["composition"]["scores"][at(&best["from"])][at(&best["to"])].as_f64().unwrap();
    assert!((whole - best["score"].as_f64().unwrap()).abs() < 1e-5);
    assert!((found["channels"]["random_direction"].as_f64().unwrap() - 20f64.powf(-0.5)).abs() < 1e-12);
    refused(endoscope().args(["inspect", "gpt2-odd", "--channels", "2"]), &["--composition"]);
    refused(endoscope().args(["inspect", "gpt2-odd", "--composition", "q", "--channels", "0"]), &["--channels"]);
}

#[test]
fn weights_are_processed_by_name_and_it_is_recorded() {
    let all = "fold-value-biases,fold-ln,center-writing,center-unembed";
    let found = document(endoscope().args(["inspect", "gpt2-odd", "--views", "--process", all, "--json"]));
    assert_eq!(found["processed"], json!(["fold-ln", "center-writing", "center-unembed", "fold-value-biases"]));
    let bias = found["views"].as_array().unwrap().iter().find(|view| view["name"] == "b_V").unwrap();
    assert_eq!(bias["norm"], 0.);
    assert_eq!(found["spec"]["tied"], false);
    // Greedy continuations do not see it.
    let generated = |process: &[&str]| {
        let mut command = endoscope();
        command.args(["generate", "gpt2-odd", "--tokens", "9,26,29", "--max-tokens", "12", "--json"]).args(process);
        document(&mut command)
    };
    assert_eq!(generated(&["--process", all])["tokens"], generated(&[])["tokens"]);
    // A run directory says so.
    let folder = tempfile::tempdir().unwrap();
    let prompts = folder.path().join("prompts.json");
    std::fs::write(&prompts, r#"[{"clean":[1,2],"corrupt":[1,3],"answers":[4],"wrong_answers":[5]}]"#).unwrap();
    let out = folder.path().join("run");
    let mut patch = endoscope();
    patch.args(["patch", "gpt2-odd", "--site", "resid_pre", "--process", "fold-ln", "--json", "--prompts"]);
    document(patch.arg(&prompts).arg("--out").arg(&out));
    let provenance: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("provenance.json")).unwrap()).unwrap();
    assert_eq!(provenance["notes"], json!(["weights processed after reading: fold-ln"]));
}

#[test]
fn processing_that_is_not_neutral_is_refused_before_numbers_are_read() {
    let refused = |arguments: &[&str]| {
        let output = endoscope().arg("inspect").args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused(&["llama-grouped", "--process", "center-writing"]);
    assert!(error.contains("center-writing would change what this model computes: its norm is RMSNorm"), "{error}");
    let error = refused(&["llama-grouped", "--process", "fold"]);
    assert!(error.contains("`fold` is no weight processing; there are fold-ln, center-writing"), "{error}");
}
