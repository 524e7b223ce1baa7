//! Send Celery tasks over RabbitMQ and read their results, from Rust; and the pieces that a worker and an operator
//! share with such a client: addresses, connections, queue declarations and result stores.
//!
//! ```text
//!   Celery --send--> publisher --> RabbitMQ        AsyncResult <-- Redis (subscription), RPC (reply queue)
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
mod celery;
pub mod connect;
mod fields;
mod publisher;
pub mod queue;
pub mod results;
mod uri;

pub use async_result::{AsyncResult, ResultError, TaskError};
pub use broker::BrokerAddress;
pub use celery::{Builder, Celery, SendError, SetupError};
pub use celery_protocol::{Signature, State, TaskMeta};
pub use connect::{ConnectError, connect};
pub use publisher::PublishError;
pub use results::{ResultStore, ResultStoreAddress};
pub use uri::{AddressError, IoError};
