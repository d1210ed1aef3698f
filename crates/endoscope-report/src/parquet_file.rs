//! Tables as Parquet in long form: one row a cell, one column an axis.

use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};

use crate::{Error, Label, Result, Table, write_atomically};

/// Rows to a row group.
const GROUP: usize = 1 << 20;

/// Writes a table as a Parquet file in long form.
///
/// One row per cell, in row-major order; the table's description is in the file's metadata. Columns:
///
/// - for an axis whose labels are all numbers: `AXIS` (int64);
/// - for any other axis: `AXIS` (its label as text) and `AXIS_index` (int64, from 0), since labels may repeat;
/// - `value` (double, null where missing);
/// - `text` (the cell's text), where cells have texts.
pub fn write_parquet(table: &Table, path: impl AsRef<Path>) -> Result<()> {
    let bytes = encode(table)?;
    write_atomically(path, |file| file.write_all(&bytes))
}

/// One column of the long form: what a label at an index of its axis becomes.
enum Column<'a> {
    Number { axis: usize, labels: &'a [Label] },
    Text { axis: usize, labels: &'a [Label] },
    Index { axis: usize },
    Value,
    Cell { texts: &'a [String] },
}

/// The bytes of the file.
pub(crate) fn encode(table: &Table) -> Result<Vec<u8>> {
    let columns = columns(table)?;
    let fields = columns.iter().map(|(name, column)| field(name, column)).collect::<Result<_, ParquetError>>()?;
    let schema = Arc::new(Type::group_type_builder("table").with_fields(fields).build()?);
    let description = KeyValue::new("description".to_owned(), table.description.clone());
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_key_value_metadata(Some(vec![description]))
        .build();
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties))?;
    let shape = table.shape();
    for (group_index, values) in table.values().chunks(GROUP).enumerate() {
        let mut group = file.next_row_group()?;
        for (_, column) in &columns {
            write_column(&mut group, column, &shape, group_index * GROUP, values)?;
        }
        group.close()?;
    }
    file.close()?;
    Ok(bytes)
}

fn columns(table: &Table) -> Result<Vec<(String, Column<'_>)>> {
    let mut columns = Vec::new();
    for (axis, (name, labels)) in table.axes().iter().enumerate() {
        if labels.iter().all(|label| matches!(label, Label::Index(_))) {
            columns.push((name.clone(), Column::Number { axis, labels }));
        } else {
            columns.push((name.clone(), Column::Text { axis, labels }));
            columns.push((format!("{name}_index"), Column::Index { axis }));
        }
    }
    columns.push(("value".to_owned(), Column::Value));
    columns.extend(table.texts().map(|texts| ("text".to_owned(), Column::Cell { texts })));
    for (index, (name, _)) in columns.iter().enumerate() {
        if columns.iter().take(index).any(|(earlier, _)| earlier == name) {
            return Err(Error::RepeatedColumn { name: name.clone() });
        }
    }
    Ok(columns)
}

fn field(name: &str, column: &Column<'_>) -> Result<TypePtr, ParquetError> {
    let (physical, repetition) = match column {
        Column::Number { .. } | Column::Index { .. } => (Physical::INT64, Repetition::REQUIRED),
        Column::Text { .. } | Column::Cell { .. } => (Physical::BYTE_ARRAY, Repetition::REQUIRED),
        Column::Value => (Physical::DOUBLE, Repetition::OPTIONAL),
    };
    let text = matches!(column, Column::Text { .. } | Column::Cell { .. }).then_some(LogicalType::String);
    let field = Type::primitive_type_builder(name, physical).with_repetition(repetition).with_logical_type(text);
    Ok(Arc::new(field.build()?))
}

