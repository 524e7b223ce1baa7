//! Running tasks on threads of their own, so that the loop that talks to the broker never waits for them.
//!
//! Plain functions run on one thread, `async` ones on a runtime with another. Both threads live as long as the worker,
//! so what a task keeps in a thread-local, or spawns, is there for the next.
//!
//! Calls wait in one line for both threads, so that the next begins as soon as one has ended, in the order in which they
//! came, and one at a time.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use celery_protocol::Exception;
use futures_util::FutureExt;
use tokio::sync::{Notify, oneshot};
use tracing::{Instrument, debug};

use crate::{
    broker::Receipt,
    task::{Context, PanicReport, Task, TaskError, TaskFunction, TaskResult},
};

/// Stack of the task thread: what a program's main thread usually has, as recursive tasks expect.
const TASK_STACK_BYTES: usize = 8 << 20;

/// One call, ready to run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) task: Arc<Task>,
    pub(crate) context: Context,
    /// For a message that waits for nothing but its task: to hand the outcome to another thread first would keep the broker
    /// waiting for it.
    pub(crate) receipt: Option<Receipt>,
}

impl Job {
    /// Acknowledges the message if that is due now.
    fn acknowledge(receipt: Option<Receipt>, result: &TaskResult) {
        if let (Some(receipt), Ok(_)) = (receipt, result) {
            receipt.acknowledge();
        }
    }
}

/// How a call ended, and how long it ran.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: TaskResult,
    pub(crate) runtime: Duration,
}

/// A call that waits in the line, or runs. Dropped before it has begun, it never begins.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// None if the call has begun at once.
    begun: Option<oneshot::Receiver<()>>,
    go: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<Outcome>,
}

impl Ticket {
    /// Waits until the call has begun.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(crate) async fn begun(&mut self) {
        let Some(begun) = self.begun.as_mut().filter(|begun| !begun.is_terminated()) else { return };
        // The line is gone only when the worker is leaving, and nobody waits then.
        if begun.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes the call out of the line; false if it has begun already.
    pub(crate) fn withdraw(&mut self) -> bool {
        let Some(begun) = self.begun.as_mut().filter(|begun| !begun.is_terminated()) else { return false };
        begun.close();
        begun.try_recv().is_err()
    }

    /// Lets a call run that has begun and was submitted to wait for this.
    pub(crate) fn go(&mut self) {
        if let Some(go) = self.go.take() {
            // A thread that is gone shows when the outcome is waited for.
            let _ = go.send(());
        }
    }

    /// Waits for the outcome of a call that has begun.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the outcome; the task itself runs on.
    pub(crate) async fn ended(self) -> Outcome {
        self.ended.await.unwrap_or_else(|_| Outcome {
            result: Err(TaskError::from_exception(Exception::worker_lost(
                "the thread that ran the task is gone",
            ))),
            runtime: Duration::ZERO,
        })
    }
}

/// The threads that run tasks, and the line before them.
#[derive(Debug)]
pub(crate) struct Executor {
    line: Arc<Line>,
    with_async: bool,
}

impl Executor {
    /// Starts the task thread and, if `with_async`, the runtime for `async` tasks.
    pub(crate) fn start(with_async: bool) -> io::Result<Self> {
        PanicReport::install_hook();
        let line = Arc::new(Line::default());
        let shared = Arc::clone(&line);
        thread::Builder::new()
            .name("task".to_owned())
            .stack_size(TASK_STACK_BYTES)
            .spawn(move || run_blocking(&shared))?;
        if with_async {
            start_async(Arc::clone(&line))?;
        }
        Ok(Self { line, with_async })
    }

    /// Puts `job` at the end of the line. With `waits`, it does nothing after it has begun until [`Ticket::go`].
    pub(crate) fn submit(&self, job: Job, waits: bool) -> Ticket {
        let on = match &job.task.function {
            TaskFunction::Async(_) if self.with_async => On::Runtime,
            _ => On::Thread,
        };
        let (end, ended) = oneshot::channel();
        let (go, gate) = waits.then(oneshot::channel).unzip();
        let begun = self.line.push(on, Turn { job, gate, end });
        Ticket { begun, go, ended }
    }

    /// Since when the present call runs, if one does.
    pub(crate) fn busy_since(&self) -> Option<Instant> {
        self.line.lock().running_since
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.line.lock().is_closed = true;
        self.line.thread.notify_one();
        self.line.runtime.notify_one();
    }
}

/// Where a call is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Thread,
    Runtime,
}

