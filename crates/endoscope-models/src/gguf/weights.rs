//! Weights of a GGUF file under their Hugging Face names, as they were before they were converted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use endoscope_kernels::Precision;

use super::blocks::Encoding;
use super::file::{GgufFile, TensorInfo};
use super::names::{Names, Place, Undo};
use crate::error::{Error, Result};
use crate::ops::Matrix;
use crate::rotary::RotaryScaling;
use crate::spec::{Positions, Spec};
use crate::weights::{Depth, Stored, WeightSource, all_or_nothing, matrices_or_stand_ins, stand_in};

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
    problems: Vec<String>,
}

impl GgufWeights {
    /// The weights of `file`, under the names that `names` translates.
    pub fn new(file: GgufFile, names: Names, heads: Heads, depth: Depth) -> Self {
        Self { file, names, heads, depth, used: BTreeMap::new(), problems: Vec::new() }
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
        let count = info.shape.iter().product();
        // Read at every depth: they are part of what the model is.
        let factors = self.file.numbers(info, 0..count);
        let factors =
            factors.map_err(|reason| Error::read(&self.file.path, format!("`{ROPE_FREQUENCIES}`: {reason}")))?;
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

    /// Every problem, or nothing. Tensors that nobody read are a problem.
    pub fn finish(mut self) -> Result<PathBuf> {
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
        all_or_nothing(self.file.path.clone(), self.problems)?;
        Ok(self.file.path)
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, String> {
        let Some(Place { tensor, expert, undo }) = self.names.place(name) else {
            return Err(format!("`{name}` has no name in a GGUF file of this architecture"));
        };
        let Some(info) = self.file.tensors.get(&tensor) else {
            return Err(format!("`{tensor}` (shape {shape:?}) is missing"));
        };
        self.used.entry(tensor.clone()).or_default().extend(expert);
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
        if self.depth == Depth::Headers {
            return stand_in(shape).map_err(|error| error.to_string());
        }
        let numbers = self.numbers(&tensor, info, expert, stored.iter().product())?;
        self.undone(numbers, &stored, undo).map_err(|problem| format!("`{tensor}`: {problem}"))
    }

    fn numbers(
        &self,
        tensor: &str,
        info: &TensorInfo,
        expert: Option<usize>,
        count: usize,
    ) -> std::result::Result<Vec<f32>, String> {
        let start = expert.unwrap_or(0) * count;
        let numbers = self.file.numbers(info, start..start + count);
        let numbers = numbers.map_err(|reason| format!("`{tensor}` cannot be read: {reason}"))?;
        match numbers.iter().position(|number| !number.is_finite()) {
            Some(at) => Err(format!("`{tensor}` holds {} at flat index {at}; weights must be finite", numbers[at])),
            None => Ok(numbers),
        }
    }

    /// The weight as it was before conversion; `stored` is its shape in the file.
    fn undone(&self, mut numbers: Vec<f32>, stored: &[usize], undo: Undo) -> std::result::Result<Tensor, String> {
        if undo == Undo::AddOne {
            numbers.iter_mut().for_each(|number| *number -= 1.);
        }
        let (rows, Heads { queries, keys }) = (stored[0], self.heads);
        // Rows `[outer, first, second, inner]`, whose middle axes change places.
        let [outer, first, second] = match undo {
            Undo::Nothing | Undo::AddOne | Undo::Transpose => [1, 1, 1],
            Undo::SortGroups => [queries + 2 * keys, 1, 1],
            Undo::QueryRows => [queries, rows / queries / 2, 2],
            Undo::KeyRows => [keys, rows / keys / 2, 2],
            Undo::SortHeads => [1, 3, queries],
        };
        if !rows.is_multiple_of(outer * first * second) {
            return Err(format!("{rows} rows cannot be split into {outer} x {first} x {second}"));
        }
        let undone = || -> candle_core::Result<Tensor> {
            let tensor = Tensor::from_vec(numbers, stored, &Device::Cpu)?;
            match undo {
                Undo::Nothing | Undo::AddOne => Ok(tensor),
                Undo::Transpose => tensor.t(),
                Undo::SortGroups => {
                    let width = rows / outer;
                    let heads = |from: usize, count: usize| {
                        tensor.narrow(0, from * width, count * width)?.reshape((keys, count / keys * width, ()))
                    };
                    let parts = [heads(0, queries)?, heads(queries, keys)?, heads(queries + keys, keys)?];
                    Tensor::cat(&parts, 1)?.reshape(stored)
                }
                _ => tensor.reshape((outer, first, second, ()))?.transpose(1, 2)?.contiguous()?.reshape(stored),
            }
        };
        undone().map_err(|error| error.to_string())
    }
}

impl WeightSource for GgufWeights {
    fn precision(&self) -> Option<Precision> {
        match self.depth {
            // Stand-ins for what is missing may be of any size.
            Depth::Numbers(precision) if self.problems.is_empty() => Some(precision),
            _ => None,
        }
    }

    fn has(&self, name: &str) -> bool {
        self.names.place(name).is_some_and(|place| self.file.tensors.contains_key(&place.tensor))
    }

    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.read(name, shape) {
            Ok(tensor) => Ok(tensor),
            Err(problem) => {
                self.problems.push(problem);
                // Until `finish` reports all problems together.
                Ok(stand_in(shape)?)
            }
        }
    }

    fn matrices(&mut self, name: &str, stored: Stored, parts: &[Vec<Range<usize>>]) -> Result<Vec<Matrix>> {
        matrices_or_stand_ins(self, name, stored, parts)
    }
}
