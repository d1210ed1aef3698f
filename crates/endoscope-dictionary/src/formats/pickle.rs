//! The tensors of a file of `torch.save`, read without executing anything.
//!
//! A pickle is a program for a machine with a stack (Python's `pickletools` describes it). This machine knows the
//! instructions that a dictionary of tensors needs, and of the functions that a pickle may call only those that put a tensor
//! together. Any other instruction or function is an error that names it, so a hostile file can do nothing. What it builds is
//! at most as large as the file: compound values lie in tables and are named by their numbers.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use safetensors::Dtype;

use super::archive::Archive;
use super::arrays::{Arrays, Place};
use crate::error::{Error, Result};

/// More than the program of a dictionary ever needs: the numbers lie elsewhere.
const LONGEST: u64 = 16 << 20;
const MOST_AXES: usize = 8;

/// The arrays of a file that `torch.save` wrote of a state dictionary.
pub(crate) fn torch(path: &Path) -> Result<Arrays> {
    let fail = |reason: String| Error::file(path, reason);
    let mut start = [0; 2];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start));
    read.map_err(|error| Error::file(path, error))?;
    if &start != b"PK" {
        return Err(fail(
            "it is not a zip file: torch before 1.6 wrote it, or something else; load it with torch and save it again"
                .into(),
        ));
    }
    let mut archive = Archive::open(path)?;
    let program = archive.members.keys().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl")).cloned();
    let program = program.ok_or_else(|| fail("it has no data.pkl: torch.save did not write it".into()))?;
    let prefix = program.trim_end_matches("data.pkl").to_string();
    let order = archive.members.get(&format!("{prefix}byteorder")).cloned();
    if let Some(range) = order {
        let order = archive.bytes(&range, 16).map_err(|error| Error::file(path, error))?;
        if order != b"little" {
            return Err(fail(format!("its numbers are {}-endian", String::from_utf8_lossy(&order))));
        }
    }
    let range = archive.members[&program].clone();
    if range.end - range.start > LONGEST {
        return Err(fail(format!("its data.pkl has more than {LONGEST} bytes")));
    }
    let bytes = archive.bytes(&range, LONGEST).map_err(|error| Error::file(path, error))?;
    let tensors = tensors(&bytes).map_err(|wrong| match wrong {
        Wrong::Broken(reason) => fail(format!("its data.pkl is not whole: {reason}")),
        Wrong::Foreign(what) => Error::Unsupported { path: path.to_path_buf(), what },
    })?;
    let mut places = BTreeMap::new();
    for (name, tensor) in tensors {
        let member = archive.members.get(&format!("{prefix}data/{}", tensor.storage));
        let member =
            member.ok_or_else(|| fail(format!("the numbers of `{name}` (data/{}) are missing", tensor.storage)))?;
        let width = tensor.dtype.bitsize() as u64 / 8;
        let start = (tensor.offset as u64).checked_mul(width).and_then(|offset| offset.checked_add(member.start));
        let start = start.ok_or_else(|| fail(format!("`{name}` lies beyond every file")))?;
        let place = Place { dtype: tensor.dtype, shape: tensor.shape, strides: tensor.strides, start };
        if place.shape.len() != place.strides.len() || place.end().is_none_or(|end| end > member.end) {
            return Err(fail(format!("`{name}` of shape {:?} reaches beyond its numbers", place.shape)));
        }
        places.insert(name, place);
    }
    Arrays::new(path, archive.file, places)
}

/// Why a program is not followed.
#[derive(Debug, Clone, PartialEq)]
enum Wrong {
    /// It makes no sense.
    Broken(String),
    /// It asks for what this machine does not do.
    Foreign(String),
}

type Step<T> = std::result::Result<T, Wrong>;

fn broken<T>(reason: impl Into<String>) -> Step<T> {
    Err(Wrong::Broken(reason.into()))
}

/// A tensor by its storage.
#[derive(Debug, Clone, PartialEq)]
struct Tensor {
    storage: Rc<str>,
    dtype: Dtype,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// What may be called.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

/// Anything that lies on the stack. Nothing holds another value but by a number, so that none is deep.
#[derive(Debug, Clone)]
enum Value {
    None,
    Bool,
    Float,
    Int(i64),
    Text(Rc<str>),
    Function(Function),
    StorageKind(Dtype),
    Storage(Rc<str>, Dtype),
    Tensor(usize),
    Tuple(usize),
    List,
    Dict(usize),
    Mark,
}

/// The functions and classes that are known.
fn global(module: &str, name: &str) -> Step<Value> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Value::Function(Function::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Value::Function(Function::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Value::Function(Function::RebuildParameter),
        ("torch", "FloatStorage") => Value::StorageKind(Dtype::F32),
        ("torch", "HalfStorage") => Value::StorageKind(Dtype::F16),
        ("torch", "BFloat16Storage") => Value::StorageKind(Dtype::BF16),
        ("torch", "DoubleStorage") => Value::StorageKind(Dtype::F64),
        ("torch", "LongStorage") => Value::StorageKind(Dtype::I64),
        ("torch", "IntStorage") => Value::StorageKind(Dtype::I32),
        ("torch", "ByteStorage") => Value::StorageKind(Dtype::U8),
        ("torch", "BoolStorage") => Value::StorageKind(Dtype::BOOL),
        _ => return Err(Wrong::Foreign(format!("`{module}.{name}` in a pickle, where only tensors are read"))),
    })
}

