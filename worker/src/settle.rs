//! The decisions about a message: whether to run it, and what becomes of it afterwards.
//!
//! Nothing here waits, sends or reads a clock; [`crate::work`] carries the decisions out.

use std::{sync::Arc, time::Duration};

use celery_protocol::{
    Exception, Request, TaskMeta,
    event::{EventKind, TaskReceived},
    repr,
    request::DecodeError,
    result::ResultTuple,
};
use jiff::Timestamp;
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    canvas::{self, Ending, Sequel},
    executor::Outcome,
    metrics::Counted,
    supervise::Ended,
    task::{PlannedRetry, Registry, Task, TaskError, Wish},
};

/// A message that will be run.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) request: Arc<Request>,
    pub(crate) task: Arc<Task>,
}

/// What becomes of a message: first the result is stored, then the broker is told, then monitors are.
#[derive(Debug)]
pub(crate) struct Settlement {
    /// Id of the call, if it could be read.
    pub(crate) id: Option<String>,
    /// Name of the task, if it could be read.
    pub(crate) task: String,
    /// What the call's callbacks, chain and chord are to hear of.
    pub(crate) sequel: Option<Box<Sequel>>,
    /// Result to store, if any.
    pub(crate) store: Option<TaskMeta>,
    /// What the broker is told.
    pub(crate) disposition: Disposition,
    /// What monitors are told.
    pub(crate) event: Option<EventKind>,
    /// What the metrics count, and for which task.
    pub(crate) counted: Counted,
    /// What the log says.
    pub(crate) report: Report,
}

/// What the broker is told about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Done with.
    Ack,
    /// Can't be run: dropped, or dead-lettered where the queue says so.
    Reject,
    /// To be delivered again.
    Requeue,
    /// Nothing: it was acknowledged when the task began.
    Nothing,
}

