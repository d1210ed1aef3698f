//! Weights of a GGUF file under their Hugging Face names, as they were before they were converted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{Device, Tensor};
use endoscope_kernels::Precision;

use super::blocks::Encoding;
use super::file::{GgufFile, TensorInfo};
use super::names::{Names, Place, Undo};
use crate::error::{Error, Result};
use crate::ops::Matrix;
use crate::rotary::RotaryScaling;
use crate::spec::{Positions, Spec};
use crate::weights::{Depth, Inventory, Problem, Problems, Stored, WeightSource, check_finite, stand_in};

/// The divisors of a rotation's angles, if a file holds them: Llama 3's scaling is written so.
pub const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// How many heads queries and keys have: what was done to their rows was done head by head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key/value heads.
    pub keys: usize,
}

/// A file's tensors, with every one accounted for.
#[derive(Debug)]
pub struct GgufWeights {
    file: GgufFile,
    names: Names,
    heads: Heads,
    depth: Depth,
    /// Which tensors were read, and which of their slices, where experts (or heads) share one.
    used: BTreeMap<String, BTreeSet<usize>>,
    /// Those that were read more than once.
    repeated: Vec<String>,
    problems: Problems,
}

impl GgufWeights {
    /// The weights of `file`, under the names that `names` translates.
    pub fn new(file: GgufFile, names: Names, heads: Heads, depth: Depth) -> Self {
        Self { file, names, heads, depth, used: BTreeMap::new(), repeated: Vec::new(), problems: Problems::default() }
    }

    /// How many numbers all tensors have together, those that are no weights left out.
    pub fn parameters(&self) -> u64 {
        let weights = self.file.tensors.iter().filter(|(name, _)| *name != ROPE_FREQUENCIES);
        weights.map(|(_, info)| info.shape.iter().map(|&size| size as u64).product::<u64>()).sum()
    }

    /// Gives the rotation the divisors that the file holds, if it does.
    pub fn complete(&mut self, spec: &mut Spec) -> Result<()> {
        let Some(info) = self.file.tensors.get(ROPE_FREQUENCIES) else { return Ok(()) };
        let Positions::Rotary { kinds, .. } = &mut spec.positions else { return Ok(()) };
        // Read at every depth: they are part of what the model is.
        let mut factors = vec![0.; info.shape.iter().product()];
        let read = self.file.read(info, 0, &mut factors);
        read.map_err(|reason| Error::read(&self.file.path, format!("`{ROPE_FREQUENCIES}`: {reason}")))?;
        let factors: Vec<f64> = factors.into_iter().map(f64::from).collect();
        self.used.entry(ROPE_FREQUENCIES.to_string()).or_default();
        let mut problems = Vec::new();
        for kind in kinds {
            if kind.scaling != RotaryScaling::None {
                problems.push(format!("`{ROPE_FREQUENCIES}` scales a rotation that the metadata scale too"));
            }
            kind.scaling = RotaryScaling::Factors { factors: factors.clone(), attention: 1. };
            problems.extend(kind.problems(spec.d_head));
        }
        problems.truncate(1);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Config { path: self.file.path.clone(), problems }),
        }
    }

    /// Every problem, or what became of the tensors. Those that nobody read are a problem.
    pub fn finish(mut self) -> Result<Inventory> {
        for (name, info) in &self.file.tensors {
            match self.used.get(name) {
                None => self.problems.push(format!(
                    "`{name}` is in the file, but the model that its metadata describe has no place for it"
                )),
                Some(experts) if !experts.is_empty() && experts.len() != info.shape[0] => self.problems.push(format!(
                    "`{name}` holds {} experts or heads, but the metadata name {}",
                    info.shape[0],
                    experts.len()
                )),
                Some(_) => {}
            }
        }
        let inventory = Inventory { read: self.used.len(), repeated: self.repeated, ignored: Vec::new() };
        self.problems.report(self.file.path)?;
        Ok(inventory)
    }

    /// The tensor of a weight of this shape, which counts as read from now on.
    fn take(&mut self, name: &str, shape: &[usize]) -> Problem<Rows<'_>> {
        let Some(Place { tensor, expert, undo }) = self.names.place(name) else {
            return Err(format!("`{name}` has no name in a GGUF file of this architecture"));
        };
        let Some(info) = self.file.tensors.get(&tensor) else {
            return Err(format!("`{tensor}` (shape {shape:?}) is missing"));
        };
        let known = self.used.contains_key(&tensor);
        let slices = self.used.entry(tensor.clone()).or_default();
        if !expert.map_or(!known, |expert| slices.insert(expert)) {
            self.repeated.push(tensor.clone());
        }
        let stored = match undo {
            Undo::Transpose => shape.iter().rev().copied().collect(),
            _ => shape.to_vec(),
        };
        let found = match expert {
            Some(expert) if expert < info.shape[0] => &info.shape[1..],
            Some(expert) => {
                return Err(format!("`{tensor}` holds {} experts or heads, not number {expert}", info.shape[0]));
            }
            None => &info.shape[..],
        };
        if found != stored {
            return Err(format!("`{tensor}` has shape {found:?}, but {stored:?} is needed"));
        }
        if !info.encoding.is_supported() {
            let (name, supported) = (info.encoding.name, Encoding::supported());
            return Err(format!("`{tensor}` is written as {name}; supported are {supported}"));
        }
        let (count, Heads { queries, keys }) = (stored[0], self.heads);
        let (outer, swapped) = match undo {
            Undo::Nothing | Undo::AddOne | Undo::Transpose => (1, [1, 1]),
            Undo::QueryRows => (queries, [count / queries / 2, 2]),
            Undo::KeyRows => (keys, [count / keys / 2, 2]),
            Undo::SortHeads => (1, [3, queries]),
            Undo::SortGroups => (queries + 2 * keys, [1, 1]),
        };
        let [first, second] = swapped;
        if !count.is_multiple_of(outer * first * second) {
            return Err(format!("`{tensor}`: {count} rows cannot be split into {outer} x {first} x {second}"));
        }
        let width = stored[1..].iter().product();
        Ok(Rows {
            file: &self.file,
            tensor,
            info,
            start: expert.unwrap_or(0) * count,
            count,
            width,
            swapped,
            together: count / (outer * first * second).max(1),
            undo,
            heads: self.heads,
        })
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Problem<Tensor> {
        let depth = self.depth;
        let rows = self.take(name, shape)?;
        if depth == Depth::Headers {
            return stand_in(shape).map_err(|error| error.to_string());
        }
        let mut numbers = vec![0.; rows.count * rows.width];
        rows.read(0..rows.count, &mut numbers)?;
        let tensor = match rows.undo {
            Undo::Transpose => Tensor::from_vec(numbers, (rows.count, rows.width), &Device::Cpu).and_then(|x| x.t()),
            _ => Tensor::from_vec(numbers, shape, &Device::Cpu),
        };
        tensor.map_err(|error| format!("`{}`: {error}", rows.tensor))
    }

    fn matrix(&mut self, name: &str, stored: Stored, parts: &[Vec<Range<usize>>]) -> Problem<Vec<Matrix>> {
        let depth = self.depth;
        let rows = self.take(name, &stored.shape())?;
        let own = match rows.info.encoding.name {
            "F16" => Precision::F16,
            "BF16" => Precision::Bf16,
            _ => Precision::F32,
        };
        let Some(precision) = depth.precision(own) else {
            return stored.stand_ins(parts).map_err(|error| error.to_string());
        };
        let lies = if rows.undo == Undo::Transpose { stored.transposed() } else { stored };
        lies.pack(parts, precision, |range, into| rows.read(range, into))
    }
}

