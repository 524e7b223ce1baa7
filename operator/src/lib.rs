//! The Soloist operator: turns TaskQueues into RabbitMQ queues and scaled Deployments of single-task workers.
//!
//! ```text
//!   api/v1alpha1   what users write
//!   controller/    observe ──► plan ──► apply ──► update_status      calls to Kubernetes
//!   plan/                      plan                                  pure: decisions, objects, conditions
//!   broker/        one connection per RabbitMQ: reads, declares, listens to workers
//!   leader, http, logging, metrics, permissions   around it
//! ```
//!
//! To change when and how far it scales, see [`plan::autoscaler`]; to change what users may write, [`api::v1alpha1`].

pub mod api;
pub mod broker;
pub mod controller;
pub mod http;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod permissions;
pub mod plan;
