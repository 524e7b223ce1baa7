//! A Celery worker that runs one task at a time, made for Kubernetes.
//!
//! A program of one's own is a few functions and a call of [`main`]; see `examples/tasks.rs`. The stock binary
//! `soloist-worker` is the same with a few sample tasks.
//!
//! ```text
//!               RabbitMQ                                      Redis, or the caller's queue
//!   deliveries |        ^ ack, reject                                ^ results
//!              v        |                                            |
//!   broker -> consume -> work: decode -> admit -> executor -> settle-+-> results, ack, events
//!   (session)  (loop)           (protocol) (pure)  (threads)  (pure)
//!
//!   canvas -> sender: callbacks, next steps, errbacks, bodies of chords; before the result is stored and acknowledged
//!   broker::Link -> celeryev <- events <- heartbeat (when), work (what)
//!   broker::Link <-> celery.pidbox: control <-> tracker, revoked, limits, queues
//!   http: /livez /readyz <- health      /metrics <- metrics      stop <- signals, control
//! ```
//!
//! # Threads
//! One thread talks to the outside: AMQP, heartbeats, events, remote control, results, HTTP. Tasks have threads of their own, one for
//! plain functions and one, when there are any, for `async` ones. Whatever a task does, the first thread answers. Where nothing is stored or
//! sent after a task, its thread acknowledges the message by itself.
//!
//! # Guarantees
//! - A message is acknowledged after its result is stored. A worker that dies, or loses its connection, leaves its message
//!   to be delivered again: a task is run at least once, and [`DeliveryInfo::redelivered`] says that it may be again.
//! - What follows a task (a callback, the next step of its chain, a chord's body) has been taken by the broker before the
//!   task's message is acknowledged. It may be sent twice, under the same ids; a chord counts each part once.
//! - One task at a time. While tasks take more than about a millisecond, one message is held; while they are shorter, up to
//!   [`WorkerBuilder::max_prefetch`] are. Those that wait are given back when one task takes longer than 10 milliseconds.
//!   With several queues, messages of the others are not held while a task takes longer than a moment.
//! - A message that can't be run is rejected once, with the reason stored as its result: a dead letter queue keeps it.
//!   So is one that comes back again and again, because its task takes each worker down.
//! - A message that is not due yet waits in the broker, in Celery's delay queues, and keeps no worker from other work. It comes
//!   back at most 0.8 s late.

mod attempts;
mod backoff;
mod broker;
mod canvas;
mod consume;
mod control;
mod delay;
mod done;
mod events;
mod executor;
mod health;
mod heartbeat;
mod http;
mod limits;
mod log;
mod metrics;
mod mounted;
mod options;
mod prefetch;
mod queues;
mod results;
mod revoked;
mod samples;
mod settle;
mod stop;
mod supervise;
mod task;
mod tracker;
mod turns;
mod work;
mod worker;

pub use celery_client::{AddressError, BrokerAddress, ResultStoreAddress};
pub use celery_protocol::{
    Exception, Request, Signature,
    canvas::{chain, chord, group},
};
pub use consume::Stopped;
pub use log::{LogError, LogFormat};
pub use options::{Addresses, Options, main};
pub use samples::sample_tasks;
pub use soloist_macros::task;
pub use task::{
    Args, Binder, Cancellation, Context, DeliveryInfo, IntoTaskFunction, Output, Parameter, Retry, State,
    Task, TaskError, TaskFunction, TaskResult,
};
pub use worker::{Worker, WorkerBuilder, WorkerError};

/// Version of this worker.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
