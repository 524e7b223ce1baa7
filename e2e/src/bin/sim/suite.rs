//! What is compared with what: the loads, and the autoscalers that they are put on.

use std::num::NonZeroU32;

use anyhow::{Context, Result};
use jiff::Timestamp;
use soloist_operator::plan::law::{Goal, Policy};

use crate::baselines::{Fixed, Proportional};
use crate::engine::{self, Autoscaler, Conditions, Outage, Outcome};
use crate::faults::Faults;
use crate::keda::{Keda, Settings};
use crate::load::Shape;
use crate::random::Duration;
use crate::soloist::{Log, Soloist};
use crate::task_queue::Schedules;
use crate::trace;

/// Pod created to first consume: most are as quick as pods are whose image is on the node, some are not. The 95th percentile is 5.8 s.
const START_UP: Duration = Duration::Lognormal { mean: 3.2, variation: 0.45 };
/// A recording that comes with the simulator: an uneven hour.
const EXAMPLE_TRACE: &str = include_str!("trace/example.csv");

/// A load, for how long, and under which conditions.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) shape: Shape,
    pub(crate) service: Duration,
    pub(crate) seconds: f64,
    pub(crate) max: u16,
    pub(crate) faults: Faults,
    pub(crate) outages: Vec<Outage>,
    /// When it begins.
    pub(crate) begins: Timestamp,
    /// Bounds that change with the time, of Soloist only.
    pub(crate) schedules: Option<Schedules>,
}

impl Scenario {
    fn new(name: &str, about: &str, shape: Shape, service: Duration, seconds: f64) -> Self {
        Self {
            name: name.to_owned(),
            about: about.to_owned(),
            shape,
            service,
            seconds,
            max: 100,
            faults: Faults::default(),
            outages: Vec::new(),
            begins: Timestamp::UNIX_EPOCH,
            schedules: None,
        }
    }

    /// What its tasks take on average, in seconds.
    pub(crate) fn mean_service(&self) -> f64 {
        let arrivals = self.shape.draw(self.service, self.seconds, 0);
        arrivals.iter().map(|arrival| arrival.service).sum::<f64>() / arrivals.len().max(1) as f64
    }

    /// A load that was recorded.
    pub(crate) fn recorded(name: &str, about: &str, csv: &str, service: Duration) -> Result<Self> {
        let (first, arrivals) = trace::parse(csv, service)?;
        let begins = Timestamp::from_second(first as i64).context("read the first time of the trace")?;
        let end = arrivals.last().map_or(0.0, |arrival| arrival.at);
        // Half an hour more, to see what an autoscaler does when it is over.
        Ok(Self { begins, ..Self::new(name, about, Shape::Trace(arrivals), service, end + HOUR / 2.0) })
    }
}

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;

/// The loads that every run goes through.
pub(crate) fn scenarios() -> Result<Vec<Scenario>> {
    Ok(vec![
        poisson(),
        Scenario::new(
            "sparse",
            "a task every 2 minutes at random; 20 s on average, lognormal",
            Shape::Poisson(1.0 / (2.0 * MINUTE)),
            Duration::Lognormal { mean: 20.0, variation: 1.0 },
            4.0 * HOUR,
        ),
        bursts(),
        step(),
        diurnal(),
        Scenario::new(
            "batch",
            "500 tasks at once, twice in an hour; one in ten takes a minute, the others 2 s",
            Shape::Batch { tasks: 500, at: vec![5.0 * MINUTE, 35.0 * MINUTE] },
            Duration::Bimodal { short: 2.0, long: MINUTE, part_long: 0.1 },
            HOUR,
        ),
        Scenario::new(
            "long",
            "40 tasks within a minute, every 20 minutes; 2 minutes on average, lognormal",
            Shape::Bursts { tasks: 40, over: MINUTE, every: 20.0 * MINUTE },
            Duration::Lognormal { mean: 2.0 * MINUTE, variation: 1.0 },
            2.0 * HOUR,
        ),
        Scenario::recorded(
            "trace",
            "an uneven hour from a file: mails, pictures, reports, a campaign, a timer every 15 minutes",
            EXAMPLE_TRACE,
            Duration::Exponential(1.0),
        )?,
    ])
}

