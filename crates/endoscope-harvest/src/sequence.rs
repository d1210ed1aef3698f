//! Sequences: documents packed into blocks of one length, or one by one.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How documents become what the network runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceMode {
    /// All documents one after the other, cut into blocks of the context's length; what is left at the end is left out.
    Blocks,
    /// Each document by itself, cut at the context's length.
    Examples,
}

/// The rule by which documents become sequences.
///
/// Blocks are those of SAELens's `concat_and_batch_sequences` with `begin` for its `begin_batch_token_id` and `separator` for
/// its `sequence_separator_token_id`; a golden holds the two together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packing {
    /// Blocks or examples.
    pub mode: SequenceMode,
    /// The most tokens that a sequence has.
    pub context: usize,
    /// Put at the start of each sequence that does not begin with it.
    pub begin: Option<u32>,
    /// Put between two documents of a block, where the second does not begin with it.
    pub separator: Option<u32>,
}

/// A place in a corpus, between two sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The document that goes on here, from 0.
    pub document: u64,
    /// Its next token, from 0.
    pub token: u64,
    /// The sequence that begins here, from 0.
    pub sequence: u64,
}

/// What the network runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its number, from 0.
    pub number: u64,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The document of each token. What was put before a token counts to that token's document.
    pub documents: Vec<u64>,
    /// The place after it.
    pub after: Cursor,
}

impl Sequence {
    /// The document and the token at a position that it has.
    pub(crate) fn at(&self, position: usize) -> (u64, u32) {
        let found = self.documents.get(position).zip(self.tokens.get(position));
        found.map_or((0, 0), |(&document, &token)| (document, token))
    }
}

impl Packing {
    /// Whether sequences of this kind can be made at all.
    pub fn check(&self) -> Result<()> {
        let least = 1 + usize::from(self.begin.is_some());
        match self.context < least {
            true => Err(Error::Settings(format!("a context of {} tokens holds nothing of a document", self.context))),
            false => Ok(()),
        }
    }
}

/// The sequences of a stream of documents, from some place on.
pub struct Sequences<I> {
    packing: Packing,
    /// The documents from the cursor's on.
    documents: I,
    cursor: Cursor,
    /// The tokens of the cursor's document, once read.
    current: Option<Vec<u32>>,
    /// The block that is being filled.
    tokens: Vec<u32>,
    of: Vec<u64>,
    left_out: u64,
}

impl<I: Iterator<Item = Result<Vec<u32>>>> Sequences<I> {
    /// The sequences from `cursor` on; the first of `documents` must be the cursor's.
    pub fn new(packing: Packing, documents: I, cursor: Cursor) -> Result<Self> {
        packing.check()?;
        Ok(Self { packing, documents, cursor, current: None, tokens: Vec::new(), of: Vec::new(), left_out: 0 })
    }

    /// The place after the last sequence that was given.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// How many tokens of documents came into no sequence since this began: what examples are cut by, and what filled no
    /// block at the end.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.of.push(self.cursor.document);
    }

    fn next_document(&mut self) {
        self.current = None;
        self.cursor.document += 1;
        self.cursor.token = 0;
    }

    /// Adds as much of `document` as there is room for; whether the block is full then.
    fn fill(&mut self, document: &[u32]) -> bool {
        let rest = document.get(self.cursor.token as usize..).unwrap_or_default();
        let Some(&first) = rest.first() else { return false };
        // A document that goes on from the block before begins a block, so this stands between documents only.
        let before = if self.tokens.is_empty() { self.packing.begin } else { self.packing.separator };
        if let Some(token) = before.filter(|&token| token != first) {
            self.push(token);
        }
        for &token in rest.iter().take(self.packing.context.saturating_sub(self.tokens.len())) {
            self.push(token);
            self.cursor.token += 1;
        }
        self.tokens.len() >= self.packing.context
    }

    /// What was filled, as a sequence.
    fn take(&mut self) -> Sequence {
        let number = self.cursor.sequence;
        self.cursor.sequence += 1;
        let (tokens, documents) = (std::mem::take(&mut self.tokens), std::mem::take(&mut self.of));
        Sequence { number, tokens, documents, after: self.cursor }
    }

    fn step(&mut self) -> Result<Option<Sequence>> {
        loop {
            let document = match self.current.take() {
                Some(document) => document,
                None => match self.documents.next() {
                    Some(document) => document?,
                    None => {
                        self.left_out += std::mem::take(&mut self.tokens).len() as u64;
                        self.of.clear();
                        return Ok(None);
                    }
                },
            };
            let full = self.fill(&document);
            let left = (document.len() as u64).saturating_sub(self.cursor.token);
            match self.packing.mode {
                SequenceMode::Examples => {
                    self.left_out += left;
                    self.next_document();
                    if !self.tokens.is_empty() {
                        return Ok(Some(self.take()));
                    }
                }
                SequenceMode::Blocks => {
                    match left {
                        0 => self.next_document(),
                        _ => self.current = Some(document),
                    }
                    if full {
                        return Ok(Some(self.take()));
                    }
                }
            }
        }
    }
}

