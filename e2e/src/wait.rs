//! Waiting for a condition, with a deadline, saying what was waited for.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks. Short beside what is waited for (a pod takes about a second), long beside what a look costs.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks until `probe` finds something, for at most `within`, and gives back what it found.
///
/// `Ok(None)` and `Err` both mean "not yet": what is being started refuses connections at first. `what` completes the
/// sentence "waited for ...".
///
/// # Errors
/// At the deadline, with `what` and the last error of the probe.
pub async fn until<T, F, Probing>(what: &str, within: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Probing,
    Probing: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + within;
    let mut last: Option<anyhow::Error> = None;
    loop {
        match timeout_at(deadline, probe()).await {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => last = Some(error),
            Err(_) => {}
        }
        if Instant::now() + INTERVAL >= deadline {
            let error = match last {
                Some(last) => last.context(format!("waited {within:?} for {what}; last error")),
                None => anyhow!("waited {within:?} for {what}"),
            };
            return Err(error);
        }
        sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gives_back_what_the_probe_found() {
        let mut looks = 0;
        let found = until("the third look", Duration::from_secs(10), || {
            looks += 1;
            let look = looks;
            async move { Ok((look == 3).then_some(look)) }
        });
        assert_eq!(found.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn names_what_it_waited_for_and_the_last_error() {
        let waited =
            until::<(), _, _>("a pod", Duration::from_secs(1), || async { Err(anyhow!("refused")) }).await;
        let message = format!("{:#}", waited.unwrap_err());
        assert!(message.contains("waited 1s for a pod") && message.contains("refused"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_does_not_outlast_the_deadline() {
        let hanging = std::future::pending::<Result<Option<()>>>;
        assert!(until("nothing", Duration::from_secs(1), hanging).await.is_err());
    }
}
