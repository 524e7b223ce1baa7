//! Running a call again: when a task asks for it, and when its settings do.

use std::time::Duration;

use celery_protocol::{Arguments, Exception, Request, json::JsonError};
use jiff::Timestamp;
use serde::Serialize;

use super::TaskError;

/// Asks for the present call to be run again. Made by [`Context::retry`](super::Context::retry), and returned as an error:
///
/// ```
/// use soloist_worker::{Context, TaskError};
/// use std::time::Duration;
///
/// # fn fetch(url: &str) -> Result<String, std::io::Error> { Ok(url.to_owned()) }
/// fn import(context: Context, url: String) -> Result<usize, TaskError> {
///     let page = fetch(&url)
///         .map_err(|error| context.retry().cause(error).countdown(Duration::from_secs(5)))?;
///     Ok(page.len())
/// }
/// ```
///
/// Without a countdown the task's own delay applies, see [`Task::default_retry_delay`](super::Task::default_retry_delay).
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "it takes effect as the error that the task returns"]
pub struct Retry {
    cause: Option<Box<TaskError>>,
    when: When,
    max_retries: Option<u32>,
    arguments: Option<Arguments>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum When {
    #[default]
    AsTheTaskSays,
    After(Duration),
    At(Timestamp),
}

impl Retry {
    /// What went wrong: the state `RETRY` shows it, and the call fails with it when there are no retries left.
    pub fn cause(mut self, error: impl Into<TaskError>) -> Self {
        self.cause = Some(Box::new(error.into()));
        self
    }

    /// Runs it again after this time; zero is at once.
    pub fn countdown(mut self, delay: Duration) -> Self {
        self.when = When::After(delay);
        self
    }

    /// Runs it again from this moment on.
    pub fn eta(mut self, moment: Timestamp) -> Self {
        self.when = When::At(moment);
        self
    }

    /// Fails instead if it was retried as often as this already. In place of the task's own
    /// [`Task::max_retries`](super::Task::max_retries).
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }

    /// Runs it again with other arguments: positional ones from a tuple, keyword ones from a map or struct, `()` for none.
    ///
    /// # Errors
    /// When an argument has no JSON form.
    pub fn arguments(mut self, args: &impl Serialize, kwargs: &impl Serialize) -> Result<Self, JsonError> {
        self.arguments = Some(Arguments::new(args, kwargs)?);
        Ok(self)
    }

    pub(super) fn into_parts(self) -> (Option<TaskError>, Self) {
        (self.cause.clone().map(|cause| *cause), self)
    }
}

/// When calls of a task are retried, and how often: its settings, with Celery's defaults.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RetryPolicy {
    /// None is without end.
    pub(super) max_retries: Option<u32>,
    pub(super) default_delay: Duration,
    /// Types of the exceptions that are retried without the task asking for it.
    pub(super) autoretry_for: Vec<String>,
    pub(super) dont_autoretry_for: Vec<String>,
    /// First delay in seconds of a backoff that doubles.
    pub(super) backoff: Option<u32>,
    pub(super) backoff_max: Duration,
    pub(super) jitter: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: Some(3),
            default_delay: Duration::from_secs(180),
            autoretry_for: Vec::new(),
            dont_autoretry_for: Vec::new(),
            backoff: None,
            backoff_max: Duration::from_secs(600),
            jitter: true,
        }
    }
}

/// A retry that was decided on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PlannedRetry {
    /// The call to send.
    pub(crate) request: Request,
    pub(crate) cause: Option<TaskError>,
    pub(crate) delay: Duration,
}

impl RetryPolicy {
    /// What to do about a call that ended with `error` at `now`: retry it, or fail with what is returned. `chance` is
    /// uniform in 0 to 1.
    pub(crate) fn decide(
        &self,
        request: &Request,
        error: TaskError,
        now: Timestamp,
        chance: f64,
    ) -> Result<PlannedRetry, TaskError> {
        let (asked, cause) = match error.into_retry() {
            Ok(retry) => {
                let (cause, retry) = retry.into_parts();
                (retry, cause)
            }
            Err(error) if self.covers(error.exception()) => {
                let when = match self.backoff {
                    Some(factor) => When::After(self.backoff(factor, request.retries, chance)),
                    None => When::AsTheTaskSays,
                };
                (Retry { when, ..Retry::default() }, Some(error))
            }
            Err(error) => return Err(error),
        };
        if asked.max_retries.or(self.max_retries).is_some_and(|max| request.retries >= max) {
            return Err(cause.unwrap_or_else(|| exceeded(request)));
        }
        let delay = match asked.when {
            When::AsTheTaskSays => self.default_delay,
            When::After(delay) => delay,
            When::At(moment) => moment.duration_since(now).try_into().unwrap_or_default(),
        };
        let eta = (!delay.is_zero()).then(|| now.checked_add(delay).unwrap_or(Timestamp::MAX));
        let request = match asked.arguments {
            Some(arguments) => request.retried(eta).with_arguments(arguments),
            None => request.retried(eta),
        };
        Ok(PlannedRetry { request, cause, delay })
    }

