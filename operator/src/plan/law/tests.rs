use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

fn policy(wait: f64) -> Policy {
    Policy { min: 0, max: 100, goal: Goal::MaxWaitSeconds(wait), stabilization: None, fallback: None }
}

fn plain(tasks: u32) -> Policy {
    Policy { goal: Goal::TasksPerWorker(NonZeroU32::new(tasks).unwrap()), ..policy(0.0) }
}

fn observed(ready: u64, running: u32, asked_for: u16) -> Observation {
    Observation {
        backlog: Backlog::Fresh { ready },
        tasks: Tasks { running, ..Tasks::default() },
        workers: Workers { asked_for, consuming: asked_for, ..Workers::default() },
    }
}

/// A TaskQueue under the law, second by second.
struct Run {
    history: History,
    policy: Policy,
    now: Instant,
    asked_for: u16,
}

impl Run {
    fn new(policy: Policy) -> Self {
        Self { history: History::default(), policy, now: Instant::now(), asked_for: 0 }
    }

    fn second(&mut self, observation: Observation) -> Decision {
        self.now += Duration::from_secs(1);
        let (decision, history) =
            decide(&observation, std::mem::take(&mut self.history), &self.policy, self.now);
        self.history = history;
        self.asked_for = decision.replicas;
        decision
    }

    /// `seconds` of the same, returning the last decision.
    fn seconds(&mut self, seconds: u32, observation: impl Fn(u16) -> Observation) -> Decision {
        (0..seconds).map(|_| self.second(observation(self.asked_for))).last().unwrap()
    }

    /// A second in which `ready` wait and every worker is busy and finishes half a task.
    fn busy(&mut self, ready: u64, finished: u64) -> Decision {
        let mut observation = observed(ready, self.asked_for.into(), self.asked_for);
        observation.tasks.finished = finished;
        self.second(observation)
    }
}

#[test]
fn answers_a_burst_in_one_step() {
    let mut run = Run::new(policy(30.0));
    run.seconds(10, |_| observed(0, 0, 0));
    let decision = run.second(observed(500, 0, 0));
    // 5 s a task and 10 s to start are assumed: a worker has 18 s and starts 4.6 tasks.
    assert_eq!((decision.replicas, decision.reason), (100, Reason::Ceiling));
    assert_eq!(decision.terms.backlog_workers, 109);
    assert_eq!(
        decision.sentence,
        "100: 109 wanted, capped by the maximum 100; 500 ready to start within 30 s, at 5 s a task and 10 s to start a worker"
    );
    let mut starting = observed(500, 0, 100);
    starting.workers.consuming = 0;
    starting.workers.starting = vec![Duration::from_secs(1); 100];
    let after = run.second(starting);
    assert_eq!((after.replicas, after.reason), (100, Reason::Ceiling));
}

#[test]
fn one_message_gets_one_worker() {
    let mut run = Run::new(policy(30.0));
    run.second(observed(0, 0, 0));
    assert_eq!(run.second(observed(1, 0, 0)).replicas, 1);
}

#[test]
fn a_plain_target_is_plain_arithmetic() {
    let mut run = Run::new(plain(10));
    let decision = run.second(observed(350, 20, 0));
    assert_eq!((decision.replicas, decision.reason), (37, Reason::Backlog));
    assert_eq!(decision.sentence, "37: ceil((350 ready + 20 running) / 10)");
}

#[test]
fn an_idle_queue_goes_to_zero_after_the_window() {
    let mut run = Run::new(plain(1));
    run.seconds(5, |_| observed(3, 0, 3));
    let held = run.second(observed(0, 0, 3));
    assert_eq!((held.replicas, held.reason), (3, Reason::Stabilizing));
    let idle = run.seconds(60, |asked_for| observed(0, 0, asked_for));
    assert_eq!(idle.replicas, 0);
}

