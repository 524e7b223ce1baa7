use proptest::prelude::*;

use super::*;

fn policy(bounds: std::ops::RangeInclusive<u16>) -> Policy {
    Policy {
        min: *bounds.start(),
        max: *bounds.end(),
        tasks_per_worker: NonZeroU32::new(10).unwrap(),
        stabilization: Duration::from_secs(30),
        paused: false,
        manual: None,
        claimed: false,
    }
}

/// `replicas` workers asked for, nothing waits, nothing runs.
fn observed(replicas: u16) -> Observation {
    Observation {
        backlog: Backlog::Fresh { ready: 0 },
        running: Running { tasks: 0, silent_workers: 0 },
        replicas: Some(replicas),
    }
}

impl Observation {
    fn ready(self, ready: u64) -> Self {
        Self { backlog: Backlog::Fresh { ready }, ..self }
    }
    fn backlog(self, backlog: Backlog) -> Self {
        Self { backlog, ..self }
    }
    fn running(self, tasks: u32) -> Self {
        Self { running: Running { tasks, ..self.running }, ..self }
    }
    fn silent(self, silent_workers: u32) -> Self {
        Self { running: Running { silent_workers, ..self.running }, ..self }
    }
}

/// Decides with no past.
fn decided(observation: Observation, policy: &Policy) -> (u16, DecisionReason, String) {
    let decision = decide(&observation, &History::default(), policy, Instant::now());
    (decision.replicas, decision.reason, decision.sentence)
}

/// Feeds observations to `decide` as the controller does, with the seconds at which they are made.
fn replay(
    policy: &Policy,
    start: u16,
    observations: impl IntoIterator<Item = (u64, Observation)>,
) -> Vec<Decision> {
    let origin = Instant::now();
    let mut history = History::default();
    history.record(origin, start, policy.stabilization);
    let mut replicas = start;
    let mut decisions = Vec::new();
    for (second, observation) in observations {
        let now = origin + Duration::from_secs(second);
        let decision =
            decide(&Observation { replicas: Some(replicas), ..observation }, &history, policy, now);
        history.record(now, decision.wanted, policy.stabilization);
        replicas = decision.replicas;
        decisions.push(decision);
    }
    decisions
}

#[test]
fn divides_ready_and_running_by_tasks_per_worker() {
    assert_eq!(
        decided(observed(0).ready(350).running(20), &policy(0..=50)),
        (37, DecisionReason::Backlog, "37 = ceil((350 ready + 20 running) / 10)".into())
    );
}

#[test]
fn one_message_wakes_one_worker() {
    assert_eq!(decided(observed(0).ready(1), &policy(0..=50)).0, 1);
}

#[test]
fn burst_gets_its_workers_in_one_step() {
    assert_eq!(decided(observed(0).ready(500), &policy(0..=50)).0, 50);
    assert_eq!(decided(observed(5).ready(500), &policy(0..=50)).0, 50);
}

#[test]
fn max_replicas_caps_and_says_so() {
    assert_eq!(
        decided(observed(50).ready(980), &policy(0..=50)),
        (
            50,
            DecisionReason::Backlog,
            "50: ceil((980 ready + 0 running) / 10) = 98, capped by maxReplicas 50".into()
        )
    );
}

#[test]
fn min_replicas_run_when_nothing_waits() {
    assert_eq!(
        decided(observed(0), &policy(2..=50)),
        (2, DecisionReason::Idle, "2: ceil((0 ready + 0 running) / 10) = 0, raised to minReplicas 2".into())
    );
}

#[test]
fn first_deployment_starts_with_the_decided_number() {
    let first = Observation { replicas: None, ..observed(0) };
    assert_eq!(decided(first, &policy(0..=50)).0, 0);
    assert_eq!(decided(first.ready(70), &policy(0..=50)).0, 7);
    assert_eq!(decided(first.backlog(Backlog::Unknown), &policy(3..=50)).0, 3);
}

