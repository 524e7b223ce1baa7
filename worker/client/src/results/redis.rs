//! Results in Redis, under the keys that Celery uses.

use super::address::RedisAddress;
use super::store::StoreError;
use celery_protocol::result::{EXPIRES_SECONDS, task_key};
use celery_protocol::{State, TaskMeta};
use futures_util::StreamExt;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisConnectionInfo, Script};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a connection, and for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Keys asked for in one command, and commands on their way at once.
const CHUNK: usize = 500;
const CHUNKS_AT_ONCE: usize = 4;

/// Stores unless a success is there (or any end, if there is a third argument), and tells who is subscribed, in one step and one
/// round trip.
///
/// The text is looked through before it is parsed, because parsing a large result only to learn that it is none costs.
const STORE: &str = r#"
local old = redis.call("GET", KEYS[1])
if old and (ARGV[3] or string.find(old, '"SUCCESS"', 1, true)) then
  local stays = {SUCCESS = true, FAILURE = ARGV[3], REVOKED = ARGV[3]}
  local ok, meta = pcall(cjson.decode, old)
  if ok and type(meta) == "table" and stays[meta["status"]] then
    return 0
  end
end
if ARGV[2] == "0" then
  redis.call("SET", KEYS[1], ARGV[1])
else
  redis.call("SETEX", KEYS[1], ARGV[2], ARGV[1])
end
redis.call("PUBLISH", KEYS[1], ARGV[1])
return 1
"#;

/// Results in Redis. Cheap to clone; clones share one connection, which is made anew after it was lost.
#[derive(Clone)]
pub struct RedisResults {
    connection: ConnectionManager,
    store: Arc<Script>,
    expires: u64,
    address: Arc<RedisAddress>,
}

impl RedisResults {
    /// Connects to Redis.
    ///
    /// # Errors
    /// When it can't be reached or refuses.
    pub async fn connect(address: &RedisAddress) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Redis { action: "connect", source };
        let client = client(address).map_err(failed)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            .set_number_of_retries(1);
        let connection = ConnectionManager::new_with_config(client, config).await.map_err(failed)?;
        Ok(Self {
            connection,
            store: Arc::new(Script::new(STORE)),
            expires: EXPIRES_SECONDS,
            address: Arc::new(address.clone()),
        })
    }

    /// A handle of the connection for one more command.
    pub(super) fn connection(&self) -> ConnectionManager {
        self.connection.clone()
    }

    /// Keeps results for another time than Celery's one day, in seconds; 0 for ever.
    #[must_use]
    pub fn with_expiry(self, seconds: u64) -> Self {
        Self { expires: seconds, ..self }
    }

    /// Stores a state and its result unless a success is there already, and tells who waits for it. That a task was started replaces
    /// no end at all.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn store(&self, meta: &TaskMeta) -> Result<bool, StoreError> {
        let mut invocation = self.store.prepare_invoke();
        invocation.key(task_key(&meta.task_id)).arg(meta.encode()).arg(self.expires);
        if meta.status == State::Started {
            invocation.arg("keep any end");
        }
        invocation
            .invoke_async(&mut self.connection.clone())
            .await
            .map_err(|source| StoreError::Redis { action: "store a result", source })
    }

    /// Looks up a task's state and result; none when nothing is stored.
    ///
    /// # Errors
    /// When Redis can't be reached, or holds something else under the task's key.
    pub async fn get(&self, task_id: &str) -> Result<Option<TaskMeta>, StoreError> {
        let text: Option<Vec<u8>> =
            self.ask("read a result", redis::cmd("GET").arg(task_key(task_id))).await?;
        text.map(|text| decode(task_id, &text)).transpose()
    }

    /// Looks up many tasks at once, in the order of their ids.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn get_many<S: AsRef<str>>(&self, task_ids: &[S]) -> Result<Vec<Option<TaskMeta>>, StoreError> {
        // The chunks are asked for one after the other and answered while the next is on its way.
        let chunks = task_ids.chunks(CHUNK).map(|ids| async move {
            let keys: Vec<String> = ids.iter().map(|id| task_key(id.as_ref())).collect();
            let texts: Vec<Option<Vec<u8>>> = self.ask("read results", redis::cmd("MGET").arg(keys)).await?;
            let metas = ids
                .iter()
                .zip(texts)
                .map(|(id, text)| text.map(|text| decode(id.as_ref(), &text)).transpose());
            metas.collect::<Result<Vec<_>, _>>()
        });
        let mut metas = Vec::with_capacity(task_ids.len());
        let mut answers = futures_util::stream::iter(chunks).buffered(CHUNKS_AT_ONCE);
        while let Some(answer) = answers.next().await {
            metas.extend(answer?);
        }
        Ok(metas)
    }

    /// Deletes a task's state and result.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn forget(&self, task_id: &str) -> Result<(), StoreError> {
        self.ask("delete a result", redis::cmd("DEL").arg(task_key(task_id))).await
    }

    /// Asks once more over a new connection, if the connection turns out to be lost.
    pub(super) async fn ask<T: FromRedisValue>(
        &self,
        action: &'static str,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let mut connection = self.connection.clone();
        let answer = match command.query_async(&mut connection).await {
            Err(error) if error.is_connection_dropped() => command.query_async(&mut connection).await,
            answer => answer,
        };
        answer.map_err(|source| StoreError::Redis { action, source })
    }
}

pub(crate) fn decode(task_id: &str, text: &[u8]) -> Result<TaskMeta, StoreError> {
    TaskMeta::decode(text).map_err(|source| StoreError::Damaged { task_id: task_id.to_owned(), source })
}

impl fmt::Debug for RedisResults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("RedisResults").field(&self.address).finish()
    }
}

/// The client of the redis crate, made from parts: a password needs no encoding.
pub(crate) fn client(address: &RedisAddress) -> redis::RedisResult<Client> {
    let host = address.host.clone();
    let server = if address.tls {
        ConnectionAddr::TcpTls { host, port: address.port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, address.port)
    };
    let mut login = RedisConnectionInfo::default().set_db(address.database);
    if let Some(username) = &address.username {
        login = login.set_username(username);
    }
    if let Some(password) = &address.password {
        login = login.set_password(password);
    }
    Client::open(server.into_connection_info()?.set_redis_settings(login))
}