#[test]
fn who_takes_over_keeps_what_is_there_for_a_window() {
    let mut run = Run::new(policy(30.0));
    run.asked_for = 20;
    let first = run.second(observed(0, 0, 20));
    assert_eq!((first.replicas, first.reason), (20, Reason::Stabilizing));
    let window = first.terms.window_seconds as u32;
    assert_eq!(run.seconds(window - 1, |_| observed(0, 0, 20)).replicas, 20);
    assert_eq!(run.seconds(2, |asked_for| observed(0, 0, asked_for)).replicas, 0);
}

#[test]
fn a_task_on_a_worker_that_leaves_starts_no_other() {
    let mut run = Run::new(policy(30.0));
    assert_eq!(run.seconds(60, |_| observed(0, 1, 0)).replicas, 0);
}

#[test]
fn a_running_task_keeps_a_worker() {
    let mut run = Run::new(policy(30.0));
    run.seconds(10, |_| observed(3, 0, 3));
    let decision = run.seconds(3600, |asked_for| observed(0, 1, asked_for));
    assert_eq!(decision.replicas, 1);
}

#[test]
fn more_than_max_is_lowered_at_once_and_less_than_min_raised() {
    let bounds = Policy { min: 5, max: 20, ..policy(30.0) };
    let decide_at = |asked_for| Run::new(bounds).second(observed(0, 0, asked_for));
    let (low, high) = (decide_at(2), decide_at(50));
    assert_eq!((low.replicas, low.reason), (5, Reason::Floor));
    assert_eq!((high.replicas, high.reason), (20, Reason::Ceiling));
}

#[test]
fn less_than_min_and_a_burst_are_one_step() {
    let bounds = Policy { min: 5, max: 20, ..plain(1) };
    assert_eq!(Run::new(bounds).second(observed(12, 0, 0)).replicas, 12);
}

#[test]
fn doubts_are_named() {
    let mut silent = observed(0, 0, 5);
    silent.tasks.silent_workers = 1;
    let mut detached = observed(0, 0, 5);
    detached.workers.attached = Some(0);
    let with = |backlog| Observation { backlog, ..observed(0, 0, 5) };
    for (observation, reason) in [
        (with(Backlog::Unknown), Reason::BacklogUnknown),
        (with(Backlog::Stale { ready: 0 }), Reason::BacklogUnknown),
        (with(Backlog::Partial { ready: 0 }), Reason::BacklogUnknown),
        (silent, Reason::WorkersSilent),
        (detached, Reason::WorkersDetached),
    ] {
        let decision = Run::new(plain(1)).seconds(3600, |_| observation.clone());
        assert_eq!((decision.replicas, decision.reason), (5, reason), "{observation:?}");
    }
}

#[test]
fn what_is_known_of_some_queues_is_enough_for_more_workers() {
    let partial = Observation { backlog: Backlog::Partial { ready: 40 }, ..observed(0, 0, 5) };
    assert_eq!(Run::new(plain(1)).second(partial).replicas, 40);
}

#[test]
fn a_full_window_of_knowledge_comes_before_fewer() {
    let mut run = Run::new(plain(1));
    run.seconds(600, |_| observed(0, 5, 5));
    run.seconds(10, |_| Observation { backlog: Backlog::Unknown, ..observed(0, 0, 5) });
    let window = run.second(observed(0, 0, 5)).terms.window_seconds;
    let again = run.seconds(window as u32 - 2, |_| observed(0, 0, 5));
    assert_eq!((again.replicas, again.reason), (5, Reason::Stabilizing));
}

#[test]
fn readings_that_fail_now_and_then_keep_no_workers() {
    let mut run = Run::new(plain(1));
    run.seconds(60, |_| observed(0, 5, 5));
    for second in 0..600 {
        let observation = observed(0, 0, run.asked_for);
        let backlog = if second % 3 == 0 { Backlog::Unknown } else { observation.backlog };
        run.second(Observation { backlog, ..observation });
    }
    assert_eq!(run.asked_for, 0);
}

