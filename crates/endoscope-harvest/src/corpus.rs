//! Corpora: documents of a file, one after the other, never the whole file in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::ReadOptionsBuilder;
use parquet::record::{Field, Row, reader::RowIter};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The columns that are looked for where none is named.
const COLUMNS: [&str; 4] = ["text", "tokens", "input_ids", "messages"];
/// The longest line of a text or JSON lines that is read.
const LONGEST_LINE: u64 = 64 << 20;

/// What a document says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// A chat: a list of messages, as JSON.
    Chat(Value),
}

/// What all documents of a corpus are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Content::Text`].
    Text,
    /// [`Content::Tokens`].
    Tokens,
    /// [`Content::Chat`].
    Chat,
}

/// A document of a corpus.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its number, from 0.
    pub number: u64,
    /// What it says.
    pub content: Content,
    /// How much of the corpus has been read with it, from 0 to 1.
    pub through: f64,
}

/// A file of documents.
#[derive(Debug, Clone)]
pub struct Corpus {
    path: PathBuf,
    format: Format,
    /// The column that is read; none of a plain text.
    column: Option<String>,
    /// Unknown until the first document has been read.
    kind: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// A document a line.
    Text,
    /// A JSON object a line.
    JsonLines,
    Parquet,
}

impl Corpus {
    /// Opens a corpus by its name's ending, `.jsonl`, `.txt` or `.parquet`, and looks at its first document.
    ///
    /// `column` names the column that is read; without it, the file must have exactly one of `text`, `tokens`, `input_ids` and
    /// `messages`. Of a plain text each line that is not blank is a document.
    pub fn open(path: impl AsRef<Path>, column: Option<&str>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let wrong = |reason: String| Error::Corpus { path: path.clone(), reason };
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let format = match ending {
            "txt" => Format::Text,
            "jsonl" => Format::JsonLines,
            "parquet" => Format::Parquet,
            _ => return Err(wrong("its name ends in none of .jsonl, .txt and .parquet".into())),
        };
        if format == Format::Text && column.is_some() {
            return Err(wrong("a text has no columns; leave out --column".into()));
        }
        let there = match format {
            Format::Text => vec!["text".to_string()],
            Format::JsonLines => first_keys(&path)?,
            Format::Parquet => columns(&parquet(&path, 0)?.1),
        };
        let list = |names: &[String]| names.join(", ");
        let chosen = match column {
            Some(column) if there.iter().any(|name| name == column) => column.to_string(),
            Some(column) => return Err(wrong(format!("it has no column `{column}`; it has {}", list(&there)))),
            None => {
                let known: Vec<String> =
                    there.iter().filter(|name| COLUMNS.contains(&name.as_str())).cloned().collect();
                match known.as_slice() {
                    [one] => one.clone(),
                    [] => return Err(wrong(format!("say with --column what is read: it has {}", list(&there)))),
                    several => return Err(wrong(format!("say with --column which is read: {}", list(several)))),
                }
            }
        };
        let column = (format != Format::Text).then_some(chosen);
        let mut corpus = Self { path, format, column, kind: None };
        let first = corpus.documents(0)?.next();
        match first.transpose()? {
            Some(document) => corpus.kind = Some(document.content.kind()),
            None => return Err(Error::Corpus { path: corpus.path, reason: "it holds no document".into() }),
        }
        Ok(corpus)
    }

    /// What its documents are.
    pub fn kind(&self) -> Kind {
        self.kind.unwrap_or(Kind::Text)
    }

    /// The column that is read; none of a plain text.
    pub fn column(&self) -> Option<&str> {
        self.column.as_deref()
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The documents from number `from` on.
    pub fn documents(&self, from: u64) -> Result<impl Iterator<Item = Result<Document>> + use<>> {
        let mut read = match self.format {
            Format::Parquet => self.rows(from)?,
            _ => self.lines()?,
        };
        let corpus = self.clone();
        let mut number = read.first;
        let mut failed = false;
        Ok(std::iter::from_fn(move || {
            while !failed {
                let (content, through) = read.next.next()?;
                let content = content.and_then(|content| match number < from {
                    true => Ok(None),
                    false => content.document(&corpus).map(Some),
                });
                failed = content.is_err();
                number += 1;
                let numbered = |content| Document { number: number - 1, content, through };
                match content {
                    Ok(None) => {}
                    Ok(Some(content)) => return Some(Ok(numbered(content))),
                    Err(reason) => {
                        let path = corpus.path.clone();
                        return Some(Err(Error::Document { path, document: number - 1, reason }));
                    }
                }
            }
            None
        }))
    }

    /// The lines that are not blank, each with how much of the file has been read.
    fn lines(&self) -> Result<Raw> {
        let file = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        let all = file.metadata().map_err(Error::io("look at", &self.path))?.len().max(1);
        let (mut reader, mut read, format) = (BufReader::with_capacity(1 << 16, file), 0, self.format);
        let next = std::iter::from_fn(move || {
            loop {
                let mut line = Vec::new();
                let length = match reader.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut line) {
                    Ok(0) => return None,
                    Ok(length) => length as u64,
                    Err(error) => return Some((Err(error.to_string()), 0.)),
                };
                read += length;
                let through = read as f64 / all as f64;
                if length > LONGEST_LINE {
                    return Some((Err(format!("its line is longer than {LONGEST_LINE} bytes; cut it up")), through));
                }
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let line = String::from_utf8(line).map_err(|error| format!("it is not UTF-8: {error}"));
                let plain = |line: String| line.trim_end_matches(['\r', '\n']).to_string();
                return Some((
                    line.map(|line| if format == Format::Text { Raws::Text(plain(line)) } else { Raws::Json(line) }),
                    through,
                ));
            }
        });
        Ok(Raw { first: 0, next: Box::new(next) })
    }

