//! The worker against a real RabbitMQ, a real Redis and real Celery programs.
//!
//! Each test starts the stock worker as a process of its own, on a queue of its own. They need `AMQP_URL`,
//! `MANAGEMENT_URL` of the same RabbitMQ (without credentials: those of `AMQP_URL` are used), `REDIS_URL`, and `PYTHON`, a
//! Python interpreter that can import Celery 5. Flower's test wants Flower there, and `chromium`; celery-exporter's wants
//! `PYTHON_EXPORTER`, an interpreter that can import the packages of `e2e/python/celery-exporter.txt`. The examples must have been built.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod calls;
mod canvas;
mod compatibility;
mod control;
mod delays;
mod events;
mod examples;
mod exporter;
mod failures;
mod flower;
mod limits;
mod refusals;
mod retries;
mod shutdown;
mod support;
