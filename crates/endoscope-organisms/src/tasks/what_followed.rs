//! Which word followed this one? `<bos> r A`, where `r` is different random words and `A` one of them, though not the last:
//! the answer is the word after `A` in `r`. What an induction head is for, asked once.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use super::questions::Question;
use crate::task::{BOS, SPECIAL, words};

/// Its name in the registry.
pub const NAME: &str = "what_followed";

/// How many words there are.
pub const WORDS: usize = 32;

/// The question.
#[derive(Debug, Clone, Copy)]
pub struct WhatFollowed;

impl Question for WhatFollowed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        words(WORDS)
    }

    fn items(&self) -> (usize, usize) {
        (6, 20)
    }

    fn length(&self, items: usize) -> usize {
        items + 2
    }

    fn prompt(&self, random: &mut dyn Rng, items: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (SPECIAL.len() as u32..).take(WORDS).collect();
        let list = all.partial_shuffle(random, items).0.to_vec();
        let asked = list[random.random_range(0..items - 1)];
        [&[BOS][..], &list, &[asked]].concat()
    }

    fn answer(&self, prompt: &[u32]) -> Option<u32> {
        let (&asked, before) = prompt.split_last()?;
        let mut found = before.iter().enumerate().filter(|&(_, &token)| token == asked && token != BOS);
        let (at, _) = found.next()?;
        // After a word that came twice two words may follow.
        if found.next().is_some() { None } else { prompt.get(at + 1).copied() }
    }
}
