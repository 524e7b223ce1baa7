//! The Soloist operator (in progress).

pub mod api;
pub mod broker;
pub mod metrics;
pub mod plan;
