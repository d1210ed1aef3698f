//! Weight files: safetensors, single or sharded, with every tensor accounted for.
//!
//! A tensor is read when it is asked for, and a matrix is packed as it is read, some rows at a time: no tensor is held
//! beside what is made of it. Nothing is mapped, so a file that is cut short while it is read is an error, and the pages of
//! the file are not counted as ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use endoscope_kernels::{PackedMatrix, Precision};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::{Error, Result};
use crate::numbers;
use crate::ops::Matrix;

/// Where a family takes tensors from, by their names in the file: a checkpoint, or variables to be trained.
pub trait WeightSource {
    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool;
    /// The tensor, of exactly this shape, as f32. A problem may be reported later, all together.
    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor>;
    /// A table of this shape, of which few rows are read at a time: f32, or 16 bits if it is stored so. A problem may be
    /// reported later, all together.
    fn table(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.get(name, shape)
    }
    /// How matrices are packed for products; none if they stay tensors, to be trained.
    fn precision(&self) -> Option<Precision> {
        None
    }
    /// The matrices `[inputs, part]` of a linear map that is cut by its outputs: each part is ranges of them, one after
    /// the other. A problem may be reported later, all together.
    fn matrices(&mut self, name: &str, stored: Stored, parts: &[Vec<Range<usize>>]) -> Result<Vec<Matrix>> {
        let weight = self.get(name, &stored.shape())?;
        let weight = if matches!(stored, Stored::OutIn { .. }) { weight.t()? } else { weight };
        let precision = self.precision();
        parts.iter().map(|part| Matrix::new(chosen(&weight, 1, part)?, precision)).collect()
    }
}

/// How the matrix of a linear map lies in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// `[outputs, inputs]`: torch.nn.Linear.
    OutIn {
        /// Rows of the map.
        inputs: usize,
        /// Columns of the map.
        outputs: usize,
    },
    /// `[inputs, outputs]`: transformers' Conv1D.
    InOut {
        /// Rows of the map.
        inputs: usize,
        /// Columns of the map.
        outputs: usize,
    },
}

impl Stored {
    /// The shape of the tensor.
    pub fn shape(self) -> [usize; 2] {
        match self {
            Self::OutIn { inputs, outputs } => [outputs, inputs],
            Self::InOut { inputs, outputs } => [inputs, outputs],
        }
    }

    /// The same map, stored the other way round.
    pub(crate) fn transposed(self) -> Self {
        match self {
            Self::OutIn { inputs, outputs } => Self::InOut { inputs, outputs },
            Self::InOut { inputs, outputs } => Self::OutIn { inputs, outputs },
        }
    }

