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
    /// The broker takes no messages of this size.
    #[error("send the result to `{queue}`: its {bytes} bytes are too many for the broker")]
    TooLarge {
        /// The caller's queue.
        queue: String,
        /// Size of the message.
        bytes: usize,
        /// What the broker says.
        source: lapin::Error,
    },
    /// The caller's queue refused: it is full and set to refuse what is beyond its limit.
    #[error("send the result to `{queue}`: it refused the message, it may be full")]
    Refused {
        /// The caller's queue.
        queue: String,
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
            Self::Damaged { .. } | Self::TooLarge { .. } | Self::Refused { .. } => false,
        }
    }

    /// Whether asking again doesn't help: what is stored is no result, what is to be stored is too large, or a caller doesn't read
    /// what is sent to it.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        // Redis 6 and older name the error of a script only in its text.
        let is_wrong = |source: &redis::RedisError| {
            source.code() == Some("WRONGTYPE")
                || source.detail().is_some_and(|detail| detail.contains("WRONGTYPE"))
        };
        match self {
            Self::Damaged { .. } | Self::TooLarge { .. } | Self::Refused { .. } => true,
            Self::Redis { source, .. } => is_wrong(source),
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
    /// Returns whether it was stored: a success that is already there is never overwritten, another end not by a
    /// start, and over RPC a call without an address to reply to has nobody to tell.
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
        assert!(damaged.is_permanent() && !damaged.is_unreachable());
        let of_redis = |code: &str, detail: Option<&str>| StoreError::Redis {
            action: "read a result",
            source: redis::make_extension_error(code.to_owned(), detail.map(str::to_owned)),
        };
        assert!(of_redis("WRONGTYPE", None).is_permanent() && !of_redis("LOADING", None).is_permanent());
        let of_script = "Error running script: @user_script:2: WRONGTYPE Operation against a key";
        assert!(of_redis("ERR", Some(of_script)).is_permanent());
    }
}
