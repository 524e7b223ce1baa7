//! The commands that every Celery worker knows, one method each.

use super::{Answers, Control, ControlError};
use celery_protocol::Map;
use celery_protocol::control::{QueueInfo, ScheduledTask, TaskInfo};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Where a task that was asked for is, and what it is.
pub type FoundTask = (String, TaskInfo);

/// The answer of a worker that has done as it was told, or has a text to show.
#[derive(Deserialize)]
struct Done {
    ok: String,
}

/// Asking workers: what Celery calls inspect. Each returns what the workers answered in time.
///
/// # Errors
/// When the broker can't be reached or refuses.
impl Control {
    /// Which workers are there; each answers `pong`.
    pub async fn ping(&self) -> Result<Answers<String>, ControlError> {
        self.tell("ping", json!({})).await
    }

    /// The tasks that they run.
    pub async fn active(&self) -> Result<Answers<Vec<TaskInfo>>, ControlError> {
        self.inspect("active").await
    }

    /// The tasks whose messages they have and that they haven't begun.
    pub async fn reserved(&self) -> Result<Answers<Vec<TaskInfo>>, ControlError> {
        self.inspect("reserved").await
    }

    /// The tasks that they hold until their time.
    pub async fn scheduled(&self) -> Result<Answers<Vec<ScheduledTask>>, ControlError> {
        self.inspect("scheduled").await
    }

    /// The names of the tasks that they can run, each followed by settings such as `[rate_limit=10/m]`.
    pub async fn registered(&self) -> Result<Answers<Vec<String>>, ControlError> {
        self.inspect("registered").await
    }

    /// The queues that they take tasks from.
    pub async fn active_queues(&self) -> Result<Answers<Vec<QueueInfo>>, ControlError> {
        self.inspect("active_queues").await
    }

    /// The ids of the tasks that they were told not to run.
    pub async fn revoked(&self) -> Result<Answers<Vec<String>>, ControlError> {
        self.inspect("revoked").await
    }

    /// Which of some tasks they have, and where: `active`, `reserved`, `scheduled` or `ready`.
    pub async fn query_task<S: AsRef<str>>(
        &self,
        ids: &[S],
    ) -> Result<Answers<BTreeMap<String, FoundTask>>, ControlError> {
        self.ask("query_task", object(json!({"ids": texts(ids)}))).await
    }

    /// Figures: tasks begun, pool, broker, use of the machine. What is in it depends on the software.
    pub async fn stats(&self) -> Result<Answers<Map>, ControlError> {
        self.inspect("stats").await
    }

    /// Their settings, without secrets; with `defaults` also those that nobody has set.
    pub async fn conf(&self, defaults: bool) -> Result<Answers<Map>, ControlError> {
        self.ask("conf", object(json!({"with_defaults": defaults}))).await
    }

    /// A text for a bug report: versions, platform, settings.
    pub async fn report(&self) -> Result<Answers<String>, ControlError> {
        self.tell("report", json!({})).await
    }

    /// Their logical clocks.
    pub async fn clock(&self) -> Result<Answers<BTreeMap<String, u64>>, ControlError> {
        self.inspect("clock").await
    }

    async fn inspect<T: serde::de::DeserializeOwned>(
        &self,
        method: &str,
    ) -> Result<Answers<T>, ControlError> {
        self.ask(method, Map::new()).await
    }
}

/// Telling workers what to do: what Celery calls control. Each returns what the workers answered in time.
///
/// # Errors
/// When the broker can't be reached or refuses.
impl Control {
    /// Don't run these tasks; one that runs already goes on.
    pub async fn revoke<S: AsRef<str>>(&self, ids: &[S]) -> Result<Answers<String>, ControlError> {
        self.tell("revoke", json!({"task_id": texts(ids)})).await
    }

    /// As [`revoke`](Self::revoke), without waiting for answers.
    pub(crate) async fn revoke_silently<S: AsRef<str>>(&self, ids: &[S]) -> Result<(), ControlError> {
        self.cast("revoke", object(json!({"task_id": texts(ids)}))).await
    }

