//! Where each message stands in a rendered chat.
//!
//! A template may trim what is said, move it into another turn, cut reasoning out of it, or drop it. So the place of
//! a message is not computed from the template's text but followed through it: the chat is rendered once more with a mark
//! before and behind each message's words. A mark is a character that no text here uses; it stands inside the blanks at
//! the ends, so that trimming still trims. If the second rendering without its marks is the first, the marks tell the
//! places. If not (a template that looks at how a message begins sees the mark), each message is marked alone, and one
//! that still cannot be followed is looked for between its neighbours.

use std::ops::Range;

use super::message::Chat;
use super::template::{ChatTemplate, Clock, GenerationPrompt, fuel_for};
use crate::error::Result;

/// A rendered chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The prompt.
    pub text: String,
    /// The messages, in the order of the chat.
    pub messages: Vec<RenderedMessage>,
}

/// Where a message stands in the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedMessage {
    /// Who speaks.
    pub role: String,
    /// The bytes of what is said, blanks at its ends left out; `None` if nothing is said, or the template leaves it
    /// out. A template may have changed the words inside, for instance escaped them.
    pub bytes: Option<Range<usize>>,
}

/// Marks are taken from a private plane of Unicode.
const FIRST_MARK: u32 = 0xF_0000;
const MARKS: u32 = 0xFFFE;

fn is_mark(character: char) -> bool {
    (FIRST_MARK..FIRST_MARK + MARKS).contains(&u32::from(character))
}

/// The marks before and behind message `number`, if there are so many.
fn marks(number: usize) -> Option<(char, char)> {
    let first = u32::try_from(number).ok()?.checked_mul(2).filter(|&first| first + 1 < MARKS)?;
    Some((char::from_u32(FIRST_MARK + first)?, char::from_u32(FIRST_MARK + first + 1)?))
}

impl ChatTemplate {
    /// The prompt of a chat, and where its messages stand in it.
    pub fn render_with_places(&self, chat: &Chat, prompt: GenerationPrompt, clock: Clock) -> Result<Rendered> {
        // Both renderings tell one time.
        let clock = match clock {
            Clock::System => Clock::At(jiff::Zoned::now().datetime()),
            clock => clock,
        };
        let mut fuel = fuel_for(chat);
        let text = self.render_within(chat, prompt, clock, &mut fuel)?;
        let mut places = vec![None; chat.messages.len()];
        // A chat that uses the marks' own characters is only searched.
        if !text.contains(is_mark) {
            // As much work again, for all further renderings together.
            fuel = fuel_for(chat);
            let mut follow = |numbers: &[usize]| {
                let marked = marked(chat, numbers);
                self.render_within(&marked, prompt, clock, &mut fuel)
                    .ok()
                    .and_then(|rendered| places_of_marks(&rendered, &text, numbers, chat))
            };
            let all: Vec<usize> = (0..chat.messages.len()).collect();
            match follow(&all) {
                Some(found) => places = found.into_iter().map(Some).collect(),
                None => {
                    for number in all {
                        places[number] = follow(&[number]).and_then(|mut found| found.pop());
                    }
                }
            }
        }
        search(chat, &text, &mut places);
        let message = |(message, place): (&super::Message, Option<Place>)| RenderedMessage {
            role: message.role().to_string(),
            bytes: match place {
                Some(Place::At(bytes)) => Some(bytes),
                Some(Place::Nowhere) | None => None,
            },
        };
        Ok(Rendered { messages: chat.messages.iter().zip(places).map(message).collect(), text })
    }
}

/// What is known of a message's place.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    At(Range<usize>),
    /// The template leaves it out, or it says nothing.
    Nowhere,
}

/// The chat with the messages of these numbers marked.
fn marked(chat: &Chat, numbers: &[usize]) -> Chat {
    let mut chat = chat.clone();
    for &number in numbers {
        let marked = marks(number).and_then(|(open, close)| chat.messages[number].marked(open, close));
        if let Some(marked) = marked {
            chat.messages[number] = marked;
        }
    }
    chat
}

/// The places of these messages in `text`, if `rendered` is `text` with marks.
fn places_of_marks(rendered: &str, text: &str, numbers: &[usize], chat: &Chat) -> Option<Vec<Place>> {
    let mut found: Vec<(char, usize)> = Vec::new();
    let mut plain = String::with_capacity(text.len());
    for character in rendered.chars() {
        if is_mark(character) {
            found.push((character, plain.len()));
        } else {
            plain.push(character);
        }
    }
    if plain != text {
        return None;
    }
    found.sort();
    let at = |mark: char| {
        let from = found.partition_point(|&(other, _)| other < mark);
        found[from..].iter().take_while(move |&&(other, _)| other == mark).map(|&(_, at)| at)
    };
    let place = |&number: &usize| -> Option<Place> {
        let Some(said) = chat.messages[number].text() else { return Some(Place::Nowhere) };
        let (open, close) = marks(number)?;
        // Said twice, it counts where it stands first.
        let bytes = match (at(open).next(), at(close).next()) {
            (Some(start), Some(_)) => start..at(close).find(|&end| end >= start)?,
            // One end was cut off: as far as the words agree.
            (Some(start), None) => start..start + common_prefix(said.trim(), &text[start..]),
            (None, Some(end)) => end - common_suffix(said.trim(), &text[..end])..end,
            (None, None) => return Some(Place::Nowhere),
        };
        let words = &text[bytes.clone()];
        let start = bytes.start + (words.len() - words.trim_start().len());
        let end = start + words.trim().len();
        Some(if start == end { Place::Nowhere } else { Place::At(start..end) })
    };
    numbers.iter().map(place).collect()
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

fn common_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// Looks for the words of messages whose place is not known between those whose place is; words that stand there twice
/// tell nothing.
fn search(chat: &Chat, text: &str, places: &mut [Option<Place>]) {
    for number in 0..places.len() {
        if places[number].is_some() {
            continue;
        }
        let Some(said) = chat.messages[number].text() else { continue };
        let before = places[..number].iter().rev().find_map(|place| match place {
            Some(Place::At(bytes)) => Some(bytes.end),
            _ => None,
        });
        let behind = places[number + 1..].iter().find_map(|place| match place {
            Some(Place::At(bytes)) => Some(bytes.start),
            _ => None,
        });
        let gap = before.unwrap_or(0)..behind.unwrap_or(text.len());
        let Some(inside) = text.get(gap.clone()) else { continue };
        let mut found = inside.match_indices(said.trim());
        if let (Some((at, words)), None) = (found.next(), found.next()) {
            places[number] = Some(Place::At(gap.start + at..gap.start + at + words.len()));
        }
    }
}
