//! Chords in Redis: counting the parts of a header, under the keys and by the rules of Celery 5.7.
//!
//! All keys begin with the group's, `P`. `P.s` holds how many parts there are, `P.j` those that are in, by their index,
//! `P.t` how many were added later, `P.a` which (where we did that), `P.d` who has been counted, and `P.c` who dispatches
//! the body: a claim, and then `done`. Workers of Celery 5.6 and older know only the first three; they and we can serve the
//! same chord.

use super::groups::SavedGroup;
use super::{RedisResults, StoreError};
use celery_protocol::canvas::ChordStart;
use celery_protocol::result::{EXPIRES_SECONDS, ResultTuple, group_key};
use celery_protocol::{Exception, State, TaskMeta, json};
use redis::{FromRedisValue, RedisResult, Script};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::HashMap;

/// How long a worker may take from its claim to having read the results, in seconds: what Celery 5.7 has by default.
const CLAIM_SECONDS: u64 = 6;

/// How long a worker may take to publish the body, in seconds. Past it, another worker that is given one of the header's
/// messages again may publish the body too.
const DISPATCH_SECONDS: u64 = 60;

/// For how long the chord is known to be done, in seconds: what Celery 5.7 has by default.
const DONE_SECONDS: u64 = 300;

/// Counts a part and claims the body if it was the last.
///
/// KEYS: P.j P.t P.s P.d P P.c; ARGV: task id, entry, score, expiry, size if P.s is missing, claim expiry, token.
/// P.j is a list where the Celery app doesn't want chords ordered.
const REPORT: &str = r#"
local claim = redis.call("GET", KEYS[6])
if claim == "done" then return 3 end
local is_list = redis.call("TYPE", KEYS[1]).ok == "list"
if redis.call("SADD", KEYS[4], ARGV[1] .. ":" .. ARGV[3]) == 1 then
  if is_list then
    redis.call("RPUSH", KEYS[1], ARGV[2])
  else
    redis.call("ZADD", KEYS[1], ARGV[3], ARGV[2])
  end
end
for index = 1, 5 do redis.call("EXPIRE", KEYS[index], ARGV[4]) end
local size = tonumber(redis.call("GET", KEYS[3]) or ARGV[5])
if not size then return 0 end
local count = redis.call(is_list and "LLEN" or "ZCARD", KEYS[1])
if count ~= size + tonumber(redis.call("GET", KEYS[2]) or "0") then return 0 end
if claim == ARGV[7] or redis.call("SET", KEYS[6], ARGV[7], "NX", "EX", ARGV[6]) then return 2 end
return 1
"#;

/// Makes a claim last longer, if it still is ours.
const EXTEND: &str = r#"
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call("EXPIRE", KEYS[1], ARGV[2])
"#;

/// Removes the parts and leaves word that the chord is done, if the claim still is ours.
///
/// KEYS: P.c P.j P.t P.s P.d P.a; ARGV: token, expiry.
const FINISH: &str = r#"
if redis.call("GET", KEYS[1]) ~= ARGV[1] then return 0 end
redis.call("DEL", KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
redis.call("SET", KEYS[1], "done", "EX", ARGV[2])
return 1
"#;

/// Expects one more part, unless that part was added before.
///
/// KEYS: P.a P.t; ARGV: task id, expiry.
const ADD: &str = r#"
if redis.call("SADD", KEYS[1], ARGV[1]) == 1 then redis.call("INCR", KEYS[2]) end
for index = 1, 2 do redis.call("EXPIRE", KEYS[index], ARGV[2]) end
return 1
"#;

/// What a member of a chord's header came to.
#[derive(Clone, Debug)]
pub struct ChordPart {
    /// Id of the header's group.
    pub group_id: String,
    /// Position in the header.
    pub index: Option<i64>,
    /// Id of the member.
    pub task_id: String,
    /// How it ended.
    pub state: State,
    /// Its value, or the exception, as JSON text.
    pub result: Box<RawValue>,
    /// Number of parts where it wasn't announced, as by Celery 5.0.
    pub size: Option<u64>,
}

/// How a chord stands after a part was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChordProgress {
    /// Other parts are still out.
    Waiting,
    /// All parts are in, and another worker has begun to dispatch the body. If it doesn't finish, somebody else must.
    Dispatching,
    /// All parts are in, and the body is the caller's to dispatch.
    Claimed,
    /// The body has been dispatched.
    Done,
}

/// Why there are no results to call a chord's body with.
#[derive(Debug, thiserror::Error)]
pub enum ChordError {
    /// A member of the header failed or was revoked.
    #[error("Dependency {task_id} raised {}", exception.repr())]
    Dependency {
        /// Id of the member.
        task_id: String,
        /// Its exception.
        exception: Box<Exception>,
    },
    /// A result that should be there is not.
    #[error("Dependency {task_id} has no result")]
    Missing {
        /// Id of the member.
        task_id: String,
    },
    /// A result that can't be read.
    #[error("Dependency {task_id} has a result that can't be read: {source}")]
    Unreadable {
        /// Id of the member.
        task_id: String,
        /// Why.
        source: json::JsonError,
    },
}