/// What the log says about a message.
#[derive(Debug)]
pub(crate) enum Report {
    Succeeded { result: String },
    Failed { exception: String, traceback: Option<String> },
    Retried { cause: Option<String>, delay: Duration },
    Ignored,
    Rejected { reason: String, requeue: bool },
    Revoked { reason: &'static str },
    Unregistered,
    Malformed { category: &'static str, problem: String },
}

impl Settlement {
    /// Adds what is known of a call that could not be decoded: others may wait for it.
    pub(crate) fn followed_by(self, salvaged: Option<Request>) -> Self {
        let exception = self.store.as_ref().and_then(TaskMeta::exception);
        let sequel = salvaged.zip(exception).and_then(|(request, exception)| {
            Sequel::new(&Arc::new(request), Ending::Failure { exception, traceback: None })
        });
        Self { sequel, ..self }
    }

    /// A retry of a task that could not be sent: the call has failed, and that is stored.
    pub(crate) fn failed_after_all(self, exception: &Exception, task: &Task) -> Self {
        let event = self.id.as_deref().map(|id| failed(id, exception));
        let report = Report::Failed { exception: exception.to_string(), traceback: None };
        Self { disposition: failed_disposition(task), event, counted: Counted::Failed, report, ..self }
    }
}

/// Decides whether a decoded message can be run at `now`, and if not, what becomes of it.
pub(crate) fn admit(
    decoded: Result<Request, DecodeError>,
    registry: &Registry,
    is_revoked: impl Fn(&Request) -> bool,
    now: Timestamp,
) -> Result<Admitted, Box<Settlement>> {
    let request = decoded.map_err(|error| Box::new(refuse_malformed(error, now)))?;
    let request = Arc::new(request);
    let Some(task) = registry.resolve(&request) else {
        return Err(Box::new(refuse_unregistered(&request, now)));
    };
    let admitted = Admitted { request, task };
    readmit(&admitted, is_revoked, now)?;
    Ok(admitted)
}

/// Decides whether a call that has been waiting can still be run at `now`.
pub(crate) fn readmit(
    Admitted { request, task }: &Admitted,
    is_revoked: impl Fn(&Request) -> bool,
    now: Timestamp,
) -> Result<(), Box<Settlement>> {
    if request.is_expired(now) {
        Err(Box::new(revoke(request, task, Revocation::Expired, now)))
    } else if is_revoked(request) {
        Err(Box::new(revoke(request, task, Revocation::Revoked, now)))
    } else {
        Ok(())
    }
}

/// What becomes of a message whose task has ended at `now`.
///
/// `chance` is uniform in 0 to 1, for the jitter of retries.
pub(crate) fn settle(
    Admitted { request, task }: &Admitted,
    ended: Ended,
    now: Timestamp,
    chance: f64,
) -> Settlement {
    match ended {
        Ended::Finished(Outcome { result: Ok(value), runtime }) => {
            succeed(request, task, value, runtime, now)
        }
        Ended::Finished(Outcome { result: Err(error), .. }) => match error.wish() {
            Some(Wish::Ignore) => ignore(request, task),
            Some(Wish::Replace(signature)) => {
                let ending = Ending::Replaced(Box::new(signature.clone()));
                Settlement { sequel: Sequel::new(request, ending), ..ignore(request, task) }
            }
            Some(Wish::Send(signature)) => {
                let ending = Ending::Sent(Box::new(signature.clone()));
                Settlement { sequel: Sequel::new(request, ending), ..ignore(request, task) }
            }
            Some(Wish::Reject { requeue }) => reject(request, task, &error, *requeue, now),
            _ => match task.retry.decide(request, error, now, chance) {
                Ok(planned) => retry(request, task, planned),
                Err(error) => fail(request, task, &error, now),
            },
        },
        Ended::TimedOut { limit, .. } => {
            let exception = Exception::time_limit_exceeded(limit.as_secs_f64());
            fail(request, task, &TaskError::from_exception(exception), now)
        }
        Ended::Terminated { signum, .. } => revoke(request, task, Revocation::Terminated { signum }, now),
    }
}

/// What becomes of a message whose task had a canvas sent, now that it was: the handle is its result.
pub(crate) fn sent(
    Admitted { request, task }: &Admitted,
    handle: &ResultTuple,
    runtime: Duration,
    now: Timestamp,
) -> Settlement {
    let value = to_raw_value(handle).expect("a handle has string keys only");
    succeed(request, task, value, runtime, now)
}

/// What becomes of a message whose task succeeded, but what follows it could not be sent because of `error`.
pub(crate) fn fail_to_advance(
    Admitted { request, task }: &Admitted,
    error: &TaskError,
    now: Timestamp,
) -> Settlement {
    fail(request, task, error, now)
}

/// What becomes of a message that came back so often without its task ever coming to an end.
pub(crate) fn give_up(Admitted { request, task }: &Admitted, deliveries: u32, now: Timestamp) -> Settlement {
    let exception = Exception::worker_lost(format!(
        "the task was begun {deliveries} times and never came to an end: it seems to take its worker down"
    ));
    Settlement {
        disposition: Disposition::Reject,
        ..fail(request, task, &TaskError::from_exception(exception), now)
    }
}

/// Whether a message is done with as soon as its task has succeeded: nothing is stored (if the worker `stores` results at
/// all) or sent before it is acknowledged.
pub(crate) fn is_done_by_success(Admitted { request, task }: &Admitted, stores: bool) -> bool {
    // Were a failure to be told otherwise, a task that ends just when its time limit does could be told as both.
    failed_disposition(task) == Disposition::Ack
        && !(stores && is_stored(request, task))
        && !canvas::is_followed(request)
}

/// Whether it is stored that a call begins: if its task says so or, where that says nothing, `by_default`.
pub(crate) fn is_start_stored(Admitted { request, task }: &Admitted, by_default: bool) -> bool {
    task.track_started.unwrap_or(by_default) && is_stored(request, task)
}

/// What is stored when a process of a node begins with a call.
pub(crate) fn started(Admitted { request, .. }: &Admitted, pid: u32, node: &str) -> TaskMeta {
    of(request, TaskMeta::started(&request.id, pid, node))
}

/// What monitors are told when a message has arrived.
pub(crate) fn received(request: &Request) -> EventKind {
    EventKind::TaskReceived(TaskReceived {
        uuid: request.id.clone(),
        name: Some(request.display_name().to_owned()),
        args: Some(request.args_repr()),
        kwargs: Some(request.kwargs_repr()),
        root_id: Some(request.root().to_owned()),
        parent_id: request.parent_id.clone(),
        retries: request.retries,
        eta: request.eta.map(celery_protocol::date::format),
        expires: request.expires.map(celery_protocol::date::format),
    })
}

fn succeed(
    request: &Arc<Request>,
    task: &Task,
    value: Box<RawValue>,
    runtime: Duration,
    now: Timestamp,
) -> Settlement {
    let result = serde_json::from_str(value.get())
        .map_or_else(|_| value.get().to_owned(), |value| repr::value(&value));
    Settlement {
        id: Some(request.id.clone()),
        task: request.task.clone(),
        sequel: Sequel::new(request, Ending::Success(value.clone())),
        store: is_stored(request, task).then(|| of(request, TaskMeta::success(&request.id, value, now))),
        disposition: done(task),
        event: Some(EventKind::TaskSucceeded {
            uuid: request.id.clone(),
            result: result.clone(),
            runtime: runtime.as_secs_f64(),
        }),
        counted: Counted::Succeeded,
        report: Report::Succeeded { result },
    }
}

fn fail(request: &Arc<Request>, task: &Task, error: &TaskError, now: Timestamp) -> Settlement {
    let traceback = Some(traceback(error));
    let meta = || TaskMeta::failure(&request.id, error.exception(), traceback.clone(), now);
    Settlement {
        id: Some(request.id.clone()),
        task: request.task.clone(),
        sequel: Sequel::new(
            request,
            Ending::Failure { exception: error.exception().clone(), traceback: traceback.clone() },
        ),
        store: is_stored(request, task).then(|| of(request, meta())),
        disposition: failed_disposition(task),
        event: Some(EventKind::TaskFailed {
            uuid: request.id.clone(),
            exception: error.exception().repr(),
            traceback,
        }),
        counted: Counted::Failed,
        report: Report::Failed {
            exception: error.to_string(),
            traceback: error.traceback().map(str::to_owned),
        },
    }
}

/// What Python programs find as the traceback, which they expect of each failure: at least the error.
fn traceback(error: &TaskError) -> String {
    error.traceback().map_or_else(|| error.to_string(), str::to_owned)
}

/// What the broker is told of a task that has ended.
fn done(task: &Task) -> Disposition {
    if task.acks_late { Disposition::Ack } else { Disposition::Nothing }
}

/// What the broker is told of a task that has failed.
fn failed_disposition(task: &Task) -> Disposition {
    match done(task) {
        Disposition::Ack if !task.acks_on_failure_or_timeout => Disposition::Reject,
        disposition => disposition,
    }
}

fn retry(request: &Arc<Request>, task: &Task, planned: PlannedRetry) -> Settlement {
    let PlannedRetry { request: again, cause, delay } = planned;
    let exception = cause.as_ref().map(TaskError::exception);
    let traceback = cause.as_ref().map(traceback);
    let meta = || TaskMeta::retry(&request.id, exception, traceback.clone());
    Settlement {
        id: Some(request.id.clone()),
        task: request.task.clone(),
        store: is_stored(request, task).then(|| of(request, meta())),
        disposition: done(task),
        event: Some(EventKind::TaskRetried {
            uuid: request.id.clone(),
            exception: exception.map_or_else(|| "None".to_owned(), Exception::repr),
            traceback: traceback.clone(),
        }),
        counted: Counted::Retried,
        report: Report::Retried { cause: cause.as_ref().map(ToString::to_string), delay },
        sequel: Sequel::new(request, Ending::Retry { again: Box::new(again), delay }),
    }
}

fn ignore(request: &Arc<Request>, task: &Task) -> Settlement {
    Settlement {
        id: Some(request.id.clone()),
        task: request.task.clone(),
        sequel: None,
        store: None,
        disposition: done(task),
        event: None,
        counted: Counted::Ignored,
        report: Report::Ignored,
    }
}

fn reject(
    request: &Arc<Request>,
    task: &Task,
    error: &TaskError,
    requeue: bool,
    now: Timestamp,
) -> Settlement {
    let disposition = match (done(task), requeue) {
        (Disposition::Ack, true) => Disposition::Requeue,
        (Disposition::Ack, false) => Disposition::Reject,
        // Too late: as if it had failed.
        (disposition, _) => disposition,
    };
    let rejected = Settlement {
        disposition,
        counted: Counted::Rejected,
        event: Some(EventKind::TaskRejected { uuid: request.id.clone(), requeue }),
        report: Report::Rejected { reason: error.to_string(), requeue },
        ..fail(request, task, error, now)
    };
    match disposition {
        Disposition::Requeue => Settlement { store: None, sequel: None, ..rejected },
        _ => rejected,
    }
}

/// Why a call isn't run, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Revocation {
    Expired,
    Revoked,
    Terminated { signum: i32 },
}

fn revoke(request: &Arc<Request>, task: &Task, revocation: Revocation, now: Timestamp) -> Settlement {
    let (reason, signum) = match revocation {
        Revocation::Expired => ("expired", None),
        Revocation::Revoked => ("revoked", None),
        Revocation::Terminated { signum } => ("terminated", Some(signum)),
    };
    Settlement {
        id: Some(request.id.clone()),
        task: request.task.clone(),
        sequel: Sequel::new(request, Ending::Revoked(Exception::task_revoked(reason))),
        store: is_stored(request, task).then(|| of(request, TaskMeta::revoked(&request.id, reason, now))),
        disposition: if signum.is_some() { done(task) } else { Disposition::Ack },
        event: Some(EventKind::TaskRevoked {
            uuid: request.id.clone(),
            terminated: signum.is_some(),
            signum,
            expired: revocation == Revocation::Expired,
        }),
        counted: Counted::Revoked,
        report: Report::Revoked { reason },
    }
}

fn refuse_unregistered(request: &Arc<Request>, now: Timestamp) -> Settlement {
    let exception = Exception::not_registered(&request.task);
    // Without the task there is no default for storing results: only the message can say not to.
    let is_stored = request.ignore_result != Some(true);
    Settlement {
        id: Some(request.id.clone()),
        task: request.task.clone(),
        sequel: Sequel::new(request, Ending::Failure { exception: exception.clone(), traceback: None }),
        store: is_stored.then(|| of(request, TaskMeta::failure(&request.id, &exception, None, now))),
        disposition: Disposition::Reject,
        event: Some(failed(&request.id, &exception)),
        counted: Counted::Rejected,
        report: Report::Unregistered,
    }
}

fn refuse_malformed(error: DecodeError, now: Timestamp) -> Settlement {
    let exception = error.exception();
    let id = error.task_id.as_deref();
    Settlement {
        id: error.task_id.clone(),
        task: error.task.clone().unwrap_or_default(),
        sequel: None,
        store: id.map(|id| TaskMeta::failure(id, &exception, None, now)),
        disposition: Disposition::Reject,
        event: id.map(|id| failed(id, &exception)),
        counted: Counted::Rejected,
        report: Report::Malformed { category: error.malformed.category(), problem: error.to_string() },
    }
}

fn failed(id: &str, exception: &Exception) -> EventKind {
    EventKind::TaskFailed { uuid: id.to_owned(), exception: exception.repr(), traceback: None }
}

/// As in Celery, either side may say that nobody wants the result.
fn is_stored(request: &Request, task: &Task) -> bool {
    !task.ignore_result && request.ignore_result != Some(true)
}

fn of(request: &Request, meta: TaskMeta) -> TaskMeta {
    TaskMeta { group_id: request.group.clone(), parent_id: request.parent_id.clone(), ..meta }
}

#[cfg(test)]
mod tests {
    use celery_protocol::{Arguments, State, content::Limits, message::Properties};
    use serde_json::{Value, json};

