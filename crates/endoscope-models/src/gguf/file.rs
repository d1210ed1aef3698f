//! The container: metadata by key, and where each tensor lies. Nothing that a file says is believed before it is
//! checked against the file's length, so memory follows the size of the file, not the numbers written in it.
//!
//! candle's own reader was looked at: it divides by an alignment of 0, multiplies sizes without looking for overflow,
//! keeps the last of two entries of one name, and does not see tensors that overlap.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Take};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::blocks::Encoding;
use crate::error::{Error, Result};
use crate::numbers::read_exact_at;
use crate::weights::Problem;

/// The longest header, counted over keys, values and tensor names: far more than any vocabulary needs.
const LONGEST_HEADER: u64 = 1 << 28;

/// ggml's own limit.
const MOST_DIMENSIONS: u32 = 4;

/// How many bytes are read at once, at most.
const PIECE: usize = 1 << 18;

/// A metadata value; numbers by their kind, whatever width they were written in.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// A switch.
    Switch(bool),
    /// A text.
    Text(String),
    /// A list of whole numbers (or switches, as 0 and 1).
    Integers(Vec<i64>),
    /// A list of numbers.
    Floats(Vec<f64>),
    /// A list of texts.
    Texts(Vec<String>),
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Slowest axis first, as in PyTorch (the file lists the fastest first).
    pub shape: Vec<usize>,
    /// How its numbers are written.
    pub encoding: Encoding,
    /// Its bytes in the file.
    pub bytes: Range<u64>,
}

/// An open GGUF file of version 2 or 3, little endian.
#[derive(Debug)]
pub struct GgufFile {
    /// Where it lies.
    pub path: PathBuf,
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// By name.
    pub tensors: BTreeMap<String, TensorInfo>,
    file: File,
}

impl GgufFile {
    /// Reads and checks the header; tensors are read later, one by one.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|error| Error::read(path, error))?;
        // Opening a pipe would wait for a writer for ever.
        if !kind.is_file() {
            return Err(Error::read(path, "it is not a regular file"));
        }
        let file = File::open(path).map_err(|error| Error::read(path, error))?;
        let length = kind.len();
        let header = Header::read(BufReader::new(&file).take(length.min(LONGEST_HEADER)), length);
        let (metadata, tensors) = header.map_err(|reason| {
            Error::read(path, format!("it is not a whole GGUF file ({reason}); it has {length} bytes"))
        })?;
        Ok(Self { path: path.to_path_buf(), metadata, tensors, file })
    }

    /// Fills `into` with the numbers of a tensor from number `first` on, as f32, read piece by piece: whole blocks. Threads
    /// do not disturb each other.
    pub fn read(&self, tensor: &TensorInfo, first: usize, into: &mut [f32]) -> Problem<()> {
        let Encoding { block, bytes, .. } = tensor.encoding;
        let end = first + into.len();
        if !first.is_multiple_of(block) || !end.is_multiple_of(block) {
            return Err(format!("numbers {first} to {end} are no whole blocks of {block}"));
        }
        let mut start = tensor.bytes.start + (first / block * bytes) as u64;
        if start + (into.len() / block * bytes) as u64 > tensor.bytes.end {
            return Err(format!("it has no numbers up to {end}"));
        }
        let piece = PIECE / bytes * block;
        let mut buffer = vec![0; piece.min(into.len()) / block * bytes];
        for numbers in into.chunks_mut(piece) {
            let blocks = &mut buffer[..numbers.len() / block * bytes];
            read_exact_at(&self.file, blocks, start).map_err(|error| error.to_string())?;
            numbers.copy_from_slice(&tensor.encoding.numbers(blocks).map_err(|error| error.to_string())?);
            start += blocks.len() as u64;
        }
        Ok(())
    }
}

/// The header, read from front to back.
struct Header<'a> {
    reader: Take<BufReader<&'a File>>,
    file_length: u64,
    limit: u64,
}