struct Keys {
    group: String,
}

impl Keys {
    fn of(group_id: &str) -> Self {
        Self { group: group_key(group_id) }
    }

    fn get(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.group)
    }
}

impl RedisResults {
    /// Announces a chord, before its header is published.
    ///
    /// With `is_new`, what an earlier run of the same header may have left is removed; without, the chord goes on where it
    /// stands, as when the message that began it was delivered again.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn begin_chord(&self, chord: &ChordStart, is_new: bool) -> Result<(), StoreError> {
        let keys = Keys::of(&chord.group_id);
        let mut commands = redis::pipe();
        commands.atomic();
        if is_new {
            commands.del(["c", "j", "t", "a", "d"].map(|suffix| keys.get(suffix)).to_vec()).ignore();
        }
        if let Some(header) = &chord.nested_header {
            commands.set_ex(&keys.group, SavedGroup::encode(header), EXPIRES_SECONDS).ignore();
        }
        commands.set_ex(keys.get("s"), chord.size, EXPIRES_SECONDS).ignore();
        let begun: RedisResult<()> = commands.query_async(&mut self.connection()).await;
        begun.map_err(|source| StoreError::Redis { action: "begin a chord", source })
    }

    /// Counts a part. `token` is to be unique for this report; it is the claim if the part was the last.
    ///
    /// Reporting a part again changes nothing.
    ///
    /// # Errors
    /// When Redis can't be reached; the part may then be reported again with the same token.
    pub async fn report_chord_part(
        &self,
        part: &ChordPart,
        token: &str,
    ) -> Result<ChordProgress, StoreError> {
        let keys = Keys::of(&part.group_id);
        let entry = serde_json::to_vec(&(1, &part.task_id, &part.state, &part.result))
            .expect("texts and raw JSON always serialise");
        let score = part.index.map_or_else(|| "+inf".to_owned(), |index| index.to_string());
        let size = part.size.map(|size| size.to_string()).unwrap_or_default();
        let script = Script::new(REPORT);
        let mut report = script.prepare_invoke();
        for suffix in ["j", "t", "s", "d"] {
            report.key(keys.get(suffix));
        }
        report.key(&keys.group).key(keys.get("c"));
        report.arg(&part.task_id).arg(entry).arg(score).arg(EXPIRES_SECONDS).arg(size);
        report.arg(CLAIM_SECONDS).arg(token);
        let progress: i64 = self.chord_script(&report, "count a part of a chord").await?;
        Ok(match progress {
            1 => ChordProgress::Dispatching,
            2 => ChordProgress::Claimed,
            3 => ChordProgress::Done,
            _ => ChordProgress::Waiting,
        })
    }

    /// Lets a chord wait for one more part, before that is published. Adding a part again changes nothing.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn add_to_chord(&self, group_id: &str, task_id: &str) -> Result<(), StoreError> {
        let keys = Keys::of(group_id);
        let script = Script::new(ADD);
        let mut add = script.prepare_invoke();
        add.key(keys.get("a")).key(keys.get("t")).arg(task_id).arg(EXPIRES_SECONDS);
        self.chord_script::<i64>(&add, "add to a chord").await.map(drop)
    }

    /// The results of all parts, in the header's order and structure.
    ///
    /// # Errors
    /// When Redis can't be reached. The inner error is the first part that has no value.
    pub async fn chord_results(&self, group_id: &str) -> Result<Result<Vec<Value>, ChordError>, StoreError> {
        let keys = Keys::of(group_id);
        let saved: Option<Vec<u8>> = self.chord_command(redis::cmd("GET").arg(&keys.group)).await?;
        match saved.and_then(|saved| serde_json::from_slice::<SavedGroup>(&saved).ok()) {
            Some(SavedGroup { result }) => self.nested_results(result.members.unwrap_or_default()).await,
            None => self.flat_results(&keys).await,
        }
    }

    async fn flat_results(&self, keys: &Keys) -> Result<Result<Vec<Value>, ChordError>, StoreError> {
        let parts = keys.get("j");
        let kind: String = self.chord_command(redis::cmd("TYPE").arg(&parts)).await?;
        let command = if kind == "list" { "LRANGE" } else { "ZRANGE" };
        let entries: Vec<Vec<u8>> = self.chord_command(redis::cmd(command).arg(parts).arg(0).arg(-1)).await?;
        let value = |entry: &Vec<u8>| {
            let (_, task_id, state, result): (Value, String, State, Box<RawValue>) =
                serde_json::from_slice(entry).map_err(|source| ChordError::Unreadable {
                    task_id: String::from_utf8_lossy(&entry[..entry.len().min(60)]).into_owned(),
                    source: source.into(),
                })?;
            settled(&TaskMeta::new(task_id, state, result))
        };
        Ok(entries.iter().map(value).collect())
    }

    async fn nested_results(
        &self,
        members: Vec<ResultTuple>,
    ) -> Result<Result<Vec<Value>, ChordError>, StoreError> {
        let mut ids = Vec::new();
        members.iter().for_each(|member| leaves(member, &mut ids));
        let metas = match readable(self.get_many(&ids).await)? {
            Ok(metas) => metas,
            Err(unreadable) => return Ok(Err(unreadable)),
        };
        let metas: HashMap<&str, Option<TaskMeta>> = ids.iter().map(String::as_str).zip(metas).collect();
        Ok(members.iter().map(|member| structured(member, &metas)).collect())
    }

    /// Makes the claim last until the body is published; false if it isn't ours any more.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn extend_chord_claim(&self, group_id: &str, token: &str) -> Result<bool, StoreError> {
        let script = Script::new(EXTEND);
        let mut extend = script.prepare_invoke();
        extend.key(Keys::of(group_id).get("c")).arg(token).arg(DISPATCH_SECONDS);
        self.chord_script(&extend, "claim a chord").await
    }

    /// The body is published: the chord is done, and its parts are removed. False if the claim isn't ours any more.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn finish_chord(&self, group_id: &str, token: &str) -> Result<bool, StoreError> {
        let keys = Keys::of(group_id);
        let script = Script::new(FINISH);
        let mut finish = script.prepare_invoke();
        for suffix in ["c", "j", "t", "s", "d", "a"] {
            finish.key(keys.get(suffix));
        }
        finish.arg(token).arg(DONE_SECONDS);
        self.chord_script(&finish, "finish a chord").await
    }

    /// The chord has failed, and whoever waits for its body knows. A part that comes again will not fail it again.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn fail_chord(&self, group_id: &str) -> Result<(), StoreError> {
        self.chord_command(redis::cmd("DEL").arg(Keys::of(group_id).get("s"))).await
    }

    async fn chord_script<T: FromRedisValue>(
        &self,
        script: &redis::ScriptInvocation<'_>,
        action: &'static str,
    ) -> Result<T, StoreError> {
        let answer = script.invoke_async(&mut self.connection()).await;
        answer.map_err(|source| StoreError::Redis { action, source })
    }

    async fn chord_command<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, StoreError> {
        let answer = command.query_async(&mut self.connection()).await;
        answer.map_err(|source| StoreError::Redis { action: "read a chord", source })
    }
}

