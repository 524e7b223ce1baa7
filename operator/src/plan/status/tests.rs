use super::*;
use crate::plan::autoscaler::Pause;

fn decision(replicas: u16, reason: DecisionReason) -> Decision {
    Decision::of(replicas, reason)
}

fn by_law(replicas: u16, reason: law::Reason) -> Decision {
    decision(replicas, DecisionReason::Law(reason))
}

fn problem(reason: Reason) -> Problem {
    Problem { reason, message: format!("{reason} happened") }
}

/// The conditions when all is well, but for what `change` changes.
fn stated(change: impl FnOnce(&mut World)) -> Vec<Stated> {
    let mut world = World {
        broker: BrokerState::Connected,
        queues: QueueState::Declared(Policies::Applied),
        claim: None,
        workers: Workers { pods: 1, ready: 1, ..Workers::default() },
        decision: by_law(1, law::Reason::Backlog),
        protection: Protection::Guaranteed,
    };
    change(&mut world);
    conditions(&Facts {
        topology: &Topology::default(),
        broker: &world.broker,
        queues: &world.queues,
        claim: world.claim.as_ref(),
        workers: &world.workers,
        decision: &world.decision,
        protection: world.protection,
    })
}

struct World {
    broker: BrokerState,
    queues: QueueState,
    claim: Option<Claim>,
    workers: Workers,
    decision: Decision,
    protection: Protection,
}

/// Type, status and reason of a condition.
fn brief(stated: &[Stated], type_: &str) -> (&'static str, Reason) {
    let stated = stated.iter().find(|stated| stated.type_ == type_).unwrap();
    (stated.status, stated.reason)
}

#[test]
fn all_is_well() {
    let all = stated(|_| {});
    let types: Vec<_> = all.iter().map(|stated| stated.type_).collect();
    assert_eq!(types, CONDITIONS);
    assert!(all.iter().all(|stated| stated.status == "True" && !stated.is_warning()));
}

#[test]
fn summary_gives_the_first_cause() {
    let all = stated(|world| {
        world.broker = BrokerState::Failed(problem(Reason::AuthFailed));
        world.queues = QueueState::WaitingForBroker;
        world.decision = by_law(1, law::Reason::BacklogUnknown);
    });
    assert_eq!(brief(&all, READY), ("False", Reason::AuthFailed));
    assert_eq!(brief(&all, BROKER_REACHABLE), ("False", Reason::AuthFailed));
    assert_eq!(brief(&all, QUEUES_DECLARED), ("Unknown", Reason::WaitingForBroker));
    assert_eq!(brief(&all, SCALING_ACTIVE), ("Unknown", Reason::BacklogUnknown));
    assert_eq!(all[0].message, "AuthFailed happened");
}

#[test]
fn failure_counts_more_than_ignorance() {
    let all = stated(|world| {
        world.queues = QueueState::Declaring;
        world.workers.problem = Some(problem(Reason::ImagePullFailed));
    });
    assert_eq!(brief(&all, READY), ("False", Reason::ImagePullFailed));
}

#[test]
fn missing_policies_warn_but_do_not_stop() {
    let all = stated(|world| {
        world.queues = QueueState::Declared(Policies::NotApplied("no management".into()));
    });
    assert_eq!(brief(&all, READY), ("True", Reason::Ready));
    assert_eq!(brief(&all, QUEUES_DECLARED), ("True", Reason::PoliciesNotApplied));
    assert!(all[2].message.ends_with("no management") && all[2].is_warning());
}

#[test]
fn protection_that_is_best_effort_is_said_and_stops_nothing() {
    for (protection, status) in [(Protection::Missing, "False"), (Protection::Unknown, "Unknown")] {
        let all = stated(|world| world.protection = protection);
        assert_eq!(brief(&all, SCALE_IN_PROTECTION), (status, Reason::BestEffort));
        assert_eq!(brief(&all, READY), ("True", Reason::Ready));
    }
}

#[test]
fn pause_is_shown_but_nothing_is_wrong() {
    let all = stated(|world| world.decision = decision(1, DecisionReason::Paused(Pause::Spec)));
    assert_eq!(brief(&all, SCALING_ACTIVE), ("False", Reason::Paused));
    assert_eq!(brief(&all, READY), ("True", Reason::Ready));
    assert!(all.iter().all(|stated| !stated.is_warning()));
}

