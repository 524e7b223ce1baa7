//! The harness of Soloist's end-to-end tests and of its demo: a real Kubernetes cluster with real servers beside it,
//! on one machine, from package registries alone.
//!
//! ```text
//! cluster ── netns, cgroups, process, state      where it runs, and how it is found again
//!    ├────── debian, go_tools, images, python    what it is made of: installed or built once, then kept
//!    ├────── kubernetes                          etcd ... kubelet, CoreDNS
//!    └────── rabbitmq, redis, prometheus         servers beside it, on the node's address
//! testing, soloist, audit, replicas, wait, ...   for tests and benchmarks
//! operator, proxy, api_proxy                    an operator of a test's own, and what goes wrong between it and others
//! ```
//!
//! Everything of the cluster lives in a network namespace of its own. A test gets in with [`Cluster::attach`]:
//!
//! ```no_run
//! use std::time::Duration;
//! use e2e::{cluster::Cluster, testing, wait};
//!
//! # async fn test() -> anyhow::Result<()> {
//! let cluster = Cluster::attach()?;
//! let test = testing::namespace_for_test(&cluster.client().await?, "restarts").await?;
//! test.run(Duration::from_secs(120), async {
//!     cluster.rabbitmq.kill().await?;
//!     cluster.rabbitmq.start().await?;
//!     wait::until("the moon", Duration::from_secs(10), || async { Ok(Some(())) }).await
//! })
//! .await
//! # }
//! ```
//!
//! [`Cluster::attach`]: cluster::Cluster::attach

pub mod api_proxy;
mod archive;
pub mod audit;
pub mod benchmark;
mod celery_workers;
mod certificates;
mod cgroups;
pub mod chart;
pub mod cluster;
pub mod command;
pub mod debian;
mod elf;
pub mod go_tools;
pub mod http;
pub mod images;
pub mod interrupt;
mod kubernetes;
pub mod manifest;
pub mod netns;
pub mod newer_rabbitmq;
pub mod operator;
pub mod paths;
pub mod picture;
mod process;
pub mod progress;
pub mod prometheus;
pub mod proxy;
pub mod python;
pub mod rabbitmq;
pub mod redis;
pub mod replicas;
pub mod scale_in;
pub mod servers;
pub mod soloist;
pub mod stage;
mod state;
pub mod testing;
pub mod wait;
mod wrappers;
pub mod wrong_data;
