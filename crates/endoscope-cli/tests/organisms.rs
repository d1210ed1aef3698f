//! `endoscope organisms`: what it lists is there, what it writes opens, and the pairs fit the model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::{document, endoscope, names, read_json, refused, text};

#[test]
fn every_organism_of_the_list_is_written_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let list = document(endoscope().args(["organisms", "--json"]));
    let list = list.as_array().unwrap();
    assert!(list.len() >= 4 && list.iter().any(|organism| organism["constructed"] == false));
    let shown = text(endoscope().arg("organisms"));
    for organism in list {
        let name = organism["name"].as_str().unwrap();
        assert!(shown.contains(name) && shown.contains(organism["about"].as_str().unwrap()));
        let out = folder.path().join(name);
        let written = document(endoscope().args(["organisms", name, "--json", "--out"]).arg(&out));
        assert_eq!(written["circuit"].is_object(), organism["constructed"] == true);
        assert!(names(&out).contains(&"MODEL.md".to_string()));
        text(endoscope().arg("verify").arg(&out).args(["--out"]).arg(folder.path().join(format!("{name}-verified"))));
        refused(endoscope().args(["organisms", name, "--out"]).arg(&out), &["exists"]);
    }
}

#[test]
fn pairs_go_into_a_sweep_that_finds_the_circuit() {
    let folder = tempfile::tempdir().unwrap();
    let (out, pairs) = (folder.path().join("model"), folder.path().join("pairs.json"));
    let shown = text(
        endoscope()
            .args(["organisms", "constructed-lookup", "--count", "6", "--seed", "9", "--pairs"])
            .arg(&pairs)
            .arg("--out")
            .arg(&out),
    );
    assert!(shown.contains("a0.h3->a1.h0<k>") && shown.contains("pairs.json"), "{shown}");
    assert_eq!(read_json(&pairs)["prompts"].as_array().unwrap().len(), 6);
    let report = document(
        endoscope()
            .arg("patch")
            .arg(&out)
            .arg("--prompts")
            .arg(&pairs)
            .args(["--site", "z", "--over", "layer,head", "--direction", "noise", "--json"])
            .arg("--out")
            .arg(folder.path().join("run")),
    );
    let (_, table) =
        report["tables"].as_object().unwrap().iter().find(|(name, _)| name.contains("normalised")).unwrap();
    println!("{table}");
    for (layer, row) in table["values"].as_array().unwrap().iter().enumerate() {
        for (head, value) in row.as_array().unwrap().iter().enumerate() {
            let harm = (value.as_f64().unwrap() - 1.).abs();
            assert_eq!(harm > 0.1, [(0, 3), (1, 0)].contains(&(layer, head)), "{layer}.{head}: {harm}");
            assert!(!(1e-3..=0.1).contains(&harm), "{layer}.{head}: {harm}");
        }
    }
}

#[test]
fn what_is_not_there_is_refused() {
    refused(endoscope().args(["organisms", "constructed-inductoin"]), &["constructed-induction", "induction"]);
    refused(endoscope().args(["organisms", "induction", "--pairs", "pairs.json"]), &["trained"]);
    refused(endoscope().args(["organisms", "--out", "x"]), &["<NAME>"]);
}
