//! `charts/soloist`: what it renders, what it refuses, and what it does to a cluster.

mod helm;
mod install;
mod metrics;
mod monitoring;
mod rendering;
mod schemas;
mod values;
