//! The header of a `.npy` array: a Python dictionary of three keys
//! (numpy.org/doc/stable/reference/generated/numpy.lib.format.html).

use safetensors::Dtype;

/// More than a header ever needs.
pub(crate) const LONGEST_HEADER: u64 = 1 << 16;
const MAGIC: &[u8] = b"\x93NUMPY";

/// What a header says.
#[derive(Debug, PartialEq)]
pub(crate) struct Header {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Whether it is stored column after column, as Fortran does.
    pub columns_first: bool,
}

/// The header at the start of `bytes`, and how long it is.
pub(crate) fn header(bytes: &[u8]) -> Result<(Header, u64), String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is no array of numpy")?;
    let short = || "its header is cut short".to_string();
    let (length, start) = match rest {
        [1, _, low, high, ..] => (usize::from(u16::from_le_bytes([*low, *high])), MAGIC.len() + 4),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, MAGIC.len() + 6),
        [version, ..] => return Err(format!("its header is of version {version}, not 1 to 3")),
        [] => return Err(short()),
    };
    let end = start.checked_add(length).ok_or_else(short)?;
    let text = std::str::from_utf8(bytes.get(start..end).ok_or_else(short)?).map_err(|error| error.to_string())?;
    Ok((dictionary(text)?, end as u64))
}

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn dictionary(text: &str) -> Result<Header, String> {
    let wrong = || format!("its header `{}` is not understood", text.trim_end());
    let inner = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or_else(wrong)?;
    let (mut dtype, mut shape, mut columns_first) = (None, None, None);
    let mut rest = inner.trim();
    while !rest.is_empty() {
        let (key, after) = quoted(rest).ok_or_else(wrong)?;
        let value = after.trim_start().strip_prefix(':').ok_or_else(wrong)?.trim_start();
        let after = match key {
            "descr" => {
                let (name, after) = quoted(value).ok_or_else(wrong)?;
                dtype =
                    Some(kind(name).ok_or_else(|| format!("its numbers are of the kind `{name}`, which is not read"))?);
                after
            }
            "fortran_order" => {
                let truth = ["True", "False"].into_iter().find(|truth| value.starts_with(truth)).ok_or_else(wrong)?;
                columns_first = Some(truth == "True");
                &value[truth.len()..]
            }
            "shape" => {
                let (sizes, after) =
                    value.strip_prefix('(').and_then(|value| value.split_once(')')).ok_or_else(wrong)?;
                let sizes = sizes.split(',').map(str::trim).filter(|size| !size.is_empty());
                shape = Some(sizes.map(|size| size.parse().map_err(|_| wrong())).collect::<Result<Vec<usize>, _>>()?);
                after
            }
            _ => return Err(wrong()),
        };
        let after = after.trim_start();
        rest = after.strip_prefix(',').unwrap_or(after).trim_start();
        if !after.is_empty() && !after.starts_with(',') {
            return Err(wrong());
        }
    }
    let (Some(dtype), Some(shape), Some(columns_first)) = (dtype, shape, columns_first) else { return Err(wrong()) };
    Ok(Header { dtype, shape, columns_first })
}

/// A text between quotes, and what comes after.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| ['\'', '"'].contains(quote))?;
    text[1..].split_once(quote)
}

fn kind(name: &str) -> Option<Dtype> {
    Some(match name {
        "<f8" => Dtype::F64,
        "<f4" => Dtype::F32,
        "<f2" => Dtype::F16,
        "<i8" => Dtype::I64,
        "<i4" => Dtype::I32,
        "|u1" => Dtype::U8,
        "|b1" => Dtype::BOOL,
        _ => return None,
    })
}

/// The header of an f32 array, padded as numpy pads it.
pub(crate) fn written_header(shape: &[usize]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", sizes.trim_end_matches(' '));
    let start = MAGIC.len() + 4;
    let padded = (start + text.len() + 1).next_multiple_of(64);
    text.push_str(&" ".repeat(padded - start - text.len() - 1));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for shape in [vec![], vec![3], vec![3, 4], vec![1, 2, 3, 4]] {
            let bytes = written_header(&shape);
            assert_eq!(bytes.len() % 64, 0);
            let (header, length) = header(&bytes).unwrap();
            assert_eq!(header, Header { dtype: Dtype::F32, shape, columns_first: false });
            assert_eq!(length, bytes.len() as u64);
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let cases = [
            ("{'descr': '<c8', 'fortran_order': False, 'shape': (3,)}", "the kind `<c8`"),
            ("{'descr': '<f4', 'fortran_order': Maybe, 'shape': (3,)}", "is not understood"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}", "is not understood"),
            ("{'descr': '<f4', 'fortran_order': False}", "is not understood"),
            ("{'descr': '<f4' 'fortran_order': False, 'shape': ()}", "is not understood"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}", "is not understood"),
            ("", "is not understood"),
        ];
        for (text, expected) in cases {
            let error = dictionary(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for bytes in [&b"\x93NUMPY"[..], b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x09\x00", b"PK"] {
            assert!(header(bytes).is_err());
        }
        let (header, _) = header(
            &[MAGIC, &[2, 0, 55, 0, 0, 0], b"{\"shape\":(2,3),'fortran_order':True,'descr':'<i8'}     \n"].concat(),
        )
        .unwrap();
        assert_eq!(header, Header { dtype: Dtype::I64, shape: vec![2, 3], columns_first: true });
    }
}
