//! The table of docs/families.md is what the goldens are and what is measured on them. `ENDOSCOPE_WRITE_PAGES=1` writes it
//! anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use endoscope_models::decoder::capture_everything;
use endoscope_models::{Family, Model};
use endoscope_net::{Inputs, Network};
use serde_json::Value;

const BEGIN: &str = "<!-- families: written by";
const END: &str = "<!-- families: end -->";

/// One line of the table.
struct Row {
    /// What does not depend on the machine.
    model: String,
    /// The largest difference at any site.
    difference: f32,
    site: String,
}

fn row(name: &str, note: &Value) -> Row {
    let directory = goldens().join(name);
    let model = Model::open(&directory).unwrap();
    let family = note["model_type"].as_str().unwrap();
    assert_eq!(model.family.model_type(), family, "{name}");
    let (mut difference, mut site) = (0f32, "no site".to_string());
    let goldens = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    for golden in goldens.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("seq")) {
        let golden = load(&golden);
        let run = model.decoder.run(&Inputs::tokens(tokens(&golden)).unwrap(), &capture_everything()).unwrap();
        for (name, found) in run.captured.iter().filter(|(name, _)| golden.contains_key(*name)) {
            let here = common::difference(found, &golden[name]);
            if here > difference {
                (difference, site) = (here, name.to_string());
            }
        }
    }
    Row { model: format!("| `{family}` | {} |", note["switches"].as_str().unwrap()), difference, site }
}

fn rows() -> Vec<Row> {
    let notes = std::fs::read_to_string(goldens().join("notes.json")).unwrap();
    let notes: serde_json::Map<String, Value> = serde_json::from_str(&notes).unwrap();
    let mut named: Vec<String> = notes.keys().cloned().collect();
    named.sort();
    let there: Vec<String> =
        golden_models().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(named, there, "notes.json names other models than there are");
    let of = |family: &'static Family| {
        let mine = notes.iter().filter(|(_, note)| note["model_type"] == family.model_type());
        let rows: Vec<Row> = mine.map(|(name, note)| row(name, note)).collect();
        assert!(!rows.is_empty(), "{family:?} has no golden");
        rows
    };
    Family::ALL.iter().flat_map(of).collect()
}

/// Rounded up to one digit.
fn bound(difference: f32) -> f64 {
    let difference = f64::from(difference);
    if difference == 0. {
        return 0.;
    }
    let unit = 10f64.powf(difference.log10().floor());
    format!("{:.0e}", (difference / unit).ceil() * unit).parse().unwrap()
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/families.md")
}

#[test]
fn the_page_says_what_is_measured() {
    let rows = rows();
    let text = std::fs::read_to_string(page()).unwrap();
    let begin = text.find(BEGIN).map(|at| at + text[at..].find('\n').unwrap() + 1).unwrap();
    let end = text.find(END).unwrap();
    if std::env::var_os("ENDOSCOPE_WRITE_PAGES").is_some() {
        let lines =
            rows.iter().map(|row| format!("{} ≤ {:.0e} | `{}` |\n", row.model, bound(row.difference), row.site));
        let head = "| `model_type` | switches | difference | at |\n| --- | --- | ---: | --- |\n";
        let table: String = std::iter::once(head.to_string()).chain(lines).collect();
        std::fs::write(page(), format!("{}{table}{}", &text[..begin], &text[end..])).unwrap();
        return;
    }
    let written: Vec<&str> = text[begin..end].lines().skip(2).collect();
    let again = "write it anew: ENDOSCOPE_WRITE_PAGES=1 cargo test -p endoscope-models --test families_page";
    assert_eq!(written.len(), rows.len(), "docs/families.md has other rows than there are models; {again}");
    for (line, row) in written.iter().zip(&rows) {
        let rest = line.strip_prefix(row.model.as_str());
        let rest = rest.unwrap_or_else(|| panic!("docs/families.md says {line} and not {}; {again}", row.model));
        let figure: f32 = rest.trim_start_matches(" ≤ ").split(' ').next().unwrap().parse().unwrap();
        assert!(row.difference <= figure, "{}: {:e} at {}; {again}", row.model, row.difference, row.site);
        assert!(figure <= SITE_TOLERANCE, "{line}: more than is allowed");
    }
}

#[test]
fn bounds_are_rounded_up_to_one_digit() {
    assert_eq!([8.58e-6, 1e-5, 1.01e-5, 9.7e-6, 0.].map(bound), [9e-6, 1e-5, 2e-5, 1e-5, 0.]);
}
