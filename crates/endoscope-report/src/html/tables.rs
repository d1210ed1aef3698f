//! Tables as plain HTML tables.

use super::text::escaped;
use crate::number::Digits;
use crate::panel::{self, Panel};
use crate::{Label, Table};

/// One HTML table per panel, under `caption`, with a number format for each column.
pub(super) fn panels(caption: &str, table: &Table, digits: &[Digits]) -> String {
    panel::panels(table).iter().map(|panel| one(caption, panel, digits)).collect()
}

/// As one table with the last axis running down: few series, many steps.
pub(super) fn turned(table: &Table) -> String {
    let digits = Digits::of(table.values().iter().copied(), 4);
    let draw = |panel: &Panel<'_>| {
        let (axis, labels) = panel.columns;
        let rows: Vec<&[Option<f64>]> = panel.value_rows().collect();
        let heads: String = match panel.rows {
            Some((_, series)) => series.iter().map(|label| head("col", label)).collect(),
            None => "<th scope=\"col\">value</th>".into(),
        };
        let body: String = labels
            .iter()
            .enumerate()
            .map(|(index, label)| {
                let cells: String = rows.iter().map(|row| cell(row.get(index).copied().flatten(), digits)).collect();
                format!("<tr>{}{cells}</tr>\n", head("row", label))
            })
            .collect();
        framed("", &format!("<th>{}</th>{heads}", escaped(axis)), &body)
    };
    panel::panels(table).iter().map(draw).collect()
}

fn one(caption: &str, panel: &Panel<'_>, digits: &[Digits]) -> String {
    let (column_axis, columns) = panel.columns;
    let Some((row_axis, rows)) = panel.rows else {
        // A single axis reads better as a list.
        let cells = panel.values.iter().zip(digits).map(|(&value, &digits)| cell(value, digits));
        let line = |(label, cell): (&Label, String)| {
            format!(
                "<tr>{}{cell}</tr>
",
                head("row", label)
            )
        };
        let body: String = columns.iter().zip(cells).map(line).collect();
        let heads = format!("<th scope=\"col\">{}</th><th scope=\"col\">value</th>", escaped(column_axis));
        return framed(caption, &heads, &body);
    };
    let heads: String = columns.iter().map(|label| head("col", label)).collect();
    let corner = format!("<th>{} / {}</th>", escaped(row_axis), escaped(column_axis));
    let line = |(row, (label, values)): (usize, (&Label, &[Option<f64>]))| {
        let text = |column: usize| panel.texts.and_then(|texts| texts.get(row * columns.len() + column));
        let cells = values.iter().zip(digits).enumerate().map(|(column, (&value, &digits))| match text(column) {
            Some(text) => text_cell(text),
            None => cell(value, digits),
        });
        format!("<tr>{}{}</tr>\n", head("row", label), cells.collect::<String>())
    };
    let body: String = rows.iter().zip(panel.value_rows()).enumerate().map(line).collect();
    let parts: Vec<String> = [caption.to_owned(), panel.title()].into_iter().filter(|part| !part.is_empty()).collect();
    framed(&parts.join(" — "), &format!("{corner}{heads}"), &body)
}

fn framed(caption: &str, heads: &str, body: &str) -> String {
    let caption = if caption.is_empty() { String::new() } else { format!("<caption>{}</caption>\n", escaped(caption)) };
    format!(
        "<div class=\"scroll\"><table class=\"numbers\">\n{caption}\
         <thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
    )
}

fn head(scope: &str, label: &Label) -> String {
    format!("<th scope=\"{scope}\"><bdi>{}</bdi></th>", escaped(&label.visible()))
}

fn text_cell(text: &str) -> String {
    format!("<td><bdi>{}</bdi></td>", escaped(&crate::label::visible(text)))
}

fn cell(value: Option<f64>, digits: Digits) -> String {
    format!("<td>{}</td>", value.map_or_else(|| "–".to_owned(), |value| digits.format(value)))
}
