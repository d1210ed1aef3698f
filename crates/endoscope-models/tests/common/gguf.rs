//! A writer of GGUF files, for files that are changed or lie.

use std::collections::BTreeMap;
use std::path::PathBuf;

use endoscope_models::gguf::{GgufFile, Value};

pub type Metadata = BTreeMap<String, Value>;

/// What a header says of a tensor: name, dimensions (fastest first), type, offset.
#[derive(Debug, Clone)]
pub struct Info {
    pub name: String,
    pub dimensions: Vec<u64>,
    pub encoding: u32,
    pub offset: u64,
}

/// A golden file, taken apart: metadata, tensors, data.
pub fn taken_apart(name: &str) -> (Metadata, Vec<Info>, Vec<u8>) {
    let path = super::goldens().join(format!("gguf/{name}.gguf"));
    let (file, bytes) = (GgufFile::open(&path).unwrap(), std::fs::read(&path).unwrap());
    let data = file.tensors.values().map(|info| info.bytes.start).min().unwrap();
    let infos = file.tensors.iter().map(|(name, info)| Info {
        name: name.clone(),
        dimensions: info.shape.iter().rev().map(|&size| size as u64).collect(),
        encoding: info.encoding.id,
        offset: info.bytes.start - data,
    });
    (file.metadata.clone(), infos.collect(), bytes[data as usize..].to_vec())
}

/// A text as the format has it.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn value(value: &Value) -> Vec<u8> {
    fn list<T>(kind: u32, list: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
        let head = [9u32.to_le_bytes().as_slice(), &kind.to_le_bytes(), &(list.len() as u64).to_le_bytes()].concat();
        [head, list.iter().flat_map(bytes).collect()].concat()
    }
    let single = |kind: u32, bytes: &[u8]| [&kind.to_le_bytes(), bytes].concat();
    match value {
        Value::Integer(number) => single(11, &number.to_le_bytes()),
        Value::Float(number) => single(12, &number.to_le_bytes()),
        Value::Switch(switch) => single(7, &[u8::from(*switch)]),
        Value::Text(content) => single(8, &text(content)),
        Value::Integers(numbers) => list(11, numbers, |number| number.to_le_bytes().to_vec()),
        Value::Floats(numbers) => list(12, numbers, |number| number.to_le_bytes().to_vec()),
        Value::Texts(texts) => list(8, texts, |content| text(content)),
    }
}

/// The bytes of a file.
pub fn put_together(metadata: &Metadata, infos: &[Info], data: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((infos.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, content) in metadata {
        bytes.extend([text(key), value(content)].concat());
    }
    for info in infos {
        bytes.extend(text(&info.name));
        bytes.extend((info.dimensions.len() as u32).to_le_bytes());
        bytes.extend(info.dimensions.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(info.encoding.to_le_bytes());
        bytes.extend(info.offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    bytes
}

/// A golden file with its metadata changed, alone in a folder.
pub fn with_metadata(name: &str, change: impl FnOnce(&mut Metadata)) -> (tempfile::TempDir, PathBuf) {
    let (mut metadata, infos, data) = taken_apart(name);
    change(&mut metadata);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("written.gguf");
    std::fs::write(&path, put_together(&metadata, &infos, &data)).unwrap();
    (directory, path)
}
