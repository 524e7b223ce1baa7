//! What is known about one broker, shared between its connection and the reconciliations.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use super::errands::Errands;
use super::reading::{Answer, Reading};
use super::removals::{Removal, Removed};
use super::reports::{Counts, Reports};
use super::{STALE_AFTER, Trigger};
use crate::api::v1alpha1::TaskQueue;
use crate::plan::autoscaler::Backlog;
use crate::plan::drain::Activity;
use crate::plan::status::{BrokerState, Policies, Problem, QueueState};
use crate::plan::topology::{Queue, Topology};

/// What is known about the broker and the queues of one TaskQueue.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The connection.
    pub broker: BrokerState,
    /// The declaration of the queues.
    pub queues: QueueState,
    /// Messages ready.
    pub backlog: Backlog,
    /// Tasks that each of the subscribed workers runs; absent for those that haven't said so lately.
    pub active: HashMap<String, u32>,
    /// For how long the task has been running that runs the longest.
    pub longest_running: Duration,
    /// What each of the subscribed workers does, and since when; absent for those that haven't said so lately.
    pub activity: HashMap<String, Activity>,
    /// Tasks that workers have finished since the subscription began.
    pub finished: u64,
    /// Consumers on the queue that has the fewest, and workers that need none as they have a task; absent if they are not known of every queue.
    pub attached: Option<u32>,
    /// When the backlog last changed.
    pub backlog_changed_at: Option<Instant>,
    /// What became of the queues that were to go; absent while that isn't done.
    pub removed: Option<Removed>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    trigger: Trigger,
    /// Something is to be declared.
    pub(super) declarations: Notify,
    /// Policies are to be brought in line.
    pub(super) policies: Notify,
    /// What workers are told.
    pub(super) errands: Errands,
    /// Whose turn it is to write a policy, among all virtual hosts of the broker: each holds up the declarations of all of them.
    pub(super) policy_turn: Arc<Turn>,
}

/// Held by whoever has the turn.
pub(super) type Turn = tokio::sync::Mutex<()>;

struct State {
    broker: BrokerState,
    subscriptions: HashMap<ObjectRef<TaskQueue>, Subscription>,
    readings: HashMap<String, Reading>,
    /// Queues that were not there when they were to be read. They are left out until they have been declared anew.
    absent: HashSet<String>,
    reports: Reports,
}

struct Subscription {
    topology: Arc<Topology>,
    nodes: Vec<String>,
    /// Tasks finished, as at the last reading.
    finished: u64,
    declared: Declared,
    policies: Policies,
    removal: Option<(Removal, Removing)>,
    /// What the TaskQueue was told last.
    told: Option<Told>,
    backlog_changed_at: Option<Instant>,
}

/// How far a removal is.
#[derive(Clone, Debug, PartialEq)]
enum Removing {
    Due,
    /// The queues are gone, as far as they go; their policies are not.
    PoliciesDue(Removed),
    Done(Removed),
}

/// How far the declaration of a topology is.
#[derive(Clone, Debug, PartialEq)]
enum Declared {
    /// To be declared now.
    Due,
    /// Declared, and to be looked at again at this time.
    Done(Instant),
    /// Failed, and to be tried again at this time.
    Failed(Problem, Instant),
}

/// What a reconciliation depends on. It is wanted when this changes.
#[derive(Clone, PartialEq)]
struct Told {
    broker: BrokerState,
    queues: QueueState,
    backlog: Backlog,
    reporting_workers: usize,
    running: u32,
    removed: bool,
}

/// Which queues to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Dead letter queues too.
    All,
    /// Those that workers consume.
    Consumed,
    /// Those that are growing.
    Growing,
}

/// A topology that is to be declared.
pub(super) struct Due {
    pub(super) task_queue: ObjectRef<TaskQueue>,
    pub(super) topology: Arc<Topology>,
}

/// How declaring a topology went.
pub(super) enum Declaration {
    Done,
    Failed(Problem),
}

