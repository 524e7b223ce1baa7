//! The world in which autoscalers compete: a queue, solo workers in pods, a broker that may restart. Discrete events, in order of time.
//!
//! A worker takes one message at a time, the oldest first, and acknowledges it when the task is done. A message that was not acknowledged
//! goes back to the head of the queue.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::load::Arrival;
use crate::random::{Duration, Random};

/// What an autoscaler does with pods that are too many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ScaleIn {
    /// Workers finish their task first, idle ones go first.
    Drain,
    /// The ReplicaSet chooses, without knowing who is busy. A worker has so many seconds to finish, then it is killed.
    Kill { grace: f64 },
}

/// An autoscaler: looks at the world from time to time, and says how many workers there are to be.
pub(crate) trait Autoscaler {
    fn scale_in(&self) -> ScaleIn;
    /// What is to be, and when to look again.
    fn tick(&mut self, world: &World, now: f64) -> (Wish, f64);
}

/// What an autoscaler wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wish {
    /// Workers there are to be.
    pub(crate) replicas: u16,
    /// Whether it did not know all that it ought to.
    pub(crate) in_doubt: bool,
}

/// When the broker is away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outage {
    pub(crate) from: f64,
    pub(crate) seconds: f64,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Starting,
    Idle { since: f64 },
    Busy { task: usize, since: f64, owns_message: bool },
    Gone,
}

/// A worker pod.
#[derive(Clone, Debug)]
struct Pod {
    created: f64,
    state: State,
    /// Takes no more tasks, and goes when it is idle.
    leaving: bool,
    attached: bool,
    /// Tells late events of an earlier state apart.
    epoch: u32,
}

#[derive(Clone, Copy, Debug)]
struct Task {
    arrived: f64,
    service: f64,
    /// How long it waited for the attempt that was its last.
    waited: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Publish,
    Ready(usize),
    Finish(usize, u32),
    Kill(usize, u32),
    Remove(usize, u32),
    Attach(usize),
    BrokerDown,
    BrokerUp,
    Tick,
    Sample,
}

/// An event and when it happens; the sequence number orders events of the same instant.
struct Due(f64, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

/// What the world looked like at an instant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) at: f64,
    pub(crate) oldest_wait: f64,
    pub(crate) pods: u32,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// How long each task waited for a worker, in seconds: until the start of the attempt that ended well.
    pub(crate) waits: Vec<f64>,
    /// Seconds that pods existed, in sum.
    pub(crate) worker_seconds: f64,
    /// How often the number of workers was changed.
    pub(crate) changes: u32,
    /// Tasks interrupted by scale-in.
    pub(crate) killed: u32,
    /// How often workers were taken away although not all was known.
    pub(crate) lowered_in_doubt: u32,
    /// Seconds simulated.
    pub(crate) seconds: f64,
    pub(crate) samples: Vec<Sample>,
}

/// The conditions of a run.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    /// Pod created to first consume.
    pub(crate) start_up: Duration,
    pub(crate) outages: Vec<Outage>,
    /// How long the load lasts; the run goes on until every task is done.
    pub(crate) seconds: f64,
    /// Seconds between two points of a curve.
    pub(crate) sample_seconds: f64,
    pub(crate) seed: u64,
}

/// Time from an idle worker's drain, or a killed worker's end, to its pod being gone.
const REMOVE_SECONDS: f64 = 1.0;
/// Longest time from the broker's return to a worker being attached again.
const ATTACH_SECONDS: f64 = 5.0;

/// The world, as an autoscaler may look at it.
pub(crate) struct World {
    tasks: Vec<Task>,
    queue: VecDeque<usize>,
    pods: Vec<Pod>,
    /// Pods that are not gone.
    alive: Vec<usize>,
    idle: VecDeque<usize>,
    held_back: Vec<usize>,
    finished: u64,
    started: Vec<f64>,
    broker_up: bool,
    asked_for: u16,
}

impl World {
    /// Messages that wait; none can be told while the broker is away.
    pub(crate) fn ready(&self) -> Option<u64> {
        self.broker_up.then_some(self.queue.len() as u64)
    }