pub(crate) fn poisson() -> Scenario {
    Scenario::new(
        "poisson",
        "10 tasks a second at random; 2 s on average, exponential",
        Shape::Poisson(10.0),
        Duration::Exponential(2.0),
        HOUR,
    )
}

pub(crate) fn bursts() -> Scenario {
    Scenario::new(
        "bursts",
        "300 tasks within 2 s, every 10 minutes, nothing between; 2 s on average, exponential",
        Shape::Bursts { tasks: 300, over: 2.0, every: 10.0 * MINUTE },
        Duration::Exponential(2.0),
        HOUR,
    )
}

pub(crate) fn step() -> Scenario {
    Scenario::new(
        "step",
        "1 task a second, for 20 minutes 15 a second, then 1 again; each takes 2 s",
        Shape::Step { low: 1.0, high: 15.0 },
        Duration::Constant(2.0),
        HOUR,
    )
}

pub(crate) fn diurnal() -> Scenario {
    Scenario::new(
        "diurnal",
        "0.2 to 12 tasks a second and back, as by day and night, in an hour; 2.5 s on average, long tail",
        Shape::Diurnal { low: 0.2, high: 12.0, period: HOUR },
        Duration::Lognormal { mean: 2.5, variation: 1.5 },
        2.0 * HOUR,
    )
}

/// A load under which observations fail in one way or another.
pub(crate) fn faults() -> Vec<Scenario> {
    let at = |from: f64, seconds: f64| Some((from, from + seconds));
    let faulty = |name: &str, about: &str, faults| {
        let (name, about) = (name.to_owned(), about.to_owned());
        Scenario { name, about, faults, ..step() }
    };
    let none = Faults::default;
    vec![
        faulty("lossy", "3 in 10 readings fail", Faults { lost: 0.3, ..none() }),
        faulty(
            "absent",
            "no reading for 5 minutes, from a minute before the step on",
            Faults { absent: at(1140.0, 300.0), ..none() },
        ),
        faulty(
            "stale",
            "5-minute-old readings for 5 minutes, in the middle of the step",
            Faults { stale: at(1800.0, 300.0), ..none() },
        ),
        faulty(
            "lying",
            "0 messages, 0 consumers for 5 minutes, in the middle of the step",
            Faults { lying: at(1800.0, 300.0), ..none() },
        ),
        faulty(
            "silent",
            "workers do not say what they run, for 5 minutes in the middle of the step",
            Faults { silent: at(1800.0, 300.0), ..none() },
        ),
        Scenario {
            outages: vec![Outage { from: 1800.0, seconds: 30.0 }],
            ..faulty("restart", "the broker restarts in the middle of the step: away for 30 s", none())
        },
    ]
}

/// An autoscaler with its settings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Contender {
    Soloist(Policy),
    Keda(Settings),
    Proportional(f64),
    Fixed(u16),
}

impl Contender {
    fn make(self, scenario: &Scenario, seed: u64, log: Log) -> Box<dyn Autoscaler> {
        match self {
            Self::Soloist(policy) => Box::new(Soloist::new(policy, scenario, seed, log)),
            Self::Keda(settings) => Box::new(Keda::new(settings, seed)),
            Self::Proportional(target) => {
                Box::new(Proportional { target, interval: 15.0, max: scenario.max })
            }
            Self::Fixed(replicas) => Box::new(Fixed(replicas)),
        }
    }
}

/// The policy of a TaskQueue that says nothing but its goal and `maxReplicas`.
pub(crate) fn policy(goal: Goal, max: u16) -> Policy {
    Policy { min: 0, max, goal, stabilization: None, fallback: None }
}

/// `tasksPerWorker: 1`.
pub(crate) const ONE_TASK: Goal = Goal::TasksPerWorker(NonZeroU32::MIN);

/// Runs one autoscaler on one load with one seed.
pub(crate) fn run(scenario: &Scenario, contender: Contender, seed: u64, log: Log) -> Outcome {
    let arrivals = scenario.shape.draw(scenario.service, scenario.seconds, seed);
    let conditions = Conditions {
        start_up: START_UP,
        outages: scenario.outages.clone(),
        seconds: scenario.seconds,
        sample_seconds: 2.0,
        seed,
    };
    engine::run(&arrivals, &conditions, contender.make(scenario, seed, log).as_mut())
}
