//! How GGUF writes numbers: encodings, the size of their blocks, and their values as f32.
//!
//! A block is a few weights along the input axis that share scales. What a block means is defined by llama.cpp
//! (`ggml-quants.c`, readable in Python as `gguf/quants.py`); candle has the same definitions, and a test holds it to
//! gguf-py's values bit for bit.

use std::borrow::Cow;

use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, Error, Result};

/// One way of writing numbers, as the type id of a tensor names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// ggml's type id.
    pub id: u32,
    /// ggml's name.
    pub name: &'static str,
    /// Numbers in a block.
    pub block: usize,
    /// Bytes of a block.
    pub bytes: usize,
    values: Values,
}

/// Who turns bytes into numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Values {
    Candle(GgmlDType),
    F64,
    Unsupported,
}

const fn encoding(id: u32, name: &'static str, block: usize, bytes: usize, values: Values) -> Encoding {
    Encoding { id, name, block, bytes, values }
}

/// What every block's first scale can be aligned to.
const ALIGNMENT: usize = align_of::<f32>();

/// Every encoding that ggml knows, so that sizes can be checked and what is not read is refused by its name.
const ENCODINGS: &[Encoding] = &[
    encoding(0, "F32", 1, 4, Values::Candle(GgmlDType::F32)),
    encoding(1, "F16", 1, 2, Values::Candle(GgmlDType::F16)),
    encoding(2, "Q4_0", 32, 18, Values::Candle(GgmlDType::Q4_0)),
    encoding(3, "Q4_1", 32, 20, Values::Candle(GgmlDType::Q4_1)),
    encoding(6, "Q5_0", 32, 22, Values::Candle(GgmlDType::Q5_0)),
    encoding(7, "Q5_1", 32, 24, Values::Candle(GgmlDType::Q5_1)),
    encoding(8, "Q8_0", 32, 34, Values::Candle(GgmlDType::Q8_0)),
    encoding(9, "Q8_1", 32, 40, Values::Unsupported),
    encoding(10, "Q2_K", 256, 84, Values::Candle(GgmlDType::Q2K)),
    encoding(11, "Q3_K", 256, 110, Values::Candle(GgmlDType::Q3K)),
    encoding(12, "Q4_K", 256, 144, Values::Candle(GgmlDType::Q4K)),
    encoding(13, "Q5_K", 256, 176, Values::Candle(GgmlDType::Q5K)),
    encoding(14, "Q6_K", 256, 210, Values::Candle(GgmlDType::Q6K)),
    encoding(15, "Q8_K", 256, 292, Values::Unsupported),
    encoding(16, "IQ2_XXS", 256, 66, Values::Unsupported),
    encoding(17, "IQ2_XS", 256, 74, Values::Unsupported),
    encoding(18, "IQ3_XXS", 256, 98, Values::Unsupported),
    encoding(19, "IQ1_S", 256, 50, Values::Unsupported),
    encoding(20, "IQ4_NL", 32, 18, Values::Unsupported),
    encoding(21, "IQ3_S", 256, 110, Values::Unsupported),
    encoding(22, "IQ2_S", 256, 82, Values::Unsupported),
    encoding(23, "IQ4_XS", 256, 136, Values::Unsupported),
    encoding(24, "I8", 1, 1, Values::Unsupported),
    encoding(25, "I16", 1, 2, Values::Unsupported),
    encoding(26, "I32", 1, 4, Values::Unsupported),
    encoding(27, "I64", 1, 8, Values::Unsupported),
    encoding(28, "F64", 1, 8, Values::F64),
    encoding(29, "IQ1_M", 256, 56, Values::Unsupported),
    encoding(30, "BF16", 1, 2, Values::Candle(GgmlDType::BF16)),
    encoding(34, "TQ1_0", 256, 54, Values::Unsupported),
    encoding(35, "TQ2_0", 256, 66, Values::Unsupported),
    encoding(39, "MXFP4", 32, 17, Values::Unsupported),
    encoding(40, "NVFP4", 64, 36, Values::Unsupported),
    encoding(41, "Q1_0", 128, 18, Values::Unsupported),
];