/// A call that waits for its turn.
#[derive(Debug)]
struct Entry {
    on: On,
    begin: oneshot::Sender<()>,
    turn: Turn,
}

/// A call whose turn comes.
#[derive(Debug)]
struct Turn {
    job: Job,
    gate: Option<oneshot::Receiver<()>>,
    end: oneshot::Sender<Outcome>,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Entry>,
    /// The call whose turn it is, until its thread takes it: it came when there was no other.
    at_once: Option<(On, Turn)>,
    running_since: Option<Instant>,
    is_closed: bool,
}

/// Calls that are to be run, one at a time.
#[derive(Debug, Default)]
struct Line {
    state: Mutex<State>,
    thread: Condvar,
    runtime: Notify,
}

/// What a thread finds at the head of the line.
enum Next {
    Run(Turn),
    Wait,
    Leave,
}

impl Line {
    /// Begins with a call, if there is no other, or else puts it at the end of the line: what comes out tells then when it begins.
    fn push(&self, on: On, turn: Turn) -> Option<oneshot::Receiver<()>> {
        let mut state = self.lock();
        if state.running_since.is_none() && state.entries.is_empty() {
            state.running_since = Some(Instant::now());
            state.at_once = Some((on, turn));
            self.notify(on);
            return None;
        }
        let (begin, begun) = oneshot::channel();
        state.entries.push_back(Entry { on, begin, turn });
        self.wake(&state);
        Some(begun)
    }

    /// Takes the head of the line if its turn has come and it is for `on`.
    fn next(&self, state: &mut State, on: On) -> Next {
        if let Some((_, turn)) =
            state.at_once.take_if(|(at_once_on, _)| *at_once_on == on && !state.is_closed)
        {
            return Next::Run(turn);
        }
        while state.running_since.is_none() && !state.is_closed {
            match state.entries.pop_front() {
                Some(entry) if entry.on == on => {
                    // Nobody is there to hear it if the call was withdrawn.
                    if entry.begin.send(()).is_ok() {
                        state.running_since = Some(Instant::now());
                        return Next::Run(entry.turn);
                    }
                }
                Some(entry) => {
                    state.entries.push_front(entry);
                    self.wake(state);
                    return Next::Wait;
                }
                None => return Next::Wait,
            }
        }
        if state.is_closed { Next::Leave } else { Next::Wait }
    }

    /// Wakes the thread that the head of the line is for, if its turn has come.
    fn wake(&self, state: &State) {
        if let Some(entry) = state.entries.front().filter(|_| state.running_since.is_none()) {
            self.notify(entry.on);
        }
    }

    fn notify(&self, on: On) {
        match on {
            On::Thread => self.thread.notify_one(),
            On::Runtime => self.runtime.notify_one(),
        }
    }

