//! Saved groups in Redis: which results belong together.

use super::{RedisResults, StoreError};
use celery_protocol::result::{EXPIRES_SECONDS, ResultTuple, group_key};
use serde::{Deserialize, Serialize};

/// What is stored under a group's key, and under that of a chord whose header has groups within.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedGroup {
    pub(super) result: ResultTuple,
}

impl SavedGroup {
    pub(super) fn encode(handle: &ResultTuple) -> Vec<u8> {
        serde_json::to_vec(&Self { result: handle.clone() })
            .expect("handles of results have string keys only")
    }
}

impl RedisResults {
    /// Keeps a group's handle for a day.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn save_group(&self, handle: &ResultTuple) -> Result<(), StoreError> {
        let mut command = redis::cmd("SETEX");
        command.arg(group_key(&handle.id)).arg(EXPIRES_SECONDS).arg(SavedGroup::encode(handle));
        self.ask("save a group", &command).await
    }

    /// A saved group's handle, if there is one.
    ///
    /// # Errors
    /// When Redis can't be reached, or holds something else under the group's key.
    pub async fn saved_group(&self, group_id: &str) -> Result<Option<ResultTuple>, StoreError> {
        let text: Option<Vec<u8>> =
            self.ask("read a group", redis::cmd("GET").arg(group_key(group_id))).await?;
        let read = |text: Vec<u8>| serde_json::from_slice::<SavedGroup>(&text).map(|saved| saved.result);
        let damaged = |source| StoreError::Damaged { task_id: group_id.to_owned(), source };
        text.map(read).transpose().map_err(damaged)
    }

    /// Deletes a saved group's handle.
    ///
    /// # Errors
    /// When Redis can't be reached.
    pub async fn forget_group(&self, group_id: &str) -> Result<(), StoreError> {
        self.ask("delete a group", redis::cmd("DEL").arg(group_key(group_id))).await
    }
}
