//! How often, modulo three? `<bos> w1 … wn count A =`: the answer is the number of times that `A` is among the words, divided by three, the
//! remainder: `zero`, `one` or `two`.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use super::questions::Question;
use crate::task::{BOS, SPECIAL};

/// Its name in the registry.
pub const NAME: &str = "count_modulo_three";

/// The words that are counted.
pub const FRUITS: [&str; 10] = ["apple", "cherry", "date", "fig", "grape", "lemon", "lime", "mango", "pear", "plum"];
/// The first of them.
pub const FRUIT: u32 = SPECIAL.len() as u32;
/// `count`.
pub const COUNT: u32 = FRUIT + FRUITS.len() as u32;
/// `=`, after which the answer comes.
pub const EQUALS: u32 = COUNT + 1;
/// The answers.
pub const ANSWERS: [&str; 3] = ["zero", "one", "two"];
/// The first answer.
pub const ANSWER: u32 = EQUALS + 1;
/// How often a word occurs at most.
pub const MOST: usize = 4;

/// The question.
#[derive(Debug, Clone, Copy)]
pub struct CountModuloThree;

impl Question for CountModuloThree {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        let words = SPECIAL.iter().chain(&FRUITS).chain(&["count", "="]).chain(&ANSWERS);
        words.map(|word| word.to_string()).collect()
    }

    fn items(&self) -> (usize, usize) {
        (6, 12)
    }

    fn length(&self, items: usize) -> usize {
        items + 4
    }

    fn prompt(&self, random: &mut dyn Rng, items: usize) -> Vec<u32> {
        let fruits = FRUITS.len() as u32;
        let asked = random.random_range(0..fruits);
        let times = random.random_range(0..=MOST.min(items));
        let mut list = vec![FRUIT + asked; times];
        // Any of the others.
        list.extend((times..items).map(|_| FRUIT + (asked + random.random_range(1..fruits)) % fruits));
        list.shuffle(random);
        [&[BOS][..], &list, &[COUNT, FRUIT + asked, EQUALS]].concat()
    }

    fn answer(&self, prompt: &[u32]) -> Option<u32> {
        let [BOS, list @ .., COUNT, asked, EQUALS] = prompt else { return None };
        let fruit = |token: &u32| (FRUIT..COUNT).contains(token);
        let times = list.iter().filter(|&token| token == asked).count();
        (fruit(asked) && list.iter().all(fruit) && times <= MOST).then_some(ANSWER + times as u32 % 3)
    }
}
