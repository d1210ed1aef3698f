//! Run directories are there whole, under their final name, or not at all.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use endoscope_report::{ColourScale, Error, Provenance, Report, RunDirectory, Section, Started, Table, labels};

fn report() -> Report {
    let mut report = Report::new("R", "patch", "S");
    let axes = [("layer", labels(0..2)), ("position", labels(["<s>", " a"]))];
    for name in ["scores", "spread"] {
        report.tables.insert(name.into(), Table::new(name, axes.clone(), vec![0., 1., 2., f64::NAN]).unwrap());
    }
    report.sections.push(Section::HeatMap {
        heading: None,
        table: "scores".into(),
        alternatives: vec!["spread".into()],
        scale: ColourScale::DIVERGING,
        caption: String::new(),
    });
    report
}

fn provenance() -> Provenance {
    Provenance::new("0.1.0", vec!["endoscope".into()], &Started::now())
}

/// Every file and directory below `path`, in order.
fn tree(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()).into_iter().map(|inner| format!("{name}/{inner}")));
            found.push(format!("{name}/"));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

#[test]
fn a_finished_run_is_complete_under_its_name() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("runs/today/a");
    let run = RunDirectory::create(&out).unwrap();
    assert_eq!(run.target(), out);
    run.write_json("plan.json", &serde_json::json!({"edits": []})).unwrap();
    run.write_provenance(&provenance()).unwrap();
    run.write_report(&report(), &provenance()).unwrap();
    assert!(!out.exists(), "nothing is there before the end");
    assert_eq!(run.finish().unwrap(), out);
    let files = [
        "plan.json",
        "provenance.json",
        "report.html",
        "report.json",
        "tables/",
        "tables/scores.parquet",
        "tables/spread.parquet",
    ];
    assert_eq!(tree(&out), files);
    assert_eq!(tree(&parent.path().join("runs/today")).len(), files.len() + 1, "nothing lies beside it");
    let text = fs::read_to_string(out.join("report.json")).unwrap();
    assert_eq!(Report::from_json(&text).unwrap(), report());
    let text = fs::read_to_string(out.join("provenance.json")).unwrap();
    assert_eq!(serde_json::from_str::<Provenance>(&text).unwrap().endoscope_version, "0.1.0");
}

#[cfg(unix)]
#[test]
fn its_files_have_the_rights_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let parent = tempfile::tempdir().unwrap();
    let [out, directory, file] = ["run", "directory", "file"].map(|name| parent.path().join(name));
    fs::create_dir(&directory).unwrap();
    fs::write(&file, "").unwrap();
    let run = RunDirectory::create(&out).unwrap();
    run.write_json("plan.json", &1).unwrap();
    run.finish().unwrap();
    assert_eq!(mode(&out), mode(&directory));
    assert_eq!(mode(&out.join("plan.json")), mode(&file));
}

#[test]
fn what_exists_is_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("run");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "precious").unwrap();
    let error = RunDirectory::create(&out).unwrap_err();
    let expected = format!("`{}` exists already; choose another --out or remove it", out.display());
    assert_eq!(error.to_string(), expected);
    assert_eq!(tree(parent.path()), ["run/", "run/mine"]);
}

#[test]
fn a_run_that_is_dropped_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let run = RunDirectory::create(parent.path().join("run")).unwrap();
    run.write_report(&report(), &provenance()).unwrap();
    let hidden = run.path().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(hidden.starts_with(".run.partial-"), "{hidden}");
    drop(run);
    assert!(tree(parent.path()).is_empty());
}

#[test]
fn a_target_that_appears_meanwhile_is_not_replaced() {
    for directory in [true, false] {
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("run");
        let run = RunDirectory::create(&out).unwrap();
        run.write_json("plan.json", &1).unwrap();
        if directory {
            fs::create_dir(&out).unwrap()
        } else {
            fs::write(&out, "").unwrap()
        }
        assert!(matches!(run.finish(), Err(Error::Exists { path }) if path == out));
        assert_eq!(tree(parent.path()), [if directory { "run/" } else { "run" }]);
    }
}

#[test]
fn files_stay_inside() {
    let parent = tempfile::tempdir().unwrap();
    let run = RunDirectory::create(parent.path().join("run")).unwrap();
    for name in ["../x", "/x", "", "a/../../x", "."] {
        let result = run.write_json(name, &1);
        assert!(matches!(result, Err(Error::FileName { .. })), "{name}");
    }
    let mut report = report();
    let table = report.tables.swap_remove("scores").unwrap();
    report.tables.insert("../scores".into(), table);
    assert!(matches!(run.write_report(&report, &provenance()), Err(Error::Report { .. })));
    assert_eq!(tree(run.path()), [] as [&str; 0]);
}

#[test]
fn a_path_below_a_file_is_an_error_that_names_it() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("file"), "").unwrap();
    let error = RunDirectory::create(parent.path().join("file/run")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("file"), "{error}");
}

#[test]
fn a_full_disk_is_told_with_the_final_name() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("run");
    let run = RunDirectory::create(&out).unwrap();
    let full = std::io::ErrorKind::StorageFull;
    let error = run.write("tables/big.bin", |_| Err(full.into())).unwrap_err();
    let expected = format!("cannot write `{}`", out.join("tables/big.bin").display());
    assert!(error.to_string().starts_with(&expected), "{error}");
    drop(run);
    assert!(tree(parent.path()).is_empty());
}
