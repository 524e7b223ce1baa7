//! (map to be written)

mod backoff;
mod broker;
mod consume;
mod events;
mod executor;
mod health;
mod heartbeat;
mod http;
mod log;
mod metrics;
mod options;
mod results;
mod settle;
mod stop;
mod task;
mod work;
mod worker;

pub use celery_client::{AddressError, BrokerAddress, ResultStoreAddress};
pub use celery_protocol::Exception;
pub use consume::Stopped;
pub use log::{LogError, LogFormat};
pub use options::{Options, main};
pub use task::{
    Args, Binder, Call, Context, DeliveryInfo, IntoTaskFunction, Output, Parameter, Task, TaskError,
    TaskFunction, TaskResult,
};
pub use worker::{Worker, WorkerBuilder, WorkerError};

/// Version of this worker.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
