//! Control vectors: directions that are added to the residual stream after layers, as llama.cpp and repeng keep them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::{Device, Tensor};
use endoscope_net::{Change, Edit, Plan};

use super::{GgufFile, Value};
use crate::error::{Error, Result};

/// What `general.architecture` is in such a file.
const ARCHITECTURE: &str = "controlvector";
/// Where tensors begin: at multiples of this.
const ALIGNMENT: usize = 32;

/// Directions by layer. (Layer 0 has none in llama.cpp's files.)
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ControlVector {
    /// The kind of model it was made for: `llama`.
    pub model_hint: String,
    /// `[d_model]` for each layer that has one.
    pub directions: BTreeMap<usize, Vec<f32>>,
}

impl ControlVector {
    /// Reads a GGUF file of the architecture `controlvector`.
    pub fn read(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let fail = |reason: String| Error::read(path, reason);
        match file.metadata.get("general.architecture") {
            Some(Value::Text(name)) if name == ARCHITECTURE => {}
            other => return Err(fail(format!("it is no control vector: its architecture is {other:?}"))),
        }
        let model_hint = match file.metadata.get("controlvector.model_hint") {
            Some(Value::Text(hint)) => hint.clone(),
            _ => String::new(),
        };
        let mut directions = BTreeMap::new();
        let mut width = None;
        for (name, tensor) in &file.tensors {
            let layer = name.strip_prefix("direction.").and_then(|layer| layer.parse::<usize>().ok());
            let (Some(layer), &[length]) = (layer, tensor.shape.as_slice()) else {
                return Err(fail(format!("`{name}` of shape {:?} is no direction of a layer", tensor.shape)));
            };
            if *width.get_or_insert(length) != length || length == 0 {
                return Err(fail(format!("`{name}` has {length} dimensions, others have another number")));
            }
            let mut direction = vec![0.; length];
            file.read(tensor, 0, &mut direction).map_err(|reason| fail(format!("`{name}`: {reason}")))?;
            if direction.iter().any(|x| !x.is_finite()) {
                return Err(fail(format!("`{name}` holds a value that is not finite")));
            }
            directions.insert(layer, direction);
        }
        match directions.is_empty() {
            true => Err(fail("it has no directions".into())),
            false => Ok(Self { model_hint, directions }),
        }
    }

    /// Writes one, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = b"GGUF".to_vec();
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        };
        let layers = self.directions.keys().next_back().map_or(0, |last| last + 1) as u32;
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.directions.len() as u64).to_le_bytes());
        bytes.extend(3u64.to_le_bytes());
        // The kinds of values: 8 is a text, 4 a u32.
        for (key, value) in [("general.architecture", ARCHITECTURE), ("controlvector.model_hint", &self.model_hint)] {
            text(&mut bytes, key);
            bytes.extend(8u32.to_le_bytes());
            text(&mut bytes, value);
        }
        text(&mut bytes, "controlvector.layer_count");
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(layers.to_le_bytes());
        let padded = |length: usize| length.div_ceil(ALIGNMENT) * ALIGNMENT;
        let mut offset = 0;
        for (layer, direction) in &self.directions {
            text(&mut bytes, &format!("direction.{layer}"));
            bytes.extend(1u32.to_le_bytes());
            bytes.extend((direction.len() as u64).to_le_bytes());
            // The encoding 0 is f32.
            bytes.extend(0u32.to_le_bytes());
            bytes.extend((offset as u64).to_le_bytes());
            offset += padded(4 * direction.len());
        }
        bytes.resize(padded(bytes.len()), 0);
        for direction in self.directions.values() {
            bytes.extend(direction.iter().flat_map(|x| x.to_le_bytes()));
            bytes.resize(padded(bytes.len()), 0);
        }
        let fail = |error: std::io::Error| Error::write(path, error);
        let temporary = path.with_extension("partial");
        let mut file = std::fs::File::create(&temporary).map_err(fail)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(fail)?;
        std::fs::rename(&temporary, path).map_err(fail)
    }

    /// The plan that adds `scale` times each direction to the stream after its layer, at every position.
    pub fn plan(&self, scale: f64) -> Result<Plan> {
        let mut plan = Plan::default();
        for (layer, direction) in &self.directions {
            let value = Tensor::from_slice(direction, direction.len(), &Device::Cpu)?;
            let change = Change::Add { value: value.into(), scale };
            plan = plan.edit(Edit::new(format!("blocks.{layer}.hook_resid_post"), change));
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by gguf-py as repeng writes its vectors (tools/goldens/control_vector.py).
    #[test]
    fn a_file_of_gguf_py_is_read_and_what_is_written_comes_back() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/gguf/control_vector.gguf");
        let vector = ControlVector::read(&golden).unwrap();
        assert_eq!(vector.model_hint, "llama");
        assert_eq!(vector.directions.keys().copied().collect::<Vec<_>>(), [1, 2, 5]);
        assert_eq!(vector.directions[&2], [2., 2.5, 3., 3.5, 4., 4.5, 5.]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vector.gguf");
        vector.write(&path).unwrap();
        assert_eq!(ControlVector::read(&path).unwrap(), vector);
        assert_eq!(vector.plan(2.).unwrap().edits.len(), 3);
        // Cut off anywhere it is an error.
        let bytes = std::fs::read(&path).unwrap();
        for length in (0..bytes.len() - 40).step_by(7) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(ControlVector::read(&path).is_err(), "{length}");
        }
        ControlVector { model_hint: "llama".into(), ..ControlVector::default() }.write(&path).unwrap();
        assert!(ControlVector::read(&path).unwrap_err().to_string().contains("no directions"));
    }
}
