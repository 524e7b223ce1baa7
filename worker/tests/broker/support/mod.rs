//! What the tests stand on: the worker's process, the broker seen from outside, and Celery's own client.

mod broker;
mod flower;
pub(crate) mod http;
mod proxy;
mod python;
mod worker;

use redis::Commands;
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

pub(crate) use self::{
    broker::{Broker, Message, Vhost},
    flower::{Flower, free_address},
    proxy::Proxy,
    python::{
        Call, Celery, EXAMPLES, EventDump, EventWatch, PythonWorker, canvas, celery, control, delays,
        inspect, routes, values_that_change,
    },
    worker::{WorkerProcess, example, example_file, worker},
};

/// Longest wait for anything that should take a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The value of an environment variable that the tests need.
pub(crate) fn env(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: see the top of worker/tests/broker/main.rs"))
}

/// Our own client on the servers of the tests.
pub(crate) async fn client() -> celery_client::Celery {
    let builder = celery_client::Celery::builder(env("AMQP_URL").parse().unwrap());
    builder.results(env("REDIS_URL").parse().unwrap()).connect().await.unwrap()
}

/// Waits until `check` gives something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, check: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, check)
}

/// Waits until `check` gives something, for as long as `patience`: for what takes long by itself.
#[track_caller]
pub(crate) fn within<T>(patience: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A name that no other test has.
pub(crate) fn unique(purpose: &str) -> String {
    format!("test-{purpose}-{}", uuid::Uuid::new_v4().simple())
}

/// What `py.record` has left under a key, in order.
pub(crate) fn recorded(key: &str) -> Vec<String> {
    let mut redis = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    redis.lrange(key, 0, -1).unwrap()
}

/// Which of a chord's keys there are, and what `.c` holds.
pub(crate) fn chord_keys(group_id: &str) -> (Vec<String>, Option<String>) {
    let mut redis = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    let prefix = format!("celery-taskset-meta-{group_id}");
    let there = |suffix: &&str| redis.exists::<_, bool>(format!("{prefix}{suffix}")).unwrap();
    let keys = ["", ".j", ".t", ".s", ".d"].into_iter().filter(there).map(str::to_owned).collect();
    (keys, redis.get(format!("{prefix}.c")).unwrap())
}

/// Lets something that is neither a result nor part of a chord be under a key in Redis, for some minutes.
pub(crate) fn occupy(key: &str) {
    let mut redis = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    redis.hset::<_, _, _, ()>(key, "field", "value").unwrap();
    redis.expire::<_, ()>(key, 600).unwrap();
}

/// Whether a worker has marked in Redis that it runs this call.
pub(crate) fn runs_somewhere(id: &str) -> bool {
    let mut redis = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    redis.exists(format!("soloist-run-{id}-0.held")).unwrap()
}

/// What is stored in Redis under a task's id, and for how many seconds.
pub(crate) fn stored(id: &str) -> Option<(Value, i64)> {
    let mut redis = redis::Client::open(env("REDIS_URL")).unwrap().get_connection().unwrap();
    let key = format!("celery-task-meta-{id}");
    let text: Option<String> = redis.get(&key).unwrap();
    let ttl = redis.ttl(&key).unwrap();
    text.map(|text| (serde_json::from_str(&text).unwrap(), ttl))
}
