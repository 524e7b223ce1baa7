//! The client for programs that aren't async: the same calls, each returning when it is done.
//!
//! ```no_run
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use celery_client::{Celery, blocking};
//! use std::time::Duration;
//!
//! let settings = Celery::builder("amqp://localhost".parse()?).results("redis://localhost".parse()?);
//! let celery = blocking::Celery::connect(settings)?;
//! let sum: i64 = celery.send_task("tasks.add", &(1, 2), &())?.get(Duration::from_secs(10))?;
//! # Ok(()) }
//! ```

use crate::async_result::ResultError;
use crate::celery::{Builder, SetupError};
use crate::control::ControlError;
use crate::send::SendError;
use celery_protocol::{Signature, State, TaskMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The thread that does the work in the background can't be started.
    #[error("start a runtime")]
    Runtime(#[from] io::Error),
    /// The broker or the result store can't be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// A Celery client that blocks. Cheap to clone; clones share the connections, and may be used from several threads.
///
/// Not for use within an async runtime: there, use [`crate::Celery`].
#[derive(Clone, Debug)]
pub struct Celery {
    celery: crate::Celery,
    runtime: Arc<Runtime>,
}

/// A result that may not be there yet; see [`crate::AsyncResult`].
#[derive(Debug)]
pub struct AsyncResult {
    result: crate::AsyncResult,
    runtime: Arc<Runtime>,
}

impl Celery {
    /// Connects to the broker and the result store.
    ///
    /// # Errors
    /// When either can't be reached or refuses.
    pub fn connect(settings: Builder) -> Result<Self, ConnectError> {
        // One thread of its own, so that confirms and results come in while nobody waits for them.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let celery = runtime.block_on(settings.connect())?;
        Ok(Self { celery, runtime: Arc::new(runtime) })
    }

    /// Sends a task by name; see [`crate::Celery::send_task`].
    ///
    /// # Errors
    /// As there.
    pub fn send_task(
        &self,
        task: &str,
        args: &(impl Serialize + ?Sized),
        kwargs: &(impl Serialize + ?Sized),
    ) -> Result<AsyncResult, SendError> {
        let result = self.runtime.block_on(self.celery.send_task(task, args, kwargs))?;
        Ok(self.blocking(result))
    }

    /// Sends a task with all its options; see [`crate::Celery::send`].
    ///
    /// # Errors
    /// As there.
    pub fn send(&self, signature: &Signature) -> Result<AsyncResult, SendError> {
        let result = self.runtime.block_on(self.celery.send(signature))?;
        Ok(self.blocking(result))
    }

    /// Sends a group, or a chain that ends in one; see [`crate::Celery::send_group`].
    ///
    /// # Errors
    /// As there.
    pub fn send_group(&self, signature: &Signature) -> Result<GroupResult, SendError> {
        let result = self.runtime.block_on(self.celery.send_group(signature))?;
        Ok(GroupResult { result, runtime: Arc::clone(&self.runtime) })
    }

    /// The client that does the work, for all that has no method here: give what it returns to [`run`](Self::run).
    #[must_use]
    pub fn client(&self) -> &crate::Celery {
        &self.celery
    }

    /// Waits for something asynchronous: remote control, events, other results.
    ///
    /// ```no_run
    /// # fn example(celery: celery_client::blocking::Celery) -> Result<(), Box<dyn std::error::Error>> {
    /// let workers = celery.run(celery.client().control().ping())?;
    /// # Ok(()) }
    /// ```
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The result of a task that was sent earlier, by any client.
    #[must_use]
    pub fn result(&self, task_id: &str) -> AsyncResult {
        self.blocking(self.celery.result(task_id))
    }

    /// States and results of many tasks at once; see [`crate::Celery::results`].
    ///
    /// # Errors
    /// As there.
    pub fn results<S: AsRef<str>>(&self, task_ids: &[S]) -> Result<Vec<Option<TaskMeta>>, ResultError> {
        self.runtime.block_on(self.celery.results(task_ids))
    }

    fn blocking(&self, result: crate::AsyncResult) -> AsyncResult {
        AsyncResult { result, runtime: Arc::clone(&self.runtime) }
    }
}

impl AsyncResult {
    /// Id of the task.
    #[must_use]
    pub fn id(&self) -> &str {
        self.result.id()
    }

    /// Waits until the task has ended, and returns the value that it returned; see [`crate::AsyncResult::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, ResultError> {
        self.runtime.block_on(self.result.get(timeout))
    }

    /// Waits until the task has ended, however that was.
    ///
    /// # Errors
    /// When it hasn't ended in time, or there is no way to know.
    pub fn wait(&self, timeout: Duration) -> Result<TaskMeta, ResultError> {
        self.runtime.block_on(self.result.wait(timeout))
    }

    /// Where the task is in its life.
    ///
    /// # Errors
    /// When there is no way to know.
    pub fn state(&self) -> Result<State, ResultError> {
        self.runtime.block_on(self.result.state())
    }

    /// Tells all workers not to run the task if it hasn't begun.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub fn revoke(&self) -> Result<(), ControlError> {
        self.runtime.block_on(self.result.revoke())
    }

    /// Deletes the result.
    ///
    /// # Errors
    /// When the store can't be reached.
    pub fn forget(self) -> Result<(), ResultError> {
        self.runtime.block_on(self.result.forget())
    }
}

/// The results of a group's members; see [`crate::GroupResult`].
#[derive(Debug)]
pub struct GroupResult {
    result: crate::GroupResult,
    runtime: Arc<Runtime>,
}

impl GroupResult {
    /// Id of the group.
    #[must_use]
    pub fn id(&self) -> &str {
        self.result.id()
    }

    /// Waits until all members have ended, and returns their values in the group's order.
    ///
    /// # Errors
    /// As of [`AsyncResult::get`], with the first failure there is.
    pub fn get<T: DeserializeOwned>(&self, timeout: Duration) -> Result<Vec<T>, ResultError> {
        self.runtime.block_on(self.result.get(timeout))
    }

    /// How many of its tasks have ended.
    ///
    /// # Errors
    /// When there is no way to know.
    pub fn completed(&self) -> Result<usize, ResultError> {
        self.runtime.block_on(self.result.completed())
    }

    /// Deletes the results of all its tasks.
    ///
    /// # Errors
    /// When the store can't be reached.
    pub fn forget(self) -> Result<(), ResultError> {
        self.runtime.block_on(self.result.forget())
    }
}
