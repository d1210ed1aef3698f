//! The tasks, one file each.

pub mod repeated_sequences;
