//! Numbers in a plan: inline, or in a safetensors file beside it.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// A number, an array, or an array in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// One number for every chosen cell.
    Number(f64),
    /// An array: `{"shape": [2], "data": [0.5, 1.0]}`.
    Array(Array),
    /// A tensor of a safetensors file; the path is relative to the plan's own file. Loaded by [`crate::Plan::load`].
    File(FileValue),
}

/// A tensor in a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileValue {
    /// The safetensors file.
    pub file: PathBuf,
    /// The tensor's name; default: the full name of the edited site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
}

/// A tensor as plan data. In memory it is the tensor itself (shared, never copied); as JSON its shape and numbers.
#[derive(Debug, Clone)]
pub struct Array(pub Tensor);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArrayText {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Array(Array(tensor))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl Array {
    fn numbers(&self) -> candle_core::Result<Vec<f32>> {
        self.0.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
    }
}

impl PartialEq for Array {
    fn eq(&self, other: &Self) -> bool {
        self.0.dims() == other.0.dims() && matches!((self.numbers(), other.numbers()), (Ok(a), Ok(b)) if a == b)
    }
}

impl Serialize for Array {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let data = self.numbers().map_err(serde::ser::Error::custom)?;
        ArrayText { shape: self.0.dims().to_vec(), data }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Array {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let ArrayText { shape, data } = ArrayText::deserialize(deserializer)?;
        let count = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if count != Some(data.len()) {
            let message = format!("an array of shape {shape:?} cannot hold {} numbers", data.len());
            return Err(serde::de::Error::custom(message));
        }
        Tensor::from_vec(data, shape, &Device::Cpu).map(Array).map_err(serde::de::Error::custom)
    }
}

impl Value {
    /// Replaces a file by its tensor, as f32.
    pub(crate) fn load(&mut self, base: &Path, default_tensor: &str) -> Result<()> {
        let Self::File(FileValue { file, tensor }) = self else { return Ok(()) };
        let path = base.join(file);
        let fail = |reason: String| Error::PlanFile { path: path.clone(), reason };
        let bytes = std::fs::read(&path).map_err(|error| fail(error.to_string()))?;
        let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(|error| fail(error.to_string()))?;
        let name = tensor.as_deref().unwrap_or(default_tensor);
        let view = tensors.tensor(name).map_err(|_| {
            let mut names: Vec<_> = tensors.names().into_iter().map(String::from).collect();
            names.sort();
            names.truncate(8);
            fail(format!("it has no tensor `{name}` (it has {})", names.join(", ")))
        })?;
        let tensor = candle_core::safetensors::Load::load(&view, &Device::Cpu)?.to_dtype(DType::F32)?;
        *self = Self::from(tensor);
        Ok(())
    }
}