    /// Packs the parts of a matrix of which `read(range, into)` writes some rows of the tensor. No more than a few of
    /// them are held at once, and several threads read.
    pub(crate) fn pack<E: Send>(
        self,
        parts: &[Vec<Range<usize>>],
        precision: Precision,
        read: impl Fn(Range<usize>, &mut [f32]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<Vec<Matrix>, E> {
        let packed = match self {
            Self::OutIn { inputs, .. } => PackedMatrix::read_columns(inputs, parts, precision, read),
            Self::InOut { inputs, outputs } => PackedMatrix::read_rows(inputs, outputs, parts, precision, read),
        };
        Ok(packed?.into_iter().map(|matrix| Matrix::Packed(Arc::new(matrix))).collect())
    }

    /// What stands for the parts of a matrix that is not read: zeros that take no memory.
    pub(crate) fn stand_ins(self, parts: &[Vec<Range<usize>>]) -> Result<Vec<Matrix>> {
        let (Self::OutIn { inputs, .. } | Self::InOut { inputs, .. }) = self;
        let part = |part: &Vec<Range<usize>>| stand_in(&[inputs, part.iter().map(Range::len).sum()]);
        parts.iter().map(|ranges| Ok(Matrix::Plain(part(ranges)?))).collect()
    }
}

/// Ranges of an axis, one after the other; a view where they are one piece.
pub(crate) fn chosen(x: &Tensor, axis: usize, parts: &[Range<usize>]) -> Result<Tensor> {
    let pieces = parts.iter().map(|part| x.narrow(axis, part.start, part.len()));
    let pieces = pieces.collect::<candle_core::Result<Vec<_>>>()?;
    match pieces.as_slice() {
        [one] => Ok(one.clone()),
        many => Ok(Tensor::cat(many, axis)?),
    }
}

/// How much of a checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything, with each matrix in the precision that it has in the file: nothing is rounded, but F64 to f32.
    Stored,
    /// Everything, with matrices kept as said.
    Numbers(Precision),
    /// Names, shapes and dtypes; tensors are stand-ins of zeros that take no memory.
    Headers,
}

impl Depth {
    /// How a matrix is packed that its file has in the precision `stored`; none if it is not read.
    pub(crate) fn precision(self, stored: Precision) -> Option<Precision> {
        match self {
            Self::Stored => Some(stored),
            Self::Numbers(precision) => Some(precision),
            Self::Headers => None,
        }
    }
}

/// The names of the weights' files.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The same for shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What torch writes instead.
pub(crate) const PICKLES: &[&str] = &["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// What became of the tensors of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// How many were read.
    pub read: usize,
    /// Those that were read more than once.
    pub repeated: Vec<String>,
    /// Those that lie in the file and are known to be no part of the model: buffers of older versions, tied copies.
    pub ignored: Vec<String>,
}

/// The header of one safetensors file.
#[derive(Debug)]
pub(crate) struct Header {
    /// The file, or its address.
    pub path: PathBuf,
    /// The length of the whole file.
    pub length: u64,
    /// The JSON, without the eight bytes before it.
    pub bytes: Vec<u8>,
}

/// The format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// How many problems an error lists: a wrong config.json can make every tensor one.
const LISTED: usize = 100;

/// A checkpoint on disk.
#[derive(Debug)]
pub struct WeightFiles {
    /// The file (or index) that errors name.
    pub path: PathBuf,
    /// Every file that was opened, in order.
    pub files: Vec<PathBuf>,
    depth: Depth,
    open: Vec<File>,
    /// By tensor name.
    tensors: BTreeMap<String, Entry>,
    /// How often each was asked for.
    used: BTreeMap<String, usize>,
    problems: Problems,
}

/// Where a tensor lies: headers are parsed once, however many tensors they list.
#[derive(Debug)]
struct Entry {
    /// Which file.
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Its bytes in the file.
    bytes: Range<u64>,
}

impl WeightFiles {
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`, in `directory`.
    pub fn open(directory: &Path, depth: Depth) -> Result<Self> {
        let single = directory.join(SINGLE);
        let index = directory.join(INDEX);
        let (path, files, listed) = if single.is_file() {
            (single.clone(), vec![single], None)
        } else if index.is_file() {
            let weight_map = read_index(&index)?;
            let names: BTreeSet<&String> = weight_map.values().collect();
            let files = names.into_iter().map(|name| directory.join(name)).collect();
            (index, files, Some(weight_map))
        } else {
            return Err(no_weights(directory));
        };
        let open = files.iter().map(|file| open_file(file)).collect::<Result<Vec<_>>>()?;
        let mut headers = Vec::with_capacity(files.len());
        for (path, file) in files.iter().zip(&open) {
            headers.push(header_of(path, file)?);
        }
        Self::new(path, depth, open, &headers, listed)
    }

    /// A checkpoint of which nothing but the headers is here; its index, if it has one, lies in `directory`.
    pub(crate) fn of_headers(directory: &Path, headers: &[Header]) -> Result<Self> {
        let index = directory.join(INDEX);
        match headers {
            [only] if only.path.file_name().is_some_and(|name| name == SINGLE) => {
                Self::new(only.path.clone(), Depth::Headers, Vec::new(), headers, None)
            }
            _ => Self::new(index.clone(), Depth::Headers, Vec::new(), headers, Some(read_index(&index)?)),
        }
    }

    fn new(
        path: PathBuf,
        depth: Depth,
        open: Vec<File>,
        headers: &[Header],
        listed: Option<BTreeMap<String, String>>,
    ) -> Result<Self> {
        let files: Vec<PathBuf> = headers.iter().map(|header| header.path.clone()).collect();
        let mut tensors = BTreeMap::new();
        let mut problems = Problems::default();
        for (at, header) in headers.iter().enumerate() {
            for (name, entry) in entries(header, at)? {
                if tensors.contains_key(&name) {
                    problems.push(format!("`{name}` is in more than one shard"));
                }
                tensors.insert(name, entry);
            }
        }
        for (name, file) in listed.iter().flatten() {
            match tensors.get(name).map(|entry: &Entry| &files[entry.file]) {
                Some(found) if found.file_name().is_some_and(|found| found == file.as_str()) => {}
                Some(found) => problems
                    .push(format!("the index says that `{name}` is in {file}, but it is in {}", found.display())),
                None => problems.push(format!("the index says that `{name}` is in {file}, but it is not there")),
            }
        }
        Ok(Self { path, files, depth, open, tensors, used: BTreeMap::new(), problems })
    }

    /// How many numbers the tensors for which `count` holds have together.
    pub fn parameters(&self, count: impl Fn(&str) -> bool) -> u64 {
        let counted = self.tensors.iter().filter(|(name, _)| count(name));
        counted.map(|(_, entry)| entry.shape.iter().map(|&size| size as u64).product::<u64>()).sum()
    }

    /// Every problem, or the files and what became of their tensors. Tensors that nobody read are a problem unless
    /// `ignorable`.
    pub fn finish(mut self, ignorable: impl Fn(&str) -> bool) -> Result<(Vec<PathBuf>, Inventory)> {
        let mut ignored = Vec::new();
        for name in self.tensors.keys() {
            if self.used.contains_key(name) {
                continue;
            }
            if ignorable(name) {
                ignored.push(name.clone());
            } else {
                self.problems.push(format!(
                    "`{name}` is in the file, but the model that config.json describes has no place for it"
                ));
            }
        }
        let repeated = self.used.iter().filter(|(_, times)| **times > 1).map(|(name, _)| name.clone()).collect();
        let inventory = Inventory { read: self.used.len(), repeated, ignored };
        self.problems.report(self.path)?;
        Ok((self.files, inventory))
    }

    fn count(&mut self, name: &str) {
        *self.used.entry(name.to_string()).or_default() += 1;
    }

    /// Where a tensor of this shape lies.
    fn entry(&self, name: &str, shape: &[usize]) -> Problem<&Entry> {
        let Some(entry) = self.tensors.get(name) else { return Err(format!("`{name}` (shape {shape:?}) is missing")) };
        if entry.shape != shape {
            return Err(format!("`{name}` has shape {:?}, but {shape:?} is needed", entry.shape));
        }
        if !numbers::DTYPES.contains(&entry.dtype) {
            return Err(format!("`{name}` has dtype {:?}; supported are F32, F16, BF16 and F64", entry.dtype));
        }
        Ok(entry)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Problem<Tensor> {
        let entry = self.entry(name, shape)?;
        if self.depth == Depth::Headers {
            return stand_in(shape).map_err(|error| error.to_string());
        }
        let (file, count) = (&self.open[entry.file], shape.iter().product());
        let numbers = numbers::read_all(file, entry.dtype, entry.bytes.start, count);
        let numbers = numbers.map_err(|error| unreadable(name, error))?;
        check_finite(name, &numbers, 0)?;
        Tensor::from_vec(numbers, shape, &Device::Cpu).map_err(|error| format!("`{name}`: {error}"))
    }

    /// As it is stored, if that has 16 bits.
    fn halves(&self, name: &str, shape: &[usize]) -> Problem<Tensor> {
        let entry = self.entry(name, shape)?;
        let infinite = match entry.dtype {
            Dtype::F16 => f16::INFINITY.to_bits(),
            Dtype::BF16 => bf16::INFINITY.to_bits(),
            _ => return self.tensor(name, shape),
        };
        if self.depth == Depth::Headers {
            return self.tensor(name, shape);
        }
        let (file, count) = (&self.open[entry.file], shape.iter().product());
        let halves = numbers::read_halves(file, entry.bytes.start, count).map_err(|error| unreadable(name, error))?;
        if let Some(at) = halves.iter().position(|half| half & infinite == infinite) {
            let number = match entry.dtype {
                Dtype::F16 => f16::from_bits(halves[at]).to_f32(),
                _ => bf16::from_bits(halves[at]).to_f32(),
            };
            check_finite(name, &[number], at)?;
        }
        let tensor = match entry.dtype {
            Dtype::F16 => Tensor::from_vec(halves.reinterpret_into::<f16>(), shape, &Device::Cpu),
            _ => Tensor::from_vec(halves.reinterpret_into::<bf16>(), shape, &Device::Cpu),
        };
        tensor.map_err(|error| format!("`{name}`: {error}"))
    }

    fn matrix(&self, name: &str, stored: Stored, parts: &[Vec<Range<usize>>]) -> Problem<Vec<Matrix>> {
        let [_, width] = stored.shape();
        let entry = self.entry(name, &stored.shape())?;
        let own = match entry.dtype {
            Dtype::F16 => Precision::F16,
            Dtype::BF16 => Precision::Bf16,
            _ => Precision::F32,
        };
        let Some(precision) = self.depth.precision(own) else {
            return stored.stand_ins(parts).map_err(|error| error.to_string());
        };
        let file = &self.open[entry.file];
        stored.pack(parts, precision, |rows, into| {
            let first = rows.start * width;
            let start = entry.bytes.start + (first * entry.dtype.bitsize() / 8) as u64;
            numbers::read(file, entry.dtype, start, into).map_err(|error| unreadable(name, error))?;
            check_finite(name, into, first)
        })
    }
}

/// What is wrong with a tensor, in words.
pub(crate) type Problem<T> = std::result::Result<T, String>;

/// What is wrong with a checkpoint, until all of it is reported together.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    pub fn push(&mut self, problem: String) {
        self.0.push(problem);
    }

    /// What was found, or what stands for it until the problem is reported.
    pub fn or_stand_in<T>(&mut self, found: Problem<T>, stand_in: impl FnOnce() -> Result<T>) -> Result<T> {
        found.or_else(|problem| {
            self.push(problem);
            stand_in()
        })
    }

    /// Nothing, or an error that lists them.
    pub fn report(self, path: PathBuf) -> Result<()> {
        let Self(mut problems) = self;
        if problems.is_empty() {
            return Ok(());
        }
        let more = problems.len().saturating_sub(LISTED);
        if more > 0 {
            problems.truncate(LISTED);
            problems.push(format!("… and {more} more"));
        }
        Err(Error::Weights { path, problems })
    }
}

fn unreadable(name: &str, error: std::io::Error) -> String {
    format!("`{name}` cannot be read: {error}")
}

/// Refuses numbers, the first of which is number `first` of the tensor, unless all are finite.
pub(crate) fn check_finite(name: &str, numbers: &[f32], first: usize) -> Problem<()> {
    match numbers::not_finite(numbers) {
        Some(at) => Err(format!("`{name}` holds {} at flat index {}; weights must be finite", numbers[at], first + at)),
        None => Ok(()),
    }
}

impl WeightSource for WeightFiles {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.count(name);
        let found = self.tensor(name, shape);
        self.problems.or_stand_in(found, || Ok(stand_in(shape)?))
    }

    fn table(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.count(name);
        let found = self.halves(name, shape);
        self.problems.or_stand_in(found, || Ok(stand_in(shape)?))
    }

    fn matrices(&mut self, name: &str, stored: Stored, parts: &[Vec<Range<usize>>]) -> Result<Vec<Matrix>> {
        self.count(name);
        let found = self.matrix(name, stored, parts);
        self.problems.or_stand_in(found, || stored.stand_ins(parts))
    }
}

/// A broadcast zero takes no memory.
pub(crate) fn stand_in(shape: &[usize]) -> candle_core::Result<Tensor> {
    Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)
}

fn no_weights(directory: &Path) -> Error {
    let reason = if PICKLES.iter().any(|name| directory.join(name).exists()) {
        convert_pickle("'.'", ".")
    } else {
        format!("it has neither {SINGLE} nor {INDEX}")
    };
    Error::NotAModel { path: directory.to_path_buf(), reason }
}

/// Why a pickle is refused, and the Python that makes `to` of what transformers calls `from`.
pub(crate) fn convert_pickle(from: &str, to: &str) -> String {
    format!(
        "its weights are a pickle (pytorch_model.bin), which is never executed; convert it once with Python: \
         `from transformers import AutoModelForCausalLM as M; M.from_pretrained({from}).save_pretrained('{to}')`"
    )
}

/// `weight_map` of an index file; shard names must be plain file names, so that nothing outside is read.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(path).map_err(|error| Error::read(path, error))?;
    let index: Index = serde_json::from_str(&text).map_err(|error| Error::read(path, error))?;
    for file in index.weight_map.values() {
        if Path::new(file).file_name().is_none_or(|name| name != file.as_str()) {
            return Err(Error::read(path, format!("the shard name `{file}` is not a plain file name")));
        }
    }
    Ok(index.weight_map)
}

/// How long the header of a safetensors file of `length` bytes is, which its first eight bytes say.
pub(crate) fn header_bytes(path: &Path, start: &[u8], length: u64) -> Result<u64> {
    let fail = |reason| not_whole(path, length, reason);
    let start = start.first_chunk().ok_or_else(|| fail("it has no header".into()))?;
    let header = u64::from_le_bytes(*start);
    if header > length.saturating_sub(8) {
        return Err(fail(format!("its header should have {header} bytes")));
    }
    if header > LONGEST_HEADER {
        return Err(fail(format!("its header has {header} bytes, more than {LONGEST_HEADER}")));
    }
    Ok(header)
}

fn not_whole(path: &Path, length: u64, reason: String) -> Error {
    Error::read(path, format!("it is not a whole safetensors file ({reason}); it has {length} bytes"))
}

/// The header of a file on disk.
pub(crate) fn read_header(path: &Path) -> Result<Header> {
    header_of(path, &open_file(path)?)
}

fn header_of(path: &Path, file: &File) -> Result<Header> {
    let length = file.metadata().map_err(|error| Error::read(path, error))?.len();
    let take = |count: u64| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.take(count).read_to_end(&mut bytes).map_err(|error| Error::read(path, error))?;
        Ok(bytes)
    };
    let start = take(8)?;
    let bytes = take(header_bytes(path, &start, length)?)?;
    Ok(Header { path: path.to_path_buf(), length, bytes })
}

/// The tensors of one file; every offset is checked against the file's length.
fn entries(header: &Header, number: usize) -> Result<Vec<(String, Entry)>> {
    let Header { path, length, bytes } = header;
    let fail = |reason| not_whole(path, *length, reason);
    let metadata: Metadata = serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
    let header = bytes.len() as u64;
    let data = 8 + header;
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bits = info.shape.iter().try_fold(info.dtype.bitsize() as u64, |bits, &size| bits.checked_mul(size as u64));
        if start > end || bits != (end - start).checked_mul(8) {
            return Err(fail(format!("the bytes {start} to {end} of `{name}` do not fit its shape {:?}", info.shape)));
        }
        let place = data.checked_add(start).zip(data.checked_add(end));
        let (start, end) = place.ok_or_else(|| fail(format!("`{name}` lies beyond every file")))?;
        entries.push((name, Entry { file: number, dtype: info.dtype, shape: info.shape.clone(), bytes: start..end }));
    }
    // Without gaps or overlaps, as the format demands.
    entries.sort_by_key(|(_, entry)| (entry.bytes.start, entry.bytes.end));
    let mut end = data;
    for (name, entry) in &entries {
        if entry.bytes.start != end {
            return Err(fail(format!("`{name}` should start at byte {end}, and starts at {}", entry.bytes.start)));
        }
        end = entry.bytes.end;
    }
    if end != *length {
        return Err(fail(format!("its tensors end at byte {end}")));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}

fn open_file(path: &Path) -> Result<File> {
    // Opening a pipe would wait for a writer for ever.
    let kind = std::fs::metadata(path).map_err(|error| Error::read(path, error))?;
    if !kind.is_file() {
        return Err(Error::read(path, "it is not a regular file"));
    }
    File::open(path).map_err(|error| Error::read(path, error))
}