#[test]
fn numbers_left_to_others_are_nothing_wrong() {
    for (left, reason) in
        [(DecisionReason::Recommended, Reason::Recommending), (DecisionReason::Off, Reason::ScalingOff)]
    {
        let all = stated(|world| world.decision = Decision { ask_for: None, ..decision(7, left) });
        assert_eq!(brief(&all, SCALING_ACTIVE), ("False", reason));
        assert_eq!(brief(&all, WORKERS_AVAILABLE), ("True", Reason::WorkersReady));
        assert!(all.iter().all(|stated| !stated.is_warning()));
    }
}

#[test]
fn what_is_not_known_is_named() {
    for (unknown, reason) in [
        (law::Reason::BacklogUnknown, Reason::BacklogUnknown),
        (law::Reason::WorkersSilent, Reason::WorkersSilent),
        (law::Reason::WorkersDetached, Reason::WorkersDetached),
        (law::Reason::Fallback, Reason::Fallback),
    ] {
        let all = stated(|world| world.decision = by_law(1, unknown));
        assert_eq!(brief(&all, SCALING_ACTIVE), ("Unknown", reason));
    }
}

#[test]
fn a_schedule_that_cannot_be_read_warns_but_does_not_stop() {
    let problem = || Some("schedules[0]".to_owned());
    let all = stated(|world| world.decision.problem = problem());
    assert_eq!(brief(&all, SCALING_ACTIVE), ("True", Reason::ScheduleInvalid));
    assert_eq!(brief(&all, READY), ("True", Reason::Ready));
    let mut told = Told::default();
    assert_eq!(reasons(told.news(&all)), [Reason::ScheduleInvalid]);
    assert_eq!(reasons(told.news(&all)), []);
    assert_eq!(reasons(told.news(&stated(|_| {}))), [Reason::Active]);
}

#[test]
fn claimed_queue_names_the_holder() {
    let all = stated(|world| {
        world.claim = Some(Claim { queue: "red".into(), holder: "default/one".into() });
        world.decision = decision(0, DecisionReason::QueueClaimed);
    });
    assert_eq!(brief(&all, READY), ("False", Reason::QueueClaimed));
    assert!(all[0].message.contains("`red`") && all[0].message.contains("default/one"));
}

#[test]
fn starting_workers_are_no_failure() {
    let all = stated(|world| world.workers.ready = 0);
    assert_eq!(brief(&all, WORKERS_AVAILABLE), ("True", Reason::WorkersStarting));
    let all = stated(|world| world.decision = by_law(0, law::Reason::Idle));
    assert_eq!(brief(&all, WORKERS_AVAILABLE), ("True", Reason::Idle));
}

fn at(second: i64) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
}

#[test]
fn transition_time_moves_with_the_status_only() {
    let first = merged(&[], &stated(|_| {}), Some(1), &at(100));
    assert!(first.iter().all(|condition| condition.last_transition_time == at(100)));
    let idle = stated(|world| world.decision = by_law(0, law::Reason::Idle));
    let second = merged(&first, &idle, Some(2), &at(200));
    assert_eq!(second[3].reason, "Idle");
    assert!(second.iter().all(|condition| condition.last_transition_time == at(100)));
    assert!(second.iter().all(|condition| condition.observed_generation == Some(2)));
    let lost = stated(|world| world.broker = BrokerState::Failed(problem(Reason::BrokerUnreachable)));
    let third = merged(&second, &lost, Some(2), &at(300));
    assert_eq!(third[1].last_transition_time, at(300));
    assert_eq!(third[2].last_transition_time, at(100));
}

fn reasons(news: Vec<&Stated>) -> Vec<Reason> {
    news.into_iter().map(|stated| stated.reason).collect()
}

fn unreachable() -> Vec<Stated> {
    stated(|world| {
        world.broker = BrokerState::Failed(problem(Reason::BrokerUnreachable));
        world.queues = QueueState::WaitingForBroker;
    })
}

