//! Running tasks on threads of their own, so that the loop that talks to the broker never waits for them.
//!
//! Plain functions run on one thread, `async` ones on a runtime with another. Both threads live as long as the worker,
//! so what a task keeps in a thread-local, or spawns, is there for the next.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use celery_protocol::Exception;
use futures_util::FutureExt;
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use tracing::Instrument;

use crate::task::{Context, PanicReport, Task, TaskError, TaskFunction, TaskResult};

/// Stack of the task thread: what a program's main thread usually has, as recursive tasks expect.
const TASK_STACK_BYTES: usize = 8 << 20;

/// One call, ready to run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) task: Arc<Task>,
    pub(crate) context: Context,
}

/// How a call ended, and how long it ran.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: TaskResult,
    pub(crate) runtime: Duration,
}

type Work = (Job, oneshot::Sender<Outcome>);

/// The threads that run tasks.
#[derive(Debug)]
pub(crate) struct Executor {
    blocking: mpsc::Sender<Work>,
    asynchronous: Option<UnboundedSender<Work>>,
}

impl Executor {
    /// Starts the task thread and, if `with_async`, the runtime for `async` tasks.
    pub(crate) fn start(with_async: bool) -> io::Result<Self> {
        PanicReport::install_hook();
        let (blocking, work) = mpsc::channel::<Work>();
        thread::Builder::new()
            .name("task".to_owned())
            .stack_size(TASK_STACK_BYTES)
            .spawn(move || run_blocking(&work))?;
        let asynchronous = with_async.then(start_async).transpose()?;
        Ok(Self { blocking, asynchronous })
    }

    /// Runs `job` and waits for its outcome.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the outcome; the task itself runs on.
    pub(crate) async fn execute(&self, job: Job) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        let handed_over = match (&job.task.function, &self.asynchronous) {
            (TaskFunction::Async(_), Some(runtime)) => runtime.send((job, reply)).is_ok(),
            _ => self.blocking.send((job, reply)).is_ok(),
        };
        let outcome = if handed_over { outcome.await.ok() } else { None };
        outcome.unwrap_or_else(|| Outcome {
            result: Err(TaskError::from_exception(Exception::worker_lost(
                "the thread that ran the task is gone",
            ))),
            runtime: Duration::ZERO,
        })
    }
}

fn run_blocking(work: &mpsc::Receiver<Work>) {
    PanicReport::record_on_this_thread();
    while let Ok((Job { task, context }, reply)) = work.recv() {
        let started = Instant::now();
        let result = context.span().in_scope(|| {
            catch_unwind(AssertUnwindSafe(|| match &task.function {
                TaskFunction::Blocking(function) => function(&context, &task),
                TaskFunction::Async(_) => {
                    Err(TaskError::new("RuntimeError", "no runtime for async tasks was started"))
                }
            }))
            .unwrap_or_else(|payload| Err(PanicReport::into_error(&*payload)))
        });
        // The receiver is gone only when the worker has given the message back and is leaving.
        let _ = reply.send(Outcome { result, runtime: started.elapsed() });
    }
}

fn start_async() -> io::Result<UnboundedSender<Work>> {
    let (sender, mut work) = tokio::sync::mpsc::unbounded_channel::<Work>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("async-task".to_owned()).stack_size(TASK_STACK_BYTES).spawn(move || {
        PanicReport::record_on_this_thread();
        runtime.block_on(async move {
            while let Some((Job { task, context }, reply)) = work.recv().await {
                let started = Instant::now();
                let run = async {
                    match &task.function {
                        TaskFunction::Async(function) => function(&context, &task).await,
                        TaskFunction::Blocking(function) => function(&context, &task),
                    }
                };
                let run = AssertUnwindSafe(run.instrument(context.span().clone())).catch_unwind();
                let result = tokio::select! {
                    result = run => result.unwrap_or_else(|payload| Err(PanicReport::into_error(&*payload))),
                    () = context.cancel_signal().aborted() => {
                        Err(TaskError::from_exception(Exception::task_revoked("terminated")))
                    }
                };
                let _ = reply.send(Outcome { result, runtime: started.elapsed() });
            }
        });
    })?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use celery_protocol::Arguments;
    use serde_json::json;

    use super::*;
    use crate::task::Context;

    fn job(task: Task, args: serde_json::Value) -> Job {
        let context = Context::for_tests(Arguments::new(&args, &json!({})).unwrap());
        Job { task: Arc::new(task), context }
    }

    #[tokio::test]
    async fn runs_plain_and_async_functions() {
        let executor = Executor::start(true).unwrap();
        let plain = Task::new("t.add", |x: i64, y: i64| x + y);
        let asynchronous = Task::new("t.add", async |x: i64, y: i64| {
            tokio::task::yield_now().await;
            x + y
        });
        for task in [plain, asynchronous] {
            let outcome = executor.execute(job(task, json!([1, 2]))).await;
            assert_eq!(outcome.result.unwrap().get(), "3");
        }
    }

    #[tokio::test]
    async fn a_panic_becomes_an_error_and_the_thread_lives() {
        let executor = Executor::start(true).unwrap();
        let plain = Task::new("t.panic", |n: i64| -> i64 {
            if n > 0 { panic!("no {n}") } else { n }
        });
        let asynchronous = Task::new("t.panic", async |n: i64| -> i64 {
            if n > 0 { panic!("no {n}") } else { n }
        });
        for task in [plain, asynchronous] {
            let error = executor.execute(job(task.clone(), json!([7]))).await.result.unwrap_err();
            assert_eq!(error.to_string(), "Panic: no 7");
            let traceback = error.traceback().unwrap();
            assert!(traceback.starts_with("Panic: no 7\nat worker/src/executor.rs:"), "{traceback}");
            assert_eq!(executor.execute(job(task, json!([0]))).await.result.unwrap().get(), "0");
        }
    }

    #[tokio::test]
    async fn the_caller_is_not_held_up_by_a_busy_task() {
        let executor = Executor::start(false).unwrap();
        let (release, wait) = mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let busy = Task::new("t.busy", move || wait.lock().unwrap().recv().is_ok());
        let running = executor.execute(job(busy, json!([])));
        tokio::pin!(running);
        assert!(running.as_mut().now_or_never().is_none());
        release.send(()).unwrap();
        assert_eq!(running.await.result.unwrap().get(), "true");
    }
}