#[test]
fn holds_replicas_while_backlog_is_unknown() {
    for backlog in [Backlog::Unknown, Backlog::Stale { ready: 0 }, Backlog::Stale { ready: 500 }] {
        let held = (4, DecisionReason::BacklogUnknown, "4: held, the backlog is not known".into());
        assert_eq!(decided(observed(4).backlog(backlog), &policy(0..=50)), held);
    }
}

#[test]
fn partly_known_backlog_adds_workers_but_takes_none() {
    let partly = |ready| observed(4).backlog(Backlog::Partial { ready });
    assert_eq!(decided(partly(70), &policy(0..=50)).0, 7);
    assert_eq!(decided(partly(0), &policy(0..=50)).0, 4);
    assert_eq!(decided(partly(0), &policy(0..=50)).1, DecisionReason::BacklogUnknown);
}

#[test]
fn silent_workers_are_never_taken_for_idle_ones() {
    assert_eq!(decided(observed(4).silent(1), &policy(0..=50)).0, 4);
    assert_eq!(decided(observed(4).silent(1), &policy(0..=50)).1, DecisionReason::WorkersSilent);
    assert_eq!(decided(observed(4).silent(1).ready(70), &policy(0..=50)).0, 7);
}

#[test]
fn silence_does_not_start_the_window_anew() {
    let load = |second| if second < 40 { observed(0).silent(1) } else { observed(0) };
    let decisions = replay(&policy(0..=50), 12, (0..=60).map(|second| (second, load(second))));
    assert_eq!((decisions[20].replicas, decisions[20].reason), (12, DecisionReason::Stabilizing));
    assert_eq!((decisions[39].replicas, decisions[39].reason), (12, DecisionReason::WorkersSilent));
    assert_eq!(decisions[40].replicas, 0);
}

#[test]
fn bounds_hold_whatever_is_known() {
    for observation in [
        observed(80).backlog(Backlog::Unknown),
        observed(80).backlog(Backlog::Partial { ready: 0 }),
        observed(80).silent(3),
        observed(80),
    ] {
        assert!(decided(observation, &policy(0..=50)).0 <= 50);
    }
    assert_eq!(decided(observed(1).backlog(Backlog::Unknown), &policy(3..=50)).0, 3);
}

#[test]
fn pause_holds_and_manual_number_wins() {
    let paused = Policy { paused: true, ..policy(0..=50) };
    assert_eq!(decided(observed(4).ready(500), &paused).0, 4);
    let manual = Policy { manual: Some(70), ..paused };
    assert_eq!(
        decided(observed(4).ready(500), &manual),
        (70, DecisionReason::Manual, "70 = spec.replicas, set by hand".into())
    );
}

#[test]
fn claimed_queue_runs_nothing() {
    let claimed = Policy { claimed: true, manual: Some(3), ..policy(2..=50) };
    assert_eq!(decided(observed(4).ready(500), &claimed).0, 0);
}

#[test]
fn takes_workers_away_after_the_stabilization_window() {
    let seconds: Vec<u64> = (0..=40).collect();
    let decisions = replay(&policy(0..=50), 12, seconds.iter().map(|second| (*second, observed(0))));
    assert_eq!(decisions[0].replicas, 12);
    assert_eq!(decisions[0].reason, DecisionReason::Stabilizing);
    assert_eq!(decisions[0].recheck_after, Some(Duration::from_secs(30)));
    assert_eq!(decisions[29].replicas, 12);
    assert_eq!(decisions[29].recheck_after, Some(Duration::from_secs(1)));
    assert_eq!(decisions[30].replicas, 0);
    assert_eq!(decisions[30].reason, DecisionReason::Idle);
    assert!(decisions[30..].iter().all(|decision| decision.replicas == 0));
}

#[test]
fn window_goes_down_in_the_steps_in_which_the_need_fell() {
    let load = |second| if second < 10 { 40 } else { 15 };
    let decisions =
        replay(&policy(0..=50), 8, (0..=60).map(|second| (second, observed(0).ready(load(second)))));
    assert_eq!([29, 30, 39, 40].map(|second: usize| decisions[second].replicas), [8, 4, 4, 2]);
}

