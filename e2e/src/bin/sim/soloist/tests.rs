//! The control law in its loop: what it does to the world comes back as its next observation.

use soloist_operator::plan::law::Goal;

use super::*;
use crate::engine::Outcome;
use crate::load::{Arrival, Shape};
use crate::report::Summary;
use crate::suite::{self, Contender, Scenario};

const SEEDS: u64 = 2;

fn run(scenario: &Scenario, wait_seconds: f64) -> (Vec<Outcome>, Summary) {
    let policy = suite::policy(Goal::MaxWaitSeconds(wait_seconds), scenario.max);
    let outcomes: Vec<_> = (0..SEEDS)
        .map(|seed| suite::run(scenario, Contender::Soloist(policy), seed, Log::default()))
        .collect();
    let summary = Summary::of(&outcomes);
    (outcomes, summary)
}

fn loads() -> Vec<Scenario> {
    suite::scenarios().expect("the example trace is readable")
}

#[test]
fn no_task_is_killed_and_none_lost() {
    for scenario in loads() {
        let (outcomes, summary) = run(&scenario, 5.0);
        assert_eq!(summary.killed, 0, "{}", scenario.name);
        for (seed, outcome) in outcomes.iter().enumerate() {
            let arrived = scenario.shape.draw(scenario.service, scenario.seconds, seed as u64).len();
            assert_eq!(outcome.waits.len(), arrived, "{}", scenario.name);
        }
    }
}

#[test]
fn the_wait_is_kept_where_workers_can_be_had() {
    for scenario in loads() {
        // A thousand workers instead of a hundred, so that only the law decides.
        let scenario = Scenario { max: 1000, ..scenario };
        for wait in [15.0, 30.0, 120.0] {
            let summary = run(&scenario, wait).1;
            assert!(summary.p95_wait_seconds <= wait, "{} in {wait} s: {summary:?}", scenario.name);
            // What was not foreseen is made up for: a task that takes much longer than others, or the first tasks of all.
            assert!(
                summary.max_wait_seconds <= 2.0 * wait + 10.0,
                "{} in {wait} s: {summary:?}",
                scenario.name
            );
        }
    }
}

#[test]
fn the_number_changes_seldom() {
    for scenario in loads() {
        for wait in [5.0, 30.0] {
            let changes = run(&scenario, wait).1.changes_per_hour;
            assert!(changes <= 60.0, "{}: {changes} an hour", scenario.name);
        }
    }
}

#[test]
fn an_even_load_is_settled_once_and_for_all() {
    let every = |seconds: f64| {
        let arrivals = (0..).map(|n| Arrival { at: f64::from(n) * seconds, service: 2.0 });
        arrivals.take_while(|arrival| arrival.at < 7200.0).collect()
    };
    for (seconds, wait) in [(0.1, 5.0), (0.1, 60.0), (1.0, 5.0), (20.0, 5.0)] {
        let scenario = Scenario { shape: Shape::Trace(every(seconds)), seconds: 7200.0, ..suite::poisson() };
        let log = Log::default();
        let policy = suite::policy(Goal::MaxWaitSeconds(wait), 100);
        suite::run(&scenario, Contender::Soloist(policy), 0, log.clone());
        let last = log.borrow().last().map_or(0.0, |(at, _)| *at);
        assert!(last < 3600.0, "a task every {seconds} s, {wait} s allowed: changed at {last} s");
    }
}

#[test]
fn a_service_time_wrong_by_a_factor_of_two_costs_but_does_not_swing() {
    for scenario in [suite::poisson(), suite::step(), suite::diurnal()] {
        let right = run(&scenario, 5.0).1;
        for running_factor in [0.5, 2.0] {
            let faults = Faults { running_factor, ..Faults::default() };
            let wrong = run(&Scenario { faults, ..scenario.clone() }, 5.0).1;
            let name = format!("{} × {running_factor}", scenario.name);
            assert!(wrong.changes_per_hour <= 60.0, "{name}: {wrong:?}");
            assert!(wrong.worker_seconds <= 2.2 * right.worker_seconds, "{name}: {wrong:?}");
            // Deadlines make up for what the estimate lacks.
            assert!(wrong.p95_wait_seconds <= 25.0, "{name}: {wrong:?}");
            assert!(wrong.max_wait_seconds <= 60.0, "{name}: {wrong:?}");
        }
    }
}

#[test]
fn nothing_is_taken_away_in_doubt() {
    for scenario in suite::faults() {
        let (outcomes, summary) = run(&scenario, 5.0);
        let lowered: u32 = outcomes.iter().map(|outcome| outcome.lowered_in_doubt).sum();
        assert_eq!((lowered, summary.killed), (0, 0), "{}", scenario.name);
    }
}

#[test]
fn readings_that_fail_now_and_then_change_little() {
    let right = run(&suite::step(), 5.0).1;
    let lossy = suite::faults().into_iter().find(|scenario| scenario.name == "lossy").expect("it is there");
    let lossy = run(&lossy, 5.0).1;
    assert!((lossy.worker_seconds / right.worker_seconds - 1.0).abs() < 0.15, "{lossy:?}\n{right:?}");
    assert!(lossy.p95_wait_seconds < 1.0, "{lossy:?}");
}