    /// Start times of the tasks that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = f64> {
        self.alive.iter().filter_map(|&pod| match self.pods[pod].state {
            State::Busy { since, .. } => Some(since),
            _ => None,
        })
    }

    /// Tasks finished so far.
    pub(crate) fn finished(&self) -> u64 {
        self.finished
    }

    /// Workers asked for.
    pub(crate) fn asked_for(&self) -> u16 {
        self.asked_for
    }

    /// Workers that take tasks, or did until the broker went away.
    pub(crate) fn consuming(&self) -> u16 {
        self.staying().filter(|pod| !matches!(pod.state, State::Starting)).count() as u16
    }

    /// Consumers that the broker knows.
    pub(crate) fn attached(&self) -> u32 {
        self.alive.iter().filter(|&&pod| self.pods[pod].attached).count() as u32
    }

    /// When the pods were created that do not take tasks yet.
    pub(crate) fn starting(&self) -> impl Iterator<Item = f64> {
        self.staying().filter(|pod| matches!(pod.state, State::Starting)).map(|pod| pod.created)
    }

    /// Start-up times of all workers that ever came up.
    pub(crate) fn started(&self) -> &[f64] {
        &self.started
    }

    fn staying(&self) -> impl Iterator<Item = &Pod> {
        self.alive.iter().map(|&pod| &self.pods[pod]).filter(|pod| !pod.leaving)
    }
}

struct Engine<'a> {
    world: World,
    due: BinaryHeap<Reverse<Due>>,
    sequence: u64,
    now: f64,
    arrivals: &'a [Arrival],
    published: usize,
    start_up: Duration,
    start_ups: Random,
    victims: Random,
    scale_in: ScaleIn,
    sample_seconds: f64,
    outcome: Outcome,
    outstanding: usize,
}

/// Runs `arrivals` against `autoscaler` until every task is done.
pub(crate) fn run(arrivals: &[Arrival], conditions: &Conditions, autoscaler: &mut dyn Autoscaler) -> Outcome {
    let world = World {
        tasks: Vec::with_capacity(arrivals.len()),
        queue: VecDeque::new(),
        pods: Vec::new(),
        alive: Vec::new(),
        idle: VecDeque::new(),
        held_back: Vec::new(),
        finished: 0,
        started: Vec::new(),
        broker_up: true,
        asked_for: 0,
    };
    let mut engine = Engine {
        world,
        due: BinaryHeap::new(),
        sequence: 0,
        now: 0.0,
        arrivals,
        published: 0,
        start_up: conditions.start_up,
        start_ups: Random::new(conditions.seed, "start-ups"),
        victims: Random::new(conditions.seed, "victims"),
        scale_in: autoscaler.scale_in(),
        sample_seconds: conditions.sample_seconds,
        outcome: Outcome::default(),
        outstanding: arrivals.len(),
    };
    for outage in &conditions.outages {
        engine.at(outage.from, Event::BrokerDown);
        engine.at(outage.from + outage.seconds, Event::BrokerUp);
    }
    engine.publish_next();
    engine.at(0.0, Event::Sample);
    engine.at(0.0, Event::Tick);
    engine.run(conditions.seconds, autoscaler);
    engine.finish()
}

