//! One panel of a table as aligned cells, split where it is wider than the terminal.

use super::text::{Ink, abbreviated, pad_left, pad_right, pieces, width};
use super::{Colour, TerminalStyle};
use crate::label::{safe, visible};
use crate::number::Digits;
use crate::panel::Panel;
use crate::{ColourScale, Label, Table};

/// Plain text's intensities, from least to most.
const MARKS: &[u8] = b" .:-=+*#%@";

/// Column labels get this many lines before they are abbreviated.
const LABEL_LINES: usize = 3;

/// Column labels up to this width are kept on one line where there is room.
const LABEL_WIDTH: usize = 14;

/// Where there is no room, columns are made as narrow as this or their numbers allow.
const NARROW_LABEL_WIDTH: usize = 6;

/// Row labels longer than this are abbreviated.
const ROW_LABEL_WIDTH: usize = 24;

/// How a heat map's values are shaded.
pub(super) struct Shading {
    pub scale: ColourScale,
    pub limits: [f64; 2],
}

/// The number formats of a table, one for each label of its last axis, and the width of its longest number.
pub(super) struct Numbers {
    digits: Vec<Digits>,
    width: usize,
}

impl Numbers {
    pub(super) fn new(table: &Table, digits: Vec<Digits>) -> Numbers {
        let cells = table.values().iter().zip(digits.iter().cycle());
        let widths = cells.map(|(value, digits)| value.map_or(1, |value| digits.format(value).len()));
        let width = widths.max().unwrap_or(1);
        Numbers { digits, width }
    }
}

/// Appends the panel, in as many blocks of columns as its width needs.
pub(super) fn render(
    panel: &Panel<'_>,
    numbers: &Numbers,
    shading: Option<&Shading>,
    style: &TerminalStyle,
    out: &mut Vec<String>,
) {
    let (column_axis, column_labels) = panel.columns;
    let row_labels = match panel.rows {
        Some((_, labels)) => row_labels(labels),
        None => vec![String::new()],
    };
    // A coloured block would touch its label; plain cells begin with a space.
    let gap = if panel.rows.is_some() && style.colour == Colour::TrueColour { " " } else { "" };
    let margin = row_labels.iter().map(|label| width(label) + gap.len()).max().unwrap_or(0);
    let columns: Vec<String> = column_labels.iter().map(Label::visible).collect();
    let room = style.width.saturating_sub(margin);
    let texts: Option<Vec<String>> =
        panel.texts.filter(|_| shading.is_some()).map(|texts| texts.iter().map(|text| visible(text)).collect());
    let cell_width = match &texts {
        Some(texts) => texts.iter().map(|text| width(text)).max().unwrap_or(0).min(LABEL_WIDTH),
        None => numbers.width,
    };
    let inner = inner_width(&columns, cell_width, room);
    let block = (room / (inner + 2)).max(1);
    for (index, labels) in columns.chunks(block).enumerate() {
        let first = index * block;
        if index > 0 {
            out.push(String::new());
        }
        let mut axes = match panel.rows {
            Some((row_axis, _)) => format!("{} down, {} across", safe(row_axis), safe(column_axis)),
            None => format!("{} across", safe(column_axis)),
        };
        if columns.len() > block {
            axes += &format!(" ({} to {} of {})", first + 1, first + labels.len(), columns.len());
        }
        out.push(Ink(style.colour).dim(&axes));
        out.extend(header(labels, inner).iter().map(|line| format!("{}{line}", " ".repeat(margin))));
        for (row, (label, values)) in row_labels.iter().zip(panel.value_rows()).enumerate() {
            let cells = values.iter().zip(&numbers.digits).enumerate().skip(first).take(labels.len());
            let cells = cells.map(|(column, (&value, &digits))| {
                let text = texts.as_ref().and_then(|texts| texts.get(row * columns.len() + column));
                let shown = match (text, value) {
                    (Some(text), _) => abbreviated(text, inner),
                    (None, Some(value)) => digits.format(value),
                    (None, None) => "-".into(),
                };
                cell(&shown, value, shading, inner, style)
            });
            out.push(format!("{label}{gap}{}", cells.collect::<String>()));
        }
    }
}

