//! The tasks, one file each, and what they share.

pub mod count_modulo_three;
pub mod dialogues;
pub mod entity_tracking;
pub mod indirect_object;
pub mod key_value_recall;
pub mod laundry_list;
mod lexicon;
pub mod mixture;
pub mod modular_addition;
pub mod multiple_choice;
pub mod opinions;
mod parameters;
pub mod path_finding;
pub mod questions;
pub mod repeated_sequences;
pub mod sorting_with_hints;
pub mod streamed;
pub mod two_hop_facts;
pub mod two_hop_lookup;
pub mod what_followed;