/// The rows of a weight as they were before conversion.
struct Rows<'a> {
    file: &'a GgufFile,
    tensor: String,
    info: &'a TensorInfo,
    /// The first of them in the file.
    start: usize,
    count: usize,
    width: usize,
    /// In the file they are `[outer, first, second, together]`; these are `first` and `second`, which change places.
    swapped: [usize; 2],
    together: usize,
    undo: Undo,
    heads: Heads,
}

impl Rows<'_> {
    /// Some rows, those of a matrix that was transposed still so.
    fn read(&self, rows: Range<usize>, into: &mut [f32]) -> Problem<()> {
        if self.swapped == [1, 1] && self.undo != Undo::SortGroups {
            return self.run(rows.start, into);
        }
        let mut rest = into;
        for row in rows {
            let (now, later) = rest.split_at_mut(self.width);
            self.run(self.place(row), now)?;
            rest = later;
        }
        Ok(())
    }

    /// Where in the file a row of the original is.
    fn place(&self, row: usize) -> usize {
        if self.undo == Undo::SortGroups {
            // Each group has its queries, a key and a value; the file has all queries, all keys, all values.
            let Heads { queries, keys } = self.heads;
            let (width, each) = (self.count / (queries + 2 * keys), queries / keys);
            let (head, inner) = (row / width, row % width);
            let (group, member) = (head / (each + 2), head % (each + 2));
            let head = match member {
                query if query < each => group * each + query,
                key if key == each => queries + group,
                _ => queries + keys + group,
            };
            return head * width + inner;
        }
        let [first, second] = self.swapped;
        let (piece, within) = (row / self.together, row % self.together);
        let (outer, inner) = (piece / (first * second), piece % (first * second));
        (outer * first * second + inner % first * second + inner / first) * self.together + within
    }

    /// Rows that follow each other in the file.
    fn run(&self, row: usize, into: &mut [f32]) -> Problem<()> {
        let first = row * self.width;
        let read = self.file.read(self.info, self.start * self.width + first, into);
        read.map_err(|reason| format!("`{}` cannot be read: {reason}", self.tensor))?;
        check_finite(&self.tensor, into, first)?;
        if self.undo == Undo::AddOne {
            into.iter_mut().for_each(|number| *number -= 1.);
        }
        Ok(())
    }
}

impl WeightSource for GgufWeights {
    fn has(&self, name: &str) -> bool {
        self.names.place(name).is_some_and(|place| self.file.tensors.contains_key(&place.tensor))
    }

    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let found = self.tensor(name, shape);
        self.problems.or_stand_in(found, || Ok(stand_in(shape)?))
    }

    fn matrices(&mut self, name: &str, stored: Stored, parts: &[Vec<Range<usize>>]) -> Result<Vec<Matrix>> {
        let found = self.matrix(name, stored, parts);
        self.problems.or_stand_in(found, || stored.stand_ins(parts))
    }
}
