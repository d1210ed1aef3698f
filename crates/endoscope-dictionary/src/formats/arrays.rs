//! The arrays of a file by their names, each read when it is taken and none taken unseen.
//!
//! Whatever holds them, safetensors or a zip file, they lie in it as plain numbers, so that all formats share one table of
//! places. Every place is checked against the file's length before anything is read or allocated.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, View, tensor::Metadata};

use crate::error::{Error, Result};
use crate::matrix::Matrix;

/// More than any header of a dictionary needs.
const LONGEST_HEADER: u64 = 16 << 20;
/// How many numbers are converted at once.
const PIECE: usize = 1 << 16;

/// The arrays of a file that were not yet taken.
#[derive(Debug)]
pub(crate) struct Arrays {
    path: PathBuf,
    file: File,
    places: BTreeMap<String, Place>,
}

/// Where an array lies, and as what.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// How many numbers lie between neighbours along each axis.
    pub strides: Vec<usize>,
    /// The byte where its first number begins.
    pub start: u64,
}

impl Place {
    /// One that is stored row after row.
    pub fn contiguous(dtype: Dtype, shape: Vec<usize>, start: u64) -> Self {
        let mut strides = vec![1usize; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
        }
        Self { dtype, shape, strides, start }
    }

    fn is_contiguous(&self) -> bool {
        let plain = Self::contiguous(self.dtype, self.shape.clone(), self.start);
        // The stride along an axis of one is never used.
        (0..self.shape.len()).all(|axis| self.shape[axis] == 1 || self.strides[axis] == plain.strides[axis])
    }

    fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))
    }

    /// The byte after its last number; none if there is no such number, or none of its dtype.
    pub fn end(&self) -> Option<u64> {
        (self.span()? as u64).checked_mul(width(self.dtype)?)?.checked_add(self.start)
    }

    /// How many numbers lie between its first and its last, both counted.
    fn span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let steps = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(0usize, |sum, (&size, &stride)| sum.checked_add((size - 1).checked_mul(stride)?));
        steps?.checked_add(1)
    }
}

impl Arrays {
    /// Of a file whose places are known; they are checked here.
    pub fn new(path: &Path, file: File, places: BTreeMap<String, Place>) -> Result<Self> {
        let length = file.metadata().map_err(|error| Error::file(path, error))?.len();
        for (name, place) in &places {
            let width = width(place.dtype).ok_or_else(|| {
                let reason = format!("`{name}` is stored as {:?}; convert it to F32, F16 or BF16 first", place.dtype);
                Error::file(path, reason)
            })?;
            let bytes = place.count().and_then(|count| (count as u64).checked_mul(width));
            if place.end().is_none_or(|end| end > length) || bytes.is_none_or(|bytes| bytes > length) {
                let reason = format!(
                    "it has {length} bytes, too few for `{name}` of shape {:?} from byte {} on: it is cut short or not whole",
                    place.shape, place.start
                );
                return Err(Error::file(path, reason));
            }
        }
        Ok(Self { path: path.to_path_buf(), file, places })
    }

