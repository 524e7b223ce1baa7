//! What workers tell each other of runs whose message came back: whether another still runs the call, has done it, or how often
//! it was begun. Keys of our own: Celery's workers know nothing of them.

use super::{RedisResults, StoreError};
use celery_protocol::Request;
use redis::Script;
use std::time::Duration;

/// For how long it is known of a call that it was done, or begun, in seconds: a message that comes back later than that is of
/// a broker that was away for longer.
const KNOWN_SECONDS: u64 = 86_400;

/// Finds out what became of a call's other runs, and counts one more beginning if there are none. That it was done holds for one
/// message: another of the same id may be of a new call.
///
/// KEYS: done, held, begun; ARGV: expiry.
const BEGIN: &str = r#"
if redis.call("DEL", KEYS[1]) == 1 then return -1 end
if redis.call("EXISTS", KEYS[2]) == 1 then return -2 end
local begun = redis.call("INCR", KEYS[3])
redis.call("EXPIRE", KEYS[3], ARGV[1])
return begun
"#;

/// Forgets how often a call was begun, and that a node holds it.
///
/// KEYS: held, begun; ARGV: node.
const FORGET: &str = r#"
redis.call("DEL", KEYS[2])
if redis.call("GET", KEYS[1]) == ARGV[1] then redis.call("DEL", KEYS[1]) end
"#;

/// One run of a call: a retry is another, and so is what replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunKey(String);

impl RunKey {
    /// The run that a message asks for.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        let Request { id, retries, replaced_task_nesting: nesting, .. } = request;
        let replaced = if *nesting == 0 { String::new() } else { format!("r{nesting}") };
        Self(format!("soloist-run-{id}-{retries}{replaced}"))
    }

    fn get(&self, what: &str) -> String {
        format!("{}.{what}", self.0)
    }
}

/// What became of a call whose message was delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherRuns {
    /// It is done, and only its acknowledgement was lost.
    Done,
    /// Another worker runs it.
    Running,
    /// It has to be run. So often it was begun when its message came back, this time included.
    Begun(u32),
}

impl RedisResults {
    /// Lets other workers know for some time that a call is being run.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn hold_run(&self, run: &RunKey, node: &str, time: Duration) -> Result<(), StoreError> {
        let mut command = redis::cmd("SET");
        command
            .arg(run.get("held"))
            .arg(node)
            .arg("PX")
            .arg(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        self.ask("hold a run", &command).await
    }

    /// Lets other workers know that a call is done, although its message will be delivered again.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn finish_run(&self, run: &RunKey) -> Result<(), StoreError> {
        let mut command = redis::cmd("SET");
        command.arg(run.get("done")).arg(1).arg("EX").arg(KNOWN_SECONDS);
        self.ask("finish a run", &command).await
    }

    /// Forgets how often a call was begun again, and that this node runs it: it has come to an end, but its message will be
    /// delivered once more.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn forget_run(&self, run: &RunKey, node: &str) -> Result<(), StoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(FORGET).arg(2).arg(run.get("held")).arg(run.get("begun")).arg(node);
        self.ask("forget a run", &command).await
    }

    /// Asks what became of a call whose message was delivered again, before it is begun again.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn begin_again(&self, run: &RunKey) -> Result<OtherRuns, StoreError> {
        let script = Script::new(BEGIN);
        let mut begin = script.prepare_invoke();
        begin.key(run.get("done")).key(run.get("held")).key(run.get("begun")).arg(KNOWN_SECONDS);
        let answer: Result<i64, _> = begin.invoke_async(&mut self.connection()).await;
        let begun = answer.map_err(|source| StoreError::Redis { action: "begin a run again", source })?;
        Ok(match begun {
            -1 => OtherRuns::Done,
            -2 => OtherRuns::Running,
            begun => OtherRuns::Begun(u32::try_from(begun).unwrap_or(u32::MAX)),
        })
    }
}