#[test]
fn falls_back_when_nothing_was_known_for_long() {
    let fallback = Some(Fallback { after: Duration::from_secs(60), replicas: 8 });
    let mut run = Run::new(Policy { fallback, ..plain(1) });
    let unknown = |asked_for| Observation { backlog: Backlog::Unknown, ..observed(0, 0, asked_for) };
    run.second(observed(0, 2, 2));
    assert_eq!(run.seconds(59, unknown).replicas, 2);
    let decision = run.second(unknown(2));
    assert_eq!((decision.replicas, decision.reason), (8, Reason::Fallback));
    // It raises only.
    assert_eq!(run.second(unknown(30)).replicas, 30);
}

#[test]
fn keeps_up_with_a_load_it_has_learned() {
    let mut run = Run::new(policy(5.0));
    let mut finished = 0;
    for second in 0..1800 {
        // 10 arrive a second, each takes 2 seconds.
        finished += 10;
        let mut observation = observed(0, 20, run.asked_for);
        observation.tasks = Tasks { finished, longest_running: Duration::from_secs(2), ..observation.tasks };
        observation.workers.started = if second < 64 { vec![Duration::from_secs(5)] } else { Vec::new() };
        run.second(observation);
    }
    let mut observation = observed(0, 20, run.asked_for);
    observation.tasks.finished = finished + 10;
    let decision = run.second(observation);
    assert_eq!(decision.reason, Reason::Load);
    assert!((9.7..10.3).contains(&decision.terms.arrival_rate), "{:?}", decision.terms);
    assert!((1.9..2.1).contains(&decision.terms.service_seconds), "{:?}", decision.terms);
    assert!((28..=32).contains(&decision.replicas), "{}", decision.sentence);
}

fn backlogs() -> impl Strategy<Value = Backlog> {
    prop_oneof![
        6 => (0_u64..3000).prop_map(|ready| Backlog::Fresh { ready }),
        4 => Just(Backlog::Fresh { ready: 0 }),
        1 => (0_u64..3000).prop_map(|ready| Backlog::Partial { ready }),
        1 => (0_u64..3000).prop_map(|ready| Backlog::Stale { ready }),
        1 => Just(Backlog::Unknown),
    ]
}

prop_compose! {
    /// Anything that can be observed of some number of workers.
    fn observations()(
        backlog in backlogs(),
        running in 0_u32..120,
        longest in 0_u64..1000,
        silent_workers in prop_oneof![9 => Just(0_u32), 1 => 1_u32..5],
        consuming in 0_u16..120,
        starting in prop::collection::vec(0_u64..60, 0..20),
        attached in prop_oneof![8 => Just(None), 2 => (0_u32..120).prop_map(Some)],
        started in prop::collection::vec(0_u64..60, 0..3),
    ) -> Observation {
        let seconds = |list: Vec<u64>| list.into_iter().map(Duration::from_secs).collect();
        Observation {
            backlog,
            tasks: Tasks { running, longest_running: Duration::from_secs(longest), finished: 0, silent_workers },
            workers: Workers { asked_for: 0, consuming, starting: seconds(starting), attached, started: seconds(started) },
        }
    }
}

fn goals() -> impl Strategy<Value = Goal> {
    prop_oneof![
        3 => (0.0..300.0).prop_map(Goal::MaxWaitSeconds),
        1 => (1_u32..50).prop_map(|tasks| Goal::TasksPerWorker(NonZeroU32::new(tasks).unwrap())),
    ]
}

prop_compose! {
    fn policies()(goal in goals(), min in 0_u16..20, more in 0_u16..150) -> Policy {
        Policy { min, max: min + more.max(1), goal, stabilization: None, fallback: None }
    }
}

