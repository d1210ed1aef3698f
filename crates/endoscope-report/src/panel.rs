//! A table as flat panels: one for each combination of the labels of all axes but the last two.

use crate::{Label, Table};

/// Two axes of a table, at fixed labels of the axes before them.
pub(crate) struct Panel<'a> {
    /// The fixed axes, each with its label.
    pub fixed: Vec<(&'a str, &'a Label)>,
    /// The axis that runs down; `None` for a table of one axis.
    pub rows: Option<(&'a str, &'a [Label])>,
    /// The axis that runs to the right.
    pub columns: (&'a str, &'a [Label]),
    /// Row-major.
    pub values: &'a [Option<f64>],
    /// What stands in the cells of a heat map instead, if anything.
    pub texts: Option<&'a [String]>,
}

/// The panels of a table, in order.
pub(crate) fn panels(table: &Table) -> Vec<Panel<'_>> {
    let axes: Vec<(&str, &[Label])> = table.axes().iter().map(|(name, labels)| (&**name, &**labels)).collect();
    let Some((&columns, outer)) = axes.split_last() else { return Vec::new() };
    let (rows, fixed_axes) = match outer.split_last() {
        Some((&rows, fixed_axes)) => (Some(rows), fixed_axes),
        None => (None, outer),
    };
    let size = columns.1.len() * rows.map_or(1, |(_, labels)| labels.len());
    let count: usize = fixed_axes.iter().map(|(_, labels)| labels.len()).product();
    (0..count)
        .map(|index| {
            let mut rest = index;
            let mut fixed: Vec<(&str, &Label)> = Vec::new();
            for (name, labels) in fixed_axes.iter().rev() {
                fixed.extend(labels.get(rest % labels.len()).map(|label| (*name, label)));
                rest /= labels.len();
            }
            fixed.reverse();
            let values = table.values().get(index * size..(index + 1) * size).unwrap_or_default();
            let texts = table.texts().and_then(|texts| texts.get(index * size..(index + 1) * size));
            Panel { fixed, rows, columns, values, texts }
        })
        .collect()
}

impl Panel<'_> {
    /// The fixed labels as a title, `head 3, query ·upon`; empty if nothing is fixed.
    pub(crate) fn title(&self) -> String {
        let parts: Vec<String> = self
            .fixed
            .iter()
            .map(|(name, label)| format!("{} {}", crate::label::safe(name), label.visible()))
            .collect();
        parts.join(", ")
    }

    /// The values of each row, in order.
    pub(crate) fn value_rows(&self) -> impl Iterator<Item = &[Option<f64>]> {
        let length = self.columns.1.len();
        let count = self.rows.map_or(1, |(_, labels)| labels.len());
        (0..count).map(move |row| self.values.get(row * length..(row + 1) * length).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels;

    #[test]
    fn a_table_of_four_axes_gives_one_panel_per_pair() {
        let axes = [("a", labels(0..2)), ("b", labels(["x", "y"])), ("c", labels(0..1)), ("d", labels(0..2))];
        let table = Table::new("", axes, (0..8).map(f64::from).collect()).unwrap();
        let panels = panels(&table);
        let seen: Vec<_> = panels.iter().map(|panel| (panel.title(), panel.values[0])).collect();
        let expected = [("a 0, b x", 0.), ("a 0, b y", 2.), ("a 1, b x", 4.), ("a 1, b y", 6.)];
        assert_eq!(seen, expected.map(|(title, value)| (title.to_owned(), Some(value))));
    }
}