impl<'a> Header<'a> {
    fn read(
        reader: Take<BufReader<&'a File>>,
        file_length: u64,
    ) -> Problem<(BTreeMap<String, Value>, BTreeMap<String, TensorInfo>)> {
        let limit = reader.limit();
        let mut header = Self { reader, file_length, limit };
        if header.array::<4>("the magic number")? != *b"GGUF" {
            return Err("it does not begin with GGUF".into());
        }
        match header.u32("the version")? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err("it is written big endian; convert it".into());
            }
            version => return Err(format!("its version is {version}; 2 and 3 are supported")),
        }
        let tensor_count = header.u64("the number of tensors")?;
        let key_count = header.u64("the number of keys")?;
        // The least that an entry takes: lengths, types, one byte of value; an offset.
        header.fits(tensor_count, 24, "tensors")?;
        header.fits(key_count, 13, "keys")?;
        let mut metadata = BTreeMap::new();
        for _ in 0..key_count {
            let key = header.name("a key")?;
            let value = header.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("the key `{key}` is there twice"));
            }
        }
        let mut infos = Vec::new();
        for _ in 0..tensor_count {
            infos.push(header.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(&Value::Integer(alignment))
                if (1..1 << 20).contains(&alignment) && alignment & (alignment - 1) == 0 =>
            {
                alignment as u64
            }
            Some(other) => return Err(format!("`general.alignment` is {other:?}; a power of two is needed")),
        };
        let data = header.position().next_multiple_of(alignment);
        let tensors = placed(infos, data, alignment, file_length)?;
        Ok((metadata, tensors))
    }

    fn position(&self) -> u64 {
        self.limit - self.reader.limit()
    }

    /// Whether `count` entries of at least `least` bytes can follow.
    fn fits(&self, count: u64, least: u64, what: &str) -> Problem<()> {
        match count.checked_mul(least).is_some_and(|bytes| bytes <= self.reader.limit()) {
            true => Ok(()),
            false if self.limit < self.file_length => Err(format!(
                "{count} {what} at byte {}; a header of more than {LONGEST_HEADER} bytes is not read",
                self.position()
            )),
            false => Err(format!("{count} {what} at byte {} cannot fit into it", self.position())),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Problem<[u8; N]> {
        let mut bytes = [0; N];
        let at = self.position();
        self.reader.read_exact(&mut bytes).map_err(|_| format!("it ends within {what} at byte {at}"))?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Problem<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Problem<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn bytes(&mut self, what: &str) -> Problem<Vec<u8>> {
        let length = self.u64(what)?;
        self.fits(length, 1, &format!("bytes of {what}"))?;
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(|error| format!("{what} cannot be read: {error}"))?;
        Ok(bytes)
    }

    fn name(&mut self, what: &str) -> Problem<String> {
        let at = self.position();
        String::from_utf8(self.bytes(what)?).map_err(|_| format!("{what} at byte {at} is not UTF-8"))
    }

    /// A text that is only shown, or a token: what is not UTF-8 in it is replaced, as files in circulation need it.
    fn text(&mut self, what: &str) -> Problem<String> {
        Ok(String::from_utf8_lossy(&self.bytes(what)?).into_owned())
    }

    fn value(&mut self, key: &str) -> Problem<Value> {
        Ok(match self.u32(key)? {
            TEXT => Value::Text(self.text(key)?),
            SWITCH => match self.array::<1>(key)? {
                [byte @ (0 | 1)] => Value::Switch(byte == 1),
                [byte] => return Err(format!("`{key}` is a switch with the value {byte}")),
            },
            LIST => self.list(key)?,
            kind @ (F32 | F64) => Value::Float(self.float(kind, key)?),
            kind => Value::Integer(self.integer(kind, key)?),
        })
    }

    fn list(&mut self, key: &str) -> Problem<Value> {
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        self.fits(count, least_bytes(kind, key)?, &format!("values of `{key}`"))?;
        Ok(match kind {
            TEXT => Value::Texts((0..count).map(|_| self.text(key)).collect::<Problem<_>>()?),
            F32 | F64 => Value::Floats((0..count).map(|_| self.float(kind, key)).collect::<Problem<_>>()?),
            _ => Value::Integers((0..count).map(|_| self.integer(kind, key)).collect::<Problem<_>>()?),
        })
    }

    fn float(&mut self, kind: u32, key: &str) -> Problem<f64> {
        Ok(match kind {
            F32 => f64::from(f32::from_le_bytes(self.array(key)?)),
            _ => f64::from_le_bytes(self.array(key)?),
        })
    }

    fn integer(&mut self, kind: u32, key: &str) -> Problem<i64> {
        Ok(match kind {
            U8 | SWITCH => i64::from(u8::from_le_bytes(self.array(key)?)),
            I8 => i64::from(i8::from_le_bytes(self.array(key)?)),
            U16 => i64::from(u16::from_le_bytes(self.array(key)?)),
            I16 => i64::from(i16::from_le_bytes(self.array(key)?)),
            U32 => i64::from(u32::from_le_bytes(self.array(key)?)),
            I32 => i64::from(i32::from_le_bytes(self.array(key)?)),
            I64 => i64::from_le_bytes(self.array(key)?),
            U64 => {
                let number = u64::from_le_bytes(self.array(key)?);
                i64::try_from(number).map_err(|_| format!("`{key}` holds {number}, which is beyond every use"))?
            }
            _ => return Err(unknown_kind(kind, key)),
        })
    }

    fn tensor(&mut self) -> Problem<(String, Vec<usize>, Encoding, u64)> {
        let name = self.name("a tensor's name")?;
        let dimensions = self.u32(&name)?;
        if dimensions == 0 || dimensions > MOST_DIMENSIONS {
            return Err(format!("`{name}` has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are possible"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(&name)?;
            shape.insert(0, usize::try_from(size).map_err(|_| format!("`{name}` has a dimension of {size}"))?);
        }
        let id = self.u32(&name)?;
        let encoding = Encoding::of(id)
            .ok_or_else(|| format!("`{name}` has the unknown type {id}; supported are {}", Encoding::supported()))?;
        Ok((name.clone(), shape, encoding, self.u64(&name)?))
    }
}

/// Types of values.
const U8: u32 = 0;
const I8: u32 = 1;
const U16: u32 = 2;
const I16: u32 = 3;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const SWITCH: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;

/// What a value of a list takes at least.
fn least_bytes(kind: u32, key: &str) -> Problem<u64> {
    match kind {
        U8 | I8 | SWITCH => Ok(1),
        U16 | I16 => Ok(2),
        U32 | I32 | F32 => Ok(4),
        TEXT | U64 | I64 | F64 => Ok(8),
        LIST => Err(format!("`{key}` is a list of lists, which no known key is")),
        _ => Err(unknown_kind(kind, key)),
    }
}

fn unknown_kind(kind: u32, key: &str) -> String {
    format!("`{key}` has the unknown value type {kind}")
}

/// The tensors by name, each with its bytes in the file: one after the other, aligned, the last one at the file's end.
fn placed(
    mut infos: Vec<(String, Vec<usize>, Encoding, u64)>,
    data: u64,
    alignment: u64,
    file_length: u64,
) -> Problem<BTreeMap<String, TensorInfo>> {
    infos.sort_by_key(|(.., offset)| *offset);
    let mut tensors = BTreeMap::new();
    let mut end = 0u64;
    for (name, shape, encoding, offset) in infos {
        let beyond = || format!("`{name}` of shape {shape:?} as {} is larger than every file", encoding.name);
        let count = shape.iter().try_fold(1u64, |count, &size| count.checked_mul(size as u64)).ok_or_else(beyond)?;
        if !shape.last().is_some_and(|&row| row.is_multiple_of(encoding.block)) {
            let block = encoding.block;
            return Err(format!("rows of `{name}`, shape {shape:?}, are no whole {} blocks of {block}", encoding.name));
        }
        let size = encoding.bytes_of(count).ok_or_else(beyond)?;
        let next = end.checked_next_multiple_of(alignment).ok_or_else(beyond)?;
        if offset != next {
            return Err(format!("`{name}` should start at byte {next} of the data, and starts at {offset}"));
        }
        end = offset.checked_add(size).ok_or_else(beyond)?;
        let last = data.checked_add(end).ok_or_else(beyond)?;
        if last > file_length {
            return Err(format!("`{name}` should end at byte {last}"));
        }
        let info = TensorInfo { shape, encoding, bytes: data + offset..last };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("the tensor `{name}` is there twice"));
        }
    }
    let end = data.saturating_add(end);
    match file_length.saturating_sub(end) < alignment {
        true => Ok(tensors),
        false => Err(format!("its tensors end at byte {end}")),
    }
}