impl Engine<'_> {
    fn at(&mut self, at: f64, event: Event) {
        self.sequence += 1;
        self.due.push(Reverse(Due(at, self.sequence, event)));
    }

    fn run(&mut self, seconds: f64, autoscaler: &mut dyn Autoscaler) {
        while let Some(Reverse(Due(at, _, event))) = self.due.pop() {
            if at >= seconds && self.outstanding == 0 {
                self.now = seconds.max(self.now);
                return;
            }
            self.now = at;
            match event {
                Event::Publish => self.publish(),
                Event::Ready(pod) => self.ready(pod),
                Event::Finish(pod, epoch) => self.finish_task(pod, epoch),
                Event::Kill(pod, epoch) => self.kill(pod, epoch),
                Event::Remove(pod, epoch) if self.world.pods[pod].epoch == epoch => self.remove(pod),
                Event::Remove(..) => {}
                Event::Attach(pod) => self.attach(pod),
                Event::BrokerDown => self.broker_down(),
                Event::BrokerUp => self.broker_up(),
                Event::Tick => {
                    let (wish, next) = autoscaler.tick(&self.world, self.now);
                    self.scale(wish);
                    self.at(next, Event::Tick);
                }
                Event::Sample => self.sample(),
            }
        }
    }

    fn finish(mut self) -> Outcome {
        for &pod in &self.world.alive {
            self.outcome.worker_seconds += self.now - self.world.pods[pod].created;
        }
        self.outcome.seconds = self.now;
        self.outcome.waits = self.world.tasks.iter().filter_map(|task| task.waited).collect();
        self.outcome
    }

    fn publish_next(&mut self) {
        if let Some(arrival) = self.arrivals.get(self.published) {
            self.at(arrival.at, Event::Publish);
        }
    }

    fn publish(&mut self) {
        let Arrival { at, service } = self.arrivals[self.published];
        self.published += 1;
        let task = self.world.tasks.len();
        self.world.tasks.push(Task { arrived: at, service, waited: None });
        if self.world.broker_up {
            self.world.queue.push_back(task);
            self.dispatch();
        } else {
            self.world.held_back.push(task);
        }
        self.publish_next();
    }

    fn dispatch(&mut self) {
        while self.world.broker_up && !self.world.queue.is_empty() {
            let Some(pod) = self.world.idle.pop_front() else { return };
            let Some(task) = self.world.queue.pop_front() else { return };
            let owner = &mut self.world.pods[pod];
            owner.state = State::Busy { task, since: self.now, owns_message: true };
            owner.epoch += 1;
            let epoch = owner.epoch;
            self.at(self.now + self.world.tasks[task].service, Event::Finish(pod, epoch));
        }
    }

    fn ready(&mut self, pod: usize) {
        if self.world.pods[pod].state != State::Starting {
            return;
        }
        self.world.started.push(self.now - self.world.pods[pod].created);
        self.world.pods[pod].state = State::Idle { since: self.now };
        self.attach(pod);
    }

    fn attach(&mut self, pod: usize) {
        let world = &mut self.world;
        if !world.broker_up || world.pods[pod].attached || world.pods[pod].leaving {
            return;
        }
        if let State::Idle { .. } = world.pods[pod].state {
            world.pods[pod].attached = true;
            world.idle.push_back(pod);
            self.dispatch();
        }
    }

    fn finish_task(&mut self, pod: usize, epoch: u32) {
        let owner = &mut self.world.pods[pod];
        let State::Busy { task, since, owns_message } = owner.state else { return };
        if owner.epoch != epoch {
            return;
        }
        owner.state = State::Idle { since: self.now };
        owner.epoch += 1;
        let epoch = owner.epoch;
        let task = &mut self.world.tasks[task];
        if task.waited.is_none() {
            task.waited = Some(since - task.arrived);
            self.outstanding -= 1;
        }
        self.world.finished += 1;
        if owner.leaving {
            self.at(self.now + REMOVE_SECONDS, Event::Remove(pod, epoch));
        } else if owns_message {
            self.world.idle.push_back(pod);
            self.dispatch();
        } else {
            // The connection went with the broker, so the message could not be acknowledged: it is in the queue again.
            let delay = ATTACH_SECONDS * self.start_ups.uniform();
            self.at(self.now + delay, Event::Attach(pod));
        }
    }

    fn kill(&mut self, pod: usize, epoch: u32) {
        let owner = &mut self.world.pods[pod];
        let State::Busy { task, owns_message, .. } = owner.state else { return };
        if owner.epoch != epoch {
            return;
        }
        owner.state = State::Idle { since: self.now };
        owner.epoch += 1;
        self.outcome.killed += 1;
        if owns_message {
            self.world.queue.push_front(task);
        }
        self.remove(pod);
        self.dispatch();
    }

    fn remove(&mut self, pod: usize) {
        let gone = &mut self.world.pods[pod];
        self.outcome.worker_seconds += self.now - gone.created;
        gone.state = State::Gone;
        gone.attached = false;
        gone.epoch += 1;
        self.world.alive.retain(|&alive| alive != pod);
    }

    fn broker_down(&mut self) {
        self.world.broker_up = false;
        self.world.idle.clear();
        let mut returned = Vec::new();
        for &pod in &self.world.alive {
            let pod = &mut self.world.pods[pod];
            pod.attached = false;
            if let State::Busy { task, owns_message: owns_message @ true, .. } = &mut pod.state {
                *owns_message = false;
                returned.push(*task);
            }
        }
        returned.sort_unstable();
        for task in returned.into_iter().rev() {
            self.world.queue.push_front(task);
        }
    }

    fn broker_up(&mut self) {
        self.world.broker_up = true;
        let held_back = std::mem::take(&mut self.world.held_back);
        self.world.queue.extend(held_back);
        for pod in self.world.alive.clone() {
            if matches!(self.world.pods[pod].state, State::Idle { .. }) {
                let delay = ATTACH_SECONDS * self.start_ups.uniform();
                self.at(self.now + delay, Event::Attach(pod));
            }
        }
    }

    fn sample(&mut self) {
        let world = &self.world;
        let oldest = world.queue.front().map_or(0.0, |&task| self.now - world.tasks[task].arrived);
        self.outcome.samples.push(Sample {
            at: self.now,
            oldest_wait: oldest,
            pods: world.alive.len() as u32,
        });
        self.at(self.now + self.sample_seconds, Event::Sample);
    }

    fn scale(&mut self, Wish { replicas, in_doubt }: Wish) {
        if in_doubt && replicas < self.world.asked_for {
            self.outcome.lowered_in_doubt += 1;
        }
        if replicas != self.world.asked_for {
            self.outcome.changes += 1;
            self.world.asked_for = replicas;
        }
        let staying = self.world.staying().count();
        let wanted = usize::from(replicas);
        if wanted > staying {
            self.add(wanted - staying);
        } else if wanted < staying {
            self.take_away(staying - wanted);
        }
    }

    fn add(&mut self, mut missing: usize) {
        if self.scale_in == ScaleIn::Drain {
            // Workers that still finish a task take tasks again.
            for pod in self.world.alive.clone() {
                let pod = &mut self.world.pods[pod];
                if missing > 0 && pod.leaving && matches!(pod.state, State::Busy { .. }) {
                    pod.leaving = false;
                    pod.attached = self.world.broker_up;
                    missing -= 1;
                }
            }
        }
        for _ in 0..missing {
            let pod = self.world.pods.len();
            self.world.pods.push(Pod {
                created: self.now,
                state: State::Starting,
                leaving: false,
                attached: false,
                epoch: 0,
            });
            self.world.alive.push(pod);
            let seconds = self.start_up.draw(&mut self.start_ups);
            self.at(self.now + seconds, Event::Ready(pod));
        }
    }

    fn take_away(&mut self, surplus: usize) {
        let mut candidates: Vec<usize> =
            self.world.alive.iter().copied().filter(|&pod| !self.world.pods[pod].leaving).collect();
        if let ScaleIn::Kill { .. } = self.scale_in {
            // Pods that are ready are ranked by node and age, neither of which says who is busy: any of them may go.
            for i in (1..candidates.len()).rev() {
                candidates.swap(i, self.victims.index(i + 1));
            }
        }
        let drain = self.scale_in == ScaleIn::Drain;
        candidates.sort_by_key(|&pod| match self.world.pods[pod].state {
            State::Starting => 0,
            State::Idle { since } if drain => 1 + (since * 1e3) as u64,
            State::Busy { since, .. } if drain => (1 << 60) + (since * 1e3) as u64,
            _ => 1,
        });
        for pod in candidates.into_iter().take(surplus) {
            self.let_go(pod);
        }
    }

    fn let_go(&mut self, pod: usize) {
        self.world.idle.retain(|&idle| idle != pod);
        let leaver = &mut self.world.pods[pod];
        leaver.leaving = true;
        leaver.attached = false;
        let epoch = leaver.epoch;
        match (leaver.state, self.scale_in) {
            (State::Starting, _) => self.remove(pod),
            (State::Busy { .. }, ScaleIn::Kill { grace }) => {
                self.at(self.now + grace, Event::Kill(pod, epoch))
            }
            (State::Busy { .. }, ScaleIn::Drain) => {}
            (State::Idle { .. } | State::Gone, _) => {
                self.at(self.now + REMOVE_SECONDS, Event::Remove(pod, epoch))
            }
        }
    }
}

#[cfg(test)]
mod tests;
