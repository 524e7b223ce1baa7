//! Soloist: the operator's own control law, fed as the operator feeds it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use soloist_operator::plan::autoscaler::Backlog;
use soloist_operator::plan::law::{self, Decision, History, Observation, Policy, Tasks, Workers};

use crate::engine::{Autoscaler, ScaleIn, Wish, World};
use crate::faults::Faults;
use crate::random::Random;
use crate::suite::Scenario;
use crate::task_queue::Schedules;

/// Between observations while there is something to do, and while there is not.
const ACTIVE_SECONDS: f64 = 1.0;
const IDLE_SECONDS: f64 = 5.0;
/// Age of what workers say about themselves.
const REPORT_SECONDS: f64 = 0.5;

/// The control law with its observations.
pub(crate) struct Soloist {
    policy: Policy,
    schedules: Option<Schedules>,
    history: History,
    epoch: Instant,
    faults: Faults,
    chances: Random,
    started: usize,
    reports: VecDeque<(f64, Tasks)>,
    last_ready: Option<u64>,
    /// The decisions, when they changed the number of workers; shared with whoever wants to read them when the run is over.
    log: Log,
}

/// Times and decisions.
pub(crate) type Log = Rc<RefCell<Vec<(f64, Decision)>>>;

impl Soloist {
    pub(crate) fn new(policy: Policy, scenario: &Scenario, seed: u64, log: Log) -> Self {
        Self {
            policy,
            schedules: scenario.schedules.clone(),
            history: History::default(),
            epoch: Instant::now(),
            faults: scenario.faults.clone(),
            chances: Random::new(seed, "observations"),
            started: 0,
            reports: VecDeque::new(),
            last_ready: None,
            log,
        }
    }

    fn observe(&mut self, world: &World, now: f64) -> Observation {
        let lost = self.chances.uniform() < self.faults.lost;
        let read = world.ready().filter(|_| !lost && !self.faults.absent(now));
        let backlog = match read {
            _ if self.faults.stale(now) => {
                self.last_ready.map_or(Backlog::Unknown, |ready| Backlog::Stale { ready })
            }
            Some(_) if self.faults.lying(now) => Backlog::Fresh { ready: 0 },
            Some(ready) => {
                self.last_ready = Some(ready);
                Backlog::Fresh { ready }
            }
            None => Backlog::Unknown,
        };
        let longest = world.running().map(|since| now - since).fold(0.0, f64::max);
        let silent = self.faults.silent(now) || world.ready().is_none();
        let running = world.running().count() as f64 * self.faults.running_factor;
        let tasks = Tasks {
            running: running.round() as u32,
            longest_running: Duration::from_secs_f64(longest),
            finished: world.finished(),
            silent_workers: if silent { world.consuming().into() } else { 0 },
        };
        self.reports.push_back((now, tasks));
        while self.reports.len() > 1 && self.reports[1].0 <= now - REPORT_SECONDS {
            self.reports.pop_front();
        }
        let tasks = Tasks { silent_workers: tasks.silent_workers, ..self.reports[0].1 };
        let age = |created: f64| Duration::from_secs_f64(now - created);
        let started = world.started()[self.started..].iter().copied().map(Duration::from_secs_f64).collect();
        self.started = world.started().len();
        let attached = if self.faults.lying(now) { 0 } else { world.attached() };
        let workers = Workers {
            asked_for: world.asked_for(),
            consuming: world.consuming(),
            starting: world.starting().map(age).collect(),
            attached: world.ready().map(|_| attached),
            started,
        };
        Observation { backlog, tasks, workers }
    }
}

impl Autoscaler for Soloist {
    fn scale_in(&self) -> ScaleIn {
        ScaleIn::Drain
    }

    fn tick(&mut self, world: &World, now: f64) -> (Wish, f64) {
        let observation = self.observe(world, now);
        let idle = matches!(observation.backlog, Backlog::Fresh { ready: 0 })
            && observation.tasks.running == 0
            && observation.workers.asked_for == 0;
        let in_doubt = world.ready().is_none()
            || self.faults.in_doubt(now)
            || !matches!(observation.backlog, Backlog::Fresh { .. });
        let history = std::mem::take(&mut self.history);
        let policy =
            self.schedules.as_ref().map_or(self.policy, |schedules| schedules.apply(self.policy, now));
        let (decision, history) =
            law::decide(&observation, history, &policy, self.epoch + Duration::from_secs_f64(now));
        self.history = history;
        let replicas = decision.replicas;
        if replicas != world.asked_for() {
            self.log.borrow_mut().push((now, decision));
        }
        (Wish { replicas, in_doubt }, now + if idle { IDLE_SECONDS } else { ACTIVE_SECONDS })
    }
}

#[cfg(test)]
mod tests;
