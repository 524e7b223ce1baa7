//! Brokers: one connection each, whatever the number of TaskQueues on it.
//!
//! ```text
//!                    Hub ── one per distinct address and credentials ──┐
//!   subscribe, view   │                                                ▼
//!   ◄─────────────────┤    Shared state  ◄── connection: connect, lose, connect again
//!                     │                         ├─ poller: reads every queue, every second
//!   trigger reconcile ◄── what changed ◄────────┼─ declarations: queues, exchanges, bindings
//!                                               ├─ policies, over the management API
//!                                               ├─ heartbeats of workers
//!                                               └─ orders to workers, over a connection of their own
//! ```
//!
//! A reconciliation never waits for a broker: it states what it needs ([`Hub::subscribe`]) and reads what is known ([`Hub::view`]). So a
//! broker that hangs delays nobody but itself.

mod connection;
mod declarations;
mod errands;
mod heartbeats;
mod management;
mod orders;
mod policies;
mod poller;
mod reading;
mod removals;
mod reports;
mod state;
mod twins;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use celery_client::BrokerAddress;
use kube::runtime::reflector::ObjectRef;
use tokio::task::JoinHandle;

use crate::api::v1alpha1::TaskQueue;
use crate::metrics::{Metrics, Quantity};
use crate::plan::topology::Topology;
pub use errands::{Order, OrderKind};
pub use removals::{Removal, Removed};
pub use state::View;
use state::{Shared, Turn};
use twins::Twins;

/// Asks for a reconciliation of a TaskQueue that has something new to decide on.
pub type Trigger = Arc<dyn Fn(ObjectRef<TaskQueue>) + Send + Sync>;

/// After this long without a new reading, a queue's length is stale: a few polls may fail before scaling rests.
pub const STALE_AFTER: Duration = Duration::from_secs(5);

/// After this long without a heartbeat, nothing is known of a worker. They come every two seconds.
pub const SILENT_AFTER: Duration = Duration::from_secs(10);

/// All brokers that TaskQueues use.
pub struct Hub {
    brokers: Mutex<Brokers>,
    trigger: Trigger,
    metrics: Arc<Metrics>,
    /// The name of the connections, shown by RabbitMQ.
    name: String,
    twins: Twins,
}

#[derive(Default)]
struct Brokers {
    all: Vec<Arc<Broker>>,
    /// The one that each TaskQueue is subscribed to.
    of: HashMap<ObjectRef<TaskQueue>, Arc<Broker>>,
}