#[test]
fn failure_and_recovery_are_told_once() {
    let mut told = Told::default();
    assert_eq!(reasons(told.news(&stated(|_| {}))), [], "a new TaskQueue that works is no news");
    assert_eq!(reasons(told.news(&unreachable())), [Reason::BrokerUnreachable]);
    assert_eq!(reasons(told.news(&unreachable())), []);
    let connecting = stated(|world| world.broker = BrokerState::Connecting);
    assert_eq!(reasons(told.news(&connecting)), [], "this is not the end of it yet");
    assert_eq!(reasons(told.news(&stated(|_| {}))), [Reason::Connected]);
    assert_eq!(reasons(told.news(&stated(|_| {}))), []);
}

#[test]
fn successor_does_not_tell_it_again() {
    let written = merged(&[], &unreachable(), Some(1), &at(100));
    let mut told = Told::new(&written);
    assert_eq!(reasons(told.news(&unreachable())), []);
    assert_eq!(reasons(told.news(&stated(|_| {}))), [Reason::Connected]);
}

#[test]
fn what_the_user_switches_is_told_both_ways() {
    let mut told = Told::default();
    let paused = stated(|world| world.decision = decision(1, DecisionReason::Paused(Pause::Spec)));
    assert_eq!(reasons(told.news(&paused)), [Reason::Paused]);
    assert_eq!(reasons(told.news(&stated(|_| {}))), [Reason::Active]);
}

#[test]
fn ordinary_work_and_first_steps_are_no_event() {
    let first = stated(|world| {
        world.broker = BrokerState::Connecting;
        world.queues = QueueState::WaitingForBroker;
        world.decision = by_law(0, law::Reason::BacklogUnknown);
    });
    let starting = stated(|world| world.workers.ready = 0);
    let mut told = Told::default();
    for stated in [&first, &stated(|_| {}), &starting] {
        assert_eq!(reasons(told.news(stated)), []);
    }
}

#[test]
fn other_cause_of_the_same_failure_is_told() {
    let mut told = Told::default();
    let lost = stated(|world| world.broker = BrokerState::Failed(problem(Reason::ConnectionLost)));
    assert_eq!(reasons(told.news(&lost)), [Reason::ConnectionLost]);
    assert_eq!(reasons(told.news(&unreachable())), [Reason::BrokerUnreachable]);
}

#[test]
fn different_images_warn_once_and_stop_nothing() {
    let differ = |change: fn(&mut World)| {
        stated(|world| {
            world.workers.images_differ = Some("a sha256:1, b sha256:2".to_owned());
            change(world);
        })
    };
    let mut told = Told::default();
    let all = differ(|_| {});
    assert_eq!(brief(&all, WORKERS_AVAILABLE), ("True", Reason::ImagesDiffer));
    assert_eq!(brief(&all, READY), ("True", Reason::Ready));
    assert_eq!(brief(&all, SCALING_ACTIVE), ("True", Reason::Active));
    let news = told.news(&all);
    assert!(news[0].is_warning() && news[0].message == "a sha256:1, b sha256:2");
    assert_eq!(reasons(news), [Reason::ImagesDiffer]);
    // Others that start or have started change nothing about it.
    for same in [
        differ(|_| {}),
        differ(|world| world.workers.ready = 0),
        differ(|world| world.workers.is_rolling_out = true),
    ] {
        assert_eq!(brief(&same, WORKERS_AVAILABLE), ("True", Reason::ImagesDiffer));
        assert_eq!(reasons(told.news(&same)), []);
    }
    assert_eq!(reasons(told.news(&stated(|_| {}))), [Reason::WorkersReady]);
    let stopped = differ(|world| world.workers.problem = Some(problem(Reason::CrashLooping)));
    assert_eq!(brief(&stopped, WORKERS_AVAILABLE), ("False", Reason::CrashLooping));
}

#[test]
fn a_rollout_is_shown_and_is_no_event() {
    let rolling_out = |ready| {
        stated(|world| {
            (world.workers.is_rolling_out, world.workers.ready) = (true, ready);
        })
    };
    let mut told = Told::default();
    for ready in [0, 1] {
        let all = rolling_out(ready);
        assert_eq!(brief(&all, WORKERS_AVAILABLE), ("True", Reason::RollingOut));
        assert_eq!(brief(&all, READY), ("True", Reason::Ready));
        assert_eq!(reasons(told.news(&all)), []);
    }
}
