//! Reports as text: in true colour, or plain for a pipe, a log or a screen reader.

mod graph;
mod grid;
mod lines;
mod text;

use crate::label::safe;
use crate::number::Digits;
use crate::panel::panels;
use crate::{Claim, ColourScale, Report, Section, Table, Verdict};
use grid::{Numbers, Shading};
use text::{Ink, wrap};

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// 24-bit colours and block characters.
    TrueColour,
    /// No escape sequence; ASCII but for what the report itself says.
    None,
}

/// How to render for one terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalStyle {
    /// Whether to colour.
    pub colour: Colour,
    /// How many columns a line may fill. Prose is wrapped and tables are split into panels; only a single column of a
    /// table that is wider than this makes longer lines.
    pub width: usize,
}

/// The report as text that ends in a newline.
///
/// Whatever the report holds, nothing but this function's own colours reaches the terminal as a control sequence.
pub fn render_terminal(report: &Report, style: &TerminalStyle) -> String {
    let ink = Ink(style.colour);
    let mut out = Vec::new();
    for line in wrap(&safe(&report.title), style.width) {
        out.push(ink.bold(&line));
    }
    out.push(ink.dim(&safe(&report.verb).replace('\n', " ")));
    paragraphs(&report.summary, style, &mut out);
    for section in report.story() {
        out.push(String::new());
        if let Some(heading) = section.heading() {
            out.push(String::new());
            let lines = wrap(&safe(heading), style.width);
            let longest = lines.iter().map(|line| text::width(line)).max().unwrap_or(0);
            out.extend(lines.iter().map(|line| ink.bold(line)));
            out.push(ink.dim(&"-".repeat(longest)));
        }
        render_section(report, section, style, &mut out);
    }
    let mut text: String = out.iter().map(|line| format!("{}\n", line.trim_end_matches(' '))).collect();
    while text.ends_with("\n\n") {
        text.pop();
    }
    text
}

fn render_section(report: &Report, section: &Section, style: &TerminalStyle, out: &mut Vec<String>) {
    match section {
        Section::Text { body, .. } => out.extend(wrap(&safe(body), style.width)),
        Section::HeatMap { table, alternatives, scale, caption, .. } => {
            out.extend(wrap(&safe(caption), style.width));
            with_table(report, table, out, |found, out| heat_map(found, *scale, style, out));
            if !alternatives.is_empty() {
                let names: Vec<String> = alternatives.iter().map(|name| safe(name)).collect();
                out.extend(wrap(&format!("Also in the report: {}.", names.join(", ")), style.width));
            }
        }
        Section::Table { table, caption, .. } => {
            out.extend(wrap(&safe(caption), style.width));
            with_table(report, table, out, |found, out| plain_table(found, style, out));
        }
        Section::Lines { table, caption, y_label, .. } => {
            out.extend(wrap(&safe(caption), style.width));
            with_table(report, table, out, |found, out| lines::render(found, &safe(y_label), style, out));
        }
        Section::Graph { graph, caption, .. } => {
            out.extend(wrap(&safe(caption), style.width));
            out.push(String::new());
            graph::render(graph, style, out);
        }
        Section::Claims { .. } => {
            for (index, claim) in report.claims.iter().enumerate() {
                if index > 0 {
                    out.push(String::new());
                }
                render_claim(claim, style, out);
            }
        }
    }
}

fn paragraphs(body: &str, style: &TerminalStyle, out: &mut Vec<String>) {
    if !body.trim().is_empty() {
        out.push(String::new());
        out.extend(wrap(&safe(body), style.width));
    }
}

fn with_table(report: &Report, name: &str, out: &mut Vec<String>, draw: impl FnOnce(&Table, &mut Vec<String>)) {
    match report.tables.get(name) {
        None => out.push(format!("(the report has no table `{}`)", safe(name).replace('\n', " "))),
        Some(table) if table.values().is_empty() => out.push("(the table is empty)".into()),
        Some(table) => draw(table, out),
    }
}

fn heat_map(table: &Table, scale: ColourScale, style: &TerminalStyle, out: &mut Vec<String>) {
    let shading = Shading { scale, limits: scale.limits(table.values()) };
    grids(table, &Numbers::new(table, Digits::shared(table, 3)), Some(&shading), style, out);
    out.push(String::new());
    out.push(grid::legend(&shading, &safe(&table.description).replace('\n', " "), style));
}

fn plain_table(table: &Table, style: &TerminalStyle, out: &mut Vec<String>) {
    grids(table, &Numbers::new(table, Digits::by_column(table, 4)), None, style, out);
}

fn grids(table: &Table, numbers: &Numbers, shading: Option<&Shading>, style: &TerminalStyle, out: &mut Vec<String>) {
    for panel in panels(table) {
        out.push(String::new());
        let title = panel.title();
        if !title.is_empty() {
            out.extend(wrap(&title, style.width).iter().map(|line| Ink(style.colour).bold(line)));
        }
        match (panel.rows, shading) {
            (None, None) => grid::list(&panel, numbers, style, out),
            _ => grid::render(&panel, numbers, shading, style, out),
        }
    }
}

fn render_claim(claim: &Claim, style: &TerminalStyle, out: &mut Vec<String>) {
    let ink = Ink(style.colour);
    let verdict = format!("[{}]", claim.verdict);
    let first = wrap(&format!("{verdict} {}", safe(&claim.statement)), style.width);
    for (index, line) in first.iter().enumerate() {
        match line.strip_prefix(&verdict).filter(|_| index == 0) {
            Some(rest) => out.push(format!("{}{rest}", verdict_ink(claim.verdict, ink, &verdict))),
            None => out.push(line.clone()),
        }
    }
    let parts = [("measured: ", claim.measured.to_string()), ("control:  ", claim.control.as_str().to_owned())];
    for (name, body) in parts.into_iter().chain(claim.paper.clone().map(|paper| ("paper:    ", paper))) {
        let lines = wrap(&safe(&body), style.width.saturating_sub(4 + name.len()));
        for (index, line) in lines.iter().enumerate() {
            let margin = if index == 0 { name } else { "          " };
            out.push(format!("    {}{line}", ink.dim(margin)));
        }
    }
}

fn verdict_ink(verdict: Verdict, ink: Ink, text: &str) -> String {
    match verdict {
        Verdict::Shown => ink.green(text),
        Verdict::Partly | Verdict::NeedsLargerModel => ink.yellow(text),
        Verdict::NotShown => ink.red(text),
    }
}

#[cfg(test)]
mod tests;