/// Writes the rows from `first` on, as many as there are `values`.
fn write_column<W: std::io::Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    column: &Column<'_>,
    shape: &[usize],
    first: usize,
    values: &[Option<f64>],
) -> Result<(), ParquetError> {
    let Some(mut writer) = group.next_column()? else {
        return Err(ParquetError::General("the schema has fewer columns than the table".into()));
    };
    // The index on `axis` of each row: the axes after it run faster.
    let indices = |axis: usize| {
        let faster: usize = shape.iter().skip(axis + 1).product();
        let length = shape.get(axis).copied().unwrap_or(1);
        (first..first + values.len()).map(move |row| row / faster % length)
    };
    match column {
        Column::Number { axis, labels } => {
            let numbers = indices(*axis).filter_map(|index| match labels.get(index) {
                Some(Label::Index(number)) => Some(*number),
                _ => None,
            });
            writer.typed::<Int64Type>().write_batch(&numbers.collect::<Vec<_>>(), None, None)?;
        }
        Column::Text { axis, labels } => {
            let texts: Vec<ByteArray> = labels.iter().map(|label| label.to_string().as_str().into()).collect();
            let cells: Vec<ByteArray> = indices(*axis).filter_map(|index| texts.get(index).cloned()).collect();
            writer.typed::<ByteArrayType>().write_batch(&cells, None, None)?;
        }
        Column::Index { axis } => {
            let cells: Vec<i64> = indices(*axis).map(|index| index as i64).collect();
            writer.typed::<Int64Type>().write_batch(&cells, None, None)?;
        }
        Column::Value => {
            let present: Vec<f64> = values.iter().flatten().copied().collect();
            let defined: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
            writer.typed::<DoubleType>().write_batch(&present, Some(&defined), None)?;
        }
        Column::Cell { texts } => {
            let cells = texts.iter().skip(first).take(values.len());
            let cells: Vec<ByteArray> = cells.map(|text| text.as_str().into()).collect();
            writer.typed::<ByteArrayType>().write_batch(&cells, None, None)?;
        }
    }
    writer.close()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;
    use crate::labels;

    #[test]
    fn texts_are_a_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let table = Table::new("p", [("layer", labels(0..2))], vec![0.5, 1.]).unwrap();
        write_parquet(&table.with_texts(vec!["a".into(), "b".into()]).unwrap(), &path).unwrap();
        assert!(rows(&path)[1].contains(r#"text: "b""#), "{:?}", rows(&path));
    }

    /// Every row of the file, as text.
    fn rows(path: &Path) -> Vec<String> {
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect()
    }

    #[test]
    fn cells_become_rows_that_the_reader_finds_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scores.parquet");
        let axes = [("layer", labels([3, 7])), ("position", labels(["<s>", " a", " a"]))];
        let values = vec![1., 2., f64::NAN, 4., 5., -0.5];
        write_parquet(&Table::new("scores in logits", axes, values).unwrap(), &path).unwrap();
        assert_eq!(
            rows(&path),
            [
                r#"{layer: 3, position: "<s>", position_index: 0, value: 1.0}"#,
                r#"{layer: 3, position: " a", position_index: 1, value: 2.0}"#,
                r#"{layer: 3, position: " a", position_index: 2, value: null}"#,
                r#"{layer: 7, position: "<s>", position_index: 0, value: 4.0}"#,
                r#"{layer: 7, position: " a", position_index: 1, value: 5.0}"#,
                r#"{layer: 7, position: " a", position_index: 2, value: -5E-1}"#,
            ]
        );
        let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
        assert_eq!(metadata[0].value.as_deref(), Some("scores in logits"));
    }

    #[test]
    fn large_tables_continue_across_row_groups() {
        let axes = [("a", labels(0..2)), ("b", labels(0..GROUP / 2 + 5))];
        let table = Table::new("", axes, (0..GROUP + 10).map(|row| row as f64).collect()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("large.parquet");
        write_parquet(&table, &path).unwrap();
        let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        let last = reader.get_row_group(1).unwrap().get_row_iter(None).unwrap().last().unwrap().unwrap();
        assert_eq!(last.to_string(), format!("{{a: 1, b: {}, value: {}.0}}", GROUP / 2 + 4, GROUP + 9));
    }

    #[test]
    fn empty_tables_are_files_and_name_clashes_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("empty.parquet");
        write_parquet(&Table::new("", [("layer", labels(0..0))], vec![]).unwrap(), &path).unwrap();
        assert!(rows(&path).is_empty());
        let clash = Table::new("", [("value", labels(0..1))], vec![0.]).unwrap();
        assert!(matches!(write_parquet(&clash, &path), Err(Error::RepeatedColumn { name }) if name == "value"));
    }

    #[test]
    fn the_same_table_gives_the_same_bytes() {
        let table = || Table::new("d", [("task", labels(["a", "b"]))], vec![0.1, 0.2]).unwrap();
        assert_eq!(encode(&table()).unwrap(), encode(&table()).unwrap());
    }
}
