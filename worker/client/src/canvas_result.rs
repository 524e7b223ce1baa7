//! Results of canvases: groups, and what a canvas's result may be.

use crate::async_result::{AsyncResult, ResultError, revoked_ancestor};
use crate::celery::Celery;
use celery_protocol::TaskMeta;
use celery_protocol::result::ResultTuple;
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::time::Duration;

/// What comes of a canvas: one result, or those of a group.
#[derive(Debug)]
pub enum CanvasResult {
    /// Of a task, of the last step of a chain, of a chord's body.
    Task(AsyncResult),
    /// Of the members of a group.
    Group(GroupResult),
}

impl CanvasResult {
    /// The results behind a handle. Those of a canvas that is about to be sent have to be made before.
    pub(crate) fn new(celery: &Celery, handle: ResultTuple) -> Self {
        Self::of(celery, handle, &HashSet::new())
    }

    /// The same, where tasks of the `ignored` ids leave no result.
    pub(crate) fn of(celery: &Celery, handle: ResultTuple, ignored: &HashSet<String>) -> Self {
        let parent = handle.parent.map(|parent| Box::new(Self::of(celery, *parent, ignored)));
        match handle.members {
            None if ignored.contains(&handle.id) => {
                Self::Task(AsyncResult::ignored(celery, handle.id, parent))
            }
            None => Self::Task(AsyncResult::new(celery, handle.id, parent)),
            Some(members) => {
                let members = members.into_iter().map(|member| Self::of(celery, member, ignored)).collect();
                Self::Group(GroupResult { celery: celery.clone(), id: handle.id, members, parent })
            }
        }
    }

    /// Id of the task, or of the group.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Task(result) => result.id(),
            Self::Group(group) => group.id(),
        }
    }

    /// What came before it in its chain.
    #[must_use]
    pub fn parent(&self) -> Option<&CanvasResult> {
        match self {
            Self::Task(result) => result.parent(),
            Self::Group(group) => group.parent(),
        }
    }

    /// The results of single tasks in it: itself, or a group's members, and theirs if they are groups too.
    #[must_use]
    pub fn tasks(&self) -> Vec<&AsyncResult> {
        match self {
            Self::Task(result) => vec![result],
            Self::Group(group) => group.tasks(),
        }
    }

    /// Waits until all of it has ended, and returns the value; of a group, the list of its members' values, where those
    /// that leave no result are null.
    ///
    /// # Errors
    /// As of [`AsyncResult::get`]; of a group, the first failure there is.
    pub async fn get<T: DeserializeOwned>(&self, timeout: Duration) -> Result<T, ResultError> {
        self.read(&self.raw(timeout).await?)
    }

    /// The handle that other Celery programs know this result by.
    #[must_use]
    pub fn handle(&self) -> ResultTuple {
        let parent = self.parent().map(|parent| Box::new(parent.handle()));
        let members = match self {
            Self::Task(_) => None,
            Self::Group(group) => Some(group.members.iter().map(Self::handle).collect()),
        };
        ResultTuple { id: self.id().to_owned(), parent, members }
    }

    fn read<T: DeserializeOwned>(&self, value: &RawValue) -> Result<T, ResultError> {
        serde_json::from_str(value.get())
            .map_err(|source| ResultError::Type { task_id: self.id().to_owned(), source })
    }

    fn raw(&self, timeout: Duration) -> BoxFuture<'_, Result<Box<RawValue>, ResultError>> {
        async move {
            match self {
                Self::Task(result) => result.get(timeout).await,
                Self::Group(group) => {
                    let values = group.raw_members(timeout).await?;
                    Ok(serde_json::value::to_raw_value(&values).expect("raw JSON always serialises"))
                }
            }
        }
        .boxed()
    }
}

/// The results of a group's members.
#[derive(Debug)]
pub struct GroupResult {
    celery: Celery,
    id: String,
    members: Vec<CanvasResult>,
    parent: Option<Box<CanvasResult>>,
}

impl GroupResult {
    /// Id of the group.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What came before it in its chain.
    #[must_use]
    pub fn parent(&self) -> Option<&CanvasResult> {
        self.parent.as_deref()
    }

    /// Its members' results, in the group's order.
    #[must_use]
    pub fn members(&self) -> &[CanvasResult] {
        &self.members
    }

    /// The results of single tasks in it: its members', and theirs if they are groups too.
    #[must_use]
    pub fn tasks(&self) -> Vec<&AsyncResult> {
        self.members.iter().flat_map(CanvasResult::tasks).collect()
    }

