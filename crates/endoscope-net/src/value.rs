//! Numbers in a plan: inline, or in a safetensors file beside it.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// A number, an array, or an array in a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileValue {
    /// The safetensors file.
    pub file: PathBuf,
    /// The tensor's name; default: the site as the edit writes it (so write its full name).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
}

/// A tensor as plan data. In memory it is the tensor itself (shared, never copied); as JSON its shape and numbers.
#[derive(Debug, Clone)]
pub struct Array(pub Tensor);

#[derive(Serialize)]
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

impl Array {
    fn new(shape: Vec<usize>, data: Vec<f32>) -> std::result::Result<Self, String> {
        if !countable(&shape) || shape.iter().product::<usize>() != data.len() {
            return Err(format!("an array of shape {shape:?} cannot hold {} numbers", data.len()));
        }
        Tensor::from_vec(data, shape, &Device::Cpu).map(Self).map_err(|error| error.to_string())
    }
}

/// Whether no stride of a tensor of this shape overflows, empty dimensions notwithstanding.
fn countable(shape: &[usize]) -> bool {
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim.max(1))).is_some()
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        /// The keys of an array and of a file; which of the two is meant, its keys say.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keys {
            shape: Option<Vec<usize>>,
            data: Option<Vec<f32>>,
            file: Option<PathBuf>,
            tensor: Option<String>,
        }
        const FORMS: &str = r#"a number, {"shape": […], "data": […]} or {"file": …, "tensor": …}"#;
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Value;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(FORMS)
            }
            fn visit_f64<E>(self, number: f64) -> std::result::Result<Value, E> {
                Ok(Value::Number(number))
            }
            fn visit_i64<E>(self, number: i64) -> std::result::Result<Value, E> {
                Ok(Value::Number(number as f64))
            }
            fn visit_u64<E>(self, number: u64) -> std::result::Result<Value, E> {
                Ok(Value::Number(number as f64))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Value, A::Error> {
                match Keys::deserialize(MapAccessDeserializer::new(map))? {
                    Keys { shape: Some(shape), data: Some(data), file: None, tensor: None } => {
                        Array::new(shape, data).map(Value::Array).map_err(A::Error::custom)
                    }
                    Keys { shape: None, data: None, file: Some(file), tensor } => {
                        Ok(Value::File(FileValue { file, tensor }))
                    }
                    _ => Err(A::Error::custom(format!("a value is {FORMS}"))),
                }
            }
        }
        deserializer.deserialize_any(Forms)
    }
}

impl Value {
    /// Replaces a file by its tensor, as f32.
    pub(crate) fn load(&mut self, base: &Path, default_tensor: &str) -> Result<()> {
        let Self::File(FileValue { file, tensor }) = self else { return Ok(()) };
        let path = base.join(file);
        let fail = |reason: String| Error::PlanFile { path: path.clone(), reason };
        // A pipe or a device might never end.
        let kind = std::fs::metadata(&path).map_err(|error| fail(error.to_string()))?;
        if !kind.is_file() {
            return Err(fail("it is not a regular file".into()));
        }
        let bytes = std::fs::read(&path).map_err(|error| fail(error.to_string()))?;
        let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(|error| fail(error.to_string()))?;
        let name = tensor.as_deref().unwrap_or(default_tensor);
        let view = tensors.tensor(name).map_err(|_| {
            let mut names: Vec<_> = tensors.names().into_iter().map(String::from).collect();
            names.sort();
            names.truncate(8);
            fail(format!("it has no tensor `{name}` (it has {})", names.join(", ")))
        })?;
        if !countable(view.shape()) {
            return Err(fail(format!("the shape {:?} of `{name}` is not possible", view.shape())));
        }
        let tensor = candle_core::safetensors::Load::load(&view, &Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(DType::F32))
            .map_err(|error| fail(format!("`{name}`: {error}")))?;
        *self = Self::from(tensor);
        Ok(())
    }
}
