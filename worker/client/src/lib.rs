//! Send Celery tasks over RabbitMQ and read their results, from Rust; and the pieces that a worker and an operator
//! share with such a client: addresses, connections, queue declarations and result stores.
//!
//! ```text
//!   Celery --send--> plan (protocol) --> publisher --> RabbitMQ
//!      |  `--> AsyncResult, GroupResult <-- Redis (subscription), RPC (reply queue)
//!      +--control--> celery.pidbox --> workers --> answers
//!      `--events--- celeryev <-- workers
//!
//!   BrokerAddress --connect--> lapin::Connection --queue--> declared queues
//!   ResultStoreAddress ------> ResultStore (Redis, RPC), where workers leave results
//!   protocol headers <--amqp--> lapin's tables
//! ```
//!
//! [`Celery`] is where to start; [`blocking::Celery`] in a program that isn't async.

pub mod amqp;
mod async_result;
pub mod blocking;
pub mod broker;
mod canvas_result;
mod celery;
pub mod connect;
mod control;
pub mod delays;
mod events;
mod fields;
mod forward;
mod publisher;
pub mod queue;
pub mod results;
mod retry_policy;
mod routes;
mod send;
mod uri;

pub use async_result::{AsyncResult, ResultError, TaskError};
pub use broker::BrokerAddress;
pub use canvas_result::{CanvasResult, GroupResult};
pub use celery::{Builder, Celery, SetupError};
pub use celery_protocol::canvas::{chain, chord, chunks, group, map, starmap};
pub use celery_protocol::event::{Event, EventKind};
pub use celery_protocol::signature::Route;
pub use celery_protocol::{Signature, State, TaskMeta};
pub use connect::{ConnectError, connect};
pub use control::{Answers, Control, ControlError, FoundTask, NodeError};
pub use events::{Events, EventsError};
pub use publisher::PublishError;
pub use results::{ResultStore, ResultStoreAddress};
pub use retry_policy::RetryPolicy;
pub use send::SendError;
pub use uri::{AddressError, IoError};
