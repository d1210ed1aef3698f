//! Numbers with named, labelled axes: what every figure of a report is drawn from.

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeSeq};

use crate::{Error, Label, Result};

/// The axes of a table, from the outermost to the innermost, each with its labels.
pub type Axes = IndexMap<String, Vec<Label>>;

/// Numbers over one to four labelled axes; a number may be missing.
///
/// In JSON: `{"description":…, "axes":{"layer":[0,1],"position":["<s>","Once"]}, "values":[[0.5,null],[1.0,2.0]]}`,
/// axes in order and values nested in that order. Where cells have [texts](Table::with_texts), `"texts"` is nested likewise.
///
/// The axes and values are read through [`axes`](Table::axes) and [`values`](Table::values), because they must fit
/// each other: as many values as the axes' lengths multiply to, each finite or missing.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What the numbers are, with their unit, in one sentence.
    pub description: String,
    axes: Axes,
    values: Vec<Option<f64>>,
    texts: Option<Vec<String>>,
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
        Ok(Table { description: description.into(), axes: checked, values, texts: None })
    }

    /// What heat maps show in each cell in the place of its number, which still gives the colour: a token, say. In row-major
    /// order, as many as there are values.
    pub fn with_texts(mut self, texts: Vec<String>) -> Result<Table> {
        if texts.len() != self.values.len() {
            return Err(Error::Count { found: texts.len(), shape: self.shape(), needed: Some(self.values.len()) });
        }
        self.texts = Some(texts);
        Ok(self)
    }

    /// The texts of the cells, if they have some.
    pub fn texts(&self) -> Option<&[String]> {
        self.texts.as_deref()
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
            values: Block<'a, Option<f64>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            texts: Option<Block<'a, String>>,
        }
        let shape = self.shape();
        let values = Block { shape: &shape, values: &self.values };
        let texts = self.texts.as_ref().map(|texts| Block { shape: &shape, values: texts });
        Json { description: &self.description, axes: &self.axes, values, texts }.serialize(serializer)
    }
}

/// A part of the values, nested by `shape` when written.
struct Block<'a, T> {
    shape: &'a [usize],
    values: &'a [T],
}

impl<T: Serialize> Serialize for Block<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some((&length, inner)) = self.shape.split_first() else {
            return self.values.first().serialize(serializer);
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
            texts: Option<Nested>,
        }
        let json = Json::deserialize(deserializer)?;
        let mut values = Vec::new();
        flatten(&json.values, &json.axes, "values".into(), &mut |leaf, place| match leaf {
            Nested::Number(number) => {
                values.push(*number);
                Ok(())
            }
            _ => Err(Error::NotANumber { place }),
        })
        .map_err(de::Error::custom)?;
        let mut texts = Vec::new();
        if let Some(nested) = &json.texts {
            flatten(nested, &json.axes, "texts".into(), &mut |leaf, place| match leaf {
                Nested::Text(text) => {
                    texts.push(text.clone());
                    Ok(())
                }
                _ => Err(Error::NotAText { place }),
            })
            .map_err(de::Error::custom)?;
        }
        let table = Table::with_missing(json.description, json.axes, values).map_err(de::Error::custom)?;
        match json.texts {
            Some(_) => table.with_texts(texts).map_err(de::Error::custom),
            None => Ok(table),
        }
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

/// Values and texts as JSON nests them.
enum Nested {
    Number(Option<f64>),
    Text(String),
    List(Vec<Nested>),
}

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Nested, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = Nested;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, null, a text, or a list of them")
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
            fn visit_str<E>(self, text: &str) -> Result<Nested, E> {
                Ok(Nested::Text(text.to_owned()))
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

/// Hands over the leaves in row-major order, each with its place, checking each list against its axis.
fn flatten(
    from: &Nested,
    axes: &[(String, Vec<Label>)],
    place: String,
    leaf: &mut dyn FnMut(&Nested, String) -> Result<()>,
) -> Result<()> {
    match (from, axes.split_first()) {
        (Nested::List(_), None) => return Err(Error::TooDeep { place }),
        (found, None) => leaf(found, place)?,
        (Nested::List(list), Some(((_, labels), inner))) if list.len() == labels.len() => {
            for (index, entry) in list.iter().enumerate() {
                flatten(entry, inner, format!("{place}[{index}]"), leaf)?;
            }
        }
        (other, Some(((axis, labels), _))) => {
            let problem = match other {
                Nested::List(list) => format!("holds {} entries", list.len()),
                Nested::Number(_) | Nested::Text(_) => "is a single value".into(),
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
    fn texts_are_nested_like_values() {
        let axes = [("layer", labels(0..2)), ("position", labels(["<s>"]))];
        let table = Table::new("p", axes, vec![0.5, f64::NAN]).unwrap();
        let table = table.with_texts(vec![" a".into(), "b".into()]).unwrap();
        let json = r#"{"description":"p","axes":{"layer":[0,1],"position":["<s>"]},"values":[[0.5],[null]],"texts":[[" a"],["b"]]}"#;
        assert_eq!(serde_json::to_string(&table).unwrap(), json);
        assert_eq!(serde_json::from_str::<Table>(json).unwrap(), table);
        for (texts, expected) in [
            (r#"[["a"]]"#, "`texts` holds 1 entries, but axis `layer` has 2 labels"),
            (r#"[["a"],[1]]"#, "`texts[1][0]` is not a text"),
            (r#"[["a"],"b"]"#, "`texts[1]` is a single value"),
        ] {
            let json = json.replace(r#"[[" a"],["b"]]"#, texts);
            let message = serde_json::from_str::<Table>(&json).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let json = json.replace("[[0.5],[null]]", r#"[[0.5],["x"]]"#);
        assert!(
            serde_json::from_str::<Table>(&json).unwrap_err().to_string().contains("`values[1][0]` is not a number")
        );
        assert!(table.with_texts(vec![]).is_err());
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