    /// The rows of a Parquet file from the row group that holds number `from` on.
    fn rows(&self, from: u64) -> Result<Raw> {
        let (reader, schema) = parquet(&self.path, 0)?;
        let groups = reader.metadata().row_groups().iter().map(|group| group.num_rows().max(0) as u64);
        let (mut first, mut skip) = (0, 0);
        let all: u64 = groups.clone().sum();
        for rows in groups {
            if first + rows > from {
                break;
            }
            first += rows;
            skip += 1;
        }
        let (reader, _) = parquet(&self.path, skip)?;
        let wrong =
            |error: &dyn std::fmt::Display| Error::Corpus { path: self.path.clone(), reason: error.to_string() };
        let column = self.column.clone().unwrap_or_default();
        let fields = schema.get_fields().iter().filter(|field| field.name() == column).cloned().collect();
        let projection = Type::group_type_builder(schema.name()).with_fields(fields).build();
        let projection = projection.map_err(|error| wrong(&error))?;
        let mut rows = guarded(|| RowIter::from_file_into(Box::new(reader)).project(Some(projection)))
            .map_err(|reason| wrong(&reason))?;
        let mut read = first;
        let next = std::iter::from_fn(move || {
            let row = guarded(|| rows.next().transpose()).transpose()?;
            read += 1;
            Some((row.map(|row| Raws::Value(value_of_row(&row))), read as f64 / all.max(1) as f64))
        });
        Ok(Raw { first, next: Box::new(next) })
    }
}

/// Documents as they stand in the file, from some number on.
struct Raw {
    first: u64,
    next: Box<dyn Iterator<Item = (std::result::Result<Raws, String>, f64)>>,
}

/// A document as it stands in the file; it is parsed only if it is wanted.
enum Raws {
    Text(String),
    Json(String),
    Value(Value),
}

impl Raws {
    fn document(self, corpus: &Corpus) -> std::result::Result<Content, String> {
        let row: Value = match self {
            Self::Text(text) => return Ok(Content::Text(text)),
            Self::Json(line) => serde_json::from_str(&line).map_err(|error| error.to_string())?,
            Self::Value(value) => value,
        };
        let column = corpus.column.as_deref().unwrap_or("text");
        let Value::Object(mut row) = row else { return Err("it is no JSON object".into()) };
        let content = match row.remove(column) {
            None | Some(Value::Null) => return Err(format!("it has no `{column}`")),
            Some(Value::String(text)) => Content::Text(text),
            Some(Value::Array(list)) if list.iter().any(Value::is_object) => Content::Chat(Value::Array(list)),
            Some(Value::Array(list)) => {
                let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
                let ids =
                    list.iter().map(|value| id(value).ok_or_else(|| format!("{value} in `{column}` is no token id")));
                Content::Tokens(ids.collect::<std::result::Result<_, _>>()?)
            }
            Some(_) => return Err(format!("its `{column}` is neither a text, nor token ids, nor a list of messages")),
        };
        // An empty list says nothing of what it is a list of.
        let empty = matches!(&content, Content::Tokens(ids) if ids.is_empty());
        match empty || corpus.kind.is_none_or(|kind| kind == content.kind()) {
            true => Ok(content),
            false => Err(format!("its `{column}` is of another kind than that of the first document")),
        }
    }
}

impl Content {
    fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Tokens(_) => Kind::Tokens,
            Self::Chat(_) => Kind::Chat,
        }
    }
}

/// The keys of the first line that is not blank.
fn first_keys(path: &Path) -> Result<Vec<String>> {
    let corpus = Corpus { path: path.into(), format: Format::JsonLines, column: None, kind: None };
    match corpus.lines()?.next.next() {
        None => Err(Error::Corpus { path: path.into(), reason: "it holds no document".into() }),
        Some((Ok(Raws::Json(line)), _)) => {
            let keys = serde_json::from_str::<Map<String, Value>>(&line);
            let keys = keys.map_err(|error| error.to_string());
            let keys = keys.map(|keys| keys.into_iter().map(|(key, _)| key).collect());
            keys.map_err(|reason| Error::Document { path: path.into(), document: 0, reason })
        }
        Some((Err(reason), _)) => Err(Error::Document { path: path.into(), document: 0, reason }),
        Some(_) => Ok(Vec::new()),
    }
}

fn columns(schema: &Type) -> Vec<String> {
    schema.get_fields().iter().map(|field| field.name().to_string()).collect()
}

/// A Parquet file without its first `skip` row groups, and its schema.
fn parquet(path: &Path, skip: usize) -> Result<(SerializedFileReader<File>, Arc<Type>)> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let options = ReadOptionsBuilder::new().with_predicate(Box::new(move |_, group| group >= skip)).build();
    let reader = guarded(|| SerializedFileReader::new_with_options(file, options));
    let reader = reader.map_err(|reason| Error::Corpus { path: path.into(), reason })?;
    let schema = reader.metadata().file_metadata().schema_descr().root_schema_ptr();
    Ok((reader, schema))
}

/// Calls the parquet library, which panics on some broken files.
fn guarded<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    match std::panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the parquet library failed on it: a part of the file does not fit the others".into()),
    }
}

fn value_of_row(row: &Row) -> Value {
    Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), value_of(field))).collect())
}

/// A field as JSON; of numbers only integers can be used.
fn value_of(field: &Field) -> Value {
    match field {
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Str(value) => value.clone().into(),
        // Text without its logical type, as older writers leave it.
        Field::Bytes(value) => value.as_utf8().map_or(Value::Null, Into::into),
        Field::Group(row) => value_of_row(row),
        Field::ListInternal(list) => list.elements().iter().map(value_of).collect(),
        _ => Value::Null,
    }
}
