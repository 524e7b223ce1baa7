//! The command line as a user has it: the program itself, real brokers, real workers.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod calls;
mod errors;
mod queues;
mod support;
mod workers;
