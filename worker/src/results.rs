//! Where results go.

use std::{sync::Arc, time::Duration};

use celery_client::{
    ResultStore,
    results::{RedisAddress, RedisResults, ReplyAddress, RpcResults, StoreError},
};
use celery_protocol::{Exception, State, TaskMeta};
use jiff::Timestamp;
use tokio::{sync::OnceCell, time::timeout};
use tracing::{error, info, warn};

use crate::{
    backoff::{self, Backoff},
    broker::Link,
    health::Health,
    metrics::Metrics,
};

/// Longest wait for the store to take a result before it is tried again.
const STORE_TIMEOUT: Duration = Duration::from_secs(15);

/// The worker's result store.
#[derive(Debug)]
pub(crate) enum Results {
    /// Nothing is stored.
    Nowhere,
    /// In Redis, once there is a connection.
    Redis { address: RedisAddress, store: OnceCell<RedisResults> },
    /// With the caller, over the broker.
    Rpc { link: Link },
}

impl Results {
    /// In the Redis at `address`, connected to when it is first needed.
    pub(crate) fn in_redis(address: RedisAddress) -> Self {
        Self::Redis { address, store: OnceCell::new() }
    }

    /// Stores `meta`, trying until it is done: an acknowledgement must not go out for a result that could be lost.
    ///
    /// What can't ever be stored is logged, and is lost: the task was run, and running it again would not help. Where its
    /// value was too large, whoever waits for it is told so.
    pub(crate) async fn store(
        &self,
        meta: &TaskMeta,
        reply: ReplyAddress<'_>,
        health: &Health,
        metrics: &Metrics,
    ) {
        let id = &meta.task_id;
        let stored = until_done(id, || self.try_store(meta, reply), health, metrics).await;
        let problem = match stored.value {
            Ok(()) if stored.failed => return info!(id, "stored the result"),
            Ok(()) => return,
            Err(problem) => problem,
        };
        let (message, is_too_large) = (describe(&problem), matches!(problem, StoreError::TooLarge { .. }));
        error!(id, problem = message, "the result can't be stored, and is lost");
        if is_too_large {
            let exception = Exception::new("kombu.exceptions", "OperationalError", vec![message.into()]);
            let failure = TaskMeta {
                group_id: meta.group_id.clone(),
                parent_id: meta.parent_id.clone(),
                ..TaskMeta::failure(id, &exception, None, Timestamp::now())
            };
            // This one is small. If even that is too large there is nothing to be told.
            let _ = until_done(id, || self.try_store(&failure, reply), health, metrics).await;
        }
    }

    /// Stores that a task was started, trying until it is done. Nothing depends on that: the task runs meanwhile, and its end is
    /// stored in any case.
    pub(crate) async fn store_started(&self, meta: &TaskMeta, reply: ReplyAddress<'_>) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let id = &meta.task_id;
        loop {
            let problem = match self.try_store(meta, reply).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    return warn!(id, problem = describe(&error), "that the task was started is not stored");
                }
                Err(problem) => problem,
            };
            let wait = backoff.next(backoff::random());
            warn!(id, problem, retry_in = ?wait, "can't store that the task was started");
            tokio::time::sleep(wait).await;
        }
    }

    /// The results in Redis, if that is where they are, once there is a connection.
    pub(crate) async fn redis(&self, health: &Health, metrics: &Metrics) -> Option<RedisResults> {
        let Self::Redis { .. } = self else { return None };
        let open = || async { self.open().await.map(Ok) };
        match until_done("connect", open, health, metrics).await.value {
            Ok(Some(ResultStore::Redis(redis))) => Some(redis),
            _ => None,
        }
    }

    /// Whether it is stored of a call that it was revoked: before this worker started, perhaps.
    pub(crate) async fn is_revoked(&self, id: &str, health: &Health, metrics: &Metrics) -> bool {
        let Some(redis) = self.redis(health, metrics).await else { return false };
        let meta = self.insist("read a result", || redis.get(id), health, metrics).await;
        meta.ok().flatten().is_some_and(|meta| meta.status == State::Revoked)
    }

    /// Does something with the store, trying until it is done; an error if trying again would not help.
    pub(crate) async fn insist<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        doing: &'static str,
        attempt: impl Fn() -> F,
        health: &Health,
        metrics: &Metrics,
    ) -> Result<T, StoreError> {
        let done = until_done(doing, || answer(doing, attempt()), health, metrics).await.value;
        if let Err(error) = &done {
            warn!(problem = describe(error), "what is stored can't be used");
        }
        done
    }

    /// Connects to the store ahead of the first result, so that a wrong address shows at once.
    pub(crate) async fn prepare(self: Arc<Self>, health: Arc<Health>) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let Self::Redis { .. } = &*self else { return };
        let mut failed = false;
        while let Err(problem) = self.open().await {
            failed = true;
            let wait = backoff.next(backoff::random());
            warn!(problem, retry_in = ?wait, "can't reach the result store");
            health.set_not_storing(Some(problem));
            tokio::time::sleep(wait).await;
        }
        if failed {
            info!("reached the result store");
            health.set_not_storing(None);
        }
    }

    async fn try_store(&self, meta: &TaskMeta, reply: ReplyAddress<'_>) -> Attempt<()> {
        let Some(store) = self.open().await? else { return Ok(Ok(())) };
        Ok(answer("store a result", store.store(meta, reply)).await?.map(drop))
    }

    async fn open(&self) -> Result<Option<ResultStore>, String> {
        match self {
            Self::Nowhere => Ok(None),
            Self::Redis { address, store } => {
                let store = store.get_or_try_init(|| RedisResults::connect(address)).await;
                store.map(|store| Some(ResultStore::Redis(store.clone()))).map_err(|error| describe(&error))
            }
            Self::Rpc { link } => match link.results() {
                Some(channel) => Ok(Some(ResultStore::Rpc(RpcResults::new(channel)))),
                None => Err("send the result: not connected to the broker".to_owned()),
            },
        }
    }
}

