//! What `soloist` and `kubectl soloist` say, and how they end: the same in both.
//!
//! ```text
//!   a value  ─► table, json, count ─► line ─► standard output
//!   an error ─► Failure ─► standard error, a hint with it, and the exit code
//! ```

mod failure;
mod output;

pub use failure::{Failure, told};
pub use output::{count, json, line, table};
