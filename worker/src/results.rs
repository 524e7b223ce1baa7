//! Where results go.

use std::{sync::Arc, time::Duration};

use celery_client::{
    ResultStore,
    results::{RedisAddress, RedisResults, ReplyAddress, RpcResults},
};
use celery_protocol::TaskMeta;
use tokio::{sync::OnceCell, time::timeout};
use tracing::{info, warn};

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
    pub(crate) async fn store(
        &self,
        meta: &TaskMeta,
        reply: ReplyAddress<'_>,
        health: &Health,
        metrics: &Metrics,
    ) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut failed = false;
        while let Err(problem) = self.try_store(meta, reply).await {
            failed = true;
            metrics.store_retries.inc();
            let wait = backoff.next(backoff::random());
            warn!(id = meta.task_id, problem, retry_in = ?wait, "can't store the result");
            health.set_not_storing(Some(problem));
            tokio::time::sleep(wait).await;
        }
        if failed {
            info!(id = meta.task_id, "stored the result");
            health.set_not_storing(None);
        }
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

    async fn try_store(&self, meta: &TaskMeta, reply: ReplyAddress<'_>) -> Result<(), String> {
        let Some(store) = self.open().await? else { return Ok(()) };
        match timeout(STORE_TIMEOUT, store.store(meta, reply)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(describe(&error)),
            Err(_) => Err(format!("store a result: no answer in {STORE_TIMEOUT:?}")),
        }
    }

    async fn open(&self) -> Result<Option<ResultStore>, String> {
        match self {
            Self::Nowhere => Ok(None),
            Self::Redis { address, store } => {
                let store = store.get_or_try_init(|| RedisResults::connect(address)).await;
                store.map(|store| Some(ResultStore::Redis(store.clone()))).map_err(|error| describe(&error))
            }
            Self::Rpc { link } => match link.channel() {
                Some(channel) => Ok(Some(ResultStore::Rpc(RpcResults::new(channel)))),
                None => Err("send the result: not connected to the broker".to_owned()),
            },
        }
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