struct Broker {
    address: BrokerAddress,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Hub {
    /// A hub without brokers. `name` is what RabbitMQ shows as the name of its connections.
    pub fn new(name: String, trigger: Trigger, metrics: Arc<Metrics>) -> Self {
        Self { brokers: Mutex::default(), trigger, metrics, name, twins: Twins::default() }
    }

    fn brokers(&self) -> MutexGuard<'_, Brokers> {
        self.brokers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// States what a TaskQueue needs: the broker at `address`, with everything in `topology` declared there, and heartbeats of the workers
    /// `nodes`. Stating the same again does nothing.
    ///
    /// The first TaskQueue on a broker opens the connection; a TaskQueue whose address has changed moves over.
    pub fn subscribe(
        &self,
        task_queue: &ObjectRef<TaskQueue>,
        address: &BrokerAddress,
        topology: &Arc<Topology>,
        nodes: Vec<String>,
    ) {
        let mut brokers = self.brokers();
        let known = brokers.of.get(task_queue).filter(|broker| broker.address == *address).map(Arc::clone);
        let broker = known.unwrap_or_else(|| {
            brokers.unsubscribe(task_queue);
            let open = brokers.all.iter().find(|broker| broker.address == *address).map(Arc::clone);
            let broker = open.unwrap_or_else(|| {
                let place = address.management_url();
                let same = brokers.all.iter().find(|other| other.address.management_url() == place);
                let turn = same.map(|other| Arc::clone(&other.shared.policy_turn)).unwrap_or_default();
                let opened = Arc::new(self.open(address, turn));
                brokers.all.push(Arc::clone(&opened));
                opened
            });
            brokers.of.insert(task_queue.clone(), Arc::clone(&broker));
            broker
        });
        broker.shared.subscribe(task_queue, topology, nodes);
    }

    /// States that a TaskQueue needs no broker any more: it is gone, or its address isn't known.
    pub fn unsubscribe(&self, task_queue: &ObjectRef<TaskQueue>) {
        self.brokers().unsubscribe(task_queue);
    }

    /// What is known about the broker that a TaskQueue is subscribed to.
    fn shared(&self, task_queue: &ObjectRef<TaskQueue>) -> Option<Arc<Shared>> {
        self.brokers().of.get(task_queue).map(|broker| Arc::clone(&broker.shared))
    }

    /// Lets queues of a TaskQueue go for good; [`View::removed`] says when that is done. It has to be subscribed, with nothing that would
    /// be declared again.
    pub fn remove(&self, task_queue: &ObjectRef<TaskQueue>, removal: &Removal) {
        if let Some(shared) = self.shared(task_queue) {
            shared.remove(task_queue, removal.clone());
        }
    }

    /// States what workers of a TaskQueue are told, by node, in place of what was stated before; each is told until it has obeyed. Returns
    /// those that have. They are to be told over the broker that the TaskQueue is subscribed to.
    pub fn order(
        &self,
        task_queue: &ObjectRef<TaskQueue>,
        orders: BTreeMap<String, Order>,
        now: Instant,
    ) -> HashSet<String> {
        let shared = self.shared(task_queue);
        shared.map(|shared| shared.errands.order(task_queue, orders, now)).unwrap_or_default()
    }

    /// Whether two addresses lead to the same virtual host of the same broker, as far as is known. If it isn't, the brokers are asked, and the
    /// TaskQueue is reconciled when they have answered.
    pub fn is_same_broker(
        &self,
        one: &BrokerAddress,
        other: &BrokerAddress,
        task_queue: &ObjectRef<TaskQueue>,
    ) -> Option<bool> {
        let (trigger, task_queue) = (Arc::clone(&self.trigger), task_queue.clone());
        self.twins.same(one, other, &self.name, move || trigger(task_queue))
    }

    /// Asks for a reconciliation of a TaskQueue.
    pub fn trigger(&self, task_queue: &ObjectRef<TaskQueue>) {
        (self.trigger)(task_queue.clone());
    }

    /// What is known now about the broker and the queues of a TaskQueue; nothing if it hasn't subscribed.
    pub fn view(&self, task_queue: &ObjectRef<TaskQueue>, now: Instant) -> Option<View> {
        self.shared(task_queue)?.view(task_queue, now)
    }

    /// Sets the gauges that grow with time, which is to be done before each scrape.
    pub fn refresh_metrics(&self) {
        let now = Instant::now();
        let all: Vec<_> = self.brokers().all.iter().map(|broker| Arc::clone(&broker.shared)).collect();
        for shared in all {
            for gauge in shared.gauges(now) {
                #[expect(clippy::cast_precision_loss, reason = "a float is what Prometheus has")]
                let dead = gauge.dead.map(|dead| dead as f64);
                let age = gauge.age.map(|age| age.as_secs_f64());
                let quantities = [(Quantity::ObservationAge, age), (Quantity::MessagesDead, dead)];
                self.metrics.set(&gauge.task_queue.namespace, &gauge.task_queue.name, &quantities);
            }
        }
    }

    fn open(&self, address: &BrokerAddress, policy_turn: Arc<Turn>) -> Broker {
        let shared = Arc::new(Shared::new(self.trigger.clone(), policy_turn));
        let running = connection::run(
            address.clone(),
            self.name.clone(),
            Arc::clone(&shared),
            Arc::clone(&self.metrics),
        );
        Broker { address: address.clone(), shared, task: tokio::spawn(running) }
    }
}

impl Brokers {
    /// Ends the subscription of a TaskQueue, and the connection if nobody else needs it.
    fn unsubscribe(&mut self, task_queue: &ObjectRef<TaskQueue>) {
        let Some(broker) = self.of.remove(task_queue) else { return };
        broker.shared.unsubscribe(task_queue);
        if !broker.shared.is_used() {
            tracing::info!(broker = %broker.address, "no TaskQueue uses this broker any more");
            // Dropping the connection closes it.
            broker.task.abort();
            self.all.retain(|other| !Arc::ptr_eq(other, &broker));
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        for broker in &self.brokers().all {
            broker.task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
