//! Celery's wire protocol as plain values: what travels between Celery producers, workers and monitors, decoded and
//! encoded without any I/O, clock or runtime.
//!
//! ```text
//!   headers, properties, body          Request            Signature -- chain, group, chord
//!   (message::Message)     --decode--> (request) --embed--> (signature, canvas)
//!                          <--encode--
//!   celery-task-meta-<id>  <--------->  TaskMeta, Exception   (result, exception)
//!   celeryev               <--------->  Event                 (event)
//!   celery.pidbox          <--------->  Command, TaskInfo...  (control)
//! ```
//!
//! Everything accepts what any Celery since 5.0 writes and writes what all of them read. Decoding never panics, and its
//! memory is bounded by [`content::Limits`]: input comes from the network.

pub mod arguments;
pub mod canvas;
pub mod content;
pub mod control;
pub mod date;
pub mod delay;
pub mod event;
pub mod exception;
mod glob;
pub mod json;
pub mod message;
pub mod repr;
pub mod request;
pub mod result;
pub mod signature;

pub use arguments::Arguments;
pub use exception::Exception;
pub use glob::Glob;
pub use message::{Message, Properties};
pub use request::{DecodeError, Embed, Request, TimeLimit};
pub use result::{State, TaskMeta};
pub use signature::Signature;

/// A JSON object whose keys keep their order: message headers, keyword arguments, options.
pub type Map = serde_json::Map<String, serde_json::Value>;