    fn next_on_thread(&self) -> Option<Turn> {
        let mut state = self.lock();
        loop {
            match self.next(&mut state, On::Thread) {
                Next::Run(turn) => return Some(turn),
                Next::Leave => return None,
                Next::Wait => state = self.thread.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    async fn next_on_runtime(&self) -> Option<Turn> {
        loop {
            let next = self.next(&mut self.lock(), On::Runtime);
            match next {
                Next::Run(turn) => return Some(turn),
                Next::Leave => return None,
                Next::Wait => self.runtime.notified().await,
            }
        }
    }

    /// The call that was run has ended.
    fn end(&self) {
        self.lock().running_since = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete by itself, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run_blocking(line: &Line) {
    PanicReport::record_on_this_thread();
    while let Some(Turn { job: Job { task, context, receipt }, gate, end }) = line.next_on_thread() {
        if gate.is_some_and(|gate| gate.blocking_recv().is_err()) {
            line.end();
            continue;
        }
        let started = begin(&context);
        let result = context.span().in_scope(|| {
            catch_unwind(AssertUnwindSafe(|| match &task.function {
                TaskFunction::Blocking(function) => function(&context, &task),
                TaskFunction::Async(_) => {
                    Err(TaskError::new("RuntimeError", "no runtime for async tasks was started"))
                }
            }))
            .unwrap_or_else(|payload| Err(PanicReport::into_error(&*payload)))
        });
        let runtime = ended(&context, started, &result);
        line.end();
        Job::acknowledge(receipt, &result);
        // The receiver is gone only when the worker has given the message back and is leaving.
        let _ = end.send(Outcome { result, runtime });
    }
}

/// Says that a call begins, and when. `cargo chaos` counts by it.
fn begin(context: &Context) -> Instant {
    debug!(id = context.id(), "the task begins");
    Instant::now()
}

/// Says that a call has ended, before anybody acts on that, and how long it ran. `cargo chaos` counts by it.
fn ended(context: &Context, started: Instant, result: &TaskResult) -> Duration {
    let runtime = started.elapsed();
    debug!(id = context.id(), succeeded = result.is_ok(), "the task has ended");
    runtime
}

fn start_async(line: Arc<Line>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("async-task".to_owned()).stack_size(TASK_STACK_BYTES).spawn(move || {
        PanicReport::record_on_this_thread();
        runtime.block_on(async move {
            while let Some(Turn { job: Job { task, context, receipt }, gate, end }) =
                line.next_on_runtime().await
            {
                if let Some(gate) = gate
                    && gate.await.is_err()
                {
                    line.end();
                    continue;
                }
                let started = begin(&context);
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
                let runtime = ended(&context, started, &result);
                line.end();
                Job::acknowledge(receipt, &result);
                let _ = end.send(Outcome { result, runtime });
            }
        });
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use celery_protocol::Arguments;
    use serde_json::json;

    use super::*;
    use crate::task::Context;

    fn job(task: Task, args: serde_json::Value) -> Job {
        let context = Context::for_tests(Arguments::new(&args, &json!({})).unwrap());
        Job { task: Arc::new(task), context, receipt: None }
    }

    async fn run(executor: &Executor, job: Job) -> Outcome {
        let mut ticket = executor.submit(job, false);
        ticket.begun().await;
        ticket.ended().await
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
            let outcome = run(&executor, job(task, json!([1, 2]))).await;
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
            let error = run(&executor, job(task.clone(), json!([7]))).await.result.unwrap_err();
            assert_eq!(error.to_string(), "Panic: no 7");
            let traceback = error.traceback().unwrap();
            assert!(traceback.starts_with("Panic: no 7\nat worker/src/executor.rs:"), "{traceback}");
            assert_eq!(run(&executor, job(task, json!([0]))).await.result.unwrap().get(), "0");
        }
    }

    /// A task that runs until it is told to end.
    fn busy() -> (mpsc::Sender<()>, Task) {
        let (release, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        (release, Task::new("t.busy", move || wait.lock().unwrap().recv().is_ok()))
    }

    #[tokio::test]
    async fn the_caller_is_not_held_up_by_a_busy_task() {
        let executor = Executor::start(false).unwrap();
        let (release, task) = busy();
        let mut ticket = executor.submit(job(task, json!([])), false);
        ticket.begun().await;
        assert!(executor.busy_since().is_some());
        let mut running = Box::pin(ticket.ended());
        assert!(running.as_mut().now_or_never().is_none());
        release.send(()).unwrap();
        assert_eq!(running.await.result.unwrap().get(), "true");
        assert!(executor.busy_since().is_none());
    }

    #[tokio::test]
    async fn calls_run_one_at_a_time_in_the_order_they_came_in() {
        let executor = Executor::start(true).unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let task = |number: i32| {
            let order = Arc::clone(&order);
            let note = move || {
                order.lock().unwrap().push(number);
                number
            };
            match number % 3 {
                0 => Task::new("t.note", move || std::future::ready(note())),
                _ => Task::new("t.note", note),
            }
        };
        let tickets: Vec<_> =
            (0..20).map(|number| executor.submit(job(task(number), json!([])), false)).collect();
        for ticket in tickets {
            ticket.ended().await.result.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_has_not_begun_can_be_withdrawn() {
        let executor = Executor::start(false).unwrap();
        let (release, task) = busy();
        let mut running = executor.submit(job(task, json!([])), false);
        let mut waiting = executor.submit(job(Task::new("t.add", || 2), json!([])), false);
        let last = executor.submit(job(Task::new("t.add", || 3), json!([])), false);
        running.begun().await;
        assert!(!running.withdraw(), "it has begun");
        assert!(waiting.withdraw());
        release.send(()).unwrap();
        assert!(running.ended().await.result.is_ok());
        assert_eq!(last.ended().await.result.unwrap().get(), "3");
    }

    #[tokio::test]
    async fn a_call_that_waits_to_go_is_not_run_before() {
        let executor = Executor::start(true).unwrap();
        for task in [Task::new("t.add", || 1), Task::new("t.add", || std::future::ready(1))] {
            let mut abandoned = executor.submit(job(Task::new("t.add", || 0), json!([])), true);
            abandoned.begun().await;
            let mut ticket = executor.submit(job(task, json!([])), true);
            drop(abandoned);
            ticket.begun().await;
            ticket.go();
            assert_eq!(ticket.ended().await.result.unwrap().get(), "1");
        }
    }
}