    use super::*;
    use crate::task::Retry;

    const NOW: Timestamp = Timestamp::constant(1_795_000_000, 0);

    fn registry() -> Registry {
        let mut registry = Registry::default();
        registry.insert(Task::new("t.add", |x: i64, y: i64| x + y));
        registry.insert(Task::new("t.quiet", || ()).ignore_result());
        registry
    }

    fn request(task: &str) -> Request {
        Request::new(task, "id1", Arguments::default())
    }

    fn admitted(request: Request) -> Admitted {
        admit(Ok(request), &registry(), |_| false, NOW).unwrap()
    }

    fn refused(request: Request) -> Settlement {
        *admit(Ok(request), &registry(), |_| false, NOW).unwrap_err()
    }

    fn decode(content_type: &str, body: &str) -> Settlement {
        let headers = json!({"task": "t.add", "id": "id1"});
        let properties = Properties { content_type: Some(content_type.into()), ..Properties::default() };
        let decoded = Request::decode(
            headers.as_object().unwrap().clone(),
            &properties,
            body.as_bytes(),
            &Limits::default(),
        );
        *admit(decoded, &registry(), |_| false, NOW).unwrap_err()
    }

    fn stored(settlement: &Settlement) -> Value {
        serde_json::from_slice(&settlement.store.as_ref().unwrap().encode()).unwrap()
    }

