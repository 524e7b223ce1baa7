//! The tasks a worker knows, by name.

use std::{collections::HashMap, sync::Arc};

use super::Task;

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

    /// Names in alphabetical order.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.tasks.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn has_async_task(&self) -> bool {
        self.tasks.values().any(|task| matches!(task.function, super::TaskFunction::Async(_)))
    }
}
