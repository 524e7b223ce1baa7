//! Send Celery tasks over RabbitMQ and read their results, from Rust; and the pieces that a worker and an operator
//! share with such a client: addresses, connections, queue declarations and result stores.
//!
//! ```text
//!   BrokerAddress --connect--> lapin::Connection --queue--> declared queues
//!   ResultStoreAddress ------> ResultStore (Redis, RPC)
//!   protocol headers <--amqp--> lapin's tables
//! ```

pub mod amqp;
pub mod broker;
pub mod connect;
mod fields;
pub mod queue;
pub mod results;
mod uri;

pub use broker::BrokerAddress;
pub use connect::{ConnectError, connect};
pub use results::{ResultStore, ResultStoreAddress};
pub use uri::{AddressError, IoError};