impl Shared {
    pub(super) fn new(trigger: Trigger, policy_turn: Arc<Turn>) -> Self {
        let state = State {
            broker: BrokerState::Connecting,
            subscriptions: HashMap::new(),
            readings: HashMap::new(),
            absent: HashSet::new(),
            reports: Reports::default(),
        };
        Self {
            state: Mutex::new(state),
            trigger,
            declarations: Notify::new(),
            policies: Notify::new(),
            errands: Errands::default(),
            policy_turn,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(
        &self,
        task_queue: &ObjectRef<TaskQueue>,
        topology: &Arc<Topology>,
        nodes: Vec<String>,
    ) {
        let mut state = self.state();
        let is_known = match state.subscriptions.get_mut(task_queue) {
            Some(subscription) if subscription.topology == *topology => {
                subscription.nodes = nodes;
                return;
            }
            known => known.is_some(),
        };
        let subscription = Subscription {
            topology: Arc::clone(topology),
            nodes,
            finished: 0,
            declared: Declared::Due,
            policies: Policies::Pending,
            removal: None,
            told: None,
            backlog_changed_at: None,
        };
        state.subscriptions.insert(task_queue.clone(), subscription);
        if is_known {
            state.forget_unused_readings();
        }
        self.declarations.notify_one();
    }

    pub(super) fn unsubscribe(&self, task_queue: &ObjectRef<TaskQueue>) {
        let mut state = self.state();
        if state.subscriptions.remove(task_queue).is_some() {
            state.forget_unused_readings();
            self.errands.order(task_queue, BTreeMap::new(), Instant::now());
        }
    }

    pub(super) fn is_used(&self) -> bool {
        !self.state().subscriptions.is_empty()
    }

    pub(super) fn view(&self, task_queue: &ObjectRef<TaskQueue>, now: Instant) -> Option<View> {
        let state = self.state();
        let subscription = state.subscriptions.get(task_queue)?;
        Some(View {
            broker: state.broker.clone(),
            queues: state.queue_state(subscription),
            backlog: state.backlog(subscription, now),
            active: state.active(subscription, now).map(|(node, active)| (node.to_owned(), active)).collect(),
            longest_running: state.longest_running(subscription, now),
            activity: state.activity(subscription, now),
            finished: subscription.finished,
            attached: state.attached(subscription, now),
            backlog_changed_at: subscription.backlog_changed_at,
            removed: subscription.removed().cloned(),
        })
    }

    /// Lets queues go for good, if the TaskQueue is subscribed. Asking for the same again does nothing.
    pub(super) fn remove(&self, task_queue: &ObjectRef<TaskQueue>, removal: Removal) {
        if let Some(subscription) = self.state().subscriptions.get_mut(task_queue)
            && subscription.removal.as_ref().is_none_or(|(underway, _)| *underway != removal)
        {
            subscription.removal = Some((removal, Removing::Due));
            self.declarations.notify_one();
        }
    }

    /// Queues that are to go now.
    pub(super) fn due_removal(&self) -> Option<(ObjectRef<TaskQueue>, Removal)> {
        self.state().subscriptions.iter().find_map(|(task_queue, subscription)| match &subscription.removal {
            Some((removal, Removing::Due)) => Some((task_queue.clone(), removal.clone())),
            _ => None,
        })
    }

    /// Notes that queues are gone, as far as they go. Their policies are next.
    pub(super) fn removed(&self, task_queue: &ObjectRef<TaskQueue>, removal: &Removal, removed: Removed) {
        self.set_removing(task_queue, removal, Removing::PoliciesDue(removed));
        self.policies.notify_one();
    }

    /// The removals whose policies are to go now.
    pub(super) fn due_policy_removals(&self) -> Vec<(ObjectRef<TaskQueue>, Removal, Removed)> {
        let state = self.state();
        let due = |(task_queue, subscription): (&ObjectRef<TaskQueue>, &Subscription)| match subscription
            .removal
            .as_ref()?
        {
            (removal, Removing::PoliciesDue(removed)) => {
                Some((task_queue.clone(), removal.clone(), removed.clone()))
            }
            _ => None,
        };
        state.subscriptions.iter().filter_map(due).collect()
    }

    /// Notes what has become of a removal in the end.
    pub(super) fn policies_removed(
        &self,
        task_queue: &ObjectRef<TaskQueue>,
        removal: &Removal,
        removed: Removed,
        now: Instant,
    ) {
        self.set_removing(task_queue, removal, Removing::Done(removed));
        self.tell(&mut self.state(), now);
    }

    fn set_removing(&self, task_queue: &ObjectRef<TaskQueue>, removal: &Removal, removing: Removing) {
        if let Some(subscription) = self.state().subscriptions.get_mut(task_queue)
            && let Some((underway, state)) = &mut subscription.removal
            && underway == removal
        {
            *state = removing;
        }
    }

    /// What there is to tell of each TaskQueue at a scrape.
    pub(super) fn gauges(&self, now: Instant) -> Vec<Gauges> {
        let state = self.state();
        let age = |topology: &Topology| {
            let ages = topology.consumed().map(|queue| state.readings.get(queue)?.age(now));
            ages.collect::<Option<Vec<_>>>()?.into_iter().max()
        };
        let dead = |topology: &Topology| {
            let dead = topology.queues.iter().filter_map(|queue| queue.dead_letters.as_deref());
            let lengths: Option<Vec<u64>> = dead
                .map(|queue| state.readings.get(queue).filter(|reading| reading.age(now).is_some())?.ready())
                .collect();
            lengths.filter(|lengths| !lengths.is_empty()).map(|lengths| lengths.into_iter().sum())
        };
        let gauges = |(task_queue, subscription): (&ObjectRef<TaskQueue>, &Subscription)| Gauges {
            task_queue: OwnedName::from(task_queue),
            age: age(&subscription.topology),
            dead: dead(&subscription.topology),
        };
        state.subscriptions.iter().map(gauges).collect()
    }

    /// The connection stands: everything is looked at anew.
    pub(super) fn connected(&self, now: Instant) {
        let mut state = self.state();
        state.broker = BrokerState::Connected;
        for subscription in state.subscriptions.values_mut() {
            subscription.declared = Declared::Due;
        }
        self.tell(&mut state, now);
    }

    /// There is no connection.
    pub(super) fn disconnected(&self, problem: Problem, now: Instant) {
        let mut state = self.state();
        state.broker = BrokerState::Failed(problem);
        for reading in state.readings.values_mut() {
            reading.disconnect();
        }
        self.errands.ask_anew(now);
        self.tell(&mut state, now);
    }

    /// Names of these queues, in order. Queues that aren't declared yet aren't there to be read.
    pub(super) fn queues_to_read(&self, which: Which) -> Vec<String> {
        let state = self.state();
        let mut queues: Vec<String> = state
            .subscriptions
            .values()
            .filter(|subscription| subscription.declared != Declared::Due)
            .flat_map(|subscription| &subscription.topology.queues)
            .flat_map(|queue| {
                let dead = queue.dead_letters.as_deref().filter(|_| which != Which::Consumed);
                std::iter::once(queue.name.as_str()).chain(dead)
            })
            .filter(|queue| !state.absent.contains(*queue))
            .filter(|queue| {
                which != Which::Growing || state.readings.get(*queue).is_some_and(Reading::is_growing)
            })
            .map(str::to_owned)
            .collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }

    /// Takes in what was read and tells the TaskQueues for which something has changed. Returns whether some queue is growing.
    pub(super) fn read(&self, answers: Vec<Answer>, now: Instant) -> bool {
        let mut state = self.state();
        for Answer { queue, ready, consumers, took, at } in answers {
            let reading = state.readings.entry(queue).or_default();
            reading.update(ready, took, at);
            reading.attached(consumers);
        }
        state.settle_reports(now);
        self.tell(&mut state, now);
        state.readings.values().any(Reading::is_growing)
    }

    /// A queue that should be there isn't: it is to be declared anew.
    pub(super) fn missing(&self, queue: &str) {
        let mut state = self.state();
        state.readings.remove(queue);
        state.absent.insert(queue.to_owned());
        for subscription in state.subscriptions.values_mut() {
            if matches!(subscription.declared, Declared::Done(_))
                && subscription.topology.all_names().any(|name| name == queue)
            {
                subscription.declared = Declared::Due;
            }
        }
        self.declarations.notify_one();
    }

    /// Takes in a heartbeat of a worker.
    pub(super) fn heartbeat(&self, node: &str, counts: Counts, now: Instant) {
        self.state().reports.take_in(node, counts, now);
        self.errands.nudge(node, counts.active, now);
    }

    /// Asks for a reconciliation of a TaskQueue.
    pub(super) fn trigger(&self, task_queue: ObjectRef<TaskQueue>) {
        (self.trigger)(task_queue);
    }

    /// A worker says that it stops.
    pub(super) fn offline(&self, node: &str, counts: Option<Counts>, now: Instant) {
        self.state().reports.offline(node, counts, now);
    }

    /// Topologies that are to be declared now, `limit` of them at most.
    pub(super) fn due_declarations(&self, now: Instant, limit: usize) -> Vec<Due> {
        let state = self.state();
        let is_due = |declared: &Declared| match declared {
            Declared::Due => true,
            Declared::Done(again) | Declared::Failed(_, again) => *again <= now,
        };
        let due = state.subscriptions.iter().filter(|(_, subscription)| is_due(&subscription.declared));
        due.take(limit)
            .map(|(task_queue, subscription)| Due {
                task_queue: task_queue.clone(),
                topology: Arc::clone(&subscription.topology),
            })
            .collect()
    }

    /// Notes how declarations went, each with the time at which it is due again, unless something else is wanted by now.
    pub(super) fn declared(&self, declarations: Vec<(Due, Declaration, Instant)>, now: Instant) {
        let mut state = self.state();
        for (due, declaration, again) in declarations {
            for queue in due.topology.all_names() {
                state.absent.remove(queue);
            }
            if let Some(subscription) = state.subscriptions.get_mut(&due.task_queue)
                && subscription.topology == due.topology
            {
                if subscription.policies == Policies::Pending {
                    self.policies.notify_one();
                }
                subscription.declared = match declaration {
                    Declaration::Done => Declared::Done(again),
                    Declaration::Failed(problem) => Declared::Failed(problem, again),
                };
            }
        }
        self.tell(&mut state, now);
    }

    /// Whether some TaskQueue's queues are yet to be declared.
    pub(super) fn is_declaring(&self) -> bool {
        self.state().subscriptions.values().any(|subscription| subscription.declared == Declared::Due)
    }

    /// All queues that there are policies for, or that are to have none.
    pub(super) fn policy_queues(&self) -> Vec<Queue> {
        let state = self.state();
        let declared =
            state.subscriptions.values().filter(|subscription| subscription.declared != Declared::Due);
        declared.flat_map(|subscription| subscription.topology.queues.iter().cloned()).collect()
    }

    /// Notes for each queue what keeps its policy from being in force, if anything does.
    pub(super) fn policies(&self, problems: &HashMap<String, String>, examined: &[Queue], now: Instant) {
        let mut state = self.state();
        let examined: HashMap<&str, &Queue> =
            examined.iter().map(|queue| (queue.name.as_str(), queue)).collect();
        for subscription in state.subscriptions.values_mut() {
            let queues = &subscription.topology.queues;
            if queues.iter().all(|queue| examined.get(queue.name.as_str()) == Some(&queue)) {
                let problem = queues.iter().find_map(|queue| problems.get(&queue.name));
                subscription.policies = match problem {
                    Some(problem) => Policies::NotApplied(problem.clone()),
                    None => Policies::Applied,
                };
            }
        }
        self.tell(&mut state, now);
    }

    /// Asks for a reconciliation of each TaskQueue for which something has changed since it was told last.
    fn tell(&self, state: &mut State, now: Instant) {
        let changed: Vec<_> = state
            .subscriptions
            .iter()
            .filter_map(|(task_queue, subscription)| {
                let told = state.told(subscription, now);
                (subscription.told.as_ref() != Some(&told)).then(|| (task_queue.clone(), told))
            })
            .collect();
        for (task_queue, told) in changed {
            if let Some(subscription) = state.subscriptions.get_mut(&task_queue) {
                if subscription.told.as_ref().is_none_or(|before| before.backlog != told.backlog) {
                    subscription.backlog_changed_at = Some(now);
                }
                subscription.told = Some(told);
            }
            (self.trigger)(task_queue);
        }
    }
}

impl Subscription {
    fn removed(&self) -> Option<&Removed> {
        match &self.removal {
            Some((_, Removing::Done(removed))) => Some(removed),
            _ => None,
        }
    }
}

impl State {
    fn told(&self, subscription: &Subscription, now: Instant) -> Told {
        let (reporting_workers, running) = self
            .active(subscription, now)
            .fold((0, 0), |(workers, running), (_, active)| (workers + 1, running + active));
        Told {
            broker: self.broker.clone(),
            queues: self.queue_state(subscription),
            backlog: self.backlog(subscription, now),
            reporting_workers,
            running,
            removed: subscription.removed().is_some(),
        }
    }

    fn queue_state(&self, subscription: &Subscription) -> QueueState {
        match (&self.broker, &subscription.declared) {
            (BrokerState::Connected, Declared::Due) => QueueState::Declaring,
            (BrokerState::Connected, Declared::Done(_)) => {
                QueueState::Declared(subscription.policies.clone())
            }
            (BrokerState::Connected, Declared::Failed(problem, _)) => QueueState::Failed(problem.clone()),
            _ => QueueState::WaitingForBroker,
        }
    }

    fn backlog(&self, subscription: &Subscription, now: Instant) -> Backlog {
        let mut known = Some(0_u64);
        let mut fresh = 0_u64;
        let (mut fresh_queues, mut stale_queues) = (0, 0);
        for queue in subscription.topology.consumed() {
            let reading = self.readings.get(queue);
            let ready = reading.and_then(Reading::ready);
            known = known.zip(ready).map(|(sum, ready)| sum.saturating_add(ready));
            if reading.and_then(|reading| reading.age(now)).is_some_and(|age| age < STALE_AFTER) {
                fresh = fresh.saturating_add(ready.unwrap_or_default());
                fresh_queues += 1;
            } else {
                stale_queues += 1;
            }
        }
        match (fresh_queues, stale_queues, known) {
            (1.., 0, _) => Backlog::Fresh { ready: fresh },
            (1.., _, _) => Backlog::Partial { ready: fresh },
            (0, 1.., Some(ready)) => Backlog::Stale { ready },
            _ => Backlog::Unknown,
        }
    }

    /// Tasks that run on those of the subscribed workers that have said so lately.
    fn active<'a>(
        &'a self,
        subscription: &'a Subscription,
        now: Instant,
    ) -> impl Iterator<Item = (&'a str, u32)> + 'a {
        let active = move |node: &'a String| Some((node.as_str(), self.reports.active(node, now)?));
        subscription.nodes.iter().filter_map(active)
    }

    fn longest_running(&self, subscription: &Subscription, now: Instant) -> Duration {
        let busy = subscription.nodes.iter().filter_map(|node| self.reports.busy_for(node, now));
        busy.max().unwrap_or_default()
    }

    fn activity(&self, subscription: &Subscription, now: Instant) -> HashMap<String, Activity> {
        let nodes = subscription.nodes.iter();
        nodes.filter_map(|node| Some((node.clone(), self.reports.activity(node, now)?))).collect()
    }

    fn attached(&self, subscription: &Subscription, now: Instant) -> Option<u32> {
        let consumers = subscription.topology.consumed().map(|queue| self.readings.get(queue)?.consumers());
        let consumers = consumers.collect::<Option<Vec<_>>>()?;
        // A worker of several queues consumes none of them while it has a task.
        let working = match consumers.len() {
            1 => 0,
            _ => self.active(subscription, now).filter(|(_, tasks)| *tasks > 0).count(),
        };
        Some(consumers.into_iter().min()?.saturating_add(working as u32))
    }

    /// Makes what workers have said until now part of the reading.
    fn settle_reports(&mut self, now: Instant) {
        for subscription in self.subscriptions.values_mut() {
            let finished = subscription.nodes.iter().map(|node| self.reports.count_finished(node));
            subscription.finished += finished.sum::<u64>();
        }
        self.reports.settle(now);
    }

    fn forget_unused_readings(&mut self) {
        let used: HashSet<&str> =
            self.subscriptions.values().flat_map(|subscription| subscription.topology.all_names()).collect();
        self.readings.retain(|queue, _| used.contains(queue.as_str()));
    }
}

/// What there is to tell of a TaskQueue at a scrape.
pub(super) struct Gauges {
    pub(super) task_queue: OwnedName,
    /// Age of the oldest reading; absent unless all queues were read on this connection.
    pub(super) age: Option<Duration>,
    /// Messages in the dead letter queues; absent if there are none, or not all were read on this connection.
    pub(super) dead: Option<u64>,
}

/// Namespace and name of a TaskQueue, for the labels of metrics.
pub(super) struct OwnedName {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl From<&ObjectRef<TaskQueue>> for OwnedName {
    fn from(task_queue: &ObjectRef<TaskQueue>) -> Self {
        Self { namespace: task_queue.namespace.clone().unwrap_or_default(), name: task_queue.name.clone() }
    }
}

#[cfg(test)]
mod tests;
