//! Sorting, and a simpler task beside it that is a hint of how: `<bos> 7 2 9 2 sort`, then `2 2 7 9`; and with the hint
//! `successor`: `<bos> 7 2 9 2 successor 7`, then `9`, the number after it in sorted order (Awasthi and Gupta 2023, arXiv
//! 2310.00726). The split `longer` has longer lists than are trained on.

use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, numbers};
use super::parameters::read;
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::{BOS, Row, TRAIN};

/// Its name in the registry.
pub const NAME: &str = "sorting_with_hints";
/// Lists to be sorted, longer than those that are trained on.
pub const LONGER: &str = "longer";

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// The numbers are those from 1 to this; default 100.
    pub numbers: usize,
    /// The shortest list that is trained on; default 2.
    pub shortest: usize,
    /// The longest list that is trained on; default 20.
    pub longest: usize,
    /// The length of the lists of the split `longer`; default 60.
    pub longer: usize,
    /// Whether a number may come more than once in a list; default true.
    pub repetitions: bool,
    /// The other task.
    pub hint: Hint,
    /// The share of the training rows that are of the other task; default 0.5.
    pub hint_share: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            numbers: 100,
            shortest: 2,
            longest: 20,
            longer: 60,
            repetitions: true,
            hint: Hint::Successor,
            hint_share: 0.5,
        }
    }
}

/// What is asked of one number of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hint {
    /// Nothing: all rows are sorted.
    None,
    /// The number after it in the sorted list. Where it comes more than once, either itself or the next: a row asks for a place of
    /// the sorted list, not for a number.
    Successor,
    /// The number before it.
    Predecessor,
    /// How often it comes.
    Count,
    /// Any number of the list: the control that must not help.
    Random,
}

/// The task.
#[derive(Debug, Clone)]
pub struct SortingWithHints {
    parameters: Parameters,
    lexicon: Lexicon,
    number: Kind,
    sort: u32,
    hint: u32,
}

impl SortingWithHints {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            // A list without repetitions cannot be longer than there are numbers; a count of one must be one of them.
            let counted = parameters.hint == Hint::Count;
            let most = if parameters.repetitions && !counted { 1 << 16 } else { parameters.numbers };
            problems.count("numbers", parameters.numbers, 2, 1 << 16);
            problems.count("shortest", parameters.shortest, 2, most);
            problems.count("longest", parameters.longest, parameters.shortest, most);
            problems.count("longer", parameters.longer, parameters.longest + 1, most);
            problems.share("hint_share", parameters.hint_share);
        })?;
        let word = match parameters.hint {
            Hint::None => "",
            Hint::Successor => "successor",
            Hint::Predecessor => "predecessor",
            Hint::Count => "count",
            Hint::Random => "random",
        };
        let (lexicon, [number]) = Lexicon::new([numbers(1..parameters.numbers + 1)], &format!("sort {word}"));
        let (sort, hint) = (lexicon.id("sort"), lexicon.id(word));
        Ok(Self { parameters, lexicon, number, sort, hint })
    }

    /// A list, as tokens, of which greater numbers are greater.
    fn list(&self, split: &str, random: &mut dyn Rng) -> Vec<u32> {
        let Parameters { shortest, longest, longer, repetitions, .. } = self.parameters;
        let length = if split == LONGER { longer } else { random.random_range(shortest..=longest) };
        let index = match repetitions {
            true => (0..length).map(|_| random.random_range(0..self.number.count)).collect(),
            false => self.number.different(random, length),
        };
        index.into_iter().map(|index| self.number.token(index)).collect()
    }

    /// `<bos>`, the list, `sort`, and so much of the answer.
    fn sorting(&self, list: &[u32], begun: usize) -> Vec<u32> {
        [&[BOS], list, &[self.sort], &sorted(list)[..begun]].concat()
    }

    /// What the hint says of the number at this place of the sorted list.
    fn hinted(&self, list: &[u32], place: usize, random: &mut dyn Rng) -> Row {
        let sorted = sorted(list);
        let of = |place: usize| sorted.get(place).copied();
        let (asked, answer) = match self.parameters.hint {
            Hint::Predecessor => (of(place + 1), of(place)),
            Hint::Count => (of(place), of(place).map(|asked| self.count(list, asked))),
            Hint::Random => (of(place), Some(list[random.random_range(0..list.len())])),
            Hint::Successor | Hint::None => (of(place), of(place + 1)),
        };
        let asked: Vec<u32> = asked.into_iter().collect();
        Row::new([&[BOS], list, &[self.hint], &asked].concat(), &answer.into_iter().collect::<Vec<_>>())
    }

    /// How often a number comes, as a token: the first number is one.
    fn count(&self, list: &[u32], asked: u32) -> u32 {
        let times = list.iter().filter(|&&number| number == asked).count();
        self.number.token(times.saturating_sub(1))
    }

    fn right_of_hint(&self, list: &[u32], asked: u32) -> Vec<u32> {
        if !list.contains(&asked) {
            return Vec::new();
        }
        let sorted = sorted(list);
        let beside = |from: usize, to: usize| {
            sorted.windows(2).filter(|two| two[from] == asked).map(|two| two[to]).collect::<Vec<u32>>()
        };
        let mut right = match self.parameters.hint {
            Hint::None => Vec::new(),
            Hint::Successor => beside(0, 1),
            Hint::Predecessor => beside(1, 0),
            Hint::Count => vec![self.count(list, asked)],
            Hint::Random => sorted,
        };
        right.dedup();
        right
    }
}