    fn finished(result: crate::TaskResult) -> Ended {
        Ended::Finished(Outcome { result, runtime: Duration::from_millis(500) })
    }

    fn raw(value: Value) -> Box<RawValue> {
        serde_json::value::to_raw_value(&value).unwrap()
    }

    #[test]
    fn a_result_is_stored_acked_and_announced() {
        let mut request = request("t.add");
        request.group = Some("g".into());
        request.parent_id = Some("p".into());
        let settlement = settle(&admitted(request), finished(Ok(raw(json!([1, "two"])))), NOW, 0.5);
        assert_eq!(settlement.disposition, Disposition::Ack);
        assert_eq!(settlement.counted, Counted::Succeeded);
        let meta = stored(&settlement);
        assert_eq!(meta["status"], "SUCCESS");
        assert_eq!(meta["result"], json!([1, "two"]));
        assert_eq!((&meta["group_id"], &meta["parent_id"]), (&json!("g"), &json!("p")));
        assert_eq!(
            settlement.event,
            Some(EventKind::TaskSucceeded { uuid: "id1".into(), result: "[1, 'two']".into(), runtime: 0.5 })
        );
    }

    #[test]
    fn a_start_is_stored_as_the_task_or_else_the_worker_says() {
        let of = |task: Task| Admitted { task: Arc::new(task), ..admitted(request("t.add")) };
        let task = || Task::new("t.add", || ());
        let (unsaid, always, never) = (task(), task().track_started(true), task().track_started(false));
        let is_stored =
            |task: Task| [false, true].map(|by_default| is_start_stored(&of(task.clone()), by_default));
        assert_eq!(
            [is_stored(unsaid), is_stored(always), is_stored(never)],
            [[false, true], [true, true], [false, false]]
        );
        assert!(!is_start_stored(&admitted(request("t.quiet")), true), "nothing is stored of it");
        let mut request = request("t.add");
        request.group = Some("g".into());
        let meta = started(&admitted(request), 7, "celery@a").encode();
        assert_eq!(
            serde_json::from_slice::<Value>(&meta).unwrap(),
            json!({
                "status": "STARTED", "result": {"pid": 7, "hostname": "celery@a"}, "traceback": null, "children": [],
                "date_done": null, "group_id": "g", "task_id": "id1",
            })
        );
    }

