//! What is compared with what: the loads, and the autoscalers that they are put on.

use soloist_operator::plan::law::{Goal, Policy};

use crate::baselines::{Fixed, Proportional};
use crate::engine::{self, Autoscaler, Conditions, Outage, Outcome};
use crate::faults::Faults;
use crate::keda::{Keda, Settings};
use crate::load::{Arrival, Shape};
use crate::random::Duration;
use crate::soloist::Soloist;

/// Pod created to first consume: most are as quick as pods are whose image is on the node, some are not.
pub(crate) const START_UP: Duration = Duration::Lognormal { mean: 3.2, variation: 0.45 };

/// A load, and for how long.
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
        }
    }
}

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;

/// The loads that every run goes through.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "poisson",
            "10 tasks a second at random, exponential, mean 2 s",
            Shape::Poisson(10.0),
            Duration::Exponential(2.0),
            HOUR,
        ),
        Scenario::new(
            "sparse",
            "a task every 2 minutes at random, lognormal, mean 20 s",
            Shape::Poisson(1.0 / 120.0),
            Duration::Lognormal { mean: 20.0, variation: 1.0 },
            4.0 * HOUR,
        ),
        Scenario::new(
            "bursts",
            "300 tasks within 2 s, every 10 minutes, exponential, mean 2 s",
            Shape::Bursts { tasks: 300, over: 2.0, every: 10.0 * MINUTE },
            Duration::Exponential(2.0),
            HOUR,
        ),
        Scenario::new(
            "step",
            "1 a second, for 20 minutes 15 a second, 1 again; constant 2 s",
            Shape::Step { low: 1.0, high: 15.0 },
            Duration::Constant(2.0),
            HOUR,
        ),
        Scenario::new(
            "diurnal",
            "0.2 to 12 a second and back in an hour (a day, quicker), lognormal, mean 2.5 s, long tail",
            Shape::Diurnal { low: 0.2, high: 12.0, period: HOUR },
            Duration::Lognormal { mean: 2.5, variation: 1.5 },
            2.0 * HOUR,
        ),
        Scenario::new(
            "batch",
            "1000 tasks at once, twice in an hour; 9 of 10 take 2 s, one takes a minute",
            Shape::Batch { tasks: 1000, at: vec![5.0 * MINUTE, 35.0 * MINUTE] },
            Duration::Bimodal { short: 2.0, long: 60.0, part_long: 0.1 },
            HOUR,
        ),
    ]
}

/// An autoscaler with its settings.
#[derive(Clone, Debug)]
pub(crate) enum Contender {
    Soloist(Policy),
    Keda(Settings),
    Proportional(f64),
    Fixed(u16),
}

impl Contender {
    fn make(&self, scenario: &Scenario, seed: u64) -> Box<dyn Autoscaler> {
        match self {
            Self::Soloist(policy) => Box::new(Soloist::new(*policy, scenario.faults.clone(), seed)),
            Self::Keda(settings) => Box::new(Keda::new(*settings, seed)),
            Self::Proportional(target) => {
                Box::new(Proportional { target: *target, interval: 15.0, max: scenario.max })
            }
            Self::Fixed(replicas) => Box::new(Fixed(*replicas)),
        }
    }
}

/// The policy of a TaskQueue with nothing but `maxReplicas` and a goal.
pub(crate) fn policy(goal: Goal, max: u16) -> Policy {
    Policy { min: 0, max, goal, stabilization: None, fallback: None }
}

/// Runs one autoscaler on one load with one seed.
pub(crate) fn run(scenario: &Scenario, contender: &Contender, seed: u64) -> Outcome {
    let arrivals: Vec<Arrival> = scenario.shape.draw(scenario.service, scenario.seconds, seed);
    let conditions =
        Conditions { start_up: START_UP, outages: scenario.outages.clone(), seconds: scenario.seconds, seed };
    engine::run(&arrivals, &conditions, contender.make(scenario, seed).as_mut())
}