    /// Waits until all members have ended, and returns their values in the group's order. Those that leave no result are
    /// null, and aren't waited for.
    ///
    /// # Errors
    /// As of [`AsyncResult::get`], with the first failure there is.
    pub async fn get<T: DeserializeOwned>(&self, timeout: Duration) -> Result<Vec<T>, ResultError> {
        let values = self.raw_members(timeout).await?;
        self.members.iter().zip(&values).map(|(member, value)| member.read(value)).collect()
    }

    async fn raw_members(&self, timeout: Duration) -> Result<Vec<Box<RawValue>>, ResultError> {
        let raw = async |member: &CanvasResult| match member {
            CanvasResult::Task(task) if task.is_ignored() => Ok(RawValue::NULL.to_owned()),
            member => member.raw(timeout).await,
        };
        tokio::select! {
            biased;
            values = try_join_all(self.members.iter().map(raw)) => values,
            error = revoked_ancestor(self.parent()) => Err(error),
        }
    }

    /// Its tasks that leave a result.
    fn known(&self) -> impl Iterator<Item = &AsyncResult> {
        self.tasks().into_iter().filter(|task| !task.is_ignored())
    }

    /// Waits until all tasks in it have ended, however that was, and returns what is known of each. Those that leave no
    /// result are left out.
    ///
    /// # Errors
    /// When one hasn't ended in time, or there is no way to know.
    pub async fn wait(&self, timeout: Duration) -> Result<Vec<TaskMeta>, ResultError> {
        try_join_all(self.known().map(|task| task.wait(timeout))).await
    }

    /// What is known now of each task in it; none where that is nothing, as of all that leave no result.
    ///
    /// # Errors
    /// When there is no way to know.
    pub async fn metas(&self) -> Result<Vec<Option<TaskMeta>>, ResultError> {
        let tasks = self.tasks();
        match self.celery.store() {
            Ok(store) => {
                let ids: Vec<&str> = tasks.iter().map(|task| task.id()).collect();
                let metas = store.get_many(&ids).await?.into_iter().zip(&tasks);
                // Who revokes a task may store that, even so.
                Ok(metas.map(|(meta, task)| meta.filter(|_| !task.is_ignored())).collect())
            }
            Err(_) => {
                let meta = async |task: &&AsyncResult| match task.is_ignored() {
                    true => Ok(None),
                    false => task.meta().await,
                };
                try_join_all(tasks.iter().map(meta)).await
            }
        }
    }

    /// How many of its tasks have ended.
    ///
    /// # Errors
    /// When there is no way to know.
    pub async fn completed(&self) -> Result<usize, ResultError> {
        let metas = self.metas().await?;
        Ok(metas.into_iter().flatten().filter(|meta| meta.status.is_final()).count())
    }

    /// Whether all of its tasks have ended, as far as they leave results.
    ///
    /// # Errors
    /// When there is no way to know.
    pub async fn ready(&self) -> Result<bool, ResultError> {
        Ok(self.completed().await? == self.known().count())
    }

    /// Keeps the list of members in the result store for a day, so that [`Celery::saved_group`], or Celery's
    /// `GroupResult.restore`, finds it by the group's id.
    ///
    /// # Errors
    /// When the results aren't in Redis, or it can't be reached.
    pub async fn save(&self) -> Result<(), ResultError> {
        let members = self.members.iter().map(CanvasResult::handle).collect();
        let parent = self.parent().map(|parent| Box::new(parent.handle()));
        let handle = ResultTuple { id: self.id.clone(), parent, members: Some(members) };
        Ok(self.celery.store()?.save_group(&handle).await?)
    }

    /// Deletes the results of all its tasks, and the saved list of them.
    ///
    /// # Errors
    /// When the store can't be reached.
    pub async fn forget(self) -> Result<(), ResultError> {
        if let Ok(store) = self.celery.store() {
            store.forget_group(&self.id).await?;
            try_join_all(self.tasks().iter().map(|task| store.forget(task.id()))).await?;
        }
        Ok(())
    }

    /// Tells all workers not to run what hasn't begun of it, nor to answer.
    ///
    /// # Errors
    /// When the broker can't be reached.
    pub async fn revoke(&self) -> Result<(), crate::ControlError> {
        let ids: Vec<&str> = self.tasks().iter().map(|task| task.id()).collect();
        self.celery.control().revoke_silently(&ids).await
    }
}