#[test]
fn steady_fall_is_followed_in_few_steps_and_to_the_end() {
    let load = |second: u64| 500_u64.saturating_sub(second * 10);
    let decisions =
        replay(&policy(0..=50), 50, (0..=100).map(|second| (second, observed(0).ready(load(second)))));
    let mut steps: Vec<u16> = decisions.iter().map(|decision| decision.replicas).collect();
    steps.dedup();
    assert_eq!(steps, [50, 37, 27, 20, 15, 11, 8, 6, 4, 3, 2, 1, 0]);
    assert!(decisions[40].sentence.ends_with("a step down takes away a quarter at least"));
}

#[test]
fn one_surplus_worker_of_many_goes_in_the_end() {
    let decisions = replay(&policy(0..=50), 20, (0..=30).map(|second| (second, observed(0).ready(190))));
    assert_eq!((decisions[29].replicas, decisions[30].replicas), (20, 19));
}

#[test]
fn busy_workers_are_not_taken_away() {
    let decisions = replay(&policy(0..=50), 12, (0..=60).map(|second| (second, observed(0).running(7))));
    let last = decisions.last().unwrap();
    assert_eq!((last.replicas, last.reason), (7, DecisionReason::TasksRunning));
    assert_eq!(last.sentence, "7: ceil((0 ready + 7 running) / 10) = 1, but 7 workers run a task");
}

#[test]
fn workers_whose_tasks_end_go_after_the_window() {
    let load = |second| if second < 20 { 7 } else { 3 };
    let decisions =
        replay(&policy(0..=50), 7, (0..=60).map(|second| (second, observed(0).running(load(second)))));
    assert_eq!([49, 50].map(|second: usize| decisions[second].replicas), [7, 3]);
}

#[test]
fn no_window_means_at_once() {
    let at_once = Policy { stabilization: Duration::ZERO, ..policy(0..=50) };
    assert_eq!(replay(&at_once, 12, [(0, observed(0))])[0].replicas, 0);
}

#[test]
fn square_wave_within_the_window_never_takes_workers_away() {
    let wave = |second: u64| if (second / 10).is_multiple_of(2) { 200 } else { 0 };
    let decisions =
        replay(&policy(0..=50), 0, (0..300).map(|second| (second, observed(0).ready(wave(second)))));
    assert!(decisions.iter().all(|decision| decision.replicas == 20));
}

#[test]
fn broker_outage_starts_the_window_anew() {
    let outage = |second| match second {
        0..30 => observed(0).ready(100),
        30..90 => observed(0).backlog(Backlog::Unknown),
        _ => observed(0),
    };
    let decisions = replay(&policy(0..=50), 0, (0..130).map(|second| (second, outage(second))));
    assert!(decisions[..119].iter().all(|decision| decision.replicas == 10));
    assert_eq!(decisions[120].replicas, 0);
}

fn any_backlog() -> impl Strategy<Value = Backlog> {
    prop_oneof![
        6 => (0..2_000_u64).prop_map(|ready| Backlog::Fresh { ready }),
        1 => any::<u64>().prop_map(|ready| Backlog::Fresh { ready }),
        1 => (0..2_000_u64).prop_map(|ready| Backlog::Partial { ready }),
        1 => (0..2_000_u64).prop_map(|ready| Backlog::Stale { ready }),
        1 => Just(Backlog::Unknown),
    ]
}

fn any_observation() -> impl Strategy<Value = Observation> {
    (any_backlog(), 0..200_u32, prop_oneof![4 => Just(0), 1 => 1..5_u32], prop::option::of(0..300_u16))
        .prop_map(|(backlog, tasks, silent_workers, replicas)| Observation {
            backlog,
            running: Running { tasks, silent_workers },
            replicas,
        })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (0..60_u16, 0..60_u16, 1..40_u32, 0..120_u64).prop_map(|(min, more, tasks_per_worker, seconds)| Policy {
        min,
        max: (min + more).max(1),
        tasks_per_worker: NonZeroU32::new(tasks_per_worker).unwrap(),
        stabilization: Duration::from_secs(seconds),
        paused: false,
        manual: None,
        claimed: false,
    })
}

