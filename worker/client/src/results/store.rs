//! Storing results, whatever keeps them.

use super::{RedisResults, RpcResults};
use celery_protocol::TaskMeta;

/// Why a result is not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Redis can't be reached or refused.
    #[error("{action} in redis")]
    Redis {
        /// What was being done.
        action: &'static str,
        /// Why.
        source: redis::RedisError,
    },
    /// What is stored isn't a result.
    #[error("the stored result of task `{task_id}` can't be read")]
    Damaged {
        /// Id of the task.
        task_id: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The broker can't be reached or refused.
    #[error("send the result to `{queue}`")]
    Rpc {
        /// The caller's queue.
        queue: String,
        /// Why.
        source: lapin::Error,
    },
}

impl StoreError {
    /// Whether the store can't be reached, so that asking again later may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Redis { source, .. } => source.is_connection_dropped() || source.is_timeout(),
            Self::Rpc { source, .. } => source.is_io_error() || source.can_be_recovered(),
            Self::Damaged { .. } => false,
        }
    }

    /// Whether something is stored that can't be read as a result, so that asking again doesn't help.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Redis { source, .. } => source.code() == Some("WRONGTYPE"),
            Self::Rpc { .. } => false,
        }
    }
}

/// Where the caller of a task waits for its answer over RPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyAddress<'a> {
    /// The caller's queue; none when nobody waits.
    pub queue: Option<&'a str>,
    /// Label of the answer.
    pub correlation_id: &'a str,
}

impl<'a> From<&'a celery_protocol::Request> for ReplyAddress<'a> {
    fn from(request: &'a celery_protocol::Request) -> Self {
        Self { queue: request.reply_to.as_deref(), correlation_id: request.correlation() }
    }
}

/// Where a worker leaves results. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub enum ResultStore {
    /// In Redis, under the task's id.
    Redis(RedisResults),
    /// In the caller's own queue.
    Rpc(RpcResults),
}

impl ResultStore {
    /// Stores a state and its result, telling whoever waits for it.
    ///
    /// Returns whether it was stored: a success that is already there is never overwritten, and over RPC a call without
    /// an address to reply to has nobody to tell.
    ///
    /// # Errors
    /// When the store can't be reached; nothing is retried here.
    pub async fn store(&self, meta: &TaskMeta, reply: ReplyAddress<'_>) -> Result<bool, StoreError> {
        match self {
            Self::Redis(redis) => redis.store(meta).await,
            Self::Rpc(rpc) => rpc.store(meta, reply).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::redis::decode;
    use super::*;

    #[test]
    fn what_is_damaged_stays_so_and_other_errors_pass() {
        let damaged = decode("id1", b"\x80\x04N.").unwrap_err();
        assert!(damaged.is_damaged() && !damaged.is_unreachable());
        let of_redis = |code: &str| StoreError::Redis {
            action: "read a result",
            source: redis::make_extension_error(code.to_owned(), None),
        };
        assert!(of_redis("WRONGTYPE").is_damaged() && !of_redis("LOADING").is_damaged());
    }
}