    #[test]
    fn an_error_is_stored_as_pythons_exception() {
        let error = TaskError::new("ValueError", "boom").with_traceback("there");
        let settlement = settle(&admitted(request("t.add")), finished(Err(error)), NOW, 0.5);
        assert_eq!(settlement.disposition, Disposition::Ack);
        let meta = stored(&settlement);
        assert_eq!(meta["status"], "FAILURE");
        assert_eq!(
            meta["result"],
            json!({"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"})
        );
        assert_eq!(meta["traceback"], "there");
        let Some(EventKind::TaskFailed { exception, .. }) = settlement.event else {
            panic!("no task-failed")
        };
        assert_eq!(exception, "ValueError('boom')");
    }

    fn failed(task: Task, error: impl Into<TaskError>) -> Settlement {
        let admitted = Admitted { task: Arc::new(task), ..admitted(request("t.add")) };
        settle(&admitted, finished(Err(error.into())), NOW, 0.5)
    }

    #[test]
    fn a_retry_is_stored_and_sent_and_nobody_else_is_told() {
        let cause = TaskError::new("ValueError", "boom").with_traceback("there");
        let settlement = failed(Task::new("t.add", || ()), Retry::default().cause(cause));
        assert_eq!((settlement.disposition, settlement.counted), (Disposition::Ack, Counted::Retried));
        let meta = stored(&settlement);
        assert_eq!((&meta["status"], &meta["date_done"]), (&json!("RETRY"), &json!(null)));
        assert_eq!(
            (&meta["result"]["exc_type"], &meta["traceback"]),
            (&json!("ValueError"), &json!("there"))
        );
        let Ending::Retry { again, delay } = settlement.sequel.unwrap().ending else { panic!("no retry") };
        assert_eq!((again.retries, delay), (1, Duration::from_secs(180)));
        let Some(EventKind::TaskRetried { exception, .. }) = settlement.event else {
            panic!("no task-retried")
        };
        assert_eq!(exception, "ValueError('boom')");
        let settlement = failed(Task::new("t.add", || ()), Retry::default());
        assert_eq!(stored(&settlement)["result"], json!(null));
    }

