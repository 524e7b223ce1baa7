use super::*;
use crate::load::Shape;

/// Follows a list of times and numbers of workers.
struct Script {
    steps: Vec<(f64, u16)>,
    scale_in: ScaleIn,
}

impl Autoscaler for Script {
    fn scale_in(&self) -> ScaleIn {
        self.scale_in
    }

    fn tick(&mut self, _: &World, now: f64) -> (Wish, f64) {
        let replicas = self.steps.iter().take_while(|(at, _)| *at <= now).last().map_or(0, |step| step.1);
        let next = self.steps.iter().map(|(at, _)| *at).find(|at| *at > now).unwrap_or(f64::MAX);
        (Wish { replicas, in_doubt: false }, next)
    }
}

fn conditions() -> Conditions {
    Conditions {
        start_up: Duration::Constant(3.0),
        outages: Vec::new(),
        seconds: 100.0,
        sample_seconds: 10.0,
        seed: 1,
    }
}

fn arrivals(tasks: &[(f64, f64)]) -> Vec<Arrival> {
    tasks.iter().map(|&(at, service)| Arrival { at, service }).collect()
}

fn play(tasks: &[(f64, f64)], steps: &[(f64, u16)], scale_in: ScaleIn) -> Outcome {
    run(&arrivals(tasks), &conditions(), &mut Script { steps: steps.to_vec(), scale_in })
}

#[test]
fn a_worker_takes_one_task_after_the_other_the_oldest_first() {
    let outcome = play(&[(0.0, 10.0), (1.0, 5.0), (2.0, 5.0)], &[(0.0, 1)], ScaleIn::Drain);
    assert_eq!(outcome.waits, [3.0, 12.0, 16.0]);
    assert_eq!((outcome.worker_seconds, outcome.changes, outcome.seconds), (100.0, 1, 100.0));
}

#[test]
fn a_drained_worker_finishes_its_task_and_goes() {
    let outcome = play(&[(0.0, 50.0)], &[(0.0, 1), (10.0, 0)], ScaleIn::Drain);
    assert_eq!((outcome.killed, &outcome.waits[..]), (0, &[3.0][..]));
    assert_eq!(outcome.worker_seconds, 3.0 + 50.0 + REMOVE_SECONDS);
}

#[test]
fn a_drained_worker_takes_tasks_again_when_more_are_wanted() {
    let tasks = [(0.0, 20.0), (0.0, 1.0)];
    let outcome = play(&tasks, &[(0.0, 1), (10.0, 0), (15.0, 1)], ScaleIn::Drain);
    assert_eq!(outcome.waits, [3.0, 23.0]);
    assert_eq!((outcome.worker_seconds, outcome.changes), (100.0, 3));
}

#[test]
fn a_killed_task_is_run_again_from_the_start() {
    // It would end 53 s after the start; its pod is told to go at 10 s and killed at 40 s. A new worker takes it at 63 s.
    let outcome = play(&[(0.0, 50.0)], &[(0.0, 1), (10.0, 0), (60.0, 1)], ScaleIn::Kill { grace: 30.0 });
    assert_eq!((outcome.killed, &outcome.waits[..]), (1, &[63.0][..]));
    let short = play(&[(0.0, 20.0)], &[(0.0, 1), (10.0, 0)], ScaleIn::Kill { grace: 30.0 });
    assert_eq!(short.killed, 0);
}

#[test]
fn a_drain_takes_idle_workers_first() {
    let outcome = play(&[(5.0, 80.0), (50.0, 1.0)], &[(0.0, 3), (10.0, 1)], ScaleIn::Drain);
    // The busy worker stays, so the second task has to wait for it.
    assert_eq!(outcome.waits, [0.0, 35.0]);
}

#[test]
fn nothing_is_lost_when_the_broker_restarts() {
    let outages = vec![Outage { from: 10.0, seconds: 20.0 }];
    let tasks = arrivals(&[(0.0, 15.0), (12.0, 1.0), (40.0, 1.0)]);
    let steps = vec![(0.0, 2)];
    let outcome =
        run(&tasks, &Conditions { outages, ..conditions() }, &mut Script { steps, scale_in: ScaleIn::Drain });
    assert_eq!(outcome.waits.len(), 3);
    assert!(outcome.waits[1] >= 18.0, "published when the broker is back: {:?}", outcome.waits);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let tasks = Shape::Poisson(2.0).draw(Duration::Exponential(1.0), 100.0, 7);
    let run = || {
        let conditions = Conditions { start_up: Duration::Exponential(3.0), ..conditions() };
        let steps = vec![(0.0, 5), (50.0, 2), (70.0, 6)];
        run(&tasks, &conditions, &mut Script { steps, scale_in: ScaleIn::Kill { grace: 1.0 } })
    };
    let (one, two) = (run(), run());
    assert_eq!((one.waits, one.worker_seconds, one.killed), (two.waits, two.worker_seconds, two.killed));
}