/// The stack, and what was built.
#[derive(Default)]
struct Machine {
    stack: Vec<Value>,
    memo: BTreeMap<usize, Value>,
    tuples: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    tensors: Vec<Tensor>,
}

/// The tensors of the dictionary that a program builds.
fn tensors(program: &[u8]) -> Step<Vec<(String, Tensor)>> {
    let mut machine = Machine::default();
    let mut rest = program;
    while machine.step(&mut rest)? {}
    let Value::Dict(dict) = machine.pop()? else { return broken("it holds no dictionary of tensors") };
    let mut named = Vec::new();
    for (key, value) in &machine.dicts[dict] {
        match (key, value) {
            (Value::Text(name), Value::Tensor(tensor)) => {
                named.push((name.to_string(), machine.tensors[*tensor].clone()))
            }
            (Value::Text(name), _) => return broken(format!("`{name}` is not a tensor")),
            _ => return broken("a key of its dictionary is not a text"),
        }
    }
    Ok(named)
}

impl Machine {
    /// Follows one instruction; false when it is the last.
    fn step(&mut self, rest: &mut &[u8]) -> Step<bool> {
        let [code] = take(rest)?;
        match code {
            0x80 => drop(take::<1>(rest)?),
            // Frames say how many bytes may be read at once.
            0x95 => drop(take::<8>(rest)?),
            b'.' => return Ok(false),
            b'(' => self.stack.push(Value::Mark),
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'K' => {
                let [byte] = take(rest)?;
                self.stack.push(Value::Int(byte.into()));
            }
            b'M' => self.push_int(u16::from_le_bytes(take(rest)?)),
            b'J' => self.push_int(i32::from_le_bytes(take(rest)?)),
            0x8a => {
                let [length] = take(rest)?;
                let bytes = take_slice(rest, length.into())?;
                self.stack.push(Value::Int(long(bytes)?));
            }
            b'G' => {
                take::<8>(rest)?;
                self.stack.push(Value::Float);
            }
            b'X' => {
                let length = u32::from_le_bytes(take(rest)?) as usize;
                self.push_text(take_slice(rest, length)?)?;
            }
            0x8c => {
                let [length] = take(rest)?;
                self.push_text(take_slice(rest, length.into())?)?;
            }
            b'c' => {
                let module = line(rest)?;
                let name = line(rest)?;
                self.stack.push(global(module, name)?);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(name), Value::Text(module)) = (name, module) else {
                    return broken("a name is no text");
                };
                self.stack.push(global(&module, &name)?);
            }
            b'q' => {
                let [at] = take(rest)?;
                self.remember(at.into())?;
            }
            b'r' => self.remember(u32::from_le_bytes(take(rest)?) as usize)?,
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let [at] = take(rest)?;
                self.recall(at.into())?;
            }
            b'j' => self.recall(u32::from_le_bytes(take(rest)?) as usize)?,
            b')' => self.push_tuple(Vec::new()),
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let start = self.stack.len().checked_sub(count).ok_or_else(empty)?;
                let items = self.stack.split_off(start);
                self.push_tuple(items);
            }
            b't' => {
                let items = self.since_mark()?;
                self.push_tuple(items);
            }
            b']' => self.stack.push(Value::List),
            b'a' => drop(self.pop()?),
            b'e' => drop(self.since_mark()?),
            b'}' => self.push_dict(),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.insert(items)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(&id)?;
                self.stack.push(storage);
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = self.call(&function, &arguments)?;
                self.stack.push(made);
            }
            // What else belongs to a dictionary, as `_metadata` of the modules.
            b'b' => {
                self.pop()?;
                let Some(Value::Dict(_)) = self.stack.last() else { return broken("a state of what has none") };
            }
            other => {
                return Err(Wrong::Foreign(format!(
                    "the instruction {other:#04x} in a pickle, where only tensors are read"
                )));
            }
        }
        Ok(true)
    }

    fn pop(&mut self) -> Step<Value> {
        match self.stack.pop() {
            None | Some(Value::Mark) => Err(empty()),
            Some(value) => Ok(value),
        }
    }

    fn since_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark)).ok_or_else(empty)?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn push_int(&mut self, number: impl Into<i64>) {
        self.stack.push(Value::Int(number.into()));
    }

    fn push_text(&mut self, bytes: &[u8]) -> Step<()> {
        let text = std::str::from_utf8(bytes).map_err(|_| Wrong::Broken("a text is not UTF-8".into()))?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.tuples.push(items);
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    /// Puts keys and values, one after the other, into the dictionary on top.
    fn insert(&mut self, items: Vec<Value>) -> Step<()> {
        let Some(Value::Dict(dict)) = self.stack.last() else { return broken("an entry of what is no dictionary") };
        if items.len() % 2 != 0 {
            return broken("a key without a value");
        }
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            self.dicts[*dict].push((key, value));
        }
        Ok(())
    }

    fn remember(&mut self, at: usize) -> Step<()> {
        let top = self.stack.last().filter(|value| !matches!(value, Value::Mark)).ok_or_else(empty)?;
        self.memo.insert(at, top.clone());
        Ok(())
    }

    fn recall(&mut self, at: usize) -> Step<()> {
        let value = self.memo.get(&at).cloned().ok_or_else(|| Wrong::Broken("it recalls what it never kept".into()))?;
        self.stack.push(value);
        Ok(())
    }

    fn tuple(&self, value: &Value) -> Step<&[Value]> {
        match value {
            Value::Tuple(at) => Ok(&self.tuples[*at]),
            _ => broken("something is no tuple"),
        }
    }

    /// The sizes of a tensor.
    fn counts(&self, value: &Value) -> Step<Vec<usize>> {
        if self.tuple(value)?.len() > MOST_AXES {
            return broken(format!("a tensor has more than {MOST_AXES} axes"));
        }
        let count = |value: &Value| match value {
            Value::Int(count) => usize::try_from(*count).map_err(|_| Wrong::Broken("a size is negative".into())),
            _ => broken("a size is no number"),
        };
        self.tuple(value)?.iter().map(count).collect()
    }

    /// `('storage', kind, name, device, count)`.
    fn storage(&self, id: &Value) -> Step<Value> {
        match self.tuple(id)? {
            [Value::Text(what), Value::StorageKind(dtype), Value::Text(name), _, _] if &**what == "storage" => {
                Ok(Value::Storage(name.clone(), *dtype))
            }
            _ => broken("it names no storage of numbers"),
        }
    }

    fn call(&mut self, function: &Value, arguments: &Value) -> Step<Value> {
        let Value::Function(function) = function else { return broken("it calls what is no function") };
        match (function, self.tuple(arguments)?) {
            (Function::OrderedDict, []) => {
                self.dicts.push(Vec::new());
                Ok(Value::Dict(self.dicts.len() - 1))
            }
            (Function::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
            (Function::RebuildTensor, [Value::Storage(storage, dtype), Value::Int(offset), shape, strides, ..]) => {
                let offset = usize::try_from(*offset).map_err(|_| Wrong::Broken("a place is negative".into()))?;
                let (storage, dtype) = (storage.clone(), *dtype);
                let (shape, strides) = (self.counts(shape)?, self.counts(strides)?);
                self.tensors.push(Tensor { storage, dtype, offset, shape, strides });
                Ok(Value::Tensor(self.tensors.len() - 1))
            }
            _ => broken(format!("it calls {function:?} in a way that is not understood")),
        }
    }
}

fn empty() -> Wrong {
    Wrong::Broken("its stack is empty".into())
}

fn take<const N: usize>(rest: &mut &[u8]) -> Step<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk().ok_or_else(|| Wrong::Broken("it is cut short".into()))?;
    *rest = after;
    Ok(*bytes)
}

fn take_slice<'a>(rest: &mut &'a [u8], length: usize) -> Step<&'a [u8]> {
    let (bytes, after) = rest.split_at_checked(length).ok_or_else(|| Wrong::Broken("it is cut short".into()))?;
    *rest = after;
    Ok(bytes)
}

fn line<'a>(rest: &mut &'a [u8]) -> Step<&'a str> {
    let end = rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| Wrong::Broken("it is cut short".into()))?;
    let (bytes, after) = rest.split_at(end);
    *rest = &after[1..];
    std::str::from_utf8(bytes).map_err(|_| Wrong::Broken("a text is not UTF-8".into()))
}

/// A whole number of up to eight bytes, the last of which has the sign.
fn long(bytes: &[u8]) -> Step<i64> {
    if bytes.len() > 8 {
        return broken("a number has more than eight bytes");
    }
    let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
    let mut whole = [fill; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Ok(i64::from_le_bytes(whole))
}
