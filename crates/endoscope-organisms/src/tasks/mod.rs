//! The tasks, one file each.

pub mod count_modulo_three;
pub mod mixture;
pub mod questions;
pub mod repeated_sequences;
pub mod two_hop_lookup;
pub mod what_followed;