    /// Don't run these tasks, and end those that run with a signal such as `TERM` or `KILL`.
    pub async fn terminate<S: AsRef<str>>(
        &self,
        ids: &[S],
        signal: &str,
    ) -> Result<Answers<String>, ControlError> {
        self.tell("revoke", json!({"task_id": texts(ids), "terminate": true, "signal": signal})).await
    }

    /// Don't run tasks that carry one of these stamps; with `terminate` also end those that run.
    pub async fn revoke_by_stamps(
        &self,
        stamps: &Map,
        terminate: bool,
    ) -> Result<Answers<String>, ControlError> {
        self.tell("revoke_by_stamped_headers", json!({"headers": stamps, "terminate": terminate})).await
    }

    /// Runs a task at most so often in each worker: `10/s`, `100/m`, `1000/h`; `None` for as often as it can.
    pub async fn rate_limit(&self, task: &str, rate: Option<&str>) -> Result<Answers<String>, ControlError> {
        self.tell("rate_limit", json!({"task_name": task, "rate_limit": rate})).await
    }

    /// Sets the soft and the hard time limit of a task; `None` for no limit.
    pub async fn time_limit(
        &self,
        task: &str,
        soft: Option<Duration>,
        hard: Option<Duration>,
    ) -> Result<Answers<String>, ControlError> {
        let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
        self.tell("time_limit", json!({"task_name": task, "soft": seconds(soft), "hard": seconds(hard)}))
            .await
    }

    /// Take tasks from one more queue.
    pub async fn add_consumer(&self, queue: &str) -> Result<Answers<String>, ControlError> {
        self.tell("add_consumer", json!({"queue": queue})).await
    }

    /// Take no more tasks from a queue.
    pub async fn cancel_consumer(&self, queue: &str) -> Result<Answers<String>, ControlError> {
        self.tell("cancel_consumer", json!({"queue": queue})).await
    }

    /// Run more tasks at once. Workers with a solo pool refuse.
    pub async fn pool_grow(&self, by: u32) -> Result<Answers<String>, ControlError> {
        self.tell("pool_grow", json!({"n": by})).await
    }

    /// Run fewer tasks at once. Workers with a solo pool refuse.
    pub async fn pool_shrink(&self, by: u32) -> Result<Answers<String>, ControlError> {
        self.tell("pool_shrink", json!({"n": by})).await
    }

    /// Start the pool anew. Workers refuse unless they are set to allow it.
    pub async fn pool_restart(&self) -> Result<Answers<String>, ControlError> {
        self.tell("pool_restart", json!({})).await
    }

    /// Sets the limits between which a pool scales itself. Workers refuse unless they are set to do so.
    pub async fn autoscale(&self, max: u32, min: u32) -> Result<Answers<String>, ControlError> {
        self.tell("autoscale", json!({"max": max, "min": min})).await
    }

    /// Send events of tasks.
    pub async fn enable_events(&self) -> Result<Answers<String>, ControlError> {
        self.tell("enable_events", json!({})).await
    }

    /// Send no more events of tasks.
    pub async fn disable_events(&self) -> Result<Answers<String>, ControlError> {
        self.tell("disable_events", json!({})).await
    }

    /// Send a heartbeat event now. There is no answer to it.
    pub async fn heartbeat(&self) -> Result<(), ControlError> {
        self.cast("heartbeat", Map::new()).await
    }

    /// Finish what runs, and exit. There is no answer to it.
    pub async fn shutdown(&self) -> Result<(), ControlError> {
        self.cast("shutdown", Map::new()).await
    }

    /// A command that is answered with `{"ok": text}`.
    async fn tell(&self, method: &str, arguments: Value) -> Result<Answers<String>, ControlError> {
        let answers = self.ask::<Done>(method, object(arguments)).await?;
        Ok(answers.into_iter().map(|(node, answer)| (node, answer.map(|done| done.ok))).collect())
    }
}

fn texts<S: AsRef<str>>(texts: &[S]) -> Vec<&str> {
    texts.iter().map(AsRef::as_ref).collect()
}

fn object(value: Value) -> Map {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("written as an object"),
    }
}