    #[test]
    fn a_retry_that_cannot_be_sent_is_a_failure_like_any_other() {
        let task = || Task::new("t.add", || ()).acks_on_failure_or_timeout(false);
        let retried = failed(task(), Retry::default());
        assert_eq!(retried.disposition, Disposition::Ack);
        let settlement = retried.failed_after_all(&Exception::builtin("OSError", "away"), &task());
        assert_eq!((settlement.disposition, settlement.counted), (Disposition::Reject, Counted::Failed));
    }

    #[test]
    fn a_task_may_ignore_and_reject() {
        let ignored = failed(Task::new("t.add", || ()), TaskError::ignore());
        assert_eq!(ignored.disposition, Disposition::Ack);
        assert!(ignored.store.is_none() && ignored.event.is_none() && ignored.sequel.is_none());
        let rejected = failed(Task::new("t.add", || ()), TaskError::reject("nope", false));
        assert_eq!(rejected.disposition, Disposition::Reject);
        assert_eq!(stored(&rejected)["result"]["exc_message"], json!(["nope", false]));
        assert_eq!(rejected.event, Some(EventKind::TaskRejected { uuid: "id1".into(), requeue: false }));
        let requeued = failed(Task::new("t.add", || ()), TaskError::reject("later", true));
        assert_eq!((requeued.disposition, requeued.store.is_none()), (Disposition::Requeue, true));
    }

    #[test]
    fn when_a_message_is_acknowledged_is_the_tasks_choice() {
        let task = || Task::new("t.add", || ());
        let boom = || TaskError::new("ValueError", "boom");
        let dispositions = [
            failed(task().acks_late(false), boom()).disposition,
            failed(task().acks_on_failure_or_timeout(false), boom()).disposition,
            failed(task().acks_late(false).acks_on_failure_or_timeout(false), boom()).disposition,
            failed(task().acks_late(false), TaskError::reject("nope", true)).disposition,
            failed(task().acks_late(false), Retry::default()).disposition,
        ];
        let nothing = Disposition::Nothing;
        assert_eq!(dispositions, [nothing, Disposition::Reject, nothing, nothing, nothing]);
    }

    #[test]
    fn a_message_waits_only_for_its_task_if_nothing_is_stored_sent_or_left_to_decide() {
        let quiet = |request: Request| Request { ignore_result: Some(true), ..request };
        let is_done = |request: Request, task: Task, stores| {
            is_done_by_success(&Admitted { request: Arc::new(request), task: Arc::new(task) }, stores)
        };
        let task = || Task::new("t.add", || ());
        assert!(is_done(request("t.add"), task(), false) && is_done(quiet(request("t.add")), task(), true));
        let mut chained = quiet(request("t.add"));
        chained.embed.chain = Some(vec![celery_protocol::Signature::new("t.add")]);
        assert_eq!(
            [
                is_done(request("t.add"), task(), true),
                is_done(chained, task(), false),
                is_done(request("t.add"), task().acks_late(false), false),
                is_done(request("t.add"), task().acks_on_failure_or_timeout(false), false),
            ],
            [false; 4]
        );
    }

    #[test]
    fn nothing_is_stored_if_either_side_says_so() {
        for (task, header, is_stored) in [
            ("t.add", None, true),
            ("t.add", Some(false), true),
            ("t.add", Some(true), false),
            ("t.quiet", None, false),
            ("t.quiet", Some(false), false),
        ] {
            let request = Request { ignore_result: header, ..request(task) };
            let success = settle(&admitted(request.clone()), finished(Ok(raw(json!(1)))), NOW, 0.5);
            let failure =
                settle(&admitted(request), finished(Err(TaskError::new("ValueError", "x"))), NOW, 0.5);
            assert_eq!(success.store.is_some(), is_stored, "{task} {header:?}");
            assert_eq!(failure.store.is_some(), is_stored, "{task} {header:?}");
        }
    }

    #[test]
    fn an_expired_message_is_revoked_and_acked() {
        let expired = Request { expires: Some(NOW - jiff::SignedDuration::from_secs(1)), ..request("t.add") };
        let settlement = refused(expired);
        assert_eq!(settlement.disposition, Disposition::Ack);
        assert_eq!(settlement.store.as_ref().unwrap().status, State::Revoked);
        assert_eq!(stored(&settlement)["result"]["exc_message"], json!(["expired"]));
        assert!(matches!(
            settlement.event,
            Some(EventKind::TaskRevoked { expired: true, terminated: false, .. })
        ));
    }

