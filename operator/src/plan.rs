//! The pure middle of the operator: from what was observed to what is to be.
//!
//! ```text
//!   TaskQueue ──► topology ──► deployment ──┐
//!   pods, heartbeats ──► workers ──┐        ├─► changes ──► what is written
//!   backlog ───────────────────────┴► autoscaler
//!   all of it ──► status ──► conditions
//! ```
//!
//! Nothing in here imports a client, a runtime or a clock: time and past observations come as arguments.

pub mod autoscaler;
pub mod changes;
pub mod claims;
pub mod deployment;
pub mod drain;
pub mod drift;
pub mod images;
pub mod law;
pub mod metadata;
pub mod reason;
pub mod schedule;
pub mod status;
pub mod topology;
pub mod workers;
