//! The positions that an index means in a prompt.

use endoscope_net::Index;

use crate::error::{Error, Result};

/// The positions of a prompt of `length` tokens that `index` means, from 0.
pub(crate) fn places(index: &Index, length: usize) -> Result<Vec<usize>> {
    let end = length as i64;
    let from_start = |at: i64| if at < 0 { at.saturating_add(end) } else { at };
    let one = |&at: &i64| match usize::try_from(from_start(at)) {
        Ok(place) if place < length => Ok(place),
        _ => Err(Error::Sweep(format!("position {at} is outside of a prompt of {length} tokens"))),
    };
    match index {
        Index::All => Ok((0..length).collect()),
        Index::At(at) => Ok(vec![one(at)?]),
        Index::List(list) => list.iter().map(one).collect(),
        Index::Range { start, end: stop } => {
            let clamped = |at: i64| from_start(at).clamp(0, end) as usize;
            Ok((clamped(*start)..stop.map_or(length, clamped)).collect())
        }
        Index::Generated => Err(Error::Sweep("nothing is generated here, so no position is".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_places() {
        for (written, expected) in [
            ("all", vec![0, 1, 2, 3]),
            ("-1", vec![3]),
            ("1,-2", vec![1, 2]),
            ("1..3", vec![1, 2]),
            ("-2..", vec![2, 3]),
            ("2..9", vec![2, 3]),
        ] {
            assert_eq!(places(&written.parse().unwrap(), 4).unwrap(), expected, "{written}");
        }
        for written in ["4", "-5", "0,7", "generated"] {
            assert!(places(&written.parse().unwrap(), 4).is_err(), "{written}");
        }
    }
}
