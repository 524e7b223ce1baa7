//! What tasks share: connections, clients, settings.

use std::{
    any::{Any, TypeId, type_name},
    collections::HashMap,
    ops::Deref,
    sync::Arc,
};

use super::{Binder, Parameter, TaskError};

/// Something that tasks share, as given to [`WorkerBuilder::state`](crate::WorkerBuilder::state). It takes no argument of the
/// call.
///
/// ```
/// use soloist_worker::{State, Task, Worker};
///
/// struct Prices { per_piece: u64 }
///
/// fn price(prices: State<Prices>, pieces: u64) -> u64 {
///     prices.per_piece * pieces
/// }
/// let worker = Worker::builder("amqp://localhost".parse()?)
///     .state(Prices { per_piece: 250 })
///     .register(Task::new("shop.price", price).parameters(["pieces"]));
/// # Ok::<(), soloist_worker::AddressError>(())
/// ```
#[derive(Debug)]
pub struct State<T>(Arc<T>);

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + Sync + 'static> Parameter for State<T> {
    fn bind(binder: &mut Binder<'_>) -> Result<Self, TaskError> {
        let state = binder.context().states().get::<T>();
        state.map(Self).ok_or_else(|| {
            let kind = type_name::<T>();
            TaskError::new("RuntimeError", format!("this worker was given no state of type `{kind}`"))
        })
    }
}

/// All that tasks share, by type.
#[derive(Clone, Debug, Default)]
pub(crate) struct States(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl States {
    pub(crate) fn insert<T: Send + Sync + 'static>(&mut self, state: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(state));
    }

    fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        Arc::clone(self.0.get(&TypeId::of::<T>())?).downcast().ok()
    }
}
