//! Short numbers: one format for all numbers of a figure, so that they line up.

use crate::Table;

/// How many digits the numbers of one figure get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Digits {
    /// So many digits after the point.
    Fixed(usize),
    /// A mantissa with so many digits after the point, and an exponent.
    Exponent(usize),
}

impl Digits {
    /// The format in which the largest of `values` has about `significant` digits; whole numbers get no point.
    pub(crate) fn of(values: impl IntoIterator<Item = Option<f64>>, significant: usize) -> Digits {
        let (mut largest, mut whole) = (0f64, true);
        for value in values.into_iter().flatten().filter(|value| value.is_finite()) {
            largest = largest.max(value.abs());
            whole &= value.fract() == 0.;
        }
        if whole && largest < 1e6 {
            return Digits::Fixed(0);
        }
        if !(1e-2..1e5).contains(&largest) {
            return Digits::Exponent(significant.saturating_sub(2));
        }
        // 0.083 -> -2, 0.83 -> -1, 8.3 -> 0, 83 -> 1
        let exponent = largest.log10().floor() as i64;
        let after = significant as i64 - if exponent < 0 { 2 } else { 1 } - exponent;
        Digits::Fixed(usize::try_from(after).unwrap_or(0))
    }

    /// The same format for each label of the last axis, so that all numbers of a figure compare by eye.
    pub(crate) fn shared(table: &Table, significant: usize) -> Vec<Digits> {
        let columns = table.axes().last().map_or(0, |(_, labels)| labels.len());
        vec![Digits::of(table.values().iter().copied(), significant); columns]
    }

    /// A format of its own for each label of the last axis, since the columns of a table may hold different quantities.
    pub(crate) fn by_column(table: &Table, significant: usize) -> Vec<Digits> {
        let columns = table.axes().last().map_or(0, |(_, labels)| labels.len());
        let column = |index| table.values().iter().copied().skip(index).step_by(columns);
        (0..columns).map(|index| Digits::of(column(index), significant)).collect()
    }

    /// The number in this format; a negative number that rounds to zero loses its sign.
    pub(crate) fn format(self, value: f64) -> String {
        if !value.is_finite() {
            return "not finite".into();
        }
        let text = match self {
            Digits::Fixed(after) => format!("{value:.after$}"),
            Digits::Exponent(_) if value == 0. => "0".into(),
            Digits::Exponent(after) => format!("{value:.after$e}"),
        };
        let is_zero = !text.contains('e') && !text.bytes().any(|digit| (b'1'..=b'9').contains(&digit));
        match text.strip_prefix('-') {
            Some(zero) if is_zero => zero.into(),
            _ => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels;

    #[test]
    fn numbers_of_a_figure_share_one_short_format() {
        let check = |values: &[f64], expected: &[&str]| {
            let digits = Digits::of(values.iter().copied().map(Some), 3);
            assert_eq!(values.iter().map(|&value| digits.format(value)).collect::<Vec<_>>(), expected);
        };
        check(&[0.83, -0.001], &["0.83", "0.00"]);
        check(&[8.25, 1.], &["8.25", "1.00"]);
        check(&[123.4, 0.5], &["123", "0"]);
        check(&[0.05, 0.012], &["0.050", "0.012"]);
        check(&[12800.4, 0.5], &["12800", "0"]);
        check(&[1.5e7, -0.5], &["1.5e7", "-5.0e-1"]);
        check(&[0.0002, 0.], &["2.0e-4", "0"]);
        check(&[3., 17.], &["3", "17"]);
        check(&[0., 0.], &["0", "0"]);
        check(&[], &[]);
    }

    #[test]
    fn each_column_has_its_own_format() {
        let axes = [("part", labels(["heads", "MLP"])), ("what", labels(["parameters", "share"]))];
        let table = Table::new("", axes, vec![12_800., 0.25, 96., 0.5]).unwrap();
        assert_eq!(Digits::by_column(&table, 3), [Digits::Fixed(0), Digits::Fixed(2)]);
    }
}
