//! The Soloist operator (in progress).

pub mod api;
pub mod plan;
