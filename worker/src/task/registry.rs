//! The tasks a worker knows, by name.

use std::{collections::HashMap, sync::Arc};

use celery_protocol::Request;

use super::{Task, builtin};

/// All registered tasks.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    tasks: HashMap<String, Arc<Task>>,
}

impl Registry {
    /// Adds `task`; a later task of the same name replaces the earlier, as in Celery.
    pub(crate) fn insert(&mut self, task: Task) {
        self.tasks.insert(task.name().to_owned(), Arc::new(task));
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Task>> {
        self.tasks.get(name)
    }

    /// The task that serves a call: a registered one, or one of Celery's own.
    pub(crate) fn resolve(&self, request: &Request) -> Option<Arc<Task>> {
        self.get(&request.task).cloned().or_else(|| builtin::task(request, self).map(Arc::new))
    }

    /// Whether calls of a task of this name are served.
    pub(crate) fn resolves(&self, name: &str) -> bool {
        self.tasks.contains_key(name) || builtin::NAMES.contains(&name)
    }

    /// Names in alphabetical order.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.tasks.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Names of all tasks that are served, in alphabetical order: the registered ones and Celery's own, which aren't shown.
    pub(crate) fn served(&self) -> Vec<String> {
        let mut names = self.names();
        names.extend(builtin::NAMES.iter().map(|name| (*name).to_owned()));
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(crate) fn has_async_task(&self) -> bool {
        self.tasks.values().any(|task| matches!(task.function, super::TaskFunction::Async(_)))
    }
}