    fn covers(&self, exception: &Exception) -> bool {
        let is_listed =
            |types: &[String]| types.iter().any(|name| name == "Exception" || *name == exception.exc_type);
        is_listed(&self.autoretry_for) && !is_listed(&self.dont_autoretry_for)
    }

    /// Celery's exponential backoff: whole seconds, with jitter any number of them from none to the full delay.
    fn backoff(&self, factor: u32, retries: u32, chance: f64) -> Duration {
        let doubled = 2_u64.checked_pow(retries).map(|power| power.saturating_mul(factor.max(1).into()));
        // Longer than anybody waits, and so that nothing overflows where the longest delay is `Duration::MAX`.
        let longest = self.backoff_max.as_secs().min(u32::MAX.into());
        let seconds = doubled.unwrap_or(u64::MAX).min(longest);
        let full = Duration::from_secs(seconds);
        if !self.jitter {
            return full;
        }
        let part = (full + Duration::from_secs(1)).mul_f64(chance.clamp(0.0, 1.0));
        Duration::from_secs(part.as_secs()).min(full)
    }
}

fn exceeded(request: &Request) -> TaskError {
    let message = format!(
        "Can't retry {}[{}] args:{} kwargs:{}",
        request.task,
        request.id,
        request.args_repr(),
        request.kwargs_repr()
    );
    TaskError::from_exception(Exception::max_retries_exceeded(message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_795_000_000, 0);

    fn request(retries: u32) -> Request {
        Request { retries, ..Request::new("t.add", "id1", Arguments::new(&(1, 2), &()).unwrap()) }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn decide(
        policy: &RetryPolicy,
        retries: u32,
        error: impl Into<TaskError>,
    ) -> Result<PlannedRetry, String> {
        policy.decide(&request(retries), error.into(), NOW, 0.5).map_err(|error| error.to_string())
    }

    fn boom() -> TaskError {
        TaskError::new("ValueError", "boom")
    }

    #[test]
    fn a_task_that_asks_is_retried_three_times_after_three_minutes() {
        let policy = RetryPolicy::default();
        let planned = decide(&policy, 2, Retry::default().cause(boom())).unwrap();
        assert_eq!((planned.delay, planned.cause), (seconds(180), Some(boom())));
        assert_eq!((planned.request.retries, planned.request.eta), (3, Some(NOW + seconds(180))));
        assert_eq!(decide(&policy, 3, Retry::default().cause(boom())).unwrap_err(), "ValueError: boom");
        assert_eq!(
            decide(&policy, 3, Retry::default()).unwrap_err(),
            "MaxRetriesExceededError: Can't retry t.add[id1] args:(1, 2) kwargs:{}"
        );
    }

    #[test]
    fn what_the_task_asks_for_comes_before_its_settings() {
        let policy = RetryPolicy { max_retries: None, ..RetryPolicy::default() };
        assert!(decide(&policy, 1000, Retry::default()).is_ok());
        assert!(decide(&policy, 1, Retry::default().max_retries(1)).is_err());
        let at_once = decide(&policy, 0, Retry::default().countdown(Duration::ZERO)).unwrap();
        assert_eq!(at_once.request.eta, None);
        let later = decide(&policy, 0, Retry::default().eta(NOW + seconds(7))).unwrap();
        assert_eq!(later.request.eta, Some(NOW + seconds(7)));
        let other = decide(&policy, 0, Retry::default().arguments(&(3,), &json!({"y": 4})).unwrap()).unwrap();
        assert_eq!(
            (other.request.args_repr(), other.request.kwargs_repr()),
            ("(3,)".into(), "{'y': 4}".into())
        );
    }

    #[test]
    fn listed_errors_are_retried_by_themselves() {
        let policy = RetryPolicy { autoretry_for: vec!["ValueError".into()], ..RetryPolicy::default() };
        assert!(decide(&policy, 0, boom()).is_ok());
        assert_eq!(decide(&policy, 0, TaskError::new("KeyError", "k")).unwrap_err(), "KeyError: k");
        let all = RetryPolicy {
            autoretry_for: vec!["Exception".into()],
            dont_autoretry_for: vec!["KeyError".into()],
            ..RetryPolicy::default()
        };
        assert!(decide(&all, 0, boom()).is_ok() && decide(&all, 0, TaskError::new("KeyError", "k")).is_err());
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let plain = RetryPolicy { jitter: false, ..RetryPolicy::default() };
        let delays = [0, 1, 2, 9, 10, 63, 64, 1000].map(|retries| plain.backoff(1, retries, 0.5).as_secs());
        assert_eq!(delays, [1, 2, 4, 512, 600, 600, 600, 600]);
        assert_eq!((plain.backoff(5, 1, 0.5).as_secs(), plain.backoff(0, 0, 0.5).as_secs()), (10, 1));
        let jittered = RetryPolicy::default();
        let delays = [0.0, 0.2, 0.5, 0.99, 1.0].map(|chance| jittered.backoff(1, 2, chance).as_secs());
        assert_eq!(delays, [0, 1, 2, 4, 4]);
        let unlimited = RetryPolicy { backoff_max: Duration::MAX, ..RetryPolicy::default() };
        assert_eq!(unlimited.backoff(u32::MAX, u32::MAX, 1.0).as_secs(), u64::from(u32::MAX));
    }
}
