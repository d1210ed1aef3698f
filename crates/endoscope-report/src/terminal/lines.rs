//! Curves as one row a line, with their first, last, least and greatest value.

use super::text::{Ink, abbreviated, pad_left, pad_right, width};
use super::{Colour, TerminalStyle};
use crate::label::safe;
use crate::number::Digits;
use crate::panel::panels;
use crate::{Label, Table};

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const MARKS: [char; 8] = ['_', '.', ',', '-', '=', '+', '*', '#'];

/// Appends the curves of a table; all share one scale.
pub(super) fn render(table: &Table, y_label: &str, style: &TerminalStyle, out: &mut Vec<String>) {
    let digits = Digits::of(table.values().iter().copied(), 3);
    let low = table.values().iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let high = table.values().iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    for panel in panels(table) {
        let title = panel.title();
        out.push(String::new());
        if !title.is_empty() {
            out.push(Ink(style.colour).bold(&title));
        }
        let names: Vec<String> = match panel.rows {
            Some((_, labels)) => labels.iter().map(|label| abbreviated(&label.visible(), 24)).collect(),
            None => vec![String::new()],
        };
        let margin = names.iter().map(|name| width(name)).max().unwrap_or(0);
        let figures: Vec<[String; 4]> = panel.value_rows().map(|values| figures(values, digits)).collect();
        let heads = ["first", "last", "least", "most"];
        let figure = figures.iter().flatten().map(String::len).chain([5]).max().unwrap_or(5);
        let room = style.width.saturating_sub(margin + 2 + 4 * (figure + 1));
        let across = room.clamp(8, 60).min(panel.columns.1.len().max(8));
        let cells =
            |texts: &[String]| -> String { texts.iter().map(|text| format!(" {}", pad_left(text, figure))).collect() };
        let span = match panel.columns.1 {
            [first, .., last] => format!("{} {} to {}", safe(panel.columns.0), first.visible(), last.visible()),
            labels => {
                format!("{} {}", safe(panel.columns.0), labels.first().map(Label::visible).unwrap_or_default())
            }
        };
        out.push(Ink(style.colour).dim(&format!("{y_label} over {span}")));
        let head = pad_right("", margin + across + 2) + &cells(&heads.map(String::from));
        out.push(Ink(style.colour).dim(&head));
        for ((name, values), figures) in names.iter().zip(panel.value_rows()).zip(&figures) {
            let curve = curve(values, across, [low, high], style.colour);
            out.push(format!("{} {} {}", pad_right(name, margin), pad_right(&curve, across), cells(figures).as_str()));
        }
    }
}

/// First, last, least and greatest value.
fn figures(values: &[Option<f64>], digits: Digits) -> [String; 4] {
    let present = || values.iter().flatten().copied();
    let least = present().reduce(f64::min);
    let most = present().reduce(f64::max);
    [present().next(), present().last(), least, most]
        .map(|value| value.map_or_else(|| "-".to_owned(), |value| digits.format(value)))
}

/// The mean of each of `across` stretches of the values, as a character by its height; a gap where all are missing.
fn curve(values: &[Option<f64>], across: usize, [low, high]: [f64; 2], colour: Colour) -> String {
    let heights = if colour == Colour::None { MARKS } else { BLOCKS };
    let count = across.min(values.len());
    (0..count)
        .map(|index| {
            let stretch = values.get(index * values.len() / count..(index + 1) * values.len() / count);
            let present: Vec<f64> = stretch.unwrap_or_default().iter().flatten().copied().collect();
            if present.is_empty() {
                return ' ';
            }
            let mean = present.iter().sum::<f64>() / present.len() as f64;
            let height = if high > low { (mean - low) / (high - low) } else { 0. };
            let step = (height * (heights.len() - 1) as f64).round() as usize;
            heights.get(step).copied().unwrap_or(' ')
        })
        .collect()
}