/// What came of one attempt: a problem that may pass, or an answer, even if that is an error that stays.
type Attempt<T> = Result<Result<T, StoreError>, String>;

/// What the store answers, if it does in time.
async fn answer<T>(doing: &str, attempt: impl Future<Output = Result<T, StoreError>>) -> Attempt<T> {
    match timeout(STORE_TIMEOUT, attempt).await {
        Ok(Err(error)) if !error.is_permanent() => Err(describe(&error)),
        Ok(answer) => Ok(answer),
        Err(_) => Err(format!("{doing}: no answer in {STORE_TIMEOUT:?}")),
    }
}

/// What came of an attempt that was repeated until there was an answer.
struct Insisted<T> {
    value: Result<T, StoreError>,
    /// Whether it took more than one.
    failed: bool,
}

async fn until_done<T, F: Future<Output = Attempt<T>>>(
    id: &str,
    attempt: impl Fn() -> F,
    health: &Health,
    metrics: &Metrics,
) -> Insisted<T> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut failed = false;
    loop {
        let problem = match attempt().await {
            Ok(value) => {
                if failed {
                    health.set_not_storing(None);
                }
                return Insisted { value, failed };
            }
            Err(problem) => problem,
        };
        failed = true;
        metrics.store_retries.inc();
        let wait = backoff.next(backoff::random());
        warn!(id, problem, retry_in = ?wait, "can't store the result");
        health.set_not_storing(Some(problem));
        tokio::time::sleep(wait).await;
    }
}

pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_as_a_result_is_not_read_again() {
        let (health, metrics) = (Health::new(&[]), Metrics::new(Vec::new(), "0").unwrap());
        let attempts = std::cell::Cell::new(0);
        let damaged = || async {
            attempts.set(attempts.get() + 1);
            let source = serde_json::from_slice::<serde_json::Value>(b"\x80\x04N.").unwrap_err();
            Err::<(), _>(StoreError::Damaged { task_id: "id1".into(), source })
        };
        let read = Results::Nowhere.insist("read a result", damaged, &health, &metrics).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })));
        assert_eq!((attempts.get(), metrics.store_retries.get()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_is_asked_again() {
        let (health, metrics) = (Health::new(&[]), Metrics::new(Vec::new(), "0").unwrap());
        let attempts = std::cell::Cell::new(0);
        let answer = || async {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 3 { std::future::pending().await } else { Ok(attempts.get()) }
        };
        assert_eq!(Results::Nowhere.insist("read a result", answer, &health, &metrics).await.unwrap(), 3);
        assert_eq!(metrics.store_retries.get(), 2);
    }
}
