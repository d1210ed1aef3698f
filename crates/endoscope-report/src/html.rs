//! Reports as one page: no network, no other file, readable without a script.
//!
//! Prose, claims, tables of numbers and provenance are written here as plain HTML. Heat maps and curves are drawn by
//! `assets/report.js` from the report's JSON, which the page carries; without a script their numbers are there as
//! tables.

mod graph;
mod provenance;
mod tables;
mod text;

pub use graph::svg;

use crate::number::Digits;
use crate::{Claim, Provenance, Report, Section, Table, Verdict};
use text::{embedded, escaped, paragraphs};

const STYLE: &str = include_str!("../assets/report.css");
const SCRIPT: &str = include_str!("../assets/report.js");

/// Forbids every load: what is not in the page is not shown.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'";

/// The report as one self-contained page, with its provenance folded away at the end if it is given.
///
/// The report's JSON is in the element with the id `report`, so a page can be read back by a program.
pub fn render_html(report: &Report, provenance: Option<&Provenance>) -> String {
    let title = escaped(&report.title);
    let verb = escaped(&report.verb);
    let summary = paragraphs(&report.summary, "summary");
    let when = provenance.map(provenance::line).unwrap_or_default();
    let sections: String =
        report.story().into_iter().enumerate().map(|(index, section)| render_section(report, index, section)).collect();
    let provenance = provenance.map(provenance::render).unwrap_or_default();
    let data = embedded(report);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<p class=\"verb\">{verb}</p>\n<h1>{title}</h1>\n{summary}{when}</header>\n\
         {sections}{provenance}</main>\n\
         <script type=\"application/json\" id=\"report\">{data}</script>\n\
         <script>\n\"use strict\";\n{{\n{SCRIPT}}}\n</script>\n</body>\n</html>\n"
    )
}

fn render_section(report: &Report, index: usize, section: &Section) -> String {
    let heading = section.heading().map(|heading| format!("<h2>{}</h2>\n", escaped(heading))).unwrap_or_default();
    let body = match section {
        Section::Text { body, .. } => paragraphs(body, "prose"),
        Section::HeatMap { table, alternatives, caption, .. } => {
            let names = std::iter::once(table).chain(alternatives);
            let draw = |name: &String| {
                with_table(report, name, |found| {
                    let caption = format!("{name}: {}", found.description);
                    tables::panels(&caption, found, &Digits::shared(found, 3))
                })
            };
            let tables: String = names.map(draw).collect();
            figure(Some(index), &format!("<noscript>{tables}</noscript>\n"), caption)
        }
        Section::Table { table, caption, .. } => figure(
            None,
            &with_table(report, table, |found| tables::panels("", found, &Digits::by_column(found, 4))),
            caption,
        ),
        Section::Lines { table, caption, .. } => {
            let numbers = with_table(report, table, |found| {
                format!("<details>\n<summary>Numbers</summary>\n{}</details>\n", tables::turned(found))
            });
            figure(Some(index), &numbers, caption)
        }
        Section::Graph { graph, caption, .. } => {
            figure(None, &format!("<div class=\"scroll\">{}</div>\n", graph::svg(graph)), caption)
        }
        Section::Claims { .. } => {
            let claims: String = report.claims.iter().map(render_claim).collect();
            format!("<ul class=\"claims\">\n{claims}</ul>\n")
        }
    };
    format!("<section>\n{heading}{body}</section>\n")
}

/// A figure; `section` is where the script finds what to draw.
fn figure(section: Option<usize>, body: &str, caption: &str) -> String {
    let data = section.map(|index| format!(" data-section=\"{index}\"")).unwrap_or_default();
    let caption = paragraphs(caption, "caption");
    format!("<figure{data}>\n{body}<figcaption>\n{caption}</figcaption>\n</figure>\n")
}

fn with_table(report: &Report, name: &str, draw: impl FnOnce(&Table) -> String) -> String {
    match report.tables.get(name) {
        None => format!("<p class=\"absent\">The report has no table <code>{}</code>.</p>\n", escaped(name)),
        Some(table) if table.values().is_empty() => "<p>The table is empty.</p>\n".into(),
        Some(table) => draw(table),
    }
}

fn render_claim(claim: &Claim) -> String {
    let class = match claim.verdict {
        Verdict::Shown => "shown",
        Verdict::Partly => "partly",
        Verdict::NotShown => "not_shown",
        Verdict::NeedsLargerModel => "needs_larger_model",
    };
    let [statement, measured, control] =
        [&claim.statement, &claim.measured.to_string(), claim.control.as_str()].map(escaped);
    let paper = claim.paper.as_ref().map(|paper| format!("<dt>Paper</dt><dd>{}</dd>", escaped(paper)));
    format!(
        "<li class=\"{class}\">\n<span class=\"verdict\">{}</span>\n<p>{statement}</p>\n\
         <dl><dt>Measured</dt><dd>{measured}</dd><dt>Control</dt><dd>{control}</dd>{}</dl>\n</li>\n",
        text::capitalised(&claim.verdict.to_string()),
        paper.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests;
