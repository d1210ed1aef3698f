use super::*;
use crate::{ColourScale, HashedFile, Machine, Measured, labels};

fn report(token: &str) -> Report {
    let mut report = Report::new(format!("Title {token}"), "patch", format!("First {token}.\n\nSecond."));
    let axes = [("layer", labels(0..2)), ("position", labels(["<s>", token]))];
    report.tables.insert("scores".into(), Table::new("restored", axes, vec![0., 1., 0.5, f64::NAN]).unwrap());
    report.sections.push(Section::HeatMap {
        heading: Some("Heat".into()),
        table: "scores".into(),
        alternatives: vec![],
        scale: ColourScale::DIVERGING,
        caption: "c".into(),
    });
    let claim = Claim::new(token, Measured::Text(token.into()), format!("c {token}"), Verdict::Partly);
    report.claims.push(claim.unwrap());
    report
}

/// The report that the page carries, as a program would read it.
pub(crate) fn carried(page: &str) -> Report {
    let start = "<script type=\"application/json\" id=\"report\">";
    let (_, rest) = page.split_once(start).unwrap();
    let (data, _) = rest.split_once("</script").unwrap();
    serde_json::from_str(data).unwrap()
}

#[test]
fn text_of_the_report_stays_text() {
    let report = report("</script><script>alert(1)</script><!--\"'&\u{0}");
    let page = render_html(&report, None);
    assert_eq!(carried(&page), report);
    assert_eq!(page.matches("<script").count(), 2, "only the page's own scripts");
    assert_eq!(page.matches("</script").count(), 2);
    assert!(!page.contains("<!--") && !page.contains('\u{0}'));
    assert!(page.contains("&lt;/script&gt;&lt;script&gt;alert(1)"));
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let page = render_html(&report("x"), None);
    for load in ["src=", "href=", "url(", "@import", "fetch("] {
        assert!(!page.contains(load), "{load}");
    }
    let namespace = "http://www.w3.org/2000/svg";
    assert_eq!(page.matches("://").count(), page.matches(namespace).count());
}

#[test]
fn numbers_are_there_without_a_script() {
    let page = render_html(&report(" upon"), None);
    let (_, rest) = page.split_once("<noscript>").unwrap();
    let (table, _) = rest.split_once("</noscript>").unwrap();
    assert!(table.contains("<th scope=\"row\"><bdi>1</bdi></th><td>0.50</td><td>–</td>"), "{table}");
    assert!(table.contains("<bdi>·upon</bdi>"));
}

#[test]
fn claims_are_shown_even_if_no_section_asks() {
    let page = render_html(&report("x"), None);
    assert!(page.contains("Partly shown") && page.contains("<dt>Control</dt><dd>c x</dd>"));
}

#[test]
fn provenance_is_folded_away_with_its_hashes() {
    let provenance = Provenance {
        endoscope_version: "0.1.0".into(),
        command: vec!["endoscope".into(), "patch".into(), "a model".into()],
        started: "2026-01-02T03:04:05Z".into(),
        wall_seconds: 75.2,
        peak_memory_bytes: Some(3 << 20),
        machine: Machine { os: "linux".into(), arch: "x86_64".into(), cpu: "<cpu>".into(), logical_cpus: 2 },
        seeds: [("sample".to_owned(), 7)].into(),
        revisions: [("org/name".to_owned(), "0123abcd".to_owned())].into(),
        files: vec![HashedFile { role: "weights".into(), path: "m/<w>".into(), bytes: 1024, sha256: "ab".into() }],
        libraries: [("candle-core".to_owned(), "0.11.1".to_owned())].into(),
        notes: vec!["a note".into()],
    };
    let page = render_html(&report("x"), Some(&provenance));
    for part in [
        "Endoscope 0.1.0 · 2026-01-02T03:04:05Z · 1 min 15 s",
        "<code>endoscope patch &#39;a model&#39;</code>",
        "<dd>3.0 MiB</dd>",
        "&lt;cpu&gt;, 2 logical processors, linux x86_64",
        "<dd>sample 7</dd>",
        "<dt>Commits</dt><dd>org/name 0123abcd</dd>",
        "m/&lt;w&gt;</td><td>1.0 KiB</td><td class=\"word hash\">ab</td>",
        "<dd>candle-core 0.11.1</dd>",
        "<dd>a note</dd>",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let json = serde_json::to_string(&provenance).unwrap();
    assert_eq!(serde_json::from_str::<Provenance>(&json).unwrap(), provenance);
}

#[test]
fn a_missing_table_is_said_so() {
    let mut report = report("x");
    report.tables.clear();
    assert!(render_html(&report, None).contains("The report has no table <code>scores</code>"));
}