fn sorted(list: &[u32]) -> Vec<u32> {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    sorted
}

impl Exercise for SortingWithHints {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        2 + 2 * self.parameters.longer
    }

    fn splits(&self) -> &'static [&'static str] {
        &[TRAIN, LONGER]
    }

    fn row(&self, split: &str, random: &mut dyn Rng) -> Row {
        let list = self.list(split, random);
        let Parameters { hint, hint_share, .. } = self.parameters;
        if split == TRAIN && hint != Hint::None && random.random_bool(hint_share) {
            // The last place has no number after it.
            let place = random.random_range(0..list.len() - 1);
            return self.hinted(&list, place, random);
        }
        Row::new(self.sorting(&list, 0), &sorted(&list))
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let [BOS, given @ ..] = prompt else { return Vec::new() };
        let is_number = |token: &u32| self.number.index(*token).is_some();
        let Some(end) = given.iter().position(|token| !is_number(token)) else { return Vec::new() };
        let (list, after) = (&given[..end], &given[end + 1..]);
        let allowed = self.parameters.repetitions || sorted(list).windows(2).all(|two| two[0] != two[1]);
        if list.len() < 2 || !allowed {
            return Vec::new();
        }
        match after {
            begun if given[end] == self.sort => {
                let sorted = sorted(list);
                let next = if sorted.starts_with(begun) { sorted.get(begun.len()) } else { None };
                next.copied().into_iter().collect()
            }
            &[asked] if given[end] == self.hint => self.right_of_hint(list, asked),
            _ => Vec::new(),
        }
    }

    fn changes(&self) -> &'static [&'static str] {
        match self.parameters.hint {
            Hint::None | Hint::Random => &["number"],
            Hint::Successor | Hint::Predecessor | Hint::Count => &["number", "asked"],
        }
    }

    /// `number`: one of the list, and the prompt asks for the first place of the sorted list where that matters. `asked`: the number
    /// of which the hint is asked.
    fn pair(&self, split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let list = self.list(split, random);
        if change == "asked" {
            let mut prompt = || {
                let place = random.random_range(0..list.len() - 1);
                let mut tokens = self.hinted(&list, place, random).tokens;
                tokens.pop();
                tokens
            };
            let (clean, corrupt) = (prompt(), prompt());
            return compared(self, clean, corrupt);
        }
        let mut changed = list.clone();
        changed[random.random_range(0..list.len())] = self.number.token(random.random_range(0..self.number.count));
        let begun = sorted(&list).iter().zip(&sorted(&changed)).position(|(one, other)| one != other)?;
        compared(self, self.sorting(&list, begun), self.sorting(&changed, begun))
    }
}
