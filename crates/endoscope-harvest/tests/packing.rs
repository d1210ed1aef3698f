//! Blocks are SAELens's, token by token: tools/goldens/packing_goldens.py.

#![allow(clippy::unwrap_used)]

use endoscope_harvest::{Cursor, Packing, SequenceMode, Sequences};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    context: usize,
    begin: Option<u32>,
    separator: Option<u32>,
    documents: Vec<Vec<u32>>,
    blocks: Vec<Vec<u32>>,
}

#[test]
fn blocks_are_those_of_sae_lens() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("goldens/packing.json")).unwrap();
    assert_eq!(cases.len(), 27);
    for Case { context, begin, separator, documents, blocks } in cases {
        let packing = Packing { mode: SequenceMode::Blocks, context, begin, separator };
        let sequences = Sequences::new(packing, documents.into_iter().map(Ok), Cursor::default()).unwrap();
        let found: Vec<Vec<u32>> = sequences.map(|sequence| sequence.unwrap().tokens).collect();
        assert_eq!(found, blocks, "{packing:?}");
    }
}
