//! Numbers with named, labelled axes: what every figure of a report is drawn from.

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeSeq};

use crate::{Error, Label, Result};

/// The axes of a table, from the outermost to the innermost, each with its labels.
pub type Axes = IndexMap<String, Vec<Label>>;

/// Numbers over one to four labelled axes; a number may be missing.
///
/// In JSON: `{"description":…, "axes":{"layer":[0,1],"position":["<s>","Once"]}, "values":[[0.5,null],[1.0,2.0]]}`,
/// axes in order and values nested in that order.
///
/// The axes and values are read through [`axes`](Table::axes) and [`values`](Table::values), because they must fit
/// each other: as many values as the axes' lengths multiply to, each finite or missing.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What the numbers are, with their unit, in one sentence.
    pub description: String,
    axes: Axes,
    values: Vec<Option<f64>>,
}

impl Table {
    /// A table from values in row-major order; a value that is not finite becomes a missing one.
    ///
    /// ```
    /// use endoscope_report::{labels, Table};
    /// let axes = [("layer", labels(0..2)), ("position", labels(["<s>", "Once"]))];
    /// let table = Table::new("logit difference restored", axes, vec![0.5, f64::NAN, 1., 2.])?;
    /// assert_eq!(table.get(&[0, 1]), None);
    /// assert_eq!(table.get(&[1, 1]), Some(2.));
    /// # Ok::<(), endoscope_report::Error>(())
    /// ```
    pub fn new<Name: Into<String>>(
        description: impl Into<String>,
        axes: impl IntoIterator<Item = (Name, Vec<Label>)>,
        values: Vec<f64>,
    ) -> Result<Table> {
        Table::with_missing(description, axes, values.into_iter().map(Some).collect())
    }

    /// As [`Table::new`], with missing values given as `None`.
    pub fn with_missing<Name: Into<String>>(
        description: impl Into<String>,
        axes: impl IntoIterator<Item = (Name, Vec<Label>)>,
        values: Vec<Option<f64>>,
    ) -> Result<Table> {
        let mut checked = Axes::new();
        for (name, labels) in axes {
            let name = name.into();
            check_axis_name(&name)?;
            if checked.contains_key(&name) {
                return Err(Error::RepeatedAxis { name });
            }
            checked.insert(name, labels);
        }
        if !(1..=4).contains(&checked.len()) {
            return Err(Error::Rank { found: checked.len() });
        }
        let shape: Vec<usize> = checked.values().map(Vec::len).collect();
        let needed = shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
        if needed != Some(values.len()) {
            return Err(Error::Count { found: values.len(), shape, needed });
        }
        let values = values.into_iter().map(|value| value.filter(|value| value.is_finite())).collect();
        Ok(Table { description: description.into(), axes: checked, values })
    }

    /// The axes, outermost first.
    pub fn axes(&self) -> &Axes {
        &self.axes
    }

    /// The values in row-major order; `None` is missing, anything else finite.
    pub fn values(&self) -> &[Option<f64>] {
        &self.values
    }

    /// The length of each axis, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        self.axes.values().map(Vec::len).collect()
    }

    /// The value at one index per axis; `None` if it is missing or outside the table.
    pub fn get(&self, at: &[usize]) -> Option<f64> {
        let shape = self.shape();
        if at.len() != shape.len() || at.iter().zip(&shape).any(|(index, length)| index >= length) {
            return None;
        }
        let flat = at.iter().zip(&shape).fold(0, |flat, (index, length)| flat * length + index);
        self.values.get(flat).copied().flatten()
    }
}

/// A name must not be taken for a number: a script would sort the keys of its object and lose the axes' order.
fn check_axis_name(name: &str) -> Result<()> {
    let starts_well = name.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
    if starts_well && !name.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(Error::AxisName { name: name.to_owned() })
    }
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Json<'a> {
            description: &'a str,
            axes: &'a Axes,
            values: Block<'a>,
        }
        let shape = self.shape();
        let values = Block { shape: &shape, values: &self.values };
        Json { description: &self.description, axes: &self.axes, values }.serialize(serializer)
    }
}

/// A part of the values, nested by `shape` when written.
struct Block<'a> {
    shape: &'a [usize],
    values: &'a [Option<f64>],
}

impl Serialize for Block<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some((&length, inner)) = self.shape.split_first() else {
            return self.values.first().copied().flatten().serialize(serializer);
        };
        let step: usize = inner.iter().product();
        let mut list = serializer.serialize_seq(Some(length))?;
        for index in 0..length {
            let values = self.values.get(index * step..(index + 1) * step).unwrap_or_default();
            list.serialize_element(&Block { shape: inner, values })?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Table, D::Error> {
        #[derive(Deserialize)]
        struct Json {
            description: String,
            #[serde(deserialize_with = "distinct_axes")]
            axes: Vec<(String, Vec<Label>)>,
            values: Nested,
        }
        let json = Json::deserialize(deserializer)?;
        let mut values = Vec::new();
        flatten(&json.values, &json.axes, "values".into(), &mut values).map_err(de::Error::custom)?;
        Table::with_missing(json.description, json.axes, values).map_err(de::Error::custom)
    }
}

