//! The client against a real broker, a real result store and a real Python worker.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod broker;
mod canvas;
mod control;
mod outage;
mod python_worker;
mod runs;
mod support;