    /// Of a safetensors file.
    pub fn safetensors(path: &Path) -> Result<Self> {
        let fail = |reason: String| Error::file(path, format!("it is not a whole safetensors file: {reason}"));
        let mut file = File::open(path).map_err(|error| Error::file(path, error))?;
        let length = file.metadata().map_err(|error| Error::file(path, error))?.len();
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(|error| fail(error.to_string()))?;
        let header = u64::from_le_bytes(start);
        if header > length.saturating_sub(8).min(LONGEST_HEADER) {
            return Err(fail(format!("its header should have {header} bytes, the file has {length}")));
        }
        let mut bytes = vec![0; header as usize];
        file.read_exact(&mut bytes).map_err(|error| fail(error.to_string()))?;
        let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|error| fail(error.to_string()))?;
        let mut places = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let start = (8 + header).checked_add(info.data_offsets.0 as u64);
            let start = start.ok_or_else(|| fail(format!("`{name}` lies beyond every file")))?;
            places.insert(name, Place::contiguous(info.dtype, info.shape.clone(), start));
        }
        Self::new(path, file, places)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether an array of this name is still there.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The shape of an array that is still there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.places.get(name).map(|place| place.shape.as_slice())
    }

    /// The names that are still there.
    pub fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    /// Whichever of these names is there.
    pub fn first<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        names.iter().copied().find(|name| self.has(name))
    }

    /// An array with its shape.
    pub fn take(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let Some(place) = self.places.remove(name) else {
            let there = if self.places.is_empty() { "none".into() } else { self.names().join(", ") };
            return Err(self.fail(format!("it has no array `{name}`; of those not yet read it has {there}")));
        };
        let values = self.read(&place).map_err(|error| Error::file(&self.path, format!("`{name}`: {error}")))?;
        Ok((place.shape, values))
    }

    /// An array of two axes.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix> {
        let (shape, values) = self.take(name)?;
        match shape[..] {
            [rows, columns] => Matrix::new(rows, columns, values),
            _ => Err(self.fail(format!("`{name}` has shape {shape:?} and should be a matrix"))),
        }
    }

    /// An array of one axis.
    pub fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        let (shape, values) = self.take(name)?;
        match shape.len() {
            1 => Ok(values),
            _ => Err(self.fail(format!("`{name}` has shape {shape:?} and should be a vector"))),
        }
    }

    /// One number, whatever axes of one it has.
    pub fn number(&mut self, name: &str) -> Result<f32> {
        let (shape, values) = self.take(name)?;
        match values[..] {
            [number] => Ok(number),
            _ => Err(self.fail(format!("`{name}` has shape {shape:?} and should be one number"))),
        }
    }

    /// A vector, or one number that stands for all of `length`.
    pub fn vector_or_number(&mut self, name: &str, length: usize) -> Result<Vec<f32>> {
        match self.shape(name) {
            Some([]) => Ok(vec![self.number(name)?; length]),
            _ => self.vector(name),
        }
    }

    /// Leaves out an array that is not needed.
    pub fn ignore(&mut self, name: &str) {
        self.places.remove(name);
    }

    /// Errors if an array was not taken: it could change results.
    pub fn nothing_left(&self) -> Result<()> {
        match self.places.is_empty() {
            true => Ok(()),
            false => Err(self.fail(format!("it holds what is not understood: {}", self.names().join(", ")))),
        }
    }

    fn fail(&self, reason: String) -> Error {
        Error::file(&self.path, reason)
    }

    fn read(&mut self, place: &Place) -> io::Result<Vec<f32>> {
        if place.is_contiguous() {
            return read(&mut self.file, place.dtype, place.start, place.count().unwrap_or(0));
        }
        let span = read(&mut self.file, place.dtype, place.start, place.span().unwrap_or(0))?;
        let mut values = Vec::with_capacity(place.count().unwrap_or(0));
        let mut index = vec![0usize; place.shape.len()];
        for _ in 0..place.count().unwrap_or(0) {
            values.push(span[index.iter().zip(&place.strides).map(|(at, stride)| at * stride).sum::<usize>()]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < place.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Ok(values)
    }
}

/// How many bytes a number takes, of those dtypes that are read.
fn width(dtype: Dtype) -> Option<u64> {
    match dtype {
        Dtype::F64 | Dtype::I64 => Some(8),
        Dtype::F32 | Dtype::I32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::U8 | Dtype::BOOL => Some(1),
        _ => None,
    }
}

/// `count` little-endian numbers from byte `start` on, as f32.
fn read(file: &mut File, dtype: Dtype, start: u64, count: usize) -> io::Result<Vec<f32>> {
    file.seek(SeekFrom::Start(start))?;
    let width = width(dtype).unwrap_or(1) as usize;
    let mut values = Vec::with_capacity(count);
    let mut bytes = vec![0; width * PIECE.min(count)];
    while values.len() < count {
        let bytes = &mut bytes[..width * PIECE.min(count - values.len())];
        file.read_exact(bytes)?;
        match dtype {
            Dtype::F64 => values.extend(bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
            Dtype::I64 => values.extend(bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f32)),
            Dtype::I32 => values.extend(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b) as f32)),
            Dtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => values.extend(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32())),
            _ => values.extend(bytes.iter().map(|&b| f32::from(b))),
        }
    }
    Ok(values)
}

/// An array to be written.
#[derive(Debug, Clone)]
pub(crate) struct Written<'a> {
    pub shape: Vec<usize>,
    pub values: Cow<'a, [f32]>,
}

impl<'a> Written<'a> {
    /// As it is.
    pub fn matrix(matrix: &'a Matrix) -> Self {
        Self { shape: vec![matrix.rows(), matrix.columns()], values: Cow::Borrowed(matrix.values()) }
    }

    /// Rows and columns exchanged.
    pub fn transposed(matrix: &Matrix) -> Self {
        let values = matrix.transposed().values().to_vec();
        Self { shape: vec![matrix.columns(), matrix.rows()], values: Cow::Owned(values) }
    }

    /// As it is.
    pub fn vector(vector: &'a [f32]) -> Self {
        Self { shape: vec![vector.len()], values: Cow::Borrowed(vector) }
    }

    /// Its numbers as they lie in files.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match cfg!(target_endian = "little") {
            true => Cow::Borrowed(bytemuck::cast_slice(&self.values)),
            false => Cow::Owned(self.values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        }
    }
}

impl View for &Written<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes()
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

/// Writes a safetensors file, whole or not at all.
pub(crate) fn write_safetensors(path: &Path, arrays: &[(String, Written)]) -> Result<()> {
    let views = arrays.iter().map(|(name, array)| (name, array));
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
    write_whole(path, |to| {
        safetensors::serialize_to_file(views, Some(about), to).map_err(|error| Error::write(path, error))
    })
}

/// Has a file written under another name, and then gives it its own.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".endoscope.partial-");
    // As a file that is simply created: what the umask leaves of read and write for all.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let partial = builder.tempfile_in(directory).map_err(|error| Error::write(path, error))?;
    write(partial.path())?;
    let partial = partial.into_temp_path();
    File::open(&partial).and_then(|file| file.sync_all()).map_err(|error| Error::write(path, error))?;
    partial.persist(path).map_err(|error| Error::write(path, error.error))
}

/// Writes a text, whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_whole(path, |to| std::fs::write(to, text).map_err(|error| Error::write(path, error)))
}