/// Reads an object as its list of entries, so that a repeated axis is noticed rather than overwritten.
fn distinct_axes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Vec<Label>)>, D::Error> {
    struct Entries;
    impl<'de> de::Visitor<'de> for Entries {
        type Value = Vec<(String, Vec<Label>)>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of axis names and their labels")
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    deserializer.deserialize_map(Entries)
}

/// Values as JSON nests them.
enum Nested {
    Number(Option<f64>),
    List(Vec<Nested>),
}

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Nested, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Nested;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, null, or a list of them")
            }
            fn visit_unit<E>(self) -> Result<Nested, E> {
                Ok(Nested::Number(None))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Nested, E> {
                Ok(Nested::Number(Some(number)))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Nested, E> {
                Ok(Nested::Number(Some(number as f64)))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Nested, E> {
                Ok(Nested::Number(Some(number as f64)))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Nested, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    entries.push(entry);
                }
                Ok(Nested::List(entries))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Appends the nested values in row-major order, checking each list against its axis.
fn flatten(from: &Nested, axes: &[(String, Vec<Label>)], place: String, into: &mut Vec<Option<f64>>) -> Result<()> {
    match (from, axes.split_first()) {
        (Nested::Number(number), None) => into.push(*number),
        (Nested::List(_), None) => return Err(Error::TooDeep { place }),
        (Nested::List(list), Some(((_, labels), inner))) if list.len() == labels.len() => {
            for (index, entry) in list.iter().enumerate() {
                flatten(entry, inner, format!("{place}[{index}]"), into)?;
            }
        }
        (other, Some(((axis, labels), _))) => {
            let problem = match other {
                Nested::Number(_) => "is a single value".into(),
                Nested::List(list) => format!("holds {} entries", list.len()),
            };
            return Err(Error::Nesting { place, problem, axis: axis.clone(), expected: labels.len() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels;

    fn table(lengths: &[usize], values: Vec<f64>) -> Result<Table> {
        let names = ["layer", "head", "query", "key", "rest"];
        Table::new("d", names.into_iter().zip(lengths.iter().map(|&length| labels(0..length))), values)
    }

    #[test]
    fn json_nests_values_in_the_order_of_the_axes() {
        let axes = [("position", labels(["<s>", "<s>"])), ("layer", labels(3..5))];
        let table = Table::new("scores", axes, vec![1., f64::NAN, f64::INFINITY, -0.25]).unwrap();
        let json = r#"{"description":"scores","axes":{"position":["<s>","<s>"],"layer":[3,4]},"values":[[1.0,null],[null,-0.25]]}"#;
        assert_eq!(serde_json::to_string(&table).unwrap(), json);
        assert_eq!(serde_json::from_str::<Table>(json).unwrap(), table);
    }

    #[test]
    fn whole_numbers_and_any_key_order_are_read() {
        let json = r#"{"values":[1,-2],"axes":{"layer":[0,1]},"description":""}"#;
        assert_eq!(serde_json::from_str::<Table>(json).unwrap().values(), [Some(1.), Some(-2.)]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_place() {
        let read = |axes: &str, values: &str| {
            let json = format!(r#"{{"description":"","axes":{axes},"values":{values}}}"#);
            serde_json::from_str::<Table>(&json).unwrap_err().to_string()
        };
        for (axes, values, expected) in [
            (r#"{"layer":[0,1]}"#, "[1]", "`values` holds 1 entries, but axis `layer` has 2 labels"),
            (r#"{"a":[0],"b":[0,1]}"#, "[[1,2,3]]", "`values[0]` holds 3 entries, but axis `b` has 2 labels"),
            (r#"{"a":[0],"b":[0]}"#, "[1]", "`values[0]` is a single value, but axis `b` has 1 labels"),
            (r#"{"a":[0]}"#, "[[1]]", "`values[0]` is a list, but the table's axes end above it"),
            (r#"{"a":[0],"a":[0]}"#, "[[1]]", "two axes of the table are named `a`"),
            (r#"{"0":[0]}"#, "[1]", "`0` cannot name an axis"),
            ("{}", "1", "a table has 0 axes"),
        ] {
            let message = read(axes, values);
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn construction_counts() {
        let message = table(&[2, 3], vec![0.; 5]).unwrap_err().to_string();
        assert_eq!(message, "the table has 5 values, but its axes [2, 3] need 6");
        assert!(matches!(table(&[1; 5], vec![0.]), Err(Error::Rank { found: 5 })));
        assert!(matches!(table(&[], vec![0.]), Err(Error::Rank { found: 0 })));
        assert!(table(&[2, 0], vec![]).is_ok());
    }

    #[test]
    fn get_follows_row_major_order() {
        let table = table(&[2, 3, 2], (0..12).map(f64::from).collect()).unwrap();
        assert_eq!(table.get(&[1, 2, 0]), Some(10.));
        assert_eq!(table.get(&[1, 3, 0]), None);
        assert_eq!(table.get(&[1, 2]), None);
    }
}
