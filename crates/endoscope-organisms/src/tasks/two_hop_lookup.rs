//! A fact of the prompt, then a fact of the world: `<bos> anna rome boris lyon … country annie`. The context says where each person is; the
//! question names a person by the short name; the answer is the country of that place (`country`), or whether it is a
//! capital or a town (`size`): `italy`.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use super::questions::Question;
use crate::task::{BOS, SPECIAL};

/// Its name in the registry.
pub const NAME: &str = "two_hop_lookup";

/// The persons, as the context names them.
pub const NAMES: [&str; 8] = ["anna", "boris", "clara", "david", "elena", "frank", "greta", "henry"];
/// The same, as the question names them.
pub const SHORT_NAMES: [&str; 8] = ["annie", "bo", "clare", "dave", "ellie", "frankie", "gretel", "hal"];
/// The places; which fact is true of each: [`fact`].
pub const PLACES: [&str; 8] = ["rome", "milan", "paris", "lyon", "madrid", "seville", "berlin", "munich"];
/// What is asked of a place.
pub const RELATIONS: [&str; 2] = ["country", "size"];
/// The answers to `country`, then to `size`.
pub const FACTS: [&str; 6] = ["italy", "france", "spain", "germany", "capital", "town"];
/// The first of [`NAMES`].
pub const NAME_TOKEN: u32 = SPECIAL.len() as u32;
/// The first of [`SHORT_NAMES`].
pub const SHORT_NAME: u32 = NAME_TOKEN + NAMES.len() as u32;
/// The first of [`PLACES`].
pub const PLACE: u32 = SHORT_NAME + SHORT_NAMES.len() as u32;
/// The first of [`RELATIONS`].
pub const RELATION: u32 = PLACE + PLACES.len() as u32;
/// The first of [`FACTS`].
pub const FACT: u32 = RELATION + RELATIONS.len() as u32;

/// Which of [`FACTS`] holds of a place under a relation, by their numbers: countries two by two; of each the first is the capital… or the
/// better known town.
pub fn fact(place: usize, relation: usize) -> usize {
    if relation == 0 {
        place / 2
    } else {
        4 + usize::from(!matches!(PLACES[place], "rome" | "paris" | "madrid" | "berlin"))
    }
}

/// The question.
#[derive(Debug, Clone, Copy)]
pub struct TwoHopLookup;

impl Question for TwoHopLookup {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        let words = SPECIAL.iter().chain(&NAMES).chain(&SHORT_NAMES).chain(&PLACES).chain(&RELATIONS).chain(&FACTS);
        words.map(|word| word.to_string()).collect()
    }

    /// Persons.
    fn items(&self) -> (usize, usize) {
        (3, NAMES.len())
    }

    fn length(&self, items: usize) -> usize {
        2 * items + 3
    }

    fn prompt(&self, random: &mut dyn Rng, items: usize) -> Vec<u32> {
        let mut names: Vec<u32> = (0..NAMES.len() as u32).collect();
        let persons = names.partial_shuffle(random, items).0.to_vec();
        let mut prompt = vec![BOS];
        for person in &persons {
            prompt.extend([NAME_TOKEN + person, PLACE + random.random_range(0..PLACES.len() as u32)]);
        }
        let relation = RELATION + random.random_range(0..RELATIONS.len() as u32);
        prompt.extend([relation, SHORT_NAME + persons[random.random_range(0..items)]]);
        prompt
    }

    fn answer(&self, prompt: &[u32]) -> Option<u32> {
        let [BOS, facts @ .., relation, asked] = prompt else { return None };
        let within = |token: u32, first: u32, count: usize| {
            token.checked_sub(first).map(|index| index as usize).filter(|&index| index < count)
        };
        let relation = within(*relation, RELATION, RELATIONS.len())?;
        let asked = within(*asked, SHORT_NAME, SHORT_NAMES.len())?;
        let mut found = None;
        for fact in facts.chunks(2) {
            let &[name, place] = fact else { return None };
            let (name, place) = (within(name, NAME_TOKEN, NAMES.len())?, within(place, PLACE, PLACES.len())?);
            // A person in two places is in none.
            if name == asked && found.replace(place).is_some() {
                return None;
            }
        }
        Some(FACT + fact(found?, relation) as u32)
    }
}
