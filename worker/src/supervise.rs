//! Watching over a running task: time limits, and being told to end it.

use std::{future::Future, pin::pin, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    executor::Outcome,
    task::{CancelHandle, Cancellation},
};

/// How long a task that must end may take to notice that it was asked to.
const NOTICE: Duration = Duration::from_millis(500);

/// How long an `async` task may take to be dropped.
const DROP: Duration = Duration::from_millis(100);

/// How long a task may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TimeLimits {
    /// After this it is asked to stop.
    pub(crate) soft: Option<Duration>,
    /// After this it is ended.
    pub(crate) hard: Option<Duration>,
}

impl TimeLimits {
    /// These limits, and where there is none the `default`.
    pub(crate) fn or(self, default: Self) -> Self {
        Self { soft: self.soft.or(default.soft), hard: self.hard.or(default.hard) }
    }
}

/// How a task has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By itself.
    Finished(Outcome),
    /// By its hard time limit.
    TimedOut { limit: Duration, is_stuck: bool },
    /// By somebody's command, that named this signal.
    Terminated { signum: i32, is_stuck: bool },
}

impl Ended {
    /// Whether the task can't be stopped and still occupies its thread.
    pub(crate) fn is_stuck(&self) -> bool {
        match self {
            Self::Finished(_) => false,
            Self::TimedOut { is_stuck, .. } | Self::Terminated { is_stuck, .. } => *is_stuck,
        }
    }
}

/// Waits for `running` to end, asking and then forcing it to when `limits` are exceeded or `terminate` names a signal.
pub(crate) async fn supervise(
    running: impl Future<Output = Outcome>,
    limits: TimeLimits,
    mut terminate: watch::Receiver<Option<i32>>,
    cancel: &CancelHandle,
) -> Ended {
    let mut running = pin!(running);
    let begun = Instant::now();
    let mut soft = limits.soft;
    loop {
        tokio::select! {
            biased;
            outcome = &mut running => return Ended::Finished(outcome),
            signum = requested(&mut terminate) => {
                let is_stuck = !ends(&mut running, cancel, Cancellation::Revoked).await;
                return Ended::Terminated { signum, is_stuck };
            }
            limit = passed(begun, limits.hard) => {
                let is_stuck = !ends(&mut running, cancel, Cancellation::HardTimeLimit).await;
                return Ended::TimedOut { limit, is_stuck };
            }
            _ = passed(begun, soft) => {
                cancel.ask(Cancellation::SoftTimeLimit);
                soft = None;
            }
        }
    }
}

/// Makes a task end; false if it doesn't.
async fn ends(running: &mut (impl Future + Unpin), cancel: &CancelHandle, reason: Cancellation) -> bool {
    cancel.ask(reason);
    if timeout(NOTICE, &mut *running).await.is_ok() {
        return true;
    }
    cancel.abort(reason);
    timeout(DROP, running).await.is_ok()
}

async fn requested(terminate: &mut watch::Receiver<Option<i32>>) -> i32 {
    match terminate.wait_for(Option::is_some).await.ok().and_then(|signum| *signum) {
        Some(signum) => signum,
        None => std::future::pending().await,
    }
}

async fn passed(begun: Instant, limit: Option<Duration>) -> Duration {
    match limit {
        // A limit beyond what the clock can show is never reached.
        Some(limit) => match begun.checked_add(limit) {
            Some(moment) => {
                sleep_until(moment).await;
                limit
            }
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished() -> Outcome {
        Outcome { result: Err(crate::TaskError::new("X", "x")), runtime: Duration::ZERO }
    }

    fn limits(soft: u64, hard: u64) -> TimeLimits {
        let seconds = |seconds| (seconds > 0).then(|| Duration::from_secs(seconds));
        TimeLimits { soft: seconds(soft), hard: seconds(hard) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_heeds_the_soft_limit_finishes() {
        let cancel = CancelHandle::new();
        let cancelled = cancel.subscribe();
        let begun = Instant::now();
        let running = async {
            cancelled.asked().await;
            finished()
        };
        let (_terminate, receiver) = watch::channel(None);
        let ended = supervise(running, limits(2, 5), receiver, &cancel).await;
        assert!(matches!(ended, Ended::Finished(_)));
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        assert_eq!(cancelled.reason(), Some(Cancellation::SoftTimeLimit));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_heeds_nothing_is_stuck_after_the_hard_limit() {
        let cancel = CancelHandle::new();
        let (_terminate, receiver) = watch::channel(None);
        let begun = Instant::now();
        let ended = supervise(std::future::pending(), limits(2, 5), receiver, &cancel).await;
        assert!(
            matches!(ended, Ended::TimedOut { limit, is_stuck: true } if limit == Duration::from_secs(5))
        );
        assert_eq!(begun.elapsed(), Duration::from_secs(5) + NOTICE + DROP);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_the_clock_cannot_show_is_none() {
        let running = async {
            tokio::time::sleep(Duration::from_secs(86_400)).await;
            finished()
        };
        let (_terminate, receiver) = watch::channel(None);
        for limit in [Duration::try_from_secs_f64(1e19).unwrap(), Duration::MAX] {
            assert_eq!(Instant::now().checked_add(limit), None);
        }
        let limits =
            TimeLimits { soft: Some(Duration::try_from_secs_f64(1e19).unwrap()), hard: Some(Duration::MAX) };
        let ended = supervise(running, limits, receiver, &CancelHandle::new()).await;
        assert!(matches!(ended, Ended::Finished(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_can_be_dropped_is_terminated_cleanly() {
        let cancel = CancelHandle::new();
        let cancelled = cancel.subscribe();
        let running = async {
            cancelled.aborted().await;
            finished()
        };
        let (terminate, receiver) = watch::channel(None);
        terminate.send_replace(Some(15));
        let ended = supervise(running, limits(0, 0), receiver, &cancel).await;
        assert!(matches!(ended, Ended::Terminated { signum: 15, is_stuck: false }));
    }
}
