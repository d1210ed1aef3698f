//! What is trained on: batches that are a pure function of seed and step.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Sequences and which of their tokens shall be predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `[row, position]`, all rows of one length.
    pub tokens: Vec<Vec<u32>>,
    /// `[row, position]`: whether the token at that position counts in the loss (as the target of the position before).
    /// Position 0 is never a target.
    pub mask: Vec<Vec<bool>>,
}

/// A source of batches. Everything that a resumed run sees again is a function of its arguments.
pub trait Batches {
    /// How many tokens there are.
    fn vocabulary(&self) -> usize;
    /// How long a sequence is.
    fn length(&self) -> usize;
    /// `rows` sequences; the same for the same arguments.
    fn batch(&self, seed: u64, step: u64, rows: usize) -> Batch;
}

/// The random numbers of stream `stream` under `seed`: other streams are independent of it.
pub fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

impl Batch {
    /// What is wrong with it for a model of this size.
    pub(crate) fn problem(&self, vocabulary: usize, context: usize) -> Option<String> {
        let length = self.tokens.first().map_or(0, Vec::len);
        if length < 2 || length > context {
            return Some(format!("its sequences have {length} tokens, but 2 to {context} (model.context) are needed"));
        }
        if self.mask.len() != self.tokens.len() {
            return Some(format!("it has {} rows of tokens but {} of mask", self.tokens.len(), self.mask.len()));
        }
        for (row, (tokens, mask)) in self.tokens.iter().zip(&self.mask).enumerate() {
            if tokens.len() != length || mask.len() != length {
                let lengths = (tokens.len(), mask.len());
                return Some(format!("row {row} has {} tokens and a mask of {}, not {length}", lengths.0, lengths.1));
            }
            if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
                return Some(format!("row {row} holds token {id}, but the vocabulary has {vocabulary}"));
            }
        }
        let targets = self.mask.iter().flat_map(|mask| mask.iter().skip(1)).filter(|&&counts| counts).count();
        (targets == 0).then(|| "no position counts in the loss".to_string())
    }
}
