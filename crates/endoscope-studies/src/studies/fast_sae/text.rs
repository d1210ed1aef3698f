//! The text that dictionaries are trained on and tried on: chats, plain text, and chats without some of their
//! structure.

use endoscope_organisms::tasks::dialogues::{MARKERS, NAME};
use endoscope_organisms::{BOS, Row, TRAIN, Task, task};
use endoscope_train::generator;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::Data;
use crate::error::Result;

/// Rows of the study are drawn under another seed than those of the model's training.
const APART: u64 = 1 << 40;

/// What a token of a chat is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `<bos>`.
    First,
    /// A marker.
    Template,
    /// A key, a value or a question mark, of one half of them or of the other, at random.
    Word(bool),
}

/// All text of one seed.
pub struct Texts {
    training: Vec<Vec<u32>>,
    training_plain: Vec<Vec<u32>>,
    /// Held-out chats with their masks.
    pub held_out: Vec<Row>,
    /// The same as tokens.
    pub chats: Vec<Vec<u32>>,
    /// Held-out plain text.
    pub plain: Vec<Vec<u32>>,
    /// Held-out documents without structure, as long as the chats.
    pub unstructured: Vec<Vec<u32>>,
    markers: Vec<u32>,
    /// How long a block is: as the longest chat.
    block: usize,
    seed: u64,
}

impl Texts {
    /// So many chats to train on and to be tried on, and as much plain text.
    pub fn new(chats: usize, held_out: usize, seed: u64) -> Result<Self> {
        let seed = seed ^ APART;
        let keys = |form: &str| -> toml::Table { [("form".to_string(), form.into())].into_iter().collect() };
        let (chat, plain) = (task(NAME, &keys("chat"))?, task(NAME, &keys("plain"))?);
        let rows = |task: &dyn Task, first: usize, count: usize| {
            (first..first + count).map(|number| Ok(task.row(TRAIN, seed, number as u64)?)).collect::<Result<Vec<Row>>>()
        };
        let tokens = |rows: Vec<Row>| rows.into_iter().map(|row| row.tokens).collect::<Vec<_>>();
        let training = tokens(rows(&*chat, held_out, chats)?);
        let words = chat.words();
        let marked = |id: &u32| MARKERS.contains(&words[*id as usize].as_str());
        let held_out_chats = rows(&*chat, 0, held_out)?;
        let chats_of = tokens(held_out_chats.clone());
        Ok(Self {
            // Plain text is shorter: enough of it for as many tokens.
            training_plain: tokens(rows(&*plain, held_out, 4 * chats)?),
            plain: tokens(rows(&*plain, 0, held_out)?),
            unstructured: unstructured(&chats_of, seed, 1),
            markers: (0..words.len() as u32).filter(marked).collect(),
            block: chat.length(),
            held_out: held_out_chats,
            chats: chats_of,
            training,
            seed,
        })
    }

    /// Rows to train on, whole or joined and cut into blocks; always as many tokens.
    pub fn training(&self, data: Data, whole: bool) -> Vec<Vec<u32>> {
        let rows = match data {
            Data::Chats => self.training.clone(),
            Data::Plain => self.training_plain.clone(),
            Data::Permuted => permuted(&self.training, &self.markers, self.seed),
            Data::Unstructured => unstructured(&self.training, self.seed, 2),
        };
        if whole { rows } else { blocks(&rows, self.block, self.training.iter().map(Vec::len).sum()) }
    }

    /// What each token of the held-out chats is, row after row.
    pub fn classes(&self, seed: u64) -> Vec<Class> {
        let mut random = generator(seed, 3);
        let mut class = |at: usize, token: u32| match at {
            0 => Class::First,
            _ if self.markers.contains(&token) => Class::Template,
            _ => Class::Word(random.random()),
        };
        let mut classes = Vec::new();
        for row in &self.chats {
            classes.extend(row.iter().enumerate().map(|(at, &token)| class(at, token)));
        }
        classes
    }
}

/// Each chat with its markers in random order, in the places of markers.
fn permuted(rows: &[Vec<u32>], markers: &[u32], seed: u64) -> Vec<Vec<u32>> {
    let mut random = generator(seed, 4);
    let mut permuted = rows.to_vec();
    for row in &mut permuted {
        let places: Vec<usize> = (0..row.len()).filter(|&at| markers.contains(&row[at])).collect();
        let mut found: Vec<u32> = places.iter().map(|&at| row[at]).collect();
        found.shuffle(&mut random);
        places.into_iter().zip(found).for_each(|(at, token)| row[at] = token);
    }
    permuted
}

/// Documents as long as the rows, with the tokens of all of them dealt out at random; `<bos>` stays first.
fn unstructured(rows: &[Vec<u32>], seed: u64, stream: u64) -> Vec<Vec<u32>> {
    let mut bag: Vec<u32> = rows.iter().flat_map(|row| row.iter().skip(1).copied()).collect();
    bag.shuffle(&mut generator(seed, stream));
    let mut bag = bag.into_iter();
    rows.iter().map(|row| std::iter::once(BOS).chain(bag.by_ref().take(row.len() - 1)).collect()).collect()
}

/// The first `total` tokens of all rows together, cut into blocks; the last may be shorter.
fn blocks(rows: &[Vec<u32>], length: usize, total: usize) -> Vec<Vec<u32>> {
    let tokens: Vec<u32> = rows.iter().flatten().copied().take(total).collect();
    tokens.chunks(length).map(<[u32]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(rows: &[Vec<u32>]) -> Vec<u32> {
        let mut all = rows.concat();
        all.sort_unstable();
        all
    }

    #[test]
    fn all_data_have_as_many_tokens() {
        let texts = Texts::new(40, 8, 1).unwrap();
        let count = |data, whole| texts.training(data, whole).iter().map(Vec::len).sum::<usize>();
        let chats = count(Data::Chats, true);
        for data in [Data::Chats, Data::Plain, Data::Permuted, Data::Unstructured] {
            assert_eq!(count(data, false), chats, "{data:?}");
        }
        assert_eq!(count(Data::Permuted, true), chats);
        assert_eq!(texts.training(Data::Chats, true).concat(), texts.training(Data::Chats, false).concat());
    }

    #[test]
    fn structure_is_taken_away_and_nothing_else() {
        let texts = Texts::new(40, 8, 1).unwrap();
        let [chats, permuted, loose] =
            [Data::Chats, Data::Permuted, Data::Unstructured].map(|data| texts.training(data, true));
        let lengths = |rows: &[Vec<u32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
        for other in [&permuted, &loose] {
            assert_ne!(&chats, other);
            assert_eq!((sorted(&chats), lengths(&chats)), (sorted(other), lengths(other)));
            assert!(other.iter().all(|row| row[0] == BOS && !row[1..].contains(&BOS)));
        }
        for (row, other) in chats.iter().zip(&permuted) {
            assert!(
                row.iter().zip(other).all(|(a, b)| a == b || texts.markers.contains(a) && texts.markers.contains(b))
            );
        }
        let held_out = &texts.chats;
        let classes = texts.classes(1);
        assert_eq!(classes.len(), held_out.concat().len());
        assert_eq!(classes.iter().filter(|&&class| class == Class::First).count(), 8);
        assert_eq!(texts.markers.len(), MARKERS.len());
    }
}