impl Encoding {
    /// The encoding of a type id; none if ggml has no such type.
    pub fn of(id: u32) -> Option<Self> {
        ENCODINGS.iter().copied().find(|encoding| encoding.id == id)
    }

    /// Whether its numbers can be read.
    pub fn is_supported(self) -> bool {
        self.values != Values::Unsupported
    }

    /// The names of all encodings that can be read.
    pub fn supported() -> String {
        let names: Vec<&str> = ENCODINGS.iter().filter(|known| known.is_supported()).map(|known| known.name).collect();
        names.join(", ")
    }

    /// Bytes of `numbers` numbers; none if they are not whole blocks or there are too many.
    pub fn bytes_of(self, numbers: u64) -> Option<u64> {
        let blocks = numbers.is_multiple_of(self.block as u64).then_some(numbers / self.block as u64)?;
        blocks.checked_mul(self.bytes as u64)
    }

    /// The numbers of whole blocks.
    pub fn numbers(self, blocks: &[u8]) -> Result<Vec<f32>> {
        if !blocks.len().is_multiple_of(self.bytes) {
            return Err(Error::Msg(format!("{} bytes are no whole blocks of {}", blocks.len(), self.name)));
        }
        match self.values {
            Values::Candle(dtype) => {
                // candle reads scales where they lie, and panics where that is at an odd address.
                let mut room = vec![0; blocks.len() + ALIGNMENT];
                let start = room.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
                let aligned = &mut room[start..][..blocks.len()];
                aligned.copy_from_slice(blocks);
                let count = blocks.len() / self.bytes * self.block;
                match dtype.from_data(Cow::Borrowed(aligned)).dequantize(count)? {
                    CpuStorage::F32(numbers) => Ok(numbers),
                    _ => Err(Error::Msg(format!("{} has values that are not f32", self.name))),
                }
            }
            Values::F64 => Ok(blocks.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect()),
            Values::Unsupported => Err(Error::Msg(format!("{} cannot be read", self.name))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::path::Path;

    /// Blocks and their values by gguf-py; see tools/goldens/gguf.py.
    #[test]
    fn blocks_mean_what_llama_cpp_defines() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/gguf/blocks.safetensors");
        let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let mut checked = 0;
        for encoding in ENCODINGS.iter().filter(|encoding| encoding.is_supported() && encoding.name != "F64") {
            let blocks = golden[&format!("{}.blocks", encoding.name)].flatten_all().unwrap().to_vec1::<u8>().unwrap();
            let values = golden[&format!("{}.values", encoding.name)].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            // At every address that a byte can have.
            for shift in 0..4 {
                let moved = [&vec![0; shift], blocks.as_slice()].concat();
                let ours = encoding.numbers(&moved[shift..]).unwrap();
                assert_eq!(ours.len(), values.len());
                for (at, (ours, theirs)) in ours.iter().zip(&values).enumerate() {
                    assert_eq!(ours.to_bits(), theirs.to_bits(), "{} at {at}: {ours} for {theirs}", encoding.name);
                }
            }
            checked += 1;
        }
        assert_eq!((checked, golden.len()), (13, 2 * 13));
    }

    #[test]
    fn doubles_are_rounded_to_f32() {
        let bytes: Vec<u8> = [0.1f64, -3.5].iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(Encoding::of(28).unwrap().numbers(&bytes).unwrap(), [0.1f32, -3.5]);
    }

    #[test]
    fn what_is_not_whole_or_not_known_is_refused() {
        let q4k = Encoding::of(12).unwrap();
        assert_eq!((q4k.bytes_of(512), q4k.bytes_of(500)), (Some(288), None));
        assert_eq!(Encoding::of(0).unwrap().bytes_of(u64::MAX), None);
        assert!(q4k.numbers(&[0; 143]).is_err());
        assert!(Encoding::of(23).unwrap().numbers(&[0; 136]).unwrap_err().to_string().contains("IQ4_XS"));
        assert_eq!(Encoding::of(4), None);
        assert!(Encoding::supported().starts_with("F32, F16, Q4_0") && !Encoding::supported().contains("IQ"));
    }
}