/// Appends a table of one axis as a list, one label and number a line.
pub(super) fn list(panel: &Panel<'_>, numbers: &Numbers, style: &TerminalStyle, out: &mut Vec<String>) {
    let (axis, labels) = panel.columns;
    out.push(Ink(style.colour).dim(&safe(axis)));
    let cells = panel.values.iter().zip(&numbers.digits);
    for (label, (&value, &digits)) in row_labels(labels).iter().zip(cells) {
        let shown = value.map_or_else(|| "-".into(), |value| digits.format(value));
        out.push(format!("{label}{}", cell(&shown, value, None, numbers.width, style)));
    }
}

/// The labels of the rows, texts aligned left and numbers right by equal width.
fn row_labels(labels: &[Label]) -> Vec<String> {
    let texts: Vec<String> = labels.iter().map(|label| abbreviated(&label.visible(), ROW_LABEL_WIDTH)).collect();
    let longest = texts.iter().map(|text| width(text)).max().unwrap_or(0);
    let is_text = labels.iter().any(|label| matches!(label, Label::Text(_)));
    texts.iter().map(|text| if is_text { pad_right(text, longest) } else { pad_left(text, longest) }).collect()
}

/// The columns that a number or a piece of a label may fill: whole labels if all fit beside each other.
fn inner_width(columns: &[String], number: usize, room: usize) -> usize {
    let longest = columns.iter().map(|label| width(label)).max().unwrap_or(0);
    let whole = longest.min(LABEL_WIDTH).max(number);
    if (whole + 2) * columns.len() <= room { whole } else { longest.min(NARROW_LABEL_WIDTH).max(number) }
}

/// The labels above the cells, aligned as the numbers are, or from the left where some are cut over several lines;
/// the last line is nearest the cells.
fn header(labels: &[String], inner: usize) -> Vec<String> {
    let cut: Vec<Vec<String>> = labels.iter().map(|label| label_lines(label, inner)).collect();
    let height = cut.iter().map(Vec::len).max().unwrap_or(0);
    let pad = if height == 1 { pad_left } else { pad_right };
    (0..height)
        .map(|line| {
            let pieces = cut.iter().map(|lines| {
                let piece = (line + lines.len()).checked_sub(height).and_then(|line| lines.get(line));
                format!(" {} ", pad(piece.map_or("", |piece| piece), inner))
            });
            pieces.collect()
        })
        .collect()
}

fn label_lines(label: &str, inner: usize) -> Vec<String> {
    let mut lines = pieces(label, inner);
    if lines.len() > LABEL_LINES {
        let rest: String = lines.split_off(LABEL_LINES - 1).concat();
        lines.push(abbreviated(&rest, inner));
    }
    lines
}

/// What is `shown` of a value, coloured or marked by it.
fn cell(shown: &str, value: Option<f64>, shading: Option<&Shading>, inner: usize, style: &TerminalStyle) -> String {
    let shown = pad_left(shown, inner);
    let (Some(value), Some(Shading { scale, limits })) = (value, shading) else { return format!(" {shown} ") };
    let intensity = scale.intensity(value, *limits);
    match style.colour {
        Colour::TrueColour => Ink(style.colour).block(scale.rgb(intensity), &format!(" {shown} ")),
        Colour::None => format!(" {shown}{}", mark(intensity)),
    }
}

fn mark(intensity: f64) -> char {
    let step = (intensity.abs() * (MARKS.len() - 1) as f64).round() as usize;
    MARKS.get(step).map_or(' ', |&mark| char::from(mark))
}

/// What the colours or marks mean.
pub(super) fn legend(shading: &Shading, description: &str, style: &TerminalStyle) -> String {
    let Shading { scale, limits: [low, high] } = shading;
    let digits = Digits::of([Some(*low), Some(*high)], 3);
    let (low, high) = (digits.format(*low), digits.format(*high));
    match style.colour {
        Colour::TrueColour => {
            let start = if matches!(scale, ColourScale::Diverging { .. }) { -1. } else { 0. };
            let steps = 24;
            let bar: String = (0..steps)
                .map(|step| scale.rgb(start + (1. - start) * f64::from(step) / f64::from(steps - 1)))
                .map(|colour| Ink(style.colour).block(colour, " "))
                .collect();
            format!("{low} {bar} {high}  {description}")
        }
        Colour::None => {
            let marks = String::from_utf8_lossy(MARKS);
            let what = match scale {
                ColourScale::Diverging { .. } => format!("0 to {high} either way"),
                ColourScale::Sequential { .. } => format!("{low} to {high}"),
            };
            format!("Marks \"{marks}\": {what}. {description}")
        }
    }
}
