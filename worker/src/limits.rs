//! How often tasks may begin, and how long they may take: settings that remote control can change.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use crate::supervise::TimeLimits;

/// At most so many starts a second, one at a time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RateLimit {
    per_second: f64,
    /// As it was given, for showing.
    text: String,
}

impl RateLimit {
    /// Reads `10/m`, `2/s`, `100/h` or a number a second; `Ok(None)` for no limit: zero, null or an empty text.
    pub(crate) fn parse(value: &Value) -> Result<Option<Self>, ()> {
        let (text, per_second) = match value {
            Value::Null => return Ok(None),
            Value::Number(number) => (number.to_string(), number.as_f64().ok_or(())?),
            Value::String(text) if text.is_empty() => return Ok(None),
            Value::String(text) => {
                let (number, unit) = text.split_once('/').unwrap_or((text, "s"));
                let seconds = match unit.trim() {
                    "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    _ => return Err(()),
                };
                (text.clone(), number.trim().parse::<f64>().map_err(|_| ())? / seconds)
            }
            _ => return Err(()),
        };
        if !per_second.is_finite() || per_second < 0.0 {
            return Err(());
        }
        Ok((per_second > 0.0).then_some(Self { per_second, text }))
    }

    fn interval(&self) -> Duration {
        Duration::try_from_secs_f64(1.0 / self.per_second).unwrap_or(Duration::MAX)
    }
}

#[derive(Debug, Default)]
struct OfTask {
    rate: Option<RateLimit>,
    next_start: Option<Instant>,
    times: TimeLimits,
}

/// The limits of all tasks.
#[derive(Debug)]
pub(crate) struct Limits {
    default_times: TimeLimits,
    tasks: Mutex<HashMap<String, OfTask>>,
}

impl Limits {
    /// No rate limits, and these time limits for tasks and messages without their own.
    pub(crate) fn new(default_times: TimeLimits) -> Self {
        Self { default_times, tasks: Mutex::default() }
    }

    /// Limits the starts of a task from now on, or no longer does.
    pub(crate) fn set_rate(&self, task: &str, rate: Option<RateLimit>) {
        let mut tasks = self.tasks();
        let limits = tasks.entry(task.to_owned()).or_default();
        limits.rate = rate;
        limits.next_start = None;
    }

    /// Limits the runtime of a task from its next start on.
    pub(crate) fn set_times(&self, task: &str, times: TimeLimits) {
        self.tasks().entry(task.to_owned()).or_default().times = times;
    }

    /// The rate limit of a task, as it was given.
    pub(crate) fn rate(&self, task: &str) -> Option<String> {
        self.tasks().get(task)?.rate.as_ref().map(|rate| rate.text.clone())
    }

    /// The time limits of tasks that have none of their own.
    pub(crate) fn default_times(&self) -> TimeLimits {
        self.default_times
    }

    /// The time limits of a task.
    pub(crate) fn times(&self, task: &str) -> TimeLimits {
        self.tasks().get(task).map(|limits| limits.times).unwrap_or_default().or(self.default_times)
    }

    /// How long a task has to wait at `now` until it may begin.
    pub(crate) fn delay(&self, task: &str, now: Instant) -> Option<Duration> {
        let next = self.tasks().get(task)?.next_start?;
        next.checked_duration_since(now).filter(|delay| !delay.is_zero())
    }

    /// A task begins at `now`.
    pub(crate) fn begin(&self, task: &str, now: Instant) {
        if let Some(limits) = self.tasks().get_mut(task) {
            limits.next_start = limits.rate.as_ref().and_then(|rate| now.checked_add(rate.interval()));
        }
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, OfTask>> {
        // Limits are replaced whole, so a panic elsewhere leaves nothing half done.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_rates_as_celery_does() {
        for (value, interval) in [
            (json!("10/m"), Some(6.0)),
            (json!("2/s"), Some(0.5)),
            (json!("0.5/h"), Some(7200.0)),
            (json!(4), Some(0.25)),
            (json!("4"), Some(0.25)),
            (json!(0), None),
            (json!("0"), None),
            (json!(null), None),
            (json!(""), None),
        ] {
            let rate = RateLimit::parse(&value).unwrap();
            assert_eq!(rate.map(|rate| rate.interval().as_secs_f64()), interval, "{value}");
        }
        for value in [json!("10/d"), json!("many"), json!(-1), json!("nan/s"), json!([1])] {
            assert!(RateLimit::parse(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn starts_are_spread_evenly() {
        let limits = Limits::new(TimeLimits::default());
        let now = Instant::now();
        limits.set_rate("t", RateLimit::parse(&json!("2/s")).unwrap());
        assert_eq!(limits.delay("t", now), None);
        limits.begin("t", now);
        assert_eq!(limits.delay("t", now), Some(Duration::from_millis(500)));
        assert_eq!(limits.delay("t", now + Duration::from_millis(500)), None);
        assert_eq!(limits.delay("other", now), None);
        limits.set_rate("t", None);
        assert_eq!(limits.delay("t", now), None);
    }

    #[test]
    fn a_tasks_own_time_limits_come_before_the_workers() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let limits = Limits::new(TimeLimits { soft: seconds(5), hard: seconds(10) });
        limits.set_times("t", TimeLimits { soft: None, hard: seconds(3) });
        assert_eq!(limits.times("t"), TimeLimits { soft: seconds(5), hard: seconds(3) });
        assert_eq!(limits.times("other"), TimeLimits { soft: seconds(5), hard: seconds(10) });
    }
}