    #[test]
    fn a_revoked_call_is_acked_without_being_run() {
        let settlement = *admit(Ok(request("t.add")), &registry(), |_| true, NOW).unwrap_err();
        assert_eq!(settlement.disposition, Disposition::Ack);
        assert_eq!(stored(&settlement)["result"]["exc_message"], json!(["revoked"]));
        assert!(matches!(
            settlement.event,
            Some(EventKind::TaskRevoked { expired: false, terminated: false, .. })
        ));
    }

    #[test]
    fn a_terminated_call_is_revoked_with_the_signal() {
        let ended = Ended::Terminated { signum: 9, is_stuck: false };
        let settlement = settle(&admitted(request("t.add")), ended, NOW, 0.5);
        assert_eq!(stored(&settlement)["result"]["exc_message"], json!(["terminated"]));
        assert!(matches!(
            settlement.event,
            Some(EventKind::TaskRevoked { terminated: true, signum: Some(9), .. })
        ));
    }

    #[test]
    fn a_call_that_took_too_long_fails_as_in_celery() {
        let ended = Ended::TimedOut { limit: Duration::from_secs(2), is_stuck: true };
        let settlement = settle(&admitted(request("t.add")), ended, NOW, 0.5);
        assert_eq!((settlement.disposition, settlement.counted), (Disposition::Ack, Counted::Failed));
        let exception = json!({
            "exc_type": "TimeLimitExceeded", "exc_message": [2], "exc_module": "billiard.exceptions",
        });
        assert_eq!(stored(&settlement)["result"], exception);
    }

    #[test]
    fn an_unknown_task_is_rejected_as_not_registered() {
        let settlement = refused(request("t.nope"));
        assert_eq!(settlement.disposition, Disposition::Reject);
        assert_eq!(
            stored(&settlement)["result"],
            json!({"exc_type": "NotRegistered", "exc_message": ["t.nope"], "exc_module": "celery.exceptions"})
        );
        let Some(EventKind::TaskFailed { exception, .. }) = settlement.event else {
            panic!("no task-failed")
        };
        assert_eq!(exception, "NotRegistered('t.nope')");
    }

    #[test]
    fn input_that_cannot_be_decoded_is_rejected_with_the_reason_stored() {
        for (content_type, body, exc_type, exc_module) in [
            ("application/x-python-serialize", "\u{80}", "ContentDisallowed", "kombu.exceptions"),
            ("application/json", "[[1", "DecodeError", "kombu.exceptions"),
            ("application/json", "[[1], {}]", "InvalidTaskError", "celery.exceptions"),
            ("application/json", "[[1], [], {}]", "InvalidTaskError", "celery.exceptions"),
        ] {
            let settlement = decode(content_type, body);
            assert_eq!(settlement.disposition, Disposition::Reject);
            assert_eq!(settlement.counted, Counted::Rejected);
            let meta = stored(&settlement);
            assert_eq!(meta["status"], "FAILURE");
            assert_eq!(
                (&meta["result"]["exc_type"], &meta["result"]["exc_module"]),
                (&json!(exc_type), &json!(exc_module))
            );
        }
    }

    #[test]
    fn a_message_without_id_is_rejected_and_stores_nothing() {
        let decoded = Request::decode(
            json!({"task": "t.add"}).as_object().unwrap().clone(),
            &Properties { content_type: Some("application/json".into()), ..Properties::default() },
            b"[[], {}, {}]",
            &Limits::default(),
        );
        let settlement = *admit(decoded, &registry(), |_| false, NOW).unwrap_err();
        assert_eq!(settlement.disposition, Disposition::Reject);
        assert!(settlement.store.is_none() && settlement.event.is_none());
    }

    #[test]
    fn what_was_received_is_shown_as_python_shows_it() {
        let arguments = Arguments::new(&(1, "a"), &json!({"k": null})).unwrap();
        let request = Request { shadow: Some("shown".into()), ..Request::new("t.add", "id1", arguments) };
        let EventKind::TaskReceived(event) = received(&request) else { panic!("no task-received") };
        assert_eq!(event.name.as_deref(), Some("shown"));
        assert_eq!(event.args.as_deref(), Some("(1, 'a')"));
        assert_eq!(event.kwargs.as_deref(), Some("{'k': None}"));
        assert_eq!(event.root_id.as_deref(), Some("id1"));
    }
}
