//! organisms
