//! `endoscope study`: the list, the cards, a run with its report, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::{document, endoscope, names, organism, read_json, refused, text};

#[test]
fn the_list_has_all_papers_and_says_which_run() {
    let list = document(endoscope().args(["study", "list", "--json"]));
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 40);
    let runs: Vec<&str> =
        list.iter().filter(|card| card["study"] == true).map(|card| card["slug"].as_str().unwrap()).collect();
    assert!(runs.contains(&"talking-heads") && runs.len() < 40, "{runs:?}");
    let shown = text(endoscope().args(["study", "list"]));
    assert!(shown.contains("runs  talking-heads") && shown.contains("no specification of this paper yet"), "{shown}");
    let found =
        document(endoscope().args(["study", "list", "--topic", "causality", "--search", "EXCHANGEABLE", "--json"]));
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(found[0]["slug"], "causal-de-finetti");
    assert!(text(endoscope().args(["study", "list", "--search", "no such words"])).contains("no paper"));
    refused(endoscope().args(["study", "list", "--topic", "causal"]), &["causality"]);
}

#[test]
fn a_card_shows_what_is_known_and_how_its_study_is_set() {
    let card = document(endoscope().args(["study", "show", "talking-heads", "--json"]));
    assert_eq!((card["arxiv"].as_str(), card["month"].as_str()), (Some("2406.09519"), Some("2024-06")));
    let properties = &card["schema"]["properties"];
    for setting in card["settings"].as_array().unwrap() {
        let (key, full) = (setting["key"].as_str().unwrap(), &setting["full"]);
        assert_eq!(&properties[key]["default"], full, "{key}: one declaration");
    }
    let shown = text(endoscope().args(["study", "show", "talking-heads"]));
    assert!(shown.contains("rank") && shown.contains("1 to 64") && shown.contains("not tested"), "{shown}");
    assert!(text(endoscope().args(["study", "show", "reservoir-balance"])).contains("no study yet"));
    assert!(text(endoscope().args(["study", "show", "gui-agents"])).contains("never reproduced"));
    let unwritten = text(endoscope().args(["study", "show", "paper-05"]));
    assert!(unwritten.contains("no specification"), "{unwritten}");
}

#[test]
fn a_run_writes_its_report_and_keeps_its_steps() {
    let folder = tempfile::tempdir().unwrap();
    let run = |out: &str| {
        let arguments = [
            "study",
            "run",
            "talking-heads",
            "--level",
            "smoke",
            "--set",
            "rows=4",
            "--seeds",
            "5,6,7",
            "--json",
            "--out",
            out,
        ];
        document(endoscope().current_dir(folder.path()).args(arguments))
    };
    let report = run("first");
    assert_eq!(report["verb"], "study talking-heads");
    for claim in report["claims"].as_array().unwrap() {
        assert!(claim["control"].as_str().is_some_and(|control| !control.is_empty()));
        assert_eq!(claim["measured"]["interval"].as_array().unwrap().len(), 2);
    }
    let out = folder.path().join("first");
    for file in ["plan.json", "provenance.json", "report.html", "report.json", "tables"] {
        assert!(names(&out).contains(&file.to_string()), "{file}");
    }
    let plan = read_json(&out.join("plan.json"));
    assert_eq!((plan["settings"]["rows"].as_u64(), plan["level"].as_str()), (Some(4), Some("smoke")));
    let provenance = read_json(&out.join("provenance.json"));
    assert!(
        provenance["files"]
            .as_array()
            .unwrap()
            .iter()
            .any(|file| file["path"] == "organisms/induction-redundant/model.safetensors")
    );
    let table = text(endoscope().args(["study", "table"]).arg(&out));
    let rows: Vec<&str> = table.lines().collect();
    let claims = report["claims"].as_array().unwrap();
    assert_eq!(rows.len(), 2 + claims.len(), "{table}");
    for (row, claim) in rows[2..].iter().zip(claims) {
        assert!(row.contains(claim["statement"].as_str().unwrap()) && row.matches(" | ").count() == 6, "{row}");
    }
    assert!(rows[2].contains("25. Talking heads") && rows[2].ends_with("s (smoke) |"), "{}", rows[2]);
    let data = document(endoscope().args(["study", "table", "--json"]).arg(&out));
    assert_eq!((&data[0]["claims"], &data[0]["slug"]), (&report["claims"], &"talking-heads".into()));
    refused(endoscope().args(["study", "table", "nowhere"]), &["nowhere", "run directory"]);
    let kept = names(&folder.path().join("runs/cache"));
    assert!(!kept.is_empty());
    assert_eq!(run("second"), report, "from kept steps, bit for bit");
    assert_eq!(names(&folder.path().join("runs/cache")), kept, "nothing was computed again");
}

#[test]
fn a_model_of_the_user_takes_the_organism_s_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = endoscope();
    run.current_dir(folder.path()).args([
        "study",
        "run",
        "talking-heads",
        "--level",
        "smoke",
        "--set",
        "rows=8",
        "--set",
        "rank=6",
    ]);
    let report = document(run.args(["--json", "--out", "run", "--model"]).arg(organism()));
    let summary = report["summary"].as_str().unwrap();
    assert!(summary.contains("0.1 to 1.") && !summary.contains("0.7"), "{summary}");
    let figures = &report["tables"]["figures"]["values"];
    for seed in 0..3 {
        let [lost, moved] = [2, 4].map(|claim: usize| figures[claim][0][seed].as_f64().unwrap());
        assert!(lost > 0.5 && moved > 0.7, "{lost} {moved}");
    }
    let provenance = read_json(&folder.path().join("run/provenance.json"));
    let files: Vec<&str> =
        provenance["files"].as_array().unwrap().iter().filter_map(|file| file["path"].as_str()).collect();
    assert!(files.iter().any(|file| file.ends_with("induction/model.safetensors")), "{files:?}");
    assert!(!files.iter().any(|file| file.contains("redundant")), "{files:?}");
}

#[test]
fn what_cannot_be_run_is_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let check = |arguments: &[&str], parts: &[&str]| {
        refused(endoscope().current_dir(folder.path()).args(["study", "run"]).args(arguments), parts);
    };
    check(&["talking-haeds"], &["talking-heads", "study list"]);
    check(&["reservoir-balance"], &["no study yet", "talking-heads"]);
    check(&["talking-heads", "--set", "row=3"], &["`row`", "`rows` perhaps"]);
    check(&["talking-heads", "--set", "rows=0", "--set", "rank=x"], &["`rows` is 0; it may be 2 to 4096", "`rank`"]);
    check(&["talking-heads", "--seeds", "1,2"], &["at least 3"]);
    check(&["talking-heads", "--seeds", "1,2,1"], &["named twice"]);
    check(&["talking-heads", "--model", "nowhere"], &["nowhere"]);
    assert!(names(folder.path()).is_empty(), "nothing is left behind: {:?}", names(folder.path()));
}