/// A past of numbers wanted, each with the seconds that it was.
fn any_history() -> impl Strategy<Value = Vec<(u64, u16)>> {
    prop::collection::vec((0..40_u64, 0..120_u16), 0..12)
}

fn history(wanted: &[(u64, u16)], policy: &Policy) -> (History, Instant) {
    let mut now = Instant::now();
    let mut history = History::default();
    for (seconds, wanted) in wanted {
        history.record(now, *wanted, policy.stabilization);
        now += Duration::from_secs(*seconds);
    }
    (history, now)
}

proptest! {
    #[test]
    fn stays_within_the_bounds(
        observation in any_observation(), policy in any_policy(), past in any_history(), paused in any::<bool>(),
    ) {
        let policy = Policy { paused, ..policy };
        let (history, now) = history(&past, &policy);
        let decision = decide(&observation, &history, &policy, now);
        prop_assert!((policy.min..=policy.max).contains(&decision.replicas));
        prop_assert!((policy.min..=policy.max).contains(&decision.wanted));
    }

    #[test]
    fn never_lowers_on_what_is_not_known(observation in any_observation(), policy in any_policy(), past in any_history()) {
        let fresh = matches!(observation.backlog, Backlog::Fresh { .. }) && observation.running.silent_workers == 0;
        let (history, now) = history(&past, &policy);
        if let (false, Some(replicas)) = (fresh, observation.replicas) {
            let decision = decide(&observation, &history, &policy, now);
            prop_assert!(decision.replicas >= replicas.min(policy.max));
        }
    }

    #[test]
    fn more_messages_never_mean_fewer_workers(
        observation in any_observation(), more in 0..5_000_u64, policy in any_policy(), past in any_history(),
    ) {
        let (history, now) = history(&past, &policy);
        if let Backlog::Fresh { ready } = observation.backlog {
            let less = decide(&observation, &history, &policy, now).replicas;
            let grown = observation.backlog(Backlog::Fresh { ready: ready.saturating_add(more) });
            prop_assert!(decide(&grown, &history, &policy, now).replicas >= less);
        }
    }

    #[test]
    fn settles_under_constant_input(observation in any_observation(), policy in any_policy(), start in 0..100_u16) {
        let decisions = replay(&policy, start, (0..300).map(|second| (second, observation)));
        let settled = decisions[130].replicas;
        prop_assert!(decisions[130..].iter().all(|decision| decision.replicas == settled));
    }

    #[test]
    fn zero_only_when_nothing_waits_or_runs(observation in any_observation(), policy in any_policy(), past in any_history()) {
        let policy = Policy { min: 0, ..policy };
        let (history, now) = history(&past, &policy);
        let decision = decide(&observation, &history, &policy, now);
        if decision.replicas == 0 && observation.replicas.is_some_and(|replicas| replicas > 0) {
            prop_assert_eq!(observation.backlog, Backlog::Fresh { ready: 0 });
            prop_assert_eq!(observation.running, Running { tasks: 0, silent_workers: 0 });
        }
    }

    #[test]
    fn never_below_what_was_wanted_within_the_window(
        wanted in prop::collection::vec((1..20_u64, 0..80_u16), 1..10), policy in any_policy(),
    ) {
        let (history, now) = history(&wanted, &policy);
        let decision = decide(&observed(80), &history, &policy, now);
        let mut until = now;
        for (seconds, wanted) in wanted.iter().rev() {
            if now.duration_since(until) < policy.stabilization {
                prop_assert!(decision.replicas >= policy.clamp(u64::from(*wanted)).min(policy.max.min(80)));
            }
            until -= Duration::from_secs(*seconds);
        }
    }
}