/// What was read, or which part's result can't be: reading that again doesn't help.
fn readable<T>(read: Result<T, StoreError>) -> Result<Result<T, ChordError>, StoreError> {
    match read {
        Err(StoreError::Damaged { task_id, source }) => {
            Ok(Err(ChordError::Unreadable { task_id, source: source.into() }))
        }
        read => read.map(Ok),
    }
}

fn leaves(handle: &ResultTuple, ids: &mut Vec<String>) {
    match &handle.members {
        Some(members) => members.iter().for_each(|member| leaves(member, ids)),
        None => ids.push(handle.id.clone()),
    }
}

fn structured(handle: &ResultTuple, metas: &HashMap<&str, Option<TaskMeta>>) -> Result<Value, ChordError> {
    if let Some(members) = &handle.members {
        return members.iter().map(|member| structured(member, metas)).collect();
    }
    match metas.get(handle.id.as_str()) {
        Some(Some(meta)) => settled(&TaskMeta { task_id: handle.id.clone(), ..meta.clone() }),
        _ => Err(ChordError::Missing { task_id: handle.id.clone() }),
    }
}

/// The value of a part that has one.
fn settled(meta: &TaskMeta) -> Result<Value, ChordError> {
    let task_id = meta.task_id.clone();
    match meta.status {
        State::Failure | State::Revoked => {
            let exception =
                meta.exception().unwrap_or_else(|| Exception::builtin("Exception", meta.result.get()));
            Err(ChordError::Dependency { task_id, exception: Box::new(exception) })
        }
        _ => json::parse(meta.result.get().as_bytes())
            .map_err(|source| ChordError::Unreadable { task_id, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::redis::decode;
    use super::*;

    #[test]
    fn a_part_that_cannot_be_read_fails_the_chord_and_not_the_store() {
        let pickled = decode("id1", b"\x80\x04N.").map(|_| ());
        let error = readable(pickled).unwrap().unwrap_err();
        assert!(error.to_string().starts_with("Dependency id1 has a result that can't be read: "), "{error}");
        assert!(matches!(readable(Ok(1)), Ok(Ok(1))));
    }
}