impl<I: Iterator<Item = Result<Vec<u32>>>> Iterator for Sequences<I> {
    type Item = Result<Sequence>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(packing: Packing, documents: &[Vec<u32>], cursor: Cursor) -> Vec<Sequence> {
        let from = documents.iter().skip(cursor.document as usize).cloned().map(Ok);
        Sequences::new(packing, from, cursor).unwrap().collect::<Result<_>>().unwrap()
    }

    const BLOCKS: Packing = Packing { mode: SequenceMode::Blocks, context: 4, begin: Some(0), separator: Some(9) };

    #[test]
    fn blocks_have_a_beginning_and_separators() {
        let documents = [vec![1, 2, 3, 4, 5], vec![], vec![9, 6], vec![0, 7, 8, 8], vec![1]];
        let found = all(BLOCKS, &documents, Cursor::default());
        let tokens: Vec<&[u32]> = found.iter().map(|sequence| sequence.tokens.as_slice()).collect();
        assert_eq!(tokens, [[0, 1, 2, 3], [0, 4, 5, 9], [0, 6, 9, 0], [0, 7, 8, 8]]);
        assert_eq!(found[2].documents, [2, 2, 3, 3]);
        assert_eq!(found[1].after, Cursor { document: 2, token: 1, sequence: 2 });
        // The last block is not full.
        let mut sequences = Sequences::new(BLOCKS, documents.into_iter().map(Ok), Cursor::default()).unwrap();
        assert_eq!((sequences.by_ref().count(), sequences.left_out()), (4, 2));
    }

    #[test]
    fn examples_are_cut_and_keep_their_order() {
        let packing = Packing { mode: SequenceMode::Examples, ..BLOCKS };
        let documents = [vec![1, 2, 3, 4, 5], vec![], vec![0, 6]];
        let found = all(packing, &documents, Cursor::default());
        assert_eq!(found[0].tokens, [0, 1, 2, 3]);
        assert_eq!((found[1].tokens.as_slice(), found[1].documents.as_slice()), (&[0, 6][..], &[2, 2][..]));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_context_that_holds_nothing_is_refused() {
        let packing = Packing { context: 1, ..BLOCKS };
        assert!(matches!(packing.check(), Err(Error::Settings(_))));
        assert!(Packing { begin: None, ..packing }.check().is_ok());
    }

    proptest! {
        #[test]
        fn from_any_place_the_rest_is_the_same(
            documents in prop::collection::vec(prop::collection::vec(0u32..6, 0..12), 0..12),
            context in 2usize..7,
            begin in prop::option::of(0u32..3),
            separator in prop::option::of(0u32..3),
            blocks in any::<bool>(),
        ) {
            let mode = if blocks { SequenceMode::Blocks } else { SequenceMode::Examples };
            let packing = Packing { mode, context, begin, separator };
            let whole = all(packing, &documents, Cursor::default());
            for (number, sequence) in whole.iter().enumerate() {
                prop_assert_eq!(&all(packing, &documents, sequence.after)[..], &whole[number + 1..]);
                prop_assert_eq!(sequence.number, number as u64);
                prop_assert!(!blocks || sequence.tokens.len() == context);
            }
        }
    }
}