/// Lives through `past`, tasks being finished at the given rates, and returns where it ends.
fn live(policy: Policy, past: &[(Observation, u64)]) -> (Run, u64) {
    let mut run = Run::new(policy);
    let mut total = 0;
    for (observation, finished) in past {
        total += finished;
        let mut observation = observation.clone();
        observation.workers.asked_for = run.asked_for;
        observation.tasks.finished = total;
        run.second(observation);
    }
    (run, total)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_number_is_within_bounds(
        policy in policies(),
        past in prop::collection::vec((observations(), 0_u64..50), 1..80),
        asked_for in 0_u16..400,
    ) {
        let (mut run, finished) = live(policy, &past);
        let mut last = past[0].0.clone();
        last.workers.asked_for = asked_for;
        last.tasks.finished = finished;
        let decision = run.second(last);
        prop_assert!((policy.min..=policy.max).contains(&decision.replicas), "{}", decision.sentence);
        prop_assert!(decision.terms.arrival_rate.is_finite() && decision.terms.service_seconds.is_finite());
    }

    #[test]
    fn more_waiting_messages_never_mean_fewer_workers(
        policy in policies(),
        past in prop::collection::vec((observations(), 0_u64..50), 1..80),
        last in observations(),
        ready in 0_u64..3000,
        more in 1_u64..3000,
    ) {
        let (run, finished) = live(policy, &past);
        let with = |ready| {
            let mut observation = Observation { backlog: Backlog::Fresh { ready }, ..last.clone() };
            observation.workers.asked_for = run.asked_for;
            observation.tasks.finished = finished;
            decide(&observation, run.history.clone(), &policy, run.now + Duration::from_secs(1)).0
        };
        let (few, many) = (with(ready), with(ready + more));
        prop_assert!(many.replicas >= few.replicas, "{}\n{}", few.sentence, many.sentence);
    }

    #[test]
    fn what_is_not_known_never_means_fewer_workers(
        policy in policies(),
        past in prop::collection::vec((observations(), 0_u64..50), 1..120),
    ) {
        let mut run = Run::new(policy);
        let mut total = 0;
        for (observation, finished) in past {
            total += finished;
            let mut observation = observation;
            let asked_for = run.asked_for;
            observation.workers.asked_for = asked_for;
            observation.tasks.finished = total;
            let doubt = observation.doubt();
            let decision = run.second(observation);
            if doubt.is_some() {
                prop_assert!(decision.replicas >= asked_for, "{}", decision.sentence);
            }
        }
    }

}

proptest! {
    // Hours of seconds each.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn workers_are_taken_away_once_in_a_window_at_most(
        policy in policies(),
        hour in prop::collection::vec((prop_oneof![Just(0_u64), 0_u64..50, 0_u64..100_000], 0_u64..50), 600),
    ) {
        // The worst that a broker can say: another number each second.
        let mut run = Run::new(policy);
        let (mut total, mut lowered_at): (u64, Option<Instant>) = (0, None);
        for (ready, finished) in hour {
            total += finished;
            let before = run.asked_for;
            let decision = run.busy(ready, total);
            if decision.replicas < before {
                let window = Duration::from_secs_f64(decision.terms.window_seconds);
                prop_assert!(lowered_at.is_none_or(|at| run.now - at >= window), "{}", decision.sentence);
                lowered_at = Some(run.now);
            }
        }
    }

    #[test]
    fn the_same_again_and_again_settles(
        policy in policies(),
        past in prop::collection::vec((observations(), 0_u64..50), 1..40),
        running in 0_u32..50,
    ) {
        let (mut run, total) = live(policy, &past);
        let second = |n: u64, run: &mut Run| {
            let mut observation = observed(0, running, run.asked_for);
            observation.tasks.finished = total + n * u64::from(running) / 2;
            observation.tasks.longest_running = Duration::from_secs(2);
            run.second(observation).replicas
        };
        for n in 0..7200 {
            second(n, &mut run);
        }
        let settled = run.asked_for;
        for n in 7200..7800 {
            prop_assert_eq!(second(n, &mut run), settled);
        }
    }
}
